"""What the benchmarks share: the lab's places, realistic messages, the load, the sink and the account of messages.

The load and the sink run inside lab-world (``load_agent.py``), the look at the daemons inside the gateway
(``gateway_agent.py``); both are handed over as text and need nothing installed. Every wait is bounded.
"""

from __future__ import annotations

import contextlib
import json
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dkim

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "lab"))

from estatelib import keys  # noqa: E402

WORLD = "lab-world"
GATEWAY = "lab-mail-gw1"
GATEWAY_ADDRESS = "198.18.25.11"
SOURCE, HELO = "198.18.25.110", "load.example.net"
SINK = "198.18.25.111"
SESSIONS = 20
SIZE = 4096
HEADING, SIGNATURE = 140, 570  # bytes of it that the sender's own header fields and a DKIM signature take
SIGNED_DOMAIN, UNSIGNED_DOMAIN = "example.com", "example.jp"
TEMPLATES = 40
TEXT = (
    "the meeting on routing measurements begins at ten in the large room and those who join from abroad find the "
    "address of the conference in the calendar please send your slides before Thursday evening so that they can be "
    "printed we will first hear from the working group about the new exchange point then discuss the budget of the "
    "coming year and at last choose who goes to the workshop in March thank you for the report it was read with care"
)
WORDS = TEXT.split()


class BenchError(Exception):
    """The benchmark cannot go on; the message says why and what to do."""


def podman(container: str, *command: str, stdin: str = "", timeout: float = 60, check: bool = True) -> str:
    """Run a command in a container and return what it prints."""
    done = subprocess.run(
        ["podman", "exec", "-i", container, *command], input=stdin, capture_output=True, text=True, timeout=timeout
    )
    if check and done.returncode:
        raise BenchError(f"{container}: {' '.join(command)[:80]} failed: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


def require_lab() -> None:
    """BenchError unless the lab runs and nobody else takes the sink's address."""
    for container in (WORLD, GATEWAY):
        found = subprocess.run(
            ["podman", "inspect", "--format", "{{.State.Running}}", container], capture_output=True, text=True
        )
        if found.stdout.strip() != "true":
            raise BenchError(f"{container} does not run: run `make lab` first")
    addresses = podman(WORLD, "ip", "-o", "-4", "address", "show")
    for address in (SOURCE, SINK):
        if f" {address}/" not in addresses:
            raise BenchError(f"{WORLD} does not have the address {address}: run `make lab` first")


def agent(name: str) -> str:
    """The text of a program that runs inside a container."""
    return (HERE / f"{name}.py").read_text(encoding="utf-8")


def gateway(*arguments: str, timeout: float = 60) -> Any:
    """Run ``gateway_agent.py`` in the gateway and return its answer."""
    return json.loads(podman(GATEWAY, "python3", "-c", agent("gateway_agent"), *arguments, timeout=timeout))


@contextlib.contextmanager
def ends_tidily() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP become an exception, so that every ``finally`` runs."""

    def stop(number: int, _: object) -> None:
        raise BenchError(f"ended by {signal.Signals(number).name}")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- messages ---------------------------------------------------------------------------------------------------------


def message(rng: random.Random, domain: str, html: bool, size: int) -> bytes:
    """A message of ``size`` bytes, plain or plain and HTML; the sender adds Date and Message-ID."""
    head = f"From: A User <user@{domain}>\r\nTo: Load <load@load.example.org>\r\nMIME-Version: 1.0\r\n"
    head += f"Subject: {' '.join(rng.choices(WORDS, k=6))}\r\n"
    plain = "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n"

    def whole(lines: list[str]) -> bytes:
        text = "".join(f"{line}\r\n" for line in lines)
        if not html:
            return f"{head}{plain}\r\n{text}".encode()
        body = "".join(f"{line}<br>\r\n" for line in lines)
        return (
            f"{head}Content-Type: multipart/alternative; boundary=half\r\n\r\n--half\r\n{plain}\r\n{text}"
            f"--half\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<html><body><p>{body}</p>"
            f'<p><a href="https://www.{domain}/minutes">Minutes</a></p></body></html>\r\n--half--\r\n'
        ).encode()

    lines: list[str] = []
    while len(content := whole(lines)) < size - 30:
        lines.append(" ".join(rng.choices(WORDS, k=6)).capitalize() + ".")
    return content


def messages(run: str) -> tuple[list[str], list[str]]:
    """Templates and the envelope sender of each: half DKIM-signed by a p=reject domain, half of a domain without any.

    What differs in every copy (Message-ID, Date, X-Bench-Id) is not signed, so that one signature serves many copies.
    """
    rng = random.Random(25)
    selector, key = keys.signing_key(SIGNED_DOMAIN)
    templates, senders = [], []
    for number in range(TEMPLATES):
        signed = number % 2 == 0
        domain = SIGNED_DOMAIN if signed else UNSIGNED_DOMAIN
        content = message(rng, domain, html=number % 4 >= 2, size=SIZE - HEADING - (SIGNATURE if signed else 0))
        if signed:
            content = (
                dkim.sign(
                    content,
                    selector.encode(),
                    domain.encode(),
                    key,
                    canonicalize=(b"relaxed", b"relaxed"),
                    include_headers=[b"from", b"to", b"subject", b"mime-version", b"content-type"],
                )
                + content
            )
        templates.append(content.decode())
        senders.append(f"bench-{run}@{domain}")
    return templates, senders


# --- load and sink ----------------------------------------------------------------------------------------------------


class Agent:
    """An agent running in lab-world, spoken to by lines of JSON; it ends when its stdin is closed."""

    def __init__(self, *arguments: str, program: str = "load_agent") -> None:
        self.process = subprocess.Popen(
            ["podman", "exec", "-i", WORLD, "python3", "-u", "-c", agent(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(None)

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self, timeout: float = 30) -> dict[str, Any]:
        """The next line the agent says."""
        try:
            line = self.answers.get(timeout=timeout)
        except queue.Empty:
            raise BenchError(f"the agent in {WORLD} said nothing for {timeout:.0f} s") from None
        if line is None:
            assert self.process.stderr
            raise BenchError(f"the agent in {WORLD} ended: {self.process.stderr.read().strip()[-400:]}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Sink:
    """The next hop of load.example.org, for as long as the context lasts."""

    def __enter__(self) -> Sink:
        self.agent = Agent("sink", SINK, "25")
        try:
            self.agent.hear()
        except BaseException:
            self.agent.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.agent.close()

    def status(self, command: str = "count") -> dict[str, Any]:
        """``count``: how many came and the processor time spent; ``report``: all arrivals too."""
        self.agent.tell(command)
        return self.agent.hear()


class Load:
    """The sender at work, for as long as the context lasts."""

    def __init__(
        self, run: str, count: int, recipients: list[str], *, first: int = 0, seconds: float = 120, pause: float = 1
    ) -> None:
        templates, senders = messages(run)
        self.run, self.count = run, count
        self.job = {
            "run": run, "messages": count, "first": first, "sessions": SESSIONS, "seconds": seconds, "pause": pause,
            "timeout": 30, "target": GATEWAY_ADDRESS, "source": SOURCE, "helo": HELO, "templates": templates,
            "senders": senders, "recipients": recipients,
        }  # fmt: skip
        self.results: dict[str, Any] = {}

    def __enter__(self) -> Load:
        self.agent = Agent("send")
        self.agent.tell(json.dumps(self.job))
        return self

    def __exit__(self, *_: object) -> None:
        self.agent.close()

    def advance(self, share: float = 1.0) -> None:
        """Wait until this share of the messages is accepted, or the sender has finished."""
        while not self.results:
            said = self.agent.hear()
            if "results" in said:
                self.results = said
            elif said["accepted"] >= share * self.count and share < 1:
                return


def queue_length(run: str, container: str = "") -> int:
    """How many messages of a run wait in a queue, the gateway's by default (forwards carry the sender inside SRS)."""
    entries = podman(container or GATEWAY, "postqueue", "-j", timeout=30).splitlines()
    return sum(f"bench-{run}@" in entry["sender"] for entry in map(json.loads, entries))


# --- account ----------------------------------------------------------------------------------------------------------


@dataclass
class Account:
    """What became of the messages of one run."""

    sent: int
    accepted: int = 0
    never_accepted: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    #: Doubles by cause: both copies with one queue id (the gateway delivered twice), or with two (accepted twice).
    delivered_twice: int = 0
    accepted_twice: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    cuts: int = 0

    @property
    def wrong(self) -> int:
        """Messages that did not arrive exactly once."""
        return len(self.lost) + len(self.doubled) + len(self.never_accepted)

    @classmethod
    def balance(cls, results: list[dict[str, Any]], arrivals: list[dict[str, Any]]) -> Account:
        """Compare what the sender was promised with what arrived."""
        account = cls(sent=len(results))
        copies: dict[str, list[str]] = {}
        for arrival in arrivals:
            copies.setdefault(arrival["id"], []).append(arrival["queue_id"])
        for result in results:
            identity = result["id"]
            account.refusals.update(reply.splitlines()[0][:100] for reply in result["refusals"])
            account.cuts += result["cut_after_content"]
            came = copies.get(identity, [])
            if result["accepted"] is None:
                account.never_accepted.append(identity)
            else:
                account.accepted += 1
                if not came:
                    account.lost.append(identity)
            if len(came) > 1:
                account.doubled.append(identity)
                account.accepted_twice += len(set(came)) - 1
                account.delivered_twice += len(came) - len(set(came))
        return account


def new_run() -> str:
    """A name for one run that no message of another one carries."""
    return f"{time.time_ns() // 1_000_000:x}"
