#!/usr/bin/env python3
"""Two rotations of the DKIM keys under continuous mail, and an emergency: no signature fails to verify at the sink.

The submission host signs a message every second. One copy goes to a receiver at once, another waits in the host's
queue, since its receiver does not listen, and is let go in the last minute in which the old key is still kept: that is
the longest delay allowed. Months are not waited for; the playbook is told another time (``dkim_rotate_now``). What
resolvers remember is real: dkimpy verifies at the moment of arrival against the lab's DNS through a cache that also
remembers what there was not, and that was asked for the next key before it was made. A removed key must fail, or the
sink would not have verified anything.

Then others have the key: one run of the playbook makes another, signs with it and revokes the old one, while mail goes
on. What waits in the queue with the old signature is lost to DKIM, which is the price.

Exit status: 0 every signature verified; 1 otherwise; 2 no lab.
"""

from __future__ import annotations

import base64
import datetime
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import dkim
import dns.exception
import dns.resolver
from benchlib import HERE, WORLD, BenchError, agent, ends_tidily, podman

REPOSITORY = HERE.parents[1]
STATE = REPOSITORY / ".lab/keys/dkim.json"
SMTP = "lab-smtp"
NAME_SERVER = "198.18.25.100"
DOMAIN, SENDER = "example.org", "alice@example.org"
# Addresses of lab-world at which nobody else takes mail.
AT_ONCE, LATER = ("198.18.25.111", "now@sink.example.net"), ("198.18.25.113", "later@sso.example.org")
ROTATIONS = 2
FEW = 10  # messages of each kind without which a rotation proves nothing
PLAYBOOK_SECONDS = 300
WHOLE = 600


class Program:
    """An agent in a container; its lines are kept with the time at which they came."""

    def __init__(self, container: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            ["podman", "exec", "-i", container, "python3", "-u", "-c", agent("rotation_agent"), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line.strip())

    def close(self) -> None:
        if self.process.poll() is None:
            assert self.process.stdin
            self.process.stdin.close()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()


class Verifier:
    """dkimpy with the lab's DNS, through a cache that holds positive and negative answers for their time."""

    def __init__(self) -> None:
        self.resolver = dns.resolver.Resolver(configure=False)
        self.resolver.nameservers = [NAME_SERVER]
        self.resolver.cache = dns.resolver.Cache()
        self.resolver.lifetime = 5

    def text(self, name: Any, timeout: int = 5) -> bytes | None:
        """The TXT record of a name, as dkimpy asks for it."""
        try:
            answer = self.resolver.resolve(name.decode() if isinstance(name, bytes) else name, "TXT")
        except dns.exception.DNSException:
            return None
        return b"".join(answer[0].strings)

    def verify(self, content: bytes) -> bool:
        """Whether the message's signature is good now."""
        try:
            return dkim.verify(content, dnsfunc=self.text)
        except dkim.DKIMException:
            return False

    def verify_anew(self, content: bytes) -> bool:
        """Whether it is good for somebody who remembers nothing."""
        self.resolver.cache = dns.resolver.Cache()
        return self.verify(content)


class Sink:
    """A receiver; verifies each message when it comes."""

    def __init__(self, address: str, verifier: Verifier) -> None:
        self.program, self.verifier = Program(WORLD, "sink", address), verifier
        self.good: Counter[str] = Counter()
        self.bad: list[str] = []
        self.kept: dict[str, bytes] = {}
        self.open = True
        self.thread = threading.Thread(target=self._take, daemon=True)
        self.thread.start()

    def _take(self) -> None:
        while self.open or not self.program.lines.empty():
            try:
                content = base64.b64decode(self.program.lines.get(timeout=0.2))
            except queue.Empty:
                continue
            found = re.search(rb"DKIM-Signature:.*?\ss=([^;\s]+);", content, re.DOTALL)
            selector = found[1].decode() if found else "none"
            if self.verifier.verify(content):
                self.good[selector] += 1
                self.kept[selector] = content
            else:
                subject = re.search(rb"^Subject: (.*)\r$", content, re.MULTILINE)
                self.bad.append(f"{subject[1].decode() if subject else '?'} (s={selector})")

    def close(self) -> None:
        self.program.close()
        self.open = False
        self.thread.join(30)


def keys() -> dict[str, Any]:
    """The keys of the domain by selector."""
    known = json.loads(STATE.read_text(encoding="utf-8"))
    return {
        record.partition("._domainkey.")[0]: key
        for record, key in known.items()
        if record.endswith(f"._domainkey.{DOMAIN}") and key["use"] == "dkim"
    }


def signing() -> str:
    """The selector that signs."""
    found = [selector for selector, key in keys().items() if key["state"] == "signing"]
    if len(found) != 1:
        raise BenchError(f"{STATE.name}: {found} sign for {DOMAIN}; run playbooks/dkim_rotate.yml first")
    return found[0]


def moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def playbook(now: datetime.datetime, compromised: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")), "playbooks/dkim_keys.yml",
            "-e", f"dkim_rotate_now={now.isoformat(timespec='seconds')}",
            "-e", f"dkim_rotate_compromised={compromised}",
        ],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=PLAYBOOK_SECONDS, check=False,
        env=os.environ | {"ANSIBLE_DISPLAY_OK_HOSTS": "true"},
    )  # fmt: skip


def run(now: datetime.datetime, what: str, compromised: str = "") -> None:
    """The playbook at another time, perhaps with a record whose private key others may have."""
    begun = time.monotonic()
    try:
        done = playbook(now, compromised)
    except subprocess.TimeoutExpired:
        raise BenchError(f"dkim_keys.yml took longer than {PLAYBOOK_SECONDS} s") from None
    states = ", ".join(f"{selector} {key['state']}" for selector, key in keys().items() if key["state"] != "removed")
    print(f"{now:%Y-%m-%d %H:%M} {what}: {states} ({time.monotonic() - begun:.0f} s)", flush=True)
    if done.returncode:
        raise BenchError(f"dkim_keys.yml failed: {done.stdout[-1500:]}")


def waiting() -> int:
    """Messages of the drill in the host's queue."""
    entries = podman(SMTP, "postqueue", "-j", timeout=30).splitlines()
    return sum(LATER[1] in entry for entry in entries)


def forget_mail() -> None:
    """Remove what is left of the drill from the host's queue."""
    entries = [json.loads(line) for line in podman(SMTP, "postqueue", "-j", timeout=30).splitlines()]
    left = [entry["queue_id"] for entry in entries if LATER[1] in json.dumps(entry)]
    if left:
        podman(SMTP, "postsuper", "-d", "-", stdin="\n".join(left) + "\n")


def let_go(verifier: Verifier, old: str) -> Sink:
    """Deliver what waits; the messages that the old key signed among it."""
    before = waiting()
    sink = Sink(LATER[0], verifier)
    time.sleep(1)
    end = time.monotonic() + 60
    while time.monotonic() < end and sum(sink.good.values()) + len(sink.bad) < before:
        podman(SMTP, "postqueue", "-f")
        time.sleep(3)
    time.sleep(1)
    sink.close()
    if sink.good[old] + sum(f"s={old}" in bad for bad in sink.bad) < FEW:
        raise BenchError(f"of {before} messages in the queue only {sink.good[old]} signed by {old} arrived")
    return sink


def drill() -> int:
    life = {"keep_days": 8, "rotate_days": 180}
    verifier = Verifier()
    begun = time.monotonic()
    first = signing()
    at_once = Sink(AT_ONCE[0], verifier)
    time.sleep(2)
    if at_once.program.process.poll() is not None:
        raise BenchError(f"nobody can take mail at {AT_ONCE[0]}: the sink in {WORLD} ended")
    sender = Program(SMTP, "send", SENDER, AT_ONCE[1], LATER[1])
    late: list[Sink] = []
    stale: list[str] = []
    ended = False
    try:
        time.sleep(FEW + 2)
        for _rotation in range(ROTATIONS):
            if time.monotonic() - begun > WHOLE:
                raise BenchError(f"no end after {WHOLE} s")
            old = signing()
            now = moment(keys()[old]["dates"]["signing"]) + datetime.timedelta(days=life["rotate_days"])
            verifier.text(f"{now:%Y%m%d}a._domainkey.{DOMAIN}")  # a stranger asks too early
            run(now, "a key is made and shown")
            now += datetime.timedelta(hours=1)
            run(now, "the new key signs")
            new = signing()
            if new == old:
                raise BenchError(f"{old} still signs")
            now = moment(keys()[old]["dates"]["retired"]) + datetime.timedelta(days=life["keep_days"])
            run(now - datetime.timedelta(minutes=1), "the last minute of the old key")
            late.append(let_go(verifier, old))
            time.sleep(2)
            run(now, "the old key goes")
            if verifier.verify_anew(at_once.kept[old]):
                stale.append(old)
        time.sleep(FEW + 2)
        old = signing()
        run(now + datetime.timedelta(days=1), f"others have {old}", f"{old}._domainkey.{DOMAIN}")
        if signing() == old or f"{old}._domainkey.{DOMAIN}" in podman(SMTP, "ls", "-R", "/etc/opendkim"):
            raise BenchError(f"{old} is still on the host")
        if verifier.verify_anew(at_once.kept[old]):
            stale.append(old)
        time.sleep(FEW + 2)
    except BenchError as error:
        print(f"ended early: {error}")
        ended = True
    finally:
        sender.close()
        time.sleep(2)
        at_once.close()
        forget_mail()
        back_to_today()
    answers = Counter(iter_queue(sender.lines))
    good = sum((sink.good for sink in (at_once, *late)), Counter())
    bad = [text for sink in (at_once, *late) for text in sink.bad]
    print(f"sent {answers['sent']}, refused {answers['refused']}, first key {first}, {time.monotonic() - begun:.0f} s")
    print("verified at once: " + ", ".join(f"{name} {count}" for name, count in sorted(at_once.good.items())))
    print("verified in the last minute: "
          + ", ".join(f"{name} {count}" for sink in late for name, count in sorted(sink.good.items())))  # fmt: skip
    print(f"failed: {len(bad)} of {len(bad) + sum(good.values())} {bad[:5] or ''}")
    if stale:
        print(f"a removed or revoked key still verifies: {stale}")
    missing = answers["sent"] - sum(at_once.good.values()) - len(at_once.bad)
    if missing > 3:
        print(f"{missing} messages did not arrive")
    wrong = ended or bad or stale or answers["refused"] or missing > 3 or min(at_once.good.values()) < FEW
    return 1 if wrong or len(at_once.good) != ROTATIONS + 2 else 0


def iter_queue(lines: queue.SimpleQueue[str]) -> list[str]:
    found = []
    while not lines.empty():
        found.append(lines.get())
    return found


def back_to_today() -> None:
    """No date of the drill stays in the future, or the lab would not rotate for years."""
    today = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    known = json.loads(STATE.read_text(encoding="utf-8"))
    for key in known.values():
        key["dates"] = {name: min(date, today) for name, date in key["dates"].items()}
    new = STATE.with_suffix(".new")
    new.write_text(json.dumps(known, indent=4, sort_keys=True) + "\n", encoding="utf-8")
    new.replace(STATE)


def main() -> int:
    try:
        with ends_tidily():
            for container in (SMTP, WORLD):
                podman(container, "true")
            return drill()
    except BenchError as error:
        print(f"rotation_drill: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
