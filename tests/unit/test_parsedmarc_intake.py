"""One mail from Postfix's mailbox to parsedmarc's or aside: nothing is lost on the way, nothing stops it."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parsedmarc_intake import confined, examine, operator, screen, upkeep
from parsedmarc_intake.examine import Verdict, clean
from parsedmarc_intake.places import Places, mails, note_of
from parsedmarc_intake.settings import Settings, SettingsError, load
from parsedmarc_intake.store import Store

NOW = int(time.time())
XML = (
    f"<feedback><report_metadata><org_name>O</org_name><report_id>r1</report_id><date_range><begin>{NOW - 9}</begin>"
    f"<end>{NOW}</end></date_range></report_metadata><policy_published><domain>example.org</domain></policy_published>"
    "</feedback>"
)
FEEDBACK = "Feedback-Type: auth-failure\n"


class NoDatabase(Store):
    """The database while it is away."""

    def __init__(self) -> None:
        super().__init__("")

    def connection(self):
        return None


@pytest.fixture
def estate(tmp_path):
    places = Places(tmp_path)
    places.make()
    return Settings(home=tmp_path, authserv_id="mx.example.org")


def mail(*parts: tuple[str, bytes], dmarc: str = "pass", subject: str = "Report") -> bytes:
    message = EmailMessage()
    message["Authentication-Results"] = f"mx.example.org; dmarc={dmarc}"
    message["From"] = "noreply@example.com"
    message["Subject"] = subject
    message.set_content("words\n")
    for kind, content in parts:
        main, _, sub = kind.partition("/")
        message.add_attachment(content, maintype=main, subtype=sub, filename="r")
    return message.as_bytes()


REPORT = ("application/gzip", gzip.compress(XML.encode()))


def verdict(estate: Settings, content: bytes, **options) -> Verdict:
    path = estate.home / "incoming/new/1.mail"
    path.write_bytes(content)
    return confined.look_at(path, estate, **options)


def test_report_is_let_in_and_known(estate):
    found = verdict(estate, mail(REPORT))
    assert found.kind is None
    assert found.facts.key == ("r1", "example.org", NOW - 9, NOW)
    assert found.from_domain == "example.com"


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/zip", "text/xml", "image/png"])
def test_type_of_the_part_does_not_matter(estate, kind):
    assert verdict(estate, mail((kind, REPORT[1]))).kind is None


def test_bomb_behind_a_good_report_is_found(estate):
    bomb = ("application/gzip", gzip.compress(b" " * (60 << 20), 1))
    assert verdict(estate, mail(REPORT, bomb)).kind == "too-large"
    assert verdict(estate, mail(bomb, REPORT)).kind == "too-large"


def test_many_parts_share_the_limit(estate):
    half = ("application/gzip", gzip.compress(b"x" * (30 << 20), 1))
    assert verdict(estate, mail(half, half)).kind == "too-large"


@pytest.mark.parametrize("allowed", [False, True])
def test_failure_report_only_by_switch(estate, allowed):
    message = mail(("application/octet-stream", b"-")).replace(b"application/octet-stream", b"message/feedback-report")
    found = verdict(Settings(home=estate.home, authserv_id="mx.example.org", failure_reports=allowed), message)
    assert found.kind == (None if allowed else "failure-report")


def test_large_mail_is_not_read_whole(estate):
    assert verdict(estate, mail(("image/png", b"\0" * (16 << 20)))).kind == "too-large"


def test_looking_takes_no_more_memory_than_is_allowed(estate, monkeypatch):
    monkeypatch.setattr(examine, "examine", lambda *_, **__: None)
    monkeypatch.setattr(confined, "examine", lambda *_, **__: bytearray(2 << 30))
    assert verdict(estate, mail(REPORT)).kind == "unexamined"


def test_looking_takes_no_more_time_than_is_allowed(estate, monkeypatch):
    monkeypatch.setattr(confined, "SECONDS", 0.2)
    monkeypatch.setattr(confined, "examine", lambda *_, **__: time.sleep(60))
    began = time.monotonic()
    assert verdict(estate, mail(REPORT)).kind == "unexamined"
    assert time.monotonic() - began < 10


def test_fault_of_our_own_sets_the_mail_aside(estate, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("our fault")

    monkeypatch.setattr(confined, "examine", broken)
    found = verdict(estate, mail(REPORT))
    assert (found.kind, "our fault" in found.reason) == ("unexamined", True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_any_mail_gets_a_verdict(estate, content):
    header = b"Authentication-Results: mx.example.org; dmarc=pass\nFrom: a@example.com\n"
    path = estate.home / "incoming/new/any"
    for text in (content, header + content, header + b"Content-Type: multipart/mixed; boundary=b\n\n--b\n" + content):
        path.write_bytes(text)
        assert examine.examine(path, estate).kind in examine.KINDS


def test_screening_moves_every_mail_and_waits_for_no_database(estate):
    places = Places(estate.home)
    new = places.incoming / "new"
    (new / "1.good").write_bytes(mail(REPORT))
    (new / "2.bad").write_bytes(mail(dmarc="fail", subject="=?utf-8?q?Gru=C3=9F=00?="))
    (new / "3.good").write_bytes(mail(REPORT))
    assert screen.Screening(estate, NoDatabase()).once() == 3
    assert mails([new]) == []
    assert sorted(path.name for path in mails([places.mailbox / "new"])) == ["1.good", "3.good"]
    note = note_of(places.set_aside / "unauthenticated/2.bad")
    assert note["kind"] == "unauthenticated"
    assert "fail" in note["reason"]
    assert "\0" not in note["subject"]
    assert [path.name for path in places.unrecorded.iterdir()] == ["2.bad.json"]
    assert NoDatabase().record(places) == 0
    assert len(list(places.unrecorded.iterdir())) == 1


def test_mail_that_cannot_be_moved_holds_up_no_other(estate, monkeypatch):
    places = Places(estate.home)
    for name in ("1.bad", "2.good"):
        (places.incoming / "new" / name).write_bytes(mail(REPORT))
    let_in = Places.let_in

    def full_disk(self, path):
        if path.name == "1.bad":
            raise OSError(28, "No space left on device")
        return let_in(self, path)

    monkeypatch.setattr(Places, "let_in", full_disk)
    screening = screen.Screening(estate, NoDatabase())
    assert screening.once() == 1
    assert screening.once() == 0
    assert [path.name for path in mails([places.incoming / "new"])] == ["1.bad"]


def test_mail_whose_note_is_lost_is_still_listed(estate):
    places = Places(estate.home)
    lost = places.set_aside / "poison/1.lost"
    lost.write_bytes(mail(REPORT))
    assert [note["kind"] for _, note in places.aside()] == ["poison"]
    assert "1.lost" in operator.listing(estate, None, False)
    assert json.loads(operator.listing(estate, "hostile", True)) == []


def test_release_lets_in_whom_only_the_sender_kept_out(estate):
    places = Places(estate.home)
    for name, content in (("1.a", mail(REPORT, dmarc="fail")), ("2.b", mail(dmarc="fail"))):
        (places.incoming / "new" / name).write_bytes(content)
    screen.Screening(estate, NoDatabase()).once()
    assert "1.a" in operator.release(estate, ["1."], anyway=False)[0]
    with pytest.raises(operator.OperatorError, match="besides its sender"):
        operator.release(estate, ["2.b"], anyway=False)
    operator.release(estate, ["2.b"], anyway=True)
    assert sorted(path.name for path in mails([places.mailbox / "new"])) == ["1.a", "2.b"]
    with pytest.raises(operator.OperatorError, match="0 mails"):
        operator.find(estate, "1.a")


def test_failure_report_is_not_released_into_an_archive(estate):
    (Places(estate.home).set_aside / "failure-report/1.f").write_bytes(mail())
    with pytest.raises(operator.OperatorError, match="failure report"):
        operator.release(estate, ["1.f"], anyway=True)


def test_shown_mail_cannot_reach_into_the_terminal(estate):
    path = Places(estate.home).set_aside / "hostile/1.x"
    path.write_bytes(mail(REPORT, subject="evil").replace(b"evil", b"\x1b]0;evil\x07"))
    shown = operator.show(estate, "1.x")
    assert "\x1b" not in shown
    assert "report_id r1" in shown


@given(st.text())
def test_cleaned_text_has_no_control_characters(text):
    assert all(character.isprintable() for character in clean(text))
    clean(text).encode("utf-8")


class Steps(upkeep.Upkeep):
    """The upkeep with a parsedmarc that says what the test wants."""

    answers: list[tuple[bool, str]]

    def alone(self, mail, verdict):
        return self.answers.pop(0)

    def need_database(self):
        if self.answers == ["away"]:
            raise upkeep.DatabaseAway


def unsaved(estate: Settings, *answers) -> tuple[Steps, Path]:
    folder = Places(estate.home).archive / "Unsaved/cur"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "1.m:2,S"
    if not path.exists():
        path.write_bytes(mail(REPORT))
    steps = Steps(estate, NoDatabase())
    steps.answers = list(answers)
    return steps, path


def test_unsaved_mail_is_tried_five_times_and_then_set_apart(estate):
    for round_ in range(5):
        steps, path = unsaved(estate, (False, "integer out of range"))
        assert path.exists(), round_
        steps.retry_unsaved()
        upkeep.write(steps.state_file, json.dumps(steps.state))
    assert not path.exists()
    note = note_of(Places(estate.home).set_aside / "poison/1.m")
    assert note["reason"] == "integer out of range"
    assert steps.state["tries"] == {}


def test_absent_database_is_no_mails_fault(estate):
    steps, path = unsaved(estate, "away")
    with pytest.raises(upkeep.DatabaseAway):
        steps.retry_unsaved()
    assert path.exists()
    assert steps.state["tries"] == {"1.m": 0}


def test_unsaved_mail_that_is_stored_goes_to_the_archive(estate):
    steps, path = unsaved(estate, (True, ""))
    steps.retry_unsaved()
    assert not path.exists()
    assert (Places(estate.home).archive / "Aggregate/cur/1.m:2,S").exists()


def test_one_failing_step_stops_no_other(estate, monkeypatch):
    def broken(self):
        raise OSError("a step's own trouble")

    monkeypatch.setattr(upkeep.Upkeep, "retry_unsaved", broken)
    target = estate.home / "metrics/parsedmarc.prom"
    steps = upkeep.Upkeep(Settings(home=estate.home, metrics_file=target), NoDatabase())
    assert steps.run() == 1
    assert 'dmarc_intake_messages{folder="waiting"} 0' in target.read_text()
    assert "dmarc_intake_database_up 0" in target.read_text()


def test_parsedmarcs_own_words_are_found():
    said = (
        "  WARNING:cli.py:1:Aggregate report x from y has already been saved\n"
        "   ERROR:cli.py:2420:PostgreSQL Error: integer out of range\n"
    )
    assert upkeep._reason(said, 1).endswith("PostgreSQL Error: integer out of range")
    assert upkeep._complaints(said.splitlines()[0]) == []
    assert "status -9" in upkeep._reason("", -9)


def test_settings_are_read_and_wrong_ones_named(tmp_path):
    file = tmp_path / "intake.conf"
    file.write_text("[intake]\nauthserv_id = mx\naccept_unauthenticated = A.example b.example\nmax_records = 7\n")
    read = load(file)
    assert (read.authserv_id, read.max_records) == ("mx", 7)
    assert read.accept_unauthenticated == {"a.example", "b.example"}
    for text in (
        "[intake]\nmax_mail = many\n",
        "[intake]\nfailure_reports = perhaps\n",
        "[intake]\nnovel = 1\n",
        "[x]\n",
    ):
        file.write_text(text)
        with pytest.raises(SettingsError, match=r"intake\.conf"):
            load(file)


def test_program_answers_without_a_database(tmp_path):
    Places(tmp_path).make()
    file = tmp_path / "intake.conf"
    file.write_text(f"[intake]\nhome = {tmp_path}\n")
    environment = os.environ | {"PYTHONPATH": str(Path(examine.__file__).parents[1])}
    # root would become the user of the mailbox, whom a test machine does not have
    code = "import parsedmarc_intake.__main__ as program; program.become = lambda user: None; program.main()"
    command = [sys.executable, "-c", code, "--config", str(file), "list"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "Nothing is set aside.\n", done.stderr


def test_reason_tells_neither_path_nor_subject():
    said = (
        'WARNING:cli.py:3247:Failed to parse /var/lib/parsedmarc/x:2,S - Message with subject "a" is not a valid '
        "DMARC report: Unexpected error: '999.1.2.3' does not appear to be an IPv4 or IPv6 address\n"
    )
    assert upkeep._reason(said, 0) == (
        "parsedmarc says: Unexpected error: '999.1.2.3' does not appear to be an IPv4 or IPv6 address"
    )
