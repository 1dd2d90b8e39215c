"""Figures of a day for the reporter, from this host or another: ``fetch.py NAME DAY [DOMAIN]``.

What ``tlsrpt-fetcher`` prints is passed on: the domains of a day, or all about one. NAME is ``local`` or a host of
/etc/tlsrpt/ssh_config. Two things that tlsrpt-reporter 0.6.0 does not do itself: a host that says nothing for a minute
is given up, and records are brought into the spelling that it understands, since RFC 8460 §3 allows spaces around
``;``, ``,`` and ``=`` in ``v=TLSRPTv1; rua=mailto:a@example.com, https://example.com/``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

FETCHER = ("/opt/tlsrpt/venv/bin/tlsrpt-fetcher", "--config_file", "/etc/tlsrpt/fetcher.cfg")
SSH = ("/usr/bin/ssh", "-F", "/etc/tlsrpt/ssh_config")
PATIENCE = 60  # seconds


def plain(record: str) -> str:
    """The record without spaces where they mean nothing."""
    tight = re.sub(r"\s*([;,])\s*", r"\1", record.strip())
    return re.sub(r"(^v|;rua)\s*=\s*", r"\1=", tight)


def spelled(details: str) -> str:
    """The details of a domain with plain records; two spellings of one record stay apart."""
    data = json.loads(details)
    policies = data["policies"]
    data["policies"] = {}
    for record, value in policies.items():
        data["policies"][record if plain(record) in data["policies"] else plain(record)] = value
    return json.dumps(data)


def main(name: str, *request: str) -> int:
    command = FETCHER if name == "local" else (*SSH, name)
    try:
        done = subprocess.run([*command, *request], stdout=subprocess.PIPE, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        print(f"{name} does not answer", file=sys.stderr)
        return 1
    if done.returncode:
        return done.returncode
    sys.stdout.write(spelled(done.stdout) if len(request) == 2 else done.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
