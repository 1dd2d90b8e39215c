#!/usr/bin/env python3
"""The analytics host away for a day: a gateway's DMARC events wait on disk up to their bound, then all arrive once.

In the container of the scenario (``make roles ROLES=dmarc-events``), a gateway and the database in one: PostgreSQL is
stopped, 24 hours of events are written by the milter's own code until it drops some because the directory is full, and
the hand-over is tried as its timer would. Then PostgreSQL comes back; the first hand-overs are killed (SIGKILL) at
work, once together with the database. What was written is compared with what is stored.

Exit status: 0 no event that was written is lost or doubled; 1 otherwise; 2 no container.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

from benchlib import BenchError, ends_tidily, podman

CONTAINER = "lab-role-dmarc-events"
SPOOL = "/var/spool/estate-dmarc"
UNIT = "dmarc-events.service"
HOURS = 24
KILLS = 4
FINISHED = 900  # seconds for the last hand-over
# Runs the unit and prints its result, the highest memory of its process in kB, and the seconds it took.
WATCH = f"""
import re, subprocess, time
begin, peak = time.monotonic(), 0
start = subprocess.Popen(["systemctl", "start", "{UNIT}"], stderr=subprocess.DEVNULL)
while start.poll() is None:
    process = subprocess.check_output(["systemctl", "show", "-p", "MainPID", "--value", "{UNIT}"], text=True).strip()
    try:
        found = re.search(r"VmHWM:\\s+(\\d+)", open(f"/proc/{{process}}/status").read())
        peak = max(peak, int(found[1])) if found else peak
    except OSError:
        pass
    time.sleep(0.2)
seconds = time.monotonic() - begin
result = subprocess.check_output(["systemctl", "show", "-p", "Result", "--value", "{UNIT}"], text=True).strip()
print(result, peak, f"{{seconds:.1f}}")
"""


def shell(command: str, timeout: float = 60, check: bool = True) -> str:
    return podman(CONTAINER, "bash", "-c", command, timeout=timeout, check=check).strip()


def sql(text: str, timeout: float = 120) -> str:
    return podman(
        CONTAINER, "psql", "-XAtq", "-U", "postgres", "-d", "dmarc", "-c", text, timeout=timeout, check=True
    ).strip()


def server(command: str) -> None:
    """Start or stop PostgreSQL, and wait until it answers."""
    unit = shell("systemctl list-units --plain --no-legend --all 'postgresql@*' | cut -d ' ' -f 1")
    shell(f"systemctl {command} {unit}")
    for _attempt in range(60):
        if command == "stop" or shell("psql -XAtq -U postgres -d dmarc -c 'SELECT 1' 2> /dev/null", check=False) == "1":
            return
        time.sleep(0.5)
    raise BenchError("PostgreSQL does not answer")


@dataclass(frozen=True)
class Run:
    """One hand-over."""

    result: str
    memory: int
    """The process's highest, kB."""
    seconds: float


def hand_over() -> Run:
    """Run the unit to its end."""
    shell("systemctl reset-failed", check=False)
    result, memory, seconds = podman(CONTAINER, "python3", "-c", WATCH, timeout=FINISHED).split()
    return Run(result, int(memory), float(seconds))


def waiting() -> tuple[int, int]:
    """Files and octets in the directory."""
    files, octets = shell(f"find {SPOOL} -type f -printf '%s\\n' | awk '{{n++; s+=$1}} END {{print n+0, s+0}}'").split()
    return int(files), int(octets)


def row(step: str, events: int, note: str, run: Run | None = None) -> None:
    """One line of the table."""
    files, octets = waiting()
    print(
        f"{step:<24}{events:>9}{files:>7}{octets / 1e6:>8.1f}  "
        + (f"{run.result:<10}{run.seconds:>7.1f}{run.memory / 1024:>7.0f}  " if run else " " * 26)
        + note
    )
    sys.stdout.flush()


def drill(events: int) -> bool:
    """A day without the database, then the day after; returns whether everything is there once."""
    shell("systemctl stop dmarc-events.timer")
    shell(f"rm -rf {SPOOL}/* /var/lib/dmarc_events/set-aside/*")
    sql("TRUNCATE dmarc_reports.event, dmarc_reports.set_aside, dmarc_reports.watermark")
    server("stop")
    written = offered = 0
    print(f"{'':24}{'events':>9}{'files':>7}{'MB':>8}  {'unit':<10}{'s':>7}{'MB':>7}")
    for hour in range(HOURS):
        each = events // HOURS
        said = shell(
            f"cd /usr/local/share && runuser -u estate-arc -- python3 -B write_events.py {HOURS + 1 - hour} {each}", 300
        )
        written, offered = written + int(said.split()[0]), offered + each
        if hour % 8 == 7:
            run = hand_over()
            row(f"hour {hour + 1}, away", written, f"dropped by the bound: {offered - written}", run)
    files = f'grep -oh \'"id":"[0-9a-f-]*"\' {SPOOL}/* | cut -d \'"\' -f 4 | LC_ALL=C sort'
    expected = shell(f"{files} | md5sum; {files} | uniq | wc -l", 120).split()
    server("start")
    for number in range(KILLS):
        shell(f"systemctl reset-failed; systemctl start --no-block {UNIT}", check=False)
        time.sleep(2 + number)
        if number == KILLS - 1:
            shell("systemctl kill -s KILL 'postgresql@*'")
        shell(f"systemctl kill -s KILL {UNIT}", check=False)
        time.sleep(1)
        if number == KILLS - 1:
            server("start")
        row(f"killed after {2 + number} s", int(sql("SELECT count(*) FROM dmarc_reports.event")), "")
    before = int(sql("SELECT count(*) FROM dmarc_reports.event"))
    run = hand_over()
    stored = int(sql("SELECT count(*) FROM dmarc_reports.event"))
    row("handed over", stored, f"{(stored - before) / run.seconds:.0f} new events/s", run)
    again = hand_over()
    row("once more", int(sql("SELECT count(*) FROM dmarc_reports.event")), "", again)
    digest = shell("psql -XAtq -U postgres -d dmarc -c 'SELECT id FROM dmarc_reports.event ORDER BY id' | md5sum", 120)
    aside = int(sql("SELECT count(*) FROM dmarc_reports.set_aside"))
    right = (
        digest.split()[0] == expected[0]
        and stored == written == int(expected[2])
        and waiting() == (0, 0)
        and not aside
        and run.result == again.result == "success"
    )
    print(
        f"{'met' if right else 'NOT MET'}: {written} events written, {stored} stored, lost {max(0, written - stored)}, "
        f"set aside {aside}; {offered - written} were dropped at the directory's bound"
    )
    return right


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=380_000, help="in the day; the default meets the bound of 256 MB")
    options = parser.parse_args(arguments)
    try:
        with ends_tidily():
            return int(not drill(options.events))
    except BenchError as error:
        print(f"drill: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
