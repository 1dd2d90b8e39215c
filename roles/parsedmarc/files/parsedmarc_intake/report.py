"""A quick look into a report: is it one, how much is in it, can its figures be true (RFC 9990, RFC 7489, RFC 8460)?

Nothing is built in memory: the XML is only counted while it passes by. A report that is not well-formed is looked at
by its tags alone, since parsedmarc mends such reports.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from xml.parsers import expat

#: No single line of a report tells of more mail than this.
MAX_COUNT = 1_000_000_000
#: A report is about a day; a year is more than any is known to be about.
MAX_SPAN = 366 * 86_400
#: How far a reporter's clock may be ahead, in seconds; a report's period may end at the day's end.
AHEAD = 2 * 86_400
MAX_DEPTH = 40
#: Elements for each record that is allowed: a record with ten signatures has eighty.
ELEMENTS_PER_RECORD = 40
#: TLS reports are small, and reading JSON takes many times its size.
MAX_JSON = 10 << 20

TOO_MANY = "too-many-records"
HOSTILE = "hostile"
IMPLAUSIBLE = "implausible"
NOT_A_REPORT = "not-a-report"


class Refused(Exception):
    """The report does not belong into the database."""

    def __init__(self, kind: str, reason: str, facts: Facts | None = None) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.facts = facts


@dataclass(frozen=True)
class Facts:
    """What a report is known by. Times are seconds since 1970, as the report has them."""

    type: str
    org_name: str | None = None
    report_id: str | None = None
    domain: str | None = None
    begin: int | None = None
    end: int | None = None
    records: int = 0

    @property
    def key(self) -> tuple[str, str, int, int] | None:
        """What parsedmarc stores an aggregate report by, apart from the reporter's name; None if a part is missing."""
        if self.type != "aggregate" or not self.report_id or not self.domain or self.begin is None or self.end is None:
            return None
        return stored_id(self.report_id), self.domain, self.begin, self.end


def stored_id(report_id: str) -> str:
    """The report id as parsedmarc 11.1 stores it."""
    return report_id.replace("<", "").replace(">", "").split("@")[0]


def number(text: str | None) -> int | None:
    """A time stamp as parsedmarc reads it: fractions are cut off. None if it is none."""
    try:
        return int((text or "").strip().split(".")[0])
    except ValueError:
        return None


class _Counter:
    """Counts what passes by in the XML and keeps the few texts that a report is known by."""

    WANTED: ClassVar = {
        ("report_metadata", "org_name"): "org_name",
        ("report_metadata", "report_id"): "report_id",
        ("date_range", "begin"): "begin",
        ("date_range", "end"): "end",
        ("policy_published", "domain"): "domain",
        ("row", "count"): "count",
    }

    def __init__(self, max_records: int) -> None:
        self.max_records = max_records
        self.path: list[str] = []
        self.root = ""
        self.elements = self.records = 0
        self.texts: dict[str, str] = {}
        self.counts: list[str] = []
        self.keep: str | None = None
        self.text: list[str] = []

    def facts(self) -> Facts:
        """What is known so far."""
        texts = self.texts
        return Facts(
            "aggregate",
            texts.get("org_name"),
            texts.get("report_id"),
            texts.get("domain"),
            number(texts.get("begin")),
            number(texts.get("end")),
            self.records,
        )

    def start(self, name: str, _attributes: dict[str, str]) -> None:
        """An element begins."""
        self.elements += 1
        name = name.rpartition(":")[2]
        if not self.path:
            self.root = name
        self.path.append(name)
        if len(self.path) > MAX_DEPTH:
            raise Refused(HOSTILE, f"Its XML is nested deeper than {MAX_DEPTH} elements.", self.facts())
        if len(self.path) == 2 and name == "record":
            self.records += 1
        if self.records > self.max_records or self.elements > self.max_records * ELEMENTS_PER_RECORD + 1000:
            raise Refused(
                TOO_MANY,
                f"It has more than {self.max_records} records, or as many elements as if it had.",
                self.facts(),
            )
        self.keep = self.WANTED.get((self.path[-2], name)) if len(self.path) > 1 else None
        self.text = []

    def data(self, text: str) -> None:
        """Text passes by."""
        if self.keep and len(self.text) < 100:
            self.text.append(text)

    def end(self, _name: str) -> None:
        """An element ends."""
        self.path.pop()
        if self.keep:
            text = "".join(self.text).strip()[:500]
            if self.keep == "count":
                self.check_count(text)
            else:
                self.texts.setdefault(self.keep, text)
        self.keep = None

    def check_count(self, text: str) -> None:
        """A count of messages is a number that can be true."""
        count = number(text)
        if count is not None and not 0 <= count <= MAX_COUNT:
            raise Refused(IMPLAUSIBLE, f"A record says that it stands for {text[:40]} messages.", self.facts())

    def doctype(self, *_: Any) -> None:
        """No report has a document type; whoever sends one tries something."""
        raise Refused(HOSTILE, "It has a DOCTYPE declaration (entities, XXE).", self.facts())


_TAG = re.compile(rb"<record[\s>]")
_FIELD = re.compile(rb"<(org_name|report_id|begin|end|domain|count)>\s*([^<]{1,500}?)\s*<")


def aggregate(content: bytes, max_records: int, now: float | None = None) -> Facts:
    """Look into an aggregate report.

    ``content`` is the XML as it was unpacked. Returns what the report is known by; raises Refused.
    """
    counter = _Counter(max_records)
    # parsedmarc reads every report as UTF-8, whatever the XML says, and leaves out what is not.
    content = content.decode("utf-8", "ignore").encode()
    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = counter.start
    parser.EndElementHandler = counter.end
    parser.CharacterDataHandler = counter.data
    parser.StartDoctypeDeclHandler = counter.doctype
    parser.buffer_text = True
    try:
        parser.Parse(content, True)
        facts = counter.facts()
        root = counter.root
    except expat.ExpatError as error:
        facts = _by_tags(content.replace(b"\0", b""), max_records)
        root = "feedback" if b"<feedback" in content else counter.root
        if root != "feedback":
            raise Refused(NOT_A_REPORT, f"It is neither a report nor XML: {error}.") from error
        if not facts.report_id and not facts.records:
            raise Refused(NOT_A_REPORT, f"Nothing of a report can be read in its broken XML: {error}.") from error
        _check_period(facts, now)
        return facts
    if root != "feedback":
        raise Refused(NOT_A_REPORT, f"Its XML is a <{root[:40]}>, not a <feedback>.")
    missing = [
        name
        for name, value in (
            ("report_id", facts.report_id),
            ("domain", facts.domain),
            ("begin", counter.texts.get("begin")),
            ("end", counter.texts.get("end")),
        )
        if not value
    ]
    if missing:
        raise Refused(NOT_A_REPORT, f"The aggregate report has no {', '.join(missing)}.", facts)
    if facts.begin is None or facts.end is None:
        raise Refused(IMPLAUSIBLE, "The report's period is not given in seconds since 1970.", facts)
    _check_period(facts, now)
    return facts


def _by_tags(content: bytes, max_records: int) -> Facts:
    """What a broken report is known by, and the same limits."""
    if re.search(rb"<!\s*(DOCTYPE|ENTITY)", content, re.IGNORECASE):
        raise Refused(HOSTILE, "It has a DOCTYPE declaration (entities, XXE).")
    records = sum(1 for _ in _TAG.finditer(content))
    texts: dict[str, str] = {}
    counter = _Counter(max_records)
    for name, value in _FIELD.findall(content):
        field, text = name.decode(), value.decode("utf-8", "replace")
        if field == "count":
            counter.check_count(text)
        elif field != "domain" or b"policy_published" in content:
            texts.setdefault(field, text)
    facts = Facts(
        "aggregate",
        texts.get("org_name"),
        texts.get("report_id"),
        texts.get("domain"),
        number(texts.get("begin")),
        number(texts.get("end")),
        records,
    )
    if records > max_records or content.count(b"<") > 2 * (max_records * ELEMENTS_PER_RECORD + 1000):
        raise Refused(TOO_MANY, f"It has more than {max_records} records, or as many elements as if it had.", facts)
    return facts


def _check_period(facts: Facts, now: float | None) -> None:
    if facts.begin is None or facts.end is None:
        return
    now = time.time() if now is None else now
    if facts.end < facts.begin:
        raise Refused(IMPLAUSIBLE, "The report's period ends before it begins.", facts)
    if facts.end - facts.begin > MAX_SPAN:
        days = (facts.end - facts.begin) // 86_400
        raise Refused(IMPLAUSIBLE, f"The report is about {days} days.", facts)
    if facts.begin < 0 or facts.end > now + AHEAD:
        raise Refused(IMPLAUSIBLE, "The report's period is in the future, or before 1970.", facts)


def _when(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError):
        return None


def tls(content: bytes, max_records: int, now: float | None = None) -> Facts:
    """Look into a TLS report (RFC 8460, section 4). Returns what it is known by; raises Refused."""
    if len(content) > MAX_JSON:
        raise Refused("too-large", f"The TLS report has more than {MAX_JSON} bytes.")
    try:
        report = json.loads(content.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise Refused(NOT_A_REPORT, f"It is not JSON that can be read: {str(error)[:200]}.") from error
    if not isinstance(report, dict):
        raise Refused(NOT_A_REPORT, "Its JSON is not a TLS report.")
    period = report.get("date-range")
    policies = report.get("policies")
    if not isinstance(period, dict) or not isinstance(policies, list) or "report-id" not in report:
        raise Refused(NOT_A_REPORT, "The TLS report has no date-range, policies or report-id (RFC 8460, section 4.4).")
    begin, end = _when(period.get("start-datetime")), _when(period.get("end-datetime"))
    name = report.get("organization-name")
    facts = Facts(
        "tls",
        str(name)[:500] if name is not None else None,
        str(report["report-id"])[:500],
        None,
        None if begin is None else int(begin),
        None if end is None else int(end),
        len(policies),
    )
    details = 0
    for policy in policies:
        if not isinstance(policy, dict):
            continue
        failures = policy.get("failure-details")
        failures = failures if isinstance(failures, list) else []
        details += 1 + len(failures)
        if details > max_records:
            raise Refused(TOO_MANY, f"It has more than {max_records} policies and failures.", facts)
        summary = policy.get("summary")
        counts = list(summary.values()) if isinstance(summary, dict) else []
        counts += [failure.get("failed-session-count") for failure in failures if isinstance(failure, dict)]
        for count in counts:
            if isinstance(count, int | float) and not 0 <= count <= MAX_COUNT:
                raise Refused(IMPLAUSIBLE, f"It tells of {str(count)[:40]} sessions.", facts)
    if begin is None or end is None:
        raise Refused(IMPLAUSIBLE, "The TLS report's period is not a pair of dates.", facts)
    _check_period(facts, now)
    return facts
