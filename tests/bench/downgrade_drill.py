#!/usr/bin/env python3
"""A man in the middle between the submission host and two outside domains, one with DANE and one with MTA-STS.

On the submission host the way to their mail hosts is bent (nftables) to an address of lab-world that belongs to
nobody. There a proxy first strips STARTTLS, then offers a certificate of its own. In each case a message must stay in
the queue, nothing may be said in clear or to the stranger, and when the man has gone the message arrives. In the end
the day is closed, and the domains' report, sent by the analytics host, must say what happened.

Exit status: 0 as it must be; 1 otherwise; 2 no lab.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import email
import email.policy
import gzip
import json
import sys
import time
import uuid
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

from benchlib import BenchError, podman

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lab"))

from estatelib.mailboxes import Mailbox

SENDER, REPORTER, WORLD = "lab-smtp", "lab-analytics", "lab-world"
MAN = ("198.18.25.107", "2001:db8:25::107")
DOMAINS = {
    "example.ch": ("198.18.25.115", "2001:db8:25::115"),
    "example.be": ("198.18.25.116", "2001:db8:25::116"),
}
PORTS = {"strip": 2598, "certificate": 2599}
# What each attack must be called in the report, by the domain's kind of policy (RFC 8460 §4.3). Postfix calls a
# self-signed certificate a validation-failure, and says that it was self-signed in the reason.
RESULTS = {
    ("example.ch", "strip"): {"starttls-not-supported"},
    ("example.ch", "certificate"): {"validation-failure", "tlsa-invalid", "certificate-not-trusted"},
    ("example.be", "strip"): {"starttls-not-supported"},
    ("example.be", "certificate"): {"validation-failure", "certificate-not-trusted", "certificate-host-mismatch"},
}
REPORTS = "tlsrpt@example.com"
# Speaks SMTP on both ports of both addresses; writes down every command that a client should not have given.
PROXY = f"""
import asyncio, socket, ssl, subprocess, sys
subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-days", "2", "-subj", "/CN=man.invalid", "-keyout", "/run/drill.key", "-out", "/run/drill.crt"],
               check=True, capture_output=True)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/run/drill.crt", "/run/drill.key")
said = open("/run/drill.said", "a", buffering=1)

async def serve(reader, writer, strip):
    writer.write(b"220 mx ESMTP\\r\\n")
    secured = False
    while line := await asyncio.wait_for(reader.readline(), 60):
        verb = line.strip().split(b" ")[0].upper().decode("ascii", "replace")
        print("strip" if strip else "certificate", "tls" if secured else "clear", verb, file=said)
        if verb == "EHLO":
            offer = b"" if strip or secured else b"250-STARTTLS\\r\\n"
            writer.write(b"250-mx\\r\\n" + offer + b"250 8BITMIME\\r\\n")
        elif verb == "STARTTLS" and not strip:
            writer.write(b"220 go ahead\\r\\n")
            await writer.drain()
            await writer.start_tls(context)
            secured = True
        elif verb == "STARTTLS":
            writer.write(b"502 what is that?\\r\\n")
        elif verb == "DATA":
            writer.write(b"354 tell me\\r\\n")
        elif verb == "QUIT":
            writer.write(b"221 bye\\r\\n")
            break
        else:
            writer.write(b"250 ok\\r\\n")
        await writer.drain()
    writer.close()

async def quiet(reader, writer, strip):
    try:
        await serve(reader, writer, strip)
    except (OSError, asyncio.TimeoutError, ssl.SSLError):
        writer.close()

async def main():
    for address in {MAN!r}:
        for strip, port in ((True, {PORTS["strip"]}), (False, {PORTS["certificate"]})):
            await asyncio.start_server(lambda r, w, strip=strip: quiet(r, w, strip), address, port)
    await asyncio.sleep(1800)

asyncio.run(main())
"""


def on(host: str, command: str, *, stdin: str = "", timeout: float = 60, check: bool = True) -> str:
    return podman(host, "bash", "-c", command, stdin=stdin, timeout=timeout, check=check).strip()


def wait(what: str, look, seconds: float = 60):
    """Wait until ``look`` gives something, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(1)
    raise BenchError(f"{what}: not within {seconds:.0f} s")


@contextlib.contextmanager
def man_in_the_middle(attack: str) -> Iterator[None]:
    """The way to both domains' mail hosts leads to the proxy, for every service of the submission host."""
    rules = ["table inet drill", "delete table inet drill", "table inet drill {", "chain out {"]
    rules.append("type nat hook output priority -100; policy accept;")
    for addresses in DOMAINS.values():
        for family, address, man in zip(("ip", "ip6"), addresses, MAN, strict=True):
            target = f"[{man}]" if family == "ip6" else man
            rules.append(f"{family} daddr {address} tcp dport 25 dnat {family} to {target}:{PORTS[attack]}")
    on(SENDER, "nft -f -", stdin="\n".join([*rules, "}", "}"]) + "\n")
    try:
        yield
    finally:
        on(SENDER, "nft delete table inet drill", check=False)


@contextlib.contextmanager
def proxy() -> Iterator[None]:
    """The stranger's program on lab-world."""
    unit = "systemd-run --quiet --unit=downgrade-drill --collect"
    code = base64.b64encode(PROXY.encode()).decode()
    on(WORLD, f"rm -f /run/drill.*; echo {code} | base64 -d >/run/drill.py; {unit} python3 -B /run/drill.py")
    try:
        wait("the proxy", lambda: on(WORLD, f"ss -Hltn sport = {PORTS['certificate']}", check=False), 20)
        yield
    finally:
        on(WORLD, "systemctl stop downgrade-drill; rm -f /run/drill.*", check=False)


def send(domain: str) -> str:
    """Hand a message to the submission host's own Postfix; its Message-ID."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "postmaster@smtp.example.org", f"drill@{domain}", "Drill"
    message["Message-ID"] = f"<{uuid.uuid4()}@smtp.example.org>"
    message.set_content("Nobody in between shall read this.\n")
    on(SENDER, f"sendmail -f postmaster@smtp.example.org drill@{domain}", stdin=message.as_string())
    return message["Message-ID"]


def status(message_id: str, since: float) -> str:
    """What the log says of a message's delivery, or nothing yet."""
    query = f"journalctl -o cat --since @{since:.0f} -t postfix/cleanup -t postfix/smtp"
    lines = on(SENDER, query, check=False).splitlines()
    queue = next((line.split(":")[0] for line in lines if f"message-id={message_id}" in line), None)
    return next((line for line in lines if queue and line.startswith(f"{queue}: to=")), "")


def attacks() -> list[str]:
    """Make both attacks on both domains; what was not as it must be."""
    wrong: list[str] = []
    for attack in PORTS:
        begin = time.time()
        with man_in_the_middle(attack):
            sent = {domain: send(domain) for domain in DOMAINS}
            for domain, message_id in sent.items():
                line = wait(f"{attack}, {domain}", lambda m=message_id, t=begin: status(m, t))
                reason = line.partition("status=")[2]
                print(f"{attack:12} {domain:12} {reason[:150]}")
                if not reason.startswith("deferred"):
                    wrong.append(f"{attack}, {domain}: {reason}")
        on(SENDER, "postqueue -f")
        for domain, message_id in sent.items():
            try:
                Mailbox(f"drill@{domain}").wait_for(message_id, timeout=90)
            except AssertionError as error:
                wrong.append(f"{attack}, {domain}: {error}")
            else:
                print(f"{attack:12} {domain:12} arrived when the man had gone")
    heard = on(WORLD, "cat /run/drill.said").splitlines()
    for attack in PORTS:
        if not any(line.startswith(attack) for line in heard):
            wrong.append(f"{attack}: nobody came to the man in the middle")
    told = sorted({line for line in heard if line.split()[-1] in ("MAIL", "RCPT", "DATA")})
    return wrong + [f"told to the man in the middle: {line}" for line in told]


def reports() -> dict[str, dict]:
    """Close the day on all hosts, have it reported anew, and return domain → report."""
    begin = time.time()
    on(SENDER, "sleep 6; systemctl kill -s USR2 tlsrpt-collectd")
    time.sleep(2)
    on(REPORTER, "systemctl stop tlsrpt-reportd; rm -f /var/lib/tlsrpt/reportd.sqlite; systemctl start tlsrpt-reportd")
    found = {}
    for domain in DOMAINS:
        try:
            text = Mailbox(REPORTS).wait_for_text(f"TLS-Report-Domain: {domain}", timeout=180, since=begin).raw
        except AssertionError as error:
            raise BenchError(str(error)) from error
        message = email.message_from_bytes(text, policy=email.policy.default)
        part = next(part for part in message.walk() if part.get_content_type() == "application/tlsrpt+gzip")
        found[domain] = json.loads(gzip.decompress(part.get_payload(decode=True)))
        if not any("d=rua.example.org" in str(field) for field in message.get_all("DKIM-Signature", [])):
            raise BenchError(f"the report to {domain} is not signed")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-report", action="store_true", help="only the attacks, not the report about them")
    arguments = parser.parse_args()
    try:
        on(SENDER, "systemctl is-active tls-policy postfix-mta-sts-resolver tlsrpt-collectd")
        with proxy():
            wrong = attacks()
        for domain, report in ({} if arguments.no_report else reports()).items():
            kinds = {detail["result-type"] for policy in report["policies"] for detail in policy["failure-details"]}
            print(f"report       {domain:12} {', '.join(sorted(kinds))}")
            for attack in PORTS:
                if not kinds & RESULTS[domain, attack]:
                    wrong.append(f"the report to {domain} does not say what was done: {attack}")
    except BenchError as error:
        print(f"downgrade drill: {error}", file=sys.stderr)
        return 2
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
