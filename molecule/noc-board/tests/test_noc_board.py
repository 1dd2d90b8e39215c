"""Who may read what, and that nobody is found by what is shown."""

from __future__ import annotations

import json
import random
import re

import pytest
from conftest import DIRECTORY, REPOSITORY, WORDS, Source, sources

from noc_board_export import NETWORKS

VIEWS = {"daily", "domain", "origin", "period", "survey", "totals"}
K, M = 3, 20  # defaults/main.yml


def many(country: str | None, addresses: int, messages: int, network: str | None = "ISP") -> list[Source]:
    """So many addresses of one country with so many messages each."""
    place = country or "??"
    return [
        Source(f"2001:db8:{ord(place[0]):x}{ord(place[1]):x}::{n + 1}", country, messages, network)
        for n in range(addresses)
    ]


def test_role_reads_its_views_and_not_one_thing_more(database):
    readable, refused = set(), 0
    names = database.ask(
        "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'v', 'm', 'p', 'f', 'S') AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
        " AND n.nspname !~ '^pg_(toast|temp)'"
    ).split()
    assert {"public.dmarc_aggregate_record", "dma.daily", "intake.set_aside", "dma_public.letter"} <= set(names)
    text = "".join(
        f"\\echo = {name}\nSELECT * FROM {name} LIMIT 1;\nSELECT count(*) FROM {name};\n" for name in names
    ).replace("SET TimeZone", "")
    answer = database.host.run(
        "printf '%%s' %s | (cd / && runuser -u noc_board -- psql -XqAt -d dmarc 2>&1)", text
    ).stdout
    for name, said in re.findall(r"= (\S+)\n(.*?)(?=\n= |\Z)", answer, re.DOTALL):
        if "permission denied" in said:
            refused += 1
        else:
            readable.add(name)
    assert readable == {f"dma_public.{view}" for view in VIEWS}
    assert refused == len(names) - len(VIEWS)


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE dma_public.mine (i int)",
        "CREATE TABLE public.mine (i int)",
        "CREATE TEMPORARY TABLE mine (i int)",
        "CREATE SCHEMA mine",
        "SET ROLE parsedmarc",
        "SET default_transaction_read_only = off; UPDATE dma_public.totals SET messages = 1",
        "SET default_transaction_read_only = off; DELETE FROM dma_public.letter",
        "SELECT dma.suggest_kinds()",
        "SELECT * FROM dma.spf_to_add(30)",
        "SELECT pg_read_file('/etc/passwd')",
        "COPY dma_public.letter TO STDOUT",
    ],
)
def test_role_changes_and_runs_nothing(database, sql):
    answer = database.run("SET default_transaction_read_only = off;" + sql, "noc_board")
    assert answer.rc == 3
    assert re.search("permission denied|cannot update view|read-only", answer.stderr), answer.stderr


def test_role_has_no_time_for_more_than_the_board(database):
    assert database.ask("SHOW statement_timeout; SHOW default_transaction_read_only", "noc_board") == "10s\non"


def test_a_role_that_could_read_more_stops_the_run(database):
    apply = (
        "psql -XqAt --username=postgres --dbname=dmarc -v min_sources=3 -v min_messages=20 -v days=30 "
        "-v named_domains=example.org -v ending=ROLLBACK -f /tmp/board.sql"
    )
    text = (REPOSITORY / "roles/noc_board/files/sql/board.sql").read_text(encoding="utf-8")
    database.host.check_output("printf '%%s' %s > /tmp/board.sql", text)
    assert database.host.run(apply).stdout == ""
    database.ask("GRANT USAGE ON SCHEMA dma TO noc_board; GRANT SELECT ON dma.daily TO noc_board")
    try:
        answer = database.host.run(apply)
        assert answer.rc == 3
        assert "may read more than the board shows: dma.daily" in answer.stderr
    finally:
        database.ask("REVOKE ALL ON dma.daily FROM noc_board; REVOKE ALL ON SCHEMA dma FROM noc_board")
    assert database.host.run(apply).stdout == ""


def test_figures_have_no_address_name_or_host(database, figures, host):
    text = host.file(f"{DIRECTORY}/figures/stats.json").content_string
    assert figures["totals"]["messages"] > 100_000
    columns = database.ask(
        "SELECT table_schema || '.' || table_name || ' ' || column_name FROM information_schema.columns"
        " WHERE table_schema IN ('public', 'dma') AND data_type IN ('text', 'inet', 'cidr', 'character varying')"
        " AND table_name IN (SELECT relname FROM pg_class WHERE relkind = 'r')"
    ).splitlines()
    query = " UNION ".join(
        f'SELECT "{column}"::text FROM {table}' for table, column in (line.split(" ") for line in columns)
    )
    values = set(database.ask(f"SELECT v FROM ({query}) x (v) WHERE v IS NOT NULL").splitlines())
    assert set(WORDS.values()) <= values
    assert {"198.18.25.11", "taro-lab.example.org", "sfc.example.org"} <= {value.split("/")[0] for value in values}
    allowed = {"example.org", *(one["code"] for one in figures["countries"]), "unknown", *"ABCD"}
    known = set(re.findall(r'"([^"]*)"', text)) - {"example.org"}
    # The kinds of networks are said in the board's own words; a few of them are everybody's.
    # "other" is a reason of an override in RFC 9990, and a key of ours.
    allowed |= {"other", *(value for value in values if value.lower() in NETWORKS)}
    leaked = {
        value
        for value in values - allowed
        if len(value) > 2 and any(value.lower() == word.lower() or value in word for word in known)
    }
    assert leaked == set()
    for word in re.findall(r"\w{4,}", " ".join(WORDS.values())):
        assert word.lower() in ("mail", "network", "example") or word.lower() not in text.lower(), word
    assert not re.search(r"[0-9]+[.][0-9]+[.][0-9]|::|@", text)
    assert re.findall(r"[a-z-]+[.][a-z]{2,}", text) == ["example.org"]


def test_only_whole_days_and_the_newest_is_left_out_until_reports_are_in(database, figures):
    last = database.ask("SELECT (now() AT TIME ZONE 'UTC' - interval '36 hours')::date - 1")
    assert figures["last_day"] == figures["through"] == figures["daily"][-1]["day"] == last
    assert len(figures["daily"]) == 30
    assert database.ask(f"SELECT count(*) > 0 FROM dma.daily WHERE day > '{last}'") == "t"
    assert all(one[key] % 10 == 0 for one in figures["daily"] for key in ("passed", "stopped", "failed"))


def test_domains_are_letters_that_tell_nothing_and_stay(database, figures):
    names = [one["name"] for one in figures["domains"]]
    assert "example.org" in names
    assert len(names) == 3, "one domain has too little mail"
    assert all(re.fullmatch("[A-D]|example.org", name) for name in names)
    before = database.ask("SELECT domain, place FROM dma_public.letter ORDER BY place")
    database.host.check_output("systemctl start noc-board.service")
    assert database.ask("SELECT domain, place FROM dma_public.letter ORDER BY place") == before


def test_one_address_too_few_is_not_shown_and_not_to_be_computed(database):
    shown = database.origin(sources(many("JP", 5, 40) + many("US", 4, 100) + many("DE", K, 7) + many("FR", K - 1, 50)))
    # Without Germany in it, "other" would be France: 821 is the sum of all.
    assert shown["country"] == {"US": 400, "JP": 200, "other": 120}


def test_enough_addresses_are_shown(database):
    shown = database.origin(sources(many("JP", 5, 40) + many("FR", K, 50)))
    assert shown["country"] == {"JP": 200, "FR": 150}


def test_enough_addresses_with_too_little_mail_are_not_shown(database):
    shown = database.origin(sources(many("JP", 5, 40) + many("US", 5, 60) + many("GB", 6, 3)))
    assert shown["country"] == {"US": 300, "other": 220}


def test_two_hidden_cells_that_are_few_even_together_take_one_more_with_them(database):
    shown = database.origin(
        sources(many("JP", 5, 40) + many("US", 5, 60) + many("FR", 1, 90) + many("GB", 1, 90) + many("DE", 4, 30))
    )
    assert shown["country"] == {"US": 300, "JP": 200, "other": 300}


def test_two_hidden_cells_that_are_enough_together_leave_the_others_alone(database):
    shown = database.origin(sources(many("JP", 5, 40) + many("FR", 2, 90) + many("GB", 2, 90)))
    assert shown["country"] == {"JP": 200, "other": 360}


def test_nothing_but_one_source_is_a_sum_without_a_place(database):
    assert database.origin(sources(many("FR", 1, 90))) == {"country": {"other": 90}, "network": {"other": 90}}


def test_address_that_reporters_place_in_two_countries_counts_once(database):
    wrong = [Source(one.ip, "FR", one.messages) for one in many("JP", 2, 50)]
    shown = database.origin(
        sources(many("JP", 2, 50) + many("US", 5, 60)), sources(wrong, "again"), sources(many("FR", 1, 50), "third")
    )
    assert "JP" not in shown["country"]
    assert sum(shown["country"].values()) == 550


def test_words_for_networks_are_our_own(database):
    odd = many("JP", 5, 40, "Yamada Taro Home Network") + many("US", 5, 40, "isp") + many("DE", 5, 40, None)
    assert set(database.origin(sources(odd))["network"]) <= {"isp", "unknown", "other"}


def test_report_that_comes_late_changes_nothing_that_was_shown(database):
    base = sources(many("JP", 5, 40) + many("FR", 4, 50))
    late = sources([Source("2001:db8:bad::1", "FR", 70)], "late", "'{last}'::timestamptz + interval '4 days'")
    in_time = sources([Source("2001:db8:bad::1", "FR", 70)], "in time", "'{last}'::timestamptz + interval '95 hours'")
    assert database.origin(base, late) == database.origin(base)
    assert database.origin(base, in_time) != database.origin(base)


def test_weeks_have_no_day_in_common(database):
    days = database.ask(
        "SELECT extract(isodow FROM week_first), extract(isodow FROM week_last), week_last - week_first,"
        " now() AT TIME ZONE 'UTC' >= week_last + interval '4 days' FROM dma_public.days"
    )
    assert days == "1|7|6|t"


@pytest.mark.parametrize("seed", range(12))
def test_whatever_comes_no_hidden_cell_is_left_alone(database, seed):
    rng = random.Random(seed)
    cells = {
        code: many(code, rng.choice([1, 1, 2, 3, 3, 5, 9]), rng.choice([1, 2, 7, 30, 200]))
        for code in rng.sample(
            ["JP", "US", "DE", "FR", "GB", "BR", "VN", "IN", "KR", "TW", "NL", "IT"], rng.randint(1, 8)
        )
    }
    shown = database.origin(sources([one for cell in cells.values() for one in cell]))["country"]
    other = [cell for code, cell in cells.items() if code not in shown]
    for code in set(shown) - {"other"}:
        assert len(cells[code]) >= K
        assert sum(one.messages for one in cells[code]) >= M
    if other and set(shown) != {"other"}:
        together = [one for cell in other for one in cell]
        assert len(other) >= 2
        assert len(together) >= K
        assert sum(one.messages for one in together) >= M
    # And no more is hidden than must be: all that is shown is larger than what went with the hidden.
    assert sum(shown.values()) == pytest.approx(sum(one.messages for cell in cells.values() for one in cell), abs=50)


def test_figures_that_name_somebody_are_refused_and_the_old_ones_stay(database, figures, host):
    before = host.file(f"{DIRECTORY}/figures/stats.json").content_string
    unit = "systemctl show -P Result noc-board.service"
    place = database.ask("SELECT place FROM dma_public.letter WHERE domain = 'sfc.example.org'")
    definition = database.ask("SELECT pg_get_viewdef('dma_public.domain')")
    database.ask(
        "CREATE OR REPLACE VIEW dma_public.domain WITH (security_barrier) AS"
        " SELECT 'taro.example.edu'::text AS name, 1 AS passed_pct, 1::bigint AS place"
    )
    try:
        assert host.run("systemctl start noc-board.service").rc == 1
        assert host.check_output(unit) == "exit-code"
        assert host.file(f"{DIRECTORY}/figures/stats.json").content_string == before
        journal = host.check_output("journalctl -u noc-board.service -n 20 -o cat --no-pager")
        assert "domains[0].name is something that may not be shown" in journal
        assert "taro" not in journal
        assert host.run(f"ls -A {DIRECTORY}/figures").stdout.split() == ["stats.json"]
    finally:
        database.ask(f"CREATE OR REPLACE VIEW dma_public.domain WITH (security_barrier) AS {definition}")
    assert host.run("systemctl start noc-board.service").rc == 0
    assert place in "1234"


def test_database_that_is_away_leaves_the_old_figures(database, figures, host):
    before = host.file(f"{DIRECTORY}/figures/stats.json").content_string
    host.check_output("systemctl stop 'postgresql@*'")
    try:
        assert host.run("systemctl start noc-board.service").rc == 1
        assert host.file(f"{DIRECTORY}/figures/stats.json").content_string == before
    finally:
        host.check_output("systemctl start postgresql@17-main.service || systemctl start postgresql")
    assert host.run("systemctl start noc-board.service").rc == 0
    assert json.loads(host.file(f"{DIRECTORY}/figures/stats.json").content_string)["totals"] == figures["totals"]


def test_figures_are_made_every_hour_by_a_confined_unit(host):
    assert host.check_output("systemctl is-enabled noc-board.timer; systemctl is-active noc-board.timer") == (
        "enabled\nactive"
    )
    level = host.check_output("systemd-analyze security noc-board.service --no-pager | tail -n 1")
    assert float(re.search(r"service: ([\d.]+)", level)[1]) <= 3.0
    page = host.file(f"{DIRECTORY}/index.html")
    assert (page.user, page.mode) == ("root", 0o644)
    assert host.run(f"runuser -u noc_board -- touch {DIRECTORY}/index.html").rc == 1
