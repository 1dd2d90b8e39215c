"""Make the schema ``dma`` what its SQL files and the settings say, all at once or not at all.

The SQL is run only when it is another one than the schema was made by: its SHA-256 stands in a comment on the schema.
When the definitions behind the summaries change, all days are made anew by the following refreshes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import psycopg
from psycopg import sql

from .settings import Settings


class SchemaError(Exception):
    """The schema cannot be made; the message says what is missing."""


def digest(files: list[Path]) -> str:
    """SHA-256 over names and contents."""
    sums = hashlib.sha256()
    for file in files:
        sums.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return sums.hexdigest()


def make(connection: psycopg.Connection, settings: Settings, check: bool) -> list[str]:
    """Make the schema; returns what was changed, in words. With ``check`` all is tried and taken back.

    :raises SchemaError: when parsedmarc's tables are not there.
    """
    files = sorted(settings.sql.glob("*.sql"))
    if not files:
        raise SchemaError(f"no SQL files in {settings.sql}")
    said = json.dumps(
        {"sql": digest(files), "summaries": digest([file for file in files if file.name < "40"])}, sort_keys=True
    )
    changes: list[str] = []
    with connection.transaction(force_rollback=check):
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('dma.refresh'))")
        present = connection.execute("SELECT to_regclass('public.dmarc_aggregate_record') IS NOT NULL").fetchone()
        if not present or not present[0]:
            raise SchemaError("parsedmarc's tables are not there yet (role parsedmarc)")
        row = connection.execute("SELECT obj_description(to_regnamespace('dma'), 'pg_namespace')").fetchone()
        before = _made_by(row[0] if row else None)
        if before != json.loads(said):
            connection.execute("CREATE SCHEMA IF NOT EXISTS dma")
            for file in files:
                connection.execute(file.read_bytes())
            if before.get("summaries") != json.loads(said)["summaries"]:
                connection.execute("DELETE FROM dma.counted")
                connection.execute("UPDATE dma.state SET ip_info_at = '-infinity'")
                # Days without a report keep nothing; those with one are made anew.
                connection.execute(
                    "INSERT INTO dma.stale_day SELECT DISTINCT day, true FROM dma.daily"
                    " ON CONFLICT (day) DO UPDATE SET records = true"
                )
            connection.execute(sql.SQL("COMMENT ON SCHEMA dma IS {}").format(sql.Literal(said)))
            changes.append("schema made")
        changes += _domains(connection, settings) + _senders(connection, settings) + _rights(connection, settings)
    return changes


def _made_by(comment: str | None) -> dict[str, str]:
    try:
        found = json.loads(comment or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _domains(connection: psycopg.Connection, settings: Settings) -> list[str]:
    """The list of own domains."""
    lost = connection.execute("DELETE FROM dma.domain WHERE name <> ALL(%s)", [list(settings.domains)]).rowcount
    new = connection.execute(
        "INSERT INTO dma.domain SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING", [list(settings.domains)]
    ).rowcount
    return [f"domains: {new} new, {lost} gone"] if new or lost else []


def _senders(connection: psycopg.Connection, settings: Settings) -> list[str]:
    """The postmaster's decisions. One without a date keeps that of the day on which it was first seen."""
    wanted = json.dumps(list(settings.senders))
    lost = connection.execute(
        "DELETE FROM dma.sender s WHERE NOT EXISTS ("
        "SELECT FROM jsonb_to_recordset(%s::jsonb) AS w (network cidr) WHERE w.network = s.network)",
        [wanted],
    ).rowcount
    new = connection.execute(
        """
        INSERT INTO dma.sender AS s (network, kind, label, reviewed)
        SELECT w.network, w.kind, w.label, coalesce(w.reviewed, o.reviewed, (now() AT TIME ZONE 'UTC')::date)
        FROM jsonb_to_recordset(%s::jsonb) AS w (network cidr, kind text, label text, reviewed date)
        LEFT JOIN dma.sender o ON o.network = w.network
        ON CONFLICT (network) DO UPDATE
        SET kind = excluded.kind, label = excluded.label, reviewed = excluded.reviewed
        WHERE (s.kind, s.label, s.reviewed) IS DISTINCT FROM (excluded.kind, excluded.label, excluded.reviewed)
        """,
        [wanted],
    ).rowcount
    return [f"decisions about senders: {new} new, {lost} gone"] if new or lost else []


FORMER = """
SELECT r.rolname FROM pg_class c, aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee
WHERE c.oid = 'dma.state'::regclass AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner
"""
RIGHTS = """
SELECT coalesce(jsonb_agg(line ORDER BY line), '[]')::text FROM (
    SELECT 'schema ' || a::text AS line FROM pg_namespace, unnest(nspacl) a WHERE nspname = 'dma'
    UNION ALL
    SELECT relname || ' ' || a::text FROM pg_class, unnest(relacl) a WHERE relnamespace = 'dma'::regnamespace
    UNION ALL
    SELECT oid::regprocedure::text || ' ' || a::text FROM pg_proc, unnest(proacl) a
    WHERE pronamespace = 'dma'::regnamespace
) r
"""


def _rights(connection: psycopg.Connection, settings: Settings) -> list[str]:
    """Readers may read the schema and nothing else; a reader that does not exist yet is left for a later run."""
    before = connection.execute(RIGHTS).fetchone()
    connection.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA dma FROM PUBLIC")
    present = {
        name
        for (name,) in connection.execute(
            "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", [list(settings.readers)]
        )
    }
    former = {name for (name,) in connection.execute(FORMER)}
    for name in sorted(former - present):
        role = sql.Identifier(name)
        for kind in ("ALL TABLES IN SCHEMA dma", "ALL FUNCTIONS IN SCHEMA dma", "SCHEMA dma"):
            connection.execute(sql.SQL("REVOKE ALL ON {} FROM {}").format(sql.SQL(kind), role))
    for name in sorted(present):
        role = sql.Identifier(name)
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA dma TO {}").format(role))
        connection.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA dma TO {}").format(role))
        connection.execute(sql.SQL("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA dma TO {}").format(role))
        for signature in ("dma.refresh(integer)", "dma.suggest_kinds()"):
            connection.execute(sql.SQL("REVOKE ALL ON FUNCTION {} FROM {}").format(sql.SQL(signature), role))
    after = connection.execute(RIGHTS).fetchone()
    return ["rights of the readers"] if before != after else []
