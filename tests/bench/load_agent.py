"""Make mail and take mail, inside lab-world: the load generator and the sink of the benchmarks.

``load_agent.py sink ADDRESS PORT``
    A receiver that writes down who came: for each message the time, its ``X-Bench-Id``, the queue id it had when the
    gateway accepted it, and whether it was sealed. Commands on stdin, one a line: ``count``, ``report``; each is
    answered by one line of JSON. It ends when stdin ends.

``load_agent.py send``
    A sender in the manner of ``smtp-source`` (a session per message, many at a time, from one source address) whose
    messages are all different, and which, like a mail server, tries again after a temporary refusal or a cut
    connection. The job is one line of JSON on stdin; progress and, last, the results come on stdout as lines of JSON.

Both end when their stdin ends, so nothing stays behind when the benchmark dies.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
import threading
import time
from email.utils import formatdate
from typing import Any

BENCH_ID = re.compile(rb"^X-Bench-Id: (\S+)\r?$", re.MULTILINE | re.IGNORECASE)
QUEUE_ID = re.compile(rb"^Received: [^;]*?\sby \S+ \(Postfix\) with E?SMTPS?\s+id (\w+)", re.MULTILINE)
NAMES = re.compile(rb"^([A-Za-z0-9-]+):", re.MULTILINE)
#: Headers whose presence shows that the milters saw the message.
MARKS = {b"arc-seal": "sealed", b"authentication-results": "judged"}


def say(answer: Any) -> None:
    """Print one line of JSON."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def describe(content: bytes) -> dict[str, Any]:
    """What the benchmarks want to know of a message that arrived."""
    header = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[0] + b"\n"
    identity, hops = BENCH_ID.search(header), QUEUE_ID.findall(header)
    names = {name.lower() for name in NAMES.findall(header)}
    return {
        "id": identity[1].decode() if identity else "",
        "queue_id": hops[-1].decode() if hops else "",  # the oldest hop: the gateway that accepted it
        **{mark: name in names for name, mark in MARKS.items()},
    }


class Sink:
    """What came in."""

    def __init__(self) -> None:
        self.arrivals: list[dict[str, Any]] = []

    def record(self, content: bytes) -> None:
        """Write down one message; the 250 for it is sent afterwards."""
        self.arrivals.append(describe(content) | {"time": time.time()})

    async def serve(self, address: str, port: int) -> None:
        """Listen until stdin ends."""
        loop = asyncio.get_running_loop()
        end = loop.create_future()

        def obey() -> None:
            for line in sys.stdin:
                command = line.strip()
                answer = {"count": len(self.arrivals), "cpu": time.process_time()}
                say(answer | {"arrivals": self.arrivals} if command == "report" else answer)
            loop.call_soon_threadsafe(end.set_result, None)

        server = await loop.create_server(lambda: SinkSession(self), address, port)
        threading.Thread(target=obey, daemon=True).start()
        async with server:
            say({"listening": True})
            await end


class SinkSession(asyncio.Protocol):
    """One SMTP session, as little of it as Postfix needs."""

    def __init__(self, sink: Sink) -> None:
        self.sink, self.buffer, self.content = sink, b"", False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(b"220 sink.example.net ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        replies = b""
        while True:
            end = self.buffer.find(b"\r\n.\r\n" if self.content else b"\r\n")
            if end < 0:
                break
            piece = self.buffer[:end]
            if self.content:
                self.buffer = self.buffer[end + 5 :]
                self.content = False
                self.sink.record(piece)
                replies += b"250 2.0.0 taken\r\n"
                continue
            self.buffer = self.buffer[end + 2 :]
            verb = piece[:4].upper()
            self.content = verb == b"DATA"
            replies += {
                b"EHLO": b"250-sink.example.net\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n",
                b"DATA": b"354 go on\r\n",
                b"QUIT": b"221 2.0.0 bye\r\n",
            }.get(verb, b"250 2.0.0 ok\r\n")
        if replies:
            self.transport.write(replies)


class Refused(Exception):
    """The server's answer to one attempt was not 250."""

    def __init__(self, reply: str, after_content: bool = False) -> None:
        super().__init__(reply)
        self.reply, self.after_content = reply, after_content


class Connection:
    """One SMTP session from a given source address."""

    def __init__(self, target: str, source: str, timeout: float) -> None:
        self.socket = socket.create_connection((target, 25), timeout, source_address=(source, 0))
        self.lines = self.socket.makefile("rb")

    def close(self) -> None:
        self.lines.close()
        self.socket.close()

    def reply(self) -> str:
        """Read one reply, all its lines."""
        text = b""
        while True:
            line = self.lines.readline()
            if not line:
                raise ConnectionError("connection closed by the server")
            text += line
            if line[3:4] != b"-":
                return text.decode("ascii", "replace").rstrip()

    def hand_over(self, helo: str, sender: str, recipient: str, content: bytes) -> None:
        """One transaction and QUIT; commands are pipelined where the server offers it, as Postfix does."""
        self.expect("2")
        self.socket.sendall(f"EHLO {helo}\r\n".encode())
        pipelining = "PIPELINING" in self.expect("2")
        commands = [(f"MAIL FROM:<{sender}>\r\n", "2"), (f"RCPT TO:<{recipient}>\r\n", "2"), ("DATA\r\n", "3")]
        if pipelining:
            self.socket.sendall("".join(command for command, _ in commands).encode())
        for command, wanted in commands:
            if not pipelining:
                self.socket.sendall(command.encode())
            self.expect(wanted)
        self.socket.sendall(content + b".\r\n")
        try:
            self.expect("2")
        except (OSError, Refused) as error:
            raise Refused(str(error) or type(error).__name__, not isinstance(error, Refused)) from error
        self.socket.sendall(b"QUIT\r\n")

    def expect(self, first: str) -> str:
        reply = self.reply()
        if not reply.startswith(first):
            raise Refused(reply)
        return reply


class Sender:
    """Hand over many messages in parallel sessions and remember what became of each."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.templates = [template.encode() for template in job["templates"]]
        self.deadline = time.time() + job["seconds"]
        self.lock = threading.Lock()
        self.numbers = iter(range(job["first"], job["first"] + job["messages"]))
        self.results: list[dict[str, Any]] = []
        self.accepted = 0

    def work(self) -> None:
        """One of the parallel sessions: message after message until none is left."""
        while True:
            with self.lock:
                number = next(self.numbers, None)
            if number is None:
                return
            result = self.deliver(number)
            with self.lock:
                self.results.append(result)
                self.accepted += result["accepted"] is not None

    def deliver(self, number: int) -> dict[str, Any]:
        """Try one message until it is accepted, refused for good, or the time is up."""
        job, identity = self.job, f"{self.job['run']}-{number}"
        sender, recipient = (
            job["senders"][number % len(job["senders"])],
            job["recipients"][number % len(job["recipients"])],
        )
        heading = (
            f"X-Bench-Id: {identity}\r\nMessage-ID: <{identity}@load.example.net>\r\n"
            f"Date: {formatdate(localtime=False)}\r\n"
        )
        content = heading.encode() + self.templates[number % len(self.templates)]
        result: dict[str, Any] = {"id": identity, "accepted": None, "refusals": [], "cut_after_content": 0}
        while True:
            try:
                connection = Connection(job["target"], job["source"], job["timeout"])
                try:
                    connection.hand_over(job["helo"], sender, recipient, content)
                finally:
                    connection.close()
                result["accepted"] = time.time()
                return result
            except Refused as refusal:
                result["refusals"].append(refusal.reply)
                result["cut_after_content"] += refusal.after_content
                if refusal.reply.startswith("5"):
                    return result
            except OSError as error:
                result["refusals"].append(str(error) or type(error).__name__)
            if time.time() + job["pause"] > self.deadline:
                return result
            time.sleep(job["pause"])

    def run(self) -> None:
        """Send everything; say every half second how far it is."""
        started = time.time()
        threads = [threading.Thread(target=self.work, daemon=True) for _ in range(self.job["sessions"])]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.25)
            say({"accepted": self.accepted})
        say({"started": started, "cpu": time.process_time(), "results": self.results})


def main(arguments: list[str]) -> None:
    if arguments[0] == "sink":
        asyncio.run(Sink().serve(arguments[1], int(arguments[2])))
        return
    job = json.loads(sys.stdin.readline())

    def end_with_stdin() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_with_stdin, daemon=True).start()
    Sender(job).run()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
