#!/usr/bin/env python3
"""Run the four rings of tests and say at the end how many passed: ``run.py [lint|unit|roles|estate …]``.

Rings (DESIGN §7): **lint** and **unit** need nothing but the virtual environment; **roles** converges every role on a
bare container by Molecule, several side by side; **estate** rolls out ``site.yml`` as in production, proves that a
second run changes nothing, and sends real mail. Output of each step goes to ``.lab/logs/``; what fails is printed, and
named once more at the end. The last line is ``N passed, N failed``; exit status 0 only when nothing failed.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / ".lab/logs"
PLAIN = os.environ | {"NO_COLOR": "1", "COLUMNS": "160"}  # molecule frames and folds what its programs print
RINGS = ("lint", "unit", "roles", "estate")
SCENARIOS_AT_ONCE = 3  # and the estate beside them
# They begin first, so that none runs on alone.
LONGEST = ("mailman", "certificates", "parsedmarc", "opendkim", "postfix", "mta-sts")
FAILURE = re.compile(r"^[ │]*((?:FAILED|ERROR|fatal:) .{1,200})", re.MULTILINE)
TESTINFRA = re.compile(r"\b(\d+) passed\b.* in [\d.]+s")
RECAP = re.compile(r"^\S+\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


class Tally:
    """Counts what passed and failed, and prints the end of the log of what failed."""

    def __init__(self) -> None:
        self.passed = self.failed = 0
        self.failures: list[str] = []
        self._lock = threading.Lock()  # rings and scenarios report from several threads

    def add(self, passed: int = 0, failed: int = 0, why: str = "") -> None:
        with self._lock:
            self.passed += passed
            self.failed += failed
            if failed:
                self.failures.append(why)

    def step(self, name: str, *command: str, minutes: float = 10, junit: bool = False) -> str:
        """Run one command as one test, or as the tests that its JUnit file lists; returns its output."""
        LOGS.mkdir(parents=True, exist_ok=True)
        started, log = time.monotonic(), LOGS / f"{name.replace(' ', '-')}.log"
        results = log.with_suffix(".xml")
        results.unlink(missing_ok=True)
        arguments = [*command, f"--junit-xml={results}"] if junit else list(command)
        with log.open("w") as out:
            try:
                code = subprocess.run(
                    arguments, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, timeout=minutes * 60, env=PLAIN
                ).returncode
            except subprocess.TimeoutExpired:
                code = 124
                out.write(f"\nended after {minutes} minutes\n")
        passed, failed = counts(results) if junit else (int(code == 0), int(code != 0))
        if code and not failed:
            failed = 1  # a runner that breaks before its first test has failed
        text = log.read_text(errors="replace")
        self.add(passed, failed, "\n  ".join([name, *FAILURE.findall(text)[-20:]]))
        verdict = "ok" if not failed else "FAILED"
        print(f"{verdict:6} {name} ({passed} passed, {failed} failed, {time.monotonic() - started:.0f} s)", flush=True)
        if failed:
            print("\n".join(text.splitlines()[-120:]), flush=True)
        return text


def counts(results: Path) -> tuple[int, int]:
    """Passed and failed tests of a JUnit file; (0, 0) when there is none."""
    if not results.exists():
        return 0, 0
    suites = ElementTree.parse(results).getroot().iter("testsuite")
    total = failed = skipped = 0
    for suite in suites:
        total += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return total - failed - skipped, failed


def lint(tally: Tally) -> None:
    tally.step("yamllint", "yamllint", "--strict", ".")
    tally.step("ruff check", "ruff", "check", ".")
    tally.step("ruff format", "ruff", "format", "--check", ".")
    tally.step("ansible-lint", "ansible-lint", "--strict")


def unit(tally: Tally) -> None:
    tally.step("unit", "pytest", "tests/unit", junit=True)


def lab(tally: Tally) -> bool:
    """The containers and the lab's internet, through which every host gets its packages; whether they stand."""
    tally.step("lab containers", sys.executable, "lab/lab.py", "up")
    tally.step("lab internet and mailbox host", "ansible-playbook", "-i", "inventory/lab", "lab/world.yml")
    return not any(failure.startswith("lab ") for failure in tally.failures)


def roles(tally: Tally) -> None:
    names = os.environ.get("ROLES", "").split() or sorted(
        (folder.name for folder in (ROOT / "molecule").iterdir() if (folder / "converge.yml").exists()),
        key=lambda name: (LONGEST.index(name) if name in LONGEST else len(LONGEST), name),
    )
    which = ("--inventory", "molecule/inventory", *[f"role-{name}" for name in names])
    for action in ("down", "up"):  # a role is tried on a bare host, not on what an earlier run left
        tally.step(f"role containers {action}", sys.executable, "lab/lab.py", action, *which)

    def scenario(name: str) -> None:
        tally.step(f"role {name} reset", "molecule", "reset", "--scenario-name", name)  # or it skips prepare.yml
        # The scenario itself (it converges, and a second run changes nothing) is one test; testinfra's come on top.
        log = tally.step(f"role {name}", "molecule", "test", "--scenario-name", name, "--destroy", "never", minutes=45)
        tally.add(passed=sum(int(count) for count in TESTINFRA.findall(log)))

    with concurrent.futures.ThreadPoolExecutor(SCENARIOS_AT_ONCE) as pool:
        list(pool.map(scenario, names))


def estate(tally: Tally) -> None:
    site = ("ansible-playbook", "-i", "inventory/lab", "playbooks/site.yml")
    tally.step("site.yml", *site, minutes=40)
    tally.step("records", *site[:3], "playbooks/tlsa_collect.yml", "playbooks/dns.yml", "-e", "dns_apply=true")
    again = tally.step("site.yml again", *site, minutes=20)
    touched = [line for line in RECAP.finditer(again) if line.groups() != ("0", "0", "0")]
    unchanged = bool(RECAP.search(again)) and not touched
    name = "the second run of site.yml changed nothing"
    changes = [line for line in again.splitlines() if line.startswith(("changed:", "fatal:"))]
    tally.add(int(unchanged), int(not unchanged), "\n  ".join([name, *changes[:20]]))
    print(f"{'ok' if unchanged else 'FAILED':6} {name}", flush=True)
    tally.step("estate", "pytest", "tests/estate", junit=True, minutes=45)


def main(rings: list[str]) -> int:
    unknown = set(rings) - set(RINGS)
    if unknown:
        print(f"unknown ring {', '.join(sorted(unknown))}; there are {', '.join(RINGS)}", file=sys.stderr)
        return 2
    chosen, tally, started = rings or list(RINGS), Tally(), time.monotonic()
    with concurrent.futures.ThreadPoolExecutor() as pool:  # each waits a lot: for mail, for DNS, for an installation
        begun = [pool.submit(ring, tally) for name, ring in (("lint", lint), ("unit", unit)) if name in chosen]
        rings_of_containers = [ring for name, ring in (("roles", roles), ("estate", estate)) if name in chosen]
        if rings_of_containers and lab(tally):
            begun += [pool.submit(ring, tally) for ring in rings_of_containers]
        for ring in begun:
            ring.result()
    for failure in tally.failures:
        print(f"FAILED {failure}")
    print(f"{time.monotonic() - started:.0f} s")
    print(f"{tally.passed} passed, {tally.failed} failed")
    return int(bool(tally.failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
