"""Handing reports to our own Postfix: each once, at a steady pace, and none lost when something dies in between.

A delivery is `sending`, committed, before Postfix hears of it, and `handed` after its 250. What a crash leaves in
`sending` is looked up in the journal: the queue manager names the return path, which no other delivery has, of every
mail that Postfix has taken, and of no other. Only when nothing turned up for a while is the mail handed over again.

Trouble with our own Postfix is no fate of a report: the delivery waits, for longer each time.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from estate_arc_dns import Resolver
from estate_arc_policy import TxtLookup

from . import store
from .destinations import Destinations, Refused, resolve
from .handover import (
    Delivery,
    Handed,
    NotTaken,
    Unknown,
    answers,
    back_off,
    hand_over,
    judge,
    queue_manager_lines,
    taken,
)
from .package import build
from .settings import Settings
from .store import Connection

log = logging.getLogger("dmarc-reports")

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

# --- the recipients' domains are asked


def lookup(resolver: Resolver) -> TxtLookup:
    """A look-up for the addresses of one `rua`, bounded as a whole."""
    deadline = time.monotonic() + RUA_SECONDS
    return lambda name: resolver.txt(name, deadline)


def check(conn: Connection, settings: Settings, deliveries: Iterable[Delivery], resolver: Resolver) -> None:
    """Ask the domains of these deliveries whether they want the reports, several at a time."""
    reports = {one.report_id: one for one in deliveries if one.checked_at is None}

    def ask(one: Delivery) -> Destinations:
        return resolve(one.policy_domain, one.rua, lookup(resolver), settings.rules)

    with ThreadPoolExecutor(DNS_THREADS) as pool:
        results = list(pool.map(ask, reports.values()))
    for (number, like), found in zip(reports.items(), results, strict=True):
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


# --- one delivery


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
