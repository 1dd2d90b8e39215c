"""The SPF work lists as JSON, for ``playbooks/spf_senders.yml``."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import dict_row


def spf(connection: psycopg.Connection, days: int) -> dict[str, Any]:
    """What to add and to remove, and what is published now; dates as text, addresses without their length."""
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT domain, in_model, host(ip) AS ip, source_name, as_name, n, dkim_pct::float, reporters, days,"
            " last_day::text, kind, label, suggested, verdict, reason FROM dma.spf_to_add(%s)",
            [days],
        )
        add = cursor.fetchall()
        cursor.execute(
            "SELECT domain, network::text, via, aligned, total, last_day::text, verdict, reason"
            " FROM dma.spf_to_remove(%s)",
            [days],
        )
        remove = cursor.fetchall()
        cursor.execute(
            "SELECT domain, record, lookups, void_lookups, problem, includes, resolved::text FROM dma.spf_record"
        )
        published = {row.pop("domain"): row for row in cursor.fetchall()}
    return {"days": days, "add": add, "remove": remove, "published": published}
