#!/usr/bin/env python3
"""How long does one post to 10,000 members take, batched and with a copy for each, compared with Postfix alone?

Makes two lists on the list host with the same members at load.example.org, whose mail goes to a sink (198.18.25.111)
for the time of the benchmark, hands a post of 4 kB to Mailman by LMTP, and takes the time until the last member has it:
recipients found, sealed (ARC), signed (DKIM), through Postfix's queue. "Alone" is one message that Postfix, with the
same signing, brings to the same 10,000 recipients.

Exit status: 0 bars met; 1 a bar missed, or somebody got it twice or not at all; 2 the lab is not ready.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchlib import SINK, Agent, BenchError, agent, ends_tidily, new_run, podman

from estatelib.hosts import CommandFailedError
from estatelib.lists import RestError, rest

LIST_HOST = "lab-ml"
DOMAIN = "ml.example.org"
KINDS = {"batched": ("none", 12.0), "personalised": ("individual", 90.0)}  # personalize, bar in seconds
SIZE = 4096
MAIN_CF, KEPT = "/etc/postfix/main.cf", "/etc/postfix/main.cf.before-bench"


class FanoutSink(Agent):
    """The sink in lab-world that counts recipients."""

    def __init__(self) -> None:
        super().__init__("sink", SINK, "25", program="fanout_agent")
        self.hear()

    def ask(self, command: str) -> Any:
        self.tell(command)
        return self.hear()


class ListHost:
    """The list host under test."""

    def run(self, command: str, given: Any, timeout: float = 330) -> Any:
        program = agent("fanout_agent")
        text = podman(LIST_HOST, "python3", "-c", program, command, stdin=json.dumps(given), timeout=timeout)
        return json.loads(text)

    @contextlib.contextmanager
    def lists(self, members: list[str]) -> Iterator[dict[str, str]]:
        """Address of a list of each kind."""
        names = {kind: f"fanout-{kind}" for kind in KINDS}
        try:
            for kind, name in names.items():
                self.forget(name)
                rest("POST", "lists", {"fqdn_listname": f"{name}@{DOMAIN}"})
                settings = {
                    "personalize": KINDS[kind][0],
                    "default_nonmember_action": "accept",
                    "archive_policy": "never",
                    "advertised": False,
                }
                rest("PATCH", f"lists/{name}.{DOMAIN}/config", data=settings)
                for start in range(0, len(members), 2000):
                    rows = [{"email": member} for member in members[start : start + 2000]]
                    rest("POST", f"plugins/estate/lists/{name}.{DOMAIN}/roster", data={"add": rows})
            yield {kind: f"{name}@{DOMAIN}" for kind, name in names.items()}
        finally:
            for name in names.values():
                self.forget(name)

    @staticmethod
    def forget(name: str) -> None:
        """Remove a list; nothing happens when there is none."""
        try:
            rest("DELETE", f"lists/{name}@{DOMAIN}")
        except RestError as error:
            if error.status != 404:
                raise

    @contextlib.contextmanager
    def mail_to_the_sink(self) -> Iterator[None]:
        """Mail for load.example.org goes to the sink; afterwards main.cf is as it was, byte for byte."""
        self.restore()
        sink = f"inline:{{load.example.org=smtp:[{SINK}]}}"
        script = f"""cp -p {MAIN_CF} {KEPT} && postconf -e "transport_maps={sink}, $(postconf -xh transport_maps)" &&
            postfix reload"""
        try:
            podman(LIST_HOST, "sh", "-c", script)
            time.sleep(2)
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        podman(LIST_HOST, "sh", "-c", f"if [ -e {KEPT} ]; then mv {KEPT} {MAIN_CF} && postfix reload; fi")


def seconds_to_all(sink: FanoutSink, begun: float, count: int, patience: float) -> float:
    """Seconds from ``begun`` until so many recipients have it; BenchError when they do not get it."""
    deadline = time.monotonic() + patience
    while (state := sink.ask("count"))["copies"] < count:
        if time.monotonic() > deadline:
            raise BenchError(f"after {patience:.0f} s {state['copies']} of {count} recipients have the message")
        time.sleep(0.5)
    time.sleep(3)
    if doubled := sink.ask("doubled"):
        raise BenchError(f"{len(doubled)} recipients got it more than once, such as {doubled[0][0]}")
    return state["last"] - begun


def measure(host: ListHost, sink: FanoutSink, members: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind by turns."""
    times: dict[str, list[float]] = {"alone": [], **{kind: [] for kind in KINDS}}
    with host.mail_to_the_sink(), host.lists(members) as lists:
        for number in range(rounds):
            for kind, taken in times.items():
                sink.ask("start")
                if kind == "alone":
                    begun = host.run("alone", [f"bench-{new_run()}@{DOMAIN}", members, SIZE])
                else:
                    begun = host.run("post", [lists[kind], SIZE, 1])
                taken.append(seconds_to_all(sink, begun, len(members), 300))
                print(f"  round {number + 1}: {kind} {taken[-1]:.1f} s", flush=True)
    return times


def main() -> int:
    """Measure and print; see the module's text for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    members = [f"fanout{number}@load.example.org" for number in range(options.members)]
    print(f"One post to {options.members} members on {LIST_HOST}, median of {options.rounds} rounds")
    with ends_tidily():
        sink = FanoutSink()
        try:
            times = measure(ListHost(), sink, members, options.rounds)
        finally:
            sink.close()
    alone = statistics.median(times["alone"])
    print(f"Postfix alone    {alone:6.1f} s")
    missed = False
    for kind, (_, bar) in KINDS.items():
        taken = statistics.median(times[kind])
        verdict = "" if options.members != 10_000 else f"   bar {bar:.0f} s: {'met' if taken <= bar else 'MISSED'}"
        missed |= bool(verdict) and taken > bar
        print(f"{kind:16} {taken:6.1f} s   {taken / alone:5.1f} × Postfix alone{verdict}")
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BenchError, CommandFailedError, RestError) as error:
        print(f"list_fanout: {error}", file=sys.stderr)
        sys.exit(1 if "recipients" in str(error) else 2)
