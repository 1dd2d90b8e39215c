#!/usr/bin/env python3
"""How long do 100 lists as data and 10,000 members by CSV take, for the first time and when nothing is to do?

Measured is what an operator waits for: the whole of ``playbooks/lists.yml`` and ``playbooks/lists_members.yml`` on the
lab's list host, with validation and connection. The lists are those of the site and 100 more, which are removed at
the end. What stands after ``--`` is given to ansible-playbook.

Exit status: 0 bars met; 1 a bar missed, or a second run that changed something; 2 a run failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
INVENTORY = REPOSITORY / "inventory/lab"
DOMAIN = "ml.example.org"
PROFILES = ("discussion", "announce", "transparent", "private")
#: Seconds: first and second run.
LIST_BARS, MEMBER_BARS = (60.0, 10.0), (60.0, 5.0)


class RunFailed(Exception):
    """ansible-playbook ended with an error."""


@dataclass(frozen=True)
class Run:
    """One run of a playbook."""

    seconds: float
    changed: int


def playbook(name: str, *options: str) -> Run:
    """Run a playbook on the lab; seconds on the wall and the number of tasks that changed something."""
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(INVENTORY), *options]
    begun = time.monotonic()
    done = subprocess.run(
        [*command, str(REPOSITORY / "playbooks" / name)],
        env=os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    seconds = time.monotonic() - begun
    if done.returncode:
        raise RunFailed(f"{name} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return Run(seconds, sum(map(int, re.findall(r" changed=(\d+)", done.stdout))))


def bench_lists(count: int) -> dict[str, dict[str, Any]]:
    """Lists with everything that a list can have."""
    lists: dict[str, dict[str, Any]] = {}
    for number in range(count):
        profile = PROFILES[number % len(PROFILES)]
        fields: dict[str, Any] = {
            "profile": profile,
            "display_name": f"Bench {number}",
            "description": f"List {number} of the benchmark",
            "owners": ["olga@example.org", "alice@example.org"],
            "moderators": ["bob@example.org"],
            "bans": ["spam@example.com", r"^.*@bad\.example$"],
            "header_matches": [{"header": "x-spam-status", "pattern": "^yes", "action": "hold"}],
            "aliases": [f"old-bench-{number}@example.org"],
            "settings": {"max_message_size": 2048},
        }
        if profile == "private":
            fields["member_domains"] = ["example.org", "sfc.example.org"]
        if profile == "discussion":
            fields["templates"] = {"footer": {"en": f"-- \nList {number}\n", "ja": f"-- \n一覧 {number}\n"}}
        lists[f"bench-{number:03d}@{DOMAIN}"] = fields
    return lists


def report(what: str, runs: tuple[Run, Run], bars: tuple[float, float]) -> bool:
    """Print both runs; whether the bars are met."""
    met = runs[0].seconds <= bars[0] and runs[1].seconds <= bars[1] and runs[1].changed == 0 and runs[0].changed > 0
    print(
        f"{what}: first {runs[0].seconds:.1f} s (bar {bars[0]:.0f}), second {runs[1].seconds:.1f} s (bar {bars[1]:.0f})"
        f" with {runs[1].changed} changed: {'met' if met else 'MISSED'}",
        flush=True,
    )
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lists", type=int, default=100)
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("ansible", nargs="*", help="options for ansible-playbook, after --")
    given = parser.parse_args()
    site = yaml.safe_load((INVENTORY / "group_vars/all/lists.yml").read_text(encoding="utf-8"))["estate_lists"]
    more = bench_lists(given.lists)
    with tempfile.TemporaryDirectory() as folder:
        data, csv = Path(folder) / "lists.json", Path(folder) / "members.csv"
        rows = "".join(f'bench{number:05d}@load.example.org,"Member {number}"\n' for number in range(given.members))
        csv.write_text("address,name\n" + rows, encoding="utf-8")
        options = ("-e", f"@{data}", *given.ansible)
        try:
            # What the site itself has to change is no part of the measurement.
            data.write_text(json.dumps({"estate_lists": site}))
            playbook("lists.yml", *options)
            data.write_text(json.dumps({"estate_lists": site | more}))
            lists = playbook("lists.yml", *options), playbook("lists.yml", *options)
            good = report(f"{given.lists} lists as data", lists, LIST_BARS)
            values = ("-e", f"list={next(iter(more))}", "-e", f"csv={csv}", *given.ansible)
            members = playbook("lists_members.yml", *values), playbook("lists_members.yml", *values)
            good &= report(f"{given.members} members by CSV", members, MEMBER_BARS)
        except RunFailed as error:
            print(error, file=sys.stderr)
            return 2
        finally:
            gone = {address: {"state": "absent"} for address in more}
            data.write_text(json.dumps({"estate_lists": site | gone}))
            playbook("lists.yml", *options)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
