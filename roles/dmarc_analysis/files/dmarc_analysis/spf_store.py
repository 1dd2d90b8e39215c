"""Keep ``dma.spf_record`` and ``dma.spf_network`` as DNS has them. A temporary DNS error changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence

import dns.exception
import dns.resolver
import psycopg

from .spf import Expansion, TemporaryError, expand


class Dns:
    """The resolver's answers (dnspython)."""

    def __init__(self, nameservers: Sequence[str], seconds: float) -> None:
        self._resolver = dns.resolver.Resolver(configure=not nameservers)
        if nameservers:
            self._resolver.nameservers = list(nameservers)
        self._resolver.lifetime = seconds
        self._resolver.cache = dns.resolver.LRUCache()

    def _ask(self, name: str, kind: str) -> list[dns.rdata.Rdata]:
        try:
            return list(self._resolver.resolve(f"{name.rstrip('.')}.", kind, search=False))
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        except (dns.exception.DNSException, OSError) as error:
            raise TemporaryError(f"{name} {kind}: {error}") from error

    def txt(self, name: str) -> list[str]:
        """TXT records, the strings of each put together (RFC 7208 §3.3)."""
        return [b"".join(answer.strings).decode("utf-8", "replace") for answer in self._ask(name, "TXT")]

    def addresses(self, name: str) -> list[str]:
        """A and AAAA."""
        return [answer.address for kind in ("A", "AAAA") for answer in self._ask(name, kind)]

    def mx(self, name: str) -> list[str]:
        """MX hosts, the preferred ones first; a null MX (RFC 7505) is none."""
        answers = sorted(self._ask(name, "MX"), key=lambda answer: answer.preference)
        return [str(answer.exchange).rstrip(".") for answer in answers if str(answer.exchange) != "."]


def update(connection: psycopg.Connection, dns_: Dns) -> list[str]:
    """Expand the record of every own domain; returns lines for the log."""
    lines: list[str] = []
    domains = [name for (name,) in connection.execute("SELECT name FROM dma.domain ORDER BY name")]
    for domain in domains:
        try:
            found = expand(domain, dns_)
        except TemporaryError as error:
            lines.append(f"{domain}: kept as it was: {error}")
            continue
        store(connection, found)
        if found.problem:
            lines.append(f"{domain}: {found.problem}")
    with connection.transaction():
        for table in ("spf_network", "spf_record"):
            connection.execute(f"DELETE FROM dma.{table} WHERE domain <> ALL(%s)", [domains])
    return lines


def store(connection: psycopg.Connection, found: Expansion) -> None:
    """Write what was found, in one transaction."""
    networks = [str(network) for network in found.networks]
    with connection.transaction():
        connection.execute(
            "INSERT INTO dma.spf_record (domain, record, lookups, void_lookups, problem, includes)"
            " VALUES (%s, %s, %s, %s, %s, %s::jsonb) ON CONFLICT (domain) DO UPDATE SET record = excluded.record,"
            " lookups = excluded.lookups, void_lookups = excluded.void_lookups, problem = excluded.problem,"
            " includes = excluded.includes, resolved = now()",
            [
                found.domain,
                found.record,
                found.lookups,
                found.void_lookups,
                found.problem,
                json.dumps(found.includes),
            ],
        )
        connection.execute(
            "DELETE FROM dma.spf_network WHERE domain = %s AND network <> ALL(%s::cidr[])", [found.domain, networks]
        )
        connection.execute(
            "INSERT INTO dma.spf_network (domain, network, via)"
            " SELECT %s, network, via FROM unnest(%s::cidr[], %s::text[]) AS f (network, via)"
            " ON CONFLICT (domain, network) DO UPDATE SET via = excluded.via, resolved = now()",
            [found.domain, networks, list(found.networks.values())],
        )
