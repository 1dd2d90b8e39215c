#!/usr/bin/env python3
"""Kill the generator of DMARC reports at every step, and its neighbours too, and count: nothing is lost or doubled.

For each step 300 events of 30 domains come from two gateways, every fifth of them twice; the day is closed and its
reports are sent, and the process gets SIGKILL when it enters or leaves the function named (kill_at.py). Then it runs
again, as after a restart. The database and Postfix are killed as a whole while reports are sent, and the service itself
at moments that nobody chose. What arrived is compared with what went in: each domain's report once, with every message.

The host is the scenario's: `molecule converge -s dmarc-reports` makes it.

Exit status: 0 nothing lost, nothing doubled; 1 otherwise; 2 no host.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "molecule/dmarc-reports/tests"))

from world import CONFIG, GATEWAYS, World, days_ago, event, today

DOMAINS = 30
EVENTS = 300
UNSURE = 3  # seconds until a hand-over that was cut off counts as not made (world.py)
DRAINING = 30  # seconds for Postfix to deliver what it took
RANDOM_SECONDS = 20

# where in the command the process dies, and at which time; a report goes to its domain and to one that must be asked
CLOSE = {
    "before the first look": ("call:dmarc_reports.store:known", 1),
    "a day is due": ("return:dmarc_reports.store:known", 1),
    "the day is locked": ("call:dmarc_reports.store:_make", 1),
    "events are read": ("return:dmarc_reports.events:parse_line", 150),
    "the first report is kept": ("return:dmarc_reports.store:_keep", 1),
    "half of the reports are kept": ("return:dmarc_reports.store:_keep", 15),
    "all reports are kept": ("return:dmarc_reports.store:_make", 1),
    "the day is closed": ("return:dmarc_reports.store:close", 1),
}
SEND = {
    "before old hand-overs are looked up": ("call:dmarc_reports.send:recover", 1),
    "a domain was asked": ("return:dmarc_reports.destinations:resolve", 1),
    "half of the domains' words are noted": ("call:dmarc_reports.store:authorised", 15),
    "the mail is made": ("return:dmarc_reports.package:build", 5),
    "the hand-over is announced": ("return:dmarc_reports.store:begin_sending", 5),
    "connected": ("return:smtplib:SMTP.connect", 5),
    "recipient taken": ("return:smtplib:SMTP.rcpt", 5),
    "before the mail": ("call:smtplib:SMTP.data", 5),
    "the mail is given, no answer yet": ("call:smtplib:SMTP.getreply", 34),
    "the answer is read": ("return:smtplib:SMTP.data", 5),
    "before the answer is noted": ("call:dmarc_reports.store:handed", 5),
    "the answer is noted": ("return:dmarc_reports.store:handed", 5),
}
RECOVER = {
    "the cut-off hand-over is found": ("return:dmarc_reports.store:cut_off", 1),
    "the journal is read": ("return:dmarc_reports.handover:queue_manager_lines", 1),
    "it is noted as handed over": ("return:dmarc_reports.store:handed", 1),
}


@dataclass(frozen=True)
class Outcome:
    """What one kill came to."""

    what: str
    kills: int
    reports: int
    messages: int
    missing: int
    doubled: int
    open: int
    """Deliveries that are neither handed over nor settled."""
    seconds: float

    @property
    def passed(self) -> bool:
        right = (self.reports, self.messages) == (2 * DOMAINS, 2 * EVENTS)
        return self.kills > 0 and right and not (self.missing or self.doubled or self.open)


def hand_in(world: World) -> list[str]:
    """A day's events of both gateways, of domains that no drill had before: the journal remembers return paths.

    What is handed in again counts once.
    """
    world.empty()
    run = uuid.uuid4().hex[:8]
    domains = [f"d{number}.{run}.example.com" for number in range(DOMAINS)]
    for number, gateway in enumerate(GATEWAYS):
        events = []
        for index in range(EVENTS // 2):
            name = domains[index % DOMAINS]
            tags = f"p=none; rua=mailto:dmarc@{name},mailto:all@all.example.net"
            events.append(event(days_ago(1), name, tags, gateway=gateway, source_ip=f"192.0.{number + 2}.{index}"))
        world.hand_in(events, gateway)
        world.hand_in(events[::5], gateway)
    world.complete(today())
    return domains


def finish(world: World) -> None:
    """What a restarted service does, until nothing is open any more."""
    for _ in range(10):
        world.reports("close")
        world.reports("send")
        if world.one("SELECT count(*) FROM dmarc_reports.delivery WHERE state IN ('waiting', 'sending')") == "0":
            return
        time.sleep(UNSURE)
        world.sql("UPDATE dmarc_reports.delivery SET due_at = now() WHERE state = 'waiting'")


def counted(world: World, what: str, domains: list[str], kills: int, began: float) -> Outcome:
    """Compare what arrived with what went in."""
    end = time.monotonic() + DRAINING
    while world.ask("postqueue -j").strip() and time.monotonic() < end:
        time.sleep(0.5)
    mails = world.mails()
    copies = Counter((mail.domain, mail.envelope_to.partition("@")[0]) for mail in mails)
    wanted = {(name, local) for name in domains for local in ("dmarc", "all")}
    open_ones = world.one("SELECT count(*) FROM dmarc_reports.delivery WHERE state IN ('waiting', 'sending')")
    return Outcome(
        what=what, kills=kills, reports=len(mails), messages=sum(mail.messages for mail in mails),
        missing=len(wanted - set(copies)), doubled=sum(copies.values()) - len(copies), open=int(open_ones),
        seconds=time.monotonic() - began,
    )  # fmt: skip


def at_step(world: World, what: str, prepare: tuple[str, ...], command: str, step: tuple[str, int]) -> Outcome:
    """Kill one command at one step."""
    began = time.monotonic()
    domains = hand_in(world)
    for earlier in prepare:
        world.reports(earlier)
    if what in RECOVER:
        world.killed_at("call:dmarc_reports.store:handed", "send", 5)
    where, count = step
    killed = world.killed_at(where, command, count)
    finish(world)
    return counted(world, what, domains, int(killed), began)


def neighbour(world: World, what: str, unit: str) -> Outcome:
    """Kill a daemon that the sender works with, three times while it sends."""
    began = time.monotonic()
    domains = hand_in(world)
    world.reports("close")
    world.configure(per_minute=600)
    back = (
        f"for _ in $(seq 60); do systemctl is-active -q {unit} || systemctl restart {unit}; "
        "psql -X -q -U postgres -d dmarc -c 'SELECT 1' >/dev/null 2>&1 && break; sleep 0.5; done"
    )
    send = f"dmarc-reports --config {CONFIG} send >/dev/null 2>&1"
    kills = 0
    for _ in range(3):
        kills += world.run(f"{send} & sleep 1.5; systemctl kill -s KILL {unit}; wait; {back}").returncode == 0
        world.sql("UPDATE dmarc_reports.delivery SET due_at = now() WHERE state = 'waiting'")
    world.configure()
    finish(world)
    return counted(world, what, domains, kills, began)


def at_random(world: World) -> Outcome:
    """Kill the service again and again."""
    began = time.monotonic()
    domains = hand_in(world)
    world.configure(per_minute=300)
    unit = "/run/systemd/system/dmarc-reports.service.d/drill.conf"
    world.ask(
        f"mkdir -p $(dirname {unit}); printf '[Service]\\nExecStart=\\nExecStart=/usr/bin/python3 -BP -m dmarc_reports "
        f"--config {CONFIG} serve\\nRestartSec=100ms\\n' > {unit}; systemctl daemon-reload; "
        "systemctl start dmarc-reports"
    )
    kills = 0
    try:
        end = time.monotonic() + RANDOM_SECONDS
        while time.monotonic() < end:
            time.sleep(random.uniform(0.1, 1.5))
            kills += world.run("systemctl kill -s KILL dmarc-reports").returncode == 0
    finally:
        world.ask(f"systemctl stop dmarc-reports; rm -f {unit}; systemctl daemon-reload")
    world.configure()
    time.sleep(UNSURE)
    finish(world)
    return counted(world, "the service, at random", domains, kills, began)


def drills(world: World) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """All of them by name, in order."""
    for earlier, command, steps in (((), "close", CLOSE), (("close",), "send", SEND), (("close",), "send", RECOVER)):
        for what, step in steps.items():
            yield what, partial(at_step, world, what, earlier, command, step)
    for what, unit in (("PostgreSQL, while sending", "postgresql@17-main"), ("Postfix, while sending", "postfix")):
        yield what, partial(neighbour, world, what, unit)
    yield "the service, at random", partial(at_random, world)


def show(outcome: Outcome) -> None:
    """Print one drill's row."""
    print(
        f"{outcome.what:<40}{outcome.kills:>6}{outcome.reports:>9}{outcome.messages:>10}{outcome.missing:>9}"
        f"{outcome.doubled:>9}{outcome.open:>6}{outcome.seconds:>6.0f} s  {'ok' if outcome.passed else 'FAILED'}",
        flush=True,
    )


def main() -> int:
    """Run the drills."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="drills whose name has this in it")
    options = parser.parse_args()
    world = World()
    try:
        ready = world.run("test -f /etc/dmarc_reports/reports.toml && systemctl stop dmarc-reports").returncode == 0
    except subprocess.TimeoutExpired:
        ready = False
    if not ready:
        print("drill: no host; molecule converge -s dmarc-reports makes it", file=sys.stderr)
        return 2
    print(f"{'killed':<40}{'kills':>6}{'reports':>9}{'messages':>10}{'missing':>9}{'doubled':>9}{'open':>6}{'time':>8}")
    failed = done = 0
    try:
        for what, drill in drills(world):
            if options.only in what:
                outcome = drill()
                show(outcome)
                done += 1
                failed += not outcome.passed
    finally:
        world.empty()
        world.ask("systemctl start dmarc-reports")
    print(
        f"{'NOT MET' if failed else 'met'}: {2 * DOMAINS} reports with {2 * EVENTS} messages arrived once in "
        f"{done - failed} of {done} drills"
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
