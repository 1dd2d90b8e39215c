"""Bounded DNS look-ups with a small cache, for ARC keys and DMARC records.

The resolver asked is the host's own validating one on loopback; the cache here only saves the query of names that
every other message needs. A failure is remembered for a few seconds, so that a dead name server does not hold up each
message anew.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver

from estate_arc_policy import TemporaryDnsError

FAILURE_SECONDS = 5.0
NEGATIVE_SECONDS = 60.0
LONGEST_SECONDS = 3600.0

Answer = tuple[tuple[bytes, ...], float]
"""The strings of a record set, each record's joined, and the seconds they stay valid."""


class Resolver:
    """TXT records and the existence of names, from the servers given."""

    def __init__(
        self,
        servers: Sequence[str],
        seconds: float,
        *,
        entries: int = 20_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`seconds` bounds one look-up, `entries` the cache."""
        self._resolver = dns.resolver.Resolver(configure=False)
        self._resolver.nameservers = list(servers)
        self._resolver.use_edns(0, 0, 1232)
        self._seconds, self._entries, self._clock = seconds, entries, clock
        self._cache: OrderedDict[tuple[str, str], tuple[float, tuple[bytes, ...] | None]] = OrderedDict()
        self._lock = threading.Lock()
        self.failures = 0

    def txt(self, name: str, deadline: float) -> tuple[bytes, ...]:
        """The TXT records of a name, none if there are none.

        `deadline` is on the clock given (monotonic by default); raises TemporaryDnsError at the latest then.
        """
        return self._cached(name.lower(), "TXT", deadline)

    def exists(self, name: str, deadline: float) -> bool:
        """Has the name an A, AAAA or MX record (RFC 9989 §3.2.13, non-existent domains)? Raises TemporaryDnsError."""
        return any(self._cached(name.lower(), kind, deadline) for kind in ("MX", "A", "AAAA"))

    def _cached(self, name: str, kind: str, deadline: float) -> tuple[bytes, ...]:
        now = self._clock()
        with self._lock:
            expiry, value = self._cache.get((name, kind), (now, None))
            if expiry > now:
                self._cache.move_to_end((name, kind))
                if value is None:
                    raise TemporaryDnsError(name)
                return value
        if deadline <= now:
            raise TemporaryDnsError(name)
        answer: tuple[bytes, ...] | None
        try:
            answer, lifetime = self._ask(name, kind, min(self._seconds, deadline - now))
        except TemporaryDnsError:
            answer, lifetime = None, FAILURE_SECONDS
        with self._lock:
            self._cache[name, kind] = (self._clock() + lifetime, answer)
            while len(self._cache) > self._entries:
                self._cache.popitem(last=False)
            if answer is None:
                self.failures += 1
        if answer is None:
            raise TemporaryDnsError(name)
        return answer

    def _ask(self, name: str, kind: str, seconds: float) -> Answer:
        try:
            reply = self._resolver.resolve(name, kind, lifetime=seconds, raise_on_no_answer=False, search=False)
        except (dns.resolver.NXDOMAIN, dns.name.LabelTooLong, dns.name.NameTooLong, dns.name.EmptyLabel):
            return (), NEGATIVE_SECONDS
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            raise TemporaryDnsError(name) from error
        if reply.rrset is None:
            return (), NEGATIVE_SECONDS
        if kind == "TXT":
            values = tuple(b"".join(record.strings) for record in reply.rrset)
        else:
            values = tuple(record.to_text().encode("ascii", "replace") for record in reply.rrset)
        return values, min(max(float(reply.rrset.ttl), FAILURE_SECONDS), LONGEST_SECONDS)
