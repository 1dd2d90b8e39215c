"""Mails that came back: to the return path that each report has of its own, or to the address they were sent from.

A delivery status notification (RFC 3464) changes a report's fate only where the HMAC in its return path holds. Our own
Postfix's confirm what the log says; others make it `bounced_later`. Notices of a delay change nothing, automatic
replies (RFC 3834) are counted and dropped, what a person wrote goes to the folder `answers` for the postmaster, and
what nobody thought of to `set-aside`, each with its reason in the log. A file leaves the Maildir after the commit.
"""

from __future__ import annotations

import email
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from email import policy
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING

from .fates import classify, enhanced_code, short
from .package import bounced_recipient, bounced_report
from .settings import Settings

if TYPE_CHECKING:
    from .store import Connection

log = logging.getLogger("dmarc-reports")

MAX_READ = 1 << 20
"""Octets of a mail that are looked at; a bounce may carry a whole report behind what it says."""
FILES_A_ROUND = 1000
KEEP_FILES = 1000
KEEP_BYTES = 100 << 20
KEEP_DAYS = 30
ANSWERS = "answers"
SET_ASIDE = "set-aside"

Recipients = Callable[[str], Collection[str]]
"""Report-ID → the mailboxes that it was sent to."""


@dataclass(frozen=True)
class Verdict:
    """What a mail is: `kind` as in table `returned`."""

    kind: str
    reason: str
    report_id: str | None = None
    recipient: str | None = None
    fate: str | None = None
    """What a failure would be called if it had come at once."""
    dsn: str | None = None
    reply: str | None = None
    queue_id: str | None = None
    """The queue identifier that a Postfix had the report under."""

    @property
    def folder(self) -> str | None:
        """Where the mail is kept; None: it is deleted."""
        return {"answer": ANSWERS, "set_aside": SET_ASIDE}.get(self.kind)


@dataclass(frozen=True)
class Status:
    """One recipient's part of a delivery status notification."""

    action: str
    status: str | None
    diagnostic: str
    queue_id: str | None


def _text(message: Message, name: str) -> str:
    value = message.get(name)
    return "" if value is None else " ".join(str(value).split())


def addresses(message: Message) -> Iterator[str]:
    """Where the mail came to, as the delivery agent and its author say; only the HMAC proves anything."""
    for name in ("X-Original-To", "Delivered-To", "To"):
        for value in message.get_all(name, []):
            yield from re.findall(r"[^\s<>,;:\"]+@[^\s<>,;:\"]+", str(value))[:20]


def statuses(message: Message) -> list[Status]:
    """The parts of the first message/delivery-status, one for each recipient."""
    for part in message.walk():
        if part.get_content_type() not in ("message/delivery-status", "message/global-delivery-status"):
            continue
        blocks = part.get_payload()
        if not isinstance(blocks, list):
            text = part.get_payload(decode=True)
            octets = text if isinstance(text, bytes) else b""
            blocks = [email.message_from_bytes(block) for block in re.split(rb"\r?\n\r?\n", octets)]
        queue_id = next((found for block in blocks if (found := _text(block, "X-Postfix-Queue-ID"))), None)
        return [
            Status(
                _text(block, "Action").lower().split(" ")[0],
                enhanced_code(_text(block, "Status")),
                _text(block, "Diagnostic-Code"),
                queue_id,
            )
            for block in blocks
            if block.get("Action") is not None
        ]
    return []


def _body(message: Message) -> str:
    for part in message.walk():
        if part.get_content_maintype() == "text":
            payload = part.get_payload(decode=True)
            if isinstance(payload, bytes):
                return payload[:20_000].decode("utf-8", "replace")
    return ""


def is_automatic(message: Message) -> bool:
    """Whether a program answered (RFC 3834, and what is older)."""
    submitted = _text(message, "Auto-Submitted").lower()
    precedence = _text(message, "Precedence").lower()
    subject = _text(message, "Subject").lower()
    return (
        bool(submitted and not submitted.startswith("no"))
        or precedence in ("bulk", "junk", "auto_reply", "list")
        or any(message.get(name) is not None for name in ("X-Autoreply", "X-Autorespond", "X-Autoresponse"))
        or subject.startswith(
            ("auto:", "automatic reply", "auto reply", "autoreply", "out of office", "automatische antwort")
        )
    )


def is_bounce_without_form(message: Message) -> bool:
    """Whether a mail server seems to complain in words of its own."""
    sender = _text(message, "From").lower()
    return _text(message, "Return-Path") == "<>" or bool(
        re.search(r"mailer-daemon|postmaster@|mail delivery s", sender)
    )


def _proven(message: Message, settings: Settings, recipients: Recipients) -> tuple[str, str] | str | None:
    """Report and recipient; or why the return path is not believed; None if the mail came to none."""
    why = None
    for address in addresses(message):
        number = bounced_report(settings.sender, address)
        if number is None:
            continue
        sent_to = recipients(number)
        recipient = bounced_recipient(settings.sender, settings.key, address, sent_to)
        if recipient is not None:
            return number, recipient
        why = f"its return path is forged: {number}" if sent_to else f"its report is not known here: {number}"
    return why


_WORTH = re.compile(r"(?:^|[\s:])([45]\d\d[ -].{0,300})")


def _says(body: str) -> str:
    """The line of a free text that is most likely the receiver's answer."""
    found = _WORTH.search(body)
    if found:
        return found[1]
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    return " ".join(lines[:4])


def judge(octets: bytes, settings: Settings, recipients: Recipients) -> Verdict:
    """Say what a mail is. Never raises for what is in it."""
    try:
        return _judge(octets, settings, recipients)
    except (
        AssertionError,
        AttributeError,
        IndexError,
        KeyError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        return Verdict("set_aside", f"cannot be read: {type(error).__name__}")


def _judge(octets: bytes, settings: Settings, recipients: Recipients) -> Verdict:
    message = email.message_from_bytes(octets[:MAX_READ], policy=policy.compat32)
    proven = _proven(message, settings, recipients)
    kind = message.get_content_type()
    report_type = str(message.get_param("report-type") or "").lower()
    found = statuses(message) if kind == "multipart/report" or report_type else []
    if found or (kind == "multipart/report" and report_type == "delivery-status"):
        return _notification(message, found, proven)
    if kind == "multipart/report" and report_type == "disposition-notification":
        return Verdict("auto_reply", "a note that the mail was read or deleted")
    if kind == "multipart/report" and report_type == "feedback-report":
        return Verdict("set_aside", "a complaint (feedback report)")
    if isinstance(proven, str):
        return Verdict("set_aside", proven)
    if is_automatic(message) and not (proven and re.search(r"mailer-daemon", _text(message, "From").lower())):
        return Verdict("auto_reply", "an automatic reply")
    if is_bounce_without_form(message):
        if proven is None:
            return Verdict("set_aside", "a bounce that did not come to a return path of ours")
        says = short(_says(_body(message)))
        return Verdict(
            "bounced_later", "a bounce in words", *proven,
            fate=classify(None, says, remote=True), dsn=enhanced_code(says), reply=says,
        )  # fmt: skip
    if not octets.strip():
        return Verdict("set_aside", "an empty file")
    return Verdict("answer", "somebody wrote to us")


def _notification(message: Message, found: list[Status], proven: tuple[str, str] | str | None) -> Verdict:
    if isinstance(proven, str):
        return Verdict("set_aside", proven)
    if proven is None:
        return Verdict("set_aside", "a bounce that did not come to a return path of ours")
    status = next((one for one in found if one.action == "failed"), found[0] if found else None)
    if status is None:
        return Verdict("set_aside", "a delivery status notification that says nothing about a recipient")
    if status.action == "delayed":
        return Verdict("delayed", "a notice of a delay", *proven)
    if status.action in ("delivered", "relayed", "expanded"):
        return Verdict("delivered", f"{status.action}, says the other side", *proven)
    if status.action != "failed":
        return Verdict("set_aside", "a delivery status notification with an unknown action")
    kind, _, words = status.diagnostic.partition(";")
    words = (words if words else kind).strip()
    said = status.diagnostic.lower().startswith("smtp")
    return Verdict(
        "bounced_later", "a bounce", *proven,
        fate=classify(status.status, words, remote=said or None), dsn=status.status or enhanced_code(words),
        reply=short(words), queue_id=status.queue_id,
    )  # fmt: skip


# --- the Maildir


def waiting(maildir: Path) -> list[Path]:
    """The mails in `new` and `cur`, oldest first."""
    found: list[tuple[float, Path]] = []
    for folder in ("new", "cur"):
        try:
            with os.scandir(maildir / folder) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        found.append((entry.stat(follow_symlinks=False).st_mtime, Path(entry.path)))
        except FileNotFoundError:
            continue
    return [path for _, path in sorted(found)][:FILES_A_ROUND]


def read(conn: Connection, settings: Settings) -> int:
    """Work through the Maildir; gives how many deliveries have another fate now."""
    changed = 0
    cache: dict[str, set[str]] = {}

    def recipients(number: str) -> set[str]:
        if number not in cache:
            rows = conn.execute(
                "SELECT recipient FROM dmarc_reports.delivery WHERE report_id = %s AND envelope_from IS NOT NULL",
                [number],
            )
            cache[number] = {row[0] for row in rows}
        return cache[number]

    for path in waiting(settings.bounces):
        try:
            with path.open("rb") as file:
                octets = file.read(MAX_READ)
        except OSError as error:
            log.error("%s cannot be read: %s", path, error.strerror)
            continue
        verdict = judge(octets, settings, recipients)
        name = path.name.partition(":")[0]
        with conn.transaction():
            touched = _note(conn, name, verdict)
        changed += touched
        if verdict.folder is None:
            path.unlink(missing_ok=True)
        else:
            kept = settings.bounces / verdict.folder
            kept.mkdir(mode=0o700, exist_ok=True)
            path.replace(kept / name)
            log.warning("%s: %s", kept / name, verdict.reason)
    for folder in (ANSWERS, SET_ASIDE):
        prune(settings.bounces / folder)
    conn.execute(
        "DELETE FROM dmarc_reports.returned WHERE at < now() - %s * interval '1 day'", [settings.keep_reports_days]
    )
    return changed


def _note(conn: Connection, name: str, verdict: Verdict) -> int:
    """Count a mail, once, and let it change its delivery's fate; gives 1 if it did."""
    row = None
    if verdict.recipient is not None:
        row = conn.execute(
            "SELECT id, state, fate, queue_id FROM dmarc_reports.delivery WHERE report_id = %s AND recipient = %s "
            "AND envelope_from IS NOT NULL FOR UPDATE",
            [verdict.report_id, verdict.recipient],
        ).fetchone()
    delivery_id, state, fate, queue_id = row or (None, None, None, None)
    kind = verdict.kind
    own = verdict.queue_id is not None and verdict.queue_id == queue_id
    if kind == "bounced_later" and own:
        kind = "confirmed"
    new = conn.execute(
        "INSERT INTO dmarc_reports.returned (file, kind, delivery_id, reason) VALUES (%s, %s, %s, %s) "
        "ON CONFLICT DO NOTHING",
        [name, kind, delivery_id, verdict.reason],
    ).rowcount
    if not new or delivery_id is None or kind not in ("confirmed", "bounced_later"):
        return 0
    if kind == "confirmed" and state == "settled" and fate is not None:
        return 0
    after = verdict.fate if kind == "confirmed" else "bounced_later"
    reply = verdict.reply if kind == "confirmed" else short(f"{verdict.fate}: {verdict.reply}")
    conn.execute(
        "UPDATE dmarc_reports.delivery SET state = 'settled', fate = %s, dsn = %s, reply = %s, settled_at = now(), "
        "handed_at = coalesce(handed_at, sending_at) WHERE id = %s",
        [after, verdict.dsn, reply, delivery_id],
    )
    return 1


def prune(folder: Path, now: float | None = None) -> int:
    """Drop what is too old or too much, the oldest first; gives how many files."""
    now = time.time() if now is None else now
    files = _files(folder)
    size = sum(length for _, length, _ in files)
    dropped = 0
    for index, (at, length, path) in enumerate(files):
        if now - at <= KEEP_DAYS * 86400 and len(files) - index <= KEEP_FILES and size <= KEEP_BYTES:
            break
        path.unlink(missing_ok=True)
        size -= length
        dropped += 1
    if dropped:
        log.info("%s: %d old mails dropped", folder, dropped)
    return dropped


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    try:
        with os.scandir(folder) as entries:
            found = [(entry.stat(follow_symlinks=False), Path(entry.path)) for entry in entries]
    except FileNotFoundError:
        return []
    return sorted((stat.st_mtime, stat.st_size, path) for stat, path in found)


def status(settings: Settings) -> Iterable[str]:
    """What waits for the postmaster, a line each."""
    for folder, what in ((ANSWERS, "answers by people"), (SET_ASIDE, "returned mails set aside")):
        number = len(_files(settings.bounces / folder))
        if number:
            yield f"{number} {what} in {settings.bounces / folder}"
