#!/usr/bin/env python3
"""Are the DMARC reports right? Thousands of messages of a known mix through both gateways, every row compared.

For each kind of message this file says by hand what a report has to say of it (``KINDS``): nothing of the truth comes
from the programs under test. The messages go from load.example.net (198.18.25.110 and its IPv6 address) by turns to
mail-gw1 and mail-gw2; their author domains stand in inventory/lab/group_vars/lab_world/dns.yml. Then the events are
taken from the store on the analytics host (or, with ``--events spool``, from the gateways' files), the reports of the
day are made from them by the installed generator (or by the one in this tree), validated against the schemas of
RFC 9990 and RFC 7489, and compared: every row, every count, one report for each domain.

The day is not closed: the generator reads what is stored, and only this run's events. So a run can be repeated.

Exit status: 0 everything equal; 1 a difference; 2 the lab is not ready or a message was not taken.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchlib import SINK, WORLD, Agent, BenchError, Sink, ends_tidily, new_run, podman

ROOT = Path(__file__).resolve().parents[2]
for part in ("lab", "roles/arc/files", "roles/dmarc_reports/files", "tests/unit"):
    sys.path.insert(0, str(ROOT / part))

import dkim  # noqa: E402
from dmarc_report_schema import faults, read  # noqa: E402

from estatelib import keys  # noqa: E402

GATEWAYS = {"lab-mail-gw1": "198.18.25.11", "lab-mail-gw2": "198.18.25.12"}
GATEWAYS_6 = {"lab-mail-gw1": "2001:db8:25::11", "lab-mail-gw2": "2001:db8:25::12"}
ANALYTICS = "lab-analytics"
SOURCES = ("198.18.25.110", "2001:db8:25::110")
"""Exempt from the gateways' limits for one client."""
HELO = "load.example.net"
TO = "load{}@load.example.org"
KEY_OF = "example.com"
"""Whose key the domains of this bench publish."""
SIGNED = [b"from", b"to", b"subject", b"mime-version", b"content-type"]
SECONDS = 1500
SPOOL = "find /var/spool/estate-dmarc -name '*.jsonl' ! -name '*.bench.jsonl' -exec cat {} +"
NOT_REFUSED = ("local_policy", "not refused on p=reject alone (RFC 9989 7.4)")
TRUSTED = ("trusted_forwarder", "ARC")
TEST_MODE = ("policy_test_mode", "")

Reasons = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Signature:
    """A DKIM signature of a message and the result it must have."""

    domain: str
    selector: str = "s1"
    result: str = "pass"


@dataclass(frozen=True)
class Row:
    """A row of a report, without its count."""

    source_ip: str
    disposition: str
    dkim: str
    spf: str
    reasons: Reasons
    header_from: str
    envelope_from: str
    envelope_to: str
    dkim_results: tuple[tuple[str, str, str], ...]
    spf_result: tuple[str, str, str] | None


@dataclass(frozen=True)
class Kind:
    """Messages of one kind, and what the report must say of them."""

    about: str
    weight: int
    author: str
    """The author domain as the report must name it."""
    policy: str
    """The policy domain; empty where no report may count these messages."""
    disposition: str
    dkim: str
    """Aligned or not, as the report says: pass or fail."""
    spf: str
    spf_result: str
    sender: str
    """The envelope sender."""
    spf_domain: str = ""
    """If it is not the domain of the envelope sender."""
    envelope_from: str | None = None
    """If the report must name another domain than is written in ``sender``."""
    reasons: Reasons = ()
    signatures: tuple[Signature, ...] = ()
    sealer: str = ""
    """A forwarder that broke the signatures and sealed: ARC with its key, claiming that DMARC passed."""
    helo: str = HELO
    written_author: str = ""
    """If the From field writes the domain otherwise."""
    also_to: str = ""
    """A recipient in a second domain."""

    @property
    def sender_domain(self) -> str:
        """The domain of the envelope sender, as the report must name it."""
        return self.sender.rpartition("@")[2] if self.envelope_from is None else self.envelope_from

    def row(self, family: int) -> Row:
        """The row that a message counts in."""
        return Row(
            source_ip=SOURCES[family],
            disposition=self.disposition,
            dkim=self.dkim,
            spf=self.spf,
            reasons=self.reasons,
            header_from=self.author,
            envelope_from=self.sender_domain,
            envelope_to="" if self.also_to else "load.example.org",
            dkim_results=tuple(sorted((one.domain, one.selector, one.result) for one in self.signatures)),
            # RFC 9990 has no other scope than mfrom
            spf_result=(self.spf_domain or self.sender_domain, "mfrom", self.spf_result),
        )


DE, FR, IT, NL, ES, IDN = "example.de", "example.fr", "example.it", "example.nl", "example.es", "xn--r8jz45g.jp"
ELSEWHERE = "user@load.example.net"  # SPF passes, not aligned with anybody here
REFUSED_THERE = "user@example.com"  # SPF fails
OF_DE, OF_FR, OF_NL, OF_IDN = (Signature(domain) for domain in (DE, FR, NL, IDN))
BROKEN = Signature(DE, "s1", "fail")

KINDS = [
    Kind("aligned by both", 8, DE, DE, "pass", "pass", "pass", "pass", f"user@{DE}", signatures=(OF_DE,)),
    Kind("aligned by SPF alone", 5, DE, DE, "pass", "fail", "pass", "pass", f"user@{DE}"),
    Kind("aligned by SPF of a subdomain", 3, DE, DE, "pass", "fail", "pass", "pass", f"user@bounce.{DE}"),
    Kind("aligned by DKIM, SPF elsewhere", 4, DE, DE, "pass", "pass", "fail", "pass", ELSEWHERE, signatures=(OF_DE,)),
    Kind("forwarded as it came: SPF fails, DKIM survives", 4, DE, DE, "pass", "pass", "fail", "fail", REFUSED_THERE,
         signatures=(OF_DE,)),
    Kind("unaligned SPF", 4, DE, DE, "quarantine", "fail", "fail", "pass", ELSEWHERE, reasons=(NOT_REFUSED,)),
    Kind("SPF and DKIM fail", 4, DE, DE, "quarantine", "fail", "fail", "fail", REFUSED_THERE, reasons=(NOT_REFUSED,),
         signatures=(BROKEN,)),
    Kind("DKIM of somebody else", 3, DE, DE, "quarantine", "fail", "fail", "pass", ELSEWHERE, reasons=(NOT_REFUSED,),
         signatures=(Signature("example.co.jp"),)),
    Kind("three signatures: own, another's, broken", 3, DE, DE, "pass", "pass", "fail", "pass", ELSEWHERE,
         signatures=(OF_DE, Signature("example.co.jp"), Signature(DE, "s2", "fail"))),
    Kind("the same selector twice, one broken", 2, DE, DE, "pass", "pass", "fail", "pass", ELSEWHERE,
         signatures=(OF_DE, BROKEN)),
    Kind("key not to be had now, SPF aligned", 2, DE, DE, "pass", "fail", "pass", "pass", f"user@{DE}",
         signatures=(Signature(DE, "s1.lame", "temperror"),)),
    Kind("key that is not there", 2, DE, DE, "pass", "fail", "pass", "pass", f"user@{DE}",
         signatures=(Signature(DE, "nokey", "permerror"),)),
    Kind("SPF softfail", 2, DE, DE, "pass", "pass", "fail", "softfail", f"user@soft.{DE}", signatures=(OF_DE,)),
    Kind("SPF neutral", 2, DE, DE, "pass", "pass", "fail", "neutral", f"user@neutral.{DE}", signatures=(OF_DE,)),
    Kind("SPF none", 2, DE, DE, "pass", "pass", "fail", "none", f"user@nospf.{DE}", signatures=(OF_DE,)),
    Kind("SPF permerror", 2, DE, DE, "pass", "pass", "fail", "permerror", f"user@broken.{DE}", signatures=(OF_DE,)),
    Kind("SPF temperror", 2, DE, DE, "pass", "pass", "fail", "temperror", f"user@slow.{DE}", signatures=(OF_DE,)),
    Kind("null sender: SPF of HELO", 3, DE, DE, "pass", "fail", "pass", "pass", "", helo=f"mx.{DE}",
         spf_domain=f"mx.{DE}"),
    Kind("HELO is an address", 2, DE, DE, "pass", "fail", "pass", "pass", f"user@{DE}", helo="[198.18.25.110]"),
    Kind("HELO with an underscore, in capitals", 2, DE, DE, "pass", "fail", "pass", "pass", f"user@{DE}",
         helo="MAIL_OUT.EXAMPLE.DE"),
    Kind("envelope sender with odd characters", 2, DE, DE, "pass", "fail", "pass", "pass",
         f'"a@b <x> & c"@{DE}'),
    Kind("envelope sender with signs of XML and SRS", 2, DE, DE, "pass", "fail", "pass", "pass",
         f"SRS0=x&'y=example.com=u+{{z}}@{DE}"),
    Kind("domains in capitals", 2, DE, DE, "pass", "pass", "pass", "pass", f"User@{DE.upper()}", envelope_from=DE,
         written_author=DE.upper(), signatures=(OF_DE,)),
    Kind("recipients in two domains", 1, DE, DE, "pass", "fail", "pass", "pass", f"user@{DE}",
         also_to="alice@example.org"),
    Kind("forwarder we trust", 3, DE, DE, "none", "fail", "fail", "pass", ELSEWHERE, reasons=(TRUSTED,),
         signatures=(BROKEN,), sealer="example.ac.jp"),
    Kind("forwarder nobody knows", 3, DE, DE, "quarantine", "fail", "fail", "pass", ELSEWHERE, reasons=(NOT_REFUSED,),
         signatures=(BROKEN,), sealer="example.edu"),
    Kind("p=none, fails", 3, FR, FR, "none", "fail", "fail", "pass", ELSEWHERE),
    Kind("p=none, passes", 3, FR, FR, "none", "pass", "pass", "pass", f"user@{FR}", signatures=(OF_FR,)),
    Kind("sp=quarantine, fails", 3, f"sub.{FR}", FR, "quarantine", "fail", "fail", "pass", ELSEWHERE),
    Kind("sp=quarantine, passes", 2, f"sub.{FR}", FR, "pass", "fail", "pass", "pass", f"user@sub.{FR}"),
    Kind("np=reject, fails", 3, f"ghost.{FR}", FR, "quarantine", "fail", "fail", "pass", ELSEWHERE,
         reasons=(NOT_REFUSED,)),
    Kind("np=reject, passes by the domain above", 2, f"ghost.{FR}", FR, "pass", "pass", "fail", "pass", ELSEWHERE,
         signatures=(OF_FR,)),
    Kind("p=quarantine in test mode, fails", 3, IT, IT, "none", "fail", "fail", "pass", ELSEWHERE,
         reasons=(TEST_MODE,)),
    Kind("p=quarantine in test mode, passes", 2, IT, IT, "pass", "fail", "pass", "pass", f"user@{IT}"),
    Kind("p=reject in test mode, fails", 3, NL, NL, "quarantine", "fail", "fail", "pass", ELSEWHERE,
         reasons=(TEST_MODE,)),
    Kind("strict: SPF of a subdomain is not aligned", 2, NL, NL, "quarantine", "fail", "fail", "pass",
         f"user@sub.{NL}", reasons=(TEST_MODE,)),
    Kind("strict: DKIM of a subdomain is not aligned", 2, NL, NL, "quarantine", "fail", "fail", "pass", ELSEWHERE,
         reasons=(TEST_MODE,), signatures=(Signature(f"sub.{NL}"),)),
    Kind("strict: passes", 2, NL, NL, "pass", "pass", "pass", "pass", f"user@{NL}", signatures=(OF_NL,)),
    Kind("IDN in A-labels", 3, IDN, IDN, "pass", "pass", "pass", "pass", f"user@{IDN}", signatures=(OF_IDN,)),
    # the gateways do not offer SMTPUTF8, so only the From field can have them
    Kind(
        "IDN in characters", 2, IDN, IDN, "pass", "pass", "pass", "pass", f"user@{IDN}", written_author="例え.jp",
        signatures=(OF_IDN,),
    ),
    Kind("IDN, fails", 2, IDN, IDN, "quarantine", "fail", "fail", "pass", ELSEWHERE),
    Kind("policy not to be had now", 1, ES, "", "none", "fail", "fail", "pass", f"user@{ES}"),
    Kind("no policy", 2, "example.jp", "", "none", "fail", "fail", "none", "user@example.jp"),
]  # fmt: skip


# --- messages ---------------------------------------------------------------------------------------------------------


def content(kind: Kind) -> bytes:
    """A message of a kind; what differs in every copy is put on top of it and not signed."""
    author = kind.written_author or kind.author
    text = f"Good morning,\r\n\r\nthe meeting on {kind.about} is at ten.\r\n"
    message = (
        f"From: A User <user@{author}>\r\nTo: Load <load@load.example.org>\r\nSubject: Minutes of the meeting\r\n"
        f"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{text}"
    ).encode()
    header = message.partition(b"\r\n\r\n")[0]
    signatures = b""
    for one in kind.signatures:
        key_of = one.domain if one.domain in keys.SIGNING_DOMAINS else KEY_OF
        signed = message if one.result != "fail" else header + b"\r\n\r\nSomething else was written here.\r\n"
        signatures += dkim.sign(
            signed, one.selector.encode(), one.domain.encode(), keys.signing_key(key_of)[1],
            canonicalize=(b"relaxed", b"relaxed"), include_headers=SIGNED,
        )  # fmt: skip
    message = signatures + message
    if kind.sealer:
        selector, key = keys.signing_key(kind.sealer)
        identity = f"mx.{kind.sealer}".encode()
        claim = f"dmarc=pass header.from={kind.author}; arc=none"
        marked = b"Authentication-Results: " + identity + f"; {claim}\r\n".encode() + message
        sets = dkim.arc_sign(marked, selector.encode(), kind.sealer.encode(), key, identity, include_headers=SIGNED)
        if not sets:
            raise BenchError(f"dkimpy did not seal as {kind.sealer}")
        message = b"".join(sets) + message
    return message


def mix(count: int) -> list[tuple[int, str, int]]:
    """Which kind, gateway and family each message has: always the same mix, every kind over both of both."""
    total = sum(kind.weight for kind in KINDS)
    places = [place for place, kind in enumerate(KINDS) for _ in range(max(4, count * kind.weight // total))]
    places += [0] * max(0, count - len(places))
    seen: Counter[int] = Counter()
    chosen = []
    for place in places:
        turn = seen[place]
        seen[place] += 1
        # an address as HELO is true of one family only
        family = 0 if KINDS[place].helo.startswith("[") else turn // 2 % 2
        chosen.append((place, list(GATEWAYS)[turn % 2], family))
    random.Random(9990).shuffle(chosen)
    return chosen


# --- truth and reports ------------------------------------------------------------------------------------------------


@dataclass
class Truth:
    """What the reports must hold."""

    rows: dict[str, Counter[Row]] = field(default_factory=dict)
    """Policy domain → rows."""
    without_policy: int = 0
    messages: int = 0

    @classmethod
    def of(cls, taken: Iterable[tuple[int, str, int]]) -> Truth:
        """The truth about the messages that the gateways have taken."""
        truth = cls()
        for place, _, family in taken:
            kind = KINDS[place]
            truth.messages += 1
            if kind.policy:
                truth.rows.setdefault(kind.policy, Counter())[kind.row(family)] += 1
            else:
                truth.without_policy += 1
        return truth


def rows_of(document: bytes) -> tuple[str, Counter[Row]]:
    """The policy domain and the rows of a report, after it was checked against its schema."""
    root = read(document)
    rows: Counter[Row] = Counter()
    for record in root.iterfind("record"):
        rows[_row(record)] += int(_at(record, "row/count"))
    return _at(root, "policy_published/domain"), rows


def _at(element: ElementTree.Element, path: str) -> str:
    return element.findtext(path) or ""


def _row(record: ElementTree.Element) -> Row:
    spf = record.find("auth_results/spf")
    return Row(
        source_ip=_at(record, "row/source_ip"),
        disposition=_at(record, "row/policy_evaluated/disposition"),
        dkim=_at(record, "row/policy_evaluated/dkim"),
        spf=_at(record, "row/policy_evaluated/spf"),
        reasons=tuple(
            sorted((_at(one, "type"), _at(one, "comment")) for one in record.iterfind("row/policy_evaluated/reason"))
        ),
        header_from=_at(record, "identifiers/header_from"),
        envelope_from=_at(record, "identifiers/envelope_from"),
        envelope_to=_at(record, "identifiers/envelope_to"),
        dkim_results=tuple(
            sorted(
                (_at(one, "domain"), _at(one, "selector"), _at(one, "result"))
                for one in record.iterfind("auth_results/dkim")
            )
        ),
        spf_result=None if spf is None else (_at(spf, "domain"), _at(spf, "scope"), _at(spf, "result")),
    )


def compare(truth: Truth, documents: list[bytes]) -> list[str]:
    """Every difference, as a sentence."""
    differences = []
    found: dict[str, Counter[Row]] = {}
    for document in documents:
        domain, rows = rows_of(document)
        if domain in found:
            differences.append(f"{domain}: more than one report")
        found.setdefault(domain, Counter()).update(rows)
    for domain in sorted(truth.rows.keys() | found.keys()):
        wanted, got = truth.rows.get(domain, Counter()), found.get(domain, Counter())
        for row in sorted(wanted.keys() | got.keys(), key=repr):
            if wanted[row] != got[row]:
                differences.append(f"{domain}: {got[row]} instead of {wanted[row]}: {row}")
    return differences


# --- the lab ----------------------------------------------------------------------------------------------------------


def require(*containers: str) -> None:
    """BenchError unless these containers run and the zones of this bench are served."""
    for container in containers:
        found = subprocess.run(
            ["podman", "inspect", "--format", "{{.State.Running}}", container], capture_output=True, text=True
        )
        if found.stdout.strip() != "true":
            raise BenchError(f"{container} does not run: run `make lab` first")
    if "DMARC1" not in podman(WORLD, "kdig", "+short", "@198.18.25.100", f"_dmarc.{DE}", "TXT"):
        raise BenchError(f"the lab's DNS does not know {DE}: run `make lab` again")


def send(run: str, chosen: list[tuple[int, str, int]]) -> list[dict[str, Any]]:
    """Hand everything over. BenchError if one message was not taken, or may have been taken twice."""
    job = {
        "run": run, "sessions": 12, "seconds": SECONDS,
        "kinds": [
            {
                "sources": SOURCES, "helo": kind.helo, "sender": kind.sender,
                "recipients": [TO.format(place), *filter(None, [kind.also_to])],
                "content": base64.b64encode(content(kind)).decode(),
            }
            for place, kind in enumerate(KINDS)
        ],
        "mix": [(place, (GATEWAYS, GATEWAYS_6)[family][name], family) for place, name, family in chosen],
    }  # fmt: skip
    agent = Agent(program="dmarc_counts_agent")
    try:
        agent.tell(json.dumps(job))
        said: dict[str, Any] = {}
        while "results" not in said:
            said = agent.hear(120)
        results = said["results"]
    finally:
        agent.close()
    refused = Counter((KINDS[one["kind"]].about, one["replies"][-1][:120]) for one in results if not one["taken"])
    cut = Counter((KINDS[one["kind"]].about, "cut off while it was handed over") for one in results if one["cut"])
    if refused or cut:
        lines = "\n".join(
            f"  {number} × {about}: {reply}" for (about, reply), number in (refused + cut).most_common(20)
        )
        raise BenchError(f"{(refused + cut).total()} messages were not taken once for all:\n{lines}")
    return results


def bench_authors() -> set[str]:
    """The author domains whose events are this bench's."""
    return {kind.author for kind in KINDS}


def spooled(since: float, *containers: str) -> list[str]:
    """The lines of this bench in the files of the gateways, of both if none is named."""
    lines = []
    for container in containers or GATEWAYS:
        for line in podman(container, "sh", "-c", SPOOL, timeout=120).splitlines():
            event = json.loads(line)
            if event["time"] >= int(since) and event["header_from"] in bench_authors():
                lines.append(line)
    return lines


def hand_over(since: float) -> None:
    """Have the gateways hand over this run's events now, and not when the hour is over.

    They get a copy under the name of an hour that is over. The files themselves follow at the end of the hour, and the
    store knows their lines by their identifiers: which is what it must do anyway.
    """
    over = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y%m%dT%H")
    for container in GATEWAYS:
        text = "".join(f"{line}\n" for line in spooled(since, container))
        place = f"/var/spool/estate-dmarc/{over}.{container.removeprefix('lab-')}.bench.jsonl"
        script = f"umask 027; cat > /var/spool/estate-dmarc/.bench && mv /var/spool/estate-dmarc/.bench {place}"
        podman(container, "sh", "-c", script, stdin=text, timeout=120)
        podman(container, "systemctl", "start", "dmarc-events", timeout=300)


PROGRAM = """
import base64, json, sys
from datetime import date
from dmarc_reports import day, store
from dmarc_reports.settings import CONFIG, Settings
wanted = json.loads(sys.argv[1])
settings = Settings.read(CONFIG)
query = '''
    SELECT dmarc_reports.policy_domain(line) COLLATE "C" AS domain, gateway, line FROM dmarc_reports.event
    WHERE day = %s AND (line::jsonb ->> 'time')::bigint >= %s AND line::jsonb ->> 'header_from' = ANY (%s)
    ORDER BY domain NULLS FIRST, id
'''
with store.connect(settings) as conn:
    lines = conn.execute(query, [wanted["day"], wanted["since"], wanted["authors"]]).fetchall()
    if wanted["count"]:
        print(json.dumps({"count": len(lines), "gateways": len({gateway for _, gateway, _ in lines})}))
    else:
        outcome = day.Outcome()
        made = day.reports(lines, date.fromisoformat(wanted["day"]), settings, outcome)
        reports = [base64.b64encode(frozen.content).decode() for frozen, _, _ in made]
        left_out = {"without_policy": outcome.without_policy, "unreadable": outcome.unreadable}
        print(json.dumps({"reports": reports} | left_out))
"""


def analytics(day: date, since: float, *, count: bool) -> dict[str, Any]:
    """What the installed generator makes of the stored events of this bench, or only how many there are."""
    wanted = {"day": day.isoformat(), "since": int(since), "authors": sorted(bench_authors()), "count": count}
    said = podman(
        ANALYTICS, "runuser", "-u", "dmarc_reports", "--", "env", "PYTHONPATH=/usr/local/lib/dmarc_reports", "python3",
        "-c", PROGRAM, json.dumps(wanted), timeout=300,
    )  # fmt: skip
    return json.loads(said)


def collect(origin: str, day: date, since: float, wanted: int) -> None:
    """Wait until the gateways have written all events, at most two minutes, and bring them where they are read."""
    deadline = time.monotonic() + 120
    while len(spooled(since)) < wanted and time.monotonic() < deadline:
        time.sleep(5)
    time.sleep(2)  # one too many would come now
    print(f"events: {len(spooled(since))} of {wanted} messages")
    if origin == "analytics":
        hand_over(since)
        there = analytics(day, since, count=True)
        print(f"events in the store: {there['count']}, of {there['gateways']} gateways")


def arrived(sink: Sink, wanted: int) -> None:
    """Leave nothing in the gateways' queues: what nobody takes later would be tried for days."""
    deadline = time.monotonic() + 120
    while sink.status()["count"] < wanted and time.monotonic() < deadline:
        time.sleep(2)
    number = sink.status()["count"]
    if number != wanted:
        raise BenchError(f"{number} of {wanted} messages arrived at the sink")


def made(origin: str, day: date, since: float) -> Iterator[tuple[str, list[bytes], int]]:
    """The reports of the day: what made them, the documents, how many messages have no policy."""
    if origin == "analytics":
        said = analytics(day, since, count=False)
        if said["unreadable"]:
            raise BenchError(f"{said['unreadable']} stored lines could not be read")
        documents = [gzip.decompress(base64.b64decode(one)) for one in said["reports"]]
        yield "installed generator", documents, said["without_policy"]
        return
    from dmarc_reports.aggregate import aggregate
    from dmarc_reports.events import Reader
    from dmarc_reports.report_xml import Form, Reporter, render

    reader = Reader()
    result = aggregate(reader.events(line.encode() for line in spooled(since)), day)
    if reader.set_aside or reader.duplicates:
        raise BenchError(f"{len(reader.set_aside)} lines are no events, {reader.duplicates} came twice")
    for form in Form:
        documents = [render(one, Reporter("Bench", "dmarc@example.org"), "0" * 24, form) for one in result.reports]
        if form is Form.RFC7489:  # it cannot say all that the truth says: the schema alone
            if wrong := [fault for document in documents for fault in faults(document)]:
                raise BenchError(f"not valid by RFC 7489: {wrong[:3]}")
            continue
        yield f"generator of this tree, {form.value}", documents, result.without_policy


def judge(origin: str, day: date, since: float, truth: Truth) -> int:
    """Compare and say; 0 or 1."""
    status = 0
    for what, documents, without_policy in made(origin, day, since):
        differences = compare(truth, documents)
        if without_policy != truth.without_policy:
            differences.append(f"{without_policy} messages without a policy instead of {truth.without_policy}")
        rows = sum(len(rows) for rows in truth.rows.values())
        print(f"{what}: {len(documents)} reports, valid; {rows} rows and {truth.messages} messages to compare")
        for difference in differences[:60]:
            print(f"  {difference}")
        print(f"{what}: {'every row and count is right' if not differences else f'{len(differences)} differences'}")
        status = status or bool(differences)
    return int(status)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--events", choices=("analytics", "spool"), default="analytics", help="where they are taken")
    parser.add_argument("--dry", action="store_true", help="make the messages, show the truth, send nothing")
    parser.add_argument("--again", type=float, metavar="SINCE", help="compare a run once more (it printed this number)")
    options = parser.parse_args()
    if not 4 * len(KINDS) <= options.messages <= 20_000:
        parser.error(f"--messages is between {4 * len(KINDS)} and 20000")
    chosen = mix(options.messages)
    truth = Truth.of(chosen)
    if options.dry:
        for kind in KINDS:
            print(f"{len(content(kind)):5} octets  {kind.about}")
        for domain, rows in truth.rows.items():
            print(f"{domain}: {len(rows)} rows, {rows.total()} messages")
        print(f"{truth.messages} messages, {truth.without_policy} of them without a policy")
        return 0
    try:
        require(WORLD, *GATEWAYS, *([ANALYTICS] if options.events == "analytics" else []))
        since = options.again or float(int(time.time()))
        day = datetime.fromtimestamp(since, UTC).date()
        if not options.again:
            if datetime.fromtimestamp(since + SECONDS, UTC).date() != day:
                raise BenchError("the UTC day ends too soon: its events would be in two reports; run it after midnight")
            with ends_tidily(), Sink() as sink:
                print(f"{len(chosen)} messages of {len(KINDS)} kinds to {' and '.join(GATEWAYS)}, since {since:.0f}")
                begun = time.monotonic()
                results = send(new_run(), chosen)
                print(f"all taken in {time.monotonic() - begun:.0f} s, the sink is {SINK}")
                by_gateway = Counter(one["gateway"] for one in results)
                if len(results) != len(chosen) or len(by_gateway) < 2:
                    raise BenchError(f"{len(results)} of {len(chosen)} results, by gateway {dict(by_gateway)}")
                collect(options.events, day, since, truth.messages)
                arrived(sink, len(chosen))
        return judge(options.events, day, since, truth)
    except (BenchError, subprocess.TimeoutExpired) as error:
        print(f"dmarc_counts: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
