"""Raw SMTP from an outside address: every byte under the caller's control, every wait bounded."""

from __future__ import annotations

import atexit
import base64
import itertools
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """A reply of the server; code 0 means that it hung up, -1 that it said nothing in time."""

    code: int
    text: str


class _Agent:
    """The helper program inside lab-world, started at the first use and ended with this program."""

    def __init__(self) -> None:
        source = Path(__file__).with_name("smtp_agent.py").read_text(encoding="utf-8")
        self._process = subprocess.Popen(
            ["podman", "exec", "-i", "lab-world", "python3", "-u", "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self._end)

    def _end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=10)

    def call(self, session: int, method: str, **arguments: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"session": session, "method": method, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            Session._agent = None  # the next session starts it anew
            raise ConnectionError("the helper in lab-world has ended; does the container run?")
        answer = json.loads(line)
        if "error" in answer:
            raise ConnectionError(answer["error"])
        return answer["answer"]


class Session:
    """One SMTP session; use it as a context manager. The greeting is read on entry unless ``wait=False``."""

    _agent: _Agent | None = None
    _numbers = itertools.count(1)

    def __init__(self, host: str, source: str, *, port: int = 25, wait: bool = True, timeout: float = 30) -> None:
        if Session._agent is None:
            Session._agent = _Agent()
        self.agent = Session._agent
        self.number = next(Session._numbers)
        self.transcript: list[str] = []
        self.greeting: Reply | None = None
        self.agent.call(self.number, "open", source=source, host=host, port=port, timeout=timeout)
        if wait:
            self.greeting = self.reply()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.agent.call(self.number, "close")

    def send(self, data: bytes, repeat: int = 1) -> None:
        """Send bytes exactly as given, ``repeat`` times."""
        self.transcript.append(f"C: {data[:200]!r}{f' x {repeat}' if repeat > 1 else ''}")
        self.agent.call(self.number, "send", data=base64.b64encode(data).decode(), repeat=repeat)

    def reply(self, timeout: float = 0) -> Reply:
        """Read one reply; ``timeout`` in seconds, 0 for the session's own."""
        reply = Reply(**self.agent.call(self.number, "reply", timeout=timeout))
        self.transcript.append(f"S: {reply.code} {reply.text}")
        return reply

    def command(self, line: str) -> Reply:
        """Send one command line and read the reply."""
        self.send(line.encode("utf-8", "surrogateescape") + b"\r\n")
        return self.reply()

    def starttls(self) -> dict:
        """Switch to TLS and greet again; returns the version and cipher."""
        reply = self.command("STARTTLS")
        assert reply.code == 220, reply
        return self.handshake()

    def handshake(self) -> dict:
        """Do the TLS handshake; STARTTLS has already been answered."""
        return self.agent.call(self.number, "tls")

    def data(self, content: bytes, repeat: int = 1) -> Reply:
        """Send the message content (CRLF line ends) and the end of data; the reply is the verdict."""
        reply = self.command("DATA")
        if reply.code != 354:
            return reply
        body = content.replace(b"\r\n.", b"\r\n..")
        self.send(body, repeat)
        self.send(b".\r\n" if body.endswith(b"\r\n") else b"\r\n.\r\n")
        return self.reply()

    def transaction(self, helo: str, sender: str, recipients: Iterable[str], content: bytes) -> Reply:
        """Hand over one message and return the first refusal, or the answer to the end of data."""
        envelope = [f"EHLO {helo}", f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{recipient}>" for recipient in recipients)]
        for line in envelope:
            reply = self.command(line)
            if reply.code // 100 != 2:
                return reply
        return self.data(content)
