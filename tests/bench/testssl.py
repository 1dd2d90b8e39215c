#!/usr/bin/env python3
"""Look at the TLS of every port of the estate with testssl.sh, and name what is above LOW.

    testssl.py [HOST…] [--low]

Ports 25, 443, 465 and 587 of every host of ours, as far as they are open. testssl.sh runs on lab-world; this machine
needs podman and nsenter. A scan takes a minute or two; two run side by side.

Exit status: 0 nothing above LOW that we can change, 1 something, 2 no lab.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchlib import BenchError, podman, require_lab

from estatelib.hosts import CommandFailedError  # benchlib has told where estatelib is
from estatelib.places import ESTATE_HOSTS, STATE
from estatelib.tls_scan import Finding, tls_scan

PORTS = {25: "smtp", 443: "", 465: "", 587: "smtp"}
THEIRS = ("mail",)  # the mailbox host was there before us
NOT_OURS = {
    "cert_revocation": "the lab's CA publishes neither CRL nor OCSP; the public CAs do",
    "engine_problem": "testssl.sh would like an engine for GOST",
    "sessionresumption_ticket": "testssl.sh cannot ask Go's server for this",
    "sessionresumption_ID": "testssl.sh cannot ask Go's server for this",
}


def ports(host: str) -> list[int]:
    """Which of PORTS the host listens on, other than on loopback."""
    lines = podman(f"lab-{host}", "ss", "-H", "-lnt").splitlines()
    found = {line.split()[3].rpartition(":")[::2] for line in lines}
    return [
        port
        for port in PORTS
        if any(where not in ("127.0.0.1", "[::1]") and what == str(port) for where, what in found)
    ]


def scan(job: tuple[str, int]) -> tuple[str, int, list[Finding], float, str]:
    """Host, port, what was found, seconds, and what went wrong."""
    host, port = job
    started = time.monotonic()
    authorities = "".join((STATE / "pki" / name).read_text() for name in ("ca.pem", "acme-root.pem"))
    try:
        found = list(tls_scan(host, f"{host}.example.org", port, PORTS[port], authorities).values())
        return host, port, found, time.monotonic() - started, ""
    except (CommandFailedError, subprocess.SubprocessError) as error:
        return host, port, [], time.monotonic() - started, str(error)


def main() -> int:
    """Scan, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("hosts", nargs="*", metavar="HOST", help="instead of all hosts of the estate")
    parser.add_argument("--low", action="store_true", help="show findings of grade LOW, too")
    options = parser.parse_args()
    try:
        require_lab()
        hosts = options.hosts or [host for host in ESTATE_HOSTS if host not in THEIRS]
        jobs = [(host, port) for host in hosts for port in ports(host)]
    except BenchError as error:
        print(error, file=sys.stderr)
        return 2
    wrong = 0
    with ThreadPoolExecutor(2) as pool:
        for host, port, found, seconds, trouble in pool.map(scan, jobs):
            grave = [one for one in found if one.severity == "WARN" or one.above("LOW")]
            ours = [one for one in grave if one.id not in NOT_OURS]
            low = [one for one in found if one.severity == "LOW"]
            wrong += len(ours) + bool(trouble)
            verdict = trouble or (f"{len(ours)} above LOW" if ours else f"nothing above LOW, {len(low)} LOW")
            print(f"{host}:{port}  {verdict}  ({len(found)} findings, {seconds:.0f} s)", flush=True)
            for one in ours + (low if options.low else []):
                print(f"    {one.severity:<9}{one.id}: {one.text}")
            for one in grave:
                if one.id in NOT_OURS:
                    print(f"    not ours {one.id}: {NOT_OURS[one.id]}")
    print(f"{len(jobs)} ports, {wrong} findings that we can change")
    return 1 if wrong or not jobs else 0


if __name__ == "__main__":
    sys.exit(main())
