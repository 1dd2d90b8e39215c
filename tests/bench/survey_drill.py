#!/usr/bin/env python3
"""Send reports to 300 domains with more than 15 kinds of trouble, and see that the survey names each rightly.

    survey_drill.py [CONTAINER]

In a container of the lab a world is built of its own: receivers, DNS, a Postfix that gives up after half a minute, a
database (survey_agent.py). The real `dmarc-reports` closes a day, sends its reports and follows their fate. Whatever
else the container does goes on; it must have PostgreSQL, Postfix, unbound, python3-psycopg and python3-dnspython.

Exit status: 0 every fate as expected, 1 a difference, 2 no container.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from typing import Any

from benchlib import HERE, BenchError, podman

ROOT = HERE.parents[1]
CONTAINER = "lab-analytics"
PLACE = "/opt/survey-drill"
KINDS = 38
"""Of trouble, in survey_agent.py."""
PROGRAM = (ROOT / "roles/dmarc_reports/files/dmarc_reports", ROOT / "roles/arc/files/estate_arc_dns.py",
           ROOT / "roles/arc/files/estate_arc_policy.py")  # fmt: skip


def copy(container: str) -> None:
    """Put program, SQL and agent into the container."""
    podman(container, "rm", "-rf", PLACE)
    podman(container, "mkdir", "-p", f"{PLACE}/lib")
    for source, to in (
        *((path, f"{PLACE}/lib/") for path in PROGRAM),
        (ROOT / "roles/dmarc_reports/files/sql", f"{PLACE}/"),
        (HERE / "survey_agent.py", f"{PLACE}/"),
    ):
        done = subprocess.run(["podman", "cp", str(source), f"{container}:{to}"], capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"{container}: {done.stderr.strip()}")


def show(result: dict[str, Any]) -> int:
    """Print kind, expected and found; gives how many domains differ."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for name, state, fate, dsn, reply in result["found"]:
        found.setdefault(name, []).append(
            (f"{fate}" if state == "settled" else f"{state}:{fate}", dsn or "", reply or "")
        )
    wrong = 0
    print(f"{'kind of trouble':<24}{'domains':>8}  {'expected':<16}found")
    for kind, expected, names in result["kinds"]:
        fates = Counter(", ".join(one[0] for one in found.get(name, [])) or "no delivery" for name in names)
        differs = len(names) - fates[expected]
        wrong += differs
        counted = ", ".join(f"{fate} {number}" for fate, number in fates.most_common())
        print(f"{kind:<24}{len(names):>8}  {expected:<16}{counted}{'   DIFFERS' if differs else ''}")
        if differs:
            odd = next(name for name in names if [one[0] for one in found.get(name, [])] != [expected])
            for _, dsn, reply in found.get(odd, []):
                print(f"    {odd}: {dsn} {reply}"[:160])
    print("\ncame back             expected   found")
    for kind in sorted({*result["returned"], *result["returned_expected"]}):
        expected, number = result["returned_expected"].get(kind, 0), result["returned"].get(kind, 0)
        wrong += expected != number
        print(f"{kind:<22}{expected:>8}{number:>8}{'   DIFFERS' if expected != number else ''}")
    return wrong


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("container", nargs="?", default=CONTAINER, help=f"default: {CONTAINER}")
    parser.add_argument("--domains", type=int, default=300, help="at least so many (default: 300)")
    parser.add_argument("--seconds", type=int, default=240, help="to wait for the last fate (default: 240)")
    parser.add_argument("--survey", action="store_true", help="print the monthly text, too")
    options = parser.parse_args(arguments)
    each = -(-options.domains // KINDS)
    try:
        copy(options.container)
        command = ["/usr/bin/python3", "-B", f"{PLACE}/survey_agent.py", str(each), str(options.seconds)]
        result = json.loads(podman(options.container, *command, timeout=options.seconds + 180))
    except (BenchError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        print(f"drill: {error}", file=sys.stderr)
        return 2
    finally:
        podman(options.container, "rm", "-rf", PLACE, check=False)
    wrong = show(result)
    if options.survey:
        print("\n" + result["survey"])
    domains = sum(len(names) for _, _, names in result["kinds"])
    print(
        f"{'NOT MET' if wrong else 'met'}: {domains} domains, {len(result['kinds'])} kinds, {wrong} differences; "
        f"sent in {result['sent_seconds']:.0f} s, all fates known after {result['seconds']:.0f} s"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
