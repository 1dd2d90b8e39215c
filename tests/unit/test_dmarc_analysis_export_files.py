"""The export as files: the same rows in both formats, nothing of the originals in them, complete or not there."""

from __future__ import annotations

import csv
import hashlib
import ipaddress
import json
import os
import uuid
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmarc_analysis import export_files, export_run
from dmarc_analysis.export_files import LeakError
from dmarc_analysis.export_run import Period, UseError, export, make_key, whole_or_nothing
from dmarc_analysis.export_tables import EVENTS, REPORTS, Rules

TEMPLATE = (Path(export_files.__file__).parent.parent / "export/README.md").read_text(encoding="utf-8")
PERIOD = Period(date(2026, 10, 1), date(2026, 10, 31))
BEGIN = 1_790_812_800  # 2026-10-01
KEY = bytes(range(32))


@dataclass
class Made:
    """Made-up events and reports, given in batches as the database gives them."""

    events: list[str] = field(default_factory=list)
    reports: list[list[Any]] = field(default_factory=list)

    def own_domains(self) -> list[str]:
        return ["example.org"]

    def senders(self) -> list[tuple[str, str]]:
        return [("192.0.2.0/24", "own")]

    def event_lines(self, period: Period) -> list[list[str]]:
        return [self.events[start : start + 3] for start in range(0, len(self.events), 3)]

    def report_rows(self, period: Period) -> list[list[list[Any]]]:
        return [self.reports]


def event(number: int = 0, domain: str = "example.com", source: str = "198.51.100.7", helo: str = "", **other) -> str:
    content = {
        "version": 1, "id": str(uuid.UUID(int=number)), "time": BEGIN + 5000 + number,
        "gateway": "mail-gw1.example.org",
        "source_ip": source, "helo": helo or f"mx.{domain}", "envelope_from": domain, "envelope_to": ["example.org"],
        "header_from": domain, "dns": "ok",
        "policy": {
            "domain": domain, "record": f"v=DMARC1; p=reject; rua=mailto:postmaster@{domain}",
            "discovery_method": "treewalk", "p": "reject", "sp": "reject", "np": "reject", "adkim": "r", "aspf": "r",
            "t": "n", "applied": "p", "requested": "reject",
        },
        "spf": {"domain": domain, "scope": "mfrom", "result": "fail", "aligned": False},
        "dkim": [
            {"domain": "example.net", "selector": "sel-of-nobody", "result": "fail", "aligned": False},
            {"domain": domain, "selector": "selector2026", "result": "pass", "aligned": True},
        ],
        "dmarc": "pass", "disposition": "pass", "overrides": [],
    } | other  # fmt: skip
    return json.dumps(content)


def report(source: str = "198.51.100.7", messages: int = 12, day: str = "2026-10-02", **other: Any) -> list[Any]:
    row = {
        "day": day, "reporter": "Reporter Example Inc.", "policy_domain": "example.org", "p": "none", "sp": None,
        "np": None, "testing": False, "header_from": "list.example.org", "envelope_domain": None, "ip": source,
        "country": "JP", "asn": 64500, "source_type": "Email Provider", "spf_aligned": True, "dkim_aligned": False,
        "disposition": "none", "forwarded": False, "overrides": "local_policy,other", "n": messages,
    } | other  # fmt: skip
    return list(row.values())


def make(target: Path, made: Made, *, key: bytes = KEY, rules: Rules | None = None, **options: Any) -> dict[str, int]:
    options = {"kept": True, "licence": "CC-BY-4.0", "template": TEMPLATE} | options
    return export(made, target, PERIOD, rules or Rules(), key, **options)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def made() -> Made:
    """A few events and reports."""
    return Made(
        [event(number, f"d{number % 3}.example.com", f"198.51.100.{number % 5}") for number in range(20)],
        [report(f"203.0.113.{number}", 3 + number) for number in range(9)] + [report("192.0.2.1", country="BT")],
    )


def test_event_becomes_a_masked_row(tmp_path, made):
    made.events = [event()]
    assert make(tmp_path / "export", made) == {"events": 1, "reports": 10}
    (row,) = rows(tmp_path / "export/events.csv")
    assert row["time"] == "2026-10-01T01:00:00Z"
    assert row["header_from"] == row["envelope_from"] == row["policy_domain"] == row["spf_domain"] == row["dkim_domain"]
    assert row["envelope_to"] == "own-1"
    assert (row["signatures"], row["signatures_passed"], row["dkim_result"]) == ("2", "1", "pass")
    assert (row["spf_result"], row["dmarc"], row["testing"], row["override"]) == ("fail", "pass", "false", "")


def test_report_becomes_a_masked_row(tmp_path, made):
    made.reports = [report("192.0.2.1", 12_345)]
    make(tmp_path / "export", made, rules=Rules(k=2))
    (row,) = rows(tmp_path / "export/reports.csv")
    assert (row["day"], row["policy_domain"], row["messages"]) == ("2026-10-02", "own-1", "12000")
    assert row["header_from"].startswith("own-1-")
    assert (row["source_kind"], row["override"], row["testing"]) == ("own", "local_policy", "false")
    assert row["country"] == row["asn"] == row["source_type"] == ""  # one address is not two


def test_message_without_policy_and_results_is_a_row_of_gaps(tmp_path, made):
    made.events = [
        event(policy=None, spf=None, dkim=[], dmarc="none", disposition="none", envelope_to=["a.org", "b.org"])
    ]
    make(tmp_path / "export", made)
    (row,) = rows(tmp_path / "export/events.csv")
    gaps = ("envelope_to", "policy_domain", "p", "testing", "spf_domain", "spf_result", "dkim_domain", "dkim_selector")
    assert {row[name] for name in gaps} == {""}
    assert (row["signatures"], row["dkim_aligned"], row["spf_aligned"]) == ("0", "false", "false")


def test_country_and_network_appear_where_enough_sources_share_them(tmp_path, made):
    made.reports = [report(f"203.0.113.{number}") for number in range(5)]
    made.reports += [report(f"203.0.113.{number}", country="BT", asn=64501, source_type="Bank") for number in range(4)]
    make(tmp_path / "export", made, rules=Rules(k=5))
    got = {(row["country"], row["asn"], row["source_type"]) for row in rows(tmp_path / "export/reports.csv")}
    assert got == {("JP", "64500", "Email Provider"), ("", "", "")}


def test_many_ipv6_addresses_of_one_network_are_one_source(tmp_path, made):
    made.reports = [report(f"2001:db8::{number:x}") for number in range(50)]
    make(tmp_path / "export", made)
    assert {row["country"] for row in rows(tmp_path / "export/reports.csv")} == {""}


def test_networks_are_left_out_by_a_switch(tmp_path, made):
    make(tmp_path / "export", made, rules=Rules(k=2, with_as=False))
    got = rows(tmp_path / "export/reports.csv")
    assert {row["asn"] for row in got} == {row["source_type"] for row in got} == {""}
    assert "JP" in {row["country"] for row in got}


def test_parquet_holds_the_same_rows_in_the_same_order_with_types(tmp_path, made):
    make(tmp_path / "export", made)
    for table, columns in (("events", EVENTS), ("reports", REPORTS)):
        relation = duckdb.sql(f"SELECT * FROM '{tmp_path}/export/{table}.parquet'")
        assert list(zip(relation.columns, map(str, relation.types), strict=True)) == [
            (column.name, column.sql_type) for column in columns
        ]
        again = tmp_path / f"{table}.csv"
        relation.to_csv(str(again), header=True, timestamp_format="%Y-%m-%dT%H:%M:%SZ")
        assert again.read_bytes() == (tmp_path / f"export/{table}.csv").read_bytes()


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.glob("*.csv")}


def test_same_rows_and_key_give_the_same_octets_whatever_their_order(tmp_path, made):
    make(tmp_path / "one", made)
    made.events.reverse()
    made.reports.reverse()
    make(tmp_path / "two", made)
    make(tmp_path / "other", made, key=bytes(32))
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert digests(tmp_path / "one").keys() == {"events.csv", "reports.csv"}
    assert not set(digests(tmp_path / "one").values()) & set(digests(tmp_path / "other").values())


def test_description_names_each_file_by_its_digest_and_each_column(tmp_path, made):
    made.events.append("no event")
    make(tmp_path / "export", made)
    package = json.loads((tmp_path / "export/datapackage.json").read_text())
    assert {one["path"] for one in package["resources"]} | {"README.md", "datapackage.json"} == set(
        os.listdir(tmp_path / "export")
    )
    for one in package["resources"]:
        content = (tmp_path / "export" / one["path"]).read_bytes()
        assert (one["bytes"], one["hash"]) == (len(content), f"sha256:{hashlib.sha256(content).hexdigest()}")
        assert one["hash"][7:] in (tmp_path / "export/README.md").read_text()
    assert package["licenses"] == [{"name": "CC-BY-4.0"}]
    assert package["leftOut"] == 1
    assert [one["rows"] for one in package["resources"]] == [20, 20, 10, 10]
    for one in package["resources"][::2]:
        with (tmp_path / "export" / one["path"]).open() as file:
            assert next(csv.reader(file)) == [column["name"] for column in one["schema"]["fields"]]


def test_key_that_is_thrown_away_leaves_no_fingerprint(tmp_path, made):
    make(tmp_path / "kept", made)
    make(tmp_path / "fresh", made, kept=False)
    kept, fresh = (
        json.loads((tmp_path / name / "datapackage.json").read_text())["anonymisation"] for name in ("kept", "fresh")
    )
    assert kept["fingerprint"]
    assert fresh["fingerprint"] == ""
    assert KEY.hex() not in (tmp_path / "kept/datapackage.json").read_text()


labels = st.from_regex(r"[a-z]([a-z0-9]{1,8}[a-z0-9])?", fullmatch=True)
names = st.builds(lambda *parts: ".".join(parts), labels, labels, st.sampled_from(["com", "net", "co.jp", "museum"]))
words = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20).filter(str.strip)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(names, names, st.ip_addresses(), words), min_size=1, max_size=12),
    st.lists(st.tuples(words, st.ip_addresses(), st.integers(1, 10**7)), min_size=1, max_size=12),
    st.binary(min_size=32, max_size=32),
)
def test_nothing_of_the_period_is_in_any_file(tmp_path, events, reports, key):
    made = Made(
        [
            event(number, domain, str(address), helo, dkim=[
                {"domain": domain, "selector": selector, "result": "pass", "aligned": True}
            ])
            for number, (domain, helo, address, selector) in enumerate(events)
        ],
        [report(str(address), messages, reporter=reporter) for reporter, address, messages in reports],
    )  # fmt: skip
    target = tmp_path / uuid.uuid4().hex
    make(target, made, key=key)
    for table, columns in (("events", EVENTS), ("reports", REPORTS)):
        free = [column.name for column in columns if not column.choices and column.kind in ("string", "address")]
        values = {row[name] for row in rows(target / f"{table}.csv") for name in free}
        originals = {
            text for domain, helo, address, selector in events for text in (domain, helo, str(address), selector)
        }
        originals |= {text for reporter, address, _ in reports for text in (reporter, str(address))}
        assert not values & originals - {"JP", "Email Provider"}
    content = b"".join(path.read_bytes() for path in target.iterdir())
    for domain, helo, address, _ in events:
        assert domain.encode() not in content
        assert helo.encode() not in content
        if len(str(address)) > 8:
            assert str(address).encode() not in content


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [("events", "helo", "mx.d1.example.com"), ("events", "source", "198.51.100.3"), ("events", "dmarc", "maybe"),
     ("events", "dkim_selector", "selector2026"), ("reports", "reporter", "Reporter Example Inc."),
     ("reports", "source_type", "Dr. 3"), ("events", "time", "2026-10-01T01:23:00Z")],
)  # fmt: skip
def test_value_that_slipped_through_unmasked_stops_the_export(tmp_path, made, monkeypatch, table, column, value):
    name, columns = ("event_row", EVENTS) if table == "events" else ("report_row", REPORTS)
    place = [one.name for one in columns].index(column)
    honest = getattr(export_run, name)

    def careless(*given: Any) -> list[Any]:
        row = honest(*given)
        row[place] = value
        if columns[place].group:
            for number in range(9):
                given[3].add((columns[place].group, value), number)
        return row

    monkeypatch.setattr(export_run, name, careless)
    with pytest.raises(LeakError, match=f"column {column}"):
        make(tmp_path / "export", made)
    assert os.listdir(tmp_path) == []


def test_name_of_the_period_in_the_description_stops_the_export(tmp_path, made):
    with pytest.raises(LeakError, match=r"README\.md"):
        make(tmp_path / "export", made, licence="d1.example.com")
    assert os.listdir(tmp_path) == []


def test_failure_in_the_middle_leaves_nothing(tmp_path, made, monkeypatch):
    def broken(*_: object) -> None:
        raise ConnectionError("the database went away")

    monkeypatch.setattr(made, "report_rows", broken)
    with pytest.raises(ConnectionError):
        make(tmp_path / "export", made)
    assert os.listdir(tmp_path) == []


def test_directory_that_holds_something_is_refused_and_left_alone(tmp_path, made):
    target = tmp_path / "export"
    target.mkdir()
    (target / "notes").write_text("mine")
    with pytest.raises(UseError, match="empty directory"):
        make(target, made)
    assert [path.name for path in target.iterdir()] == ["notes"]


def test_empty_directory_is_filled(tmp_path, made):
    (tmp_path / "export").mkdir()
    make(tmp_path / "export", made)
    assert (tmp_path / "export/events.csv").exists()
    assert os.listdir(tmp_path) == ["export"]


def test_directory_is_not_there_before_it_is_complete(tmp_path):
    with whole_or_nothing(tmp_path / "export") as work:
        (work / "file").write_text("half")
        assert not (tmp_path / "export").exists()
        assert work.stat().st_mode & 0o077 == 0
    assert (tmp_path / "export/file").read_text() == "half"


def test_period_without_mail_gives_empty_tables(tmp_path):
    assert make(tmp_path / "export", Made()) == {"events": 0, "reports": 0}
    assert rows(tmp_path / "export/events.csv") == []
    assert duckdb.sql(f"SELECT count(*) FROM '{tmp_path}/export/reports.parquet'").fetchall() == [(0,)]


def test_kept_key_is_made_once_and_for_its_owner_alone(tmp_path):
    path = tmp_path / "key"
    first = make_key(path)
    assert make_key(path) == first != make_key(None)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(UseError, match="others may read"):
        make_key(path)


@pytest.mark.parametrize("content", ["", "00ff", "x" * 64])
def test_key_file_without_a_key_is_refused(tmp_path, content):
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(UseError, match="no key"):
        make_key(path)


def test_address_that_is_its_own_mask_is_not_given_out(tmp_path, made, monkeypatch):
    monkeypatch.setattr(export_run.Mask, "address", lambda mask, text: mask.addresses.setdefault(text, (text, "")))
    with pytest.raises(LeakError, match="its own mask"):
        make(tmp_path / "export", made)


def test_addresses_that_meet_another_address_by_chance_are_counted(tmp_path, made):
    """In 2^32 addresses that must happen; the one is not the other's mask."""
    masked = export_run.Mask(KEY, ["example.org"], []).address("198.51.100.1")[0]
    made.events = [event(1, source="198.51.100.1"), event(2, source=masked)]
    make(tmp_path / "export", made)
    package = json.loads((tmp_path / "export/datapackage.json").read_text())
    assert package["anonymisation"]["coincidences"] == 1
    assert ipaddress.ip_address(masked)
