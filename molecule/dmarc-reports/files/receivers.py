#!/usr/bin/env python3
"""All mail systems of the world at 127.0.0.1:2525: takes mail, or answers what /run/receivers.json says.

The file maps a domain, or a whole mailbox, to answers: {"full.example": {"rcpt": "452 4.2.2 Mailbox full"}}; the steps
are mail, rcpt, data (after the mail was given) and greet (the connection is refused as a whole). Each mail that was
taken is a file in /var/mail/world: two lines of envelope, a blank one, the mail.
"""

from __future__ import annotations

import json
import socketserver
import uuid
from pathlib import Path

ANSWERS = Path("/run/receivers.json")
TAKEN = Path("/var/mail/world")


class Session(socketserver.StreamRequestHandler):
    """One SMTP session."""

    timeout = 60

    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())

    def answer(self, mailbox: str, step: str) -> str | None:
        """What a mailbox answers at a step; None if it has nothing against it."""
        answers = json.loads(ANSWERS.read_text(encoding="utf-8")) if ANSWERS.exists() else {}
        for key in (mailbox, mailbox.rpartition("@")[2]):
            if step in answers.get(key, {}):
                return answers[key][step]
        return None

    def handle(self) -> None:
        sender, recipients = "", []
        self.say("220 world.example.com ESMTP")
        for line in iter(self.rfile.readline, b""):
            command = line.decode("utf-8", "replace").strip()
            verb = command[:4].upper()
            path = command.partition("<")[2].partition(">")[0]
            if verb == "EHLO":
                self.say("250-world.example.com")
                self.say("250-ENHANCEDSTATUSCODES")
                self.say("250 SIZE 20000000")
            elif verb == "MAIL":
                sender, recipients = path, []
                self.say("250 2.1.0 Ok")
            elif verb == "RCPT":
                refusal = self.answer(path, "mail") or self.answer(path, "rcpt")
                if refusal is None:
                    recipients.append(path)
                self.say(refusal or "250 2.1.5 Ok")
            elif verb == "DATA":
                self.say("354 Go on")
                content = bytearray()
                for row in iter(self.rfile.readline, b""):
                    if row == b".\r\n":
                        break
                    content += row.removeprefix(b".")
                else:
                    return
                refusals = [self.answer(recipient, "data") for recipient in recipients]
                refusal = next((text for text in refusals if text), None)
                if refusal is None:
                    head = f"{sender}\n{','.join(recipients)}\n\n".encode()
                    name = str(uuid.uuid4())
                    (TAKEN / f".{name}").write_bytes(head + content)
                    (TAKEN / f".{name}").rename(TAKEN / name)
                self.say(refusal or "250 2.0.0 Ok")
            elif verb == "QUIT":
                self.say("221 2.0.0 Bye")
                return
            elif verb in ("RSET", "NOOP"):
                self.say("250 2.0.0 Ok")
            else:
                self.say("502 5.5.2 Not here")


class Server(socketserver.ThreadingTCPServer):
    """A thread for each session."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 100


if __name__ == "__main__":
    TAKEN.mkdir(parents=True, exist_ok=True)
    with Server(("127.0.0.1", 2525), Session) as server:
        server.serve_forever()
