"""From the milter's files to the database: real PostgreSQL over TLS, and the unit as its timer starts it.

The host is a gateway and the analytics host in one; the milter's own code writes the events (files/write_events.py).
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

SCENARIO = Path(__file__).resolve().parents[1]
REPOSITORY = SCENARIO.parents[1]
SPOOL, ASIDE = "/var/spool/estate-dmarc", "/var/lib/dmarc_events/set-aside"
PASSWORD = "of-the-gateways"
UNIT = "dmarc-events.service"


def run_role(*arguments: str, **variables) -> subprocess.CompletedProcess[str]:
    """The gateway's half of the scenario's play, with other data."""
    program = shutil.which("ansible-playbook") or str(Path(sys.executable).with_name("ansible-playbook"))
    return subprocess.run(
        [
            *(program, "-i", "molecule/inventory/", str(SCENARIO / "converge.yml"), "--skip-tags", "database"),
            *("-e", json.dumps(variables), *arguments),
        ],
        cwd=REPOSITORY,
        env=os.environ
        | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "MOLECULE_PROJECT_DIRECTORY": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


class Gateway:
    """The host under test."""

    def __init__(self, host) -> None:
        self.host = host
        self.unit = host.run("systemctl list-units --plain --no-legend --all 'postgresql@*'").stdout.split()[0]

    def sql(self, text: str) -> str:
        """What the administrator is told."""
        return self.host.check_output("psql -XAtq -U postgres -d dmarc -v ON_ERROR_STOP=1 -c %s", text).strip()

    def as_gateway(self, text: str):
        """A statement of the gateways' role, over TLS and with its password."""
        target = "host=role-dmarc-events.example.org dbname=dmarc user=dmarc_events sslmode=require"
        script = 'IFS= read -r PGPASSWORD; export PGPASSWORD; exec psql -XAtq -v ON_ERROR_STOP=1 -d "$1" -c "$2"'
        return self.host.run("printf '%%s\\n' %s | bash -c %s psql %s %s", PASSWORD, script, target, text)

    def empty(self) -> None:
        """No events anywhere, and a database that answers."""
        self.host.check_output("systemctl stop dmarc-events.timer; systemctl reset-failed; systemctl start postgresql")
        self.host.check_output("systemctl start %s", self.unit)
        for _attempt in range(60):
            if self.host.run("psql -XAtq -U postgres -d dmarc -c 'SELECT 1'").rc == 0:
                break
            time.sleep(0.5)
        self.host.check_output(f"rm -rf {SPOOL}/* {ASIDE}/*")
        self.sql("TRUNCATE dmarc_reports.event, dmarc_reports.set_aside, dmarc_reports.watermark")
        self.sql("DELETE FROM dmarc_reports.day")

    def write(self, hours_ago: float, count: int) -> set[str]:
        """Events as the milter writes them; gives the ids of all that wait."""
        self.host.check_output(
            "cd /usr/local/share && runuser -u estate-arc -- python3 -B write_events.py %s %s",
            str(hours_ago), str(count),
        )  # fmt: skip
        found = re.findall(r'"id":"([0-9a-f-]{36})"', self.host.check_output(f"cat {SPOOL}/*"))
        assert len(found) >= count
        return set(found)

    def put(self, content: bytes, hours_ago: float = 2, worker: str = "9") -> None:
        """A file as a damaged disk would hold it."""
        name = time.strftime("%Y%m%dT%H", time.gmtime(time.time() - hours_ago * 3600))
        path = f"{SPOOL}/{name}.mail-gw1.example.org.{worker}.jsonl"
        self.host.check_output(
            "printf %%s %s | base64 -d | runuser -u estate-arc -- tee %s > /dev/null",
            base64.b64encode(content).decode(), path,
        )  # fmt: skip

    def hand_over(self) -> str:
        """Run the unit; returns its result: success, or exit-code where systemd says that it failed."""
        self.host.run("systemctl start %s", UNIT)
        return self.host.check_output("systemctl show -p Result --value %s", UNIT)

    def stored(self) -> set[str]:
        return set(self.sql("SELECT id FROM dmarc_reports.event").split())

    def waiting(self) -> int:
        return int(self.host.check_output(f"ls {SPOOL} | wc -l"))

    def journal(self, since: str, *arguments: str) -> str:
        return self.host.check_output(f"journalctl -u {UNIT} --since '{since}' --no-pager -o cat {' '.join(arguments)}")

    def now(self) -> str:
        return self.host.check_output("date '+%F %T'")

    def metric(self, name: str) -> float:
        text = self.host.file("/var/lib/dmarc_events/dmarc_events.prom").content_string
        return float(re.search(rf"^dmarc_events_{name} (\S+)$", text, re.MULTILINE)[1])


def line(hours_ago: float = 2, **fields: object) -> bytes:
    content = {"version": 1, "id": str(uuid.uuid4()), "time": int(time.time() - hours_ago * 3600)} | fields
    return json.dumps(content).encode() + b"\n"


@pytest.fixture(scope="module")
def quiet(host):
    yield Gateway(host)
    host.check_output("systemctl reset-failed; systemctl start dmarc-events.timer")


@pytest.fixture
def gateway(quiet):
    quiet.empty()
    return quiet


def test_events_as_the_milter_writes_them_arrive_once_and_a_second_run_sends_nothing(gateway):
    written = gateway.write(2, 3000)
    before = gateway.metric("sent_total") if gateway.host.file("/var/lib/dmarc_events/dmarc_events.prom").exists else 0
    assert gateway.hand_over() == "success"
    assert gateway.stored() == written
    assert gateway.waiting() == 0
    assert gateway.metric("sent_total") == before + 3000
    assert gateway.hand_over() == "success"
    assert gateway.metric("sent_total") == before + 3000
    assert gateway.sql("SELECT DISTINCT gateway FROM dmarc_reports.event") == "mail-gw1.example.org"
    assert gateway.sql("SELECT count(*) FROM dmarc_reports.event WHERE day <> (time AT TIME ZONE 'UTC')::date") == "0"
    assert gateway.sql("SELECT line::json ->> 'helo' FROM dmarc_reports.event LIMIT 1") == "mx.example.com"


def test_running_hour_stays_and_hours_without_a_file_are_complete(gateway):
    gateway.write(0, 5)
    assert gateway.hand_over() == "success"
    assert gateway.waiting() == 2
    assert gateway.stored() == set()
    lag = float(gateway.sql("SELECT extract(epoch FROM now() - until) FROM dmarc_reports.watermark"))
    assert 600 <= lag <= 3600 + 600 + 60 + 30


def test_what_is_complete_never_goes_back_nor_into_the_future(gateway):
    call = "SELECT dmarc_reports.events_complete('gw', now() + interval '{0}')"
    seen = []
    for interval in ("-3 hours", "-5 hours", "10 years"):
        assert gateway.as_gateway(call.format(interval)).rc == 0
        seen.append(float(gateway.sql("SELECT extract(epoch FROM now() - until) FROM dmarc_reports.watermark")))
    assert [round(one, -2) for one in seen] == [10800, 10800, 0]


def test_database_away_leaves_files_and_the_unit_does_not_fail(gateway):
    written = gateway.write(2, 500)
    since = gateway.now()
    gateway.host.check_output("systemctl stop postgresql %s", gateway.unit)
    assert gateway.hand_over() == "success"
    assert "not handed over: " in gateway.journal(since)
    assert gateway.metric("backlog_files") == 2
    assert gateway.metric("backlog_bytes") > 100_000
    assert gateway.waiting() == 2
    gateway.host.check_output("systemctl start postgresql %s", gateway.unit)
    assert gateway.hand_over() == "success"
    assert gateway.stored() == written
    assert gateway.waiting() == 0


def test_long_outage_is_said_loudly(gateway):
    gateway.write(9, 10)
    since = gateway.now()
    gateway.host.check_output("systemctl stop postgresql %s", gateway.unit)
    assert gateway.hand_over() == "exit-code"
    # eight hours and as many minutes as this hour has seen
    assert re.search("files of DMARC events wait, the oldest for [89] hours", gateway.journal(since, "-p", "err"))
    assert gateway.metric("backlog_oldest_seconds") > 7 * 3600


def test_killed_at_random_moments_no_event_is_lost_or_doubled(gateway):
    written = gateway.write(3, 9000) | gateway.write(2, 9000)
    chance = random.Random(5)
    kills = database_kills = between = 0
    for attempt in range(14):
        gateway.host.check_output("systemctl reset-failed; systemctl start --no-block %s", UNIT)
        time.sleep(chance.uniform(0.15, 0.9))
        if attempt % 5 == 4:
            gateway.host.check_output("systemctl kill -s KILL %s", gateway.unit)
            database_kills += 1
            for _attempt in range(60):
                time.sleep(0.5)
                if gateway.host.run("psql -XAtq -U postgres -d dmarc -c 'SELECT 1'").rc == 0:
                    break
        else:
            alive = gateway.host.run("systemctl is-active %s", UNIT).stdout.strip() == "activating"
            gateway.host.run("systemctl kill -s KILL %s", UNIT)
            kills += alive
        between += 0 < len(gateway.stored()) < len(written)
        if gateway.waiting() == 0:
            break
    gateway.host.check_output("systemctl reset-failed")
    gateway.hand_over()
    assert gateway.hand_over() == "success"
    assert gateway.stored() == written
    assert gateway.sql("SELECT count(*) FROM dmarc_reports.event") == str(len(written)) == "18000"
    assert gateway.waiting() == 0
    assert kills >= 2, "the program was killed at work"
    assert between, "and not only before the first batch"


def test_server_of_another_authority_or_name_is_not_spoken_to(gateway):
    gateway.write(2, 10)
    config = "/etc/dmarc_events"
    gateway.host.check_output(f"cp -a {config} /root/dmarc_events.kept")
    stranger = (REPOSITORY / ".lab/pki/members-ca.pem").read_text()
    try:
        own_ca, other_host = "/root/dmarc_events.kept/ca.pem", 's/^host = .*/host = "localhost"/'
        for command, sentence in (
            (f"printf %b {json.dumps(stranger)} > {config}/ca.pem", "certificate verify failed"),
            (f"cp {own_ca} {config}/; sed -i '{other_host}' {config}/events.toml", "does not match host name"),
        ):  # fmt: skip
            since = gateway.now()
            gateway.host.check_output("bash -c %s", command)
            gateway.hand_over()
            assert sentence in gateway.journal(since)
            assert gateway.stored() == set()
            assert gateway.waiting() == 2
    finally:
        gateway.host.check_output(f"rm -r {config} && mv /root/dmarc_events.kept {config}")
    gateway.hand_over()
    assert len(gateway.stored()) == 10


def test_gateways_role_may_hand_over_and_nothing_else(gateway):
    own = line().decode().strip()
    assert gateway.as_gateway(f"SELECT dmarc_reports.take_events('gw', ARRAY['{own}'])").stdout.strip() == "1"
    gateway.host.check_output("runuser -u postgres -- psql -q -d dmarc -c %s", "SET ROLE parsedmarc; "
                              "CREATE TABLE IF NOT EXISTS public.of_others AS SELECT 1 AS one")  # fmt: skip
    for statement in (
        "SELECT * FROM dmarc_reports.event", "INSERT INTO dmarc_reports.watermark VALUES ('gw', now())",
        "DELETE FROM dmarc_reports.event", "UPDATE dmarc_reports.day SET late = 0", "TABLE dmarc_reports.set_aside",
        "TABLE public.of_others", "CREATE TABLE public.mine (i int)", "CREATE TABLE dmarc_reports.mine (i int)",
        "CREATE TEMPORARY TABLE mine (i int)", "CREATE SCHEMA mine", "SET ROLE dmarc_reports", "CREATE ROLE mine",
        "COPY (SELECT 1) TO PROGRAM 'id'", "SELECT pg_read_file('/etc/passwd')",
    ):  # fmt: skip
        said = gateway.as_gateway(statement)
        assert said.rc != 0, statement
        assert "permission denied" in said.stderr or "must be" in said.stderr, said.stderr
    found = gateway.sql(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'dmarc_reports'::regnamespace AND prosecdef"
        " AND has_function_privilege('dmarc_events', oid, 'EXECUTE') ORDER BY 1"
    )
    assert found.split() == ["events_complete", "take_events"]
    public = gateway.sql(
        "SELECT count(*) FROM pg_proc, aclexplode(proacl) a WHERE a.grantee = 0 AND prosecdef"
        " AND pronamespace = 'dmarc_reports'::regnamespace"
    )
    assert public == "0"


def test_lines_that_are_no_events_are_set_aside_and_the_rest_arrives(gateway):
    gateway.put(
        line() + b"\xff\xfe\n" + line(helo="x").replace(b'"x"', b'"\0"') + b'{"version":1,"id":"12\n'
        + line(id="urn:uuid:" + str(uuid.uuid4())) + b"\n" + line() + b'{"version":1,"time":'
    )  # fmt: skip
    assert gateway.hand_over() == "success"
    assert len(gateway.stored()) == 2
    assert gateway.waiting() == 0
    here = [json.loads(one)["reason"] for one in gateway.host.check_output(f"cat {ASIDE}/*").splitlines()]
    assert here == ["not UTF-8", "holds NUL", "not JSON: cut off or damaged", "not JSON: cut off or damaged"]
    assert "type uuid" in gateway.sql("SELECT string_agg(reason, '; ') FROM dmarc_reports.set_aside")


def test_nul_half_characters_and_backslashes_of_strangers_are_taken_as_they_are(gateway):
    strange = ["\0", "\0\0", "\ud800", "\udfff", "\\u0000", "\\\0", "\\ud800", "日本\U0001f600", '\\"\\']
    gateway.put(b"".join(line(selector=one) for one in strange))
    assert gateway.hand_over() == "success"
    lines = gateway.sql("SELECT line FROM dmarc_reports.event").splitlines()
    assert sorted(json.loads(one)["selector"] for one in lines) == sorted(strange)


def test_line_that_the_database_refuses_does_not_stop_the_others(gateway):
    gateway.write(2, 300)
    gateway.put(line() + line(helo="poison") + line())
    gateway.sql("ALTER TABLE dmarc_reports.event ADD CONSTRAINT no_poison CHECK (line NOT LIKE '%poison%')")
    try:
        assert gateway.hand_over() == "success"
    finally:
        gateway.sql("ALTER TABLE dmarc_reports.event DROP CONSTRAINT no_poison")
    assert len(gateway.stored()) == 302
    assert "no_poison" in gateway.host.check_output(f"cat {ASIDE}/*")


def test_day_that_is_being_closed_makes_its_events_wait_and_counts_them_as_late(gateway):
    gateway.put(line(50) + line(50) + line(2), 2)
    closing = (
        "BEGIN; SELECT pg_advisory_xact_lock(hashtext('dmarc_reports.day'), d - date '2000-01-01'), pg_sleep(2)"
        " FROM (SELECT (now() AT TIME ZONE 'UTC' - interval '50 hours')::date AS d) AS x;"
        " INSERT INTO dmarc_reports.day (day, reason, events, reports)"
        " SELECT (now() AT TIME ZONE 'UTC' - interval '50 hours')::date, 'complete', count(*), 0"
        " FROM dmarc_reports.event; COMMIT"
    )
    gateway.host.check_output("psql -XAtq -U postgres -d dmarc -c %s > /dev/null 2>&1 &", closing)
    time.sleep(0.7)
    assert gateway.hand_over() == "success"
    assert len(gateway.stored()) == 3
    assert gateway.sql("SELECT events, late FROM dmarc_reports.day") == "0|2", "in the count or late, never neither"
    gateway.put(gateway.sql("SELECT line FROM dmarc_reports.event").encode() + b"\n")
    assert gateway.hand_over() == "success"
    assert gateway.sql("SELECT late FROM dmarc_reports.day") == "2", "known events are not late again"


def test_password_is_nowhere_to_be_seen(gateway):
    gateway.write(2, 10)
    gateway.hand_over()
    for command in (
        f"systemctl show {UNIT}; systemctl cat {UNIT}", f"journalctl -u {UNIT}", "cat /etc/dmarc_events/events.toml",
        "ps axeww",
    ):  # fmt: skip
        assert PASSWORD not in gateway.host.check_output(command)
    assert gateway.host.run("runuser -u dmarc_events -- cat /etc/dmarc_events/password").rc != 0
    assert gateway.host.file("/etc/dmarc_events/password").mode == 0o600


def test_unit_is_confined_and_its_timer_waits(gateway):
    level = gateway.host.check_output("systemd-analyze security %s --no-pager | tail -n 1", UNIT)
    assert float(re.search(r"service: ([\d.]+)", level)[1]) <= 3.0
    gateway.host.check_output("systemctl start dmarc-events.timer")
    assert gateway.host.check_output("systemctl is-active dmarc-events.timer") == "active"
    assert gateway.host.check_output("systemctl is-enabled dmarc-events.timer") == "enabled"


def test_switched_off_it_goes_and_the_events_stay(gateway):
    written = gateway.write(2, 20)
    off = run_role(dmarc_events_enabled=False)
    assert off.returncode == 0, off.stdout[-3000:]
    assert gateway.host.run(f"systemctl cat {UNIT} dmarc-events.timer").rc != 0
    assert gateway.host.check_output("ls -d /etc/dmarc_events /usr/local/lib/dmarc_events 2>&1 | grep -c cannot") == "2"
    assert not gateway.host.user("dmarc_events").exists
    assert gateway.waiting() == 2
    again = run_role(dmarc_events_enabled=False)
    assert re.search(r"changed=0 .*failed=0", again.stdout), again.stdout[-3000:]
    would = run_role("--check", "--diff")
    assert would.returncode == 0, would.stdout[-3000:]
    assert PASSWORD not in would.stdout
    assert not gateway.host.user("dmarc_events").exists
    on = run_role()
    assert on.returncode == 0, on.stdout[-3000:]
    assert gateway.hand_over() == "success"
    assert gateway.stored() == written
