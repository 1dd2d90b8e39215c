"""Hand a mix of messages to several gateways, inside lab-world: the sender of ``dmarc_counts.py``.

The job is one line of JSON on stdin: ``kinds`` (source addresses by family, HELO, envelope, content), ``mix`` (for each
message its kind, gateway and family), ``run``, ``sessions``, ``seconds``. A session for each message, tried again after
a temporary refusal like any mail server would. Progress and, last, the results come on stdout as lines of JSON. It ends
when its stdin ends, so nothing stays behind when the benchmark dies.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import threading
import time
from email.utils import formatdate
from typing import Any

PAUSE = 1.0


class Refused(Exception):
    """The server's answer was not the wanted one."""


class Session:
    """One SMTP session from a given source address."""

    def __init__(self, gateway: str, source: str) -> None:
        self.socket = socket.create_connection((gateway, 25), 60, source_address=(source, 0))
        self.lines = self.socket.makefile("rb")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        self.socket.close()

    def expect(self, first: str, command: str = "") -> None:
        """Send a command, if any, and read one reply. Raises Refused, ConnectionError."""
        if command:
            self.socket.sendall(command.encode("utf-8") + b"\r\n")
        text = b""
        while True:
            line = self.lines.readline()
            if not line:
                raise ConnectionError("connection closed by the server")
            text += line
            if line[3:4] != b"-":
                break
        reply = text.decode("utf-8", "replace").rstrip()
        if not reply.startswith(first):
            raise Refused(reply)

    def hand_over(self, kind: dict[str, Any], content: bytes) -> None:
        """One message and QUIT."""
        self.expect("2")
        self.expect("2", f"EHLO {kind['helo']}")
        self.expect("2", f"MAIL FROM:<{kind['sender']}>")
        for recipient in kind["recipients"]:
            self.expect("2", f"RCPT TO:<{recipient}>")
        self.expect("3", "DATA")
        self.socket.sendall(content + b".\r\n")
        self.expect("2")
        self.socket.sendall(b"QUIT\r\n")


class Sender:
    """All messages in parallel sessions."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.kinds = job, job["kinds"]
        self.contents = [base64.b64decode(kind["content"]) for kind in self.kinds]
        self.deadline = time.time() + job["seconds"]
        self.numbers = iter(range(len(job["mix"])))
        self.lock = threading.Lock()
        self.results: list[dict[str, Any]] = []

    def work(self) -> None:
        """One of the parallel sessions."""
        while True:
            with self.lock:
                number = next(self.numbers, None)
            if number is None:
                return
            result = self.deliver(number)
            with self.lock:
                self.results.append(result)

    def deliver(self, number: int) -> dict[str, Any]:
        """Try one message until it is taken, refused for good, or the time is up."""
        place, gateway, family = self.job["mix"][number]
        kind, identity = self.kinds[place], f"{self.job['run']}-{number}"
        heading = (
            f"X-Bench-Id: {identity}\r\nMessage-ID: <{identity}@load.example.net>\r\n"
            f"Date: {formatdate(localtime=False)}\r\n"
        )
        result: dict[str, Any] = {"kind": place, "gateway": gateway, "taken": False, "cut": False, "replies": []}
        while True:
            handed = False
            try:
                with Session(gateway, kind["sources"][family]) as session:
                    handed = True
                    session.hand_over(kind, heading.encode() + self.contents[place])
                return result | {"taken": True}
            except Refused as refusal:
                result["replies"].append(str(refusal))
                if str(refusal).startswith("5"):
                    return result
            except OSError as error:
                # it may have been taken all the same: then the counts cannot be known
                result["replies"].append(str(error) or type(error).__name__)
                result["cut"] = result["cut"] or handed
            if time.time() + PAUSE > self.deadline:
                return result
            time.sleep(PAUSE)

    def run(self) -> None:
        """Send everything; say every second how far it is."""
        threads = [threading.Thread(target=self.work, daemon=True) for _ in range(self.job["sessions"])]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(1)
            print(json.dumps({"done": len(self.results)}), flush=True)
        print(json.dumps({"results": self.results}), flush=True)


def main() -> None:
    job = json.loads(sys.stdin.readline())

    def end_with_stdin() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_with_stdin, daemon=True).start()
    Sender(job).run()
    os._exit(0)


if __name__ == "__main__":
    main()
