"""The places that mails lie in, and the notes on those that were set aside.

    incoming/new            from Postfix (virtual(8) writes a Maildir)
    Maildir/new, cur        what parsedmarc may have
    Maildir/.Archive/…      what parsedmarc has done with it: Aggregate, SMTP-TLS, Failure, Invalid, Unsaved
    set-aside/KIND/         what it may not have, each mail with a note MAIL.json
    unrecorded/             a second name of those notes that the database does not know yet

A mail is moved by rename, so it is always in one place. Its note is written before.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parsedmarc_intake.examine import KINDS, Verdict


class Places:
    """The directories below the home of the intake."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.incoming = home / "incoming"
        self.mailbox = home / "Maildir"
        self.archive = self.mailbox / ".Archive"
        self.set_aside = home / "set-aside"
        self.unrecorded = home / "unrecorded"
        self.state = home / "state"

    def make(self) -> None:
        """Have the directories that are needed from the first mail on."""
        for box in (self.incoming, self.mailbox):
            for part in ("tmp", "new", "cur"):
                (box / part).mkdir(parents=True, exist_ok=True)
        for directory in (self.unrecorded, self.state, *(self.set_aside / kind for kind in KINDS)):
            directory.mkdir(parents=True, exist_ok=True)
        # Figures are no secret, and somebody else collects them.
        (self.home / "metrics").mkdir(exist_ok=True)
        (self.home / "metrics").chmod(0o755)

    def folders(self) -> dict[str, list[Path]]:
        """The folders that are counted, each with its directories."""
        found = {
            "incoming": [self.incoming / "new", self.incoming / "cur"],
            "waiting": [self.mailbox / "new", self.mailbox / "cur"],
        }
        for name, folder in (
            ("unsaved", "Unsaved"),
            ("invalid", "Invalid"),
            ("archive/aggregate", "Aggregate"),
            ("archive/tls", "SMTP-TLS"),
            ("archive/failure", "Failure"),
        ):
            found[name] = self.archived(folder)
        for kind in KINDS:
            found[f"set-aside/{kind}"] = [self.set_aside / kind]
        return found

    def archived(self, folder: str) -> list[Path]:
        """The directories of one of parsedmarc's own folders."""
        return [self.archive / folder / "new", self.archive / folder / "cur"]

    def put_aside(self, mail: Path, verdict: Verdict, now: float | None = None) -> Path:
        """Set a mail aside with its reason; returns where it is now. A mail that has gone meanwhile is no error."""
        kind = verdict.kind or "unexamined"
        name = key(mail)
        note = {
            "mail": name,
            "at": datetime.fromtimestamp(time.time() if now is None else now, UTC).isoformat(),
            "kind": kind,
            "reason": verdict.reason,
            "message_id": verdict.message_id,
            "from_domain": verdict.from_domain,
            "subject": verdict.subject,
            "size": verdict.size,
        }
        folder = self.set_aside / kind
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / f"{name}.json"
        write(written, json.dumps(note, indent=1) + "\n")
        try:
            mail.rename(folder / name)
        except FileNotFoundError:
            written.unlink(missing_ok=True)
            raise
        second = self.unrecorded / f"{name}.json"
        second.unlink(missing_ok=True)
        os.link(written, second)
        return folder / name

    def aside(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Every mail that is set aside with its note, by kind and age. A lost note is made up."""
        for kind in KINDS:
            for mail in sorted(mails([self.set_aside / kind]), key=lambda path: path.name):
                yield mail, note_of(mail)

    def let_in(self, mail: Path) -> Path:
        """Give a mail to parsedmarc."""
        target = self.mailbox / "new" / key(mail)
        mail.rename(target)
        return target


def key(mail: Path) -> str:
    """A mail's name without its Maildir flags; it stays the same wherever the mail goes."""
    return mail.name.partition(":")[0]


def mails(directories: list[Path]) -> list[Path]:
    """The mails in some directories; notes, hidden files and what is no file are left out."""
    found = []
    for directory in directories:
        try:
            with os.scandir(directory) as entries:
                found += [
                    Path(entry.path)
                    for entry in entries
                    if not entry.name.startswith(".") and not entry.name.endswith(".json") and entry.is_file()
                ]
        except FileNotFoundError:
            continue
    return found


def note_of(mail: Path) -> dict[str, Any]:
    """Why a mail was set aside."""
    try:
        return json.loads(mail.with_name(f"{mail.name}.json").read_text())
    except (OSError, ValueError):
        stat = mail.stat()
        return {
            "mail": mail.name,
            "at": datetime.fromtimestamp(stat.st_ctime, UTC).isoformat(),
            "kind": mail.parent.name,
            "reason": "The note with the reason is lost.",
            "message_id": "",
            "from_domain": "",
            "subject": "",
            "size": stat.st_size,
        }


def write(path: Path, text: str, mode: int = 0o640) -> None:
    """Write a file that is either whole or not there."""
    new = path.with_name(f".{path.name}.new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
