"""How mail is secured on its way to domains with DANE, MTA-STS, both or neither: a real Postfix, signed DNS, Caddy.

The domains are those of templates/*.zone.j2; s.example.net is signed, u.example.net is not. Every mail host is a
service of the same Postfix and discards what it takes in, so "arrived" is what the sending side logs.
"""

from __future__ import annotations

import json
import os
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
DAEMON, POLICY = "postfix-mta-sts-resolver.service", "tls-policy.service"
SOCKET = "/var/spool/postfix/tls_policy/policy.sock"


class Sender:
    """The host under test."""

    def __init__(self, host) -> None:
        self.host = host

    def run(self, command: str) -> str:
        """Run a command that must succeed, and return what it prints."""
        done = self.host.run(command)
        assert done.rc == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def policy(self, domain: str) -> str:
        """What Postfix is told of a domain: by its own client, below its queue directory."""
        query = f"cd /var/spool/postfix && postmap -q {domain} socketmap:unix:tls_policy/policy.sock:postfix"
        done = self.host.run(query)
        assert done.rc in (0, 1), done.stderr
        return "TEMP" if "temporary" in done.stderr or "lookup error" in done.stderr else done.stdout.strip()

    def send(self, domain: str) -> tuple[str, str]:
        """Send a message, and return its status (sent, deferred, bounced) and what was logged about it."""
        message_id = f"{uuid.uuid4()}@example.org"
        since = self.run("date +%s.%N")
        mail = f"From: a@example.org\\nTo: b@{domain}\\nMessage-ID: <{message_id}>\\nSubject: x\\n\\nx\\n"
        self.run(f"printf '{mail}' | sendmail -f a@example.org b@{domain}")
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            journal = self.run(f"journalctl -o cat --since @{since} -t postfix/cleanup -t postfix/smtp -t postfix/qmgr")
            queue = re.search(rf"(\w+): message-id=<{re.escape(message_id)}>", journal)
            status = queue and re.search(rf"{queue[1]}: to=.*status=(\w+)", journal)
            if status:
                self.host.run(f"postsuper -d {queue[1]}")
                return status[1], journal
            time.sleep(0.3)
        raise AssertionError(f"no status of {message_id}\n{journal}")


@pytest.fixture(scope="module")
def sender(host) -> Sender:
    return Sender(host)


@pytest.fixture
def restored(sender):
    """Afterwards everything runs again."""
    yield
    sender.run(f"systemctl start unbound caddy {DAEMON} {POLICY}")
    sender.run("postsuper -d ALL")


@pytest.mark.parametrize(
    ("domain", "answer"),
    [
        ("dane.s.example.net", ""),
        ("both.s.example.net", ""),
        ("wrong.s.example.net", ""),
        ("tlsafail.s.example.net", ""),
        ("self.s.example.net", ""),
        ("halfdane.s.example.net", ""),
        ("alias.s.example.net", ""),
        ("null.s.example.net", ""),
        ("nosuch.s.example.net", ""),
        ("plain.u.example.net", ""),
        ("testing.u.example.net", ""),
        ("none.u.example.net", ""),
        ("mixed.s.example.net", "dane-only"),
        ("sts.s.example.net", "secure match=mx-good.s.example.net"),
        ("unusable.s.example.net", "secure match=.s.example.net"),
        ("sts.u.example.net", "secure match=.u.example.net"),
        ("STS.u.example.net", "secure match=.u.example.net"),
        # The MX record is not signed, so whoever forges it chooses the host that DANE would authenticate.
        ("insecuremx.u.example.net", "secure match=mx-dane.s.example.net"),
        ("dead.example.net", "TEMP"),
        ("[mx-good.s.example.net]:25", ""),
        (".u.example.net", ""),
    ],
)
def test_dane_is_asked_first_then_the_policy(sender, domain, answer):
    told = sender.policy(domain)
    assert told == answer or (answer.startswith("secure") and told.startswith(f"{answer} ")), told


def test_the_operator_sees_what_postfix_is_told_and_why(sender):
    assert sender.run("tls-policy both.s.example.net") == "dane: NOTFOUND"
    assert sender.run("tls-policy sts.u.example.net").startswith("sts: OK secure match=.u.example.net ")
    assert sender.run("tls-policy plain.u.example.net") == "none: NOTFOUND"


def test_the_policy_brings_what_tls_reports_need(sender):
    answer = sender.policy("sts.u.example.net")
    for part in (
        "policy_type=sts",
        "policy_domain=sts.u.example.net",
        "mx_host_pattern=*.u.example.net",
        "{ policy_string = mode: enforce }",
    ):
        assert part in answer


@pytest.mark.parametrize(
    ("domain", "status", "log"),
    [
        ("dane.s.example.net", "sent", "Verified TLS connection established to mx-dane.s.example.net"),
        ("both.s.example.net", "sent", "Verified TLS connection established to mx-dane.s.example.net"),
        ("alias.s.example.net", "sent", "Verified TLS connection established to mx-alias.s.example.net"),
        # The certificate is good for MTA-STS, but DANE says that it is another's: the mail waits.
        ("wrong.s.example.net", "deferred", "Server certificate not verified"),
        ("tlsafail.s.example.net", "deferred", "TLSA lookup error"),
        ("mixed.s.example.net", "sent", "Verified TLS connection established to mx-dane.s.example.net"),
        ("sts.s.example.net", "sent", "Verified TLS connection established to mx-good.s.example.net"),
        ("sts.u.example.net", "sent", "Verified TLS connection established to mx-good.u.example.net"),
        ("clear.u.example.net", "deferred", "TLS is required, but was not offered"),
        ("untrusted.u.example.net", "deferred", "Server certificate not verified"),
        ("mismatch.u.example.net", "deferred", "mx-other.u.example.net"),
        ("testing.u.example.net", "sent", "Untrusted TLS connection established to mx-untrusted.u.example.net"),
        ("plain.u.example.net", "sent", "mx-clear.u.example.net[127.0.0.12]:25"),
        ("none.u.example.net", "sent", "mx-clear.u.example.net[127.0.0.12]:25"),
    ],
)
def test_mail_leaves_as_the_receiver_demands_or_waits(sender, domain, status, log):
    got, journal = sender.send(domain)
    assert got == status, journal
    assert log in journal, journal


def test_a_known_policy_outlives_its_web_server(sender, restored):
    assert sender.policy("clear.u.example.net").startswith("secure")
    sender.run("systemctl stop caddy")
    sender.run(f"systemctl restart {DAEMON}")
    assert sender.policy("clear.u.example.net").startswith("secure match=mx-clear.u.example.net")
    assert sender.send("clear.u.example.net")[0] == "deferred"


def test_without_the_daemon_mail_waits_where_dane_does_not_protect_it(sender, restored):
    sender.run(f"systemctl stop {DAEMON}")
    assert sender.policy("dane.s.example.net") == ""
    assert sender.policy("sts.u.example.net") == "TEMP"
    assert sender.send("dane.s.example.net")[0] == "sent"
    status, journal = sender.send("sts.u.example.net")
    assert status == "deferred", journal
    assert "MTA-STS daemon" in sender.run(f"journalctl -o cat -u {POLICY} -n 20")


def test_without_the_resolver_mail_waits(sender, restored):
    sender.run("systemctl stop unbound")
    assert sender.policy("sts.u.example.net") == "TEMP"
    assert sender.policy("dane.s.example.net") == "TEMP"


def test_a_daemon_that_hangs_is_given_up(sender, restored):
    sender.run(f"systemctl kill -s STOP {DAEMON}")
    try:
        begin = time.monotonic()
        assert sender.policy("sts.u.example.net") == "TEMP"
        assert time.monotonic() - begin < 25
    finally:
        sender.run(f"systemctl kill -s CONT {DAEMON}")


def test_both_come_back_when_they_are_killed(sender):
    for unit in (DAEMON, POLICY):
        sender.run(f"systemctl kill -s KILL {unit}")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not sender.policy("sts.u.example.net").startswith("secure"):
        time.sleep(0.5)
    assert sender.policy("sts.u.example.net").startswith("secure")


def test_requests_that_are_none_disturb_nobody(sender):
    program = (
        "import socket\n"
        "for text in (b'', b'x', b'5:ab,', b'999999999:', b'3:abc;', b'0:,', b'9:postfix \\xff,', b':' * 300000):\n"
        "    with socket.socket(socket.AF_UNIX) as client:\n"
        f"        client.connect('{SOCKET}')\n"
        "        try:\n"
        "            client.sendall(text)\n"
        "        except OSError:\n"
        "            pass\n"
    )
    sender.run(f'python3 -c "{program}"')
    assert sender.policy("sts.u.example.net").startswith("secure")


def test_a_hundred_questions_at_once(sender):
    query = "postmap -q sts.u.example.net socketmap:unix:tls_policy/policy.sock:postfix"
    command = f"cd /var/spool/postfix && seq 100 | timeout 60 xargs -P 20 -I N {query} | grep -c ^secure"
    assert sender.run(command) == "100"


def test_only_postfix_may_ask_and_nothing_listens_on_the_network(sender):
    connect = f"import socket; socket.socket(socket.AF_UNIX).connect('{SOCKET}')"
    assert sender.host.run(f'runuser -u nobody -- python3 -c "{connect}"').rc != 0
    assert sender.host.run(f'runuser -u postfix -- python3 -c "{connect}"').rc == 0
    assert "8461" not in sender.run("ss -Hltn")
    for unit in (DAEMON, POLICY):
        assert sender.run(f"systemctl show -p User --value {unit}") == "_mta-sts"


def test_answers_are_counted(sender):
    sender.policy("sts.u.example.net")
    deadline = time.monotonic() + 20
    pattern = r'estate_tls_policy_answers_total\{protection="sts"\} [1-9]'
    while time.monotonic() < deadline:
        text = sender.run("cat /var/lib/mta-sts/metrics/tls_policy.prom")
        if re.search(pattern, text):
            return
        time.sleep(1)
    raise AssertionError(text)


def test_our_policies_are_served_as_the_standard_wants(sender):
    url = "https://mta-sts.sts.u.example.net/.well-known/mta-sts.txt"
    head, _blank, body = sender.run(f"curl -siS --http1.1 {url}").partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200"), head
    assert re.search(r"(?im)^content-type: text/plain(;|\s*$)", head), head
    assert body == "version: STSv1\r\nmode: enforce\r\nmx: *.u.example.net\r\nmax_age: 86400"
    other = sender.run("curl -so /dev/null -w %{http_code} https://mta-sts.sts.u.example.net/")
    assert other == "404"


def test_what_is_switched_off_is_taken_away_and_comes_back(sender):
    play = [
        shutil.which("ansible-playbook") or str(Path(sys.executable).with_name("ansible-playbook")),
        "-i",
        "molecule/inventory/",
        str(SCENARIO / "converge.yml"),
    ]

    def converge(*arguments: str, **variables) -> str:
        done = subprocess.run(
            [*play, "-e", json.dumps(variables), *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    off = {"mta_sts_honour": False, "mta_sts_serve": False, "caddy_sites": []}
    assert "changed=0" not in converge("--check", **off)
    assert sender.host.service(POLICY).is_running
    converge(**off)
    assert not sender.host.service(POLICY).is_running
    assert not sender.host.service(DAEMON).is_running
    assert sender.run("ls /srv/mta-sts") == ""
    converge()
    assert sender.policy("sts.u.example.net").startswith("secure")
