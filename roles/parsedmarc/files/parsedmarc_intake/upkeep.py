"""What has to be done every minute beside screening; each step by itself, so that a failing one stops no other.

* Mails that parsedmarc could not save (the database was away, or they are poison) are tried alone, and become poison
  after five rounds. A mail that parsedmarc has had in hand for half an hour is tried alone, too.
* Mails that parsedmarc could not read are set aside with the reason.
* A report that is in the archive but not in the database is stored: parsedmarc 11.1 takes two reports with one id for
  two domains within an hour for one.
* Old mails and reports go. Folders are counted for the view intake.health and for Prometheus.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from parsedmarc_intake.confined import look_at
from parsedmarc_intake.examine import Verdict, clean
from parsedmarc_intake.places import Places, key, mails, write
from parsedmarc_intake.settings import Settings
from parsedmarc_intake.store import Store, StoreError

log = logging.getLogger(__name__)
#: Seconds that one mail alone may take.
ALONE = 300
#: Seconds after which a run begins no further mail; the next run goes on.
BUDGET = 240
#: A mail that was archived at this distance in seconds before the last look may have been missed by it.
OVERLAP = 120
DAY = 86_400


class DatabaseAway(Exception):
    """The step has to wait for the database."""


class Upkeep:
    """One run."""

    def __init__(self, settings: Settings, store: Store, now: float | None = None) -> None:
        self.settings = settings
        self.store = store
        self.places = Places(settings.home)
        self.now = time.time() if now is None else now
        self.until = time.monotonic() + BUDGET
        self.state_file = self.places.state / "upkeep.json"
        self.state = self._state()

    def _state(self) -> dict[str, Any]:
        begin = {"healed_until": 0.0, "healed": 0, "poisoned": 0, "retired_at": 0.0, "tries": {}}
        try:
            return begin | json.loads(self.state_file.read_text())
        except (OSError, ValueError):
            return begin

    def run(self) -> int:
        """Do all steps; 1 if one failed."""
        failed = 0
        steps: tuple[Callable[[], None], ...] = (
            self.record,
            self.read_invalid,
            self.retry_unsaved,
            self.free_stuck,
            self.heal,
            self.retire,
            self.record,
            self.count,
        )
        for step in steps:
            try:
                step()
            except DatabaseAway:
                log.warning("%s waits for the database.", step.__name__)
            except (OSError, StoreError, subprocess.SubprocessError) as error:
                failed = 1
                log.error("%s failed: %s", step.__name__, str(error).strip())
            write(self.state_file, json.dumps(self.state))
        return failed

    def record(self) -> None:
        """Reasons that the database does not know yet."""
        self.store.record(self.places)

    def need_database(self) -> None:
        """A step that would take an absent database for a mail's fault does not begin."""
        if not self.store.up():
            raise DatabaseAway

    def alone(self, mail: Path, verdict: Verdict) -> tuple[bool, str]:
        """Have parsedmarc take one mail in a process of its own: whether its report is stored now, and else why not.

        Raises DatabaseAway if that cannot be told.
        """

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (self.settings.memory, self.settings.memory))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        command = [str(self.settings.parsedmarc), "-c", str(self.settings.single_config), str(mail)]
        try:
            done = subprocess.run(
                command,
                env={"PATH": "/usr/bin:/bin", "TZ": "UTC", "LANG": "C.UTF-8"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=ALONE,
                preexec_fn=limit,
            )
        except subprocess.TimeoutExpired:
            return False, f"parsedmarc took more than {ALONE} seconds for it."
        said = done.stdout.decode("utf-8", "replace")
        facts = verdict.facts
        stored: bool | None
        if facts is not None and facts.key is not None:
            stored = self.store.has_report(facts.key)
        elif facts is not None and facts.type == "tls" and facts.report_id:
            stored = self.store.has_tls_report(facts.report_id)
        else:
            stored = done.returncode == 0 and not _complaints(said)
        if stored is None or (not stored and not self.store.up()):
            raise DatabaseAway
        return bool(stored), "" if stored else _reason(said, done.returncode)

    def identify(self, mail: Path) -> Verdict:
        """What is known about a mail that was let in already."""
        return look_at(mail, self.settings, authenticate=False)

    def file_away(self, mail: Path, verdict: Verdict) -> None:
        """A mail whose report is stored goes where parsedmarc would have put it."""
        folder = {"tls": "SMTP-TLS", "failure": "Failure"}.get(verdict.facts.type if verdict.facts else "", "Aggregate")
        target = self.places.archive / folder / "cur"
        target.mkdir(parents=True, exist_ok=True)
        mail.rename(target / f"{key(mail)}:2,S")

    def read_invalid(self) -> None:
        """What parsedmarc could not read is set aside with its words."""
        for mail in mails(self.places.archived("Invalid")):
            if time.monotonic() > self.until:
                return
            verdict = self.identify(mail)
            self.need_database()
            stored, reason = self.alone(mail, verdict)
            if stored:
                self.file_away(mail, verdict)
                continue
            self.places.put_aside(mail, replace(verdict, kind="invalid", reason=reason))
            log.warning("%s set aside as invalid: %s", key(mail), reason)

    def retry_unsaved(self) -> None:
        """What parsedmarc could not save is tried alone, so that it holds up nobody, those with few tries first."""
        tries: dict[str, int] = self.state["tries"]
        waiting = mails(self.places.archived("Unsaved"))
        self.state["tries"] = tries = {key(mail): tries.get(key(mail), 0) for mail in waiting}
        for mail in sorted(waiting, key=lambda path: (tries[key(path)], path.name)):
            if time.monotonic() > self.until:
                return
            self.need_database()
            verdict = self.identify(mail)
            stored, reason = self.alone(mail, verdict)
            if stored:
                self.file_away(mail, verdict)
                del tries[key(mail)]
                log.warning("%s is stored after all.", key(mail))
                continue
            tries[key(mail)] += 1
            if tries[key(mail)] >= self.settings.rounds:
                del tries[key(mail)]
                self.poison(mail, verdict, reason)

    def poison(self, mail: Path, verdict: Verdict, reason: str) -> None:
        """Nobody is to try this mail again by himself."""
        self.state["poisoned"] += 1
        self.places.put_aside(mail, replace(verdict, kind="poison", reason=reason))
        log.error("%s set aside as poison: %s", key(mail), reason)

    def free_stuck(self) -> None:
        """A mail that parsedmarc took in hand long ago kills it again and again, or holds it up."""
        limit = self.now - self.settings.stuck_minutes * 60
        for mail in mails([self.places.mailbox / "cur"]):
            if mail.stat().st_ctime > limit:
                continue
            self.need_database()
            verdict = self.identify(mail)
            stored, reason = self.alone(mail, verdict)
            try:
                if stored:
                    self.file_away(mail, verdict)
                else:
                    self.poison(mail, verdict, f"It was in parsedmarc's hands for too long. {reason}")
            except FileNotFoundError:
                continue

    def heal(self) -> None:
        """Store what is archived and yet not stored."""
        begin = self.now
        since = self.state["healed_until"] - OVERLAP
        fresh = [mail for mail in mails(self.places.archived("Aggregate")) if mail.stat().st_ctime >= since]
        for mail in sorted(fresh, key=lambda path: path.stat().st_ctime):
            if time.monotonic() > self.until:
                return
            verdict = self.identify(mail)
            facts = verdict.facts
            # What is older than the retention may have gone already, and rightly.
            if facts is not None and facts.key is not None and facts.key[3] > self.now - self.retention():
                stored = self.store.has_report(facts.key)
                if stored is None:
                    raise DatabaseAway
                if not stored:
                    self.heal_one(mail, verdict)
            self.state["healed_until"] = max(self.state["healed_until"], min(mail.stat().st_ctime, begin))
        self.state["healed_until"] = max(self.state["healed_until"], begin - OVERLAP)

    def retention(self) -> float:
        """Seconds that a report is kept for certain."""
        return (self.settings.keep_reports_months - 1) * 28 * DAY

    def heal_one(self, mail: Path, verdict: Verdict) -> None:
        """Store the report of one archived mail."""
        stored, reason = self.alone(mail, verdict)
        if stored:
            self.state["healed"] += 1
            log.warning("%s was archived but not stored; it is stored now.", key(mail))
        else:
            self.poison(mail, verdict, f"It was archived but its report is not stored. {reason}")

    def retire(self) -> None:
        """Once a day, what is old goes."""
        if self.now - self.state["retired_at"] < DAY:
            return
        settings, places = self.settings, self.places
        aside = [path for name, paths in places.folders().items() if name.startswith("set-aside/") for path in paths]
        for directories, days in (
            (places.archived("Aggregate") + places.archived("SMTP-TLS"), settings.keep_archive_days),
            (places.archived("Failure"), settings.keep_failure_days),
            (aside, settings.keep_set_aside_days),
        ):
            for mail in mails(directories):
                if self.now - mail.stat().st_mtime > days * DAY and self.now - mail.stat().st_ctime > days * DAY:
                    mail.unlink()
        for folder in aside:
            for note in folder.glob("*.json") if folder.is_dir() else ():
                if not note.with_suffix("").exists() and self.now - note.stat().st_mtime > DAY:
                    note.unlink()
        months, days = settings.keep_reports_months, settings.keep_failure_days
        for query, age in (
            ("delete from public.dmarc_aggregate_report where end_date < now() - make_interval(months => %s)", months),
            ("delete from public.smtp_tls_report where end_date < now() - make_interval(months => %s)", months),
            ("delete from public.dmarc_failure_report where stored_at < now() - make_interval(days => %s)", days),
            ("delete from intake.set_aside where at < now() - make_interval(months => %s)", months),
        ):
            if self.store.run(query, (age,)) is None:
                raise DatabaseAway
        self.state["retired_at"] = self.now

    def count(self) -> None:
        """How much lies where."""
        counted = []
        for name, directories in self.places.folders().items():
            sizes, times = [], []
            for mail in mails(directories):
                try:
                    stat = mail.stat()
                except FileNotFoundError:
                    continue
                sizes.append(stat.st_size)
                times.append(stat.st_mtime)
            counted.append((name, len(sizes), sum(sizes), min(times, default=None)))
        self.store.count(counted)
        if self.settings.metrics_file:
            write(self.settings.metrics_file, self.metrics(counted), 0o644)

    def metrics(self, counted: list[tuple[str, int, int, float | None]]) -> str:
        """The text for Prometheus' textfile collector. Labels are our own words only."""
        oldest = [when for name, _, _, when in counted if name in ("incoming", "waiting") and when is not None]
        rows = self.store.run(
            "select extract(epoch from last_stored)::float8, stored_last_day::float8 from intake.health"
        )
        lines = ["# TYPE dmarc_intake_messages gauge"]
        lines += [f'dmarc_intake_messages{{folder="{name}"}} {number}' for name, number, _, _ in counted]
        figures: list[tuple[str, str, float | int | None]] = [
            ("oldest_waiting_seconds", "gauge", max(0.0, self.now - min(oldest)) if oldest else 0),
            ("healed_total", "counter", self.state["healed"]),
            ("poison_total", "counter", self.state["poisoned"]),
            ("unrecorded", "gauge", len(mails_of(self.places.unrecorded))),
            ("database_up", "gauge", int(rows is not None)),
            ("last_stored_timestamp_seconds", "gauge", rows[0][0] if rows else None),
            ("stored_last_day", "gauge", rows[0][1] if rows else None),
        ]
        for name, kind, value in figures:
            if value is not None:
                lines += [f"# TYPE dmarc_intake_{name} {kind}", f"dmarc_intake_{name} {value!r}"]
        return "\n".join(lines) + "\n"


def mails_of(directory: Path) -> list[str]:
    """The notes in a directory."""
    return [name for name in os.listdir(directory) if name.endswith(".json") and not name.startswith(".")]


_COMPLAINT = re.compile(r"(?:ERROR|WARNING|CRITICAL)[^\n]*?[:\]]\s*(.+)$|^(MemoryError.*|\w+Error: .+)$", re.MULTILINE)


#: Where in parsedmarc it was said, the mail's own path and subject: known from elsewhere.
_NOISE = re.compile(
    r"^\w+\.py:\d+:(?:Failed to parse \S+ - )?(?:Output destination failures detected: )?"
    r'(?:Message with subject ".*" is not a valid (?:DMARC )?report: )?',
    re.DOTALL,
)


def _complaints(said: str) -> list[str]:
    return [
        first or second for first, second in _COMPLAINT.findall(said) if "already been saved" not in (first or second)
    ]


def _reason(said: str, code: int) -> str:
    """parsedmarc's own words, the last of them."""
    complaints = _complaints(said)
    if complaints:
        return f"parsedmarc says: {clean(_NOISE.sub('', complaints[-1]))}"
    return f"parsedmarc ended with status {code} and stored nothing. {clean(said[-200:])}".strip()


def run(settings: Settings) -> int:
    """One run of the upkeep; a second one at the same time has nothing to do."""
    places = Places(settings.home)
    places.make()
    with (places.state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        return Upkeep(settings, Store(settings.dsn)).run()
