"""Handing many messages to the mail system over one SMTP connection, pipelined (RFC 5321, RFC 2920).

Works on a connected ``smtplib.SMTP``, which has done greeting, EHLO, TLS and log-in. What the server says about a
recipient comes back as ``smtplib.sendmail`` and Mailman mean it: ``{recipient: (code, text)}`` for those refused.
"""

from __future__ import annotations

import smtplib
from collections.abc import Iterable, Sequence

from mailman_estate.wire import END, Copy

Refused = dict[str, tuple[int, bytes | str]]

#: Commands in one write. Their replies, some 50 octets each, fit into any socket buffer: nobody blocks (RFC 2920 §3.1).
GROUP = 100


class ConnectionLost(Exception):
    """The connection is gone. ``tried`` tells whether the message may have been accepted: its final dot was sent."""

    def __init__(self, tried: bool, reason: object) -> None:
        super().__init__(f"connection lost {'after' if tried else 'before'} the end of the message: {reason}")
        self.tried = tried


def submit(smtp: smtplib.SMTP, sender: str, recipients: Sequence[str], message: Copy) -> Refused:
    """Send one message to its recipients and return those that the server refused, with its words.

    Raises ConnectionLost. After a reply 421 the connection is closed (``smtp.sock`` is None), as the server does.
    """
    try:
        return _submit(smtp, sender, recipients, message)
    except _Closed as closed:
        raise ConnectionLost(closed.tried, closed.__cause__) from closed.__cause__


class _Closed(Exception):
    def __init__(self, tried: bool) -> None:
        self.tried = tried


def _submit(smtp: smtplib.SMTP, sender: str, recipients: Sequence[str], message: Copy) -> Refused:
    size = f" SIZE={len(message)}" if smtp.has_extn("size") else ""
    commands = [f"MAIL FROM:{smtplib.quoteaddr(sender)}{size}"]
    commands += [f"RCPT TO:{smtplib.quoteaddr(recipient)}" for recipient in recipients]
    for command in commands:
        if "\r" in command or "\n" in command or not command.isascii():
            raise ValueError(f"{command!r} is no SMTP command")
    commands.append("DATA")
    replies = _dialogue(smtp, commands)

    mail, rcpts, data = replies[0], replies[1:-1], replies[-1]
    refused: Refused = {}
    if mail[0] != 250:
        refused = dict.fromkeys(recipients, mail)
    else:
        for recipient, reply in zip(recipients, rcpts, strict=True):
            if reply[0] not in (250, 251):
                refused[recipient] = reply
    accepted = [recipient for recipient in recipients if recipient not in refused]
    if data[0] != 354:
        refused |= dict.fromkeys(accepted, data)
    elif not accepted:
        # RFC 2920 §3.1: the server may take DATA although it refused every recipient; it then gets an empty message.
        _end(smtp, [END])
    else:
        reply = _end(smtp, message.pieces())
        if reply[0] == 250:
            return refused
        refused |= dict.fromkeys(accepted, reply)
    if any(reply[0] == 421 for reply in (*replies, *refused.values())):
        smtp.close()
    elif mail[0] == 250 and data[0] != 354:
        _dialogue(smtp, ["RSET"])
    return refused


def _dialogue(smtp: smtplib.SMTP, commands: Sequence[str]) -> list[tuple[int, bytes]]:
    """The replies to the commands, which are sent in groups where the server allows that."""
    group = GROUP if smtp.has_extn("pipelining") else 1
    replies: list[tuple[int, bytes]] = []
    try:
        for start in range(0, len(commands), group):
            some = commands[start : start + group]
            smtp.sock.sendall("".join(f"{command}\r\n" for command in some).encode("ascii"))
            for _ in some:
                replies.append(smtp.getreply())
    except (OSError, smtplib.SMTPException, AttributeError) as error:
        # A server that closes says 421 first; it then tells more than the lost connection does.
        if any(reply[0] == 421 for reply in replies):
            return replies + [next(reply for reply in replies if reply[0] == 421)] * (len(commands) - len(replies))
        raise _Closed(tried=False) from error
    return replies


def _end(smtp: smtplib.SMTP, pieces: Iterable[bytes]) -> tuple[int, bytes]:
    """Send the content and return the server's last word on it."""
    tried = False
    try:
        for piece in pieces:
            tried = piece.endswith(END)
            smtp.sock.sendall(piece)
        return smtp.getreply()
    except (OSError, smtplib.SMTPException, AttributeError) as error:
        raise _Closed(tried) from error
