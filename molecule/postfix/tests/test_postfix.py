"""The postfix role as a mail system and as an operator meet it.

Mail comes from the machine that runs the tests, a stranger to the relay, and ends in a sink on the relay itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import smtplib
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
NAME = "role-postfix.example.org"
SENDER = "user@example.com"
SINK = "/run/sink"


@pytest.fixture(scope="module", autouse=True)
def sink(host):
    """The next hop: Postfix's own sink, each message in one file."""
    host.run("systemctl stop sink.service; rm -rf %s", SINK)
    assert host.run(f"install -d -o nobody {SINK}").rc == 0
    started = host.run(
        f"systemd-run --unit=sink --collect --property=WorkingDirectory={SINK} "
        "smtp-sink -u nobody -d message. 127.0.0.1:2525 100"
    )
    assert started.rc == 0, started.stderr
    yield
    host.run("systemctl stop sink.service; rm -rf %s", SINK)


@pytest.fixture(autouse=True)
def journal(host):
    """What Postfix wrote during a test is shown when the test fails."""
    begin = host.run("date +%s").stdout.strip()
    yield
    print(host.run("journalctl --no-pager -u 'postfix*' --since @%s", begin).stdout)


@pytest.fixture
def address(host) -> str:
    """The relay's address as others see it."""
    shown = host.run("ip -4 -json address show scope global").stdout
    return json.loads(shown)[0]["addr_info"][0]["local"]


@pytest.fixture
def session(address):
    """A greeted session."""
    with smtplib.SMTP(address, 25, local_hostname="client.example.com", timeout=30) as smtp:
        smtp.ehlo()
        yield smtp


def delivered(host, token: str, seconds: float = 15) -> list[str]:
    """The messages in the sink that contain a token, as the sink wrote them."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        # In this order: what the queue no longer holds is in the sink.
        if not host.run("postqueue -j").stdout:
            found = host.run(f"grep -l {token} {SINK}/message.* 2>/dev/null").stdout.split()
            if found:
                return [host.file(path).content_string for path in found]
        time.sleep(0.5)
    return []


def converge(*options: str, **variables) -> subprocess.CompletedProcess:
    """Run the scenario's playbook again, with other variables."""
    program = shutil.which("ansible-playbook") or str(Path(sys.executable).with_name("ansible-playbook"))
    inventory = ["--inventory", "molecule/inventory/"]
    return subprocess.run(
        [program, *inventory, "--extra-vars", json.dumps(variables), *options, "molecule/postfix/converge.yml"],
        cwd=PROJECT,
        env=os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def restored():
    """Whatever a test converged, the scenario's own configuration comes back."""
    yield
    again = converge()
    assert again.returncode == 0, again.stdout


def live(host) -> str:
    """Checksums of everything that Postfix reads."""
    return host.run("find /etc/postfix /etc/aliases* -type f -exec sha256sum {} + | sort").stdout


def masters(host) -> str:
    """The process that a restart would replace and a reload keeps."""
    return host.run("cat /var/spool/postfix/pid/master.pid").stdout.strip()


# --- what a client meets --------------------------------------------------------------------------------------------


def test_banner_says_our_name_and_nothing_about_the_software(address):
    with socket.create_connection((address, 25), timeout=30) as connection:
        assert connection.recv(1000) == f"220 {NAME} ESMTP\r\n".encode()


def test_starttls_presents_the_chain_that_was_given(host, address):
    shown = host.run(f"openssl s_client -starttls smtp -connect {address}:25 -tls1_2 </dev/null 2>&1").stdout
    assert f"subject=CN = {NAME}" in shown or f"subject=CN={NAME}" in shown
    assert re.search(r"Protocol\s*:\s*TLSv1\.2", shown)
    assert "ECDHE" in shown


def test_tls_1_3_is_offered(host, address):
    shown = host.run(f"openssl s_client -starttls smtp -connect {address}:25 -tls1_3 </dev/null 2>&1").stdout
    assert "TLSv1.3" in shown
    assert "Cipher is TLS_" in shown


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_old_tls_is_refused_by_us_not_by_the_client(host, address, version):
    client = f"openssl s_client -starttls smtp -connect {address}:25 {version} -cipher DEFAULT@SECLEVEL=0"
    shown = host.run(f"{client} </dev/null 2>&1").stdout
    assert "alert protocol version" in shown, shown


@pytest.mark.parametrize(
    "offer",
    [
        "-tls1_2 -cipher ECDHE-ECDSA-AES256-SHA384:ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES256-SHA384",
        "-tls1_2 -cipher DHE-RSA-AES256-GCM-SHA384",
        "-tls1_3 -groups ffdhe3072",
        "-tls1_2 -cipher DEFAULT@SECLEVEL=0 -sigalgs ECDSA+SHA1:RSA+SHA1",
    ],
    ids=["cbc", "dhe", "finite-field", "sha1"],
)
def test_what_is_to_be_phased_out_is_refused_by_us_not_by_the_client(host, address, offer):
    shown = host.run(f"openssl s_client -starttls smtp -connect {address}:25 {offer} </dev/null 2>&1").stdout
    assert "alert handshake failure" in shown, shown


def test_our_order_of_groups_and_ciphers_decides(host, address):
    ciphers = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE+AESGCM"
    client = f"openssl s_client -starttls smtp -connect {address}:25 -groups P-256:X25519"
    shown = host.run(f"{client} -tls1_2 -cipher {ciphers} </dev/null 2>&1").stdout
    assert re.search(r"Cipher is ECDHE-\w+-AES256-GCM-SHA384", shown), shown
    assert "Temp Key: X25519" in shown, shown


def test_vrfy_tells_nothing(session):
    assert session.docmd("VRFY", "alice@example.org")[0] == 502


def test_client_must_greet_with_a_proper_name(address):
    with smtplib.SMTP(address, 25, timeout=30) as smtp:
        assert smtp.docmd("MAIL", f"FROM:<{SENDER}>")[0] == 503
    with smtplib.SMTP(address, 25, local_hostname="friend", timeout=30) as smtp:
        smtp.ehlo()
        smtp.mail(SENDER)
        assert smtp.rcpt("alice@example.org")[0] == 504


@pytest.mark.parametrize(
    "recipient",
    [
        "<user@example.net>",
        "<user%example.net@example.org>",
        "<example.net!user@example.org>",
        "<@example.org:user@example.net>",
        "<user@example.net@example.org>",
        '<"user@example.net">',
        '<"user@example.net"@example.org>',
        "<user@[192.0.2.1]>",
        f"<user@{NAME}>",
        "<user@sub.example.org>",
    ],
)
def test_nothing_is_relayed(session, recipient):
    session.mail(SENDER)
    code, answer = session.docmd("RCPT", f"TO:{recipient}")
    assert 500 <= code <= 599, answer
    session.rset()
    session.mail("alice@example.org")
    code, answer = session.docmd("RCPT", f"TO:{recipient}")
    assert 500 <= code <= 599, answer


def test_unknown_recipient_is_refused_at_rcpt_and_a_known_one_is_not(session):
    session.mail(SENDER)
    assert session.rcpt("nobody-of-this-name@example.org")[0] == 550
    assert session.rcpt("alice@example.org")[0] == 250


def test_message_reaches_the_next_hop_as_it_came(host, session):
    token = uuid.uuid4().hex
    header = f"From: {SENDER}\r\nSubject:  two  blanks {token}\r\nX-Bare: @nowhere\r\nTo: undisclosed:;\r\n"
    body = "first\r\n.dot\r\n\ttab and blank \r\nGr\u00fc\u00dfe\r\n\r\n"
    session.sendmail(SENDER, ["alice@example.org"], (header + "\r\n" + body).encode(), mail_options=["BODY=8BITMIME"])
    messages = delivered(host, token)
    assert len(messages) == 1
    text = messages[0].replace("\r\n", "\n")
    assert header.replace("\r\n", "\n") + "\n" + body.replace("\r\n", "\n") in text
    assert "Message-Id:" not in text
    assert "Date:" not in text.split("X-Bare")[0].replace("X-", "")


def test_null_sender_has_one_recipient(session):
    session.mail("<>")
    session.rcpt("alice@example.org")
    session.rcpt("bob@example.org")
    assert session.docmd("DATA")[0] == 550


def smuggle(host, address: str, end: bytes) -> tuple[bytes, list[str]]:
    """Send a message with another one behind a doubtful end of data; the server's answers and what reached the sink."""
    token = uuid.uuid4().hex
    outer = f"From: {SENDER}\r\nSubject: outer {token}\r\n\r\nbody".encode()
    inner = (
        b"MAIL FROM:<admin@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n"
        + f"From: admin@example.org\r\nSubject: smuggled {token}\r\n\r\nsmuggled\r\n.\r\n".encode()
    )
    envelope = (b"EHLO client.example.com", f"MAIL FROM:<{SENDER}>".encode(), b"RCPT TO:<alice@example.org>", b"DATA")
    with socket.create_connection((address, 25), timeout=30) as connection:
        stream = connection.makefile("rb")
        for command in envelope:
            while stream.readline()[3:4] == b"-":
                pass
            connection.sendall(command + b"\r\n")
        assert stream.readline().startswith(b"354")
        connection.sendall(outer + end + inner)
        first = stream.readline()
        connection.sendall(b"QUIT\r\n")
        answers = first + stream.read()
    return answers, delivered(host, token, seconds=15 if b"queued as" in answers else 1)


ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r\n.\r",
    b"\r.\r\n",
    b"\n.\r",
    b"\r\n\x00.\r\n",
    b"\r\n.\x00\r\n",
]


@pytest.mark.parametrize("end", ENDS, ids=repr)
def test_no_message_is_smuggled_inside_another(host, address, end):
    answers, messages = smuggle(host, address, end)
    assert answers.count(b"queued as") <= 1, answers
    assert len(messages) == answers.count(b"queued as")
    assert not any("X-Mail-Args: <admin@example.org>" in message for message in messages)
    # Whoever gets it from us is not smuggled to either: no doubtful end is left.
    sent = "".join(messages).replace("\r\n", "\n")
    assert "\r" not in sent
    assert not re.search(r"^body\n\.\nMAIL", sent, re.M)


def test_that_test_sees_a_smuggled_message_where_postfix_allows_it(host, address, restored):
    weak = {"smtpd_forbid_bare_newline": False, "smtpd_forbid_unauth_pipelining": False, "smtpd_data_restrictions": []}
    assert converge(postfix_main_overrides=weak).returncode == 0
    answers, messages = smuggle(host, address, b"\n.\r\n")
    assert answers.count(b"queued as") == 2, answers
    assert any("X-Mail-Args: <admin@example.org>" in message for message in messages)


def test_commands_sent_together_with_starttls_are_not_taken_for_protected(address):
    with socket.create_connection((address, 25), timeout=30) as connection:
        connection.recv(1000)
        connection.sendall(b"EHLO client.example.com\r\n")
        time.sleep(0.5)
        connection.recv(4000)
        connection.sendall(b"STARTTLS\r\nNOOP\r\n")
        time.sleep(1)
        answers = connection.recv(4000)
    assert answers.count(b"\r\n") == 1, answers
    assert answers[:3] in (b"220", b"554"), answers


def test_message_with_nul_is_refused(host, session):
    token = uuid.uuid4().hex
    session.mail(SENDER)
    session.rcpt("alice@example.org")
    code, answer = session.data(f"From: {SENDER}\r\nSubject: a\0b {token}\r\n\r\nbody\r\n".encode())
    assert code == 550, answer
    assert delivered(host, token, seconds=1) == []


def test_loop_ends(session):
    session.mail(SENDER)
    session.rcpt("alice@example.org")
    hops = "".join(
        f"Received: from h{n}.example.com by h{n + 1}.example.com; Tue, 24 Nov 2026 10:00:00 +0000\r\n"
        for n in range(60)
    )
    code, answer = session.data(f"{hops}From: {SENDER}\r\nSubject: loop\r\n\r\nbody\r\n".encode())
    assert code == 554, answer


def test_client_with_too_many_errors_is_disconnected(address):
    with socket.create_connection((address, 25), timeout=30) as connection:
        stream = connection.makefile("rb")
        stream.readline()
        answers = []
        for _command in range(12):
            connection.sendall(b"NONSENSE\r\n")
            answers.append(stream.readline()[:3])
            if answers[-1] == b"421":
                break
        assert answers[:5] in ([b"500"] * 5, [b"502"] * 5)
        assert answers[-1] == b"421", answers
        with contextlib.suppress(ConnectionResetError):  # closed all the same, with a command of ours on its way
            assert stream.readline() == b""


def test_address_in_utf_8_is_refused_in_the_session(session):
    assert not session.has_extn("smtputf8")


def test_inline_table_and_service_of_our_own(host):
    script = (
        "import smtplib; s = smtplib.SMTP('127.0.0.1', 10025, 'client.example.com'); s.ehlo(); s.mail('a@example.com');"
        "print(s.rcpt('alice@example.org')[0], s.rcpt('bob@example.org'))"
    )
    shown = host.run("python3 -c %s", script)
    assert shown.stdout.startswith("250 (554"), shown
    assert "not on this port" in shown.stdout


# --- what an operator meets -----------------------------------------------------------------------------------------


def test_secret_table_is_readable_by_root_only(host):
    modes = host.run("stat -c %a:%U /etc/postfix/maps.d/password /etc/postfix/maps.d/password.lmdb").stdout.split()
    assert modes == ["600:root", "600:root"]
    assert host.run("postmap -q mail.example.org lmdb:/etc/postfix/maps.d/password").stdout.strip().startswith("relay:")


def test_daemons_in_the_chroot_resolve_like_the_host(host):
    for name in ("resolv.conf", "hosts", "nsswitch.conf", "services"):
        assert host.run(f"cmp /etc/{name} /var/spool/postfix/etc/{name}").rc == 0


TABLES = {
    "recipients": {"type": "lmdb", "entries": {"alice@example.org": "OK", "bob@example.org": "OK"}},
    "transport": {"type": "lmdb", "entries": {"example.org": "smtp:[127.0.0.1]:2525"}},
    "clients": {"type": "cidr", "entries": ["192.0.2.0/24 REJECT no mail from the documentation"]},
    "closed": {"type": "inline", "entries": {"bob@example.org": "REJECT not on this port"}},
}


def refused(run: subprocess.CompletedProcess) -> str:
    """What a run that had to stop said, on one line."""
    assert run.returncode != 0, run.stdout
    return re.sub(r"\s+", " ", (run.stdout + run.stderr).replace("\\n", " ").replace("''", "'"))


def test_misspelt_parameters_stop_the_run_and_change_nothing(host):
    before = live(host)
    said = refused(
        converge(
            postfix_main_overrides={"smtpd_forbid_bare_newlines": True},
            postfix_master=[{"name": "smtp", "type": "inet", "args": {"smtpd_tls_securitylevel": "may"}}],
        )
    )
    assert "unused parameter: smtpd_forbid_bare_newlines=yes" in said
    assert "unused parameter: smtpd_tls_securitylevel=may" in said
    assert live(host) == before


def test_contradictions_in_the_data_are_all_named_and_change_nothing(host):
    before = live(host)
    twice = {"name": "showq", "type": "unix"}
    said = refused(
        converge(
            postfix_main_overrides={"relocated_maps": "map:moved", "local_recipient_maps": {"a": "b"}},
            postfix_master=[twice, twice, {"name": "ours", "type": "inet"}],
            postfix_maps=TABLES
            | {
                "first": {"type": "lmbd", "entries": {"a@example.org": "OK"}},
                "second": {"type": "lmdb", "entries": {"a b": "OK"}},
                "third": {"type": "lmdb", "entry": {}},
            },
            postfix_tls_chain="nonsense",
        )
    )
    for sentence in (
        "postfix_main_overrides.relocated_maps refers to map:moved",
        "postfix_main_overrides.local_recipient_maps must be a string",
        "the service showq/unix is given twice",
        "the service ours/inet is not one of Postfix's own and therefore needs a command",
        "postfix_maps.first.type is 'lmbd'",
        "postfix_maps.second: the key 'a b' is empty or contains a blank",
        "postfix_maps.third.entry is unknown",
        "postfix_tls_chain must hold a private key",
    ):
        assert sentence in said
    assert live(host) == before


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"postfix_main_overrides": {"relocated_maps": "lmdb:/etc/postfix/maps.d/moved"}},
            "refers to lmdb:/etc/postfix/maps.d/moved, but no such table is given",
        ),
        ({"postfix_main_overrides": {"relocated_maps": "zork:/etc/moved"}}, "table type 'zork'"),
        (
            {"postfix_maps": TABLES | {"recipients": {"type": "lmdb", "entries": ["a@b OK", "a@b OK"]}}},
            "duplicate entry",
        ),
    ],
    ids=["no such table", "no such type", "duplicate entry"],
)
def test_fault_that_only_postfix_sees_stops_the_run_and_changes_nothing(host, variables, sentence):
    before = live(host)
    assert sentence in refused(converge(**variables))
    assert live(host) == before


def test_key_that_does_not_fit_the_certificate_stops_the_run(host):
    before = live(host)
    key = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    certificate = (Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "relay.crt").read_text()
    refused(converge(postfix_tls_chain=key + certificate))
    assert live(host) == before


def test_new_recipient_is_known_at_once_without_reload_and_a_dropped_table_is_gone(host, session, restored):
    before = masters(host)
    reloads = "journalctl --no-pager -t postfix/master | grep -c reload"
    counted = host.run(reloads).stdout
    session.mail(SENDER)
    assert session.rcpt("carol@example.org")[0] == 550
    tables = TABLES | {"recipients": {"type": "lmdb", "entries": {"carol@example.org": "OK"}}}
    run = converge(postfix_maps=tables | {"password": {"type": "lmdb", "mode": "0600", "entries": {"a": "b"}}})
    assert run.returncode == 0, run.stdout
    assert masters(host) == before
    assert host.run(reloads).stdout == counted
    session.rset()
    session.quit()
    session.connect(session._host, 25)
    session.ehlo()
    session.mail(SENDER)
    assert session.rcpt("carol@example.org")[0] == 250
    assert session.rcpt("alice@example.org")[0] == 550
    assert converge(postfix_maps=tables).returncode == 0
    assert not host.file("/etc/postfix/maps.d/password").exists
    assert not host.file("/etc/postfix/maps.d/password.lmdb").exists


def test_secret_is_never_shown(restored):
    secret = "another-password-that-nobody-sees"
    tables = TABLES | {"password": {"type": "lmdb", "mode": "0600", "entries": {"mail.example.org": secret}}}
    run = converge("--diff", "-vvv", "--check", postfix_maps=tables)
    assert run.returncode == 0, run.stdout
    assert "(secret, changed)" in run.stdout
    shown = [line for line in run.stdout.splitlines() if secret in line and "Using" not in line]
    assert shown == []


def test_reload_is_enough_for_a_parameter_and_a_restart_comes_where_it_must(host, address, restored):
    before = masters(host)
    assert converge(postfix_main_overrides={"smtpd_banner": "$myhostname ESMTP of ours"}).returncode == 0
    assert masters(host) == before
    with socket.create_connection((address, 25), timeout=30) as connection:
        assert b"of ours" in connection.recv(1000)
    assert converge(postfix_main_overrides={"inet_interfaces": "loopback-only"}).returncode == 0
    assert masters(host) != before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, 25), timeout=30)


def test_queue_survives_a_restart_by_the_role(host, address, session, restored):
    token = uuid.uuid4().hex
    assert host.run("systemctl stop sink.service").rc == 0
    try:
        session.sendmail(SENDER, ["alice@example.org"], f"From: {SENDER}\r\nSubject: {token}\r\n\r\nx\r\n".encode())
        assert converge(postfix_main_overrides={"inet_protocols": "ipv4"}).returncode == 0
        assert "alice@example.org" in host.run("postqueue -j").stdout
    finally:
        started = host.run(
            f"systemd-run --unit=sink --collect --property=WorkingDirectory={SINK} "
            "smtp-sink -u nobody -d message. 127.0.0.1:2525 100"
        )
    assert started.rc == 0, started.stderr
    host.run("postqueue -f")
    assert len(delivered(host, token, seconds=30)) == 1


def test_without_a_chain_there_is_tls_with_a_certificate_of_its_own(host, address, restored):
    run = converge(postfix_tls_chain="")
    assert run.returncode == 0, run.stdout
    shown = host.run(f"openssl s_client -starttls smtp -connect {address}:25 </dev/null 2>&1").stdout
    assert "Cipher is TLS_" in shown, shown
    again = converge(postfix_tls_chain="")
    assert re.search(r"changed=0 ", again.stdout), again.stdout


def test_change_by_hand_is_seen_in_check_mode_and_undone(host, restored):
    host.run("postconf -e smtpd_helo_required=no; chmod 644 /etc/postfix/maps.d/password")
    run = converge("--check", "--diff")
    assert run.returncode == 0, run.stdout
    assert "-smtpd_helo_required = no" in run.stdout
    assert "/etc/postfix/maps.d/password" in run.stdout
    assert host.run("postconf -h smtpd_helo_required").stdout.strip() == "no"
    assert converge().returncode == 0
    assert host.run("postconf -h smtpd_helo_required").stdout.strip() == "yes"


def test_log_holds_no_warning_about_the_configuration(host):
    log = host.run("journalctl --no-pager -b -u 'postfix*' --grep '(warning|error|fatal|panic):'").stdout
    # What the hostile clients of this file, and the sink that was stopped, are expected to leave there.
    expected = (
        "non-SMTP command",
        "does not resolve to address",
        "Illegal address syntax",
        "TLS library problem",
        "message rejected: hopcount exceeded",
    )
    lines = [line for line in log.splitlines() if re.search(r"(warning|error|fatal|panic):", line)]
    assert [line for line in lines if not any(text in line for text in expected)] == []


def test_killed_master_is_replaced_and_mail_goes_on(host, address):
    killed, token = masters(host), uuid.uuid4().hex
    assert host.run(f"kill -9 {killed}").rc == 0
    end = time.monotonic() + 20
    while masters(host) == killed or not host.socket("tcp://0.0.0.0:25").is_listening:
        assert time.monotonic() < end, "nobody started Postfix again"
        time.sleep(0.5)
    with smtplib.SMTP(address, 25, local_hostname="client.example.com", timeout=30) as smtp:
        smtp.sendmail(SENDER, ["alice@example.org"], f"From: {SENDER}\r\nSubject: {token}\r\n\r\nx\r\n".encode())
    assert len(delivered(host, token)) == 1
