"""Look into the lab's hosts: run a command, read a queue, stop a service and always start it again."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# A port each service answers on once it is really ready (systemd says "active" earlier).
READY_PORTS = {
    "rspamd": 11332,
    "valkey-server@rspamd": 6379,
    "arc-verify": 8895,
    "arc-seal": 8896,
    "postsrsd": 10001,
    "postfix": 25,
    "postgresql": 5432,
    "mailman3": 8024,
    "mailman-web": 8000,
}


class CommandFailedError(AssertionError):
    """A command on a host ended with an error; the text holds its output."""


@dataclass(frozen=True)
class Host:
    """One host of the lab, by its inventory name."""

    name: str

    def run(self, *argv: str, stdin: str | None = None, check: bool = True, timeout: float = 60) -> str:
        """Return what ``argv`` prints on this host; the only place that knows how a host is reached."""
        done = subprocess.run(
            ["podman", "exec", "-i", f"lab-{self.name}", *argv],
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise CommandFailedError(f"{self.name}: {' '.join(argv)} → {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def service(self, unit: str) -> Service:
        """Return the systemd unit of this host."""
        return Service(self, unit)

    def queue(self) -> list[dict]:
        """Return the messages in the Postfix queue as ``postqueue -j`` describes them."""
        return [json.loads(line) for line in self.run("postqueue", "-j").splitlines()]

    def queued_for(self, recipient: str) -> list[dict]:
        """Return the queued messages that still have to reach ``recipient``."""
        return [entry for entry in self.queue() if any(r["address"] == recipient for r in entry["recipients"])]

    def wait_until_queued(self, recipient: str, count: int = 1, timeout: float = 30) -> list[dict]:
        """Wait until ``count`` messages for ``recipient`` wait in the queue."""
        deadline = time.monotonic() + timeout
        while True:
            waiting = self.queued_for(recipient)
            if len(waiting) >= count:
                return waiting
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name} holds {len(waiting)} of {count} messages for {recipient}")
            time.sleep(0.5)

    def flush(self) -> None:
        """Try everything in the queue now instead of at the next retry."""
        self.run("postqueue", "-f")

    def journal(self, since: float, *options: str, lines: int = 80) -> str:
        """Return the journal since a UNIX time (seconds)."""
        return self.run(
            "journalctl", "--no-pager", "-o", "short-precise", f"--since=@{int(since)}", f"--lines={lines}", *options,
            check=False,
        )  # fmt: skip


@dataclass(frozen=True)
class Service:
    """One systemd unit on one host."""

    host: Host
    unit: str

    def stop(self) -> None:
        """Stop the unit."""
        self.host.run("systemctl", "stop", self.unit)

    def start(self) -> None:
        """Start the unit and wait until it answers."""
        self.host.run("systemctl", "reset-failed", self.unit, check=False)
        self.host.run("systemctl", "start", self.unit)
        port = READY_PORTS.get(self.unit)
        if port:
            probe = (
                f"for i in $(seq 300); do (: </dev/tcp/127.0.0.1/{port}) 2>/dev/null && exit 0; sleep 0.1; done; exit 1"
            )
            self.host.run("bash", "-c", probe)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Keep the unit stopped inside the block and start it again whatever happens there."""
        try:
            self.stop()
            yield
        finally:
            self.start()
