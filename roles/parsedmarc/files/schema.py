"""Make parsedmarc's tables and ours, and check that they are those that this role was written for.

``schema.py DATABASE DIRECTORY [--check] [--print] [--readers=a,b]``, by parsedmarc's Python as its user. DIRECTORY has
the SQL files, in the order of their names, and ``tables.txt``: tables, columns, constraints and indexes as they shall
be in the end. What another release of parsedmarc makes otherwise is a difference there, and somebody has to look at it
before mail meets it. More indexes than listed are no difference, since views may want some.

Everything happens in one transaction; with ``--check`` it is rolled back. Prints "unchanged" when nothing was to do.
Exit status 1: the tables differ or the database cannot be reached; nothing was changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg
from parsedmarc.postgres import PostgreSQLClient, PostgreSQLError
from psycopg import sql

TABLES = """
select 'column ' || c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
       || case when a.attnotnull then ' not null' else '' end
from pg_attribute a join pg_class c on c.oid = a.attrelid
where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and a.attnum > 0 and not a.attisdropped
union all
select 'constraint ' || conrelid::regclass || ' ' || pg_get_constraintdef(oid)
from pg_constraint where connamespace = 'public'::regnamespace and contype in ('p', 'u', 'f', 'c')
union all
select 'index ' || indexdef from pg_indexes where schemaname = 'public'
"""
#: Whether our own schema changed is told by this.
OURS = """
select 'intake ' || c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
       || case when c.relkind = 'v' then md5(pg_get_viewdef(c.oid)) else '' end
from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
where n.nspname = 'intake' and a.attnum > 0 and not a.attisdropped
union all
select 'right ' || coalesce(nspacl::text, '') from pg_namespace where nspname = 'intake'
union all
select 'right ' || coalesce(relacl::text, '') from pg_class
where relnamespace = (select oid from pg_namespace where nspname = 'intake') and relname in ('folder', 'health')
"""


class Differs(Exception):
    """The tables are not those that the role was written for."""


def listing(connection: psycopg.Connection, query: str) -> list[str]:
    """What the catalogue says, in order."""
    connection.execute("set local search_path = public")
    return sorted(" ".join(line.split()) for (line,) in connection.execute(query))


def main(database: str, directory: Path, readers: list[str], check: bool, show: bool) -> int:
    """Make the tables; see the module's docstring."""
    client = PostgreSQLClient(f"postgresql:///{database}?host=/var/run/postgresql")
    connection = client._ensure_connected()
    try:
        with connection.transaction(force_rollback=check):
            before = listing(connection, TABLES + "union all" + OURS)
            client.create_tables()
            for file in sorted(directory.glob("*.sql")):
                connection.execute(file.read_bytes())
            for reader in readers:
                name = sql.Identifier(reader)
                connection.execute(sql.SQL("grant usage on schema intake to {}").format(name))
                connection.execute(sql.SQL("grant select on intake.health, intake.folder to {}").format(name))
            after = listing(connection, TABLES)
            if show:
                print("\n".join(after))
                return 0
            wanted = (directory / "tables.txt").read_text().splitlines()
            missing = [line for line in wanted if line not in after]
            foreign = [line for line in after if line not in wanted and not line.startswith("index ")]
            if missing or foreign:
                raise Differs("\n".join([*(f"- {line}" for line in missing), *(f"+ {line}" for line in foreign)]))
            print("unchanged" if before == listing(connection, TABLES + "union all" + OURS) else "tables made")
    except Differs as difference:
        print(
            "parsedmarc's tables are not those that this role was written for (- expected, + found):\n"
            f"{difference}\nNothing was changed. After an upgrade of parsedmarc, compare its tables with the views "
            "that read them, and then renew files/sql/tables.txt (roles/parsedmarc/README.md).",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    try:
        named = [name for word in sys.argv if word.startswith("--readers=") for name in word[10:].split(",") if name]
        sys.exit(main(sys.argv[1], Path(sys.argv[2]), named, "--check" in sys.argv, "--print" in sys.argv))
    except (PostgreSQLError, psycopg.Error) as error:
        sys.exit(f"The tables of parsedmarc could not be made: {error}")
