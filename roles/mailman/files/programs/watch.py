"""Watch Mailman's queues: metrics for Prometheus, and an alert file for what needs a person: ``watch.py``.

A timer runs this as core's user. It needs no REST, so it also works when core does not.

* ``/var/lib/mailman3/metrics/mailman.prom``: files and age of every queue, of the archive's spool, which runners run.
* ``/var/lib/mailman3/alerts/<name>``: exists as long as the reason does, and says it. ``shunt``: posts that ended in an
  exception; ``bad``: files that cannot be read; ``runner``: a runner that its master gave up; ``archive``: posts that
  the archive has not taken for ten minutes; ``waiting``: mail that core has not handed on for an hour.

Exit status 0, also with alerts: they are a state, not a failure of this program.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

STATE = Path("/var/lib/mailman3")
RUNNERS = (
    *("archive", "bounces", "command", "digest", "in", "lmtp"),
    *("out", "pipeline", "rest", "retry", "task", "virgin"),
)
SUFFIXES = (".pck", ".bak", ".psv")
ARCHIVE_SECONDS = 600
WAITING_SECONDS = 3600
# What stays there by intent: retry waits for the receiver, the two others for a person.
PATIENT = ("retry", "shunt", "bad")


@dataclass(frozen=True)
class Queue:
    """The files of one queue directory."""

    name: str
    files: int
    oldest: float  # age of the oldest file in seconds

    @classmethod
    def read(cls, directory: Path, now: float) -> Queue:
        """Count what lies in a directory; files that vanish meanwhile were processed."""
        ages = []
        try:
            entries = list(os.scandir(directory))
        except FileNotFoundError:
            entries = []
        for entry in entries:
            if entry.name.endswith(SUFFIXES):
                try:
                    ages.append(now - entry.stat().st_mtime)
                except FileNotFoundError:
                    continue
        return cls(directory.name, len(ages), max(0.0, *ages, 0.0))


def running(proc: Path = Path("/proc")) -> set[str]:
    """Names of the runners that run, whether they call themselves "mailman: runner [out:0:4]" or "--runner=out:0:4".

    That of REST calls itself "gunicorn: master" where setproctitle is installed.
    """
    found = set()
    for path in proc.glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words.startswith("gunicorn: master") and path.stat().st_uid == os.getuid():
            found.add("rest")
        for mark in ("runner [", "--runner="):
            _, hit, rest = words.partition(mark)
            if hit:
                found.add(rest.split(":")[0].split("]")[0].strip())
    return found


def metrics(queues: list[Queue], spool: Queue, runners: set[str]) -> str:
    """The text for Prometheus' textfile collector."""
    lines = ["# HELP mailman_queue_files Files in a queue.", "# TYPE mailman_queue_files gauge"]
    lines += [f'mailman_queue_files{{queue="{queue.name}"}} {queue.files}' for queue in queues]
    lines += ["# HELP mailman_queue_oldest_seconds Age of the oldest.", "# TYPE mailman_queue_oldest_seconds gauge"]
    lines += [f'mailman_queue_oldest_seconds{{queue="{queue.name}"}} {queue.oldest:.0f}' for queue in queues]
    lines += [
        "# HELP mailman_archive_spool_files Posts the archive did not take.",
        "# TYPE mailman_archive_spool_files gauge",
    ]
    lines += [f"mailman_archive_spool_files {spool.files}"]
    lines += ["# HELP mailman_runner_up Whether a runner runs.", "# TYPE mailman_runner_up gauge"]
    lines += [f'mailman_runner_up{{runner="{name}"}} {int(name in runners)}' for name in RUNNERS]
    return "\n".join(lines) + "\n"


def alerts(queues: list[Queue], spool: Queue, runners: set[str]) -> dict[str, str]:
    """What needs a person now: alert name and a sentence."""
    by_name = {queue.name: queue for queue in queues}
    found = {}
    shunt, bad = by_name.get("shunt"), by_name.get("bad")
    if shunt and shunt.files:
        found["shunt"] = (
            f"{shunt.files} posts ended in an exception and were not sent. The reason is in mailman.log at SHUNTING; "
            "`mailman unshunt` sends them once it is gone."
        )
    if bad and bad.files:
        found["bad"] = (
            f"{bad.files} files in {STATE}/queue/bad cannot be processed. `mailman qfile FILE` shows one; "
            "mend or delete it."
        )
    if runners and (missing := [name for name in RUNNERS if name not in runners]):
        found["runner"] = f"These runners do not run: {', '.join(missing)}. Restart mailman3.service; see mailman.log."
    if spool.files and spool.oldest > ARCHIVE_SECONDS:
        found["archive"] = f"{spool.files} posts wait for the archive, the oldest for {spool.oldest / 60:.0f} minutes."
    late = [queue for queue in queues if queue.name not in PATIENT and queue.oldest > WAITING_SECONDS]
    if late:
        found["waiting"] = "Mail waits for more than an hour in: " + ", ".join(queue.name for queue in late)
    return found


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable for the monitoring."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(path)


def main() -> None:
    now = time.time()
    queues = [Queue.read(path, now) for path in sorted((STATE / "queue").glob("*")) if path.is_dir()]
    spool = Queue.read(STATE / "archives/hyperkitty/spool", now)
    runners = running()
    replace(STATE / "metrics/mailman.prom", metrics(queues, spool, runners))
    wanted = alerts(queues, spool, runners)
    for name, text in wanted.items():
        path = STATE / "alerts" / name
        if not path.exists():
            print(f"ALERT {name}: {text}")
        if not path.exists() or path.read_text() != text + "\n":
            replace(path, text + "\n")
    for path in (STATE / "alerts").iterdir():
        if path.name not in wanted:
            path.unlink()
            if not path.name.startswith("."):
                print(f"alert {path.name} is over")


if __name__ == "__main__":
    main()
