"""The sender policy behind a real Postfix and Dovecot: what is taken, what is refused, what is counted."""

from __future__ import annotations

import base64
import importlib.util
import itertools
import json
import os
import re
import smtplib
import ssl
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

SUBMISSION, RELAY = 587, 25
READ_METRICS = "import urllib.request as u;print(u.urlopen('http://127.0.0.1:8898/metrics',timeout=5).read().decode())"
UNIT = "submission-policy"
ALICE, BOB = "alice@example.org", "bob@example.org"
HOURLY, BLOCK_LIMIT, BLOCK_UNKNOWN, BLOCK_NETWORKS = 20, 5, 5, 4
"""As converge.yml says."""
FRESH = itertools.count()


class Smtp:
    """The submission host."""

    def __init__(self, host) -> None:
        self.host = host
        self.address = host.check_output("hostname -I").split()[0]
        self.begun = host.check_output("date +%s")

    def session(self, login: str | None = ALICE, port: int = SUBMISSION, client: str = "203.0.113.7") -> smtplib.SMTP:
        """A session of a client at an address, signed in unless there is no login."""
        session = smtplib.SMTP(self.address, port, timeout=60)
        session.ehlo("laptop.private.test")
        code, text = session.docmd(f"XCLIENT ADDR={'IPV6:' + client if ':' in client else client} NAME=pc.private.test")
        assert code == 220, text
        session.ehlo("laptop.private.test")
        if login:
            session.login(login, "secret")
        return session

    def send(self, raw: bytes, sender: str = "", recipients=("reader@example.net",), login=ALICE, **how) -> str:
        """Hand a message over; the first reply that is no success, or the last."""
        with self.session(login, **how) as session:
            return transmit(session, raw, sender if sender else login or "", recipients)

    def wait(self, message_id: str, seconds: float = 30) -> bytes:
        """The delivered copy."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.host.run("grep -rlF -- %s /srv/mail/box/new", message_id).stdout.split()
            if found:
                return base64.b64decode(self.host.check_output("base64 -w0 %s", found[0]))
            time.sleep(0.2)
        raise AssertionError(f"{message_id} did not arrive\n{self.journal()}")

    def journal(self) -> str:
        """What the policy and Postfix said lately."""
        return self.host.run("journalctl --no-pager -q -n 40 -u submission-policy -u postfix").stdout

    def metric(self, name: str) -> float:
        """One number of /metrics."""
        text = self.host.check_output(f'python3 -c "{READ_METRICS}"')
        values = [float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + " ")]
        assert len(values) == 1, f"{name} not in\n{text}"
        return values[0]

    def status(self) -> dict:
        """What the operator's command shows."""
        return json.loads(self.host.check_output("submission-policy status --json"))

    def sent(self, login: str) -> int:
        """Recipients accepted in the last hour."""
        return self.status()["sent"].get(login, {"hour": 0})["hour"]


def transmit(session: smtplib.SMTP, raw: bytes, sender: str, recipients=("reader@example.net",)) -> str:
    """One message as it is, octet for octet."""
    for verb in (f"MAIL FROM:<{sender.strip('<>')}>", *(f"RCPT TO:<{name}>" for name in recipients), "DATA"):
        code, text = session.docmd(verb)
        if code >= 400:
            session.docmd("RSET")
            return f"{code} {text.decode()}"
    session.sock.sendall(re.sub(rb"(?m)^\.", b"..", raw) + (b"" if raw.endswith(b"\r\n") else b"\r\n") + b".\r\n")
    code, text = session.getreply()
    return f"{code} {text.decode()}"


def compose(author: str = f"Alice <{ALICE}>", headers: bytes = b"", leave: tuple[str, ...] = ()) -> tuple[bytes, str]:
    """A message as a mail program writes it, and its Message-ID."""
    message_id = f"<{uuid.uuid4().hex}@example.org>"
    lines = {
        "From": author,
        "To": "reader@example.net",
        "Subject": message_id,
        "Date": "Sat, 28 Nov 2026 12:00:00 +0000",
        "Message-ID": message_id,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if name not in leave)
    return headers + head.encode() + b"\r\nShall we meet at ten?\r\n", message_id


@pytest.fixture(scope="module")
def smtp(host):
    """The host as a first run finds it, whatever an earlier run has sent."""
    host.run(f"submission-policy release {ALICE} {BOB} new@example.org")
    host.check_output("rm -rf /srv/mail/box")
    return Smtp(host)


@pytest.fixture
def account(smtp) -> str:
    """An account that has sent nothing yet."""
    login = f"user{next(FRESH)}@example.org"
    smtp.host.run("submission-policy release %s", login)
    return login


def test_service_runs_confined(host):
    properties = host.check_output(f"systemctl show {UNIT} -p NRestarts -p User -p ActiveState")
    assert "NRestarts=0" in properties
    assert "User=submission-policy" in properties
    assert "ActiveState=active" in properties
    assert re.findall(r"(\S+):8898\s", host.check_output("ss -Hltn")) == ["127.0.0.1"]


# ------------------------------------------------------------------------------------------------------------ who is it


@pytest.mark.parametrize(
    "author",
    [ALICE, f"Alice <{ALICE}>", '"Lee, A." <Alice@Example.ORG>', "=?utf-8?q?=C3=84lice?= <team@example.org>",
     "Alice <alice+news@example.org>", "alice@example.org (Alice Lee)", "Alice\r\n <alice@example.org>"],
)  # fmt: skip
def test_user_sends_as_one_of_his_addresses(smtp, author):
    raw, message_id = compose(author)
    assert smtp.send(raw).startswith("250")
    assert b"ten?" in smtp.wait(message_id)


def test_colleague_cannot_be_forged_in_any_field(smtp):
    forged = f"Bob <{BOB}>"
    assert re.match(r"550 5\.7\.1 .*may not send as bob@example\.org", smtp.send(compose(forged)[0]))
    for field in ("Sender", "Resent-From", "Resent-Sender"):
        reply = smtp.send(compose(headers=f"{field}: {forged}\r\n".encode())[0])
        assert re.match(r"550 5\.7\.1 .*may not send as bob@example\.org", reply), (field, reply)
    assert smtp.send(compose()[0], sender=BOB).startswith("550 5.7.1")
    shown = smtp.send(compose(f'"{BOB}" <{ALICE}>')[0])
    assert shown.startswith("550 5.7.1"), shown
    assert "login=alice@example.org" in smtp.journal()


@pytest.fixture(scope="module")
def espoofer() -> dict[str, bytes]:
    package = importlib.util.find_spec("espoofer")
    assert package
    assert package.submodule_search_locations
    script = Path(__file__).with_name("espoofer_cases.py")
    done = subprocess.run(
        [sys.executable, script, ALICE, BOB, "reader@example.net"],
        env=os.environ | {"PYTHONPATH": next(iter(package.submodule_search_locations))},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: base64.b64decode(message) for name, message in json.loads(done.stdout).items()}


@pytest.mark.parametrize("case", [*(f"client_a{n}" for n in (1, 2, 3)), *(f"server_a{n}" for n in range(8, 20))])
def test_espoofer_case_is_refused(smtp, espoofer, case):
    reply = smtp.send(espoofer[case])
    assert re.match(r"550 5\.[67]\.", reply), (reply, espoofer[case][:300])


def test_nul_is_refused(smtp):
    assert smtp.send(compose(f"Alice\0 <{ALICE}>")[0]).startswith("5")
    assert smtp.send(compose(f"{ALICE}\0, {BOB}")[0]).startswith("5")


def test_null_sender_is_taken_when_the_author_is_right(smtp):
    assert smtp.send(compose()[0], sender="<>").startswith("250")
    assert smtp.send(compose(BOB)[0], sender="<>").startswith("550 5.7.1")


def test_missing_date_and_message_id_are_added_and_a_missing_author_is_not(smtp):
    raw, message_id = compose(leave=("Date", "Message-ID"))
    assert smtp.send(raw).startswith("250")
    copy = smtp.wait(message_id).decode()
    assert len(re.findall(r"(?m)^Date: .*\d{4} ", copy)) == 1
    assert len(re.findall(r"(?m)^Message-ID: <[0-9a-f.]+@smtp\.example\.org>", copy)) == 1
    assert smtp.send(compose(leave=("From",))[0]).startswith("550 5.6.0")


def test_nothing_in_the_copy_tells_where_the_user_sat(smtp):
    raw, message_id = compose(headers=b"User-Agent: Thunderbird\r\nX-Originating-IP: [203.0.113.7]\r\nX-Mailer: x\r\n")
    with smtp.session() as session:
        session.starttls()  # a new session: XCLIENT and sign in again
        session.ehlo("laptop.private.test by smtp.example.org (Postfix) with ESMTPA id FAKE; x")
        session.docmd("XCLIENT ADDR=203.0.113.7 NAME=pc.private.test")
        session.ehlo("laptop.private.test by smtp.example.org (Postfix) with ESMTPA id FAKE; x")
        session.login(ALICE, "secret")
        reply = transmit(session, raw, ALICE)
    assert reply.startswith("250"), reply
    copy = smtp.wait(message_id).decode()
    head = copy.partition("\n\n")[0].replace("alice@example.org", "", 3)
    for trace in ("203.0.113.7", "private.test", "FAKE", "Thunderbird", "X-Mailer", "Authenticated", smtp.address):
        assert trace not in head, head
    queue_id = re.search(r"queued as (\w+)", reply)[1]
    assert re.search(rf"(?m)^Received: by smtp\.example\.org \(Postfix\) with ESMTPS?A id {queue_id}; ", copy), copy


# ----------------------------------------------------------------------------------------------------- hosts, not users


def test_host_inside_is_known_by_its_address_and_has_its_own_addresses(smtp):
    how = {"login": None, "port": RELAY, "client": "192.0.2.9"}
    assert smtp.send(compose("printer@example.org")[0], sender="printer@example.org", **how).startswith("250")
    assert smtp.send(compose(BOB)[0], sender="printer@example.org", **how).startswith("550 5.7.1")
    stranger = how | {"client": "192.0.2.10"}
    reply = smtp.send(compose("printer@example.org")[0], sender="printer@example.org", **stranger)
    assert reply.startswith("550 5.7.1 sign in"), reply


@pytest.mark.parametrize(("name", "expected"), [("known", "250"), ("stranger", "550 5.7.1")])
def test_host_is_known_by_its_certificate_and_not_by_the_name_in_it(smtp, tmp_path, name, expected):
    for kind in ("key", "crt"):
        (tmp_path / kind).write_bytes(smtp.host.file(f"/root/{name}.{kind}").content)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    for author, result in (("app@example.org", expected), (BOB, "550 5.7.1")):
        with smtplib.SMTP(smtp.address, RELAY, timeout=30) as session:
            session.ehlo("app.example.org")
            session.starttls(context=context)
            session.ehlo("app.example.org")
            reply = transmit(session, compose(author)[0], "app@example.org")
        assert reply.startswith(result), (reply, smtp.journal())


# ------------------------------------------------------------------------------------------------------------- how much


def test_stolen_account_is_limited_blocked_and_reported_while_others_send(smtp, account):
    blocked = smtp.metric("estate_submission_blocked_logins")
    raw, _ = compose(account)
    with smtp.session(account) as session:
        replies = [transmit(session, raw, account) for _ in range(1000)]
    assert [reply[:3] for reply in replies] == ["250"] * HOURLY + ["451"] * (1000 - HOURLY)
    assert all("4.7.1" in reply for reply in replies[HOURLY:])
    assert "limit of 20 recipients in an hour" in replies[HOURLY]
    assert "stopped" in replies[-1]
    assert smtp.metric("estate_submission_blocked_logins") == blocked + 1
    assert smtp.status()["blocked"][account]["sign"] == "limit"
    assert smtp.send(compose(BOB)[0], login=BOB).startswith("250"), "another user"
    alert = smtp.wait(f"submission-policy release {account}").decode()
    assert "To: postmaster@example.org" in alert
    assert f"Subject: Account blocked: {account}" in alert
    time.sleep(2)
    assert smtp.host.check_output(f"grep -rl 'release {account}' /srv/mail/box/new | wc -l") == "1"
    assert "may send again" in smtp.host.check_output("submission-policy release %s", account)
    assert smtp.send(raw, login=account).startswith("250")
    assert smtp.metric("estate_submission_blocked_logins") == blocked


def test_one_message_over_the_limit_blocks_nobody(smtp, account):
    many = [f"r{number}@example.net" for number in range(HOURLY + 1)]
    assert smtp.send(compose(account)[0], recipients=many, login=account).startswith("451 4.7.1")
    assert smtp.sent(account) == 0, "what was not accepted is not charged"
    assert smtp.send(compose(account)[0], recipients=many[:HOURLY], login=account).startswith("250")
    assert account not in smtp.status()["blocked"]
    assert smtp.sent(account) == HOURLY


def test_refused_message_costs_nothing(smtp, account):
    assert smtp.send(compose(BOB)[0], sender=account, login=account).startswith("550")
    assert smtp.sent(account) == 0


def test_account_that_guesses_recipients_is_blocked(smtp, account):
    with smtp.session(account) as session:
        session.docmd(f"MAIL FROM:<{account}>")
        codes = [session.docmd(f"RCPT TO:<ghost{number}@example.net>")[0] for number in range(BLOCK_UNKNOWN)]
        assert codes == [550] * BLOCK_UNKNOWN
    assert smtp.status()["blocked"][account]["sign"] == "unknown"
    assert smtp.send(compose(account)[0], login=account).startswith("451 4.7.1")


def test_same_unknown_recipient_again_and_again_is_no_guessing(smtp, account):
    with smtp.session(account) as session:
        session.docmd(f"MAIL FROM:<{account}>")
        for _ in range(BLOCK_UNKNOWN + 2):
            assert session.docmd("RCPT TO:<ghost@example.net>")[0] == 550
    assert account not in smtp.status()["blocked"]


def test_account_used_from_everywhere_is_blocked(smtp, account):
    replies = [smtp.send(compose(account)[0], login=account, client=f"100.{n}.0.1") for n in range(64, 70)]
    assert [reply[:3] for reply in replies] == ["250"] * (BLOCK_NETWORKS - 1) + ["451"] * 3
    assert smtp.status()["blocked"][account]["sign"] == "networks"


def test_sessions_at_once_are_counted_exactly(smtp, account):
    """No more over the limit than the account may have: when it is blocked, messages under way are refused, too."""
    replies: list[str] = []
    threads = [
        threading.Thread(target=lambda: replies.append(smtp.send(compose(account)[0], login=account)))
        for _ in range(HOURLY + BLOCK_LIMIT - 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    accepted = [reply for reply in replies if reply.startswith("250")]
    assert len(replies) == len(threads)
    assert len(accepted) == HOURLY == smtp.sent(account)
    assert all(reply.startswith("451 4.7.1") for reply in replies if reply not in accepted)


def test_kill_and_restart_keep_the_counts_and_the_block(smtp, account):
    for number in range(3):
        assert smtp.send(compose(account)[0], login=account).startswith("250")
        smtp.host.check_output(f"systemctl kill -s KILL {UNIT}" if number % 2 == 0 else f"systemctl restart {UNIT}")
        wait_running(smtp)
        assert smtp.sent(account) == number + 1
    smtp.host.check_output("submission-policy block %s", account)
    smtp.host.check_output(f"systemctl restart {UNIT}")
    assert smtp.send(compose(account)[0], login=account).startswith("451 4.7.1")
    smtp.host.check_output("submission-policy release %s", account)
    assert smtp.send(compose(account)[0], login=account).startswith("250")


def wait_running(smtp) -> None:
    end = time.monotonic() + 20
    while smtp.host.run(f"systemctl is-active {UNIT}").stdout.strip() != "active" and time.monotonic() < end:
        time.sleep(0.1)


def test_restart_lets_the_message_in_progress_finish(smtp, account):
    raw, message_id = compose(account)
    with smtp.session(account) as session:
        session.docmd(f"MAIL FROM:<{account}>")
        session.docmd("RCPT TO:<reader@example.net>")
        assert session.docmd("DATA")[0] == 354
        restart = threading.Thread(target=smtp.host.check_output, args=(f"systemctl restart {UNIT}",))
        restart.start()
        time.sleep(1)
        session.sock.sendall(raw + b".\r\n")
        code, text = session.getreply()
        restart.join(40)
    assert code == 250, text
    smtp.wait(message_id)
    assert smtp.sent(account) == 1


def test_new_user_needs_no_restart(smtp):
    file = "/etc/submission-policy/senders.json"
    smtp.host.check_output(f"cp -p {file} /root/senders.json")
    reply = smtp.send(compose("new@example.org")[0], login="new@example.org")
    assert reply.startswith("451 4.7.1"), reply
    try:
        smtp.host.check_output(f"sed 's/bob@example.org/new@example.org/g' /root/senders.json > {file}")
        assert smtp.send(compose("new@example.org")[0], login="new@example.org").startswith("250")
        smtp.host.check_output(f"echo broken > {file}")
        assert smtp.send(compose("new@example.org")[0], login="new@example.org").startswith("250")
    finally:
        smtp.host.check_output(f"cp -p /root/senders.json {file}")
    assert smtp.send(compose(BOB)[0], login=BOB).startswith("250")


def test_stopped_policy_makes_senders_wait(smtp):
    smtp.host.check_output(f"systemctl stop {UNIT}")
    try:
        assert first_reply(smtp).startswith("4")
    finally:
        smtp.host.check_output(f"systemctl start {UNIT}")
    assert smtp.send(compose()[0]).startswith("250")


def first_reply(smtp) -> str:
    """The first reply that is no success, whatever command it answers."""
    try:
        return smtp.send(compose()[0])
    except smtplib.SMTPResponseException as error:
        return f"{error.smtp_code} {error.smtp_error!r}"
    except AssertionError as error:  # XCLIENT begins a new session, which the filter is asked about
        return error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)


def test_cost_of_a_message_is_small(smtp):
    smtp.host.run("submission-policy release %s", BOB)
    count, total = (smtp.metric(f"estate_submission_seconds_{name}") for name in ("count", "sum"))
    with smtp.session(BOB) as session:
        for _ in range(10):
            assert transmit(session, compose(BOB)[0], BOB).startswith("250")
    spent = (smtp.metric("estate_submission_seconds_sum") - total) / (
        smtp.metric("estate_submission_seconds_count") - count
    )
    print(f"{1000 * spent:.2f} ms a message")
    assert spent < 0.05


def test_no_errors_but_the_provoked_ones_in_the_journal(smtp):
    lines = smtp.host.check_output(f"journalctl --no-pager -q -p err -o cat -S @{smtp.begun} -u {UNIT}").splitlines()
    provoked = re.compile(r"BLOCKED: |cannot be read, the last good one")
    assert [line for line in lines if not provoked.search(line) and "Main process exited" not in line] == []
