"""The export for research, made by the installed command from the database: complete, masked, or not there."""

from __future__ import annotations

import csv
import io
import json
import shlex
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
SSH = ["ssh", "-F", str(ROOT / ".lab/ssh/config"), "role-dmarc-analysis"]
PROGRAMS = "/usr/local/lib/dmarc_reports"
BEGIN, DAY = 1_790_812_800, "2026-10-01"
MADE = 300


def host(command: str, *, data: str | bytes = "", status: int = 0) -> str:
    """Run a shell command on the host as root."""
    content = data.encode() if isinstance(data, str) else data
    done = subprocess.run([*SSH, command], input=content, capture_output=True, timeout=300, check=False)
    assert done.returncode == status, (done.stdout + done.stderr).decode()
    return (done.stdout if status == 0 else done.stderr).decode()


def sql(text: str, user: str = "parsedmarc") -> str:
    """Run SQL as a user of the host."""
    return host(f"cd / && runuser -u {user} -- psql -qAtX -v ON_ERROR_STOP=1 -d dmarc", data=text).strip()


def export(arguments: str, *, status: int = 0) -> str:
    """Run the command as an operator does."""
    return host(f"cd /var/lib/parsedmarc && runuser -u parsedmarc -- dmarc-export {arguments}", status=status)


def event(number: int) -> str:
    """A line as a gateway writes it."""
    domain = f"d{number % 7}.example.com"
    return json.dumps(
        {
            "version": 1, "id": str(uuid.UUID(int=number)), "time": BEGIN + 60 * number, "gateway": "gw1.example.org",
            "source_ip": f"198.51.100.{number % 50}", "helo": f"mx.{domain}", "envelope_from": domain,
            "envelope_to": ["example.org"], "header_from": domain, "dns": "ok", "policy": None,
            "spf": {"domain": domain, "scope": "mfrom", "result": "pass", "aligned": False},
            "dkim": [{"domain": domain, "selector": f"selector{number % 3}", "result": "pass", "aligned": False}],
            "dmarc": "none", "disposition": "none", "overrides": [],
        }
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def filled() -> Iterator[None]:
    """Events in the store of role dmarc_reports, as its own SQL makes it, and sums of reports; both gone afterwards."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(ROOT / "roles/dmarc_reports/files/dmarc_reports", "dmarc_reports")
        tar.add(ROOT / "roles/arc/files/estate_arc_policy.py", "estate_arc_policy.py")
    host(f"mkdir -p {PROGRAMS} && tar -x --no-same-owner -C {PROGRAMS} -f -", data=archive.getvalue())
    sql("CREATE ROLE dmarc_reports; CREATE SCHEMA dmarc_reports AUTHORIZATION dmarc_reports", "postgres")
    schema = ROOT / "roles/dmarc_reports/files/sql"
    reports, store = ((schema / name).read_text(encoding="utf-8") for name in ("20-reports.sql", "10-events.sql"))
    sql(f"SET ROLE dmarc_reports; SET check_function_bodies = off; {reports}; {store}", "postgres")
    lines = ",".join(f"$e${event(number)}$e$" for number in range(MADE))
    sql(f"SELECT dmarc_reports.take_events('gw1.example.org', ARRAY[{lines}])", "postgres")
    sql(
        f"""
        INSERT INTO dma.daily SELECT
            '{DAY}', 'example.org', 'host' || g % 3 || '.example.org', NULL, inet '203.0.113.0' + g,
            'Reporter ' || g % 4, CASE WHEN g < 100 THEN 'JP' ELSE 'BT' END, 'Some Provider', 'Email Provider',
            64500 + g % 2, 'AS of somebody', true, false, true, 'none', false, 'local_policy', g, 1
        FROM generate_series(1, 103) g
        """
    )
    yield
    sql(f"DELETE FROM dma.daily WHERE day = '{DAY}'")
    sql("DROP SCHEMA dmarc_reports CASCADE; DROP ROLE dmarc_reports", "postgres")
    host(f"rm -rf {PROGRAMS} /var/lib/parsedmarc/export*")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The files of an export of the day."""
    host("rm -rf /var/lib/parsedmarc/export && install -d -o parsedmarc /var/lib/parsedmarc/export")
    told = export(f"--from {DAY} --to {DAY} --licence CC-BY-4.0 export/day")
    assert f"{MADE} events, 103 reports" in told
    content = subprocess.run(
        [*SSH, "tar -c -C /var/lib/parsedmarc/export/day ."], capture_output=True, timeout=60, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {
            member.name.removeprefix("./"): file.read()
            for member in tar.getmembers()
            if (file := tar.extractfile(member))
        }


def rows(content: bytes) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    return list(csv.DictReader(io.StringIO(content.decode())))


def test_events_and_reports_come_as_csv_and_parquet_with_a_description(files):
    assert set(files) == {
        "README.md", "datapackage.json", "events.csv", "events.parquet", "reports.csv", "reports.parquet",
    }  # fmt: skip
    assert len(rows(files["events.csv"])) == MADE
    assert len(rows(files["reports.csv"])) == 103


def test_no_name_and_no_address_of_the_period_is_in_a_file(files):
    for name, content in files.items():
        for original in (b"d1.example", b"198.51.100.", b"203.0.113.", b"selector1", b"gw1", b"host1", b"Reporter 1",
                         b"Some Provider", b"AS of somebody"):  # fmt: skip
            assert original not in content, name


def test_every_event_of_a_domain_has_its_one_pseudonym(files):
    by_domain: dict[str, int] = {}
    for row in rows(files["events.csv"]):
        by_domain[row["header_from"]] = by_domain.get(row["header_from"], 0) + 1
        assert row["header_from"] == row["envelope_from"] == row["spf_domain"] == row["dkim_domain"]
    assert sorted(by_domain.values()) == sorted(len(range(first, MADE, 7)) for first in range(7))


def test_what_few_share_and_small_counts_are_not_told(files):
    got = rows(files["reports.csv"])
    assert {row["country"] for row in got} == {"JP", ""}
    assert sum(row["country"] == "" for row in got) == 4
    assert sorted(int(row["messages"]) for row in got if row["messages"])[:2] == [5, 6]
    assert sum(not row["messages"] for row in got) == 4


def test_with_a_kept_key_exports_join_and_without_one_they_do_not(files):
    for name in ("one", "two"):
        export(f"--from {DAY} --to {DAY} --key export/key export/{name}")
    same = "cmp export/one/events.csv export/two/events.csv && cmp export/one/reports.csv export/two/reports.csv"
    host(f"cd /var/lib/parsedmarc && {same} && ! cmp -s export/one/events.csv export/day/events.csv")
    assert host("stat -c '%a %U' /var/lib/parsedmarc/export/key").split() == ["600", "parsedmarc"]


def test_directory_that_holds_something_is_refused(files):
    assert "not an empty directory" in export(f"--from {DAY} --to {DAY} export/day", status=2)


def test_export_that_is_ended_half_way_leaves_nothing(files):
    """The reports wait for a lock that somebody else holds, then the command is told to stop."""
    script = """
        cd /var/lib/parsedmarc
        runuser -u parsedmarc -- psql -qAtX -d dmarc -c 'BEGIN; LOCK TABLE dma.daily; SELECT pg_sleep(8)' & holder=$!
        sleep 1
        runuser -u parsedmarc -- timeout --preserve-status 4 dmarc-export --from DAY --to DAY export/half && exit 3
        wait $holder
        ls -A export
    """.replace("DAY", DAY)
    assert "half" not in host(f"bash -c {shlex.quote(script)}")


def test_other_users_cannot_read_what_the_export_is_made_from():
    answer: dict[str, Any] = {}
    for privilege in ("dmarc_reports.event", "dma.daily"):
        answer[privilege] = sql(f"SELECT has_table_privilege('grafana', '{privilege}', 'SELECT')", "postgres")
    assert answer["dmarc_reports.event"] == "f"
