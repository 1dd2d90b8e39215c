#!/usr/bin/env python3
"""How fast is one gateway with everything on, compared with the same Postfix without its milters?

Sends 2,000 different messages of 4 kB from load.example.net (198.18.25.110) through mail-gw1 to a sink
(198.18.25.111), a session per message and 20 at a time as ``smtp-source -s 20`` does, by turns with the milters off
("bare") and on ("full"), and takes the medians. ``smtp-source`` itself is not used: it can neither choose a source
address nor make messages that differ, and a filter that sees one message 2,000 times is not being measured. Everything
but the milters is on in both: postscreen, recipient checks, DNS, TLS offered, queue on disk.

Exit status: 0 bars met; 1 ratio at the sink below 0.25, or a message lost or doubled; 2 the lab is not ready.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchlib import (
    GATEWAY,
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

BAR = 0.25
MAIN_CF, KEPT = "/etc/postfix/main.cf", "/etc/postfix/main.cf.before-bench"
RECIPIENTS = [f"load{number}@load.example.org" for number in range(50)]
GROUPS = {"rspamd": "rspamd", "valkey": "valkey", "redis": "valkey", "arc": "arc", "postfix": "postfix"}


@dataclass(frozen=True)
class Round:
    """One measured run."""

    kind: str
    accepted_rate: float  # messages a second, first connection to last 250
    sink_rate: float  # messages a second, first connection to last arrival
    account: Account
    cpu: dict[str, float]  # processor seconds by group
    seconds: float

    @property
    def own_milliseconds(self) -> float:
        """Processor time of a message without what the rest of the machine did meanwhile: steadier than the rates."""
        return 1000 * (sum(self.cpu.values()) - self.cpu["others"]) / self.account.accepted


def milters() -> str:
    return podman(GATEWAY, "postconf", "-h", "smtpd_milters").strip()


def reload_postfix() -> None:
    podman(GATEWAY, "postfix", "reload")
    time.sleep(1)


def restore() -> None:
    """Put main.cf back as it was, byte for byte, when a kept copy lies there."""
    script = f"if [ -e {KEPT} ]; then mv {KEPT} {MAIN_CF} && postfix reload; fi"
    podman(GATEWAY, "sh", "-c", script)


@contextlib.contextmanager
def milters_off() -> Iterator[None]:
    """The gateway without milters inside the block, exactly as before after it."""
    before, digest = milters(), podman(GATEWAY, "sha256sum", MAIN_CF)
    try:
        podman(GATEWAY, "cp", "--preserve=all", MAIN_CF, KEPT)
        podman(GATEWAY, "postconf", "-e", "smtpd_milters=")
        reload_postfix()
        yield
    finally:
        restore()
        if milters() != before or podman(GATEWAY, "sha256sum", MAIN_CF) != digest:
            raise BenchError(f"{GATEWAY}: main.cf is not as it was; run `make site` to repair it")
        time.sleep(1)


def machine_cpu() -> float:
    """Busy processor seconds of the whole machine."""
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def measure(kind: str, sink: Sink, count: int) -> Round:
    """Send ``count`` messages and account for each."""
    run = new_run()
    load_before = os.getloadavg()[0]
    gateway_before, sink_before, machine_before = gateway("cpu"), sink.status(), machine_cpu()
    with Load(run, count, RECIPIENTS) as load:
        load.advance()
    waited = time.monotonic() + 60
    while sink.status()["count"] - sink_before["count"] < count and queue_length(run) and time.monotonic() < waited:
        time.sleep(0.5)
    machine_used = machine_cpu() - machine_before
    gateway_after, sink_after = gateway("cpu"), sink.status()
    time.sleep(2)  # a second copy would come now
    results = load.results["results"]
    arrivals = [arrival for arrival in sink.status("report")["arrivals"] if arrival["id"].startswith(f"{run}-")]
    account = Account.balance(results, arrivals)
    if not account.accepted or not arrivals:
        raise BenchError(f"no message came through: {account.refusals.most_common(3)}")
    through = sum(arrival["sealed"] and arrival["judged"] for arrival in arrivals)
    if through != (len(arrivals) if kind == "full" else 0):
        raise BenchError(f"{kind} run: {through} of {len(arrivals)} messages went through the milters")
    cpu: dict[str, float] = dict.fromkeys((*GROUPS.values(), "rest of gateway"), 0.0)
    for unit, seconds in gateway_after.items():
        group = next((group for part, group in GROUPS.items() if part in unit), "rest of gateway")
        cpu[group] += seconds - gateway_before.get(unit, 0.0)
    cpu["load and sink"] = load.results["cpu"] + sink_after["cpu"] - sink_before["cpu"]
    cpu["others"] = max(0.0, machine_used - sum(cpu.values()))
    started = load.results["started"]
    end = max(arrival["time"] for arrival in arrivals)
    accepted_at = [result["accepted"] for result in results if result["accepted"]]
    measured = Round(
        kind,
        account.accepted / (max(accepted_at) - started),
        len({arrival["id"] for arrival in arrivals}) / (end - started),
        account,
        cpu,
        end - started,
    )
    show(measured, load_before)
    return measured


def show(measured: Round, load: float) -> None:
    """Print one run."""
    account = measured.account
    print(
        f"{measured.kind}: accepted {measured.accepted_rate:6.1f}/s  at the sink {measured.sink_rate:6.1f}/s  "
        f"lost {len(account.lost)}  doubled {len(account.doubled)}  never accepted {len(account.never_accepted)}  "
        f"({measured.seconds:.1f} s, load average before {load:.2f})"
    )
    shares = sorted(measured.cpu.items(), key=lambda item: -item[1])
    milliseconds = "  ".join(
        f"{name} {1000 * seconds / account.accepted:.1f}" for name, seconds in shares if seconds >= 0.01
    )
    print(f"      processor ms per message: {milliseconds}")
    for reply, times in account.refusals.most_common(3):
        print(f"      {times} × {reply}")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=2000, help="messages in a run (default: 2000)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--only", choices=("bare", "full"), help="no comparison, for tuning; always exit 0")
    options = parser.parse_args(arguments)
    rounds: list[Round] = []
    try:
        require_lab()
        with ends_tidily():
            restore()  # what a killed run has left
            if not milters():
                raise BenchError(f"{GATEWAY} has no milters: run `make site` first")
            with Sink() as sink:
                with Load(new_run(), 200, RECIPIENTS, pause=2) as warm_up:  # postscreen's and the resolver's caches
                    warm_up.advance()
                for _ in range(options.rounds):
                    if options.only != "full":
                        with milters_off():
                            rounds.append(measure("bare", sink, options.messages))
                    if options.only != "bare":
                        rounds.append(measure("full", sink, options.messages))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if options.only:
        return 0
    return verdict(rounds)


def verdict(rounds: list[Round]) -> int:
    """Print the medians and say whether the bars are met."""
    table: tuple[tuple[str, Callable[[Round], float]], ...] = (
        ("accepted, messages a second", lambda measured: measured.accepted_rate),
        ("at the sink, messages a second", lambda measured: measured.sink_rate),
        ("gateway and load, processor ms a message", lambda measured: measured.own_milliseconds),
    )
    ratios: list[float] = []
    print(f"\n{'medians':<42}{'bare':>8}{'full':>8}{'ratio':>8}")
    for label, value in table:
        bare, full = (
            statistics.median(value(measured) for measured in rounds if measured.kind == kind)
            for kind in ("bare", "full")
        )
        print(f"{label:<42}{bare:>8.1f}{full:>8.1f}{full / bare:>8.2f}")
        ratios.append(full / bare)
    ratio = ratios[1]  # what has passed through, not only in
    wrong = sum(measured.account.wrong for measured in rounds)
    met = ratio >= BAR and not wrong
    print(
        f"{'met' if met else 'NOT MET'}: ratio at the sink {ratio:.2f} (bar {BAR}); lost, doubled or never accepted: "
        f"{wrong} of {sum(measured.account.sent for measured in rounds)} (bar 0)"
    )
    return int(not met)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
