"""The columns of the export: what each holds, how it is masked, which values may be in it at all.

The data description, the types of both formats and the check of the finished files all come from these tables.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

from dmarc_reports.events import DISPOSITIONS, DKIM_RESULTS, OVERRIDES, SPF_RESULTS, Event, Policy, Signature

from .export_mask import Groups, Mask, round_count, round_time

MAX_SIGNATURES = 10
TOKEN = "[0-9a-f]{16}"
NAME = rf"(own-[0-9]+(-{TOKEN})?|out-{TOKEN})"
POLICIES = ("none", "quarantine", "reject")
KINDS = ("own", "provider", "forwarder", "spoof")

Cell = str | int | bool | None


@dataclass(frozen=True)
class Column:
    """One column; ``kind`` is a type of the Table Schema standard, or ``address`` for a string that is one."""

    name: str
    kind: str
    about: str
    masking: str
    choices: tuple[str, ...] = ()
    pattern: str = ""
    group: str = ""
    """Kept only where a group is large: the groups' name."""

    @property
    def sql_type(self) -> str:
        """The type in both formats."""
        types = {"integer": "BIGINT", "boolean": "BOOLEAN", "date": "DATE", "datetime": "TIMESTAMP"}
        return types.get(self.kind, "VARCHAR")


def _name(name: str, about: str) -> Column:
    return Column(name, "string", about, "pseudonym", pattern=NAME)


def _choice(name: str, about: str, choices: Iterable[str], masking: str = "kept") -> Column:
    return Column(name, "string", about, masking, choices=tuple(choices))


ADDRESS = Column(
    "source", "address", "Address that the mail came from.",
    "Crypto-PAn; addresses of the operator's own hosts with another key than the rest",
)  # fmt: skip
KIND = _choice("source_kind", "Whose address it is, as far as the operator has decided.", KINDS)

EVENTS = (
    Column("time", "datetime", "When the message came (UTC).", "rounded down to the beginning of {hours} h"),
    Column("gateway", "string", "The host that took it.", "pseudonym", pattern=f"gw-{TOKEN}"),
    ADDRESS,
    KIND,
    _name("helo", "What the sender called itself (EHLO); empty where that was no domain name."),
    _name("envelope_from", "Domain of the envelope sender; empty for the null sender."),
    _name("envelope_to", "Domain of the recipients; empty where there were several."),
    _name("header_from", "Author domain."),
    _choice("dns", "Whether the DNS answered.", ("ok", "temperror")),
    _name("policy_domain", "Domain whose DMARC policy governed; empty where there was none."),
    _choice("discovery", "How the policy was found.", ("psl", "treewalk")),
    _choice("p", "Policy of the domain.", POLICIES),
    _choice("sp", "Policy for its subdomains.", POLICIES),
    _choice("np", "Policy for subdomains that do not exist.", POLICIES),
    _choice("adkim", "Alignment of DKIM: relaxed or strict.", ("r", "s")),
    _choice("aspf", "Alignment of SPF: relaxed or strict.", ("r", "s")),
    Column("testing", "boolean", "Test mode (t=y).", "kept"),
    _choice("applied", "Which of p, sp and np applied.", ("p", "sp", "np")),
    _choice("requested", "What was asked for, after test mode.", POLICIES),
    _name("spf_domain", "Domain that SPF was checked for."),
    _choice("spf_scope", "Where that domain stood.", ("mfrom", "helo")),
    _choice("spf_result", "Result of SPF.", SPF_RESULTS),
    Column("spf_aligned", "boolean", "SPF passed for a domain aligned with the author's.", "kept"),
    Column("signatures", "integer", "Number of DKIM signatures.", f"{MAX_SIGNATURES} stands for all above"),
    Column("signatures_passed", "integer", "How many of them passed.", f"{MAX_SIGNATURES} stands for all above"),
    _name("dkim_domain", "Domain of the most telling signature: aligned before passed before the rest."),
    Column(
        "dkim_selector", "string", "Its selector.", "pseudonym, for each domain differently", pattern=f"sel-{TOKEN}"
    ),
    _choice("dkim_result", "Its result.", DKIM_RESULTS),
    Column("dkim_aligned", "boolean", "DKIM passed for a domain aligned with the author's.", "kept"),
    _choice("dmarc", "Result of DMARC.", ("none", "pass", "fail", "temperror")),
    _choice("disposition", "What was done.", DISPOSITIONS),
    _choice("override", "Why that is not what the policy asked for.", OVERRIDES, "the first kind; comments left out"),
)

REPORTED_OVERRIDES = ("forwarded", "local_policy", "mailing_list", "other", "policy_test_mode", "sampled_out",
                      "trusted_forwarder")  # fmt: skip

REPORTS = (
    Column("day", "date", "UTC day in which the report's period begins.", "rounded down to the day"),
    Column("reporter", "string", "Organisation that sent the report.", "pseudonym", pattern=f"rep-{TOKEN}"),
    _name("policy_domain", "Own domain that the report is about."),
    _choice("p", "Policy that most reports of the day name.", POLICIES),
    _choice("sp", "The same for subdomains.", POLICIES),
    _choice("np", "The same for subdomains that do not exist.", POLICIES),
    Column("testing", "boolean", "Test mode (t=y).", "kept"),
    _name("header_from", "Author domain."),
    _name("envelope_from", "Domain of the envelope sender where it is one of the operator's; else empty."),
    ADDRESS,
    KIND,
    Column(
        "country", "string", "Country of the address (ISO 3166-1).", "empty below {k} sources in the period",
        pattern="[A-Z]{2}", group="country",
    ),
    Column(
        "asn", "integer", "Autonomous system of the address.", "empty below {k} sources in the period", group="asn"
    ),
    Column(
        "source_type", "string", "Kind of the operator of the address.", "empty below {k} sources in the period",
        pattern="[A-Za-z][A-Za-z &/-]{0,39}", group="source_type",
    ),
    Column("spf_aligned", "boolean", "SPF passed, aligned.", "kept"),
    Column("dkim_aligned", "boolean", "DKIM passed, aligned.", "kept"),
    _choice("disposition", "What the reporter did.", POLICIES),
    Column("forwarded", "boolean", "The reporter took the mail for forwarded.", "kept"),
    _choice("override", "Why the disposition is not what the policy asked for.", REPORTED_OVERRIDES,
            "the first kind; comments left out"),
    Column(
        "messages", "integer", "Number of messages.",
        "two significant digits; empty for 1 to {below}",
    ),
)  # fmt: skip

TABLES: dict[str, tuple[str, Sequence[Column]]] = {
    "events": ("Mail that came in at the operator's gateways, one row a message.", EVENTS),
    "reports": ("What other receivers reported of mail that used the operator's domains.", REPORTS),
}


@dataclass(frozen=True)
class Rules:
    """How coarse the export is."""

    hours: int = 1
    k: int = 5
    small: int = 5
    with_as: bool = True

    def text(self, masking: str) -> str:
        """Put the numbers into a column's note on masking."""
        return masking.format(hours=self.hours, k=self.k, below=self.small - 1)


def event_row(event: Event, mask: Mask, rules: Rules) -> list[Cell]:
    """The masked row of one event."""
    policy, spf = event.policy, event.spf
    told = min(
        event.dkim, key=lambda one: (not one.aligned, one.result != "pass", one.domain, one.selector), default=None
    )
    passed = sum(one.result == "pass" for one in event.dkim)
    return [
        _moment(round_time(event.time, rules.hours)),
        mask.gateway(event.gateway),
        *mask.address(event.source_ip),
        mask.name(event.helo),
        mask.name(event.envelope_from),
        mask.name(event.envelope_to[0]) if len(event.envelope_to) == 1 else None,
        mask.name(event.header_from),
        event.dns,
        *(_policy(policy, mask) if policy else (None,) * 10),
        *((mask.name(spf.domain), spf.scope, spf.result) if spf else (None,) * 3),
        bool(spf and spf.aligned),
        min(len(event.dkim), MAX_SIGNATURES),
        min(passed, MAX_SIGNATURES),
        *_signature(told, mask),
        any(one.aligned for one in event.dkim),
        event.dmarc,
        event.disposition,
        event.overrides[0].type if event.overrides else None,
    ]


@cache
def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _policy(policy: Policy, mask: Mask) -> tuple[Cell, ...]:
    return (
        mask.name(policy.domain), policy.discovery_method, policy.p, policy.sp, policy.np, policy.adkim, policy.aspf,
        policy.t == "y", policy.applied, policy.requested,
    )  # fmt: skip


def _signature(one: Signature | None, mask: Mask) -> tuple[Cell, Cell, Cell]:
    if one is None:
        return None, None, None
    return mask.name(one.domain), mask.selector(one.domain, one.selector), one.result


def report_row(row: Sequence[Any], mask: Mask, rules: Rules, groups: Groups) -> list[Cell]:
    """The masked row of one line of ``dma.export_reports``; groups are counted, and cut when all rows are known."""
    (day, reporter, policy_domain, p, sp, np, testing, header_from, envelope_from, ip, country, asn, source_type,
     spf_aligned, dkim_aligned, disposition, forwarded, overrides, messages) = row  # fmt: skip
    source, kind = mask.address(ip)
    unit = _network(ip)
    asn = asn if rules.with_as else None
    source_type = source_type if rules.with_as else None
    for name, value in (("country", country), ("asn", asn), ("source_type", source_type)):
        if value is not None:
            groups.add((name, str(value)), unit)
    override = overrides.partition(",")[0]
    return [
        day, mask.reporter(reporter), mask.name(policy_domain), p, sp, np, testing, mask.name(header_from),
        mask.name(envelope_from or ""), source, kind, country, asn, source_type, spf_aligned, dkim_aligned,
        disposition, forwarded, override if override in REPORTED_OVERRIDES else None,
        round_count(messages, rules.small),
    ]  # fmt: skip


def _network(ip: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 of an IPv6 address, which one host may fill alone."""
    if ":" not in ip:
        return ip
    return str(ipaddress.ip_network(f"{ip}/64", strict=False))
