"""Whose posts get a rewritten From: the author domain's DMARC policy, found as RFC 9989 says.

Mailman's rule ``dmarc-mitigation`` looks for the organizational domain in a public suffix list that it fetches from the
net, and knows neither ``np`` nor ``t`` nor ``psd``. Its decision is replaced here; what follows from it (rewriting,
wrapping, refusing) stays Mailman's. The tree walk and the resolver are those of the gateways' milter (``shared/``).

- Rewriting and wrapping take a policy in test mode (``t=y``) for a full one. The tag succeeds ``pct=0``, which owners
  published to see what lists would do (RFC 9989, appendix on the removal of ``pct``), and a receiver that does not know
  the tag applies the policy. Refusing and discarding go one level down, as for any receiver (§4.7).
- A failing DNS, a From without one author, or an error here counts as a policy: a needlessly rewritten From does no
  harm, a missing rewriting loses members.
- One decision takes a few seconds at most; when the resolver answers nobody, the next ones take none.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from email.utils import getaddresses
from pathlib import Path
from typing import Any, Protocol

_SHARED = str(Path(__file__).with_name("shared"))
if _SHARED not in sys.path:
    sys.path.append(_SHARED)

from estate_arc_dns import Resolver  # noqa: E402
from estate_arc_policy import Policy, TemporaryDnsError, discover, normal_domain  # noqa: E402
from mailman_estate.settings import number  # noqa: E402

DNS_SECONDS = 4
"""Longest wait for one decision, all look-ups together."""
SILENT_AFTER = 2
"""So many decisions in a row that ran into the limit: the resolver is taken for dead."""
SILENT_SECONDS = 10.0
CACHE_ENTRIES = 5_000
REWRITING = frozenset(("munge_from", "wrap_message"))

vlog = logging.getLogger("mailman.vette")
elog = logging.getLogger("mailman.error")


class Lookups(Protocol):
    """What a decision needs of the DNS; both raise TemporaryDnsError. ``deadline`` is on the monotonic clock."""

    def txt(self, name: str, deadline: float) -> tuple[bytes, ...]: ...

    def exists(self, name: str, deadline: float) -> bool: ...


class Judge:
    """Finds the policies of author domains, within a time limit."""

    def __init__(self, resolver: Lookups, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._resolver, self._seconds, self._clock = resolver, seconds, clock
        self._late, self._silent_until = 0, float("-inf")

    def policy(self, domain: str) -> Policy | None:
        """The policy that governs an author domain, None if there is none. Raises TemporaryDnsError."""
        started = self._clock()
        if started < self._silent_until:
            raise TemporaryDnsError(domain)
        deadline = started + self._seconds
        try:
            found = discover(
                domain,
                lambda name: self._resolver.txt(name, deadline),
                lambda name: self._resolver.exists(name, deadline),
            )
        except TemporaryDnsError:
            if self._clock() >= deadline:
                self._late += 1
                if self._late >= SILENT_AFTER:
                    self._silent_until = self._clock() + SILENT_SECONDS
            raise
        self._late = 0
        return found

    def asks(self, domain: str, *, rewriting: bool) -> tuple[bool, str]:
        """Does the policy of an author domain call for mitigation, and why (for the log)?

        ``rewriting``: is a rewritten From what follows (and not a refusal)?
        """
        try:
            found = self.policy(domain)
        except TemporaryDnsError:
            return True, f"the DNS does not answer for {domain}"
        if found is None:
            return False, f"{domain} has no DMARC policy"
        level = found.published if rewriting else found.requested
        return level != "none", f"_dmarc.{found.record.domain} says {found.applied}={level} for {domain}"


def author_addresses(fields: Iterable[object]) -> list[str]:
    """The addresses in the From fields of a message; what is no address is left out."""
    return [address for _, address in getaddresses([str(field) for field in fields]) if "@" in address]


def is_listed(email: str, patterns: Iterable[str]) -> bool:
    """Is an address among a list's ``dmarc_addresses`` (addresses, or regular expressions with a leading caret)?"""
    for pattern in patterns:
        if not pattern.startswith("^"):
            if pattern.lower() == email:
                return True
            continue
        try:
            if re.search(pattern, email, re.IGNORECASE):
                return True
        except re.error as error:
            elog.error("dmarc_addresses: %r is no regular expression (%s)", pattern, error)
    return False


def build_judge(settings: Mapping[str, str]) -> Judge:
    """A judge from the settings ``resolver`` (addresses; none: those of /etc/resolv.conf) and ``dns_seconds``."""
    servers = settings.get("resolver", "").replace(",", " ").split()
    if not servers:
        import dns.resolver

        servers = [str(server) for server in dns.resolver.Resolver().nameservers]
    seconds = number(settings, "dns_seconds", DNS_SECONDS, 1, 10)
    return Judge(Resolver(servers, seconds, entries=CACHE_ENTRIES), seconds)


def install(settings: Mapping[str, str] | None = None) -> None:
    """Put our decision into Mailman's rule. Once per process; a second call changes the settings only."""
    from mailman.rules import dmarc as stock

    judges: list[Judge] = []

    def maybe_mitigate(mlist: Any, email: str) -> bool:
        rewriting = mlist.dmarc_mitigate_action.name in REWRITING
        email = email.lower()
        if is_listed(email, mlist.dmarc_addresses):
            return True
        domain = normal_domain(email.rpartition("@")[2]) if "@" in email else ""
        if not domain:
            return rewriting
        if not judges:  # not at start: only one of Mailman's processes ever asks
            judges.append(build_judge(settings or {}))
        wanted, reason = judges[0].asks(domain, rewriting=rewriting)
        if wanted:
            vlog.info("%s: DMARC mitigation (%s): %s", mlist.fqdn_listname, mlist.dmarc_mitigate_action.name, reason)
        return wanted

    stock.maybe_mitigate = maybe_mitigate
    rule = stock.DMARCMitigation
    stock_check = getattr(rule.check, "stock", rule.check)

    def check(self: Any, mlist: Any, msg: Any, msgdata: dict[str, Any]) -> bool:
        """See `IRule`."""
        action = mlist.dmarc_mitigate_action.name
        if action == "no_mitigation" or (action in REWRITING and mlist.anonymous_list):
            return False
        try:
            if action in REWRITING and len(author_addresses(msg.get_all("from", []))) != 1:
                msgdata["dmarc"] = True
                return False
            return bool(stock_check(self, mlist, msg, msgdata))
        except Exception:
            elog.exception("%s: DMARC decision failed, the post goes on", mlist.fqdn_listname)
            if action in REWRITING:
                msgdata["dmarc"] = True
            return False

    check.stock = stock_check  # type: ignore[attr-defined]
    rule.check = check
