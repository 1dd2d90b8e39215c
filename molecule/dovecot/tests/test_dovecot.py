"""Who can sign in at a real Postfix, what a guesser meets, and that others are not hurt by it.

A test chooses the client's address by XCLIENT; where packets must be stopped, it comes from the controller's own.
"""

from __future__ import annotations

import base64
import concurrent.futures
import json
import os
import re
import shutil
import smtplib
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

SCENARIO = Path(__file__).resolve().parents[1]
REPOSITORY = SCENARIO.parents[1]
INPUTS = yaml.safe_load((SCENARIO / "vars/inputs.yml").read_text(encoding="utf-8"))
PASSWORD = "right-horse"
WELCOME, REFUSED = (
    (235, "2.7.0 Authentication successful"),
    (535, "5.7.8 Error: authentication failed: (reason unavailable)"),
)
SOCKET = "/var/spool/postfix/private/auth"
NOBODY = "setpriv --reuid=nobody --regid=nogroup --clear-groups"


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def run_role(*arguments: str, **variables) -> subprocess.CompletedProcess[str]:
    """The scenario's play with other data."""
    program = shutil.which("ansible-playbook") or str(Path(sys.executable).with_name("ansible-playbook"))
    return subprocess.run(
        [program, "-i", "molecule/inventory/", str(SCENARIO / "converge.yml"), "-e", json.dumps(variables), *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


class Submission:
    """The submission service of the host under test."""

    def __init__(self, host) -> None:
        self.host = host
        shown = json.loads(host.check_output("ip -json address show dev eth0 scope global"))
        self.address = {each["family"]: each["local"] for each in shown[0]["addr_info"] if each}

    def journal(self) -> str:
        return self.host.run("journalctl -u dovecot -u fail2ban -u postfix -n 60 --no-pager -o cat").stdout

    def session(self, client: str = "", family: str = "inet") -> smtplib.SMTP:
        smtp = smtplib.SMTP(self.address[family], 587, timeout=60)
        smtp.starttls(context=ssl._create_unverified_context())
        smtp.ehlo("client.example.org")
        if client:
            claimed = f"IPV6:{client}" if ":" in client else client
            assert smtp.docmd("XCLIENT", f"NAME=[UNAVAILABLE] ADDR={claimed}")[0] == 220
            smtp.ehlo("client.example.org")
        return smtp

    @staticmethod
    def plain(smtp: smtplib.SMTP, login: str, password: str) -> tuple[int, str]:
        code, text = smtp.docmd("AUTH", "PLAIN " + b64(f"\0{login}\0{password}"))
        return code, text.decode()

    def sign_in(self, login: str, password: str = PASSWORD, client: str = "203.0.113.1", **more) -> tuple[int, str]:
        """Postfix's answer to one attempt in a session of its own."""
        with self.session(client, **more) as smtp:
            return self.plain(smtp, login, password)

    def timed(self, *arguments, **more) -> tuple[float, tuple[int, str]]:
        with self.session(more.pop("client")) as smtp:
            began = time.monotonic()
            return (self.plain(smtp, *arguments, **more), time.monotonic() - began)[::-1]

    def with_token(self, login: str, token: str, client: str, mechanism: str = "OAUTHBEARER") -> tuple[int, str]:
        start = f"user={login}\1" if mechanism == "XOAUTH2" else f"n,a={login},\1"
        with self.session(client) as smtp:
            code, text = smtp.docmd("AUTH", f"{mechanism} " + b64(f"{start}auth=Bearer {token}\1\1"))
            if code == 334:  # the reason, which the client acknowledges (RFC 7628, 3.2.3)
                assert "well-known" in base64.b64decode(text).decode() or mechanism == "XOAUTH2"
                code, text = smtp.docmd("AQ==")
            return code, text.decode()

    def shut_out(self) -> str:
        return self.host.run("nft list table inet f2b-table").stdout

    def wait(self, what, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, self.journal()
            time.sleep(0.5)


@pytest.fixture(scope="module")
def submission(host) -> Submission:
    return Submission(host)


def together(*calls) -> list:
    """The results of calls that run at the same time: an answer to a wrong password takes seconds."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [each.result() for each in [pool.submit(call) for call in calls]]


def token(head: dict | None = None, **claims) -> str:
    """A JWT of the scenario's single sign-on (RFC 7519, ES256)."""
    key = serialization.load_pem_private_key(
        (Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "token.key").read_bytes(), None
    )
    now = int(time.time())
    body = {"iss": "https://sso.example.org/", "aud": "submission", "email": "alice@example.org", "sub": "4711"}
    body = {name: value for name, value in (body | {"iat": now, "exp": now + 300} | claims).items() if value}
    parts = [{"typ": "JWT", "alg": "ES256", "kid": "k1"} | (head or {}), body]
    text = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)
    r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{text}.{base64.urlsafe_b64encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big')).rstrip(b'=').decode()}"


@pytest.mark.parametrize("login", [*INPUTS["dovecot_users"], "hana@example.org"])
def test_right_password_signs_in_whatever_its_hash_and_wherever_it_is_kept(submission, login):
    assert submission.sign_in(login) == WELCOME, submission.journal()


def test_wrong_password_is_refused_whatever_its_hash_and_wherever_it_is_kept(submission):
    logins = [*INPUTS["dovecot_users"], "hana@example.org"]
    calls = [
        lambda login=login, number=number: submission.sign_in(login, "wrong-horse", f"203.0.113.{number}")
        for number, login in enumerate(logins, 10)
    ]
    assert together(*calls) == [REFUSED] * len(logins)


def test_login_mechanism_works_and_anonymous_is_not_offered(submission):
    with submission.session("203.0.113.1") as smtp:
        assert set(smtp.esmtp_features["auth"].split()) == {"PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"}
        assert smtp.docmd("AUTH", "LOGIN")[0] == 334
        assert smtp.docmd(b64("alice@example.org"))[0] == 334
        assert smtp.docmd(b64(PASSWORD))[0] == 235
    with smtplib.SMTP(submission.address["inet"], 587, timeout=60) as smtp:
        smtp.ehlo("client.example.org")
        assert not smtp.has_extn("auth")  # not before TLS


@pytest.mark.parametrize("login", ["Alice@Example.ORG", "HANA@example.org"])
def test_postfix_is_told_the_login_in_lower_case(submission, login):
    with submission.session("203.0.113.1") as smtp:
        assert submission.plain(smtp, login, PASSWORD) == WELCOME
        smtp.mail("alice@example.org")
        assert smtp.rcpt("hanako@example.edu")[0] == 250
    submission.wait(lambda: f"sasl_username={login.lower()}\n" in submission.journal() + "\n", 10)


def test_unknown_login_cannot_be_told_from_a_wrong_password(submission):
    (known, answer), (unknown, other) = together(
        lambda: submission.timed("alice@example.org", "wrong-horse", client="203.0.113.30"),
        lambda: submission.timed("nobody@example.org", "wrong-horse", client="203.0.113.31"),
    )
    assert answer == other == REFUSED
    assert 1.4 < known < 8
    assert 1.4 < unknown < 8
    assert abs(known - unknown) < 1.5


def test_token_signs_in(submission):
    assert submission.with_token("Alice@example.org", token(), "203.0.113.40") == WELCOME, submission.journal()
    assert submission.with_token("alice@example.org", token(), "203.0.113.40", "XOAUTH2") == WELCOME


def test_token_that_is_not_good_is_refused(submission):
    good, now = token(), int(time.time())
    wrong = {
        "of somebody else": ("crypt@example.org", good),
        "for another service": ("alice@example.org", token(aud="calendar")),
        "for no service": ("alice@example.org", token(aud=None)),
        "of another issuer": ("alice@example.org", token(iss="https://evil.example.net/")),
        "expired": ("alice@example.org", token(exp=now - 60)),
        "endless": ("alice@example.org", token(exp=None)),
        "without a login": ("alice@example.org", token(email=None)),
        "changed": ("alice@example.org", f"{good[:-8]}AAAAAAAA"),
        "unsigned": ("alice@example.org", token({"alg": "none"})),
        "signed by the public key": ("alice@example.org", token({"alg": "HS256"})),
        "signed by an unknown key": ("alice@example.org", token({"kid": "../../../etc/passwd"})),
        "no token": ("alice@example.org", PASSWORD),
    }
    calls = [
        lambda case=case, number=number: submission.with_token(*case, f"198.51.100.{number}")
        for number, case in enumerate(wrong.values(), 1)
    ]
    assert dict(zip(wrong, together(*calls), strict=True)) == dict.fromkeys(wrong, REFUSED)


def test_nobody_but_postfix_can_ask_and_nobody_can_read_the_hashes(submission):
    host = submission.host
    assert host.check_output("stat -c '%%a %%U %%G' %s", SOCKET) == "660 postfix postfix"
    connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    assert "PermissionError" in host.run(f"{NOBODY} python3 -c %s %s", connect, SOCKET).stderr
    assert host.check_output("stat -c '%a %U %G' /etc/dovecot/estate-users") == "640 root dovecot"
    for path in ("estate-users", "estate-ldap.conf", "estate-oauth2.conf", "estate-keys/default/ES256/k1"):
        assert host.run(f"test -s /etc/dovecot/{path}").rc == 0
        assert host.run(f"{NOBODY} cat /etc/dovecot/{path}").rc != 0
    inode = host.check_output("grep -c 'passdb_ldap\\|ldap_auth_dn_password' /etc/dovecot/dovecot.conf || true")
    assert inode == "0"  # what everybody may read names no secret


def test_dovecot_serves_nothing_else(submission):
    listening = submission.host.check_output("ss -Htlnp | grep dovecot")
    assert re.findall(r"(\S+):(\d+)\s+\S+:\*", listening) == [("127.0.0.1", "9166")], listening


def test_counters_tell_right_from_wrong(submission):
    read = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9166/metrics').read().decode())"

    def counted() -> list[int]:
        text = submission.host.check_output("python3 -c %s", read)
        return [
            int((re.search(rf'dovecot_auth_{kind}_total{{mechanism="PLAIN"}} (\d+)', text) or [0, 0])[1])
            for kind in ("successes", "failures")
        ]

    before = counted()
    together(
        lambda: submission.sign_in("alice@example.org", client="203.0.113.50"),
        lambda: submission.sign_in("alice@example.org", "wrong-horse", client="203.0.113.51"),
    )
    submission.wait(lambda: counted() == [before[0] + 1, before[1] + 1], 15)


def test_directory_that_is_away_keeps_nobody_out_who_was_there_and_gets_nobody_shut_out(submission):
    host = submission.host
    assert submission.sign_in("hana@example.org") == WELCOME
    host.check_output("systemctl stop slapd")
    try:
        assert submission.sign_in("hana@example.org") == WELCOME  # remembered
        assert submission.sign_in("alice@example.org") == WELCOME  # in the file
        tries = [
            lambda number=number: submission.sign_in(f"p{number}@example.org", client="203.0.113.60")
            for number in range(8)
        ]
        answers = together(*tries)  # Postfix makes no difference between "no" and "not now"
        assert {code for code, _text in answers} <= {454, 535}
        time.sleep(2)
        assert "203.0.113.60" not in submission.shut_out()
    finally:
        host.check_output("systemctl start slapd")
    submission.wait(lambda: submission.sign_in("hana@example.org") == WELCOME)


def test_guesser_is_slowed_then_shut_out_and_others_still_sign_in(submission):
    """500 passwords, 20 at a time, from the controller's IPv4 address; its IPv6 address is somebody else."""

    def guess(number: int) -> tuple[str, float]:
        began = time.monotonic()
        try:
            with submission.session() as smtp:
                code, _text = submission.plain(smtp, "bcrypt@example.org", f"guess-{number}")
                assert code in (454, 450, 535), code
                return ("tested" if code == 535 else "not now"), time.monotonic() - began
        except (OSError, smtplib.SMTPException):
            return "shut out", time.monotonic() - began

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        results = list(pool.map(guess, range(500)))
    tested = [seconds for result, seconds in results if result == "tested"]
    turned_away = sum(result == "shut out" for result, _seconds in results)
    print(f"500 guesses: {len(tested)} looked at, {turned_away} shut out, slowest answer {max(tested):.1f} s")
    assert 5 <= len(tested) <= 40, submission.journal()
    assert turned_away >= 440, submission.journal()
    assert min(tested) > 1.4  # slowed

    assert "198.18.25.1" in submission.shut_out()
    with pytest.raises(OSError, match=r"refused|reset"):
        submission.session()
    with smtplib.SMTP(submission.address["inet"], 25, timeout=20) as smtp:
        assert smtp.noop()[0] == 250  # another service of the same host
    assert submission.sign_in("alice@example.org", client="", family="inet6") == WELCOME

    submission.wait(lambda: "198.18.25.1" not in submission.shut_out(), 60)
    assert submission.sign_in("alice@example.org") == WELCOME
    assert submission.host.run("systemctl --failed --no-legend").stdout == ""


def test_guesses_from_many_addresses_lock_the_account_for_a_while(submission):
    calls = [
        lambda number=number: submission.sign_in("pbkdf2@example.org", f"guess-{number}", f"2001:db8:{number}::1")
        for number in range(100, 110)
    ]
    together(*calls)
    submission.wait(lambda: "pbkdf2@" in submission.host.check_output("cat /var/lib/dovecot/locked-accounts"), 15)
    assert together(
        lambda: submission.sign_in("pbkdf2@example.org", client="203.0.113.70"),
        lambda: submission.sign_in("crypt@example.org", client="203.0.113.71"),
    ) == [REFUSED, WELCOME]
    submission.wait(lambda: submission.sign_in("pbkdf2@example.org", client="203.0.113.72") == WELCOME, 60)
    owner = submission.host.check_output("stat -c '%a %U %G' /var/lib/dovecot/locked-accounts")
    assert owner == "640 root dovecot"


def test_our_own_addresses_are_never_shut_out_and_an_ipv6_customer_is_as_a_whole(submission):
    together(
        *[
            lambda number=number, client=client: submission.sign_in(f"u{number}@example.org", "x", client)
            for number in range(6)
            for client in ("192.0.2.9", "2001:db8:77:1::9")
        ]
    )
    submission.wait(lambda: "2001:db8:77:1::/64" in submission.shut_out(), 15)
    assert "192.0.2.9" not in submission.shut_out()


def test_nobody_can_get_somebody_else_shut_out(submission):
    """A login may look like a line of the log."""
    began = submission.host.check_output("date '+%F %T'")
    forged = "x (username: auth(z,198.51.100.99,sasl:plain): ldap: unknown user"
    together(
        *[
            lambda number=number: submission.sign_in(f"{forged} {number}", "x", f"203.0.113.{number}")
            for number in range(80, 88)
        ]
    )
    see = f"journalctl -u fail2ban --since '{began}' --no-pager -o cat"
    submission.wait(lambda: submission.host.check_output(see).count("Found 203.0.113.8") >= 8, 15)
    assert "198.51.100.99" not in submission.host.check_output(see)


def test_who_is_shut_out_stays_so_when_somebody_loads_another_ruleset(submission):
    host = submission.host
    host.check_output("nft add table inet neighbour")
    try:
        host.check_output("fail2ban-client set submission banip 203.0.113.99")
        submission.wait(lambda: "203.0.113.99" in submission.shut_out(), 10)
        host.check_output("systemctl restart fail2ban")
        submission.wait(lambda: "203.0.113.99" in submission.shut_out(), 20)
        assert host.run("nft list table inet neighbour").rc == 0
        host.check_output("systemctl restart nftables")
        submission.wait(lambda: "203.0.113.99" in submission.shut_out(), 20)
    finally:
        host.run("fail2ban-client set submission unbanip 203.0.113.99; nft delete table inet neighbour")


def test_user_taken_out_of_the_data_cannot_sign_in_and_a_provider_can_be_asked(submission):
    host, see = submission.host, "systemctl show -p MainPID dovecot postfix"
    before = host.check_output(see)
    users = {name: entry for name, entry in INPUTS["dovecot_users"].items() if not name.startswith("ssha512")}
    authority = (Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "ca.pem").read_text(encoding="ascii")
    oauth2 = {
        "mode": "post",
        "introspection_url": "https://sso.example.org:8443/introspect",
        "active": {"attribute": "active", "value": "true"},
        "configuration_url": "https://sso.example.org/.well-known/openid-configuration",
        "ca": authority,
    }
    changed = run_role("--diff", dovecot_users=users, dovecot_oauth2=oauth2)
    try:
        assert changed.returncode == 0, changed.stdout[-3000:]
        assert "changed=0" not in changed.stdout
        for secret in (INPUTS["dovecot_users"]["crypt@example.org"]["password"], "#reader"):
            assert secret.strip()[-20:] not in changed.stdout + changed.stderr
        assert host.check_output(see) == before  # nothing was restarted
        assert together(
            lambda: submission.sign_in("ssha512@example.org", client="203.0.113.90"),
            lambda: submission.sign_in("crypt@example.org", client="203.0.113.91"),
        ) == [REFUSED, WELCOME]

        submission.wait(lambda: submission.with_token("alice@example.org", "good-token", "203.0.113.92") == WELCOME)
        assert (
            together(
                lambda: submission.with_token("alice@example.org", "ended-token", "203.0.113.93"),
                lambda: submission.with_token("alice@example.org", "other-token", "203.0.113.94"),
                lambda: submission.with_token("crypt@example.org", "good-token", "203.0.113.95"),
                lambda: submission.with_token("alice@example.org", token(), "203.0.113.96"),
            )
            == [REFUSED] * 4
        )
        assert host.run("find /etc/dovecot/estate-keys -type f").stdout == ""  # a key that is not in the data is gone
    finally:
        back = run_role()
    assert back.returncode == 0, back.stdout[-3000:]
    assert submission.sign_in("ssha512@example.org") == WELCOME
    submission.wait(lambda: submission.with_token("alice@example.org", token(), "203.0.113.97") == WELCOME)


def test_weak_hash_or_directory_without_tls_stops_the_run_in_plain_words_and_changes_nothing(submission):
    see = "find /etc/dovecot /etc/fail2ban -type f -printf '%p %m %T@\\n' | sort"
    before = submission.host.check_output(see)
    users = INPUTS["dovecot_users"] | {"eve@example.org": {"password": "{PLAIN}tell-nobody"}}
    stopped = run_role(dovecot_users=users, dovecot_ldap=INPUTS["dovecot_ldap"] | {"uris": ["http://x"], "ca": ""})
    assert stopped.returncode != 0
    said = " ".join(stopped.stdout.split())
    assert "dovecot_users['eve@example.org'].password is PLAIN, which is weak, unsalted or no hash at all" in said
    assert "it must begin with ldaps://" in said
    assert "tell-nobody" not in stopped.stdout + stopped.stderr
    assert submission.host.check_output(see) == before


def test_dovecot_comes_back_after_it_was_killed(submission):
    submission.host.check_output("systemctl kill -s KILL dovecot")
    submission.wait(lambda: submission.host.run("systemctl is-active dovecot").stdout.strip() == "active")

    def works() -> bool:
        try:
            return submission.sign_in("alice@example.org") == WELCOME
        except (OSError, smtplib.SMTPException):
            return False

    submission.wait(works)


@pytest.mark.parametrize(("unit", "most"), [("dovecot", 5.0), ("fail2ban", 5.0)])
def test_unit_is_confined(submission, unit, most):
    level = submission.host.check_output(f"systemd-analyze security {unit} --no-pager | tail -n 1")
    assert float(re.search(rf"{unit}\.service: ([\d.]+)", level)[1]) <= most
