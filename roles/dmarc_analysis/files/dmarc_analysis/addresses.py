"""Autonomous systems of addresses, from the database that parsedmarc ships (IPinfo Lite, CC BY-SA 4.0).

Runs by parsedmarc's own Python, which has the reader: addresses come one a line, answers go out as JSON, one a line.
With ``--built`` it only tells when the database was made, in seconds since 1970.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import maxminddb


def place() -> Path:
    """Where the database is, found without loading parsedmarc."""
    found = importlib.util.find_spec("parsedmarc")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("this Python has no parsedmarc")
    return Path(found.submodule_search_locations[0]) / "resources/ipinfo/ipinfo_lite.mmdb"


def main() -> None:
    """Answer until the input ends."""
    with maxminddb.open_database(str(place())) as reader:
        if sys.argv[1:] == ["--built"]:
            print(reader.metadata().build_epoch)
            return
        for line in sys.stdin:
            address = line.strip()
            try:
                found = reader.get(address)
            except ValueError:
                found = None
            data = found if isinstance(found, dict) else {}
            number = str(data.get("asn") or "")
            asn = int(number[2:]) if number.startswith("AS") and number[2:].isdecimal() else None
            print(json.dumps([address, asn, data.get("as_name"), data.get("as_domain")]))


if __name__ == "__main__":
    main()
