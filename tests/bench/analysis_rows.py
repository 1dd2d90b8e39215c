#!/usr/bin/env python3
"""How long do the views, work lists and refreshes of the DMARC analysis take at a million records?

Fills an empty database with made-up records (``analysis_load.sql``: two years, five domains, 60 reporters, 40,000
addresses), makes the summaries, and asks each question 20 times. Runs in a container that has the roles postgresql,
parsedmarc and dmarc_analysis, in a database of its own beside the real one, which it drops at the end:

    tests/bench/analysis_rows.py [--container lab-role-dmarc-analysis] [--records 1000000] [--keep]

Exit status: 0 bars met; 1 a bar missed; 2 the container is not ready.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time

from benchlib import BenchError
from report_database import ReportDatabase

DATABASE = "dmarc_bench"
ROUNDS = 20
BAR_MS = 1000.0  # for every question, at the 95th percentile

QUESTIONS = {
    "spf_to_add(90)": "SELECT * FROM dma.spf_to_add(90)",
    "spf_to_remove(90)": "SELECT * FROM dma.spf_to_remove(90)",
    "readiness(90)": "SELECT * FROM dma.readiness(90)",
    "new_sources(7)": "SELECT * FROM dma.new_sources(7)",
    "silent_reporters()": "SELECT * FROM dma.silent_reporters()",
    "selectors(90)": "SELECT * FROM dma.selectors(90)",
    "would_reject(90)": "SELECT * FROM dma.would_reject(90)",
    "policy_changes(365)": "SELECT * FROM dma.policy_changes(365)",
    "tls(90)": "SELECT * FROM dma.tls(90)",
    "source, 90 days by kind": """
        SELECT policy_domain, kind, suggested, asn, sum(n), count(DISTINCT ip) FROM dma.source
        WHERE day > current_date - 90 GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC LIMIT 200""",
    "daily_domain, two years by day": """
        SELECT day, policy_domain, kind, sum(n), sum(n) FILTER (WHERE passed) FROM dma.daily_domain GROUP BY 1, 2, 3""",
    "record, the newest 100 of a day": """
        SELECT * FROM dma.record WHERE at >= current_date - 10 AND at < current_date - 9 ORDER BY at DESC LIMIT 100""",
}


def times(database: ReportDatabase, query: str, rounds: int) -> list[float]:
    """Milliseconds of each round, as the server's client sees them, with all rows fetched."""
    text = "\\o /dev/null\n\\timing on\n" + f"{query};\n" * rounds
    return [float(found) for found in re.findall(r"^Time: ([0-9.]+) ms", database.sql(text), re.MULTILINE)]


def percentile(values: list[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def main() -> int:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Time the DMARC analysis at a million records.")
    parser.add_argument("--container", default="lab-role-dmarc-analysis")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--keep", action="store_true", help="keep the database for other questions")
    given = parser.parse_args()
    database = ReportDatabase(given.container, DATABASE)
    missed = []
    try:
        database.create()
        begin = time.monotonic()
        database.load(given.records)
        print(f"{given.records} records loaded in {time.monotonic() - begin:.0f} s")
        begin = time.monotonic()
        days = database.refresh()
        seconds = time.monotonic() - begin
        print(f"{days} days summarised in {seconds:.0f} s, {1e6 * seconds / given.records:.0f} µs a record")
        database.sql("VACUUM ANALYZE")
        for name, query in QUESTIONS.items():
            values = times(database, query, ROUNDS)
            slow = percentile(values)
            print(f"{name:34} median {statistics.median(values):7.0f} ms   p95 {slow:7.0f} ms")
            if slow > BAR_MS or len(values) < ROUNDS:
                missed.append(name)
        idle = times(database, "SELECT * FROM dma.refresh()", ROUNDS)
        print(f"{'refresh, nothing new':34} median {statistics.median(idle):7.0f} ms   p95 {percentile(idle):7.0f} ms")
        day = times(
            database,
            "INSERT INTO dma.stale_day SELECT max(day), true FROM dma.daily; SELECT * FROM dma.refresh()",
            ROUNDS,
        )[1::2]
        print(
            f"{'refresh, one day made anew':34} median {statistics.median(day):7.0f} ms   p95 {percentile(day):7.0f} ms"
        )
    except (BenchError, OSError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        if not given.keep:
            database.drop()
    print(f"bar: each question within {BAR_MS:.0f} ms at p95: {'missed by ' + ', '.join(missed) if missed else 'met'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
