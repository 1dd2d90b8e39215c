"""What a message meets at rspamd: every test sends real mail through Postfix's milter client.

Postfix runs on the host under test, answers XCLIENT from the lab network (so that a test chooses the client's address)
and delivers to /var/mail/test.  The outside domains and their DNS records are in prepare.yml.
"""

from __future__ import annotations

import email
import email.message
import json
import smtplib
import socket
import time
import uuid
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from email.header import Header

import dkim
import pytest

AUTHSERV_ID = "mx.example.org"
OWN = "192.0.2.10"  # the address in the SPF records of all domains
OTHER = "192.0.2.99"
GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
TRUSTED = "X-Estate-ARC: pass; trusted=yes; dmarc=pass"


def build(sender: str, *, head: str = "", from_: str | bytes | None = None, body: str = "Good morning.") -> bytes:
    """A plain message.  ``from_`` replaces the whole From line(s); ``head`` is put above everything else."""
    author = f"From: Taro <{sender}>" if from_ is None else from_
    lines = [
        *([head.encode()] if head else []),
        author.encode() if isinstance(author, str) else author,
        b"To: Hanako <hanako@example.org>",
        b"Subject: Minutes of Tuesday",
        time.strftime("Date: %a, %d %b %Y %H:%M:%S +0000", time.gmtime()).encode(),
        f"Message-ID: <{uuid.uuid4()}@example.com>".encode(),
        b"MIME-Version: 1.0",
        b"Content-Type: text/plain; charset=utf-8",
        b"",
        body.encode(),
        b"",
    ]
    return b"\r\n".join(lines)


class Gateway:
    """The mail server under test: sends to it and reads what it delivered."""

    def __init__(self, host) -> None:
        self.host = host
        addresses = json.loads(host.check_output("ip -j -4 address show scope global"))
        self.address = next(a["local"] for link in addresses for a in link["addr_info"] if a.get("local"))
        self.key = host.file("/root/dkim.pem").content

    def journal(self) -> str:
        """The last words of rspamd and Postfix, for a test that failed."""
        return self.host.run("journalctl -u rspamd -n 60 --no-pager; tail -n 20 /var/log/mail.log").stdout

    def sign(self, message: bytes, domain: str) -> bytes:
        """The message with a DKIM signature of the domain on top."""
        signed = [b"from", b"subject", b"to"]
        return dkim.sign(message, b"test", domain.encode(), self.key, include_headers=signed) + message

    def send(self, sender: str, message: bytes, *, client: str = OWN) -> tuple[int, str]:
        """Sends the message as if from the address ``client``; returns the answer to its end of data."""
        with smtplib.SMTP(self.address, 25, timeout=60) as smtp:
            smtp.ehlo("mx.example.com")
            name = "mx.example.com" if client == OWN else "[UNAVAILABLE]"
            assert smtp.docmd("XCLIENT", f"NAME={name} ADDR={client}")[0] == 220
            smtp.ehlo("mx.example.com")
            assert smtp.mail(sender)[0] == 250
            assert smtp.rcpt("hanako@example.org")[0] == 250
            code, text = smtp.data(message)
            return code, text.decode()

    def delivered(self, message: bytes) -> email.message.Message:
        """The delivered copy of a message, found by its Message-ID."""
        wanted = email.message_from_bytes(message)["Message-ID"]
        for _ in range(40):
            found = self.host.run(f"grep -rlF -e '{wanted}' /var/mail/test/new")
            if found.rc == 0:
                return email.message_from_bytes(self.host.file(found.stdout.splitlines()[0]).content)
            time.sleep(0.25)
        raise AssertionError(f"{wanted} was not delivered")

    def accepts(self, sender: str, message: bytes, *, client: str = OWN) -> email.message.Message:
        """Sends a message that must be accepted and returns the delivered copy."""
        answer = self.send(sender, message, client=client)
        assert answer[0] == 250, answer
        return self.delivered(message)

    def refuses(self, sender: str, message: bytes, *, client: str = OWN) -> str:
        """Sends a message that must be refused for good and returns the words of the refusal."""
        code, text = self.send(sender, message, client=client)
        assert 550 <= code <= 554, (code, text)
        assert text.startswith("5.7.1 "), text
        return text


@pytest.fixture
def gateway(host, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """The gateway; a test that failed ends with the last words of its daemons."""
    system = Gateway(host)
    failed = request.session.testsfailed
    yield system
    if request.session.testsfailed > failed:
        print(system.journal())


def results(copy: email.message.Message) -> str:
    """The one Authentication-Results header of the copy, on one line."""
    headers = copy.get_all("Authentication-Results", [])
    assert len(headers) == 1, headers
    line = " ".join(headers[0].split())
    assert line.startswith(f"{AUTHSERV_ID};"), line
    return line


# -- Authentication-Results ------------------------------------------------------------------------------------------


def test_own_results_replace_forged_ones(gateway: Gateway) -> None:
    forged = f"Authentication-Results: {AUTHSERV_ID}; dmarc=pass header.from=bank.example.com"
    foreign = "Authentication-Results: mx.example.net; spf=pass"
    message = build("taro@example.edu", head=f"{forged}\r\n{foreign}")
    line = results(gateway.accepts("taro@example.edu", message))
    assert "bank.example.com" not in line


@pytest.mark.parametrize("domain", ["example.com", "strict.example.net", "example.net", "example.edu"])
def test_authenticated_mail_passes_unmarked(gateway: Gateway, domain: str) -> None:
    sender = f"taro@{domain}"
    copy = gateway.accepts(sender, gateway.sign(build(sender), domain))
    line = results(copy)
    assert "spf=pass" in line
    assert "dkim=pass" in line
    assert "dmarc=pass" in line
    assert f"header.from={domain}" in line
    assert copy["X-Spam"] is None


@pytest.mark.parametrize("client", ["10.1.2.3", "192.168.1.2", "172.16.5.5", "198.18.25.99"])
def test_private_networks_are_not_trusted(gateway: Gateway, client: str) -> None:
    copy = gateway.accepts("taro@example.com", build("taro@example.com"), client=client)
    line = results(copy)
    assert "spf=fail" in line
    assert "dmarc=fail" in line
    assert copy["X-Spam"] == "Yes"


def test_broken_signature_and_wrong_client_are_called_failures(gateway: Gateway) -> None:
    message = gateway.sign(build("taro@example.edu"), "example.edu").replace(b"Good morning", b"Good evening")
    line = results(gateway.accepts("taro@example.edu", message, client=OTHER))
    assert "spf=fail" in line
    assert "dkim=fail" in line
    assert "dmarc=fail" in line


def test_domain_without_records_has_no_results(gateway: Gateway) -> None:
    message = build("taro@example.jp")
    assert "dmarc=none" in results(gateway.accepts("taro@example.jp", message))


# -- DMARC policy (RFC 9989 §7.4) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["example.com", "example.net"])
def test_policy_alone_marks_and_never_refuses(gateway: Gateway, domain: str) -> None:
    sender = f"taro@{domain}"
    copy = gateway.accepts(sender, build(sender), client=OTHER)
    assert "dmarc=fail" in results(copy)
    assert copy.get_all("X-Spam") == ["Yes"]


def test_failure_under_policy_none_is_not_marked(gateway: Gateway) -> None:
    message = build("taro@example.edu")
    copy = gateway.accepts("bounce@example.jp", message)
    assert "dmarc=fail" in results(copy)
    assert copy["X-Spam"] is None


@pytest.mark.parametrize("author", ["taro@strict.example.net", "TARO@Strict.Example.NET"])
def test_strict_domain_is_refused_with_the_reason(gateway: Gateway, author: str) -> None:
    text = gateway.refuses("any@example.jp", build(author))
    assert "strict.example.net must pass DMARC" in text


def test_trusted_sealer_excuses_the_failure(gateway: Gateway) -> None:
    for author in ("taro@strict.example.net", "taro@example.com", "taro@example.net"):
        message = build(author, head=TRUSTED)
        copy = gateway.accepts("forward@example.jp", message)
        assert "dmarc=fail" in results(copy)
        assert copy["X-Spam"] is None, copy["X-Spamd-Result"]
        # The sealing milter behind rspamd still needs it.
        assert copy["X-Estate-ARC"] == "pass; trusted=yes; dmarc=pass"


def test_spf_failure_after_a_trusted_forwarder_does_not_make_it_spam(gateway: Gateway) -> None:
    copy = gateway.accepts("taro@example.com", build("taro@example.com", head=TRUSTED), client=OTHER)
    assert "spf=fail" in results(copy)
    assert copy["X-Spam"] is None, copy["X-Spamd-Result"]


@pytest.mark.parametrize(
    "head",
    [
        "X-Estate-ARC: pass; trusted=no; dmarc=pass",
        "X-Estate-ARC: pass; trusted=yes; dmarc=fail",
        "X-Estate-ARC: fail; trusted=yes; dmarc=pass",
        "X-Estate-ARC: none; trusted=no; dmarc=none",
        "X-Estate-ARC: pass; trusted=yes; dmarc=pass; trusted=no",
        f"{TRUSTED}\r\nX-Estate-ARC: none; trusted=no; dmarc=none",
        f"{TRUSTED}\r\n{TRUSTED}",
        "ARC-Authentication-Results: i=1; mx.example.edu; dmarc=pass",
    ],
)
def test_anything_less_excuses_nothing(gateway: Gateway, head: str) -> None:
    gateway.refuses("forward@example.jp", build("taro@strict.example.net", head=head))
    copy = gateway.accepts("forward@example.jp", build("taro@example.com", head=head))
    assert copy["X-Spam"] == "Yes"


# -- One author address ----------------------------------------------------------------------------------------------


def encoded(text: str) -> str:
    return f"=?utf-8?B?{b64encode(text.encode()).decode()}?="


REFUSED = {
    "none": "X-Nothing: here",
    "empty": "From: ",
    "empty_brackets": "From: Mail System <>",
    "no_domain": "From: MAILER-DAEMON",
    "no_header": "Good morning\r\nFrom: <admin@example.com>",
    "header_below_blank_line": "X-Nothing: here\r\n\r\nFrom: <admin@example.com>",
    "words": "From: Taro Yamada",
    "no_brackets": "From: Taro taro@example.jp",
    "a8_two_headers": "From: <first@example.jp>\r\nFrom: <admin@example.com>",
    "a9_leading_space": " From: <first@example.jp>\r\nFrom: <admin@example.com>",
    "a10_space_before_colon": "From: <first@example.jp>\r\nFrom : <admin@example.com>",
    "a11_folded_name": "From\r\n : <first@example.jp>\r\nFrom: <admin@example.com>",
    "a12_folded_name_and_sender": "From\r\n : <first@example.jp>\r\nSender: <admin@example.com>",
    "a13_folded_name_and_resent_from": "From\r\n : <first@example.jp>\r\nResent-From: <admin@example.com>",
    "a14_two_addresses": "From: <first@example.jp>, <admin@example.com>",
    "a15_encoded_address": f"From:{encoded('<admin@example.com>')},<second@example.jp>",
    "a15_without_comma": f"From: {encoded('<admin@example.com>')} <second@example.jp>",
    "a15_quoted": f'From: "{encoded("<admin@example.com>")}" <second@example.jp>',
    "a15_only": f"From: {encoded('admin@example.com')}",
    "a15_in_brackets": f"From: <{encoded('admin@example.com')}>",
    "a15_local_part": f"From: <{encoded('admin')}@example.com>",
    "a16_source_route": "From: <@example.jp,@example.edu:admin@example.com>",
    "a17_quoted_pair": "From: <admin@example.com>\\,<second@example.jp>",
    "a18_comma": "From: admin@example.com,<second@example.jp>",
    "a19_text_behind": "From: <any@example.jp>admin@example.com",
    "two_brackets": "From: <admin@example.com> <second@example.jp>",
    "nested_brackets": "From: <<admin@example.com>second@example.jp>",
    "open_bracket": "From: <admin@example.com",
    "open_quote": 'From: "Taro <admin@example.com>',
    "open_comment": "From: Taro (admin <admin@example.com>",
    "other_address_in_front": "From: admin@example.com <second@example.jp>",
    "group": "From: friends: admin@example.com, second@example.jp;",
    "group_of_one": "From: friends: admin@example.com;",
    "quoted_at": 'From: "admin@example.com"@example.jp',
    "two_ats": "From: <admin@example.com@example.jp>",
    "domain_literal": "From: <admin@[192.0.2.10]>",
    "double_dot_domain": "From: <admin@example..com>",
    "trailing_dot_domain": "From: <admin@example.com.>",
    "control_character": "From: <admin@example.com\x01>",
    "comment_in_address": "From: <admin(comment)@example.com>",
}


@pytest.mark.parametrize("form", REFUSED)
def test_refuses_what_is_not_exactly_one_author(gateway: Gateway, form: str) -> None:
    text = gateway.refuses("any@example.jp", build("", from_=REFUSED[form]))
    assert "exactly one valid From address" in text


ACCEPTED = {
    "bare": "From: taro@example.jp",
    "brackets": "From: <taro@example.jp>",
    "no_space": "From:Taro<taro@example.jp>",
    "name": "From: Taro Yamada <taro@example.jp>",
    "initial": "From: Taro Q. Yamada <taro@example.jp>",
    "quoted_comma": 'From: "Yamada, Taro (Keio)" <taro@example.jp>',
    "quoted_quote": 'From: "Taro \\"T\\" Yamada" <taro@example.jp>',
    "quoted_address": 'From: "taro@example.jp" <taro@example.jp>',
    "same_address_twice": "From: Taro@example.jp <taro@example.jp>",
    "comment_behind": "From: taro@example.jp (Taro Yamada)",
    "comment_behind_brackets": "From: Taro <taro@example.jp> (via (nested) web)",
    "japanese_utf8": f"From: {encoded('山田太郎')} <taro@example.jp>",
    "japanese_utf8_q": "From: =?UTF-8?Q?=E5=B1=B1=E7=94=B0_=E5=A4=AA=E9=83=8E?= <taro@example.jp>",
    "japanese_iso_2022_jp": f"From: {Header('山田 太郎', 'iso-2022-jp').encode()} <taro@example.jp>",
    # Its second byte is a backslash.
    "japanese_shift_jis": f"From: =?Shift_JIS?B?{b64encode('表'.encode('shift_jis')).decode()}?= <taro@example.jp>",
    "japanese_quoted": f'From: "{encoded("山田太郎")}" <taro@example.jp>',
    "japanese_two_words": f"From: {encoded('慶應義塾大学')}\r\n {encoded('湘南藤沢事務室')} <taro@example.jp>",
    "japanese_raw_utf8": "From: 山田太郎 <taro@example.jp>",
    "encoded_same_address": f"From: {encoded('山田 <taro@example.jp>')} <taro@example.jp>",
    "list_munged": f"From: {encoded('山田太郎 via Announce')} <announce@example.jp>",
    "mobile_dots": "From: <taro..yamada.@example.jp>",
    "folded": "From: Taro\r\n\tYamada\r\n <taro@example.jp>",
    "plus": "From: <taro+list=a_b-c@example.jp>",
}


@pytest.mark.parametrize("form", ACCEPTED)
def test_accepts_honest_authors(gateway: Gateway, form: str) -> None:
    copy = gateway.accepts("taro@example.jp", build("", from_=ACCEPTED[form]))
    assert copy["X-Spam"] is None, copy["X-Spamd-Result"]


def test_bounce_with_empty_envelope_sender_is_accepted(gateway: Gateway) -> None:
    message = build("", from_="From: MAILER-DAEMON@mx.example.com (Mail Delivery System)")
    gateway.accepts("", message)


# -- Spam ------------------------------------------------------------------------------------------------------------


def test_gtube_is_refused(gateway: Gateway) -> None:
    gateway.refuses("taro@example.edu", build("taro@example.edu", body=GTUBE))


def test_spam_marks_from_outside_do_not_survive(gateway: Gateway) -> None:
    head = "X-Spam: Yes\r\nX-Spamd-Bar: ++++++++\r\nX-Spamd-Result: forged"
    copy = gateway.accepts("taro@example.edu", build("taro@example.edu", head=head))
    assert copy["X-Spam"] is None
    assert len(copy.get_all("X-Spamd-Bar")) == 1
    assert copy["X-Spamd-Bar"] != "++++++++"
    assert "forged" not in str(copy.get_all("X-Spamd-Result"))


EXTRA = ["Subject: Win a prize", "To: <victim@example.org>", "Date: Mon, 1 Jan 2024 00:00:00 +0000"]


@pytest.mark.parametrize("place", ["top", "bottom"])
@pytest.mark.parametrize("extra", EXTRA)
def test_header_added_to_a_signed_message_breaks_or_marks_it(gateway: Gateway, extra: str, place: str) -> None:
    head, body = gateway.sign(build("taro@example.com"), "example.com").split(b"\r\n\r\n", 1)
    lines = [extra.encode(), head] if place == "top" else [head, extra.encode()]
    copy = gateway.accepts("taro@example.com", b"\r\n".join([*lines, b"", body]))
    assert "dkim=fail" in results(copy) or copy["X-Spam"] == "Yes"


def test_unsigned_header_added_to_a_signed_message_is_marked(gateway: Gateway) -> None:
    signed = gateway.sign(build("taro@example.com"), "example.com")
    copy = gateway.accepts("taro@example.com", EXTRA[2].encode() + b"\r\n" + signed)
    assert "dkim=pass" in results(copy)
    assert copy["X-Spam"] == "Yes"


@pytest.mark.parametrize(("appended", "mark"), [(b"", None), (b"Please send money.\r\n", "Yes")])
def test_text_appended_behind_the_signed_part_of_a_body_is_marked(
    gateway: Gateway, appended: bytes, mark: str | None
) -> None:
    message = build("taro@example.com", body="Good  morning. \r\n")
    signature = dkim.sign(
        message, b"test", b"example.com", gateway.key,
        canonicalize=(b"relaxed", b"relaxed"), include_headers=[b"from", b"subject", b"to"], length=True,
    )  # fmt: skip
    copy = gateway.accepts("taro@example.com", signature + message + appended)
    assert "dkim=pass" in results(copy)
    assert copy["X-Spam"] == mark


def test_spam_can_be_taught(gateway: Gateway) -> None:
    host = gateway.host
    message = build("teach@example.com", body=f"{uuid.uuid4()} cheap watches for clever people, order now. " * 5)
    host.check_output("printf %s '" + b64encode(message).decode() + "' | base64 -d > /tmp/spam.eml")
    answer = host.run("rspamc -h 127.0.0.1:11334 learn_spam /tmp/spam.eml")
    assert "success = true" in answer.stdout, answer.stdout + answer.stderr


# -- The service -----------------------------------------------------------------------------------------------------


def test_metrics_answer_on_loopback_only(gateway: Gateway) -> None:
    read = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:11334/metrics', timeout=5).read().decode())"
    metrics = gateway.host.check_output("python3 -c %s", read)
    assert "rspamd_scanned_total" in metrics
    for port in (11332, 11333, 11334, 6379):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((gateway.address, port), timeout=2).close()


ASK_DATABASE = """
import socket, sys, time
connection = socket.create_connection(("127.0.0.1", 6379), 5)
connection.sendall(b"INFO memory\\r\\nCONFIG GET dir\\r\\n")
time.sleep(0.5)
sys.stdout.write(connection.recv(65536).decode())
"""


def test_database_answers_on_loopback_within_its_memory(gateway: Gateway) -> None:
    answer = gateway.host.check_output("python3 -c %s", ASK_DATABASE)
    assert f"maxmemory:{256 * 1024 * 1024}" in answer
    assert "maxmemory_policy:volatile-ttl" in answer
    assert "ERR unknown command" in answer  # nobody changes its settings over the network


@contextmanager
def stopped(host, unit: str) -> Iterator[None]:
    """The unit is stopped inside the block and runs again behind it."""
    host.check_output(f"systemctl stop {unit}")
    try:
        yield
    finally:
        host.check_output(f"systemctl start {unit}")


def database_unit(host) -> str:
    return host.check_output("systemctl list-units --plain --no-legend --all '*-server@rspamd.service'").split()[0]


def test_mail_flows_without_the_database(gateway: Gateway) -> None:
    with stopped(gateway.host, database_unit(gateway.host)):
        sender = "taro@example.com"
        copy = gateway.accepts(sender, gateway.sign(build(sender), "example.com"))
        assert "dmarc=pass" in results(copy)
        gateway.refuses("any@example.jp", build("taro@strict.example.net"))


def test_mail_waits_while_rspamd_is_down_and_is_taken_after(gateway: Gateway) -> None:
    message = build("taro@example.edu")
    with stopped(gateway.host, "rspamd.service"), pytest.raises((AssertionError, smtplib.SMTPException)):
        assert gateway.send("taro@example.edu", message)[0] == 250
    for _ in range(40):
        if gateway.host.socket("tcp://127.0.0.1:11332").is_listening:
            break
        time.sleep(0.25)
    gateway.accepts("taro@example.edu", message)


def test_reload_loses_no_message(gateway: Gateway) -> None:
    for _ in range(3):
        gateway.host.check_output("systemctl reload rspamd.service")
        gateway.accepts("taro@example.edu", build("taro@example.edu"))
