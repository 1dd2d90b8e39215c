"""``dmarc-analysis``: keep the schema ``dma`` up and read its work lists. Runs as the user who owns the database.

Exit status: 0 done; 1 the database or the settings cannot be used (try again later); 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import psycopg

from . import lists, refresh, schema, settings


def main(arguments: list[str] | None = None) -> int:
    """Run a command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="dmarc-analysis", description="What the DMARC reports mean.")
    parser.add_argument("--config", type=Path, default=settings.DEFAULT)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("schema", help="make schema, decisions and rights what the settings say")
    make.add_argument("--check", action="store_true", help="say what would change, and change nothing")
    make.add_argument("--make", dest="check", action="store_false", help="the default")
    commands.add_parser("refresh", help="bring the summaries up to date")
    commands.add_parser("spf", help="expand the SPF records of our domains")
    show = commands.add_parser("lists", help="the SPF work lists, as JSON")
    show.add_argument("--days", type=int, default=90)
    given = parser.parse_args(arguments)
    try:
        known = settings.load(given.config)
        with psycopg.connect(f"dbname={known.database}", autocommit=True, client_encoding="utf8") as link:
            if given.command == "schema":
                changes = schema.make(link, known, given.check)
                print("\n".join(changes) or "unchanged")
            elif given.command == "refresh":
                made = refresh.days(link)
                looked_up = refresh.addresses(link, known.python)
                made += refresh.days(link)
                print(f"{made} days made; {looked_up}")
            elif given.command == "spf":
                from . import spf_store

                dns = spf_store.Dns(known.nameservers, known.dns_seconds)
                print("\n".join(spf_store.update(link, dns)) or "all SPF records are in order")
                refresh.days(link)
            else:
                print(json.dumps(lists.spf(link, given.days)))
    except (psycopg.Error, settings.SettingsError, schema.SchemaError) as error:
        print(f"dmarc-analysis {given.command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
