#!/usr/bin/perl
# A mailing list of the outside world, as Postfix's pipe(8) starts it:
#
#     outside-list LIST SENDER CLIENT_ADDRESS CLIENT_HELO < message
#
# It verifies what arrives (SPF, DKIM, ARC; DMARC by the tree walk of RFC 9989), writes the results down honestly
# (RFC 8601), changes the message as lists do, seals it (RFC 8617) and hands the copies to the relay. The lists and
# their habits are described in /etc/outside-list/lists.json.
#
# Exit status: 0 done, 67 no such list, 75 try again later (the relay or the DNS did not answer).

use strict;
use warnings;

use JSON::PP;
use Mail::DKIM::ARC::Signer;
use Mail::DKIM::ARC::Verifier;
use Mail::DKIM::TextWrap;
use Mail::DKIM::Verifier;
use Mail::SPF;
use Net::DNS;
use Net::SMTP;
use Sys::Hostname;

use constant { EX_NOUSER => 67, EX_TEMPFAIL => 75 };
use constant CONFIG      => '/etc/outside-list';
use constant PREFIX      => '[outside] ';

my $resolver = Net::DNS::Resolver->new(udp_timeout => 5, tcp_timeout => 5, retry => 2);

sub leave {
    my ($status, $reason) = @_;
    print STDERR "outside-list: $reason\n";
    exit $status;
}

sub slurp {
    my ($path) = @_;
    open my $file, '<:raw', $path or leave(EX_TEMPFAIL, "$path: $!");
    local $/ = undef;
    return scalar <$file>;
}

# --- the message: a list of header fields, each with its own line ends, and a body; all lines end in CRLF -------------

sub parse {
    my ($text) = @_;
    $text =~ s/\r?\n/\r\n/g;
    my ($head, $body) = split /\r\n\r\n/, $text, 2;
    my @fields = map {"$_\r\n"} split /\r\n(?![ \t])/, $head;
    return { fields => \@fields, body => $body // q{} };
}

sub as_text {
    my ($message) = @_;
    return join(q{}, @{ $message->{fields} }) . "\r\n" . $message->{body};
}

sub field {
    my ($message, $name) = @_;
    for (@{ $message->{fields} }) {
        if (/^\Q$name\E[ \t]*:(.*)$/is) {
            (my $value = $1) =~ s/\s+/ /g;
            $value =~ s/^ | $//g;
            return $value;
        }
    }
    return q{};
}

# --- what arrived: verified before anything is changed ----------------------------------------------------------------

sub spf {
    my ($sender, $address, $helo) = @_;
    $address =~ s/^IPv6://i;    # as Postfix writes it
    my $bounce   = $sender !~ /@/;
    my $identity = $bounce ? $helo : $sender;
    my $request  = eval {
        Mail::SPF::Request->new(
            versions      => [1],
            scope         => $bounce ? 'helo' : 'mfrom',
            identity      => $identity,
            ip_address    => $address,
            helo_identity => $helo,
        );
    } or return { result => 'none', property => q{}, domain => q{} };
    my $result = Mail::SPF::Server->new(dns_resolver => $resolver)->process($request)->code;
    (my $domain = $identity) =~ s/.*@//;
    return { result => $result, property => $bounce ? 'smtp.helo' : 'smtp.mailfrom', domain => lc $domain };
}

sub dkim {
    my ($text) = @_;
    my $verifier = Mail::DKIM::Verifier->new;
    $verifier->PRINT($text);
    $verifier->CLOSE;
    return map { { result => $_->result, domain => lc($_->domain // q{}), selector => $_->selector // q{} } }
        $verifier->signatures;
}

sub arc {
    my ($text) = @_;
    my $verifier = Mail::DKIM::ARC::Verifier->new;
    $verifier->PRINT($text);
    $verifier->CLOSE;
    my $result = $verifier->result;
    return $result =~ /^(?:pass|none)$/ ? $result : 'fail';
}

# The policy record that applies to an author domain, and the domain where it was found: the organisation's.
sub dmarc_record {
    my ($domain) = @_;
    my @labels = split /[.]/, $domain;
    while (@labels > 1) {
        my $name  = join q{.}, @labels;
        my $reply = $resolver->send("_dmarc.$name", 'TXT') or leave(EX_TEMPFAIL, "no answer from DNS for _dmarc.$name");
        for my $record (grep { $_->type eq 'TXT' } $reply->answer) {
            my $value = join q{}, $record->txtdata;
            return ($value, $name) if $value =~ /^v=DMARC1\s*(?:;|$)/;
        }
        shift @labels;
    }
    return;
}

sub aligned {
    my ($author, $identifier, $organisation, $strict) = @_;
    return $identifier eq $author if $strict;
    return $identifier eq $organisation || $identifier =~ /[.]\Q$organisation\E$/;
}

sub dmarc {
    my ($author, $spf, @dkim) = @_;
    my ($record, $organisation) = dmarc_record($author);
    return 'none' if !$record;
    my %strict = map { $_ => scalar($record =~ /;\s*$_\s*=\s*s\b/) } qw(adkim aspf);
    return 'pass' if $spf->{result} eq 'pass' && aligned($author, $spf->{domain}, $organisation, $strict{aspf});
    for my $signature (grep { $_->{result} eq 'pass' } @dkim) {
        return 'pass' if aligned($author, $signature->{domain}, $organisation, $strict{adkim});
    }
    return 'fail';
}

sub authentication_results {
    my ($message, $list, $arc, $sender, $address, $helo) = @_;
    my $spf    = spf($sender, $address, $helo);
    my @dkim   = dkim(as_text($message));
    my $author = field($message, 'From') =~ /@([\w.-]+)>?\s*$/ ? lc $1 : q{};
    my @results = ("spf=$spf->{result}" . ($spf->{property} ? " $spf->{property}=$spf->{domain}" : q{}));
    push @results, map {"dkim=$_->{result} header.d=$_->{domain} header.s=$_->{selector}"} @dkim;
    push @results, 'dkim=none' if !@dkim;
    push @results, 'dmarc=' . dmarc($author, $spf, @dkim) . " header.from=$author" if $author;
    push @results, "arc=$arc";
    return "Authentication-Results: $list->{authserv_id};\r\n\t" . join(";\r\n\t", @results) . "\r\n";
}

# --- what leaves ------------------------------------------------------------------------------------------------------

# A footer fits where the body is one text; the prefix alone breaks the signature of everything else.
sub change {
    my ($message, $address) = @_;
    (my $list_id = $address) =~ s/@/./;
    my $prefixed = 0;
    for (@{ $message->{fields} }) {
        next if !/^Subject[ \t]*:/i;
        $prefixed = 1;
        s/^(Subject[ \t]*:)\s*/$1 @{[PREFIX]}/i if !/\Q@{[PREFIX]}\E/;
    }
    push @{ $message->{fields} }, 'Subject: ' . PREFIX . "\r\n" if !$prefixed;
    push @{ $message->{fields} },
        "List-Id: <$list_id>\r\n", "List-Post: <mailto:$address>\r\n", "Precedence: list\r\n";
    my $is_text    = field($message, 'Content-Type') =~ m{^(?:text/plain\b|$)}i;
    my $is_encoded = field($message, 'Content-Transfer-Encoding') =~ /^base64/i;
    if ($is_text && !$is_encoded) {
        $message->{body} =~ s/(?<!\r\n)\z/\r\n/;
        $message->{body} .= "-- \r\nThe list $address, for everybody outside.\r\n";
    }
    return;
}

sub seal {
    my ($message, $list, $arc, $selector) = @_;
    my $signer = Mail::DKIM::ARC::Signer->new(
        Algorithm => 'rsa-sha256',
        Chain     => $arc,
        Domain    => $list->{domain},
        SrvId     => $list->{authserv_id},
        Selector  => $selector,
        KeyFile   => CONFIG . "/$list->{domain}.pem",
    );
    $signer->PRINT(as_text($message));
    $signer->CLOSE;
    # A chain that has failed before must not be continued (RFC 8617 §5.1): the message goes on as it is.
    return if $signer->result ne 'sealed';
    my @set = map { "$_\r\n" =~ s/\r?\n/\r\n/gr =~ s/(?:\r\n)+\z/\r\n/r } $signer->as_strings;
    if ($list->{seal} eq 'broken') {
        s/(\bb=\s*)([^\s;])/$1 . ($2 eq 'A' ? 'B' : 'A')/e for grep {/^ARC-Seal:/i} @set;
    }
    unshift @{ $message->{fields} }, @set;
    return;
}

sub send_copies {
    my ($message, $relay, $sender, @recipients) = @_;
    my $smtp = Net::SMTP->new($relay, Hello => hostname(), Timeout => 20) or leave(EX_TEMPFAIL, "$relay: $@");
    my $sent = $smtp->mail($sender) && $smtp->to(@recipients) && $smtp->data(as_text($message) =~ s/\r\n/\n/gr);
    leave(EX_TEMPFAIL, "$relay: " . $smtp->code . q{ } . $smtp->message) if !$sent;
    $smtp->quit;
    return;
}

sub main {
    my ($address, $sender, $client, $helo) = @_;
    $address = lc $address;
    my $config = JSON::PP->new->utf8->decode(slurp(CONFIG . '/lists.json'));
    my $list   = $config->{lists}{$address} or leave(EX_NOUSER, "no list $address");
    my @subscribers = grep {/@/ && !/^#/} split /\s*\n/, slurp("$config->{directory}/$address.subscribers");
    binmode STDIN;
    my $message = do { local $/ = undef; parse(scalar <STDIN>) };
    # A copy of a copy: the list has gone in a circle.
    return if !@subscribers || field($message, 'List-Id') eq '<' . $address =~ s/@/./r . '>';

    my $arc     = arc(as_text($message));
    my $results = authentication_results($message, $list, $arc, $sender, $client, $helo);
    @{ $message->{fields} } = grep { !/^Return-Path:|^Authentication-Results:\s*\Q$list->{authserv_id}\E\s*;/i }
        @{ $message->{fields} };
    change($message, $address);
    unshift @{ $message->{fields} }, $results;
    seal($message, $list, $arc, $config->{selector}) if $list->{seal} ne 'no-seal';
    send_copies($message, $config->{relay}, $address =~ s/@/-bounces@/r, @subscribers);
    return;
}

main(@ARGV);
