"""What the reports mean: made-up reports in parsedmarc's tables, and what the views and work lists say of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.append(str(REPOSITORY / "plugins/module_utils"))

import estate_model  # noqa: E402
import estate_spf  # noqa: E402

SSH = ["ssh", "-F", str(REPOSITORY / ".lab/ssh/config"), "role-dmarc-analysis"]
REPORTERS = ("alpha.example", "beta.example", "gamma.example", "delta.example", "epsilon.example", "zeta.example")
SUMMARIES = ("daily", "daily_domain", "daily_dkim", "address", "address_spf")
OWN_KEY = ("example.org", "2026a", "pass")


@dataclass(frozen=True)
class Record:
    """A record of a report; ``dkim`` is (domain, selector, result)."""

    ip: str
    n: int = 10
    spf: bool = False
    dkim: tuple[str, str, str] | None = None
    header_from: str = "example.org"
    envelope_from: str = "example.org"
    overrides: tuple[tuple[str, str | None], ...] = ()


def quoted(value: object) -> str:
    """An SQL literal."""
    return "NULL" if value is None else "'" + str(value).replace("'", "''") + "'"


class Database:
    """The database on the host, through psql."""

    def __init__(self) -> None:
        self.last = 0

    def run(self, text: str, user: str = "parsedmarc", fails: bool = False) -> str:
        command = f"cd / && runuser -u {user} -- psql -qAtX -v ON_ERROR_STOP=1 -d dmarc"
        done = subprocess.run([*SSH, command], input=text, capture_output=True, text=True, timeout=120, check=False)
        assert bool(done.returncode) == fails, done.stderr
        return done.stderr if fails else done.stdout.strip()

    def rows(self, query: str) -> list[dict[str, Any]]:
        return json.loads(self.run(f"SELECT coalesce(jsonb_agg(to_jsonb(q)), '[]') FROM ({query}) q"))

    def column(self, query: str) -> list[Any]:
        return [value for row in self.rows(query) for value in row.values()]

    def report(
        self,
        reporter: str,
        days_ago: int,
        records: list[Record],
        domain: str = "example.org",
        policy: str = "none",
        begin: str | None = None,
        end: str | None = None,
    ) -> str:
        """The statements that store one report as parsedmarc does."""
        self.last += 1
        number = 1_000_000 + self.last
        start = begin or f"date_trunc('day', now(), 'UTC') - interval '{days_ago} days'"
        lines = [
            "INSERT INTO public.dmarc_aggregate_report (id, org_name, report_id, begin_date, end_date, errors, domain,"
            f" policy) VALUES ({number}, {quoted(reporter)}, 'r{number}', {start},"
            f" {end or start + chr(32) + '+ interval ' + quoted('86399 seconds')}, '{{}}', {quoted(domain)},"
            f" {quoted(policy)});"
        ]
        for place, one in enumerate(records):
            record = number * 1000 + place
            signed = bool(one.dkim and one.dkim[2] == "pass" and one.dkim[0].endswith("example.org"))
            lines.append(
                "INSERT INTO public.dmarc_aggregate_record (id, report_id, source_ip_address, source_country,"
                " message_count, spf_aligned, dkim_aligned, dmarc_passed, disposition, header_from, envelope_from)"
                f" VALUES ({record}, {number}, {quoted(one.ip)}, 'JP', {one.n}, {one.spf}, {signed},"
                f" {one.spf or signed}, 'none', {quoted(one.header_from)}, {quoted(one.envelope_from)});"
            )
            if one.dkim:
                lines.append(
                    "INSERT INTO public.dmarc_aggregate_record_dkim (record_id, domain, selector, result)"
                    f" VALUES ({record}, {', '.join(map(quoted, one.dkim))});"
                )
            lines += [
                "INSERT INTO public.dmarc_aggregate_record_policy_override (record_id, override_type, comment)"
                f" VALUES ({record}, {quoted(kind)}, {quoted(comment)});"
                for kind, comment in one.overrides
            ]
        return "\n".join(lines)

    def store(self, *reports: str) -> None:
        self.run("BEGIN;\n" + "\n".join(reports) + "\nCOMMIT;")

    def refresh(self, steps: int = 60) -> int:
        """Refresh to the end; returns the number of days made."""
        made = 0
        for _ in range(50):
            (row,) = self.rows(f"SELECT * FROM dma.refresh({steps})")
            made += row["days_made"]
            if not row["days_left"]:
                return made
        raise AssertionError("the refresh comes to no end")

    def summaries(self) -> dict[str, str]:
        """What stands in the summaries, whatever the order."""
        return {
            table: self.run(
                f"SELECT md5(coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '')) FROM dma.{table} t"
            )
            for table in SUMMARIES
        }

    def anew(self) -> dict[str, str]:
        """The summaries as they are when everything is counted from nothing."""
        self.run("TRUNCATE dma.counted, dma.stale_day, " + ", ".join(f"dma.{table}" for table in SUMMARIES))
        self.refresh()
        return self.summaries()


@pytest.fixture
def database() -> Iterator[Database]:
    """Without reports, decisions and SPF networks; the role's own decisions are put back at the end.

    The timer rests meanwhile: what it learns of addresses in the middle of a test is a change of its own.
    """
    timer = "dmarc-analysis-refresh.timer"
    subprocess.run([*SSH, f"systemctl stop {timer} dmarc-analysis-refresh.service"], check=True, timeout=60)
    found = Database()
    found.run(
        "DELETE FROM public.dmarc_aggregate_report; DELETE FROM public.smtp_tls_report; DELETE FROM dma.sender;"
        "DELETE FROM dma.spf_network; DELETE FROM dma.spf_record; DELETE FROM dma.ip_info"
    )
    found.refresh()
    yield found
    found.run("DELETE FROM public.dmarc_aggregate_report; DELETE FROM public.smtp_tls_report")
    subprocess.run([*SSH, "runuser -u parsedmarc -- dmarc-analysis schema"], check=True, timeout=60)
    found.refresh()
    subprocess.run([*SSH, f"systemctl reset-failed {timer}; systemctl start {timer}"], check=True, timeout=60)


def forty_senders() -> dict[str, list[str]]:
    """Forty senders of six kinds."""
    return {
        "own, listed": [f"192.0.2.{number}" for number in range(1, 9)],
        "own, missing": [f"192.0.2.{number}" for number in range(21, 24)]
        + [f"198.51.100.{number}" for number in (9, 10, 11)],
        "provider, missing": [f"203.0.113.{number}" for number in range(1, 8)],
        "forwarder": [f"100.64.{number}.25" for number in range(1, 9)],
        "spoofer": [f"11.22.{number}.3" for number in range(1, 9)],
        "listed, silent": ["198.18.100.0/24", "198.18.101.5/32", "2001:db8:dead::/48"],
    }


def estate_of_forty(database: Database) -> dict[str, list[str]]:
    """Thirty days of reports about them by six reporters, and the SPF record as it is published."""
    senders = forty_senders()
    assert sum(map(len, senders.values())) == 40
    reports = []
    for day in range(1, 31):
        for place, reporter in enumerate(REPORTERS):
            records = [Record(ip, spf=True, dkim=OWN_KEY) for ip in senders["own, listed"]]
            records += [Record(ip, dkim=OWN_KEY) for ip in senders["own, missing"]]
            records += [Record(ip, dkim=("example.org", "news1", "pass")) for ip in senders["provider, missing"]]
            if place < 2:
                # No SRS: our envelope, our signature, and one in five is broken on the way.
                for number, ip in enumerate(senders["forwarder"]):
                    said: tuple[tuple[str, str | None], ...] = ()
                    if number < 2:
                        said = (("forwarded", None),)
                    elif number == 2:
                        said = (("local_policy", "arc=pass"),)
                    records.append(Record(ip, n=8, dkim=OWN_KEY, overrides=said))
                    records.append(Record(ip, n=2, dkim=("example.org", "2026a", "fail"), overrides=said))
            records += [Record(ip, n=3, envelope_from="example.org") for ip in senders["spoofer"][:4]]
            records += [
                Record(ip, n=3, envelope_from="evil.example.net", dkim=("evil.example.net", "x", "pass"))
                for ip in senders["spoofer"][4:]
            ]
            reports.append(database.report(reporter, day, records))
    database.store(*reports)
    networks = [(f"{ip}/32", "ip4") for ip in senders["own, listed"]]
    networks += [(senders["listed, silent"][0], "ip4"), (senders["listed, silent"][1], "include:spf.example.com ip4")]
    networks += [(senders["listed, silent"][2], "ip6")]
    for network, via in networks:
        database.run(f"INSERT INTO dma.spf_network VALUES ('example.org', '{network}', '{via}')")
    database.refresh()
    return senders


def test_spf_work_list_names_exactly_the_right_ones_before_anybody_has_decided(database: Database) -> None:
    senders = estate_of_forty(database)
    by_verdict: dict[str, set[str]] = {}
    for row in database.rows("SELECT verdict, host(ip) AS ip FROM dma.spf_to_add(90)"):
        by_verdict.setdefault(row["verdict"], set()).add(row["ip"])
    assert by_verdict == {
        "add?": {*senders["own, missing"], *senders["provider, missing"]},
        "leave?": set(senders["forwarder"]),
    }
    suggested = {
        row["ip"]: row["suggested"] for row in database.rows("SELECT host(ip) AS ip, suggested FROM dma.address")
    }
    for kind, expected in (
        ("own, listed", "own?"),
        ("own, missing", "own?"),
        ("provider, missing", "provider?"),
        ("forwarder", "forwarder?"),
        ("spoofer", "spoof?"),
    ):
        assert {ip: suggested[ip] for ip in senders[kind]} == dict.fromkeys(senders[kind], expected)
    removed = database.rows("SELECT network::text, verdict FROM dma.spf_to_remove(90)")
    assert {row["network"] for row in removed if row["verdict"] == "remove"} == set(senders["listed, silent"])
    assert {row["network"] for row in removed if row["verdict"] == "keep"} == {
        f"{ip}/32" for ip in senders["own, listed"]
    }


def test_the_postmasters_decisions_come_before_the_figures_and_the_longest_prefix_decides(database: Database) -> None:
    senders = estate_of_forty(database)
    database.run(
        "INSERT INTO dma.sender (network, kind, label) VALUES ('192.0.2.0/24', 'own', 'centre'),"
        " ('198.51.100.0/24', 'own', 'branch'), ('198.51.100.10/32', 'spoof', 'a printer that was broken into'),"
        " ('203.0.113.0/24', 'provider', 'newsletter'), ('100.64.0.0/16', 'forwarder', 'alumni'),"
        " ('11.0.0.0/8', 'spoof', 'botnet')"
    )
    database.refresh()
    listed = database.rows("SELECT host(ip) AS ip, verdict, kind, label FROM dma.spf_to_add(90)")
    expected = {*senders["own, missing"], *senders["provider, missing"]} - {"198.51.100.10"}
    assert {row["ip"] for row in listed} == expected
    assert {row["verdict"] for row in listed} == {"add"}
    kinds = database.rows("SELECT kind, sum(n)::int AS n FROM dma.daily_domain GROUP BY 1")
    assert {row["kind"] for row in kinds} == {"own", "provider", "forwarder", "spoof"}
    assert database.column("SELECT DISTINCT kind FROM dma.source WHERE ip = '198.51.100.10'") == ["spoof"]


def test_the_work_list_becomes_the_lines_of_the_data_model(database: Database) -> None:
    senders = estate_of_forty(database)
    database.run(
        "INSERT INTO dma.sender (network, kind, label) VALUES ('192.0.2.0/24', 'own', 'centre'),"
        " ('198.51.100.0/24', 'own', 'branch'), ('203.0.113.1', 'provider', 'newsletter')"
    )
    database.refresh()
    command = "runuser -u parsedmarc -- dmarc-analysis lists --days 90"
    lists = json.loads(subprocess.run([*SSH, command], capture_output=True, check=True, timeout=60).stdout)
    model = {
        "domain": "example.org",
        "postmaster": "postmaster@example.org",
        "authserv_id": "mx.example.org",
        "gateways": [],
        "hosts": {"relay": {"fqdn": "relay.example.org", "ipv4": "198.51.100.9"}},
        "domains": {
            "example.org": {
                "send": {
                    "networks": [*senders["own, listed"], senders["listed, silent"][0], senders["listed, silent"][2]],
                    "includes": ["spf.example.com"],
                }
            }
        },
    }
    (change,) = estate_spf.changes(estate_model.parse(model), lists)
    assert change.send is not None
    assert change.send["hosts"] == ["relay"]
    assert set(change.send["networks"]) == {
        *senders["own, listed"],
        *senders["own, missing"][:3],
        "198.51.100.10",
        "198.51.100.11",
        "203.0.113.1",
    }
    assert change.send["includes"] == []
    told = {line.split()[0] for line in change.undecided}
    assert told == {*senders["provider, missing"][1:], *senders["forwarder"]}


def test_an_address_whose_envelope_is_not_ours_is_told_apart(database: Database) -> None:
    reports = [
        database.report(
            reporter,
            day,
            [Record("203.0.113.50", dkim=("example.org", "crm", "pass"), envelope_from="bounce.crm.example.com")],
        )
        for day in range(1, 21)
        for reporter in REPORTERS
    ]
    database.store(*reports)
    database.refresh()
    (row,) = database.rows("SELECT * FROM dma.spf_to_add(90)")
    assert (row["verdict"], row["domain"], row["suggested"]) == ("envelope", "example.org", "provider?")
    assert "would not help" in row["reason"]


def readiness(database: Database, header_from: str) -> dict[str, Any]:
    (row,) = database.rows(f"SELECT * FROM dma.readiness(90) WHERE header_from = {quoted(header_from)}")
    return row


def test_readiness_says_when_a_subdomain_may_be_stricter_and_why_not(database: Database) -> None:
    good = Record("192.0.2.1", n=1000, spf=True, dkim=OWN_KEY)

    def sub(name: str, *records: Record) -> list[Record]:
        return [replace(record, header_from=f"{name}.example.org") for record in records]

    reports = []
    for day in range(1, 21):
        for reporter in REPORTERS[:3]:
            records = sub("clean", good)
            records += sub("leaky", good, Record("192.0.2.2", n=100))
            records += sub("nearly", good, Record("192.0.2.2", n=4))
            records += sub("mixed", Record("198.51.100.7", n=90, dkim=OWN_KEY), Record("198.51.100.7", n=10))
            records += sub("forwarded", good, Record("100.64.1.1", n=50, overrides=(("forwarded", None),)))
            records += sub("forged", Record("11.22.33.44", n=5))
            reports.append(database.report(reporter, day, records, policy="quarantine"))
    reports.append(database.report(REPORTERS[0], 3, sub("young", good)))
    database.store(*reports)
    database.run(
        "INSERT INTO dma.sender (network, kind, label) VALUES ('192.0.2.0/24', 'own', 'centre'),"
        " ('11.22.33.44', 'spoof', 'botnet')"
    )
    database.refresh()
    verdicts = {
        row["header_from"].split(".")[0]: (row["quarantine_verdict"], row["reject_verdict"])
        for row in database.rows("SELECT * FROM dma.readiness(90)")
    }
    assert verdicts == {
        "clean": ("ready", "ready"),
        "leaky": ("fix own senders first", "fix own senders first"),
        "nearly": ("nearly", "nearly"),
        "mixed": ("decide about senders first", "decide about senders first"),
        "forwarded": ("ready", "nearly"),
        "forged": ("ready", "ready"),
        "young": ("not enough data", "not enough data"),
    }
    leaky = readiness(database, "leaky.example.org")
    assert (leaky["own_failed"], leaky["failed"], leaky["n"]) == (6000, 6000, 66000)
    assert leaky["quarantine_reason"] == "6000 messages of our own hosts failed"
    assert (leaky["p"], leaky["reporters"], leaky["days"]) == ("quarantine", 3, 20)
    forwarded = readiness(database, "forwarded.example.org")
    assert forwarded["reject_reason"] == "forwarders and lists would lose 3000 messages, 4.8 % of what is wanted"
    assert "forged" in readiness(database, "forged.example.org")["quarantine_reason"]


def test_what_strangers_cannot_know_or_mean_appears_nowhere(database: Database) -> None:
    ok = Record("192.0.2.1", n=7, spf=True)
    lies = [
        Record("192.0.2.9", n=-5),
        Record("192.0.2.9", n=0),
        Record("192.0.2.9", n=99999999999),
        Record("192.0.2.9", header_from="example.com"),
        Record("192.0.2.9", header_from="notexample.org"),
        Record("192.0.2.9", header_from="<script>.example.org"),
    ]
    one = [Record("192.0.2.9")]
    database.store(
        database.report("Alpha", 2, [ok, *lies]),
        database.report("Alpha", 2, one, domain="example.com"),
        database.report("Alpha", 2, one, domain="unlisted.example.org"),
        database.report("Alpha", 2, one, begin="'9999-01-01Z'", end="'9999-01-02Z'"),
        database.report("Alpha", 2, one, begin="'2100-01-01Z'", end="'2100-01-02Z'"),
        database.report("Alpha", 2, one, begin="'1970-01-01Z'", end="'1970-01-02Z'"),
        database.report("Alpha", 2, one, begin="now() - interval '2 days'", end="now() - interval '3 days'"),
        database.report("Alpha", 2, one, begin="now() - interval '99 days'", end="now()"),
        database.report("Alpha\nBeta\x07", 2, [replace(ok, header_from="EXAMPLE.org.", envelope_from="A@Example.ORG")]),
    )
    database.refresh()
    assert database.column("SELECT DISTINCT host(ip) FROM dma.daily") == ["192.0.2.1"]
    assert database.column("SELECT sum(n)::int FROM dma.daily") == [14]
    assert database.column("SELECT sum(n)::int FROM dma.daily_domain") == [14]
    assert database.column("SELECT sum(n)::int FROM dma.record") == [14]
    assert database.column("SELECT DISTINCT header_from FROM dma.daily") == ["example.org"]
    assert database.column("SELECT DISTINCT envelope_domain FROM dma.daily") == ["example.org"]
    assert sorted(database.column("SELECT DISTINCT reporter FROM dma.daily")) == ["Alpha", "AlphaBeta"]


def test_refresh_equals_a_count_from_nothing_after_inserts_and_deletions(database: Database) -> None:
    def some(day: int, place: int) -> str:
        return database.report(
            REPORTERS[place],
            day,
            [
                Record(f"192.0.2.{1 + (day + place) % 5}", n=day, spf=True, dkim=OWN_KEY),
                Record(f"11.22.{day}.{place}", n=place + 1, overrides=(("mailing_list", None), ("other", "x"))),
            ],
        )

    database.store(*(some(day, place) for day in range(1, 11) for place in range(3)))
    assert database.refresh() == 10
    before = database.summaries()
    assert database.refresh() == 0
    assert database.summaries() == before, "a second refresh changes nothing"

    database.store(some(4, 4), some(12, 1))
    assert database.refresh() == 2, "only the days of new reports are made"
    # Retention, and a report that is taken out of the middle of a day.
    database.run("DELETE FROM public.dmarc_aggregate_report WHERE end_date < now() - interval '8 days'")
    database.run(
        "DELETE FROM public.dmarc_aggregate_report WHERE id = (SELECT min(id) FROM public.dmarc_aggregate_report)"
    )
    database.refresh()
    database.run(
        "INSERT INTO dma.sender (network, kind, label) VALUES ('11.22.0.0/16', 'spoof', 'botnet');"
        "INSERT INTO dma.spf_network VALUES ('example.org', '192.0.2.0/30', 'ip4')"
    )
    database.store(some(1, 5))
    # In steps that are too small for the days at hand.
    database.refresh(steps=1)
    now = database.summaries()
    assert now == database.anew()
    assert database.column("SELECT count(DISTINCT day)::int FROM dma.daily") == [8]
    assert database.column("SELECT count(*)::int FROM dma.address WHERE ip <<= '11.22.9.0/24'") == [0]
    assert {"spoof", "unknown"} == set(database.column("SELECT DISTINCT kind FROM dma.daily_domain"))


def test_a_report_whose_transaction_began_before_the_refresh_is_counted_by_the_next(database: Database) -> None:
    text = database.report(REPORTERS[0], 2, [Record("192.0.2.1", n=5, spf=True)])
    slow = subprocess.Popen(
        [*SSH, "cd / && runuser -u parsedmarc -- psql -qAtX -v ON_ERROR_STOP=1 -d dmarc"],
        stdin=subprocess.PIPE,
        text=True,
    )
    assert slow.stdin is not None
    slow.stdin.write(f"BEGIN;\n{text}\nSELECT pg_sleep(4);\nCOMMIT;\n")
    slow.stdin.close()
    time.sleep(1.5)
    database.store(database.report(REPORTERS[1], 2, [Record("192.0.2.2", n=6, spf=True)]))
    database.refresh()
    assert database.column("SELECT sum(n)::int FROM dma.daily") == [6]
    assert slow.wait(timeout=30) == 0
    database.refresh()
    assert database.column("SELECT sum(n)::int FROM dma.daily") == [11]


def test_a_domain_that_becomes_ours_brings_its_old_reports_with_it(database: Database) -> None:
    record = Record("192.0.2.1", spf=True, header_from="later.example.net", envelope_from="later.example.net")
    database.store(database.report(REPORTERS[0], 5, [record], domain="later.example.net"))
    database.refresh()
    assert database.rows("SELECT * FROM dma.daily") == []
    database.run("INSERT INTO dma.domain VALUES ('later.example.net')")
    database.refresh()
    assert database.column("SELECT envelope_domain FROM dma.daily") == ["later.example.net"]
    database.run("DELETE FROM dma.domain WHERE name = 'later.example.net'")
    database.refresh()
    assert database.rows("SELECT * FROM dma.daily") == []


def test_new_sources_silent_reporters_selectors_and_losses(database: Database) -> None:
    reports = []
    for day in range(1, 41):
        for reporter in REPORTERS[:3]:
            if reporter == "gamma.example" and day < 6:
                continue
            records = [Record("192.0.2.1", spf=True, dkim=("example.org", "2025b" if day > 20 else "2026a", "pass"))]
            if day <= 3:
                records.append(Record("203.0.113.77", n=9))
                records.append(Record("203.0.113.78", n=1))
            if day <= 10:
                records.append(Record("100.64.1.1", n=2, overrides=(("mailing_list", None),)))
                records.append(Record("11.22.33.44", n=1, overrides=(("policy_test_mode", None),)))
            reports.append(database.report(reporter, day, records, policy="none" if day > 15 else "quarantine"))
    # One liar a day changes no policy.
    reports += [
        database.report("liar.example", day, [Record("192.0.2.1", spf=True)], policy="reject") for day in (3, 9)
    ]
    database.store(*reports)
    database.run(
        "INSERT INTO dma.ip_info (ip, asn, as_name) VALUES ('203.0.113.77', 64500, 'New'), ('192.0.2.1', 64501, 'Old')"
    )
    database.refresh()
    new = database.rows("SELECT asn, as_name, n FROM dma.new_sources(7)")
    assert new == [{"asn": 64500, "as_name": "New", "n": 54}]
    silent = database.rows("SELECT reporter, silent_days, days_seen FROM dma.silent_reporters()")
    assert silent == [{"reporter": "gamma.example", "silent_days": 6, "days_seen": 35}]
    keys = database.rows(
        "SELECT selector, ours, pass, idle_days FROM dma.selectors(90) WHERE dkim_domain = 'example.org'"
    )
    assert {(row["selector"], row["ours"], row["pass"], row["idle_days"]) for row in keys} == {
        ("2026a", True, 550, 1),
        ("2025b", True, 600, 21),
    }
    lost = {row["overrides"]: row for row in database.rows("SELECT * FROM dma.would_reject(90)")}
    assert (lost["mailing_list"]["n"], lost["mailing_list"]["wanted"]) == (50, True)
    assert (lost["policy_test_mode"]["n"], lost["policy_test_mode"]["wanted"]) == (25, False)
    changes = database.rows("SELECT p, previous_p, first_day = (now() AT TIME ZONE 'UTC')::date - 15 AS right_day"
                            " FROM dma.policy_changes(90)")  # fmt: skip
    assert changes == [{"p": "quarantine", "previous_p": "none", "right_day": True}]


def test_tls_failures_are_summed_up_once(database: Database) -> None:
    database.run(
        """
        INSERT INTO public.smtp_tls_report (id, organization_name, begin_date, end_date, report_id) VALUES
            (1, 'Alpha', now() - interval '2 days', now() - interval '1 day', 't1'),
            (2, 'Alpha', '9999-01-01Z', '9999-01-02Z', 't2');
        INSERT INTO public.smtp_tls_policy (id, report_id, policy_domain, policy_type, successful_session_count,
            failed_session_count) VALUES
            (1, 1, 'example.org', 'sts', 100, 9), (2, 1, 'EXAMPLE.org.', 'sts', 5, 0),
            (3, 1, 'example.com', 'sts', 50, 9), (4, 1, 'example.org', 'sts', -4, 0),
            (5, 2, 'example.org', 'sts', 7, 7);
        INSERT INTO public.smtp_tls_failure_detail (policy_id, result_type, failed_session_count, receiving_mx_hostname)
            VALUES (1, 'certificate-expired', 4, 'MX1.example.org'), (1, 'certificate-expired', 2, 'mx1.example.org');
        """
    )
    rows = database.rows("SELECT result_type, mx, ok, failed FROM dma.tls(30)")
    assert {(row["result_type"], row["mx"], row["ok"], row["failed"]) for row in rows} == {
        ("ok", None, 105, 0),
        ("certificate-expired", "mx1.example.org", 0, 6),
        ("unexplained", None, 0, 3),
    }
    assert database.column("SELECT failed::int FROM dma.tls_daily") == [9]


def test_a_reader_reads_the_schema_and_nothing_else(host: Any, database: Database) -> None:
    database.store(database.report(REPORTERS[0], 2, [Record("192.0.2.1", spf=True)]))
    database.refresh()
    for query in (
        "SELECT * FROM dma.source",
        "SELECT * FROM dma.record",
        "SELECT * FROM dma.tls_daily",
        "SELECT * FROM dma.readiness(90)",
        "SELECT * FROM dma.spf_to_remove(90)",
        "SELECT * FROM dma.tls(90)",
    ):
        database.run(f"SET ROLE grafana; {query};", user="postgres")
    for query in (
        "SELECT * FROM public.dmarc_aggregate_record",
        "SELECT * FROM public.dmarc_failure_report",
        "SELECT * FROM dma.refresh()",
        "SELECT dma.suggest_kinds()",
        "DELETE FROM dma.sender",
        "INSERT INTO dma.domain VALUES ('example.com')",
        "CREATE TABLE dma.mine (x int)",
    ):
        said = database.run(f"SET ROLE grafana; {query};", user="postgres", fails=True)
        assert "permission denied" in said, query


def test_addresses_get_their_network_from_the_database_that_parsedmarc_ships(host: Any, database: Database) -> None:
    database.store(database.report(REPORTERS[0], 2, [Record("8.8.8.8", spf=True), Record("192.0.2.1", spf=True)]))
    host.check_output("systemctl start dmarc-analysis-refresh.service")
    assert "2 addresses looked up" in host.check_output("journalctl -q -u dmarc-analysis-refresh.service -n 3 -o cat")
    rows = database.rows("SELECT host(ip) AS ip, asn, as_name FROM dma.daily ORDER BY ip")
    assert rows[1] == {"ip": "8.8.8.8", "asn": 15169, "as_name": "Google LLC"}
    assert (rows[0]["ip"], rows[0]["asn"]) == ("192.0.2.1", None)


def test_spf_records_are_expanded_and_a_dns_failure_keeps_what_was_known(host: Any, database: Database) -> None:
    database.run(
        "INSERT INTO dma.spf_record (domain, record, lookups, void_lookups)"
        " VALUES ('example.org', 'v=spf1 -all', 0, 0);"
        "INSERT INTO dma.spf_network VALUES ('example.org', '192.0.2.0/24', 'ip4');"
        "INSERT INTO dma.spf_network VALUES ('gone.example.org', '192.0.2.0/24', 'ip4')"
    )
    edit = 'sed \'s/"nameservers": \\[\\]/"nameservers": ["{}"]/; s/"dns_seconds": 10/"dns_seconds": 3/\''
    command = "runuser -u parsedmarc -- dmarc-analysis --config /tmp/spf.json spf"
    host.check_output(f"{edit.format('127.9.9.9')} /etc/dmarc-analysis.json > /tmp/spf.json; chmod 644 /tmp/spf.json")
    assert "example.org: kept as it was" in host.check_output(command)
    assert database.column("SELECT domain || ' ' || network FROM dma.spf_network") == ["example.org 192.0.2.0/24"]
    # The lab's own zone, as the internet sees it.
    host.check_output(f"{edit.format('198.18.25.100')} /etc/dmarc-analysis.json > /tmp/spf.json")
    host.check_output(command)
    networks = database.rows("SELECT network::text, via FROM dma.spf_network WHERE domain = 'example.org'")
    assert {"network": "198.18.25.11/32", "via": "ip4"} in networks
    assert {"network": "192.0.2.0/24", "via": "ip4"} not in networks
    (row,) = database.rows("SELECT record, lookups, problem FROM dma.spf_record WHERE domain = 'example.org'")
    assert row["record"].startswith("v=spf1 ")
    assert (row["lookups"], row["problem"]) == (0, None)
    (row,) = database.rows("SELECT record, problem FROM dma.spf_record WHERE domain = 'new.example.org'")
    assert row == {"record": None, "problem": "new.example.org has no SPF record"}


def test_units_are_confined_and_the_timers_run(host: Any) -> None:
    for job in ("refresh", "spf"):
        assert host.service(f"dmarc-analysis-{job}.timer").is_running
        exposure = host.check_output(f"systemd-analyze security --no-pager dmarc-analysis-{job}.service | tail -1")
        assert float(exposure.split("level for")[1].split(":")[1].split()[0]) <= 3.0, exposure
    assert host.run("dmarc-analysis --config /nowhere refresh").rc == 1
