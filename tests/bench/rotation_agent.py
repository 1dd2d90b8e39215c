"""Two small programs of the rotation drill, handed over as text; each ends when its stdin ends.

``send SENDER RECIPIENT…``: in lab-smtp, a message every second, made and signed as any other mail of the host.
``sink ADDRESS``: in lab-world, a receiver on port 25 that prints each message as one line of base64.
"""

from __future__ import annotations

import base64
import os
import socketserver
import subprocess
import sys
import threading
import time
from email.utils import formatdate


class Session(socketserver.StreamRequestHandler):
    """One SMTP session."""

    def handle(self) -> None:
        self.wfile.write(b"220 sink ESMTP\r\n")
        for line in self.rfile:
            verb = line[:4].upper()
            if verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                content = []
                for part in self.rfile:
                    if part == b".\r\n":
                        break
                    content.append(part[1:] if part.startswith(b".") else part)
                sys.stdout.write(base64.b64encode(b"".join(content)).decode() + "\n")
                sys.stdout.flush()
            if verb == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            self.wfile.write(b"250 ok\r\n")


class Server(socketserver.ThreadingTCPServer):
    """The receiver."""

    allow_reuse_address = True
    daemon_threads = True
    # Postfix comes with twenty connections at once; one too many would wait for its greeting for five minutes.
    request_queue_size = 100


def end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


def main(arguments: list[str]) -> None:
    threading.Thread(target=end_with_stdin, daemon=True).start()
    if arguments[0] == "sink":
        Server((arguments[1], 25), Session).serve_forever()
    sender, recipients = arguments[1], arguments[2:]
    number, begun = 0, time.monotonic()
    while True:
        number += 1
        text = (
            f"From: Drill <{sender}>\nTo: Sink <{recipients[0]}>\nSubject: Rotation drill {number}\n"
            f"Date: {formatdate()}\nMessage-ID: <{number}.{time.time_ns()}@example.org>\n\nMessage {number}.\n"
        )
        done = subprocess.run(["sendmail", "-f", sender, *recipients], input=text.encode(), timeout=60)
        sys.stdout.write("sent\n" if done.returncode == 0 else "refused\n")
        sys.stdout.flush()
        time.sleep(max(0.0, begun + number - time.monotonic()))


if __name__ == "__main__":
    main(sys.argv[1:])
