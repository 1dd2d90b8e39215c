"""One delivery without the database: what the DNS's word means for it, handing it to Postfix, reading its journal."""

from __future__ import annotations

import json
import re
import smtplib
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from .destinations import Destination, Destinations, Reason, Refused
from .package import Mail

SMTP_SECONDS = 60.0
DATA_SECONDS = 330.0
"""For the answer to the mail itself: longer than Postfix waits for its milters."""
JOURNAL_SECONDS = 120

_QUEUED = re.compile(r"queued as ([0-9A-Za-z]+)")
_TAKEN = re.compile(r"([0-9A-Za-z]+): from=<([^>]*)>, size=")
_STATUS = re.compile(r"[0-9]{3} ([245]\.[0-9]{1,3}\.[0-9]{1,3})(?=\s|$)")


@dataclass(frozen=True)
class Delivery:
    """A delivery that is not settled."""

    id: int
    report_id: str
    day: date
    policy_domain: str
    recipient: str
    recipient_domain: str
    attempts: int
    dns_failures: int
    checked_at: datetime | None
    max_bytes: int | None
    sending_at: datetime | None
    envelope_from: str | None
    rua: str

    @property
    def destination(self) -> Destination:
        """The recipient, as the core has it."""
        return Destination(self.recipient.rpartition("@")[0], self.recipient_domain, self.max_bytes)


def back_off(tries: int, bounds: tuple[timedelta, timedelta]) -> timedelta:
    """How long to wait after so many tries: twice as long each time, within bounds."""
    first, longest = bounds
    return min(longest, first * 2 ** min(max(tries - 1, 0), 30))


@dataclass(frozen=True)
class Verdict:
    """What the DNS makes of the deliveries of one report that waited for it."""

    authorised: tuple[tuple[Delivery, Destination], ...] = ()
    settled: tuple[tuple[Delivery, Refused], ...] = ()
    again: tuple[tuple[Delivery, Refused], ...] = ()
    further: tuple[Destination, ...] = ()
    """Mailboxes that were named in place of a published one, beyond the first."""


def judge(waiting: Iterable[Delivery], found: Destinations, mailboxes: Iterable[str]) -> Verdict:
    """Lay the outcome of `resolve` on the deliveries; `mailboxes` are all that the report has so far.

    A delivery that is neither taken nor refused was overridden: it goes to an address that its domain named instead.
    """
    taken = {one.address: one for one in found.taken}
    refused = {one.destination.address: one for one in found.refused if one.destination is not None}
    new = [one for one in found.taken if one.address not in set(mailboxes)]
    authorised: list[tuple[Delivery, Destination]] = []
    settled: list[tuple[Delivery, Refused]] = []
    again: list[tuple[Delivery, Refused]] = []
    for delivery in waiting:
        if delivery.recipient in taken:
            authorised.append((delivery, taken[delivery.recipient]))
        elif refusal := refused.get(delivery.recipient):
            (again if refusal.reason.temporary else settled).append((delivery, refusal))
        elif other := next((one for one in new if one.domain == delivery.recipient_domain), None):
            new.remove(other)
            authorised.append((delivery, other))
        else:
            detail = "what its domain names instead gets the report already"
            settled.append((delivery, Refused(delivery.recipient, Reason.DUPLICATE, detail)))
    return Verdict(tuple(authorised), tuple(settled), tuple(again), tuple(new))


@dataclass(frozen=True)
class Handed:
    """Postfix answered 250."""

    queue_id: str | None
    reply: str


@dataclass(frozen=True)
class NotTaken:
    """Postfix did not take the mail, this time or for good."""

    reply: str
    code: int
    """0 where there was no answer at all."""

    @property
    def for_good(self) -> bool:
        """Whether another try is pointless."""
        return 500 <= self.code < 600

    @property
    def dsn(self) -> str | None:
        """The enhanced status code (RFC 3463)."""
        found = _STATUS.match(self.reply)
        return found[1] if found else None

    @property
    def fate(self) -> str:
        """What a refusal by our own Postfix is counted as."""
        return "too_large" if self.code == 552 or (self.dsn or "").endswith(".3.4") else "refused"


@dataclass(frozen=True)
class Unknown:
    """The whole mail was given and no answer came: only the journal knows."""

    reply: str


def _answer(code: int, text: bytes | str) -> str:
    return f"{code} {text.decode('utf-8', 'replace') if isinstance(text, bytes) else text}"[:1000]


def hand_over(mail: Mail, host: str, port: int) -> Handed | NotTaken | Unknown:
    """Give one mail to Postfix (RFC 5321). Raises nothing for trouble with it."""
    given = False
    try:
        # its own choice of a name would ask the DNS anew for each mail
        smtp = smtplib.SMTP(host, port, local_hostname=mail.envelope_from.rpartition("@")[2], timeout=SMTP_SECONDS)
    except smtplib.SMTPResponseException as error:
        return NotTaken(_answer(error.smtp_code, error.smtp_error), error.smtp_code)
    except (OSError, smtplib.SMTPException) as error:
        return NotTaken(f"no answer from our own Postfix: {error}", 0)
    try:
        for step in (
            smtp.ehlo,
            lambda: smtp.mail(mail.envelope_from, [f"SIZE={len(mail.content)}"] if smtp.has_extn("size") else []),
            lambda: smtp.rcpt(mail.envelope_to),
        ):
            code, text = step()
            if code // 100 != 2:
                return NotTaken(_answer(code, text), code)
        if smtp.sock is not None:
            smtp.sock.settimeout(DATA_SECONDS)
        given = True
        code, text = smtp.data(mail.content)
    except smtplib.SMTPDataError as error:
        # refused before anything was given
        return NotTaken(_answer(error.smtp_code, error.smtp_error), error.smtp_code)
    except (OSError, smtplib.SMTPException) as error:
        return Unknown(f"cut off: {error}") if given else NotTaken(f"no answer from our own Postfix: {error}", 0)
    finally:
        with suppress(OSError, smtplib.SMTPException):
            smtp.quit()
        smtp.close()
    if code != 250:
        return NotTaken(_answer(code, text), code)
    queued = _QUEUED.search(_answer(code, text))
    return Handed(queued[1] if queued else None, _answer(code, text))


def taken(messages: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Return path and queue identifier of each mail that these lines of the queue manager name."""
    for message in messages:
        if found := _TAKEN.match(message):
            yield found[2], found[1]


def queue_manager_lines(syslog_name: str, since: datetime) -> list[str]:
    """What the queue manager wrote since then. Raises OSError or subprocess.SubprocessError if nobody can tell."""
    done = subprocess.run(
        [
            "journalctl", "--quiet", "--no-pager", "--output=json", "--output-fields=MESSAGE",
            f"--identifier={syslog_name}/qmgr", f"--since=@{int(since.timestamp()) - 5}",
        ],
        capture_output=True, timeout=JOURNAL_SECONDS, check=True,
    )  # fmt: skip
    lines = (json.loads(line).get("MESSAGE") for line in done.stdout.splitlines())
    return [line for line in lines if isinstance(line, str)]


def answers(host: str, port: int) -> bool:
    """Whether Postfix is up."""
    try:
        with smtplib.SMTP(host, port, timeout=SMTP_SECONDS):
            return True
    except (OSError, smtplib.SMTPException):
        return False
