# Verify the ARC chain of a message on standard input with Mail::DKIM, a second engine, and print its result.
use strict;
use warnings;
use Mail::DKIM::ARC::Verifier;
use Mail::DKIM::DNS;
use Net::DNS::Resolver;

Mail::DKIM::DNS::resolver(Net::DNS::Resolver->new(nameservers => ['127.0.0.1']));
my $verifier = Mail::DKIM::ARC::Verifier->new();
while (my $line = <STDIN>) {
    $line =~ s/\r?\n\z//;
    $verifier->PRINT("$line\r\n");
}
$verifier->CLOSE;
print $verifier->result, " ", $verifier->result_detail, "\n";
