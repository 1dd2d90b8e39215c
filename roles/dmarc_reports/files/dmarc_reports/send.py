"""Handing reports to our own Postfix: each once, at a steady pace, and none lost when something dies in between.

A delivery is `sending`, committed, before Postfix hears of it, and `handed` after its 250. What a crash leaves in
`sending` is looked up in the journal: the queue manager names the return path, which no other delivery has, of every
mail that Postfix has taken, and of no other. Only when nothing turned up for a while is the mail handed over again.

Trouble with our own Postfix is no fate of a report: the delivery waits, for longer each time.
"""

from __future__ import annotations

import json
import logging
import re
import smtplib
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from estate_arc_dns import Resolver
from estate_arc_policy import TxtLookup

from . import store
from .destinations import Destination, Destinations, Reason, Refused, resolve
from .package import Mail, build
from .settings import Settings
from .store import Connection, Delivery

log = logging.getLogger("dmarc-reports")

SMTP_SECONDS = 60.0
DATA_SECONDS = 330.0
"""For the answer to the mail itself: longer than Postfix waits for its milters."""
JOURNAL_SECONDS = 120
DNS_SECONDS = 5.0
RUA_SECONDS = 30.0
"""For all names that the addresses of one `rua` need."""
DNS_TRIES = 6
DNS_THREADS = 8
AT_A_TIME = 50
BACK_OFF = (timedelta(minutes=1), timedelta(minutes=30))
DNS_BACK_OFF = (timedelta(minutes=15), timedelta(hours=4))
TROUBLES = 5
"""Hand-overs that fail one after the other until the rest waits for the next round."""

_QUEUED = re.compile(r"queued as ([0-9A-Za-z]+)")
_TAKEN = re.compile(r"([0-9A-Za-z]+): from=<([^>]*)>, size=")
_STATUS = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?=\s|$)")


def back_off(tries: int, bounds: tuple[timedelta, timedelta]) -> timedelta:
    """How long to wait after so many tries: twice as long each time, within bounds."""
    first, longest = bounds
    return min(longest, first * 2 ** min(max(tries - 1, 0), 30))


# --- the recipients' domains are asked


def lookup(resolver: Resolver) -> TxtLookup:
    """A look-up for the addresses of one `rua`, bounded as a whole."""
    deadline = time.monotonic() + RUA_SECONDS
    return lambda name: resolver.txt(name, deadline)


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


def check(conn: Connection, settings: Settings, deliveries: Iterable[Delivery], resolver: Resolver) -> None:
    """Ask the domains of these deliveries whether they want the reports, several at a time."""
    reports = {one.report_id: one for one in deliveries if one.checked_at is None}

    def ask(one: Delivery) -> Destinations:
        return resolve(one.policy_domain, one.rua, lookup(resolver), settings.rules)

    with ThreadPoolExecutor(DNS_THREADS) as pool:
        answers = list(pool.map(ask, reports.values()))
    for (number, like), found in zip(reports.items(), answers, strict=True):
        with conn.transaction():
            verdict = judge(store.siblings(conn, number), found, store.mailboxes(conn, number))
            for delivery, to in verdict.authorised:
                store.authorised(conn, delivery.id, to)
            for delivery, refused in verdict.settled:
                store.settle(conn, delivery.id, str(refused.reason), refused.detail)
            for delivery, refused in verdict.again:
                tries = delivery.dns_failures + 1
                if tries >= DNS_TRIES:
                    store.settle(conn, delivery.id, str(refused.reason), refused.detail)
                else:
                    store.ask_again(conn, delivery.id, back_off(tries, DNS_BACK_OFF), refused.detail)
            for to in verdict.further:
                store.add_mailbox(conn, like, to)


# --- hand-over


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
        found = _STATUS.search(self.reply)
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
        smtp = smtplib.SMTP(host, port, timeout=SMTP_SECONDS)
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


def try_one(conn: Connection, settings: Settings, delivery: Delivery) -> Handed | NotTaken | Unknown | None:
    """Send one delivery that is due. None where it came to no hand-over."""
    until = store.paused_until(conn, delivery.recipient_domain)
    if until is not None:
        store.settle(conn, delivery.id, "paused", f"takes no reports; the next one is tried after {until:%Y-%m-%d}")
        return None
    report = store.frozen(conn, delivery.report_id)
    if report is None:
        store.settle(conn, delivery.id, "expired", "the report is no longer kept")
        return None
    mail = build(
        report, settings.sender, delivery.destination,
        key=settings.key, now=datetime.now(UTC), max_bytes=settings.max_bytes,
    )  # fmt: skip
    if isinstance(mail, Refused):
        store.settle(conn, delivery.id, str(mail.reason), mail.detail)
        return None
    if not store.begin_sending(conn, delivery.id, mail):
        return None
    result = hand_over(mail, settings.smtp_host, settings.smtp_port)
    if isinstance(result, Handed):
        store.handed(conn, delivery.id, result.queue_id, result.reply)
    elif isinstance(result, NotTaken) and result.for_good:
        store.settle(conn, delivery.id, result.fate, result.reply, result.dsn)
    elif isinstance(result, NotTaken):
        store.wait_on(conn, delivery.id, back_off(delivery.attempts + 1, BACK_OFF), result.reply)
    return result


# --- after a crash


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


def recover(conn: Connection, settings: Settings) -> None:
    """Find out about hand-overs that were cut off; nobody else is sending meanwhile."""
    open_ones = store.cut_off(conn)
    if not open_ones:
        return
    now = datetime.now(UTC)
    up = answers(settings.smtp_host, settings.smtp_port)
    since = min(one.sending_at or now for one in open_ones)
    try:
        found = dict(taken(queue_manager_lines(settings.syslog_name, since)))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        log.error("%d hand-overs were cut off, and the journal cannot be read: %s", len(open_ones), error)
        return
    for one in open_ones:
        if one.envelope_from in found:
            log.info("report %s to %s had been taken: %s", one.report_id, one.recipient, found[one.envelope_from])
            store.handed(conn, one.id, found[one.envelope_from], "found in the journal after a crash")
        elif up and now - (one.sending_at or now) >= settings.unsure:
            log.info("report %s to %s had not been taken, it waits again", one.report_id, one.recipient)
            store.wait_on(conn, one.id, timedelta(0), "the hand-over was cut off")


# --- a round


def send(
    conn: Connection,
    settings: Settings,
    *,
    seconds: float | None = None,
    pause: Callable[[float], bool] = lambda length: time.sleep(length) or False,  # type: ignore[func-returns-value]
) -> int:
    """Send what is due, for no longer than `seconds`; gives how many mails Postfix took.

    `pause` waits so many seconds, and says whether it is time to stop.
    """
    if not settings.enabled:
        return 0
    with store.alone(conn, "send") as got:
        if not got:
            log.warning("another process is sending")
            return 0
        recover(conn, settings)
        if old := store.give_up_old(conn, settings.catch_up_days):
            log.warning("%d deliveries waited for more than %d days and are given up", old, settings.catch_up_days)
        return _round(conn, settings, seconds, pause)


def _round(conn: Connection, settings: Settings, seconds: float | None, pause: Callable[[float], bool]) -> int:
    end = None if seconds is None else time.monotonic() + seconds
    resolver = Resolver(settings.dns_servers, DNS_SECONDS)
    count = troubles = 0
    while batch := store.due_deliveries(conn, AT_A_TIME):
        if any(one.checked_at is None for one in batch):
            check(conn, settings, batch, resolver)
            batch = [one for one in store.due_deliveries(conn, AT_A_TIME) if one.checked_at is not None]
        for delivery in batch:
            began = time.monotonic()
            result = try_one(conn, settings, delivery)
            if isinstance(result, Handed):
                count, troubles = count + 1, 0
            elif isinstance(result, NotTaken) and not result.for_good:
                troubles += 1
                if not result.code or troubles >= TROUBLES:
                    log.warning("our own Postfix takes no mail, the rest waits: %s", result.reply)
                    return count
            elif isinstance(result, Unknown):
                log.warning("report %s to %s: %s", delivery.report_id, delivery.recipient, result.reply)
                return count
            if end is not None and time.monotonic() >= end:
                return count
            if result is not None and pause(max(0.0, 60 / settings.per_minute - (time.monotonic() - began))):
                return count
    return count
