"""What OpenDKIM signs for a real Postfix, judged by two other engines: dkimpy here, Mail::DKIM on the host.

A test chooses the client's address by XCLIENT; Postfix delivers to /var/mail/test. Keys: prepare.yml.
"""

from __future__ import annotations

import base64
import email
import email.utils
import json
import os
import re
import shutil
import smtplib
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives import serialization

SCENARIO = Path(__file__).resolve().parents[1]
REPOSITORY = SCENARIO.parents[1]
INTERNAL, INTERNAL_6, OUTSIDE = "203.0.113.7", "IPV6:2001:db8:1::7", "192.0.2.66"
SELECTORS = {
    "s2026a._domainkey.example.org": "org",
    "lists.a._domainkey.ml.example.org": "ml",
    "s1._domainkey.example.net": "net",
    "s2026b._domainkey.example.org": "next",
}
WEEK = 7 * 86400
SOCKET = "/var/spool/postfix/opendkim/opendkim.sock"


def pem(name: str) -> str:
    """A private key of the site's vault."""
    return (Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / f"{name}.pem").read_text(encoding="ascii")


def record(name: str) -> str:
    """The DNS record of a key."""
    public = serialization.load_pem_private_key(pem(name).encode(), None).public_key()
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"v=DKIM1; k=rsa; p={base64.b64encode(der).decode()}"


def build(author: str = "taro@example.org", body: bytes = b"Good morning.\r\n", head: bytes = b"") -> bytes:
    """A message; ``head`` stands below its other fields."""
    return (
        (
            f"From: Taro <{author}>\r\nTo: Hanako <hanako@example.edu>\r\nSubject: Minutes of Tuesday\r\n"
            f"Date: {email.utils.formatdate()}\r\nMessage-ID: <{uuid.uuid4()}@example.org>\r\n"
        ).encode()
        + (head or b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n")
        + b"\r\n"
        + body
    )


def run_role(*arguments: str, **variables) -> subprocess.CompletedProcess[str]:
    """The scenario's play with other data."""
    program = shutil.which("ansible-playbook") or str(Path(sys.executable).with_name("ansible-playbook"))
    return subprocess.run(
        [program, "-i", "molecule/inventory/", str(SCENARIO / "converge.yml"), "-e", json.dumps(variables), *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


class Host:
    """The mail server under test."""

    def __init__(self, host) -> None:
        self.host = host
        self.address = host.check_output("hostname -I").split()[0]

    def journal(self) -> str:
        return self.host.run("journalctl -u opendkim -n 40 --no-pager; tail -n 20 /var/log/mail.log").stdout

    def session(self, client: str = INTERNAL, login: str = "") -> smtplib.SMTP:
        smtp = smtplib.SMTP(self.address, 25, timeout=60)
        smtp.ehlo("client.example.org")
        code, text = smtp.docmd("XCLIENT", f"NAME=[UNAVAILABLE] ADDR={client}" + (f" LOGIN={login}" if login else ""))
        assert code == 220, text
        smtp.ehlo("client.example.org")
        return smtp

    @staticmethod
    def post(smtp: smtplib.SMTP, message: bytes) -> tuple[int, str]:
        assert smtp.mail("taro@example.org", ["BODY=8BITMIME"])[0] == 250
        assert smtp.rcpt("hanako@example.edu")[0] == 250
        code, text = smtp.data(message)
        return code, text.decode()

    def delivered(self, message: bytes) -> bytes:
        """The copy that arrived, without Postfix's own lines on top of the signature."""
        message_id = re.search(rb"Message-ID: (\S+)", message)[1].decode()
        for _attempt in range(60):
            found = self.host.run("grep -rlF -- %s /var/mail/test/new", message_id).stdout.split()
            if found:
                assert len(found) == 1, found
                raw = base64.b64decode(self.host.check_output("base64 -w0 %s", found[0]))
                return raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            time.sleep(0.25)
        raise AssertionError(f"{message_id} did not arrive\n{self.journal()}")

    def send(self, message: bytes, client: str = INTERNAL, login: str = "") -> bytes:
        """Sends a message as a client; returns the delivered copy."""
        with self.session(client, login) as smtp:
            answer = self.post(smtp, message)
        assert answer[0] == 250, (answer, self.journal())
        return self.delivered(message)

    def second_engine(self, raw: bytes) -> str:
        """Mail::DKIM's results, a line each."""
        records = " ".join(f"'{name}={record(key)}'" for name, key in SELECTORS.items())
        text = base64.b64encode(raw).decode()
        return self.host.check_output(f"echo {text} | base64 -d | perl /root/verify.pl {records}")


def signatures(raw: bytes) -> list[dict[str, str]]:
    """The tags of each DKIM signature."""
    message = email.message_from_bytes(raw)
    fields = ["".join(str(value).split()) for value in message.get_all("DKIM-Signature", [])]
    return [dict(tag.split("=", 1) for tag in field.split(";") if tag) for field in fields]


def verified(raw: bytes) -> bool:
    """Whether dkimpy verifies the signature."""

    def dns(name, timeout=5):
        text = (name.decode() if isinstance(name, bytes) else name).rstrip(".")
        return record(SELECTORS[text]).encode()

    return dkim.verify(raw, dnsfunc=dns)


@pytest.fixture(scope="module")
def mail(host) -> Host:
    return Host(host)


@pytest.fixture
def restored():
    """The scenario's own data are in force again after the test."""
    yield
    again = run_role()
    assert again.returncode == 0, again.stdout[-3000:]


@pytest.mark.parametrize(
    ("author", "domain", "selector"),
    [
        ("taro@example.org", "example.org", "s2026a"),
        ("Taro@EXAMPLE.org", "example.org", "s2026a"),
        ("taro@cs.example.org", "example.org", "s2026a"),
        ("announce@ml.example.org", "ml.example.org", "lists.a"),
        ("taro@example.net", "example.net", "s1"),
    ],
)
def test_message_of_a_listed_domain_gets_one_signature_that_two_engines_verify(mail, author, domain, selector):
    raw = mail.send(build(author))
    assert [(tags["d"], tags["s"]) for tags in signatures(raw)] == [(domain, selector)]
    assert verified(raw)
    assert mail.second_engine(raw).strip() == f"{domain} pass"
    broken = raw.replace(b"Good morning.", b"Good evening.")
    assert not verified(broken)
    assert mail.second_engine(broken).startswith(f"{domain} fail")


def test_signature_is_relaxed_covers_the_whole_body_and_expires_after_a_week(mail):
    [tags] = signatures(mail.send(build()))
    assert (tags["a"], tags["c"]) == ("rsa-sha256", "relaxed/relaxed")
    assert "l" not in tags
    assert int(tags["x"]) - int(tags["t"]) == WEEK
    assert abs(int(tags["t"]) - time.time()) < 300


@pytest.mark.parametrize(
    "name", ["From", "Reply-To", "To", "Cc", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type"]
)
def test_nobody_can_add_a_second_field_of_these(mail, name):
    raw = mail.send(build())
    assert verified(raw)
    assert not verified(f"{name}: changed on the way\r\n".encode() + raw)
    assert verified(b"X-Other: added on the way\r\n" + raw)


def test_one_click_fields_of_a_list_are_signed(mail):
    head = b"List-Unsubscribe: <https://ml.example.org/u>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
    raw = mail.send(build("announce@ml.example.org", head=head))
    [tags] = signatures(raw)
    assert {"list-unsubscribe", "list-unsubscribe-post"} <= set(tags["h"].lower().split(":"))
    assert not verified(raw.replace(b"example.org/u>", b"example.org/v>"))


def test_post_whose_author_the_list_replaced_is_signed_for_the_list_whoever_sends_it(mail):
    head = (
        b"Sender: taro@example.org\r\nReply-To: Taro <taro@example.com>, announce@ml.example.org\r\n"
        b"List-Id: <announce.ml.example.org>\r\n"
    )
    raw = mail.send(build("announce@ml.example.org", head=head).replace(b"From: Taro", b"From: Taro via Announce"))
    [tags] = signatures(raw)
    assert tags["d"] == "ml.example.org", "of the From field's domain, which DMARC looks at; not of Sender's"
    assert {"sender", "reply-to", "list-id"} <= set(tags["h"].lower().split(":"))
    assert verified(raw)
    assert mail.second_engine(raw).strip() == "ml.example.org pass"


def test_post_of_an_author_elsewhere_is_not_signed_for_the_list_in_sender(mail):
    assert signatures(mail.send(build("taro@example.com", head=b"Sender: announce-bounces@ml.example.org\r\n"))) == []


def test_key_that_takes_every_author_signs_what_a_list_passes_on_and_leaves_others_theirs(mail, restored):
    keys = [
        {"domain": "ml.example.org", "selector": "lists.a", "private_key": pem("ml"), "sign": ["*"]},
        {"domain": "example.org", "selector": "s2026a", "private_key": pem("org")},
    ]
    changed = run_role(opendkim_keys=keys)
    assert changed.returncode == 0, changed.stdout[-3000:]
    for author, domain in {"taro@example.com": "ml.example.org", "taro@example.org": "example.org"}.items():
        raw = mail.send(build(author))
        assert [tags["d"] for tags in signatures(raw)] == [domain]
        assert verified(raw)
    assert signatures(mail.send(build("taro@example.com"), client=OUTSIDE)) == []


@pytest.mark.parametrize("name", ["announce-request", "announce-confirm+f00", "announce-bounces", "noreply"])
def test_answer_of_a_list_with_an_empty_envelope_sender_is_signed(mail, name):
    message = build(f"{name}@ml.example.org")
    with mail.session() as smtp:
        assert smtp.mail("")[0] == 250
        assert smtp.rcpt("hanako@example.edu")[0] == 250
        assert smtp.data(message)[0] == 250
    raw = mail.delivered(message)
    assert [tags["d"] for tags in signatures(raw)] == ["ml.example.org"]
    assert verified(raw)


@pytest.mark.parametrize("field", [b"List-Unsubscribe", b"List-Unsubscribe-Post"])
def test_one_click_field_cannot_be_taken_out_of_a_post(mail, field):
    head = b"List-Unsubscribe: <https://ml.example.org/u>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
    raw = mail.send(build("announce@ml.example.org", head=head))
    assert verified(raw)
    without = re.sub(rb"(?m)^" + field + rb": .*\r\n", b"", raw)
    assert without != raw
    assert not verified(without)


@pytest.mark.parametrize("author", ["taro@example.com", "taro@cs.example.net", "taro@notexample.org"])
def test_message_of_another_domain_gets_none(mail, author):
    assert signatures(mail.send(build(author))) == []


def test_message_of_an_authenticated_client_is_signed_wherever_it_is(mail):
    assert verified(mail.send(build(), client=OUTSIDE, login="taro"))


def test_message_from_an_outside_client_gets_none(mail):
    assert signatures(mail.send(build(), client=OUTSIDE)) == []


def test_internal_client_by_ipv6_is_signed_for_and_an_outside_one_is_not(mail):
    assert len(signatures(mail.send(build(), client=INTERNAL_6))) == 1
    assert signatures(mail.send(build(), client="IPV6:2001:db8:2::7")) == []


def test_message_that_the_host_itself_submits_is_signed_with_the_fields_postfix_adds(mail):
    raw = build()
    lines = re.sub(rb"Date: .*\r\n", b"", raw).replace(b"\r\n", b"\n")
    text = base64.b64encode(lines).decode()
    mail.host.check_output(f"echo {text} | base64 -d | sendmail -f taro@example.org hanako@example.edu")
    copy = mail.delivered(raw)
    assert b"\r\nDate: " in copy
    assert verified(copy)


@pytest.mark.parametrize(
    ("charset", "encoding"), [("iso-2022-jp", "7bit"), ("utf-8", "8bit"), ("shift_jis", "8bit"), ("euc-jp", "8bit")]
)
def test_japanese_mail_verifies(mail, charset, encoding):
    head = (
        f"MIME-Version: 1.0\r\nContent-Type: text/plain; charset={charset}\r\nContent-Transfer-Encoding: {encoding}\r\n"
    )
    body = "議事録を送ります。\r\n\r\n  よろしくお願いします。 \r\n.\r\n\r\n\r\n".encode(charset)
    raw = mail.send(build(body=body, head=head.encode()))
    assert "議事録".encode(charset).removesuffix(b"\x1b(B") in raw
    assert verified(raw)
    assert mail.second_engine(raw).strip() == "example.org pass"


def test_new_selector_signs_at_once_and_no_message_is_refused(mail, restored):
    process = mail.host.check_output("systemctl show -p MainPID --value opendkim")
    keys = [{"domain": "example.org", "selector": "s2026b", "private_key": pem("next")}]
    with mail.session() as before:  # a session that is open all the time
        first = build()
        assert mail.post(before, first)[0] == 250
        answers, done = [], threading.Event()

        def keep_sending() -> None:
            while not done.wait(0.3):
                with mail.session() as another:
                    answers.append(mail.post(another, build())[0])

        sender = threading.Thread(target=keep_sending)
        sender.start()
        try:
            rotated = run_role(opendkim_keys=keys)
        finally:
            done.set()
            sender.join(60)
        assert rotated.returncode == 0, rotated.stdout[-3000:]
    assert mail.host.check_output("systemctl show -p MainPID --value opendkim") == process, "a reload is enough"
    assert len(answers) > 10
    assert set(answers) == {250}, "no message was refused during the rotation"
    raw = mail.send(build())
    assert [tags["s"] for tags in signatures(raw)] == ["s2026b"]
    assert verified(raw)
    assert [tags["s"] for tags in signatures(mail.delivered(first))] == ["s2026a"]
    assert mail.host.check_output("ls -A /etc/opendkim/keys").split() == ["s2026b._domainkey.example.org.pem"]
    assert signatures(mail.send(build("taro@example.net"))) == [], "its key is no longer in the data"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"private_key": "weak"}, "has 1024 bits; at least 2048 are required"),
        ({"private_key": None}, "is no complete private key in PEM"),
        ({"public_key": "net"}, "does not belong to its public_key: every signature would fail"),
    ],
    ids=["too short", "no PEM", "not the key in DNS"],
)
def test_wrong_key_stops_the_run_in_plain_words_and_changes_nothing(mail, change, sentence):
    see = "find /etc/opendkim* -type f -printf '%p %m %u %T@\\n' | sort; systemctl show -p MainPID opendkim"
    before = mail.host.check_output(see)
    key = {"domain": "example.org", "selector": "s2026c", "private_key": pem("next")}
    for field, name in change.items():
        key[field] = "not a key at all" if name is None else pem(name)
    if "public_key" in change:
        key["public_key"] = record(change["public_key"]).partition("p=")[2]
    stopped = run_role(opendkim_keys=[key])
    assert stopped.returncode != 0
    assert sentence in " ".join(stopped.stdout.split())
    secret = key["private_key"].splitlines()[len(key["private_key"].splitlines()) // 2]
    assert secret not in stopped.stdout + stopped.stderr
    assert mail.host.check_output(see) == before


def test_check_mode_says_what_would_change_and_changes_nothing(mail):
    keys = [{"domain": "example.org", "selector": "s2026b", "private_key": pem("next")}]
    would = run_role("--check", "--diff", opendkim_keys=keys)
    assert would.returncode == 0, would.stdout[-3000:]
    assert "+*@example.org s2026b._domainkey.example.org" in would.stdout
    assert "PRIVATE KEY" not in would.stdout
    assert [tags["s"] for tags in signatures(mail.send(build()))] == ["s2026a"]


def test_nobody_but_the_daemon_can_read_the_keys(mail):
    found = mail.host.check_output("find /etc/opendkim/keys -type f -printf '%m %u\\n'").splitlines()
    assert found == ["600 opendkim"] * 3
    assert mail.host.run("setpriv --reuid=nobody --clear-groups ls /etc/opendkim/keys").rc != 0
    process = mail.host.check_output("systemctl show -p MainPID --value opendkim")
    assert mail.host.check_output("ps -o user= -p %s", process).strip() == "opendkim"


def test_nobody_but_postfix_can_ask_the_milter(mail):
    process = mail.host.check_output("systemctl show -p MainPID --value opendkim")
    assert f"pid={process}," not in mail.host.check_output("ss -Htulnp")
    assert mail.host.check_output("stat -c '%%a %%U %%G' %s", str(Path(SOCKET).parent)) == "750 opendkim postfix"
    connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    ask = "setpriv --reuid=%s --regid=%s --clear-groups python3 -c %s %s"
    assert mail.host.run(ask, "postfix", "postfix", connect, SOCKET).rc == 0
    assert "PermissionError" in mail.host.run(ask, "nobody", "nogroup", connect, SOCKET).stderr


def test_unit_is_confined(mail):
    level = mail.host.check_output("systemd-analyze security opendkim --no-pager | tail -n 1")
    assert float(re.search(r"opendkim\.service: ([\d.]+)", level)[1]) <= 3.0


def test_key_that_cannot_be_read_makes_mail_wait(mail):
    path = "/etc/opendkim/keys/s1._domainkey.example.net.pem"
    mail.host.check_output("mv %s /root/away.pem", path)
    try:
        with mail.session() as smtp:
            code, text = mail.post(smtp, build("taro@example.net"))
        assert 400 <= code < 500, text
    finally:
        mail.host.check_output("mv /root/away.pem %s", path)
    assert verified(mail.send(build("taro@example.net")))


def test_daemon_comes_back_after_it_was_killed(mail):
    process = mail.host.check_output("systemctl show -p MainPID --value opendkim")
    mail.host.check_output("systemctl kill -s KILL opendkim")
    for _attempt in range(40):
        another = mail.host.check_output("systemctl show -p MainPID --value opendkim")
        if another not in (process, "0") and SOCKET in mail.host.check_output("ss -Hxl"):
            break
        time.sleep(0.25)
    assert verified(mail.send(build()))


def test_mail_waits_while_the_milter_is_down(mail):
    mail.host.check_output("systemctl stop opendkim")
    try:
        with smtplib.SMTP(mail.address, 25, timeout=60) as smtp:
            smtp.ehlo("client.example.org")
            code, text = smtp.mail("taro@example.org")
            assert 400 <= code < 500, text
    finally:
        mail.host.check_output("systemctl start opendkim")
    assert verified(mail.send(build()))


MADE = "20261128a._domainkey.example.org"


def make_key(**arguments) -> subprocess.CompletedProcess[str]:
    """The module with which hosts make their keys, called as the playbook calls it."""
    program = Path(shutil.which("ansible-playbook") or Path(sys.executable).with_name("ansible-playbook"))
    job = {"directory": "/etc/opendkim/made", "owner": "opendkim", "present": [MADE]} | arguments
    return subprocess.run(
        [
            *(str(program.with_name("ansible")), "role-opendkim", "-i", "molecule/inventory/"),
            *("-m", "dkim_key", "-a", json.dumps(job)),
        ],
        cwd=REPOSITORY,
        env=os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def made(mail):
    """The public half of a key that the host has made."""
    done = make_key()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PRIVATE KEY" not in done.stdout
    path = f"/etc/opendkim/made/{MADE}.pem"
    yield "".join(mail.host.check_output(f"openssl pkey -in {path} -pubout -outform DER | base64 -w0").split())
    assert make_key(present=[], absent=[MADE]).returncode == 0
    assert not mail.host.file(path).exists


def test_key_that_the_host_made_signs_and_never_leaves_it(mail, restored, made):
    path = f"/etc/opendkim/made/{MADE}.pem"
    assert mail.host.check_output("stat -c '%%a %%U' %s", path) == "600 opendkim"
    before = mail.host.check_output("sha256sum %s", path)
    assert "changed: false" in make_key().stdout
    assert mail.host.check_output("sha256sum %s", path) == before, "a key that is there is never made anew"
    changed = run_role(opendkim_keys=[{"domain": "example.org", "selector": "20261128a", "public_key": made}])
    assert changed.returncode == 0, changed.stdout[-3000:]
    raw = mail.send(build())
    assert [tags["s"] for tags in signatures(raw)] == ["20261128a"]
    assert dkim.verify(raw, dnsfunc=lambda name, timeout=5: f"v=DKIM1; k=rsa; p={made}".encode())
    assert mail.host.check_output("sha256sum %s", path) == before


def test_missing_key_of_the_host_stops_the_run_in_plain_words_and_one_that_only_waits_does_not(mail, restored, made):
    lost = {"domain": "example.org", "selector": "20270101a", "public_key": made}
    stopped = run_role(opendkim_keys=[lost])
    assert stopped.returncode != 0
    assert "20270101a._domainkey.example.org.pem is missing or another key" in " ".join(stopped.stdout.split())
    assert [tags["s"] for tags in signatures(mail.send(build()))] == ["s2026a"], "nothing has changed"
    keys = [{"domain": "example.org", "selector": "20261128a", "public_key": made}, lost | {"sign": []}]
    assert run_role(opendkim_keys=keys).returncode == 0
    assert [tags["s"] for tags in signatures(mail.send(build()))] == ["20261128a"]


def test_host_without_any_key_leaves_mail_unsigned_and_takes_it(mail, restored):
    changed = run_role(opendkim_keys=[])
    assert changed.returncode == 0, changed.stdout[-3000:]
    assert "No key signs on this host yet" in " ".join(changed.stdout.split())
    assert signatures(mail.send(build())) == []


def test_behind_a_postfix_that_asks_for_a_password_every_client_is_signed_for(mail, restored):
    keys = [{"domain": "example.org", "selector": "s2026a", "private_key": pem("org")}]
    changed = run_role(opendkim_keys=keys, opendkim_every_client=True)
    assert changed.returncode == 0, changed.stdout[-3000:]
    assert verified(mail.send(build(), client=OUTSIDE))
    assert len(signatures(mail.send(build(), client="IPV6:2001:db8:2::7"))) == 1
