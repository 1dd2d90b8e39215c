"""PostSRSd as Postfix sees it: two tables that rewrite a sender and give it back, and nothing for a forger."""

from __future__ import annotations

import base64
import hmac
import re
import time

import pytest

FORWARD = "tcp:127.0.0.1:10001"
REVERSE = "tcp:127.0.0.1:10002"
DOMAIN = "srs.example.org"
SECRET = "a-secret-for-this-test"
SECRET_BEFORE = "the-secret-before-it"
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


def ask(host, table: str, key: str) -> str:
    """What Postfix gets for a key; on trouble with the daemon its journal is shown."""
    answer = host.run("postmap -q %s %s", key, table)
    if answer.stderr:
        print(host.run("journalctl -u postsrsd --no-pager -n 50").stdout)
    assert answer.stderr == "", answer.stderr
    return answer.stdout.strip()


def srs_address(sender: str, secret: str, day: int | None = None) -> str:
    """An SRS0 address made here, independently of the daemon (Shevek's SRS paper, hash of four digits)."""
    user, domain = sender.split("@")
    day = int(time.time()) // 86400 if day is None else day
    stamp = DIGITS[day // 32 % 32] + DIGITS[day % 32]
    digest = hmac.new(secret.encode(), (stamp + domain + user).lower().encode(), "sha1").digest()
    return f"SRS0={base64.b64encode(digest).decode()[:4]}={stamp}={domain}={user}@{DOMAIN}"


def test_sender_of_forwarded_mail_becomes_an_address_of_ours(host):
    assert ask(host, FORWARD, "alice@example.com") == srs_address("alice@example.com", SECRET)


def test_bounce_finds_its_way_back(host):
    rewritten = ask(host, FORWARD, "alice@example.com")
    assert ask(host, REVERSE, rewritten) == "alice@example.com"


def test_bounce_finds_its_way_back_when_a_mail_system_has_changed_its_case(host):
    rewritten = ask(host, FORWARD, "alice@example.com")
    assert ask(host, REVERSE, rewritten.lower()) == "alice@example.com"


def test_mail_forwarded_before_the_rotation_can_still_bounce(host):
    assert ask(host, REVERSE, srs_address("bob@example.net", SECRET_BEFORE)) == "bob@example.net"


def test_address_forwarded_twice_is_shortened_and_comes_back(host):
    once = "SRS0=abcd=EF=example.com=alice@forwarder.example.net"
    twice = ask(host, FORWARD, once)
    assert re.fullmatch(rf"SRS1=.{{4}}=forwarder\.example\.net==abcd=EF=example\.com=alice@{re.escape(DOMAIN)}", twice)
    assert ask(host, REVERSE, twice) == once


@pytest.mark.parametrize(
    "address",
    [
        srs_address("alice@example.com", "not-our-secret-at-all"),
        srs_address("alice@example.com", SECRET).replace("=alice@", "=mallory@"),
        srs_address("alice@example.com", SECRET, day=int(time.time()) // 86400 - 60),
        f"SRS0=alice@{DOMAIN}",
        f"nobody@{DOMAIN}",
        "alice@example.com",
    ],
    ids=["wrong hash", "other user", "too old", "malformed", "no SRS address", "other domain"],
)
def test_forged_address_gives_nothing(host, address):
    assert ask(host, REVERSE, address) == ""


@pytest.mark.parametrize("sender", ["alice@example.org", "alice@cs.example.edu"])
def test_sender_whose_spf_names_us_stays_as_it_is(host, sender):
    assert ask(host, FORWARD, sender) == ""


def test_nobody_but_the_daemon_can_read_the_secrets(host):
    assert host.run("setpriv --reuid=nobody --clear-groups cat /etc/postsrsd.secret").rc != 0
    assert host.run("systemctl show -p MainPID --value postsrsd").stdout.strip() != "0"
    user = host.run("ps -o user= -p $(systemctl show -p MainPID --value postsrsd)").stdout.strip()
    assert user == "postsrsd"


def test_tables_are_offered_on_loopback_only(host):
    listening = host.run("ss -Htln").stdout
    sockets = re.findall(r"(\S+):(?:10001|10002)\s", listening)
    assert sorted(set(sockets)) == ["127.0.0.1"], listening


def test_daemon_comes_back_after_it_was_killed(host):
    process = host.run("systemctl show -p MainPID --value postsrsd").stdout
    assert host.run("systemctl kill -s KILL postsrsd").rc == 0
    for _attempt in range(20):
        another = host.run("systemctl show -p MainPID --value postsrsd").stdout != process
        if another and host.run("postmap -q alice@example.com %s", FORWARD).rc == 0:
            return
        time.sleep(0.5)
    pytest.fail(host.run("journalctl -u postsrsd --no-pager -n 50").stdout)
