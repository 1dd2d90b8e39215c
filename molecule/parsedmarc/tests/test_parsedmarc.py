"""Reports come in by mail: the good ones are stored, each bad one ends where it belongs, with a reason."""

from __future__ import annotations

import gzip
import json
import os
import smtplib
import subprocess
import time
from pathlib import Path

import pytest
import report_mails as reports
import yaml

SCENARIO = Path(__file__).resolve().parents[1]
INVENTORY = yaml.safe_load((SCENARIO.parent / "inventory/hosts.yml").read_text())
ADDRESS = INVENTORY["molecule"]["hosts"]["role-parsedmarc"]["ansible_host"]
HOME = "/var/lib/parsedmarc"
#: Told apart from what an earlier run of the tests has left.
RUN = f"{time.time_ns():x}"


def deliver(*mails):
    """Hand mails to Postfix, as a gateway does."""
    with smtplib.SMTP(ADDRESS, timeout=30) as smtp:
        for mail in mails:
            to = "tlsrpt@rua.example.org" if b"tlsrpt@rua" in mail else reports.RECIPIENT
            smtp.sendmail("bounce@reporter.example.com", [to], mail)


def sql(host, query):
    """Rows of a query, each a list of texts, as the user whose database it is."""
    said = host.run("runuser -u parsedmarc -- psql -XAtw -F '\t' -d dmarc -c %s", query)
    assert said.rc == 0, said.stderr
    return [line.split("\t") for line in said.stdout.splitlines()]


def stored(host, *ids):
    """How many of these aggregate reports are stored."""
    names = ", ".join("'" + name.replace("'", "''") + "'" for name in ids)
    return int(sql(host, f"select count(*) from dmarc_aggregate_report where report_id in ({names})")[0][0])


def aside(host):
    """What is set aside, by the operator's command."""
    said = host.run("parsedmarc-intake list --json")
    assert said.rc == 0, said.stderr
    return json.loads(said.stdout) if said.stdout.startswith("[") else []


def marked(case, word):
    """The case's mail with a subject that begins with a word of ours."""
    if b"\r\nSubject: " not in case.mail:
        return f"Subject: {word} {case.name}\r\n".encode() + case.mail
    return case.mail.replace(b"\r\nSubject: ", f"\r\nSubject: {word} {case.name} ".encode(), 1)


def one_aside(host, subject):
    """The note on the mail of that subject."""
    found = [note for note in aside(host) if note["subject"] == subject]
    assert len(found) == 1, found
    return found[0]


def wait(what, seconds=60):
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(1)
    return answer


def settled(host):
    """Whether nothing waits any more. It is looked for in the order of its way, or it could pass by unseen."""
    return host.run("postqueue -p").stdout.strip() == "Mail queue is empty" and (
        host.run(f"find {HOME}/incoming/new {HOME}/Maildir/new {HOME}/Maildir/cur -type f").stdout == ""
    )


def upkeep(host):
    """One run of the upkeep, that which the timer may have begun included."""
    wait(
        lambda: host.run("systemctl show -p ActiveState --value parsedmarc-upkeep").stdout.strip() != "activating", 300
    )
    said = host.run("systemctl start parsedmarc-upkeep.service")
    assert said.rc == 0, host.run("journalctl -u parsedmarc-upkeep -n 30 --no-pager").stdout


def replay(*options):
    """The scenario's play once more, from this role on."""
    environment = os.environ | {"ANSIBLE_CONFIG": str(SCENARIO.parents[1] / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
    options = (
        "--start-at-task",
        "Preflight | Stop before any mail is touched when an argument cannot be right",
        *options,
    )
    command = ["ansible-playbook", "-i", str(SCENARIO.parent / "inventory/hosts.yml"), str(SCENARIO / "converge.yml")]
    done = subprocess.run(
        [*command, *options], env=environment, capture_output=True, text=True, cwd=SCENARIO.parents[1]
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(autouse=True)
def _journal(host):
    """What is read when a test fails."""
    yield
    print(host.run("journalctl -u 'parsedmarc*' -n 40 --no-pager -o cat").stdout)


def test_real_reports_are_stored_and_the_failure_report_is_set_apart(host):
    cases = list(reports.samples(SCENARIO / "files/samples"))
    upkeep(host)  # once a day it forgets old reports, and these are from years ago
    deliver(*(case.mail for case in cases))
    wait(lambda: settled(host))
    upkeep(host)
    folders = [case.folder for case in cases]
    assert folders.count(reports.STORED) == 12
    for report_id in ("949348866075514174", "102675056", "3v98abbp8ya9n3va8yr8oa3ya"):
        assert stored(host, report_id) == 1, report_id
    archived = host.run(f"find {HOME}/Maildir/.Archive/Aggregate -type f -path '*/cur/*'").stdout.splitlines()
    assert len(archived) >= folders.count(reports.STORED)
    ids = {row[0] for row in sql(host, "select report_id from smtp_tls_report")}
    assert "5065427c-23d3-47ca-b6e0-946ea0e8c4be" in ids
    assert {note["kind"] for note in aside(host) if note["from_domain"] == "linkedin.com"} == {"failure-report"}
    assert sql(host, "select count(*) from dmarc_failure_report") == [["0"]]


def test_each_hostile_mail_ends_where_it_belongs_with_a_reason(host):
    wanted = ("xxe", "laughs", "not-xml", "count-negative", "count-word", "address-bad", "years-99", "year-9999",
              "gzip-cut", "zip-in-zip", "tls-address", "tls-no-name", "dmarc-fail", "no-dmarc", "dmarc-forged",
              "two-authors", "spam", "many-parts", "gzip-bomb", "script", "nul")  # fmt: skip
    cases = {case.name: case for case in reports.hostile() if case.name in wanted}
    assert set(cases) == set(wanted)
    deliver(*(marked(case, RUN) for case in cases.values()))
    wait(lambda: settled(host), 120)
    upkeep(host)
    notes = {note["subject"].split()[1]: note for note in aside(host) if note["subject"].startswith(RUN)}
    for name, case in cases.items():
        if case.folder.startswith("set-aside/"):
            assert f"set-aside/{notes[name]['kind']}" == case.folder, name
            assert len(notes[name]["reason"]) > 15, name
        else:
            assert name not in notes, notes[name]
    assert stored(host, "script", "nul") == 2
    in_database = sql(host, f"select kind, reason from intake.set_aside where subject like '{RUN} %'")
    assert sorted(in_database) == sorted([note["kind"], note["reason"]] for note in notes.values())


def test_same_report_id_of_two_reporters_for_two_domains_is_stored_twice(host):
    same = f"same-{RUN}"
    deliver(
        reports.good(same, org="one.example.com", domain="example.org"),
        reports.good(same, org="two.example.net", domain="sfc.example.org"),
    )
    wait(lambda: stored(host, same) == 2)


def test_report_that_parsedmarc_takes_for_a_duplicate_is_stored_after_all(host):
    same = f"twice-{RUN}"
    deliver(reports.good(same, domain="example.org"), reports.good(same, domain="sfc.example.org"))
    wait(lambda: settled(host))
    assert stored(host, same) == 1  # or parsedmarc has been mended, and heal may go
    upkeep(host)
    assert stored(host, same) == 2
    upkeep(host)
    assert stored(host, same) == 2


def test_true_duplicate_is_stored_once(host):
    mail = reports.good(f"again-{RUN}")
    deliver(mail, mail)
    wait(lambda: settled(host))
    upkeep(host)
    assert stored(host, f"again-{RUN}") == 1


def test_nothing_is_lost_while_the_database_stops(host):
    ids = [f"stop-{RUN}-{number}" for number in range(14)]
    deliver(*(reports.good(name) for name in ids[:4]))
    host.run("systemctl stop 'postgresql@*.service'")
    deliver(*(reports.good(name) for name in ids[4:]), reports.message(dmarc="fail", subject=f"while-away-{RUN}"))
    time.sleep(20)  # the first is given up by parsedmarc after eleven seconds
    note = one_aside(host, f"while-away-{RUN}")
    assert note["kind"] == "unauthenticated"
    host.run("systemctl start postgresql.service")
    wait(lambda: settled(host), 90)
    upkeep(host)
    assert stored(host, *ids) == len(ids)
    rows = sql(host, f"select kind from intake.set_aside where mail = '{note['mail']}'")
    assert rows == [["unauthenticated"]]
    assert host.run(f"find {HOME}/Maildir/.Archive/Unsaved {HOME}/unrecorded -name '*.*' -type f").stdout == ""


def test_poison_is_set_apart_and_good_mail_behind_it_is_stored(host):
    nul = reports.good_tls(reports.tls(f"nul-{RUN}", **{"organization-name": "a\0b"}), subject=f"nul-{RUN}")
    deliver(nul, reports.good(f"behind-{RUN}"))
    wait(lambda: stored(host, f"behind-{RUN}") == 1 and settled(host))
    for _ in range(5):
        upkeep(host)
    note = one_aside(host, f"nul-{RUN}")
    assert note["kind"] == "poison"
    assert "NUL" in note["reason"]


def test_operator_lets_in_what_did_not_pass_dmarc(host):
    packed = gzip.compress(reports.aggregate(f"let-in-{RUN}").encode())
    deliver(reports.message(packed, dmarc="none", subject=f"let-in-{RUN}"))
    wait(lambda: settled(host))
    mail = one_aside(host, f"let-in-{RUN}")["mail"]
    shown = host.run("parsedmarc-intake show %s", mail)
    assert "DMARC of the mail itself: none" in shown.stdout
    assert f"report_id let-in-{RUN}" in shown.stdout
    assert host.run("parsedmarc-intake release %s", mail).rc == 0
    wait(lambda: stored(host, f"let-in-{RUN}") == 1)
    assert sql(host, f"select released_at is not null from intake.set_aside where mail = '{mail}'") == [["t"]]
    assert host.run("parsedmarc-intake release %s", mail).rc == 1


def test_release_looks_for_other_faults_than_the_sender(host):
    deliver(reports.message(dmarc="none", subject=f"stays-{RUN}"))
    wait(lambda: settled(host))
    said = host.run("parsedmarc-intake release %s", one_aside(host, f"stays-{RUN}")["mail"])
    assert said.rc == 1
    assert "No part of it is a DMARC or TLS report" in said.stderr
    assert one_aside(host, f"stays-{RUN}")["kind"] == "unauthenticated"


def test_huge_count_can_be_stored_when_the_operator_says_so(host):
    case = next(case for case in reports.hostile() if case.name == "count-huge")
    deliver(marked(case, f"huge-{RUN}"))
    wait(lambda: settled(host))
    note = next(note for note in aside(host) if note["subject"].startswith(f"huge-{RUN}"))
    assert host.run("parsedmarc-intake release %s", note["mail"]).rc == 0
    wait(lambda: stored(host, "count-huge") == 1)
    rows = sql(host, "select max(message_count) from dmarc_aggregate_record")
    assert rows == [["99999999999"]]


def test_domain_named_by_the_operator_needs_no_dmarc_pass(host):
    packed = gzip.compress(reports.aggregate(f"lax-{RUN}").encode())
    deliver(reports.message(packed, dmarc="fail", author="noreply@lax.example.net"))
    wait(lambda: stored(host, f"lax-{RUN}") == 1)


def test_stuck_mail_is_tried_alone_and_old_mail_goes(host):
    host.run("systemctl stop parsedmarc.service")
    deliver(reports.good(f"stuck-{RUN}"), reports.message(dmarc="fail", subject=f"old-{RUN}"))
    wait(lambda: host.run(f"ls {HOME}/Maildir/new").stdout.strip())
    note = one_aside(host, f"old-{RUN}")
    host.run(f"sh -c 'cd {HOME}/Maildir/new && for mail in *; do mv $mail ../cur/$mail:2,S; done'")
    host.run("systemctl stop parsedmarc-upkeep.timer")
    host.run(f"cp -p {HOME}/state/upkeep.json /root/upkeep.json")
    # as if it were 31 days later, for the files alone: the database has its own clock
    ahead = (
        "import sys, time; sys.path.insert(0, '/usr/local/lib/parsedmarc-intake')\n"
        "from pathlib import Path\n"
        "from parsedmarc_intake import settings, store, upkeep\n"
        "s = settings.load(Path('/etc/parsedmarc-intake.conf'))\n"
        "sys.exit(upkeep.Upkeep(s, store.Store(s.dsn), time.time() + 31 * 86400).run())\n"
    )
    said = host.run("cd / && runuser -u parsedmarc -- /usr/bin/python3 -B -c %s", ahead)
    assert said.rc == 0, said.stderr
    assert stored(host, f"stuck-{RUN}") == 1
    assert host.run(f"ls {HOME}/Maildir/cur").stdout == ""
    assert host.run(f"ls {HOME}/set-aside/unauthenticated").stdout == ""
    assert [n for n in aside(host) if n["mail"] == note["mail"]] == []
    # back to today
    host.run(f"cp -p /root/upkeep.json {HOME}/state/upkeep.json")
    host.run("systemctl start parsedmarc.service parsedmarc-upkeep.timer")


def test_health_is_counted_and_its_reader_reads_nothing_else(host):
    upkeep(host)
    row = sql(
        host,
        "select waiting, oldest_waiting_seconds, last_stored > now() - interval '1 hour', stored_last_day > 10,"
        " counted_at > now() - interval '2 minutes' from intake.health",
    )
    assert row == [["0", "0", "t", "t", "t"]]
    assert sql(host, "select has_table_privilege('board', 'intake.health', 'select'),"
                     " has_table_privilege('board', 'intake.set_aside', 'select')") == [["t", "f"]]  # fmt: skip
    metrics = host.file(f"{HOME}/metrics/parsedmarc.prom")
    assert metrics.mode & 0o004
    assert 'dmarc_intake_messages{folder="waiting"} 0' in metrics.content_string
    assert "dmarc_intake_database_up 1" in metrics.content_string


@pytest.mark.parametrize("unit", ["parsedmarc", "parsedmarc-intake", "parsedmarc-upkeep"])
def test_programs_are_confined(host, unit):
    said = host.run("systemd-analyze security --no-pager %s.service", unit).stdout
    assert float(said.split("Overall exposure level for")[1].split(":")[1].split()[0]) <= 3.0, said
    assert host.run("systemctl show -p NRestarts --value %s.service", unit).stdout.strip() in ("0", "")


def test_changed_tables_stop_the_run_with_a_plain_message(host):
    sql(host, "alter table dmarc_aggregate_report add column novelty text")
    try:
        code, said = replay()
        assert code != 0
        assert "are not those that this role was written for" in said
        assert "+ column dmarc_aggregate_report.novelty text" in said
    finally:
        sql(host, "alter table dmarc_aggregate_report drop column novelty")


def test_wrong_arguments_stop_the_run(host):
    code, said = replay("-e", '{"parsedmarc_memory_mb": 200, "parsedmarc_accept_unauthenticated": ["Example Com"]}')
    assert code != 0
    assert "parsedmarc_memory_mb is 200" in said
    assert "these are no domains in lower case: Example Com" in said


def test_failure_report_is_stored_where_that_is_switched_on(host):
    code, said = replay("-e", '{"parsedmarc_failure_reports": true}')
    assert code == 0, said
    try:
        deliver(reports.FAILURE.encode())
        wait(lambda: sql(host, "select count(*) from dmarc_failure_report") == [["1"]])
        assert sql(host, "select reported_domain from dmarc_failure_report") == [["example.org"]]
    finally:
        sql(host, "delete from dmarc_failure_report")
        assert replay()[0] == 0


def test_check_mode_on_a_finished_host_changes_nothing(host):
    code, said = replay("--check", "--diff")
    assert code == 0, said
    assert " changed=0 " in said, said
