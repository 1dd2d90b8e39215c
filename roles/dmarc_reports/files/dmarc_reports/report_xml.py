"""An aggregate report as XML: RFC 9990 (namespace dmarc-2.0), or RFC 7489 for receivers that read nothing else.

Every text goes through `_text`: what XML forbids becomes U+FFFD, so that no HELO, envelope or signature domain can
spoil a report. The same report always gives the same octets.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from xml.sax.saxutils import escape

from estate_arc_policy import record_tags

from .aggregate import Report, Row

NAMESPACE = "urn:ietf:params:xml:ns:dmarc-2.0"
GENERATOR = "estate dmarc_reports 1"

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Everything but Char of XML 1.0 §2.2."""


class Form(StrEnum):
    """Which specification a report follows."""

    RFC9990 = "rfc9990"
    RFC7489 = "rfc7489"


@dataclass(frozen=True)
class Reporter:
    """Who reports."""

    org_name: str
    email: str
    extra_contact_info: str = ""


def _text(value: str) -> str:
    return escape(_FORBIDDEN.sub("\ufffd", value), {"\r": "&#13;"})


def _element(depth: int, name: str, value: str) -> str:
    return f"{'  ' * depth}<{name}>{_text(value)}</{name}>"


def render(report: Report, reporter: Reporter, report_id: str, form: Form = Form.RFC9990) -> bytes:
    """The XML document, UTF-8. Raises ValueError for a report without rows, which no specification allows."""
    if not report.rows:
        raise ValueError(f"the report on {report.published.domain} has no rows")
    root = f'<feedback xmlns="{NAMESPACE}">' if form is Form.RFC9990 else "<feedback>"
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', root, _element(1, "version", "1.0")]
    lines += _metadata(report, reporter, report_id, form)
    lines += _published(report, form)
    for row, count in report.rows:
        lines += _record(row, count, form)
    lines += ["</feedback>", ""]
    return "\n".join(lines).encode("utf-8")


def _metadata(report: Report, reporter: Reporter, report_id: str, form: Form) -> Iterator[str]:
    yield "  <report_metadata>"
    yield _element(2, "org_name", reporter.org_name)
    yield _element(2, "email", reporter.email)
    if reporter.extra_contact_info:
        yield _element(2, "extra_contact_info", reporter.extra_contact_info)
    yield _element(2, "report_id", report_id)
    yield "    <date_range>"
    yield _element(3, "begin", str(report.begin))
    yield _element(3, "end", str(report.end))
    yield "    </date_range>"
    if report.configurations > 1:
        seen = (
            f"{report.configurations} different policies were seen; policy_published is the last, the rows are of all"
        )
        yield _element(2, "error", seen)
    if form is Form.RFC9990:
        yield _element(2, "generator", GENERATOR)
    yield "  </report_metadata>"


def _published(report: Report, form: Form) -> Iterator[str]:
    published = report.published
    yield "  <policy_published>"
    yield _element(2, "domain", published.domain)
    if form is Form.RFC9990:
        yield _element(2, "discovery_method", published.discovery_method)
    yield _element(2, "p", published.p)
    yield _element(2, "sp", published.sp)
    if form is Form.RFC9990:
        yield _element(2, "np", published.np)
    yield _element(2, "fo", published.fo)
    yield _element(2, "adkim", published.adkim)
    yield _element(2, "aspf", published.aspf)
    if form is Form.RFC9990:
        yield _element(2, "testing", published.testing)
    else:
        percent = record_tags(report.record).get("pct", "")
        yield _element(2, "pct", percent if re.fullmatch(r"[0-9]{1,2}|100", percent) else "100")
    yield "  </policy_published>"


def _record(row: Row, count: int, form: Form) -> Iterator[str]:
    old = form is Form.RFC7489
    yield "  <record>"
    yield "    <row>"
    yield _element(3, "source_ip", _long_address(row.source_ip) if old else row.source_ip)
    yield _element(3, "count", str(count))
    yield "      <policy_evaluated>"
    yield _element(4, "disposition", "none" if old and row.disposition == "pass" else row.disposition)
    yield _element(4, "dkim", row.dkim)
    yield _element(4, "spf", row.spf)
    for reason in row.reasons:
        unknown = old and reason.type == "policy_test_mode"
        comment = " ".join(filter(None, ("policy_test_mode", reason.comment))) if unknown else reason.comment
        yield "        <reason>"
        yield _element(5, "type", "other" if unknown else reason.type)
        if comment:
            yield _element(5, "comment", comment)
        yield "        </reason>"
    yield "      </policy_evaluated>"
    yield "    </row>"
    yield "    <identifiers>"
    if row.envelope_to:
        yield _element(3, "envelope_to", row.envelope_to)
    yield _element(3, "envelope_from", row.envelope_from)
    yield _element(3, "header_from", row.header_from)
    yield "    </identifiers>"
    yield "    <auth_results>"
    for domain, selector, result in row.dkim_results:
        yield "      <dkim>"
        yield _element(4, "domain", domain)
        if selector or not old:
            yield _element(4, "selector", selector)
        yield _element(4, "result", result)
        yield "      </dkim>"
    yield from _spf(row, old=old)
    yield "    </auth_results>"
    yield "  </record>"


def _spf(row: Row, *, old: bool) -> Iterator[str]:
    if row.spf_result is None and not old:
        return
    # RFC 7489 demands an SPF result even where nothing was checked
    domain, scope, result = row.spf_result or (row.envelope_from, "mfrom", "none")
    yield "      <spf>"
    yield _element(4, "domain", domain)
    # with the null sender the MAIL FROM identity is made from HELO (RFC 7208 §2.4), and RFC 9990 knows no other scope
    yield _element(4, "scope", scope if old else "mfrom")
    yield _element(4, "result", "neutral" if old and result == "policy" else result)
    yield "      </spf>"


def _long_address(text: str) -> str:
    """An address as the schema of RFC 7489 wants it: IPv6 with all eight groups."""
    address = ipaddress.ip_address(text)
    if address.version == 4:
        return text
    return ":".join(format(int(group, 16), "x") for group in address.exploded.split(":"))
