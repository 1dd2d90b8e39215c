#!/usr/bin/env python3
"""Kill -9 every daemon of a gateway under load and count the messages: an accepted message is never lost.

For each daemon in turn, 2,000 messages go to mail-gw1 at full speed, one in twenty of them to a forwarded address so
that SRS takes part; when a third is accepted the daemon's main process (or a worker) gets SIGKILL. systemd has to bring
it back. The sender tries again after 4xx and cut connections, as a mail server does. Then the queue must empty itself,
and what the sender was promised (a 250) is compared with what arrived at the sink and in the forward's mailbox.

Copies are told apart by queue id: "accepted twice" means that the answer 250 was lost with the connection, so that
the sender rightly sent again; "delivered twice" that the gateway's delivery agent was killed between the receiver's
250 and its note of it. SMTP cannot avoid either (RFC 1047); losing mail it can.

Exit status: 0 nothing lost, everything accepted in the end, every daemon back by itself; 1 otherwise; 2 no lab.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchlib import (
    GATEWAY,
    HERE,
    WORLD,
    Account,
    BenchError,
    Load,
    Sink,
    ends_tidily,
    gateway,
    new_run,
    podman,
    queue_length,
    require_lab,
)
from load_agent import describe

FORWARD = "forwarded@example.org"
FORWARD_MAILBOX = HERE.parents[1] / ".lab/mailboxes/world/example.com/user/Maildir"
RECIPIENTS = [FORWARD, *(f"load{number}@load.example.org" for number in range(19))]
SENDING = 90  # seconds until the sender gives up
DRAINING = 60  # seconds for the queue to empty after that
BACK = 30  # seconds for systemd to bring a daemon back
WHOLE = 720  # seconds after which no further daemon is begun


@dataclass(frozen=True)
class Victim:
    """A daemon: its unit (a pattern of systemctl), a port that it answers on, and which of its processes is killed."""

    name: str
    unit: str
    port: int
    process: str = "main"


VICTIMS = (
    Victim("postfix", "postfix*.service", 25),
    Victim("rspamd", "rspamd.service", 11332),
    Victim("rspamd-worker", "rspamd.service", 11332, "worker"),
    Victim("arc-verify", "arc-verify.service", 8895),
    Victim("arc-verify-worker", "arc-verify.service", 8895, "worker"),
    Victim("arc-seal", "arc-seal.service", 8896),
    Victim("arc-seal-worker", "arc-seal.service", 8896, "worker"),
    Victim("valkey", "*-server@rspamd.service", 6379),
    Victim("postsrsd", "postsrsd.service", 10001),
)


@dataclass(frozen=True)
class Outcome:
    """One daemon's drill."""

    victim: Victim
    killed: dict[str, Any]
    account: Account
    left_in_queue: int
    seconds: float

    @property
    def passed(self) -> bool:
        account = self.account
        return self.killed["back"] is not None and not (account.lost or account.never_accepted or self.left_in_queue)


def forwarded(run: str, remove: bool = False) -> list[dict[str, Any]]:
    """The run's messages in the forward's mailbox, junk folder included; it is cleared of them when ``remove``."""
    found = []
    for path in FORWARD_MAILBOX.glob("**/new/*"):
        arrival = describe(path.read_bytes())
        if arrival["id"].startswith(f"{run}-"):
            found.append(arrival)
            if remove:
                path.unlink()
    return found


def drain(run: str) -> int:
    """Wait until nothing of a run is queued here or at the forward's receiver; returns what is left here.

    Both are asked to try now: a deferred message would else wait for minutes, which proves nothing more.
    """
    end = time.monotonic() + DRAINING
    while (left := queue_length(run)) + queue_length(run, WORLD) and time.monotonic() < end:
        for container in (GATEWAY, WORLD):
            podman(container, "postqueue", "-f", check=False)
        time.sleep(2)
    time.sleep(2)  # the last delivery, and a second copy
    return left


def drill(victim: Victim, sink: Sink, count: int) -> Outcome:
    """Send, kill, wait, count."""
    run, started = new_run(), time.monotonic()
    try:
        with Load(run, count, RECIPIENTS, seconds=SENDING) as load:
            load.advance(1 / 3)
            if load.results:
                raise BenchError(f"the sender finished before {victim.name} could be killed")
            killed = gateway("kill", victim.unit, str(victim.port), victim.process, str(BACK), timeout=BACK + 30)
            if "error" in killed:
                raise BenchError(killed["error"])
            if killed["back"] is None:
                podman(GATEWAY, "systemctl", "reset-failed", killed["unit"], check=False)
                podman(GATEWAY, "systemctl", "restart", killed["unit"])
            load.advance()
        left = drain(run)
        arrivals = [arrival for arrival in sink.status("report")["arrivals"] if arrival["id"].startswith(f"{run}-")]
        account = Account.balance(load.results["results"], arrivals + forwarded(run))
    finally:
        forwarded(run, remove=True)
    return Outcome(victim, killed, account, left, time.monotonic() - started)


def show(outcome: Outcome) -> None:
    """Print one daemon's row, and what explains it."""
    account, killed = outcome.account, outcome.killed
    back = f"{killed['back']:.1f} s" if killed["back"] is not None else "NEVER"
    print(
        f"{outcome.victim.name:<19}{killed['victim']:<18}{back:>7}{account.accepted:>10}{len(account.lost):>6}"
        f"{account.accepted_twice:>16}{account.delivered_twice:>16}{sum(account.refusals.values()):>9}"
        f"{outcome.seconds:>6.0f} s  {'ok' if outcome.passed else 'FAILED'}"
    )
    if killed["back"] is None:
        print(f"    {killed['unit']} (Restart={killed['restart']}) did not come back by itself within {BACK} s")
    for label, wrong in (("lost", account.lost), ("never accepted", account.never_accepted)):
        if wrong:
            print(f"    {label}: {', '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''} ({len(wrong)})")
    if outcome.left_in_queue:
        print(f"    {outcome.left_in_queue} still in the queue after {DRAINING} s")
    if account.doubled:
        print(
            f"    doubles: {len(account.doubled)}; connections cut after the content, before the answer: {account.cuts}"
        )
    for reply, times in account.refusals.most_common(3):
        print(f"    {times} × {reply}")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    names = [victim.name for victim in VICTIMS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("daemons", nargs="*", metavar="DAEMON", help=f"only these: {', '.join(names)}")
    parser.add_argument("--messages", type=int, default=2000, help="messages for each daemon (default: 2000)")
    options = parser.parse_args(arguments)
    unknown = set(options.daemons) - set(names)
    if unknown:
        parser.error(f"no such daemon: {', '.join(sorted(unknown))}")
    chosen = [victim for victim in VICTIMS if not options.daemons or victim.name in options.daemons]
    outcomes: list[Outcome] = []
    end = time.monotonic() + WHOLE
    try:
        require_lab()
        print(f"load average before: {os.getloadavg()[0]:.2f}")
        print(
            f"{'killed':<19}{'process':<18}{'back':>7}{'accepted':>10}{'lost':>6}"
            f"{'accepted twice':>16}{'delivered twice':>16}{'retries':>9}{'time':>8}"
        )
        with ends_tidily(), Sink() as sink:
            for victim in chosen:
                if time.monotonic() > end:
                    raise BenchError(f"{WHOLE} s are over before the turn of {victim.name}")
                outcomes.append(drill(victim, sink, options.messages))
                show(outcomes[-1])
    except BenchError as error:
        print(f"drill: {error}", file=sys.stderr)
        return 2
    failed = [outcome for outcome in outcomes if not outcome.passed]
    lost = sum(len(outcome.account.lost) for outcome in outcomes)
    doubled = sum(len(outcome.account.doubled) for outcome in outcomes)
    print(
        f"{'NOT MET' if failed else 'met'}: {lost} accepted messages lost (bar 0), {doubled} doubled, "
        f"{len(outcomes) - len(failed)} of {len(outcomes)} daemons passed"
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
