"""What Postfix says of its TLS sessions becomes reports by mail and by HTTPS: the real daemons from session to mailbox.

One round is made for all tests: mail to the domains of files/unbound.conf, the day is closed as at midnight (SIGUSR2,
which tlsrpt-collectd has for that), and the reporter begins anew.
"""

from __future__ import annotations

import email
import email.policy
import gzip
import json
import time

import pytest

COLLECTOR, REPORTER = "tlsrpt-collectd.service", "tlsrpt-reportd.service"
STATE = "/var/lib/tlsrpt"
DOMAINS = ("good", "clear", "wrong", "hostile", "smuggler", "refuse", "silent")
FETCH = "runuser -u tlsrpt -- ssh -F /etc/tlsrpt/ssh_config -o ControlPath=none role-tlsrpt"


class Host:
    """The host under test."""

    def __init__(self, host) -> None:
        self.host = host

    def run(self, command: str) -> str:
        """Run a command that must succeed, and return what it prints."""
        done = self.host.run(command)
        assert done.rc == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def wait(self, command: str, seconds: float = 60) -> str:
        """Wait until a command succeeds, and return what it prints."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done = self.host.run(command)
            if done.rc == 0:
                return done.stdout
            time.sleep(0.5)
        raise AssertionError(f"{command}: not within {seconds} seconds\n{self.run(f'journalctl -n 30 -u {REPORTER}')}")

    def send(self, *domains: str) -> None:
        """Send a message to each domain, and wait until each has been tried."""
        since = self.run("date +%s.%N")
        for domain in domains:
            self.run(f"printf 'Subject: x\\n\\nx\\n' | sendmail -f a@example.org b@{domain}")
        for domain in domains:
            self.wait(f"journalctl -o cat --since @{since} -t postfix/smtp | grep -q 'to=<b@{domain}>.*status='")
        self.run("postsuper -d ALL")
        time.sleep(6)  # the collector writes every five seconds

    def rows(self, database: str, query: str) -> list:
        """Rows of a database of the reporter."""
        program = (
            "import json, sqlite3; "
            f"print(json.dumps(sqlite3.connect('{STATE}/{database}').execute(\\\"{query}\\\").fetchall()))"
        )
        return json.loads(self.run(f'python3 -c "{program}"'))


@pytest.fixture(scope="module")
def reported(host) -> Host:
    """A day's sessions, reported."""
    one = Host(host)
    one.run(f"systemctl stop {REPORTER} {COLLECTOR}")
    one.run(f"rm -f {STATE}/*.sqlite* && rm -rf /var/lib/reports/* /var/lib/upload/*")
    one.run(f"systemctl start {COLLECTOR}")
    one.send(*(f"{name}.example.net" for name in DOMAINS), "good.example.net", "own.example.org")
    one.run(f"systemctl kill -s USR2 {COLLECTOR}")
    time.sleep(2)
    one.run(f"systemctl start {REPORTER}")
    arrived = " -a ".join(f'-n "$(ls /var/lib/reports/{name}/new)"' for name in ("good", "clear", "wrong"))
    one.wait(f"test {arrived} -a -e /var/lib/upload/good.gz", 240)
    return one


def mail(host: Host, name: str) -> email.message.EmailMessage:
    text = host.run(f"cat /var/lib/reports/{name}/new/*")
    return email.message_from_string(text, policy=email.policy.default)


def report(message: email.message.EmailMessage) -> dict:
    attachment = next(part for part in message.walk() if part.get_content_type() == "application/tlsrpt+gzip")
    return json.loads(gzip.decompress(attachment.get_payload(decode=True)))


def test_report_mail_is_what_the_standard_wants(reported):
    message = mail(reported, "good")
    assert message.get_content_type() == "multipart/report"
    assert "tlsrpt" in message["Content-Type"]
    assert message["From"] == "tlsrpt-noreply@rua.example.org"
    assert message["Return-Path"] == "<tlsrpt-noreply@rua.example.org>"
    assert message["TLS-Report-Domain"] == "good.example.net"
    assert message["TLS-Report-Submitter"] == "example.org"
    assert message["TLS-Required"] == "No"
    assert message["Subject"].startswith("Report Domain: good.example.net Submitter: example.org Report-ID: <")
    assert message["Date"]
    text = report(message)
    assert text["organization-name"] == "100% Example"
    assert text["contact-info"] == "postmaster@example.org"
    assert text["date-range"]["start-datetime"].endswith("T00:00:00Z")
    assert text["date-range"]["end-datetime"].endswith("T23:59:59Z")


def test_sessions_that_went_well_are_counted(reported):
    policies = report(mail(reported, "good"))["policies"]
    assert [policy["policy"]["policy-type"] for policy in policies] == ["no-policy-found"]
    assert policies[0]["summary"] == {"total-successful-session-count": 2, "total-failure-session-count": 0}


@pytest.mark.parametrize(
    ("name", "result"), [("clear", "starttls-not-supported"), ("wrong", "certificate-host-mismatch")]
)
def test_what_went_wrong_is_said(reported, name, result):
    policy = report(mail(reported, name))["policies"][0]
    assert policy["policy"]["policy-type"] == "sts"
    assert policy["policy"]["policy-domain"] == f"{name}.example.net"
    assert policy["policy"]["policy-string"] == ["version: STSv1", "mode: enforce"]
    assert policy["summary"] == {"total-successful-session-count": 0, "total-failure-session-count": 1}
    assert policy["failure-details"][0]["result-type"] == result
    assert policy["failure-details"][0]["receiving-mx-hostname"] == f"mx.{name}.example.net"
    assert policy["failure-details"][0]["receiving-ip"].startswith("127.0.0.1")


def test_the_same_report_goes_to_a_web_server(reported):
    """The record has spaces, as RFC 8460 §3 allows, and two addresses."""
    assert reported.run("cat /var/lib/upload/good.type") == "application/tlsrpt+gzip"
    uploaded = json.loads(reported.run("zcat /var/lib/upload/good.gz"))
    assert uploaded == report(mail(reported, "good"))


def test_an_upload_that_was_refused_is_tried_again(reported):
    query = "select status, retries from destinations where destination like '%refuse'"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        status, retries = reported.rows("reportd.sqlite", query)[0]
        if retries >= 2:
            break
        time.sleep(1)
    assert (status, retries >= 2) == (None, True)


def test_nobody_gets_a_report_who_asked_for_none_or_is_ours(reported):
    assert reported.host.run("test -e /var/lib/reports/own").rc != 0
    sent = {
        row[0]
        for row in reported.rows("reportd.sqlite", "select domain from reports join destinations on r_id = d_r_id")
    }
    assert sent == {"good.example.net", "clear.example.net", "wrong.example.net", "refuse.example.net"}


def test_a_hostile_record_neither_stops_the_others_nor_leads_inside(reported):
    assert set(reported.run("ls /var/lib/upload").split()) == {"good.gz", "good.type"}
    assert reported.host.run("test -e /var/lib/reports/hostile").rc != 0
    assert reported.run(f"systemctl show -p NRestarts --value {REPORTER}") == "0"
    assert reported.host.service(REPORTER).is_running


def test_figures_come_by_ssh_and_nothing_else_does(reported):
    day = reported.run("date -u -d yesterday +%F")
    listed = reported.run(f"{FETCH} {day}").splitlines()
    assert {"good.example.net", "clear.example.net"} <= set(listed)
    assert json.loads(reported.run(f"{FETCH} {day} clear.example.net"))["d"] == "clear.example.net"
    for command in ("id", "", f"'{day} x; id'", f"{day} --help", f"{day} a b", "'$(id)'", f"'{day} ../x'"):
        done = reported.host.run(f"{FETCH} {command} || exit 1")
        assert done.rc != 0, command
        assert "uid=" not in done.stdout
    # From another address the key opens nothing.
    address = reported.run("ip -o -4 address show scope global | sed -E 's/.* inet ([0-9.]+).*/\\1/' | head -n 1")
    elsewhere = FETCH.replace("role-tlsrpt", f"-o HostName={address} role-tlsrpt")
    assert reported.host.run(f"{elsewhere} {day} || exit 1").rc == 1


def test_only_postfix_may_speak_to_the_collector(reported):
    program = (
        "import socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)"
        ".connect('/var/spool/postfix/run/tlsrpt/tlsrpt.sock')"
    )
    assert reported.host.run(f'runuser -u nobody -- python3 -c "{program}"').rc != 0
    assert reported.host.run(f'runuser -u postfix -- python3 -c "{program}"').rc == 0
    assert reported.run(f"stat -c %a {STATE}") == "750"
    for unit in (COLLECTOR, REPORTER):
        assert reported.run(f"systemctl show -p User --value {unit}") == "tlsrpt"


def test_mail_leaves_while_the_collector_is_down(reported):
    reported.run(f"systemctl stop {COLLECTOR}")
    try:
        since = reported.run("date +%s.%N")
        reported.run("printf 'Subject: x\\n\\nx\\n' | sendmail -f a@example.org b@good.example.net")
        reported.wait(f"journalctl -o cat --since @{since} -t postfix/smtp | grep -q 'status=sent'")
    finally:
        reported.run(f"systemctl start {COLLECTOR}")


def test_a_day_that_ended_while_the_collector_was_down_is_closed(reported):
    reported.send("good.example.net")
    reported.run(f"systemctl stop {COLLECTOR}")
    day = reported.run("date -u -d yesterday +%F")
    update = f"update finalresults set day='{day}'"
    program = f"import sqlite3; c = sqlite3.connect('{STATE}/collectd.sqlite'); c.execute(\\\"{update}\\\"); c.commit()"
    reported.run(f'python3 -c "{program}"')
    reported.run(f"systemctl start {COLLECTOR}")
    assert reported.rows("collectd.sqlite.yesterday", "select domain, day from finalresults") == [
        ["good.example.net", day]
    ]
    assert reported.rows("collectd.sqlite.yesterday", "select daycomplete from daystatus") == [[day]]
    assert reported.rows("collectd.sqlite", "select count(*) from finalresults") == [[0]]


def test_a_collector_that_chokes_on_garbage_goes_on(reported):
    """Only Postfix can speak to it; a datagram that is JSON and no object ends tlsrpt-collectd 0.6.0."""
    for text in ("b'x'", "b'{}'", "b'\\xff\\xfe'", "b'[1]'"):
        program = (
            "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); "
            f"s.connect('/var/spool/postfix/run/tlsrpt/tlsrpt.sock'); s.send({text})"
        )
        reported.run(f'python3 -c "{program}"')
        time.sleep(2)
        reported.wait(f"systemctl is-active {COLLECTOR} && test -S /var/spool/postfix/run/tlsrpt/tlsrpt.sock")
    reported.send("wrong.example.net")
    assert ["wrong.example.net"] in reported.rows("collectd.sqlite", "select domain from finalresults")
