"""Write DMARC events by the milter's own code: ``write_events.py HOUR COUNT [WORKERS [GATEWAY]]``.

HOUR is how many hours ago. Prints how many events and octets there are. Run as the milter's user; for tests and drills.
"""

from __future__ import annotations

import sys
import time

import estate_arc_chain as chain
import estate_arc_dmarc as dmarc

SPOOL = "/var/spool/estate-dmarc"
RESULTS = b"mx.example.org; dkim=pass header.d=example.com header.s=s1; spf=pass smtp.mailfrom=bounce@example.com"
RECORD = {"_dmarc.example.com": [b"v=DMARC1; p=reject; rua=mailto:dmarc@example.com"]}


def main() -> None:
    ago, count = float(sys.argv[1]), int(sys.argv[2])
    workers = int(sys.argv[3]) if len(sys.argv) > 3 else 2
    gateway = sys.argv[4] if len(sys.argv) > 4 else "mail-gw1.example.org"
    moment = time.time() - ago * 3600
    results = chain.parse_authentication_results(RESULTS)
    spools = [
        dmarc.EventSpool(SPOOL, f"{gateway}.{number}", 268_435_456, clock=lambda: moment) for number in range(workers)
    ]
    written = 0
    for number in range(count):
        envelope = dmarc.Envelope(
            gateway=gateway, source_ip=f"192.0.2.{number % 250}", helo="mx.example.com", sender="bounce@example.com",
            recipients=("a@example.org",),
        )  # fmt: skip
        event = dmarc.build_event(
            envelope, "example.com", results, lookup=lambda name: RECORD.get(name, []), exists=lambda name: True,
            arc="none", trust=chain.Trust(trusted=False), quarantined=False, now=moment,
        )  # fmt: skip
        written += spools[number % workers].write(event)
    print(written, dmarc.directory_bytes(SPOOL))


if __name__ == "__main__":
    main()
