"""What DNS answers, seen from several places at once: resolvers, and each authoritative server.

An :class:`Answer` is what one server says of one name and type, its records in a form that compares (:func:`text`).
The :class:`Asker` asks many servers side by side, each question once, and never waits longer than it was told.

Follows RFC 1035 (messages), RFC 6891 (EDNS), RFC 4035 §3.2 (the flags AD and CD) and RFC 7766 (TCP).
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.resolver

IN = dns.rdataclass.IN
PORT = 53
WORKERS = 64
TRIES = 2
EDNS_OCTETS = 1232
#: An answer that says something about the name, if only that there is nothing.
SAYS = ("ok", "nothing", "no name")


@dataclass(frozen=True)
class Answer:
    """What one server says of one name and type.

    ``state``: ``ok``, ``nothing`` (the name has no such record), ``no name``, ``bogus`` (the resolver refuses what does
    not validate), ``failed`` (any other answer), ``silent`` (none in time). ``records`` are texts, ``ttl`` is in
    seconds, ``alias`` the target of a CNAME at the name, ``authoritative`` and ``authentic`` are the flags AA and AD.
    """

    state: str
    records: tuple[str, ...] = ()
    ttl: int = 0
    alias: str | None = None
    authoritative: bool = False
    authentic: bool = False
    detail: str = ""

    @property
    def says(self) -> bool:
        """Whether the answer says what is at the name."""
        return self.state in SAYS


def text(rdata: dns.rdata.Rdata) -> str:
    """A record's data in a form that compares: TXT strings joined, names and digits in lower case."""
    if rdata.rdtype == dns.rdatatype.TXT:
        return b"".join(rdata.strings).decode("utf-8", "replace")
    if rdata.rdtype == dns.rdatatype.TLSA:
        return f"{rdata.usage} {rdata.selector} {rdata.mtype} {rdata.cert.hex()}"
    if rdata.rdtype == dns.rdatatype.DS:
        return f"{rdata.key_tag} {int(rdata.algorithm)} {int(rdata.digest_type)} {rdata.digest.hex()}"
    if rdata.rdtype == dns.rdatatype.CAA:
        return rdata.to_text()
    return rdata.to_text().lower()


def parse(rtype: str, value: str) -> str:
    """The same form, of a record in the presentation format of zone files.

    :raises ValueError: when it is malformed.
    """
    try:
        return text(dns.rdata.from_text(IN, rtype, value, dns.name.root, relativize=False))
    except dns.exception.DNSException as error:
        raise ValueError(f"{rtype} {value}: {error}") from error


def read(wire: bytes, name: str, rtype: str) -> Answer:
    """An answer from its octets, as it came over the network."""
    try:
        return understand(dns.message.from_wire(wire), name, rtype)
    except (dns.exception.DNSException, ValueError, IndexError) as error:
        return Answer("failed", detail=f"an answer that makes no sense ({type(error).__name__})")


def understand(message: dns.message.Message, name: str, rtype: str) -> Answer:
    """What a message says of a name and type. Of what is delegated, the parent's server tells by a referral."""
    wanted, kind = dns.name.from_text(name), dns.rdatatype.from_text(rtype)
    flags = {
        "authoritative": bool(message.flags & dns.flags.AA),
        "authentic": bool(message.flags & dns.flags.AD),
    }
    code = message.rcode()
    if code not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return Answer("failed", detail=dns.rcode.to_text(code), **flags)
    alias = message.get_rrset(message.answer, wanted, IN, dns.rdatatype.CNAME)
    if alias is not None and kind != dns.rdatatype.CNAME:
        flags["alias"] = text(alias[0])
        last = [rrset for rrset in message.answer if rrset.rdtype == kind]
        return Answer("ok", tuple(sorted(text(one) for one in last[-1])) if last else (), alias.ttl, **flags)
    sections = [message.answer]
    if not flags["authoritative"] and any(rrset.rdtype == dns.rdatatype.NS for rrset in message.authority):
        sections += [message.authority, message.additional]
    for section in sections:
        found = message.get_rrset(section, wanted, IN, kind)
        if found:
            return Answer("ok", tuple(sorted(text(one) for one in found)), found.ttl, **flags)
    return Answer("no name" if code == dns.rcode.NXDOMAIN else "nothing", **flags)


class Asker:
    """Asks servers side by side; a question that was asked once is answered from memory.

    :param timeout: seconds to wait for one answer; it is asked for twice.
    """

    def __init__(self, timeout: float = 2.0) -> None:
        self.timeout = timeout
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="dns")
        self._memory: dict[tuple[str, str, str, bool], Future[Answer]] = {}
        self._lock = threading.Lock()

    def begin(self, server: str, name: str, rtype: str, recursive: bool = True) -> Future[Answer]:
        """Ask, without waiting for the answer."""
        key = (server, name.lower().rstrip("."), rtype, recursive)
        with self._lock:
            if key not in self._memory:
                self._memory[key] = self._pool.submit(self._ask, *key)
            return self._memory[key]

    def ask(self, server: str, name: str, rtype: str, recursive: bool = True) -> Answer:
        """The answer of one server. Not for use in what the asker itself runs side by side."""
        return self.begin(server, name, rtype, recursive).result()

    def first(self, servers: Sequence[str], name: str, rtype: str) -> Answer:
        """The answer of the first resolver that gives one."""
        answer = Answer("silent", detail="no resolver")
        for server in servers:
            answer = self.ask(server, name, rtype)
            if answer.says or answer.state == "bogus":
                break
        return answer

    def close(self) -> None:
        """Give up what is still open."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, server: str, name: str, rtype: str, recursive: bool) -> Answer:
        try:
            query = dns.message.make_query(name, rtype, use_edns=0, want_dnssec=recursive, payload=EDNS_OCTETS)
        except dns.exception.DNSException as error:
            return Answer("failed", detail=f"no domain name ({type(error).__name__})")
        if recursive:
            query.flags |= dns.flags.AD
        else:
            query.flags &= ~dns.flags.RD
        answer = self._exchange(server, query, name, rtype)
        if recursive and answer.detail == "SERVFAIL":
            query.flags |= dns.flags.CD
            if self._exchange(server, query, name, rtype).says:
                return Answer("bogus", detail="SERVFAIL, and an answer without validation")
        return answer

    def _exchange(self, server: str, query: dns.message.Message, name: str, rtype: str) -> Answer:
        for _ in range(TRIES):
            try:
                message, _tcp = dns.query.udp_with_fallback(
                    query, server, timeout=self.timeout, port=PORT, ignore_unexpected=True
                )
                return understand(message, name, rtype)
            except dns.exception.Timeout:
                continue
            except (OSError, EOFError) as error:
                return Answer("silent", detail=getattr(error, "strerror", None) or type(error).__name__)
            except (dns.exception.DNSException, ValueError) as error:
                return Answer("failed", detail=f"an answer that makes no sense ({type(error).__name__})")
        return Answer("silent", detail=f"no answer in {TRIES} × {self.timeout:g} s")


def system_resolvers() -> list[str]:
    """The resolvers of this machine, as /etc/resolv.conf has them; empty when it has none."""
    try:
        return [str(server) for server in dns.resolver.Resolver().nameservers]
    except (dns.exception.DNSException, OSError):
        return []


def has_route(address: str) -> bool:
    """Whether this machine has a route to an address; nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, PORT))
    except OSError:
        return False
    return True


def addresses(asker: Asker, resolvers: Sequence[str], names: Iterable[str]) -> dict[str, list[str]]:
    """Name → its addresses, IPv4 first."""
    found = {}
    for name in names:
        found[name] = [record for rtype in ("A", "AAAA") for record in asker.first(resolvers, name, rtype).records]
    return found
