"""Runs in a container for ``list_fanout.py`` and ``list_drill.py``: ``sink`` in lab-world, the rest on the list host.

``sink ADDRESS PORT``  a receiver that counts who got what. Commands on stdin, one a line: ``start`` forgets what was
                       before, ``count`` answers ``{"copies": n, "messages": n, "last": time}`` with copies that differ
                       in recipient or Message-ID, ``doubled`` ``[recipient, Message-ID, queue ids]`` of those that
                       came more than once. It ends when stdin ends.
``post``               hand messages to Mailman by LMTP, again after 4xx and cut connections, as Postfix does;
                       ``[list address, size, how many]`` on stdin.
``alone``              hand one message to Postfix; ``[sender, recipients, size]`` on stdin.
"""

from __future__ import annotations

import asyncio
import json
import re
import smtplib
import sys
import threading
import time
import uuid
from typing import Any

LINE = "Thank you for the report, it was read with care by everybody.\r\n"


def say(answer: Any) -> None:
    """Print one line of JSON."""
    print(json.dumps(answer), flush=True)


# --- the sink ---------------------------------------------------------------------------------------------------------

#: Queue ids at the list host by recipient and Message-ID.
got: dict[tuple[str, bytes], list[str]] = {}
totals: dict[str, float] = {"messages": 0, "last": 0}


async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One SMTP session, as little of it as Postfix needs."""
    recipients: list[str] = []
    writer.write(b"220 sink.example.net ESMTP\r\n")
    while line := await reader.readline():
        verb, answer = line[:4].upper(), b"250 2.0.0 ok\r\n"
        if verb == b"EHLO":
            answer = b"250-sink.example.net\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
        elif verb == b"MAIL":
            recipients = []
        elif verb == b"RCPT":
            recipients.append(line.split(b"<", 1)[1].split(b">", 1)[0].decode())
        elif verb == b"DATA":
            writer.write(b"354 go on\r\n")
            identity, queue_id = b"", ""
            while (line := await reader.readline()) not in (b".\r\n", b""):
                if not identity and line[:11].lower() == b"message-id:":
                    identity = line[11:].strip() or (await reader.readline()).strip()
                elif not queue_id and (found := re.search(rb"\bid (\w{10,})", line)):
                    queue_id = found[1].decode()
            if not line:
                break  # cut off before its end, so not taken
            for recipient in recipients:
                got.setdefault((recipient, identity), []).append(queue_id)
            totals["messages"] += 1
            totals["last"] = time.time()
        writer.write(answer)
        if verb == b"QUIT":
            break
    writer.close()


async def sink(address: str, port: int) -> None:
    """Listen until stdin ends."""
    loop, end = asyncio.get_running_loop(), asyncio.Event()

    def obey() -> None:
        for line in sys.stdin:
            command = line.strip()
            if command == "start":
                got.clear()
                totals.update(messages=0, last=0)
            if command == "doubled":
                say([[who, what.decode(), ids] for (who, what), ids in got.items() if len(ids) > 1])
            else:
                say({"copies": len(got), **totals})
        loop.call_soon_threadsafe(end.set)

    server = await asyncio.start_server(session, address, port, limit=1 << 20)
    threading.Thread(target=obey, daemon=True).start()
    say({"listening": True})
    async with server:
        await end.wait()


# --- the list host ----------------------------------------------------------------------------------------------------


def message(to: str, size: int) -> bytes:
    """A post of about this size in bytes, by somebody of a domain of this lab."""
    head = (
        f"From: Taro <taro@example.jp>\r\nTo: {to}\r\nSubject: Fan-out\r\nMessage-ID: <{uuid.uuid4()}@example.jp>\r\n"
        "Authentication-Results: mx.example.org; dkim=none\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=us-ascii\r\n\r\n"
    )
    return (head + LINE * (size // len(LINE))).encode()


def post(address: str, octets: bytes) -> None:
    """Hand one message over; the last error when it is not taken within a minute."""
    for attempt in range(60):
        try:
            with smtplib.LMTP("127.0.0.1", 8024, timeout=60) as server:
                server.sendmail("taro@example.jp", [address], octets)
            return
        except (OSError, smtplib.SMTPException):
            if attempt == 59:
                raise
            time.sleep(1)


def main() -> None:
    """Do what the first argument says."""
    command = sys.argv[1]
    if command == "sink":
        asyncio.run(sink(sys.argv[2], int(sys.argv[3])))
        return
    given = json.load(sys.stdin)
    begun = time.time()
    if command == "post":
        address, size, count = given
        for _ in range(count):
            post(address, message(address, size))
        say(begun)
    elif command == "alone":
        sender, recipients, size = given
        with smtplib.SMTP("127.0.0.1", 10025, timeout=60) as server:
            # Postfix takes a thousand recipients in a transaction (smtpd_recipient_limit).
            for start in range(0, len(recipients), 1000):
                server.sendmail(sender, recipients[start : start + 1000], message("everybody@example.jp", size))
        say(begun)


main()
