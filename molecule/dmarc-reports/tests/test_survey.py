"""What became of the reports: Postfix's journal, what comes back, domains that are left alone, the monthly text."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from world import GATEWAYS, World, days_ago, event, today

BOUNCES = "/var/lib/dmarc_reports/bounces"
FIRST_DAY_OF_SURVEY = 3


@pytest.fixture
def world(quiet):
    quiet.empty()
    quiet.sql("DELETE FROM dmarc_reports.survey_state WHERE name LIKE 'survey%'")
    quiet.ask("rm -rf /var/lib/dmarc_reports/survey")
    return quiet


def report_to(world: World, *domains: str, ago: int = 1) -> None:
    """Make and send a report to dmarc@ each domain."""
    world.hand_in([event(days_ago(ago), domain, f"p=none; rua=mailto:dmarc@{domain}") for domain in domains])
    world.complete(today(), *GATEWAYS)
    world.reports("close")
    assert f"{len(domains)} mails handed over" in world.reports("send")


def fates(world: World) -> dict[str, tuple[str, str]]:
    """Domain → state and fate."""
    rows = world.deliveries("recipient_domain, state, fate")
    return {row["recipient_domain"]: (row["state"], row["fate"]) for row in rows}


def settle_until(world: World, condition, tries: int = 15) -> dict[str, tuple[str, str]]:
    """Follow the journal until it tells enough."""
    for _ in range(tries):
        world.reports("settle")
        if condition(fates(world)):
            break
        world.ask("sleep 1")
    return fates(world)


def settled(world: World, ago: int, domain: str, fate: str, reply: str) -> None:
    """A report of the past, with its fate."""
    day, after = days_ago(ago), days_ago(ago - 1)
    world.sql(
        f"INSERT INTO dmarc_reports.day (day, reason, events, reports) VALUES ('{day}', 'complete', 1, 1); "
        "INSERT INTO dmarc_reports.report (report_id, day, policy_domain, form, messages, records, file_name, subject, "
        f"rua) VALUES ('r{ago}', '{day}', '{domain}', 'rfc9990', 1, 1, '', '', ''); "
        "INSERT INTO dmarc_reports.delivery (report_id, day, policy_domain, recipient, recipient_domain, state, fate, "
        f"reply, handed_at, settled_at, envelope_from) VALUES ('r{ago}', '{day}', '{domain}', 'dmarc@{domain}', "
        f"'{domain}', 'settled', '{fate}', '{reply}', '{after}', '{after}', 'r{ago}')"
    )


def bounce(to: str, action: str = "failed", status: str = "5.1.1") -> str:
    """A delivery status notification of an outside system."""
    lines = [
        "Return-Path: <>", f"Delivered-To: {to}", "From: MAILER-DAEMON@mx.example.com", f"To: {to}",
        'Content-Type: multipart/report; report-type=delivery-status; boundary="b"', "",
        "--b", "Content-Type: message/delivery-status", "", "Reporting-MTA: dns; mx.example.com", "",
        "Final-Recipient: rfc822; dmarc@example.com", f"Action: {action}", f"Status: {status}",
        f"Diagnostic-Code: smtp; 550 {status} dmarc@example.com: User unknown", "", "--b--", "",
    ]  # fmt: skip
    return "\n".join(lines)


def comes_back(world: World, name: str, content: str) -> None:
    """A mail is delivered into the Maildir."""
    world.ask(f"install -d -o dmarc_reports -g dmarc_reports -m 0700 {BOUNCES}/new")
    world.ask(f"install -o dmarc_reports -g dmarc_reports -m 0600 /dev/stdin {BOUNCES}/new/{name}", content)


def test_fates_are_read_from_postfix_journal(world):
    world.answer(
        **{
            "full.example": {"rcpt": "552 5.2.2 <dmarc@full.example>: Mailbox full"},
            "policy.example": {"data": "550 5.7.1 Refused by policy"},
            "busy.example": {"rcpt": "451 4.3.0 Try again later"},
        }
    )
    report_to(world, "example.com", "full.example", "policy.example", "busy.example")
    expected = {
        "example.com": ("settled", "taken"), "full.example": ("settled", "mailbox_full"),
        "policy.example": ("settled", "spam_policy"), "busy.example": ("handed", "deferred"),
    }  # fmt: skip
    assert settle_until(world, lambda found: found == expected) == expected
    assert world.one("SELECT dsn FROM dmarc_reports.delivery WHERE recipient_domain = 'full.example'") == "5.2.2"
    world.answer()
    world.ask("postqueue -f")
    expected["busy.example"] = ("settled", "taken")
    assert settle_until(world, lambda found: found == expected) == expected
    world.reports("settle")
    assert fates(world) == expected, "nothing is read twice"


def test_fate_is_found_though_the_hand_over_was_cut_off_and_the_journal_is_another_one(world):
    world.hand_in([event(days_ago(1), "example.com", "p=none; rua=mailto:dmarc@example.com")])
    world.complete(today(), *GATEWAYS)
    world.reports("close")
    world.reports("send")
    world.wait_for_mails(1)
    world.sql(
        "UPDATE dmarc_reports.delivery SET state = 'sending', queue_id = NULL, handed_at = NULL; "
        "INSERT INTO dmarc_reports.survey_state (name, value) VALUES ('journal', 'of another host') "
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
    )
    taken = {"example.com": ("settled", "taken")}
    assert settle_until(world, lambda found: found == taken) == taken


def test_later_bounce_changes_the_fate_and_a_forged_one_does_not(world):
    report_to(world, "example.com")
    taken = {"example.com": ("settled", "taken")}
    assert settle_until(world, lambda found: found == taken) == taken
    address = world.one("SELECT envelope_from FROM dmarc_reports.delivery")
    local, _, domain = address.partition("@")
    comes_back(world, "1.forged", bounce(f"{local[:-1]}{'a' if local[-1] != 'a' else 'b'}@{domain}"))
    comes_back(world, "2.delayed", bounce(address, "delayed", "4.4.1"))
    comes_back(world, "3.damaged", "Content-Type: multipart/report; report-type=delivery-status\n\n\x01\x02")
    comes_back(world, "4.person", "From: someone@example.com\nTo: dmarc-reports@rua.example.org\n\nPlease stop.\n")
    world.reports("settle")
    assert fates(world) == taken
    comes_back(world, "5.failed", bounce(address))
    world.reports("settle")
    assert fates(world) == {"example.com": ("settled", "bounced_later")}
    assert world.one("SELECT reply FROM dmarc_reports.delivery").startswith("no_mailbox: 550 5.1.1")
    comes_back(world, "5.failed", bounce(address))
    world.reports("settle")
    kinds = {row["file"]: row["kind"] for row in world.sql("SELECT file, kind FROM dmarc_reports.returned")}
    assert kinds == {
        "1.forged": "set_aside", "2.delayed": "delayed", "3.damaged": "set_aside", "4.person": "answer",
        "5.failed": "bounced_later",
    }  # fmt: skip
    left = world.ask(f"cd {BOUNCES} && find . -type f | sort").split()
    assert left == ["./answers/4.person", "./set-aside/1.forged", "./set-aside/3.damaged"]
    status = world.reports("status")
    assert f"2 returned mails set aside in {BOUNCES}/set-aside" in status
    assert f"1 answers by people in {BOUNCES}/answers" in status


def test_domain_that_never_takes_reports_is_paused_and_tried_again(world):
    for ago in range(6, 1, -1):
        settled(world, ago, "never.example", "refused", "550 No")
    world.reports("settle")
    pause = (
        "SELECT recipient_domain, weeks, failures, until > now() + interval '6 days' AS long FROM dmarc_reports.pause"
    )
    assert world.sql(pause) == [{"recipient_domain": "never.example", "weeks": "1", "failures": "5", "long": "t"}]
    world.hand_in([event(days_ago(1), "never.example", "p=none; rua=mailto:dmarc@never.example")])
    world.complete(today(), *GATEWAYS)
    world.reports("close")
    assert "0 mails handed over" in world.reports("send")
    assert world.one(f"SELECT fate FROM dmarc_reports.delivery WHERE day = '{days_ago(1)}'") == "paused"
    assert world.one("SELECT count(*) FROM dmarc_reports.survey_pause") == "1"

    world.sql(
        "UPDATE dmarc_reports.pause SET since = now() - interval '8 days', until = now() - interval '1 hour'; "
        f"UPDATE dmarc_reports.delivery SET state = 'waiting', fate = NULL, due_at = now() WHERE day = '{days_ago(1)}'"
    )
    world.reports("send")
    world.wait_for_mails(1)
    settle_until(world, lambda found: world.one("SELECT count(*) FROM dmarc_reports.pause") == "0")
    assert world.one("SELECT count(*) FROM dmarc_reports.pause") == "0", "one report that is taken ends it"


def test_dashboards_see_no_addresses(world):
    settled(world, 1, "full.example", "mailbox_full", "552 5.2.2 <dmarc@full.example>: Mailbox full")
    for view in ("daily", "domain", "pause", "day", "gateway", "returned"):
        world.sql(f"SET ROLE grafana; SELECT * FROM dmarc_reports.survey_{view}")
    (row,) = world.sql("SET ROLE grafana; SELECT * FROM dmarc_reports.survey_domain")
    assert (row["recipient_domain"], row["fate"], row["deliveries"]) == ("full.example", "mailbox_full", "1")
    assert "Mailbox full" in row["last_reply"]
    assert "dmarc@" not in row["last_reply"]
    for table in ("delivery", "report", "event", "pause", "returned", "survey_state"):
        done = world.run(f"psql -X -U postgres -d dmarc -c 'SET ROLE grafana' -c 'SELECT * FROM dmarc_reports.{table}'")
        assert "permission denied" in done.stderr, table


def test_month_is_written_and_mailed_once(world):
    last = today().replace(day=1) - timedelta(days=1)
    world.sql(f"INSERT INTO dmarc_reports.day (day, reason, events, reports) VALUES ('{last}', 'complete', 0, 0)")
    world.configure(survey_to="postmaster@example.org")
    for _ in range(2):
        world.reports("settle")
    path = f"/var/lib/dmarc_reports/survey/{last:%Y-%m}.txt"
    if today().day < FIRST_DAY_OF_SURVEY:
        assert world.run(f"test -e {path}").returncode
        return
    (mail,) = world.wait_for_mails(1)
    text = world.ask(f"cat {path}")
    assert re.match(rf"DMARC reports sent about {last:%B %Y}\n=+\n", text)
    assert mail.message.get_content().replace("\r\n", "\n") == text
    assert world.reports(f"survey {last:%Y-%m}") == text
    assert world.run(f"dmarc-reports survey {last:%Y}").returncode == 2
