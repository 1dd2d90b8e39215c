"""Reports with names and addresses in every column, the figures made of them, and Chromium before the page."""

from __future__ import annotations

import datetime
import functools
import hashlib
import http.server
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

SCENARIO = Path(__file__).resolve().parents[1]
REPOSITORY = SCENARIO.parents[1]
SITE = REPOSITORY / "roles/noc_board/files/site"
sys.path.insert(0, str(REPOSITORY / "roles/noc_board/files"))
DIRECTORY = "/srv/noc-board"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# Names as strangers might write them; none of them, and no part that a reader would know, may come out.
WORDS = {
    "org_name": "Tanaka Hanako Mail Service",
    "org_email": "hanako.tanaka@reporter.example.net",
    "org_extra_contact_info": "tel 03-1234-5678 Suzuki",
    "generator": "reporterd host7.example.net",
    "source_reverse_dns": "taro-pc.dorm.example.edu",
    "source_base_domain": "dorm.example.edu",
    "source_name": "Yamada Taro Home Network",
    "envelope_from": "bounce.taro.example.edu",
    "envelope_to": "ichiro.example.com",
    "comment": "forwarded for ichiro@example.com",
}


@dataclass(frozen=True)
class Source:
    """Failing mail of one address in the week that is shown."""

    ip: str
    country: str | None
    messages: int
    network: str | None = "ISP"


def literal(value: object) -> str:
    """A value as SQL."""
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int | bool) else "'" + str(value).replace("'", "''") + "'"


def report(number: str, domain: str, day: str, stored: str, records: list[dict[str, Any]]) -> str:
    """SQL that puts in one report. ``day`` and ``stored`` are SQL expressions of a timestamptz."""
    names = ", ".join(literal(WORDS[key]) for key in ("org_name", "org_email", "org_extra_contact_info", "generator"))
    lines = [
        "INSERT INTO public.dmarc_aggregate_report (org_name, org_email, org_extra_contact_info, generator, report_id,"
        " begin_date, end_date, errors, domain, adkim, aspf, policy, stored_at) VALUES"
        f" ({names}, {literal(number)}, {day}, {day} + interval '86399 seconds', '{{}}', {literal(domain)}, 'r', 'r',"
        f" 'none', {stored});"
    ]
    for record in records:
        columns = {
            "source_ip_address": record["ip"],
            "source_country": record.get("country"),
            "source_reverse_dns": WORDS["source_reverse_dns"],
            "source_base_domain": WORDS["source_base_domain"],
            "source_name": WORDS["source_name"],
            "source_type": record.get("network"),
            "message_count": record["messages"],
            "spf_aligned": record.get("passed", False),
            "dkim_aligned": record.get("passed", False),
            "dmarc_passed": record.get("passed", False),
            "disposition": record.get("disposition", "none"),
            "header_from": record.get("header_from", domain),
            "envelope_from": WORDS["envelope_from"],
            "envelope_to": WORDS["envelope_to"],
        }
        lines.append(
            f"INSERT INTO public.dmarc_aggregate_record (report_id, interval_begin, interval_end, {', '.join(columns)})"
            f" SELECT id, begin_date, end_date, {', '.join(literal(value) for value in columns.values())}"
            f" FROM public.dmarc_aggregate_report WHERE report_id = {literal(number)};"
        )
    lines.append(
        "INSERT INTO public.dmarc_aggregate_record_policy_override (record_id, override_type, comment)"
        f" SELECT max(id), 'other', {literal(WORDS['comment'])} FROM public.dmarc_aggregate_record;"
    )
    return "\n".join(lines)


def sources(
    shown: list[Source], number: str = "week", stored: str = "'{last}'::timestamptz + interval '2 days'"
) -> str:
    """SQL that puts in the week's failing mail; {first} and {last} are the days of the week."""
    return report(number, "example.org", "'{first}'::timestamptz", stored, [vars(one) for one in shown])


class Database:
    """The database on the host."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.first, self.last = self.ask("SELECT week_first, week_last FROM dma_public.days").split("|")

    def ask(self, sql: str, user: str = "parsedmarc") -> str:
        """What psql prints; SQL comes by standard input."""
        answer = self.run(sql, user)
        assert answer.rc == 0, answer.stderr
        return answer.stdout.strip()

    def run(self, sql: str, user: str) -> Any:
        text = "SET TimeZone = 'UTC';\n" + sql
        return self.host.run(
            "printf '%%s' %s | (cd / && runuser -u %s -- psql -XqAt -v ON_ERROR_STOP=1 -d dmarc)", text, user
        )

    def origin(self, *statements: str) -> dict[str, dict[str, int]]:
        """The countries and networks that are shown with these reports and no others; nothing stays."""
        text = "\n".join(statements).replace("{first}", self.first).replace("{last}", self.last)
        lines = self.ask(
            f"BEGIN; DELETE FROM public.dmarc_aggregate_report; {text}"
            " SELECT dimension, coalesce(code, 'other'), messages FROM dma_public.origin; ROLLBACK;"
        ).splitlines()
        found: dict[str, dict[str, int]] = {"country": {}, "network": {}}
        for line in lines:
            dimension, code, messages = line.split("|")
            found[dimension][code] = int(messages)
        return found


@pytest.fixture(scope="session")
def everything() -> str:
    """SQL of 40 days of mail in four domains, from a few countries, one of them with two addresses only."""
    parts = []
    for back in range(40):
        day = f"date_trunc('day', now()) - interval '{back} days'"
        records = [
            {"ip": f"198.18.25.{n}", "country": "JP", "messages": 400 + 13 * n + 29 * (back % 7), "passed": True}
            for n in range(11, 15)
        ]
        for code, count, size, kind in (
            ("JP", 5, 9, "ISP"),
            ("US", 6, 48, "Web Host"),
            ("DE", 4, 17, "Education"),
            ("BR", 7, 160, "ISP"),
            ("VN", 9, 31, "Email Provider"),
            ("IN", 3, 5, None),
            ("FR", 2, 60, "Yamada Taro Home Network"),
        ):
            records += [
                {
                    "ip": f"2001:db8:{ord(code[0]):x}{ord(code[1]):x}::{n + 1}",
                    "country": code,
                    "network": kind,
                    "messages": size + (back * 7 + n) % 5,
                    "disposition": ("none", "quarantine", "reject")[(back + n) % 3],
                    "header_from": "taro-lab.example.org" if n else "example.org",
                }
                for n in range(count)
            ]
        parts.append(report(f"all-{back}", "example.org", day, f"{day} + interval '30 hours'", records))
        for domain, good, bad in (
            ("sfc.example.org", 300, 90),
            ("ml.example.org", 900, 7),
            ("quiet.example.org", 1, 0),
        ):
            mail = [{"ip": "198.18.25.11", "country": "JP", "messages": good, "passed": True}]
            if bad:
                mail.append({"ip": "192.0.2.7", "country": "US", "network": "SaaS", "messages": bad})
            parts.append(report(f"{domain}-{back}", domain, day, f"{day} + interval '30 hours'", mail))
    return "\n".join(parts)


def chunks(text: str, size: int = 80_000) -> Iterator[str]:
    """The same SQL in parts that fit on a command line, each of whole reports."""
    head, part = "INSERT INTO public.dmarc_aggregate_report ", ""
    for statement in text.split(head)[1:]:
        if part and len(part) + len(statement) > size:
            yield part
            part = ""
        part += head + statement
    yield part


@pytest.fixture
def database(host: Any) -> Database:
    return Database(host)


@pytest.fixture
def figures(host: Any, database: Database, everything: str) -> dict[str, Any]:
    """What the board shows of them."""
    if database.ask("SELECT count(*) FROM public.dmarc_aggregate_report WHERE report_id = 'all-0'") == "0":
        for part in chunks(everything):
            database.ask(part)
        host.check_output("systemctl start dmarc-analysis-refresh.service")
    host.check_output("systemctl start noc-board.service")
    return json.loads(host.file(f"{DIRECTORY}/figures/stats.json").content_string)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A web server as the board's: its files and its policy."""

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Board:
    """The page as it is on the host, with figures of the test's choice."""

    folder: Path
    server: http.server.ThreadingHTTPServer
    browser: Browser

    def show(self, figures: dict[str, Any] | None) -> None:
        """Put figures where the page looks for them."""
        (self.folder / "figures").mkdir(exist_ok=True)
        (self.folder / "figures/stats.json").write_text(json.dumps(figures))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium")
    assert program, "The browser tests need Chromium: install the package chromium."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, chromium_sandbox=os.geteuid() != 0)
        yield browser
        browser.close()


@pytest.fixture
def board(host: Any, chromium: Browser, tmp_path: Path) -> Iterator[Board]:
    names = host.check_output(f"cd {DIRECTORY} && find . -maxdepth 1 -type f -printf '%f\\n'").split()
    for name in names:
        served = host.check_output(f"sha256sum < {DIRECTORY}/{name}").split()[0]
        if (SITE / name).stat().st_size > 100_000:  # the large ones are compared, not fetched
            assert hashlib.sha256((SITE / name).read_bytes()).hexdigest() == served, name
            shutil.copy(SITE / name, tmp_path)
        else:
            (tmp_path / name).write_text(host.file(f"{DIRECTORY}/{name}").content_string)
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Board(tmp_path, server, chromium)
        server.shutdown()


def hours_ago(hours: float) -> str:
    """A moment as the exporter writes it."""
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
