"""The dashboards on a real PostgreSQL: every query as Grafana sends it, by Grafana's role, on 20,000 made-up records.

The tables are parsedmarc's, the views those of the roles that own them (prepare.yml). There is no Grafana here: no
package registry has it. What it would have been told is read from the files that the role wrote.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from grafana_types import complaints

SCENARIO = Path(__file__).resolve().parents[1]
REPOSITORY = SCENARIO.parents[1]
ROLE = REPOSITORY / "roles/grafana"
BOARDS = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROLE / "files/dashboards").glob("*.json"))}
SECRETS = yaml.safe_load((SCENARIO / "vars/inputs.yml").read_text(encoding="utf-8"))
PASSWORD = SECRETS["grafana_database_password"]
PROGRAM = "/var/tmp/prove"
TCP = "host=127.0.0.1 dbname=dmarc user=grafana sslmode=require"


def run_role(*arguments: str, **variables) -> subprocess.CompletedProcess[str]:
    """The role alone with other data."""
    program = shutil.which("ansible-playbook") or str(Path(sys.executable).with_name("ansible-playbook"))
    return subprocess.run(
        [
            *(program, "-i", "molecule/inventory/", str(SCENARIO / "converge.yml"), "--tags=grafana"),
            *("-e", json.dumps(variables), *arguments),
        ],
        cwd=REPOSITORY,
        env=os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def sql(host, statement: str, user: str = "postgres") -> str:
    """What a role of the host sees through the socket."""
    done = host.run("cd / && runuser -u %s -- psql -qAtX -v ON_ERROR_STOP=1 -c %s dmarc 2>&1", user, statement)
    assert done.rc == 0, done.stdout
    return done.stdout.strip()


def as_grafana(host, statement: str):
    """The same through TCP and by password, as Grafana comes."""
    return host.run("cd / && PGPASSWORD=%s psql -qAtX -v ON_ERROR_STOP=1 -c %s %s 2>&1", PASSWORD, statement, TCP)


def send(command: str, content: bytes) -> None:
    """Give a command of the host its input."""
    ssh = ["ssh", "-F", str(REPOSITORY / ".lab/ssh/config"), "role-grafana", command]
    subprocess.run(ssh, input=content, check=True, timeout=60)


def prove(host, *arguments: str, text: str | None = None) -> tuple[int, list[dict]]:
    """Run the program that runs the queries, on the dashboards of the host or on another one."""
    files = "/etc/grafana/dashboards/*.json"
    if text is not None:
        files = "/var/tmp/changed.json"
        send(f"cat > {files}", text.encode())
    done = host.run(
        f"cd {PROGRAM} && PGPASSWORD=%s python3 -B -m grafana_dashboards.prove --json --dsn %s {' '.join(arguments)}"
        f" {files}",
        PASSWORD,
        TCP,
    )
    assert done.stdout.startswith("["), done.stderr
    return done.rc, json.loads(done.stdout)


@pytest.fixture(scope="module")
def proof(host):
    """The program on the host, beside the database."""
    archive = subprocess.run(
        ["tar", "--create", "--exclude=__pycache__", "grafana_dashboards"], cwd=ROLE / "files", stdout=-1, check=True
    )
    send(f"rm -rf {PROGRAM} && mkdir {PROGRAM} && tar --extract --no-same-owner -C {PROGRAM}", archive.stdout)
    return host


def test_every_query_runs_as_grafanas_role_and_shows_something(proof):
    code, results = prove(proof)
    failed = [f"{result['place']}: {result['problem']}" for result in results if result["problem"]]
    assert failed == []
    assert code == 0
    assert len({result["place"].split(":")[0] for result in results}) == len(BOARDS)
    assert len(results) > 300  # every domain, kind and number of days


def test_a_long_time_range_runs_too(proof):
    code, results = prove(proof, "--days=700", "--rounds=2")
    assert (code, [result["place"] for result in results if result["problem"]]) == (0, [])


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ("sum(n) AS messages", "sum(nn) AS messages", 'column "nn" does not exist'),
        ("dma.daily_domain WHERE", "dma.dayly_domain WHERE", 'relation "dma.dayly_domain" does not exist'),
        ("$__timeGroupAlias(day,'1d')", "$__timeGroupAlia(day,'1d')", "there is no macro $__timeGroupAlia"),
        ("$__timeGroupAlias(day,'1d')", "day", "has no column time"),
        ("${domain:sqlstring}", "${domian:sqlstring}", "there is no variable domian"),
        ("policy_domain IN (", "policy_domain || 'x' IN (", "shows nothing"),
    ],
)
def test_a_misspelt_query_is_found(proof, right, wrong, problem):
    text = BOARDS["dmarc-domains.json"]
    assert right in text
    code, results = prove(proof, text=text.replace(right, wrong))
    assert code == 1
    assert any(problem in result["problem"] for result in results), results[:3]


def test_dashboards_are_what_grafanas_own_types_say():
    assert complaints(BOARDS) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"palette-classic-by-name"', '"palette-clasic-by-name"'),
        ('"schemaVersion": 42', '"schemaVersion": "42"'),
        ('"drawStyle": "bars"', '"drawStyle": "bar"'),
        ('"lineWidth"', '"lineWith"'),
        ('"color-text"', '"color-txt"'),
        ('"cellHeight": "sm"', '"cellHeight": "small"'),
        ('"graphTooltip": 1', '"graphTooltip": 7'),
        ('"uid": "dmarc-pg"', '"uid": "dmarc"'),
    ],
)
def test_a_misspelt_option_is_found(right, wrong):
    text = BOARDS["dmarc-domains.json"]
    assert right in text
    assert complaints({"changed": text.replace(right, wrong)})


# What the dashboards say, counted once more without the summaries, from parsedmarc's own tables. "pass" is RFC 9990's
# word for mail that passed, "none" that of RFC 7489 for mail that nothing was done to: neither was stopped.
TRUTH = """
    SELECT sum(c.message_count), sum(c.message_count) FILTER (WHERE c.dmarc_passed),
        coalesce(sum(c.message_count) FILTER (WHERE c.disposition IN ('quarantine', 'reject')), 0)
    FROM dmarc_aggregate_record c JOIN dmarc_aggregate_report r ON r.id = c.report_id
    WHERE r.domain = 'example.org' AND (c.interval_begin AT TIME ZONE 'UTC')::date BETWEEN '{0}' AND '{1}'
"""


def test_sums_are_those_of_the_records_and_not_multiplied(proof):
    first, last = sql(proof, "SELECT current_date - 40, current_date - 2").split("|")
    assert int(sql(proof, f"SELECT count(*) FROM ({TRUTH.format(first, last)}) t")) == 1
    total, passed, stopped = map(int, sql(proof, TRUTH.format(first, last)).split("|"))
    board = json.loads(BOARDS["dmarc-domain.json"])
    (panel,) = [panel for panel in board["panels"] if panel["title"] == "In this time"]
    script = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); from datetime import datetime, UTC;"
        "from grafana_dashboards import queries as q;"
        "times = q.TimeRange(*(datetime.fromisoformat(d).replace(tzinfo=UTC) for d in sys.argv[3:5]));"
        "print(q.expanded(sys.argv[2], {'domain': 'example.org'}, times))"
    )
    text = proof.check_output(
        "python3 -B -c %s %s %s %s %s", script, PROGRAM, panel["targets"][0]["rawSql"], first, last
    )
    shown = as_grafana(proof, text).stdout.strip().split("|")
    assert int(shown[0]) == total
    assert float(shown[1]) == pytest.approx(passed / total)
    assert int(shown[3]) == stopped
    assert int(sql(proof, "SELECT count(*) FROM dmarc_aggregate_record WHERE disposition = 'pass'")) > 0


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM public.dmarc_failure_report",
        "SELECT * FROM public.dmarc_aggregate_record",
        "SELECT recipient FROM dmarc_reports.delivery",
        "SELECT line FROM dmarc_reports.event",
        "SELECT subject FROM intake.set_aside",
        "SET TRANSACTION READ WRITE; DELETE FROM dma.daily",
        "SET TRANSACTION READ WRITE; CREATE TABLE public.mine (a int)",
        "SET TRANSACTION READ WRITE; CREATE TABLE dma.mine (a int)",
        "SET TRANSACTION READ WRITE; CREATE TEMPORARY TABLE mine (a int)",
        "SET TRANSACTION READ WRITE; SELECT dma.refresh()",
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "SELECT pg_read_file('/etc/passwd')",
    ],
)
def test_grafanas_role_can_do_nothing_but_read_its_views(host, statement):
    done = as_grafana(host, statement)
    assert done.rc != 0
    # PostgreSQL 15 says the second of a program.
    assert "permission denied" in done.stdout or "must be superuser" in done.stdout


def test_its_sessions_are_bound(host):
    shown = as_grafana(host, "SHOW default_transaction_read_only; SHOW statement_timeout;")
    assert shown.stdout.split() == ["on", "30s"]


def settings(host) -> configparser.RawConfigParser:
    found = configparser.RawConfigParser(interpolation=None, comment_prefixes=("#", ";"))
    found.optionxform = str
    found.read_string(host.check_output("cat /etc/grafana/grafana.ini"))
    return found


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("server", "http_addr", "127.0.0.1"),
        ("server", "root_url", "https://grafana.example.org/"),
        ("auth.anonymous", "enabled", "false"),
        ("users", "allow_sign_up", "false"),
        ("security", "admin_password", "$__file{/etc/grafana/secrets/admin_password}"),
        ("security", "secret_key", "$__file{/etc/grafana/secrets/secret_key}"),
        ("security", "cookie_secure", "true"),
        ("security", "content_security_policy", "true"),
        ("security", "disable_gravatar", "true"),
        ("analytics", "reporting_enabled", "false"),
        ("analytics", "check_for_updates", "false"),
        ("analytics", "check_for_plugin_updates", "false"),
        ("news", "news_feed_enabled", "false"),
        ("plugins", "plugin_admin_enabled", "false"),
        ("geomap", "enable_custom_baselayers", "false"),
        ("auth.generic_oauth", "token_url", "https://sso.example.org/token"),
        (
            "auth.generic_oauth",
            "role_attribute_path",
            "contains(groups[*], 'mail-admins') && 'Admin' || contains(groups[*], 'mail') && 'Viewer'",
        ),
        ("auth.generic_oauth", "role_attribute_strict", "true"),
    ],
)
def test_settings(host, section, name, value):
    assert settings(host)[section][name] == value


def test_the_map_has_no_base_layer_from_outside(host):
    layer = json.loads(settings(host)["geomap"]["default_baselayer_config"].strip("`"))
    assert layer["type"] == "xyz"
    assert layer["config"]["url"].startswith("data:image/gif;base64,")


def test_data_source_is_provisioned_by_its_fixed_name(host):
    (source,) = yaml.safe_load(host.check_output("cat /etc/grafana/provisioning/datasources/dmarc.yaml"))["datasources"]
    assert (source["uid"], source["type"]) == ("dmarc-pg", "grafana-postgresql-datasource")
    assert (source["editable"], source["user"], source["jsonData"]["database"]) == (False, "grafana", "dmarc")
    path = re.fullmatch(r"\$__file\{(.*)\}", source["secureJsonData"]["password"])[1]
    assert host.check_output("cat %s", path) == PASSWORD


def test_dashboards_are_provisioned_read_only(host):
    (provider,) = yaml.safe_load(host.check_output("cat /etc/grafana/provisioning/dashboards/dmarc.yaml"))["providers"]
    assert (provider["allowUiUpdates"], provider["disableDeletion"]) == (False, True)
    place = provider["options"]["path"]
    assert set(host.check_output("ls %s", place).split()) == set(BOARDS)
    home = settings(host)["dashboards"]["default_home_dashboard_path"]
    assert json.loads(host.check_output("cat %s", home))["uid"] == "dmarc-domains"


def test_secrets_are_in_files_of_their_own_that_others_cannot_read(host):
    listing = host.check_output("find /etc/grafana/secrets -type f -printf '%f %m\\n'").split("\n")
    assert sorted(listing) == ["admin_password 640", "database_password 640", "oidc_secret 640", "secret_key 640"]
    assert host.check_output("stat -c %a /etc/grafana/secrets") == "750"
    for secret in ("a-password-of-the-scenario", "a-key-that-only", PASSWORD, "a-secret-of-the-single"):
        assert host.run("grep -rl %s /etc/grafana --exclude-dir=secrets", secret).stdout == ""


def test_contradictions_stop_the_run_all_at_once():
    done = run_role(
        grafana_admin_password="short",
        grafana_root_url="http://grafana.example.org/",
        grafana_repository="https://packages.example.org/deb",
        grafana_login_form=False,
        grafana_oidc={"enabled": False, "ca": "a certificate"},
    )
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    for sentence in (
        "Too short, or with blanks in it: grafana_admin_password.",
        "it must be https://NAME/",
        "grafana_repository needs grafana_repository_key",
        "grafana_oidc.ca is no certificate",
        "Nobody could log in",
    ):
        assert sentence in said


def test_without_a_package_the_run_says_so_and_changes_nothing():
    done = run_role("--check")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "No package source of this host has grafana" in " ".join(done.stdout.split())
    assert re.search(r"changed=0 .*failed=0", done.stdout)


def test_more_rights_are_taken_away_and_missing_ones_told(host):
    sql(host, "GRANT SELECT ON public.dmarc_failure_report TO grafana; GRANT INSERT ON dma.sender TO grafana")
    sql(host, "ALTER DEFAULT PRIVILEGES FOR ROLE parsedmarc IN SCHEMA public GRANT SELECT ON TABLES TO grafana")
    sql(host, "ALTER ROLE grafana IN DATABASE dmarc RESET statement_timeout")
    done = run_role()
    assert done.returncode == 0, done.stdout[-3000:]
    assert "changed=1 " in done.stdout
    assert as_grafana(host, "SELECT count(*) FROM public.dmarc_failure_report").rc != 0
    assert sql(host, "SELECT has_table_privilege('grafana', 'dma.sender', 'INSERT')") == "f"
    assert (
        sql(host, "SELECT count(*) FROM pg_default_acl WHERE defaclacl::text LIKE '%grafana%'".replace("%", "%%"))
        == "0"
    )
    assert as_grafana(host, "SHOW statement_timeout").stdout.strip() == "30s"
    sql(host, "REVOKE SELECT ON dma.daily_domain FROM grafana")
    try:
        done = run_role()
    finally:
        sql(host, "GRANT SELECT ON dma.daily_domain TO grafana")
    assert done.returncode != 0
    assert "Role grafana cannot read dma.daily_domain" in " ".join(done.stdout.split())
