"""From the gateways' events to reports in other people's mailboxes: real PostgreSQL, Postfix, and receivers.

The receivers are one program (files/receivers.py); who wants reports about whom stands in files/unbound.conf. Commands
run as the service runs them, with a configuration that does not spread them over hours.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
import uuid

import pytest
from world import CONFIG, GATEWAYS, days_ago, event, today

RUA = "p=none; rua=mailto:dmarc@{0}"


@pytest.fixture
def world(quiet):
    quiet.empty()
    return quiet


def rua(domain: str) -> str:
    """A policy whose reports stay in the domain."""
    return RUA.format(domain)


def test_two_gateways_make_one_report_and_every_message_counts(world):
    day = days_ago(1)
    for gateway, count in zip(GATEWAYS, (3, 4), strict=True):
        events = [event(day, "example.com", rua("example.com"), gateway=gateway) for _ in range(count)]
        events += [
            event(day, "example.com", rua("example.com"), gateway=gateway, passed=False, source_ip="2001:db8::9")
        ]
        assert world.hand_in(events, gateway) == count + 1
        assert world.hand_in(events, gateway) == 0, "events travel at least once and count once"
    world.complete(today())
    assert "1 days closed" in world.reports("close")
    assert "1 mails handed over" in world.reports("send")
    (mail,) = world.wait_for_mails(1)
    rows = {
        (row.findtext("row/source_ip"), row.findtext("row/count"), row.findtext("row/policy_evaluated/spf"))
        for row in mail.report.iterfind("record")
    }
    assert rows == {("192.0.2.7", "7", "pass"), ("2001:db8::9", "2", "fail")}
    assert world.one("SELECT reason FROM dmarc_reports.day") == "complete"
    assert "0 days closed" in world.reports("close")
    assert "0 mails handed over" in world.reports("send"), "a second run sends nothing"


def test_mail_is_what_rfc_9990_says(world):
    day = days_ago(1)
    world.hand_in([event(day, "example.com", rua("example.com"))])
    world.complete(today())
    world.reports("close")
    world.reports("send")
    (mail,) = world.wait_for_mails(1)
    number = mail.report_id
    assert mail.message["Subject"] == f"Report Domain: example.com Submitter: example.org Report-ID: {number}"
    begin, end = (mail.report.findtext(f"report_metadata/date_range/{name}") for name in ("begin", "end"))
    assert mail.attachment.get_filename() == f"example.org!example.com!{begin}!{end}!{number}.xml.gz"
    assert mail.attachment.get_content_type() == "application/gzip"
    assert int(end) - int(begin) == 86_399
    assert mail.report.findtext("report_metadata/org_name") == "Example Organisation"
    assert mail.report.findtext("report_metadata/extra_contact_info") == "https://www.example.org/postmaster"
    assert mail.message["From"] == "dmarc-reports@rua.example.org"
    assert re.fullmatch(rf"dmarc-reports\+{number}-[a-z2-7]{{16}}@rua\.example\.org", mail.envelope_from)
    (row,) = world.sql("SELECT * FROM dmarc_reports.delivery")
    assert row["envelope_from"] == mail.envelope_from
    assert (row["state"], row["message_id"]) == ("handed", mail.message["Message-ID"])
    taken = world.ask(f"journalctl --no-pager -o cat -t postfix/qmgr -g {row['queue_id']}")
    assert f"from=<{mail.envelope_from}>" in taken
    assert world.reports(f"show {number}").encode() == mail.document


def test_old_form_goes_to_whom_reads_nothing_else(world):
    world.hand_in([event(days_ago(1), "old.example.edu", rua("old.example.edu"))])
    world.complete(today())
    world.reports("close")
    world.reports("send")
    (mail,) = world.wait_for_mails(1)
    assert b"urn:ietf" not in mail.document
    assert mail.report.findtext("policy_published/pct") == "100"


def test_every_address_has_its_word_and_only_those_who_want_reports_get_them(world):
    addresses = {
        "in@example.com": None,
        "wants@taker.example.net": None,
        "not@asked.example.net": "not_authorised",
        "dmarc@wrong.example.net": "overridden_wrongly",
        "small@example.com!1k": "too_large",
    }
    others = {
        "mailto:x@.nowhere": "wrong_syntax",
        "https://example.com/r": "not_mailto",
        "mailto:in@example.com": "duplicate",
    }
    tags = ",".join([*(f"mailto:{address}" for address in addresses), *others])
    world.hand_in([event(days_ago(1), "example.com", f"p=none; rua={tags}")])
    world.hand_in([event(days_ago(1), "a.excluded.example.net", rua("a.excluded.example.net"))])
    world.hand_in([event(days_ago(1), "sfc.example.org", rua("rua.example.org"))])
    world.complete(today())
    world.reports("close")
    world.reports("send")
    mails = world.wait_for_mails(2)
    assert {mail.envelope_to for mail in mails} == {"in@example.com", "wants@taker.example.net"}
    fates = {row["recipient"]: row["fate"] or None for row in world.deliveries()}
    expected = {address.partition("!")[0]: fate for address, fate in addresses.items()} | others
    expected |= {"mailto:dmarc@a.excluded.example.net": "excluded", "mailto:dmarc@rua.example.org": "own"}
    assert fates == expected
    states = {row["recipient"]: row["state"] for row in world.deliveries()}
    assert {name for name, state in states.items() if state == "handed"} == {mail.envelope_to for mail in mails}


def test_domain_may_name_other_mailboxes_of_its_own(world):
    tags = "p=none; rua=mailto:old@moved.example.net,mailto:second@moved.example.net"
    world.hand_in([event(days_ago(1), "example.com", tags)])
    world.complete(today())
    world.reports("close")
    world.reports("send")
    mails = world.wait_for_mails(2)
    assert {mail.envelope_to for mail in mails} == {"new@moved.example.net", "second@moved.example.net"}
    assert "0 mails handed over" in world.reports("send")


def test_domain_without_an_answer_is_asked_again_and_at_last_given_up(world):
    world.hand_in([event(days_ago(1), "example.com", "p=none; rua=mailto:a@silent.example.net,mailto:b@example.com")])
    world.complete(today())
    world.reports("close")
    world.reports("send")
    world.wait_for_mails(1)
    for failures in range(1, 6):
        rows = {
            row["recipient"]: row
            for row in world.deliveries("recipient, state, fate, dns_failures, due_at > now() as later")
        }
        silent = rows["a@silent.example.net"]
        assert (silent["state"], silent["dns_failures"], silent["later"]) == ("waiting", str(failures), "t")
        world.sql("UPDATE dmarc_reports.delivery SET due_at = now() WHERE state = 'waiting'")
        world.reports("send")
    rows = {row["recipient"]: (row["state"], row["fate"]) for row in world.deliveries()}
    assert rows == {"a@silent.example.net": ("settled", "dns_temperror"), "b@example.com": ("handed", "")}
    world.wait_for_mails(1)


def test_paused_domain_gets_nothing(world):
    world.hand_in([event(days_ago(1), name, rua(name)) for name in ("example.com", "example.net")])
    world.complete(today())
    world.reports("close")
    world.sql(
        "INSERT INTO dmarc_reports.pause (recipient_domain, failures, since, until, last_fate) VALUES "
        "('example.com', 5, now(), now() + interval '1 day', 'no_mailbox'), "
        "('example.net', 5, now(), now() - interval '1 day', 'no_mailbox')"
    )
    world.reports("send")
    (mail,) = world.wait_for_mails(1)
    assert mail.domain == "example.net", "whose pause is over"
    assert {row["recipient"]: row["fate"] for row in world.deliveries()}["dmarc@example.com"] == "paused"


def test_missing_gateway_is_waited_for_and_then_named(world):
    day = days_ago(1)
    world.hand_in([event(day, "example.com", rua("example.com"))])
    world.complete(today(), "mail-gw1")
    assert "0 days closed" in world.reports("close")
    world.configure(wait_hours=0)
    assert "1 days closed" in world.reports("close")
    assert world.one("SELECT reason FROM dmarc_reports.day") == "gateways missing: mail-gw2"
    world.reports("send")
    (mail,) = world.wait_for_mails(1)
    late = [event(day, "example.com", rua("example.com"), gateway="mail-gw2") for _ in range(5)]
    assert world.hand_in(late, "mail-gw2") == 5
    assert world.hand_in(late, "mail-gw2") == 0
    world.complete(today(), "mail-gw2")
    assert "0 days closed" in world.reports("close")
    assert "0 mails handed over" in world.reports("send")
    assert (mail.messages, world.one("SELECT late FROM dmarc_reports.day")) == (1, "5")


def test_three_missed_days_are_caught_up_oldest_first_and_those_too_old_are_told(world):
    for number in (1, 2, 3, 20):
        world.hand_in([event(days_ago(number), "example.com", rua("example.com")) for _ in range(number)])
    world.complete(today())
    assert "4 days closed" in world.reports("close")
    assert "3 mails handed over" in world.reports("send")
    counts = sorted(mail.messages for mail in world.wait_for_mails(3))
    assert counts == [1, 2, 3]
    days = world.sql("SELECT day, reason, events, reports FROM dmarc_reports.day ORDER BY closed_at")
    assert [row["day"] for row in days] == [str(days_ago(number)) for number in (20, 3, 2, 1)]
    assert days[0]["reason"] == "older than 14 days: no reports"
    assert (days[0]["events"], days[0]["reports"]) == ("20", "0")


def test_day_without_a_message_is_closed_too(world):
    world.hand_in([event(days_ago(3), "example.com", rua("example.com"))])
    world.complete(today())
    assert "3 days closed" in world.reports("close")
    assert world.sql("SELECT day, events, reason FROM dmarc_reports.day WHERE events = 0 ORDER BY day") == [
        {"day": str(days_ago(number)), "events": "0", "reason": "complete"} for number in (2, 1)
    ]


def test_line_that_is_no_event_is_set_aside_once_and_stops_nothing(world):
    day = days_ago(1)
    good = event(day, "example.com", rua("example.com"))
    odd = event(day, "example.com", rua("example.com"), helo="..", disposition="lost")
    lone = event(day, "example.com", rua("example.com"), dkim=[
        {"domain": "example.com", "selector": "a\udc80\x01<&>", "result": "fail", "aligned": False},
    ])  # fmt: skip
    world.hand_in([good, odd, lone])
    world.complete(today())
    world.reports("close")
    world.reports("close")
    world.reports("send")
    (mail,) = world.wait_for_mails(1)
    assert mail.messages == 2
    aside = world.sql("SELECT gateway, line, reason FROM dmarc_reports.set_aside")
    assert [(row["gateway"], json.loads(row["line"])["id"]) for row in aside] == [("mail-gw1", odd["id"])]
    assert world.one("SELECT events FROM dmarc_reports.day") == "2"


def test_messages_without_policy_or_without_rua_make_no_report(world):
    day = days_ago(1)
    world.hand_in([event(day, "example.com", None, passed=False), event(day, "example.net", "p=reject")])
    world.complete(today())
    world.reports("close")
    assert world.sql("SELECT events, without_policy, reports FROM dmarc_reports.day") == [
        {"events": "2", "without_policy": "1", "reports": "0"}
    ]


def test_our_own_trouble_is_nobodys_fate(world):
    world.hand_in([event(days_ago(1), "example.com", rua("example.com"))])
    world.complete(today())
    world.reports("close")
    world.ask("systemctl stop postfix")
    try:
        assert "0 mails handed over" in world.reports("send")
        (row,) = world.deliveries("state, fate, attempts, due_at > now() AS later")
        assert row == {"state": "waiting", "fate": "", "attempts": "1", "later": "t"}
    finally:
        world.ask("systemctl start postfix")
    assert "0 mails handed over" in world.reports("send"), "not before its time"
    world.sql("UPDATE dmarc_reports.delivery SET due_at = now()")
    assert "1 mails handed over" in world.reports("send")
    world.wait_for_mails(1)


def test_switched_off_it_makes_reports_and_sends_none(world):
    world.configure(enabled=False)
    world.hand_in([event(days_ago(1), "example.com", rua("example.com"))])
    world.complete(today())
    assert "1 days closed" in world.reports("close")
    assert "sending is switched off" in world.reports("send")
    assert [row["state"] for row in world.deliveries()] == ["waiting"]
    number = world.one("SELECT report_id FROM dmarc_reports.report")
    assert "<domain>example.com</domain>" in world.reports(f"show {number}")


def test_reports_are_spread_over_the_hours_given(world):
    world.configure(spread_hours=4)
    world.hand_in(
        [event(days_ago(1), f"d{number}.example.com", rua(f"d{number}.example.com")) for number in range(200)]
    )
    world.complete(today())
    world.reports("close")
    quarters = world.sql(
        "SELECT floor(extract(epoch FROM due_at - closed_at) / 3600)::int AS hour, count(*) AS reports "
        "FROM dmarc_reports.delivery JOIN dmarc_reports.day USING (day) GROUP BY 1 ORDER BY 1"
    )
    assert [row["hour"] for row in quarters] == ["0", "1", "2", "3"]
    assert all(25 <= int(row["reports"]) <= 75 for row in quarters), quarters


# step and at which time: the fourth report of the day, the reply to the whole mail
CLOSING = [
    ("return:dmarc_reports.store:known", 1),
    ("call:dmarc_reports.store:close", 1),
    ("return:dmarc_reports.store:_keep", 4),
    ("return:dmarc_reports.store:_make", 1),
    ("return:dmarc_reports.store:close", 1),
]
SENDING = [
    ("return:dmarc_reports.destinations:resolve", 1),
    ("call:dmarc_reports.store:authorised", 1),
    ("return:dmarc_reports.send:check", 1),
    ("call:dmarc_reports.store:begin_sending", 1),
    ("return:dmarc_reports.store:begin_sending", 1),
    ("return:smtplib:SMTP.rcpt", 1),
    ("call:smtplib:SMTP.data", 1),
    ("call:smtplib:SMTP.getreply", 6),
    ("return:smtplib:SMTP.data", 1),
    ("call:dmarc_reports.store:handed", 1),
    ("return:dmarc_reports.store:handed", 1),
]


def test_killed_at_any_step_no_event_is_lost_or_doubled_and_each_report_is_sent_once(world):
    day = days_ago(1)
    domains = [f"d{number}.example.com" for number in range(len(CLOSING) + len(SENDING))]
    events = [
        event(day, name, f"p=none; rua=mailto:a@{name},mailto:b@all.example.net") for name in domains for _ in "123"
    ]
    world.hand_in(events)
    world.complete(today())
    for step, count in CLOSING:
        assert world.killed_at(step, "close", count), step
        closed = world.one("SELECT count(*) FROM dmarc_reports.day")
        assert closed == ("1" if step == CLOSING[-1][0] else "0"), step
    assert "0 days closed" in world.reports("close")
    for step, count in SENDING:
        assert world.killed_at(step, "send", count), step
    for step in ("call:dmarc_reports.send:recover", "return:dmarc_reports.handover:queue_manager_lines"):
        assert world.killed_at("call:dmarc_reports.store:handed", "send"), "something to find out about"
        assert world.killed_at(step, "send"), step
    time.sleep(4)  # until a hand-over that was cut off is certain not to turn up any more
    world.reports("send")
    mails = world.wait_for_mails(2 * len(domains))
    assert {(mail.domain, mail.envelope_to) for mail in mails} == {
        (name, to) for name in domains for to in (f"a@{name}", "b@all.example.net")
    }
    assert {mail.messages for mail in mails} == {3}
    assert {row["state"] for row in world.deliveries()} == {"handed"}
    assert world.one("SELECT count(DISTINCT queue_id) FROM dmarc_reports.delivery") == str(2 * len(domains))
    assert world.one("SELECT events FROM dmarc_reports.day") == str(len(events))


def test_service_killed_at_random_moments_reports_everything_once(world):
    day, domains = days_ago(1), [f"d{number}.example.com" for number in range(120)]
    events = [event(day, name, rua(name)) for name in domains for _ in "12"]
    world.hand_in(events)
    world.complete(today())
    world.configure(per_minute=600)
    unit = "/run/systemd/system/dmarc-reports.service.d/test.conf"
    world.ask(
        f"mkdir -p $(dirname {unit}); printf '[Service]\\nExecStart=\\nExecStart=/usr/bin/python3 -BP -m dmarc_reports "
        f"--config {CONFIG} serve\\nRestartSec=100ms\\n' > {unit}; systemctl daemon-reload; "
        "systemctl start dmarc-reports"
    )
    try:
        for _ in range(8):
            time.sleep(random.uniform(0.5, 3))
            world.run("systemctl kill -s KILL dmarc-reports")
        time.sleep(1)
        assert int(world.ask("systemctl show -P NRestarts dmarc-reports")) > 2
    finally:
        world.ask(f"systemctl stop dmarc-reports; rm -f {unit}; systemctl daemon-reload")
    time.sleep(4)
    world.configure()
    world.reports("send")
    mails = world.wait_for_mails(len(domains))
    assert sorted(mail.domain for mail in mails) == sorted(domains)
    assert {mail.messages for mail in mails} == {2}
    taken = "state = 'handed' OR fate = 'taken'"
    assert world.one(f"SELECT count(*) FROM dmarc_reports.delivery WHERE {taken}") == str(len(domains))


def test_events_that_come_while_the_day_is_closed_are_in_the_report_or_late_and_never_neither(world):
    day = days_ago(1)
    world.hand_in([event(day, f"d{number % 300}.example.com", rua("example.com")) for number in range(6000)])
    world.complete(today())
    handed_in = []
    stop = threading.Event()

    def keep_coming() -> None:
        while not stop.is_set():
            handed_in.append(world.hand_in([event(day, "example.net", rua("example.net"))]))

    gateway = threading.Thread(target=keep_coming)
    gateway.start()
    try:
        time.sleep(0.5)
        world.reports("close")
        time.sleep(0.5)
    finally:
        stop.set()
        gateway.join(60)
    (row,) = world.sql("SELECT events, late FROM dmarc_reports.day")
    assert int(row["events"]) + int(row["late"]) == 6000 + sum(handed_in)
    assert int(row["events"]) > 6000 or int(row["late"]) > 0
    counted = world.one("SELECT coalesce(sum(messages), 0) FROM dmarc_reports.report")
    assert counted == row["events"]


def test_old_things_go_and_open_ones_stay(world):
    world.configure(catch_up_days=60, keep_content_days=60, keep_events_days=60)
    for number in (1, 50):
        world.hand_in([event(days_ago(number), "example.com", rua("example.com"))])
    world.complete(today())
    world.reports("close")
    world.sql("UPDATE dmarc_reports.day SET closed_at = now() - interval '2 days'")
    world.configure(keep_content_days=30, keep_events_days=40, catch_up_days=60)
    world.reports("tidy")
    assert world.one("SELECT count(*) FROM dmarc_reports.report WHERE content IS NULL") == "0", "neither has been sent"
    assert world.one("SELECT count(*) FROM dmarc_reports.event") == "1"
    world.reports("send")
    world.wait_for_mails(2)
    world.reports("tidy")
    kept = world.sql("SELECT day, content IS NULL AS dropped FROM dmarc_reports.report ORDER BY day")
    assert kept == [
        {"day": str(days_ago(50)), "dropped": "t"},
        {"day": str(days_ago(1)), "dropped": "f"},
    ]
    assert "0 days closed" in world.reports("close"), "a day whose events are gone is closed all the same"


def test_nobody_but_the_program_reads_its_secret_and_its_tables(world):
    assert world.ask("stat -c '%a %U %G' /etc/dmarc_reports/reports.toml").strip() == "640 root dmarc_reports"
    denied = world.run(
        "psql -X -U postgres -d dmarc", "SET ROLE grafana; SELECT recipient FROM dmarc_reports.delivery;"
    )
    assert "permission denied" in denied.stderr
    denied = world.run("psql -X -U postgres -d dmarc", "SET ROLE dmarc_events; SELECT line FROM dmarc_reports.event;")
    assert "permission denied" in denied.stderr


def test_service_is_confined(host):
    level = host.check_output("systemd-analyze security dmarc-reports --no-pager | tail -n 1")
    assert float(re.search(r": ([\d.]+)", level)[1]) <= 3.0


def test_unknown_report_is_told_in_plain_words(world):
    done = world.run(f"dmarc-reports --config {CONFIG} show {uuid.uuid4().hex[:24]}")
    assert done.returncode == 1
    assert "there is no report" in done.stderr
