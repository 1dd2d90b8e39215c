# Verify a message on standard input with Mail::DKIM. Public keys: arguments NAME=RECORD; no DNS is asked.
use strict;
use warnings;
use Mail::DKIM::PublicKey;
use Mail::DKIM::Verifier;

my %records = map { split /=/, $_, 2 } @ARGV;
no warnings 'redefine';
*Mail::DKIM::PublicKey::fetch_async = sub {
    my ($class, %query) = @_;
    my $name   = "$query{Selector}._domainkey.$query{Domain}";
    my $on     = $query{Callbacks} || {};
    my $key    = exists $records{$name} ? $class->parse($records{$name}) : undef;
    $key->check if $key;
    return sub { $on->{Success} ? $on->{Success}->($key) : $key };
};

my $verifier = Mail::DKIM::Verifier->new();
while (my $line = <STDIN>) {
    $line =~ s/\r?\n\z//;
    $verifier->PRINT("$line\r\n");
}
$verifier->CLOSE;
print join("\n", map { $_->domain . " " . $_->result_detail } $verifier->signatures), "\n";
