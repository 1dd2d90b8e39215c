"""How Postfix must secure its way to a domain: DANE where it applies, otherwise what MTA-STS says.

A policy of MTA-STS must not override DANE (RFC 8461 §2), but in Postfix a hit in ``smtp_tls_policy_maps`` does: it
replaces ``smtp_tls_security_level = dane``. So Postfix asks here, by the protocol of socketmap_table(5), and here the
domain is looked at first, by a validating resolver (RFC 7672 §2.2):

=================================================  ===================================================================
the domain's mail hosts                            answer
=================================================  ===================================================================
all have TLSA records that Postfix can use         NOTFOUND: the level of main.cf, which must be ``dane``
none has                                           what postfix-mta-sts-resolver says: NOTFOUND or ``secure match=…``
some have, and there is an MTA-STS policy          ``dane-only``: no mail to the hosts that neither of both protects
some have, no policy                               NOTFOUND
MX look-up failed, resolver or daemon unreachable  TEMP: the mail waits
=================================================  ===================================================================

A TLSA look-up that fails (not: one that finds nothing) counts as a record: Postfix then avoids the host
(RFC 7672 §2.1.2). Next hops in brackets are hosts of ours, not domains; they are NOTFOUND at once.

Run as a daemon (``--listen PATH --daemon PATH``), or by hand for one domain: ``tls_policy.py --daemon PATH DOMAIN``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.name
import dns.rdatatype
import dns.resolver

DOMAIN = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9][a-z0-9-]{0,61}[a-z0-9]\.?")
NOT_FOUND = "NOTFOUND "
DNS_TIME = 8.0  # seconds for one look-up with all its repetitions
DAEMON_TIME = 10.0  # seconds; the daemon has 4 for DNS and 4 for HTTPS
TOTAL_TIME = 30.0  # seconds for a whole answer
LONGEST = 100_000  # octets of a netstring, as in Postfix (socketmap_max_reply_size)
HOSTS = 16  # mail hosts that are looked at; Postfix tries five addresses
FIGURES_TIME = 15.0  # seconds between two writings of the figures
USAGES = (2, 3)  # DANE-TA and DANE-EE: the others are unusable for mail (RFC 7672 §3.1.3)
LOG = logging.getLogger("tls-policy")


class LookupFailed(Exception):
    """The question could not be answered now; the mail must wait."""


class Dns:
    """A validating resolver, whose AD flag is believed (so it must be on this host)."""

    def __init__(self, address: str, port: int = 53) -> None:
        self.resolver = dns.asyncresolver.Resolver(configure=False)
        self.resolver.nameservers = [address]
        self.resolver.port = port
        self.resolver.lifetime = DNS_TIME
        self.resolver.timeout = 3
        self.resolver.use_edns(0, dns.flags.DO, 1232)
        self.resolver.flags = dns.flags.RD | dns.flags.AD

    async def look_up(self, name: str | dns.name.Name, kind: str) -> tuple[list, bool, dns.name.Name]:
        """Records, whether the answer is DNSSEC-validated, and the name at the end of the aliases.

        :raises LookupFailed: neither records nor a proof that there are none.
        """
        try:
            answer = await self.resolver.resolve(name, kind, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN as error:
            response = error.response(error.qnames()[0])
            return [], bool(response.flags & dns.flags.AD), error.canonical_name
        except dns.exception.DNSException as error:
            raise LookupFailed(f"{kind} of {name}: {error}") from error
        secure = bool(answer.response.flags & dns.flags.AD)
        return list(answer.rrset or ()), secure, answer.canonical_name

    async def mail_hosts(self, domain: str) -> list[str]:
        """The mail hosts of a domain, the best first; empty where DANE cannot apply to it (RFC 7672 §2.2.1)."""
        records, secure, _name = await self.look_up(domain, "MX")
        if not secure:
            return []
        if not records:  # the domain is its own mail host (RFC 5321 §5.1)
            return [domain]
        hosts = [record.exchange for record in sorted(records, key=lambda record: record.preference)]
        return [] if hosts == [dns.name.root] else [host.to_text() for host in hosts]

    async def has_dane(self, host: str) -> bool:
        """Whether a mail host is to be authenticated by DANE, or is unusable because nobody can tell."""
        try:
            addresses, secure, canonical = await self.look_up(host, "A")
            if not addresses and secure:
                addresses, secure, canonical = await self.look_up(host, "AAAA")
        except LookupFailed:
            return False  # no address, no delivery
        if not (addresses and secure):
            return False
        # An alias is followed when all of it is signed; its target's records count first (RFC 7672 §2.2.3).
        for name in dict.fromkeys([canonical.to_text(), host]):
            try:
                records, secure, _name = await self.look_up(f"_25._tcp.{name}", "TLSA")
            except LookupFailed as failure:
                LOG.warning("%s", failure)
                return True
            if secure and records:
                return any(
                    record.usage in USAGES and record.selector in (0, 1) and record.mtype in (0, 1, 2)
                    for record in records
                )
        return False


async def read_netstring(reader: asyncio.StreamReader) -> bytes:
    """One netstring.

    :raises ValueError: that is none.
    :raises EOFError: the other side has closed.
    """
    length = await reader.readuntil(b":")
    if not length[:-1].isdigit() or int(length[:-1]) > LONGEST:
        raise ValueError("a netstring begins with its length")
    text = await reader.readexactly(int(length[:-1]))
    if await reader.readexactly(1) != b",":
        raise ValueError("a netstring ends with a comma")
    return text


def netstring(text: str) -> bytes:
    """Text as a netstring."""
    octets = text.encode()
    return b"%d:%s," % (len(octets), octets)


class Policy:
    """What Postfix is told."""

    def __init__(self, resolver: Dns, daemon: str) -> None:
        self.dns = resolver
        self.daemon = daemon
        self.figures: Counter[str] = Counter()

    async def ask_daemon(self, domain: str) -> str:
        """What postfix-mta-sts-resolver says.

        :raises LookupFailed: it does not answer.
        """
        try:
            async with asyncio.timeout(DAEMON_TIME):
                reader, writer = await asyncio.open_unix_connection(self.daemon, limit=LONGEST + 16)
                try:
                    writer.write(netstring(f"postfix {domain}"))
                    return (await read_netstring(reader)).decode()
                finally:
                    writer.close()
        except (OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError) as error:
            raise LookupFailed(f"the MTA-STS daemon does not answer: {error or type(error).__name__}") from error

    async def decide(self, domain: str) -> tuple[str, str]:
        """The reason in a word (dane, mixed, sts, none), and the answer for Postfix."""
        hosts = await self.dns.mail_hosts(domain)
        dane = await asyncio.gather(*(self.dns.has_dane(host) for host in hosts[:HOSTS]))
        if hosts and all(dane) and len(hosts) <= HOSTS:
            return "dane", NOT_FOUND
        policy = await self.ask_daemon(domain)
        if not policy.startswith("OK "):
            if not policy.startswith("NOTFOUND"):
                raise LookupFailed(f"the MTA-STS daemon says: {policy}")
            return "dane" if any(dane) else "none", NOT_FOUND
        return ("mixed", "OK dane-only") if any(dane) else ("sts", policy)

    async def answer(self, key: str) -> str:
        """The reply to a request for ``key``, whatever happens."""
        domain = key.lower()
        if not DOMAIN.fullmatch(domain):
            return NOT_FOUND
        try:
            async with asyncio.timeout(TOTAL_TIME):
                reason, reply = await self.decide(domain.rstrip("."))
        except (LookupFailed, TimeoutError) as failure:
            reason, reply = "failed", "TEMP no TLS policy: " + re.sub(r"\s+", " ", str(failure) or "too late")[:200]
            LOG.warning("%s: %s", domain, reply)
        except Exception:
            LOG.exception("%s", domain)
            reason, reply = "failed", "TEMP internal error"
        self.figures[reason] += 1
        return reply

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's requests, one after another."""
        try:
            while True:
                _map, _space, key = (await read_netstring(reader)).decode("utf-8", "replace").partition(" ")
                writer.write(netstring(await self.answer(key)))
                await writer.drain()
        except (EOFError, ConnectionError):
            pass
        except (ValueError, asyncio.LimitOverrunError) as error:
            LOG.warning("a request that is none: %s", error)
        finally:
            writer.close()

    def write_figures(self, path: Path) -> None:
        """The figures for Prometheus' textfile collector; a file is replaced as a whole."""
        name = "estate_tls_policy_answers_total"
        lines = [f"# HELP {name} Answers to Postfix by what protects the way to the domain.", f"# TYPE {name} counter"]
        lines += [
            f'{name}{{protection="{reason}"}} {self.figures[reason]}'
            for reason in ("dane", "mixed", "sts", "none", "failed")
        ]
        new = path.with_name(path.name + ".new")
        new.write_text("\n".join(lines) + "\n", encoding="ascii")
        new.replace(path)


def ready() -> None:
    """Tell systemd that Postfix may ask (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


async def run(policy: Policy, listen: str, figures: Path | None) -> None:
    """Answer until SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    Path(listen).unlink(missing_ok=True)
    server = await asyncio.start_unix_server(policy.serve, listen, limit=LONGEST + 16, backlog=512)
    os.chmod(listen, 0o666)  # the directory says who may ask
    ready()
    while not stop.is_set():
        if figures:
            policy.write_figures(figures)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), FIGURES_TIME)
    server.close()


async def by_hand(policy: Policy, domain: str) -> int:
    """Print what Postfix would be told, and why."""
    reply = await policy.answer(domain)
    print("".join(policy.figures) or "no domain", reply.strip(), sep=": ")
    return 1 if reply.startswith("TEMP") else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="DANE first, then MTA-STS: answers for smtp_tls_policy_maps.")
    parser.add_argument("--daemon", required=True, help="socket of postfix-mta-sts-resolver")
    parser.add_argument("--resolver", default="127.0.0.1", help="address of the validating resolver")
    parser.add_argument("--port", type=int, default=53, help="its port")
    parser.add_argument("--listen", help="socket for Postfix")
    parser.add_argument("--figures", type=Path, help="file for Prometheus' textfile collector")
    parser.add_argument("domain", nargs="?", help="answer for this domain, and end")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.INFO)
    policy = Policy(Dns(arguments.resolver, arguments.port), arguments.daemon)
    work: Awaitable[int | None]
    if arguments.domain:
        work = by_hand(policy, arguments.domain)
    elif arguments.listen:
        work = run(policy, arguments.listen, arguments.figures)
    else:
        parser.error("either --listen or a domain")
    return asyncio.run(work) or 0  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
