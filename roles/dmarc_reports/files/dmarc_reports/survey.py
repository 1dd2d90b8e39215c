"""What became of a month's reports, as a page of text for the postmaster: `dmarc-reports survey 2026-11`.

The month is that of the days reported on. Written once, on the third of the next month, when the last day's reports
are out and most of their fates known; the command makes it anew at any time. No addresses are in it, only domains.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import TYPE_CHECKING

from .bounces import status as what_waits
from .package import Mail
from .settings import Settings

if TYPE_CHECKING:
    from .store import Connection

log = logging.getLogger("dmarc-reports")

WIDTH = 100
WORST = 20
FROM_DAY = 3
"""Of the next month, from which on the text of a month is written."""

MEANING: Mapping[str, str] = {
    "taken": "the receiver took it",
    "deferred": "still being tried",
    "waiting": "not sent yet, or nothing known yet",
    "refused": "refused, for no reason of those below",
    "spam_policy": "refused as spam, by policy or authentication",
    "no_mailbox": "there is no such mailbox",
    "mailbox_full": "the mailbox is full",
    "too_large": "larger than the receiver takes",
    "bounced_later": "taken, and sent back later",
    "no_mx": "the domain has no mail server, or wants no mail",
    "nxdomain": "the domain does not exist",
    "unreachable": "no connection until given up",
    "tls": "no encryption that both sides accept",
    "expired": "put off until given up, or waited too long here",
    "unknown": "the mail log says nothing about it",
    "paused": "not sent: the domain never takes reports",
    "not_authorised": "not sent: the outside domain does not want it",
    "overridden_wrongly": "not sent: the outside domain names a wrong address",
    "dns_temperror": "not sent: no answer from the DNS",
    "wrong_syntax": "not sent: the rua is no address",
    "not_mailto": "not sent: the rua is no mail address",
    "too_many": "not sent: too many addresses in one record",
    "duplicate": "not sent: named twice",
    "excluded": "not sent: excluded here",
    "own": "not sent: our own domain",
}
"""In this order, in the table."""

TODO: Mapping[str, str] = {
    "spam_policy": "Receivers refuse our reports by policy: look at their answers below; are SPF, DKIM and PTR right?",
    "tls": "TLS fails towards some receivers: try one by hand (posttls-finger).",
    "unknown": "The mail log has no word of some reports: was the journal cut off? Raise its size.",
    "deferred": "Some reports are still being tried; run the survey again in five days.",
    "waiting": "Some reports are not sent yet: dmarc-reports status says more.",
    "dns_temperror": "The DNS gave no answer for some domains: if there are many of them, look at the resolver.",
    "too_large": "Some reports are larger than their receivers take; they will not shrink by themselves.",
    "not_authorised": "Domains ask for reports to others that do not want them: nothing to do, unless ours is one.",
}


@dataclass(frozen=True)
class Bad:
    """A domain that took no report in the month."""

    domain: str
    deliveries: int
    fate: str
    reply: str


@dataclass(frozen=True)
class Figures:
    """All that the text says."""

    month: date
    days: int
    """Days of the month that are closed."""
    reports: int
    messages: int
    policy_domains: int
    recipient_domains: int
    fates: Mapping[str, int]
    before: Mapping[str, int]
    """The month before."""
    worst: tuple[Bad, ...]
    paused: tuple[tuple[str, date, int, str], ...]
    """Domain, until when, failures, last fate."""
    incomplete: tuple[tuple[date, str], ...]
    late: int
    returned: Mapping[str, int]
    for_the_postmaster: tuple[str, ...] = ()


class MonthError(ValueError):
    """No month; the text says so."""


def parse_month(text: str) -> date:
    """The first day of `2026-11`. Raises MonthError."""
    try:
        return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        raise MonthError(f"{text!r} is no month: write it as 2026-11") from None


def next_month(month: date) -> date:
    """The first day of the month after."""
    return (month.replace(day=1) + timedelta(days=32)).replace(day=1)


def last_month(day: date) -> date:
    """The first day of the month before."""
    return (day.replace(day=1) - timedelta(days=1)).replace(day=1)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def _share(number: int, whole: int) -> str:
    return f"{100 * number / whole:.1f} %" if whole else "-"


def _change(now: int, now_whole: int, before: int, before_whole: int) -> str:
    if not before_whole or not now_whole:
        return "-"
    return f"{100 * now / now_whole - 100 * before / before_whole:+.1f}"


def render(figures: Figures) -> str:
    """The text."""
    whole, whole_before = sum(figures.fates.values()), sum(figures.before.values())
    lines = [
        f"DMARC reports sent about {figures.month:%B %Y}",
        "=" * 40,
        "",
        f"{figures.reports} reports on {figures.messages} messages of {figures.policy_domains} domains, "
        f"{figures.days} days;",
        f"{whole} addresses in {figures.recipient_domains} domains were to get them.",
        "",
        f"{'what became of them':<20}{'number':>8}{'share':>9}{'before':>9}{'points':>9}",
    ]
    names = [*MEANING, *sorted({*figures.fates, *figures.before} - set(MEANING))]
    for name in names:
        now, before = figures.fates.get(name, 0), figures.before.get(name, 0)
        if now or before:
            lines.append(
                f"{name:<20}{now:>8}{_share(now, whole):>9}{_share(before, whole_before):>9}"
                f"{_change(now, whole, before, whole_before):>9}  {MEANING.get(name, '')}"
            )
    if not whole:
        lines.append("(nothing)")
    if figures.worst:
        lines += ["", f"Domains that took none (the worst {len(figures.worst)}), with their last answer"]
        for bad in figures.worst:
            lines.append(f"{bad.deliveries:>6}  {bad.domain}  {bad.fate}")
            if bad.reply:
                lines.append(_cut(f"        {bad.reply}", WIDTH))
    if figures.paused:
        lines += ["", "Paused: nothing is sent there until the day named"]
        lines += [
            f"{until}  {domain}  {failures} failures, the last one: {fate}"
            for domain, until, failures, fate in figures.paused
        ]
    if figures.incomplete or figures.late:
        lines += ["", "Days that lack something"]
        lines += [f"{day}  {reason}" for day, reason in figures.incomplete]
        if figures.late:
            lines.append(f"{figures.late} events came after their day was closed and are in no report")
    if figures.returned:
        lines += ["", "Mails that came back in this month"]
        lines += [f"{number:>6}  {kind}" for kind, number in sorted(figures.returned.items())]
    lines += ["", "What to do", *(f"- {one}" for one in _todo(figures))]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _todo(figures: Figures) -> Iterable[str]:
    found = [text for fate, text in TODO.items() if figures.fates.get(fate)]
    if any(reason.startswith("gateways missing") for _, reason in figures.incomplete):
        found.append("A gateway did not hand over its events in time: look at dmarc_events there.")
    if figures.late:
        found.append("Events came late: dmarc_reports_wait_hours may be too short.")
    found += figures.for_the_postmaster
    return found or ["Nothing."]


_FATE = "coalesce(fate, CASE state WHEN 'settled' THEN 'unknown' ELSE 'waiting' END)"


def gather(conn: Connection, month: date, waits: Iterable[str] = ()) -> Figures:
    """The figures of a month."""
    begin, end = month, next_month(month)
    bounds = {"begin": begin, "end": end}
    totals = conn.execute(
        "SELECT count(*), coalesce(sum(messages), 0), count(DISTINCT policy_domain) FROM dmarc_reports.report "
        "WHERE day >= %(begin)s AND day < %(end)s",
        bounds,
    ).fetchone()
    days = conn.execute(
        "SELECT count(*), coalesce(sum(late), 0) FROM dmarc_reports.day WHERE day >= %(begin)s AND day < %(end)s",
        bounds,
    ).fetchone()
    domains = conn.execute(
        "SELECT count(DISTINCT recipient_domain) FROM dmarc_reports.delivery WHERE day >= %(begin)s AND day < %(end)s",
        bounds,
    ).fetchone()
    assert totals is not None
    assert days is not None
    assert domains is not None
    worst = conn.execute(
        f"""
        SELECT recipient_domain, count(*) FILTER (WHERE handed_at IS NOT NULL),
            (array_agg({_FATE} ORDER BY day DESC, id DESC) FILTER (WHERE handed_at IS NOT NULL))[1],
            coalesce(dmarc_reports.without_addresses(
                (array_agg(reply ORDER BY day DESC, id DESC) FILTER (WHERE handed_at IS NOT NULL))[1]), '')
        FROM dmarc_reports.delivery
        WHERE day >= %(begin)s AND day < %(end)s AND state = 'settled' AND recipient_domain IS NOT NULL
        GROUP BY recipient_domain
        HAVING count(*) FILTER (WHERE fate = 'taken') = 0 AND count(*) FILTER (WHERE handed_at IS NOT NULL) > 0
        ORDER BY 2 DESC, recipient_domain LIMIT %(worst)s
        """,
        {**bounds, "worst": WORST},
    ).fetchall()
    paused = conn.execute(
        "SELECT recipient_domain, (until AT TIME ZONE 'UTC')::date, failures, last_fate FROM dmarc_reports.pause "
        "WHERE until > now() ORDER BY recipient_domain"
    ).fetchall()
    incomplete = conn.execute(
        "SELECT day, reason FROM dmarc_reports.day WHERE day >= %(begin)s AND day < %(end)s AND reason <> 'complete' "
        "ORDER BY day",
        bounds,
    ).fetchall()
    returned = conn.execute(
        "SELECT kind, sum(mails) FROM dmarc_reports.survey_returned WHERE day >= %(begin)s AND day < %(end)s "
        "GROUP BY 1",
        bounds,
    ).fetchall()
    return Figures(
        month=month, days=days[0], reports=totals[0], messages=totals[1], policy_domains=totals[2],
        recipient_domains=domains[0], fates=_fates(conn, begin, end), before=_fates(conn, last_month(begin), begin),
        worst=tuple(Bad(*row) for row in worst), paused=tuple(tuple(row) for row in paused),
        incomplete=tuple(tuple(row) for row in incomplete), late=days[1],
        returned={kind: int(number) for kind, number in returned}, for_the_postmaster=tuple(waits),
    )  # fmt: skip


def _fates(conn: Connection, begin: date, end: date) -> dict[str, int]:
    rows = conn.execute(
        "SELECT fate, sum(deliveries) FROM dmarc_reports.survey_daily WHERE day >= %s AND day < %s GROUP BY 1",
        [begin, end],
    )
    return {fate: int(number) for fate, number in rows}


def text(conn: Connection, settings: Settings, month: date) -> str:
    """A month's text."""
    return render(gather(conn, month, what_waits(settings)))


def main(conn: Connection, settings: Settings, month: str) -> int:
    """Print a month's text; gives the exit status."""
    try:
        print(text(conn, settings, parse_month(month)), end="")
    except MonthError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


# --- once a month


def get_state(conn: Connection, name: str) -> str | None:
    """A note that the survey keeps for itself."""
    row = conn.execute("SELECT value FROM dmarc_reports.survey_state WHERE name = %s", [name]).fetchone()
    return row[0] if row else None


def set_state(conn: Connection, name: str, value: str) -> None:
    """Keep a note."""
    conn.execute(
        "INSERT INTO dmarc_reports.survey_state (name, value) VALUES (%s, %s) "
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value, at = now()",
        [name, value],
    )


def monthly(conn: Connection, settings: Settings, today: date | None = None) -> None:
    """Write last month's text, and mail it, once each."""
    today = today or datetime.now(UTC).date()
    month = last_month(today)
    name = f"survey {month:%Y-%m}"
    if today.day < FROM_DAY or (get_state(conn, name) is not None and not _to_mail(conn, settings, name)):
        return
    bounds = [month, next_month(month)]
    if not conn.execute("SELECT 1 FROM dmarc_reports.day WHERE day >= %s AND day < %s LIMIT 1", bounds).fetchone():
        return
    folder = settings.bounces.parent / "survey"
    path = folder / f"{month:%Y-%m}.txt"
    if get_state(conn, name) is None:
        try:
            _write(path, text(conn, settings, month))
        except OSError as error:
            log.error("%s cannot be written: %s", path, error.strerror)
            return
        set_state(conn, name, "written")
        log.info("what became of the reports about %s: %s", f"{month:%B %Y}", path)
    if _to_mail(conn, settings, name):
        _mail(conn, settings, name, month, path)


def _to_mail(conn: Connection, settings: Settings, name: str) -> bool:
    return bool(settings.survey_to) and get_state(conn, name) != "mailed"


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(mode=0o750, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(content, encoding="utf-8")
    os.chmod(new, 0o640)
    new.replace(path)


def _mail(conn: Connection, settings: Settings, name: str, month: date, path: Path) -> None:
    from .send import Handed, NotTaken, hand_over

    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        log.error("%s cannot be read: %s", path, error.strerror)
        return
    sender = settings.sender
    result = hand_over(
        compose(content, month, sender.email, settings.survey_to), settings.smtp_host, settings.smtp_port
    )
    if isinstance(result, Handed):
        set_state(conn, name, "mailed")
    elif isinstance(result, NotTaken) and not result.for_good:
        log.warning("the survey of %s waits, our own Postfix takes no mail: %s", f"{month:%Y-%m}", result.reply)
    else:
        # not twice: it lies in its file
        set_state(conn, name, "mailed")
        log.error("the survey of %s could not be mailed: %s", f"{month:%Y-%m}", result.reply)


def compose(content: str, month: date, sender: str, recipient: str) -> Mail:
    """The text as a mail; the same month always has the same Message-ID."""
    domain = sender.rpartition("@")[2]
    message = EmailMessage(policy=SMTP.clone(cte_type="7bit"))
    message["From"] = sender
    message["To"] = recipient
    message["Subject"] = f"DMARC reports sent: what became of them, {month:%B %Y}"
    message["Date"] = datetime.now(UTC)
    message["Message-ID"] = f"<survey-{month:%Y-%m}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(content)
    return Mail(sender, recipient, message["Message-ID"], message.as_bytes())
