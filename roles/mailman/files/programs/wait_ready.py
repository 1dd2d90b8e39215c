"""Wait until Mailman's core answers: ``wait_ready.py SECONDS PORT …``.

The master is up at once, REST and LMTP seven to twelve seconds later. systemd runs this after the start, so that a unit
that is active also answers. Exit status 0: every port takes a connection; 1: one does not within the time.
"""

from __future__ import annotations

import socket
import sys
import time


def answers(port: int, end: float) -> bool:
    """Whether somebody takes connections on this port of 127.0.0.1 before ``end`` (monotonic seconds)."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
            return True
        except OSError:
            if time.monotonic() > end:
                return False
            time.sleep(0.2)


def main(arguments: list[str]) -> int:
    seconds, *ports = (int(argument) for argument in arguments)
    end = time.monotonic() + seconds
    for port in ports:
        if not answers(port, end):
            print(f"nothing answers on 127.0.0.1:{port} after {seconds} seconds; look at mailman.log", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
