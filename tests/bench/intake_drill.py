#!/usr/bin/env python3
"""Good reports in bad company: 500 of them, mixed with a hostile set and the real samples, while PostgreSQL stops.

Everything goes by SMTP to the host's Postfix, as the gateways send it. Meanwhile PostgreSQL is stopped for a while and
started again. In the end every good report has to be in the database, every bad mail where it belongs with a reason in
the database, no unit may have taken more memory than its limit or have been restarted, and storing may not have paused
for long while the database was there. The container is one that the role parsedmarc has set up, such as the role's
scenario's; what the drill stored stays in its database.

Memory is the peak of the unit's control group, or where the kernel has no such figure, that of its processes; what one
look at a mail takes is measured apart. Exit status: 0 all as it has to be; 1 a difference; 2 the drill could not run.
"""

from __future__ import annotations

import argparse
import json
import random
import smtplib
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import report_mails as reports
from report_mails import Case

SAMPLES = Path(__file__).resolve().parents[2] / "molecule/parsedmarc/files/samples"
UNITS = ("parsedmarc", "parsedmarc-intake")
#: Seconds that the database is away, and that storing may pause while it is there.
AWAY = 25
PAUSE = 60
#: Seconds for each mail until the drill is given up: parsedmarc takes one a second.
PATIENCE = 2.0

#: Run inside the container: where is which mail, and what is known about it.
AGENT = r"""
import json, os, re, sys
run, home = sys.argv[1], "/var/lib/parsedmarc"
mark = re.compile(rb"^X-Drill: " + run.encode() + rb"-(\S+)\r?$", re.M)
found = {}
for folder, _, names in os.walk(home):
    for name in names:
        path = os.path.join(folder, name)
        if name.endswith(".json"):
            continue
        try:
            with open(path, "rb") as file:
                match = mark.search(file.read(4096))
        except FileNotFoundError:
            continue
        if match:
            found.setdefault(match.group(1).decode(), []).append(path)
print(json.dumps(found))
"""
#: Run inside the container: the memory of the units' processes, in bytes, and their limits.
MEMORY = r"""
import json, subprocess, sys
answer = {}
for unit in sys.argv[1:]:
    shown = subprocess.run(["systemctl", "show", "-p", "MainPID,ControlGroup,MemoryMax,NRestarts", unit],
                           capture_output=True, text=True).stdout
    known = dict(line.split("=", 1) for line in shown.splitlines())
    try:
        peak = int(open(f"/sys/fs/cgroup{known['ControlGroup']}/memory.peak").read())
    except OSError:
        try:
            status = open(f"/proc/{known['MainPID']}/status").read()
            peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
        except (OSError, IndexError):
            peak = 0
    answer[unit] = {"peak": peak, "limit": int(known["MemoryMax"]), "restarts": int(known["NRestarts"])}
print(json.dumps(answer))
"""
#: Run inside the container with a mail on standard input: what one look at it takes.
LOOK = r"""
import resource, sys, tempfile
sys.path.insert(0, "/usr/local/lib/parsedmarc-intake")
from pathlib import Path
from parsedmarc_intake import confined, settings
with tempfile.NamedTemporaryFile() as file:
    file.write(sys.stdin.buffer.read())
    file.flush()
    confined.look_at(Path(file.name), settings.load(Path("/etc/parsedmarc-intake.conf")))
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


class DrillError(Exception):
    """The drill cannot run; the message says why."""


class Host:
    """The container."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *command: str, stdin: bytes = b"", check: bool = True) -> str:
        """What a command in the container prints."""
        done = subprocess.run(
            ["podman", "exec", "-i", self.name, *command], input=stdin, capture_output=True, timeout=300
        )
        if check and done.returncode:
            raise DrillError(f"{' '.join(command)[:80]}: {done.stderr.decode(errors='replace').strip()[-400:]}")
        return done.stdout.decode()

    def python(self, code: str, *arguments: str, stdin: bytes = b"") -> Any:
        """The JSON that a piece of Python in the container prints."""
        return json.loads(self.run("python3", "-B", "-c", code, *arguments, stdin=stdin))

    def sql(self, query: str) -> list[list[str]]:
        """Rows of a query; none while the database is away."""
        said = self.run(
            "runuser", "-u", "parsedmarc", "--", "psql", "-XAtw", "-F\t", "-ddmarc", "-c", query, check=False
        )
        return [line.split("\t") for line in said.splitlines()]

    def address(self) -> str:
        """Where its Postfix listens."""
        said = subprocess.run(["podman", "inspect", self.name], capture_output=True, text=True)
        if said.returncode:
            raise DrillError(f"there is no container {self.name}: {said.stderr.strip()}")
        networks = json.loads(said.stdout)[0]["NetworkSettings"]["Networks"]
        return next(iter(networks.values()))["IPAddress"]


def load(run: str, count: int) -> tuple[list[Case], list[Case]]:
    """The good reports, and all others."""
    good = []
    for number in range(count):
        name = f"good-{number}"
        records = "".join(reports.record(f"192.0.2.{row}", row + 1) for row in range(number % 20 + 1))
        key = (f"{run}-{name}", "example.org")
        good.append(Case(name, reports.good(key[0], records=records), reports.STORED, key))
    others = [*reports.samples(SAMPLES), *reports.hostile(f"{run}-")]
    return good, others


def send(address: str, run: str, cases: list[Case]) -> None:
    """Hand the mails over, each with its name in a field of its header."""
    smtp = smtplib.SMTP(address, timeout=60)
    for case in cases:
        recipient = "tlsrpt@rua.example.org" if b"tlsrpt@rua" in case.mail else reports.RECIPIENT
        mail = f"X-Drill: {run}-{case.name}\r\n".encode() + case.mail
        for attempt in range(30):
            try:
                smtp.sendmail("bounce@reporter.example.com", [recipient], mail)
                break
            except smtplib.SMTPResponseException as error:
                if error.smtp_code // 100 != 4 or attempt == 29:
                    raise DrillError(f"Postfix does not take {case.name}: {error}") from error
                time.sleep(10)
                smtp.close()
                smtp = smtplib.SMTP(address, timeout=60)
    smtp.quit()


def watch(host: Host, run: str, good: int, total: int) -> tuple[float, dict[str, int], float]:
    """Stop the database on the way, and wait until nothing waits. Longest pause in storing, peaks, seconds."""
    began = last = time.monotonic()
    count, pause, peaks, stopped = 0, 0.0, Counter[str](), False
    while time.monotonic() - began < 120 + total * PATIENCE:
        rows = host.sql(f"select count(*) from dmarc_aggregate_report where report_id like '{run}-%'")
        now = time.monotonic()
        if rows and int(rows[0][0]) > count:
            count, pause, last = int(rows[0][0]), max(pause, now - last), now
        for unit, figures in host.python(MEMORY, *UNITS).items():
            peaks[unit] = max(peaks[unit], figures["peak"])
        if not stopped and count > good // 3:
            print(f"{now - began:4.0f} s: {count} stored; PostgreSQL is stopped for {AWAY} s", flush=True)
            host.run("systemctl", "stop", "postgresql@*.service")
            time.sleep(AWAY)
            host.run("systemctl", "start", "postgresql.service")
            stopped, last = True, time.monotonic()
        waiting = host.run(
            "sh", "-c", "cd /var/lib/parsedmarc && find incoming/new Maildir/new Maildir/cur -type f | wc -l"
        )
        if waiting.strip() == "0" and "is empty" in host.run("postqueue", "-p"):
            return pause, peaks, time.monotonic() - began
        time.sleep(1)
    raise DrillError("mails are still waiting; something stalls")


def settle(host: Host) -> None:
    """Let the upkeep do five rounds, as it does within minutes."""
    for _ in range(6):
        host.run("systemctl", "start", "parsedmarc-upkeep.service", check=False)


def folder_of(path: str) -> str:
    """The name of a place, as intake.folder has it."""
    path = path.removeprefix("/var/lib/parsedmarc/")
    for start, name in (
        ("Maildir/.Archive/Aggregate", reports.STORED),
        ("Maildir/.Archive/SMTP-TLS", reports.TLS_STORED),
        ("Maildir/.Archive/Failure", "archive/failure"),
        ("Maildir/.Archive/", "archive/other"),
        ("Maildir/", "waiting"),
        ("incoming/", "incoming"),
    ):
        if path.startswith(start):
            return name
    return path.rpartition("/")[0]


def compare(host: Host, run: str, cases: list[Case], show_all: bool) -> list[str]:
    """Print where the mails are; what is wrong."""
    found = host.python(AGENT, run)
    notes = {row[0]: row[1] for row in host.sql("select mail, reason from intake.set_aside")}
    stored = {row[0] for row in host.sql("select report_id || ' ' || domain from dmarc_aggregate_report")}
    wrong, table = [], Counter[str]()
    for case in cases:
        paths = found.get(case.name, [])
        where = " and ".join(folder_of(path) for path in paths) or "nowhere"
        table[where] += 1
        reason = notes.get(paths[0].rpartition("/")[2], "") if paths else ""
        if show_all and not case.name.startswith("good-"):
            print(f"  {case.name[:40]:<41}{where:<30}{reason[:110]}")
        if where != case.folder:
            wrong.append(f"{case.name}: {where}, but it belongs to {case.folder}")
        elif where.startswith("set-aside/") and len(reason) < 10:
            wrong.append(f"{case.name}: set aside without a reason in the database")
        if case.report and " ".join(case.report) not in stored:
            wrong.append(f"{case.name}: its report is not in the database")
    print(f"\n{'place':<32}{'mails':>6}")
    for where, number in sorted(table.items()):
        print(f"{where:<32}{number:>6}")
    return wrong


def main(arguments: list[str]) -> int:
    """Run the drill."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--container", default="lab-analytics", help="where the role has been (default: lab-analytics)")
    parser.add_argument("--good", type=int, default=500, help="number of good reports (default: 500)")
    parser.add_argument("--quiet", action="store_true", help="only the sums")
    options = parser.parse_args(arguments)
    run = f"d{int(time.time()):x}"
    host = Host(options.container)
    try:
        address = host.address()
        print("making the mails …", flush=True)
        good, others = load(run, options.good)
        cases = good + others
        random.Random(5).shuffle(cases)
        before = host.python(MEMORY, *UNITS)
        print(f"{len(good)} good reports, {len(others)} others to {options.container} ({address})", flush=True)
        send(address, run, cases)
        pause, peaks, seconds = watch(host, run, len(good), len(cases))
        settle(host)
        wrong = compare(host, run, cases, not options.quiet)
        large = [case for case in others if len(case.mail) > 200_000 or case.name in ("blanks", "signatures")]
        look = max(int(host.run("python3", "-B", "-c", LOOK, stdin=case.mail)) for case in large)
        after = host.python(MEMORY, *UNITS)
    except (DrillError, OSError, subprocess.SubprocessError) as error:
        print(f"drill: {error}", file=sys.stderr)
        return 2
    rows = host.sql(
        "select count(distinct report_id), count(*) from dmarc_aggregate_report "
        f"where report_id like '{run}-good-%'"
    )  # fmt: skip
    saved, all_rows = int(rows[0][0]), int(rows[0][1])
    if (saved, all_rows) != (len(good), len(good)):
        wrong.append(f"{saved} of {len(good)} good reports are stored, in {all_rows} rows")
    if pause > PAUSE:
        wrong.append(f"nothing was stored for {pause:.0f} s while the database was there")
    print(f"\n{'unit':<32}{'peak':>8}{'limit':>9}{'restarts':>10}")
    for unit in UNITS:
        peak, limit = max(peaks[unit], after[unit]["peak"]), after[unit]["limit"]
        peak += look if unit == "parsedmarc-intake" else 0
        restarts = after[unit]["restarts"] - before[unit]["restarts"]
        print(f"{unit:<32}{peak >> 20:>5} MB{limit >> 20:>6} MB{restarts:>10}")
        if peak > limit or restarts:
            wrong.append(f"{unit} took {peak >> 20} MB of {limit >> 20} and was restarted {restarts} times")
    print(f"one look at a mail: up to {look >> 20} MB; longest pause in storing {pause:.0f} s; {seconds:.0f} s in all")
    for line in wrong:
        print(f"WRONG {line}")
    print(f"{'NOT MET' if wrong else 'met'}: {saved} of {len(good)} saved, {len(wrong)} differences")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
