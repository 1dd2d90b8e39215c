"""How long the board's export takes with many records: the aim is two seconds at a million.

    board_export.py [--container lab-role-noc-board] [--records 1000000] [--runs 10]

Wants a host where the roles postgresql, parsedmarc, dmarc_analysis and noc_board have run (the scenario noc-board, or
the analytics host). Works in a database of its own, ``board_bench``, which is dropped at the end;
what the host has stays.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from benchlib import HERE, BenchError, ends_tidily, podman
from report_database import ReportDatabase

ROLE = HERE.parents[1] / "roles/noc_board"
DATABASE = "board_bench"
PLACE = "/tmp/board-bench"
LIMIT_S = 2.0


class Host(ReportDatabase):
    """The host under test."""

    def make(self, records: int) -> None:
        """A copy of the host's schemas, full of reports."""
        self.create("--exclude-schema=dma_public")
        self.load(records)
        self.refresh()
        self.sql("ANALYZE")
        settings = ("min_sources=3", "min_messages=20", "days=30", "named_domains=", "ending=COMMIT")
        board = (ROLE / "files/sql/board.sql").read_text(encoding="utf-8")
        self.sql(board, "postgres", *[word for setting in settings for word in ("-v", setting)])

    def export(self) -> float:
        """Seconds that the program takes, start of Python included."""
        program = (
            f"/usr/local/lib/noc-board/noc_board_export.py --database {DATABASE} --out /tmp/board-bench/stats.json"
        )
        command = f"cd / && exec runuser -u noc_board -- python3 -B {program}"
        podman(self.container, "install", "-d", "-o", "noc_board", PLACE)
        begun = time.monotonic()
        podman(self.container, "sh", "-c", command)
        return time.monotonic() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the export of the board.")
    parser.add_argument("--container", default="lab-role-noc-board")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    host = Host(options.container, DATABASE)
    try:
        with ends_tidily():
            try:
                begun = time.monotonic()
                host.make(options.records)
                print(f"{options.records:,} records made and summed up in {time.monotonic() - begun:.0f} s")
                took = sorted(host.export() for _ in range(options.runs))
            finally:
                host.drop()
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"export: median {statistics.median(took):.2f} s, worst {took[-1]:.2f} s of {options.runs}; aim {LIMIT_S} s")
    return int(took[-1] > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
