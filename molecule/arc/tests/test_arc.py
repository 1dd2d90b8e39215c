"""The ARC milter behind a real Postfix: what is sealed, what is refused, what survives."""

from __future__ import annotations

import base64
import json
import re
import smtplib
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dkim
import pytest
from cryptography.hazmat.primitives import serialization

FULL, NO_RESULTS, SEAL_ONLY, VERIFY_ONLY = 25, 2525, 2526, 2527
"""Ports of the scenario's Postfix (files/master.cf)."""
RESULTS = b"trusted.example.edu; spf=pass; dmarc=pass header.from=example.com; arc=none"
UNITS = ("arc-verify", "arc-seal")
READ_METRICS = "import urllib.request as u;print(u.urlopen('http://127.0.0.1:8897/metrics',timeout=5).read().decode())"
UNPACK = (
    "python3 -c 'import base64,sys,zlib;sys.stdout.buffer.write(zlib.decompress(base64.b64decode(sys.stdin.read())))'"
)
PROVOKED = re.compile(
    r"internal error, message|no readable X-Estate-ARC|Traceback|^  |^\S*Error"
    r"|a (worker|metrics) died and is replaced|^\s*\^*$"
)


@dataclass
class Message:
    """A delivered message."""

    raw: bytes

    def fields(self, name: str) -> list[str]:
        """The values of a header field, folding undone."""
        head = self.raw.partition(b"\r\n\r\n")[0].decode("utf-8", "replace")
        unfolded = re.sub(r"\r\n[ \t]+", " ", head)
        return re.findall(rf"(?im)^{re.escape(name)}[ \t]*:[ \t]*(.*?)\r?$", unfolded)

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]


class Gateway:
    """The host under test and the outside world around it."""

    def __init__(self, host) -> None:
        self.host = host
        self.address = host.check_output("hostname -I").split()[0]
        self.outside_key = host.file("/root/arc-test/outside.pem").content
        self._keys = {}
        for key, names in {
            "gateway": ["arc2026._domainkey.example.org"],
            "outside": ["sel._domainkey.trusted.example.edu", "sel._domainkey.stranger.example.net"],
        }.items():
            pem = host.file(f"/root/arc-test/{key}.pem").content
            public = serialization.load_pem_private_key(pem, None).public_key()
            der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
            for name in names:
                self._keys[name] = b"v=DKIM1; k=rsa; p=" + base64.b64encode(der)

    def key_record(self, name, timeout=5) -> bytes | None:
        """What DNS says, for dkimpy."""
        text = name.decode() if isinstance(name, bytes) else name
        return self._keys.get(text.rstrip("."))

    def send(self, raw: bytes, port: int = FULL, sender="author@bounce.example.com", helo="out.example.com") -> str:
        """Hand a message over; the reply to its last line."""
        with smtplib.SMTP(self.address, port, local_hostname=helo, timeout=60) as client:
            client.ehlo()
            client.mail(sender, ["BODY=8BITMIME"])
            code, text = client.rcpt("reader@example.org")
            assert code == 250, text
            client.putcmd("data")
            assert client.getreply()[0] == 354
            # smtplib would mend line ends; these octets are sent as they are
            client.sock.sendall(
                re.sub(rb"(?m)^\.", b"..", raw) + (b"" if raw.endswith(b"\r\n") else b"\r\n") + b".\r\n"
            )
            code, text = client.getreply()
        return f"{code} {text.decode()}"

    def wait(self, message_id: str, seconds: float = 20) -> Message:
        """The delivered copy."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.host.run("grep -rlF -- %s /srv/arc-mail/box/new", message_id).stdout.split()
            if found:
                assert len(found) == 1, found
                content = base64.b64decode(self.host.check_output("base64 -w0 %s", found[0]))
                return Message(content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
            time.sleep(0.2)
        raise AssertionError(f"{message_id} did not arrive\n{self.journal()}")

    def deliver(self, raw: bytes, **how) -> Message:
        """Send and fetch."""
        reply = self.send(raw, **how)
        assert reply.startswith("250"), f"{reply}\n{self.journal()}"
        return self.wait(re.search(rb"Message-ID: (\S+)", raw)[1].decode())

    def outside_seal(self, raw: bytes, domain: str = "trusted.example.edu", results: bytes = RESULTS) -> bytes:
        """An ARC set on top, made by dkimpy."""
        server = results.partition(b";")[0]
        with_results = b"Authentication-Results: " + results + b"\r\n" + raw
        lines = dkim.arc_sign(with_results, b"sel", domain.encode(), self.outside_key, server)
        assert lines
        return b"".join(lines) + raw

    def dkim_sign(self, raw: bytes) -> bytes:
        """A message with the DKIM signature of a subdomain of its author's."""
        return dkim.sign(raw, b"sel", b"mail.example.com", self.outside_key) + raw

    def arc(self, message: Message) -> tuple[str, str]:
        """The verdicts of dkimpy and of Mail::DKIM."""
        verdict = dkim.arc_verify(message.raw, dnsfunc=self.key_record)
        first = verdict[0].decode() if verdict[0] else "fail"
        encoded = base64.b64encode(zlib.compress(message.raw)).decode()
        command = self.host.run(f"{UNPACK} <<'EOF' | perl /root/arc-test/verify.pl\n{encoded}\nEOF")
        assert command.rc == 0, command.stderr
        return first, command.stdout.split()[0]

    def metric(self, name: str) -> float:
        """One number of /metrics."""
        text = self.metrics()
        values = [float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + " ")]
        assert len(values) == 1, f"{name} not in\n{text}"
        return values[0]

    def metrics(self) -> str:
        """/metrics as read on the host."""
        return self.host.check_output(f'python3 -c "{READ_METRICS}"')

    def events(self) -> list[dict]:
        """All DMARC events."""
        text = self.host.check_output("cat /var/spool/estate-dmarc/*.jsonl")
        return [json.loads(line) for line in text.splitlines()]

    def journal(self) -> str:
        """What the units and Postfix said lately."""
        return self.host.run("journalctl --no-pager -q -n 60 -u arc-verify -u arc-seal -t postfix/cleanup").stdout

    @contextmanager
    def setting(self, name: str, value: str) -> Iterator[None]:
        """Run with another configuration for the length of a block."""
        config = "/etc/estate-arc/arc.toml"
        units = " ".join(UNITS)
        self.host.check_output(f"cp -p {config} /root/arc-test/arc.toml")
        try:
            self.host.check_output(f"sed -i 's|^{name} = .*|{name} = {value}|' {config} && systemctl restart {units}")
            yield
        finally:
            self.host.check_output(f"cp -p /root/arc-test/arc.toml {config} && systemctl restart {units}")


@pytest.fixture(scope="module")
def gateway(host):
    return Gateway(host)


def compose(body: bytes = b"Shall we meet at ten?\r\n", headers: bytes = b"") -> bytes:
    """A message as its author's system sends it."""
    return (
        headers + b"From: =?utf-8?q?A_Uthor?= <author@example.com>\r\nTo: reader@example.org\r\n"
        b"Subject: A question\r\nDate: Tue, 24 Nov 2026 12:00:00 +0000\r\n"
        b"Message-ID: <" + uuid.uuid4().hex.encode() + b"@example.com>\r\n"
        b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + body
    )


def test_services_run_confined_and_accept(host):
    for unit in UNITS:
        service = host.service(unit)
        try:
            assert service.is_running
            assert service.is_enabled
        except AssertionError:
            print(host.run(f"journalctl --no-pager -u {unit}").stdout)
            raise
        properties = host.check_output(f"systemctl show {unit} -p NRestarts -p User -p NoNewPrivileges")
        assert "NRestarts=0" in properties
        assert "User=estate-arc" in properties
        assert "NoNewPrivileges=yes" in properties


def test_key_is_not_readable_for_the_daemon_user_or_anybody(host):
    assert host.run("runuser -u estate-arc -- cat /etc/estate-arc/arc.pem").rc != 0
    assert host.run("runuser -u nobody -- cat /etc/estate-arc/arc.pem").rc != 0


def test_fresh_message_gets_the_first_set_that_two_engines_accept(gateway):
    copy = gateway.deliver(gateway.dkim_sign(compose()))
    assert gateway.arc(copy) == ("pass", "pass")
    names = re.findall(rb"(?m)^([A-Za-z-]+):", copy.raw)
    sets = [name for name in names if name.startswith(b"ARC-")]
    assert sets == [b"ARC-Seal", b"ARC-Message-Signature", b"ARC-Authentication-Results"]
    assert "cv=none" in copy.fields("ARC-Seal")[0]
    assert copy.fields("X-Estate-ARC") == []
    assert len(copy.fields("Authentication-Results")) == 1
    results = copy.fields("Authentication-Results")[0]
    assert re.match(
        r"mx\.example\.org; dkim=pass \(.*\) header\.d=mail\.example\.com .*; arc=none smtp\.remote-ip=", results
    )
    assert copy.fields("ARC-Authentication-Results") == [f"i=1; {results}"]


def test_valid_outside_chain_is_continued(gateway):
    copy = gateway.deliver(gateway.outside_seal(compose(), "stranger.example.net"))
    assert gateway.arc(copy) == ("pass", "pass")
    seals = copy.fields("ARC-Seal")
    assert [seal[:4] for seal in seals] == ["i=2;", "i=1;"]
    assert "cv=pass" in seals[0]
    assert "arc=pass" in copy.fields("Authentication-Results")[0]
    assert "arc=pass" in copy.fields("ARC-Authentication-Results")[0]


@pytest.mark.parametrize(
    "breakage",
    [
        lambda sealed: sealed.replace(b"at ten", b"at six"),
        lambda sealed: sealed.replace(b"cv=none", b"cv=pass"),
        lambda sealed: b"ARC-Authentication-Results: i=1; trusted.example.edu; dmarc=pass\r\n" + sealed,
        lambda sealed: sealed.replace(b"d=trusted.example.edu", b"d=nokey.example.edu"),
        lambda sealed: re.sub(rb"ARC-Seal:.*?\r\n(?=\S)", b"", sealed, flags=re.DOTALL),
    ],
    ids=["body", "cv", "doubled results", "no key", "no seal"],
)
def test_broken_chain_is_reported_and_not_continued(gateway, breakage):
    broken = breakage(gateway.outside_seal(compose()))
    copy = gateway.deliver(broken)
    assert "arc=fail" in copy.fields("Authentication-Results")[0]
    for name in ("ARC-Seal", "ARC-Message-Signature", "ARC-Authentication-Results"):
        assert len(copy.fields(name)) == broken.count(name.encode() + b":")
    assert copy.fields("X-Estate-ARC") == []


def test_no_further_set_after_a_seal_with_cv_fail(gateway):
    first = gateway.outside_seal(compose()).replace(b"at ten", b"at six")
    failed = gateway.outside_seal(first, results=RESULTS.replace(b"arc=none", b"arc=fail"))
    assert b"cv=fail" in failed
    copy = gateway.deliver(failed)
    assert len(copy.fields("ARC-Seal")) == 2
    assert "arc=fail" in copy.fields("Authentication-Results")[0]


def handed_over(gateway, raw: bytes) -> str:
    """What the verify stage alone tells the spam filter."""
    return gateway.deliver(raw, port=VERIFY_ONLY).fields("X-Estate-ARC")[0]


def test_verify_stage_tells_the_spam_filter_whom_to_believe(gateway):
    assert handed_over(gateway, compose()) == "none; trusted=no; dmarc=none"
    sealed = gateway.outside_seal(compose())
    assert handed_over(gateway, sealed) == "pass; trusted=yes; dmarc=pass"
    stranger = gateway.outside_seal(compose(), "stranger.example.net")
    assert handed_over(gateway, stranger) == "pass; trusted=no; dmarc=none"


def test_trusted_set_replayed_below_a_strangers_seal_is_worth_nothing(gateway):
    genuine = gateway.outside_seal(compose())
    forged = genuine.replace(b"at ten", b"at six")
    replayed = gateway.outside_seal(forged, "stranger.example.net", RESULTS.replace(b"arc=none", b"arc=pass"))
    assert handed_over(gateway, replayed) == "pass; trusted=no; dmarc=none"


@pytest.mark.parametrize(
    "forged",
    [
        b"Authentication-Results: mx.example.org; dmarc=pass header.from=bank.example.com",
        b"authentication-RESULTS:MX.Example.Org 1; dmarc=pass",
        b'Authentication-Results: (hi (there)) "mx.example.org"; dmarc=pass',
        b"Authentication-Results:\r\n\tmx.example.org\r\n\t; dmarc=pass",
        b"Authentication-Results : mx.example.org; dmarc=pass",
        b'Authentication-Results: "mx.example.\\org"; dmarc=pass',
        b"Authentication-Results: (unclosed mx.example.org; dmarc=pass",
        b"Authentication-Results: mx.example.org.; dmarc=pass",
    ],
)
def test_authentication_results_in_our_name_are_removed(gateway, forged):
    others = b"Authentication-Results: mx.example.net; dmarc=fail smtp.mailfrom=x@mx.example.org"
    copy = gateway.deliver(compose(headers=others + b"\r\n" + forged + b"\r\n" + others + b"\r\n"), port=VERIFY_ONLY)
    assert copy.fields("Authentication-Results") == [others.partition(b": ")[2].decode()] * 2


def test_private_header_from_outside_is_removed(gateway):
    forged = b"X-Estate-ARC: pass; trusted=yes; dmarc=pass\r\nx-estate-arc : pass; trusted=yes; dmarc=pass\r\n"
    assert handed_over(gateway, compose(headers=forged)) == "none; trusted=no; dmarc=none"
    copy = gateway.deliver(compose(headers=forged))
    assert copy.fields("X-Estate-ARC") == []
    assert gateway.arc(copy) == ("pass", "pass")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no line end",
        b"\r\n\r\n\r\n",
        b"  spaces  and\ttabs \t\r\n \r\n\t\r\n",
        "Grüße, 日本語\r\n".encode() + bytes(range(128, 256)) + b"\r\n",
        b".\r\n..\r\n.dot\r\n",
        b"x" * 900 + b"\r\n" + b"y " * 450 + b"\r\n",
        b"line\r\n" * 30_000,
    ],
    ids=["empty", "no line end", "blank lines", "white space", "8 bit", "dots", "long lines", "180 kB"],
)
def test_body_arrives_unchanged_and_the_seal_covers_it(gateway, body):
    raw = compose(body)
    copy = gateway.deliver(raw)
    sent = raw.partition(b"\r\n\r\n")[2]
    assert copy.body == sent if sent.endswith(b"\r\n") or not sent else copy.body == sent + b"\r\n"
    assert gateway.arc(copy) == ("pass", "pass")


def test_unusual_header_fields_survive_and_the_seal_covers_them(gateway):
    headers = (
        b"X-Long: " + b"abcdefgh " * 80 + b"\r\nX-Folded:\r\n\t one\r\n   two\r\nX-Eight: \xe4\xf6\xfc\r\nX-Empty:\r\n"
        b"DKIM-Signature: v=1; a=rsa-sha256; d=example.com; s=none; h=from; bh=x;\r\n\tb=y\r\n"
    )
    copy = gateway.deliver(compose(headers=headers))
    assert headers in copy.raw
    assert gateway.arc(copy) == ("pass", "pass")
    assert ":dkim-signature" in copy.fields("ARC-Message-Signature")[0]


def test_message_of_20_megabytes_passes_with_constant_memory(gateway):
    body = (b"0123456789 abcdefghijklmnopqrstuvwxyz " * 2 + b"\r\n") * (20_000_000 // 78)
    copy = gateway.deliver(gateway.outside_seal(compose(body)))
    assert copy.body == body
    assert dkim.arc_verify(copy.raw, dnsfunc=gateway.key_record)[0] == b"pass"
    for process in gateway.host.check_output("pgrep -u estate-arc").split():
        peak = re.search(r"VmHWM:\s+(\d+) kB", gateway.host.file(f"/proc/{process}/status").content_string)
        assert int(peak[1]) < 100_000


def test_message_from_outside_that_no_filter_judged_has_to_come_again(gateway):
    unjudged = gateway.metric('estate_arc_seals_total{outcome="unjudged"}')
    assert gateway.send(compose(), port=NO_RESULTS).startswith("451 4.7.1")
    assert gateway.metric('estate_arc_seals_total{outcome="unjudged"}') == unjudged + 1


@pytest.mark.parametrize(
    ("name", "value"), [("on_unjudged", '"unsealed"'), ("unjudged_clients", '["0.0.0.0/0", "::/0"]')]
)
def test_message_that_nobody_has_to_judge_is_not_sealed(gateway, name, value):
    with gateway.setting(name, value):
        copy = gateway.deliver(compose(), port=NO_RESULTS)
    assert copy.fields("ARC-Seal") == copy.fields("X-Estate-ARC") == copy.fields("Authentication-Results") == []


def test_internal_error_lets_the_message_pass_unsealed_or_has_it_tried_again(gateway):
    errors = gateway.metric('estate_arc_errors_total{stage="seal"}')
    copy = gateway.deliver(compose(), port=SEAL_ONLY)  # without the verify stage's word nothing may be sealed
    assert copy.fields("ARC-Seal") == []
    assert copy.body == b"Shall we meet at ten?\r\n"
    assert gateway.metric('estate_arc_errors_total{stage="seal"}') == errors + 1
    with gateway.setting("on_error", '"tempfail"'):
        assert gateway.send(compose(), port=SEAL_ONLY).startswith("451 4.3.0")
        assert gateway.arc(gateway.deliver(compose())) == ("pass", "pass")


def test_key_that_cannot_be_looked_up_fails_the_chain_or_has_it_tried_again(gateway):
    silent = gateway.outside_seal(compose()).replace(b"d=trusted.example.edu", b"d=silent.example.net")
    begun = time.monotonic()
    copy = gateway.deliver(silent)
    assert time.monotonic() - begun < 10
    assert "arc=fail" in copy.fields("Authentication-Results")[0]
    with gateway.setting("on_dns_error", '"tempfail"'):
        assert gateway.send(silent).startswith("451 4.7.5")


def test_nothing_of_the_milter_is_reachable_from_outside(gateway):
    listening = gateway.host.check_output("ss -Hltn")
    for port in (8895, 8896, 8897):
        assert re.findall(rf"(\S+):{port}\s", listening) == ["127.0.0.1"]
    text = gateway.metrics()
    assert re.search(r'estate_arc_seconds_bucket\{stage="seal",le="0.005"\} [1-9]', text)
    assert gateway.metric('estate_arc_workers{stage="verify"}') >= 1


def test_event_of_a_message_holds_what_a_report_needs_and_no_local_part(gateway):
    helo = f"{uuid.uuid4().hex}.example.com"
    gateway.deliver(gateway.outside_seal(gateway.dkim_sign(compose())), helo=helo)
    event = [event for event in gateway.events() if event["helo"] == helo]
    assert len(event) == 1
    event = event[0]
    assert uuid.UUID(event["id"])
    assert abs(event["time"] - time.time()) < 300
    assert event["source_ip"].count(".") == 3
    assert event["envelope_from"] == "bounce.example.com"
    assert event["envelope_to"] == ["example.org"]
    assert event["header_from"] == event["policy"]["domain"] == "example.com"
    assert event["policy"]["record"].startswith("v=DMARC1; p=quarantine; sp=reject")
    assert (event["policy"]["applied"], event["policy"]["requested"]) == ("p", "quarantine")
    expected = {"domain": "mail.example.com", "selector": "sel", "result": "pass", "aligned": True}
    assert event["dkim"] == [expected]
    assert (event["dmarc"], event["disposition"], event["overrides"]) == ("pass", "pass", [])
    assert event["arc"] == {"result": "pass", "trusted": True, "dmarc": "pass"}
    text = json.dumps(event).replace("mailto:reports@example.com", "")
    assert "@" not in text
    assert "author" not in text
    assert "reader" not in text


def test_full_spool_is_counted_and_stops_no_mail(gateway):
    with gateway.setting("events_max_bytes", "10"):
        dropped = gateway.metric('estate_dmarc_events_total{outcome="dropped"}')
        assert gateway.arc(gateway.deliver(compose())) == ("pass", "pass")
        assert gateway.metric('estate_dmarc_events_total{outcome="dropped"}') == dropped + 1


def workers(gateway, unit: str) -> list[str]:
    main = gateway.host.check_output(f"systemctl show -P MainPID {unit}")
    return gateway.host.check_output(f"pgrep -P {main}").split()


@pytest.mark.parametrize("unit", UNITS)
def test_killed_workers_are_replaced_while_mail_goes_on(gateway, unit):
    for process in workers(gateway, unit):
        gateway.host.check_output(f"kill -9 {process}")
    assert gateway.arc(gateway.deliver(compose())) == ("pass", "pass")
    stage = unit.removeprefix("arc-")
    end = time.monotonic() + 10
    while gateway.metric(f'estate_arc_workers{{stage="{stage}"}}') < 1 and time.monotonic() < end:
        time.sleep(0.2)
    assert "NRestarts=0" in gateway.host.check_output(f"systemctl show {unit} -p NRestarts")


@pytest.mark.parametrize("unit", UNITS)
def test_restart_lets_the_message_in_progress_finish(gateway, unit):
    raw = compose()
    with smtplib.SMTP(gateway.address, FULL, local_hostname="slow.example.com", timeout=30) as client:
        client.ehlo()
        client.mail("author@bounce.example.com")
        client.rcpt("reader@example.org")
        client.putcmd("data")
        assert client.getreply()[0] == 354
        restart = threading.Thread(target=gateway.host.check_output, args=(f"systemctl restart {unit}",))
        restart.start()
        time.sleep(1.5)
        client.sock.sendall(raw + b".\r\n")
        code, text = client.getreply()
        restart.join(30)
    assert code == 250, text
    copy = gateway.wait(re.search(rb"Message-ID: (\S+)", raw)[1].decode())
    assert gateway.arc(copy) == ("pass", "pass")


def test_stopped_milter_makes_senders_try_again(gateway):
    for unit in UNITS:
        gateway.host.check_output(f"systemctl stop {unit}")
        try:
            assert re.match(r"4\d\d ", attempt(gateway))
        finally:
            gateway.host.check_output(f"systemctl start {unit}")
    assert gateway.arc(gateway.deliver(compose())) == ("pass", "pass")


def attempt(gateway) -> str:
    """The first reply that is no success, whatever command it answers."""
    try:
        return gateway.send(compose())
    except smtplib.SMTPResponseException as error:
        return f"{error.smtp_code} {error.smtp_error!r}"
    except AssertionError as error:
        return re.search(r"4\d\d .*", str(error)).group() if re.search(r"4\d\d ", str(error)) else f"451 {error}"


def test_no_errors_but_the_provoked_ones_in_the_journal(gateway):
    lines = gateway.host.check_output("journalctl --no-pager -q -p err -o cat -u arc-verify -u arc-seal").splitlines()
    assert [line for line in lines if not PROVOKED.search(line)] == []
