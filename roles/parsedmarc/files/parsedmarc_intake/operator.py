"""What an operator does with mails that were set aside: list them, look at one, let one in after all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from email.parser import BytesHeaderParser
from pathlib import Path

from parsedmarc_intake.confined import look_at
from parsedmarc_intake.examine import FAILURE, KINDS, MAX_HEADER, UNAUTHENTICATED, clean
from parsedmarc_intake.places import Places, note_of
from parsedmarc_intake.settings import Settings
from parsedmarc_intake.store import Store

SHOWN = ("From", "To", "Date", "Subject", "Message-ID", "Authentication-Results", "Received", "Content-Type")


class OperatorError(Exception):
    """What was asked for cannot be done."""


def listing(settings: Settings, kind: str | None, as_json: bool) -> str:
    """The mails that are set aside, one a line."""
    notes = [note for _, note in Places(settings.home).aside() if kind in (None, note["kind"])]
    if as_json:
        return json.dumps(notes, indent=1)
    if not notes:
        return "Nothing is set aside."
    lines = []
    for note in notes:
        lines.append(f"{note['mail']}  {note['at'][:16]}  {note['kind']}  {clean(note['from_domain']) or '-'}")
        lines.append(f"    {clean(note['reason'])}")
    return "\n".join(lines)


def find(settings: Settings, mail: str) -> Path:
    """Where a mail lies; the beginning of its name is enough. Raises OperatorError if it is none or several."""
    found = [path for path, _ in Places(settings.home).aside() if path.name == mail] or [
        path for path, _ in Places(settings.home).aside() if path.name.startswith(mail)
    ]
    if len(found) != 1:
        raise OperatorError(f"{len(found)} mails that are set aside have a name that begins with {mail!r}.")
    return found[0]


def show(settings: Settings, mail: str) -> str:
    """The reason and the header of a mail. Nothing in it reaches the terminal as it is."""
    path = find(settings, mail)
    note = note_of(path)
    with path.open("rb") as file:
        header = BytesHeaderParser().parsebytes(file.read(MAX_HEADER))
    lines = [
        f"Mail:     {path}",
        f"Kind:     {note['kind']} ({KINDS.get(note['kind'], '')})",
        f"Reason:   {clean(note['reason'], 600)}",
        f"Set aside {note['at']}, {note['size']} bytes",
        "",
    ]
    lines += [f"{name}: {clean(value, 600)}" for name in SHOWN for value in header.get_all(name, [])]
    facts = look_at(path, settings, authenticate=False).facts
    if facts:
        lines += ["", "Report:   " + ", ".join(f"{name} {clean(value)}" for name, value in vars(facts).items())]
    return "\n".join(lines)


def release(settings: Settings, wanted: Sequence[str], anyway: bool) -> list[str]:
    """Let mails in. What was set aside for its sender alone is looked at once more without asking for the sender.

    Raises OperatorError at the first that stays where it is.
    """
    places, store, said = Places(settings.home), Store(settings.dsn), []
    store.record(places)
    for mail in wanted:
        path = find(settings, mail)
        kind = path.parent.name
        if kind == FAILURE and not settings.failure_reports:
            raise OperatorError(
                f"{path.name} is a failure report. parsedmarc would not store it: parsedmarc_failure_reports is off."
            )
        if kind == UNAUTHENTICATED and not anyway:
            verdict = look_at(path, settings, authenticate=False)
            if verdict.kind is not None:
                raise OperatorError(
                    f"{path.name} stays: besides its sender, there is this: {verdict.reason} (--anyway lets it in.)"
                )
        name = path.name
        places.let_in(path)
        path.with_name(f"{name}.json").unlink(missing_ok=True)
        noted = store.released(name)
        said.append(f"{name} is let in" + ("; parsedmarc takes it within seconds." if noted else "."))
        if not noted:
            said.append("The database is away: it is stored later, and its list does not show that it was let in.")
    return said
