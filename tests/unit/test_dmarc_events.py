"""The hand-over of DMARC events: which files go when, what is set aside, and that nothing is lost or doubled.

The receiver here keeps what it takes by id, as the database does; the real one is in molecule/dmarc-events.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import tracemalloc
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dmarc_events as program
import estate_arc_dmarc as writer

NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC).timestamp()


class Killed(BaseException):
    """The program ends here, as by SIGKILL."""


class Memory:
    """Takes events as the database does: a batch whole or not at all, an event once."""

    def __init__(self) -> None:
        self.events: dict[str, str] = {}
        self.until: list[datetime] = []
        self.batches: list[list[str]] = []
        self.before: Callable[[list[str]], None] = lambda lines: None
        self.after: Callable[[list[str]], None] = lambda lines: None

    def take(self, lines: list[str]) -> int:
        self.before(lines)
        fresh = {json.loads(line)["id"]: line for line in lines}
        new = len(fresh.keys() - self.events.keys())
        self.events = fresh | self.events
        self.batches.append(lines)
        self.after(lines)
        return new

    def complete(self, until: datetime) -> None:
        self.until.append(until)


class Gateway:
    """A spool, the program's configuration, and a receiver."""

    def __init__(self, root: Path) -> None:
        self.spool, self.aside, self.metrics = root / "spool", root / "aside", root / "events.prom"
        self.spool.mkdir()
        self.aside.mkdir()
        self.receiver = Memory()
        self.config = program.Config(
            host="analytics.example.org", port=5432, database="dmarc", user="dmarc_events", password_file="password",
            ca_file="ca.pem", gateway="mail-gw1.example.org", directory=str(self.spool), set_aside=str(self.aside),
            metrics_file=str(self.metrics), max_octets=1_000_000, warn_hours=6, warn_share=0.5,
        )  # fmt: skip

    def write(self, count: int, hour: str = "20261125T11", worker: str = "mail-gw1.0") -> list[str]:
        """Events of the milter's own writer; gives their ids."""
        moment = datetime.strptime(hour, "%Y%m%dT%H").replace(tzinfo=UTC).timestamp() + 5
        spool = writer.EventSpool(str(self.spool), worker, 1 << 30, clock=lambda: moment)
        ids = [str(uuid.uuid4()) for _ in range(count)]
        assert all(spool.write({"version": 1, "id": one, "time": int(moment)}) for one in ids)
        return ids

    def raw(self, content: bytes, name: str = "20261125T11.mail-gw1.9.jsonl") -> Path:
        path = self.spool / name
        path.write_bytes(content)
        return path

    def run(self, now: float = NOON + 61) -> int:
        def connect(config: program.Config) -> AbstractContextManager[Memory]:
            return nullcontext(self.receiver)

        return program.run(self.config, connect, lambda: now)

    def run_without_database(self, now: float = NOON + 61) -> int:
        def connect(config: program.Config) -> AbstractContextManager[Memory]:
            raise program.AwayError("connection refused")

        return program.run(self.config, connect, lambda: now)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.spool.iterdir())

    def set_aside(self) -> list[dict[str, str]]:
        return [json.loads(line) for path in sorted(self.aside.iterdir()) for line in path.read_text().splitlines()]

    def metric(self, name: str) -> float:
        return program.known_metrics(self.metrics)[f"dmarc_events_{name}"]


def line(**fields: object) -> bytes:
    return json.dumps({"version": 1, "id": str(uuid.uuid4()), "time": int(NOON - 60)} | fields).encode() + b"\n"


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


def test_events_of_an_hour_that_is_over_go_in_order_and_their_files_with_them(gateway):
    older = gateway.write(3, "20261125T09")
    newer = gateway.write(4)
    assert gateway.run() == 0
    sent = [json.loads(one)["id"] for batch in gateway.receiver.batches for one in batch]
    assert sent == older + newer
    assert gateway.files() == []
    assert (gateway.metric("sent_total"), gateway.metric("new_total"), gateway.metric("backlog_files")) == (7, 7, 0)
    assert gateway.run() == 0
    assert len(gateway.receiver.batches) == 2, "a second run has nothing to send"
    assert gateway.metric("sent_total") == 7


@pytest.mark.parametrize(("second", "sent"), [(-1, 0), (0, 0), (59, 0), (60, 2)])
def test_worker_may_write_its_last_event_a_minute_after_the_hour(gateway, second, sent):
    gateway.write(2)
    assert gateway.run(NOON + second) == 0
    assert len(gateway.receiver.events) == sent
    assert len(gateway.files()) == (0 if sent else 1)


@pytest.mark.parametrize(
    ("now", "until"),
    [
        (NOON + 61, "2026-11-25T11:50:00+00:00"),
        (NOON + 59, "2026-11-25T10:50:00+00:00"),
        (NOON + 3599, "2026-11-25T11:50:00+00:00"),
    ],
)
def test_hours_without_a_file_are_complete_too(gateway, now, until):
    assert gateway.run(now) == 0
    assert [one.isoformat() for one in gateway.receiver.until] == [until]


def test_hour_that_had_to_stay_holds_back_what_is_called_complete(gateway):
    gateway.write(2)
    (gateway.spool / "20261125T08.mail-gw1.0.jsonl").symlink_to("/etc/passwd")
    (gateway.spool / "20261125T08.mail-gw1.1.jsonl").write_bytes(line())
    gateway.receiver.before = lambda lines: (_ for _ in ()).throw(OSError("disk error")) if len(lines) == 1 else None
    assert gateway.run() == program.EX_TEMPFAIL
    assert len(gateway.receiver.events) == 2, "the others go on"
    assert [one.isoformat() for one in gateway.receiver.until] == ["2026-11-25T07:50:00+00:00"]


def test_link_is_never_followed(gateway, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(line())
    (gateway.spool / "20261125T08.mail-gw1.0.jsonl").symlink_to(other)
    assert gateway.run() == 0
    assert gateway.receiver.events == {}
    assert other.exists()


def test_files_of_a_clock_that_was_ahead_do_not_wait_for_years(gateway):
    ids = gateway.write(2, "20360101T00")
    assert gateway.run() == 0
    assert list(gateway.receiver.events) == ids
    gateway.write(1, "20261125T12")
    assert gateway.run() == 0
    assert gateway.files() == ["20261125T12.mail-gw1.0.jsonl"], "the running hour"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"version":1,"id":"12', "not JSON"),
        (b"\xff\xfe" + line(), "not UTF-8"),
        (line(helo="x").replace(b'"x"', b'"\0"'), "NUL"),
        (line(helo="x" * program.MAX_LINE), "longer than"),
        (b"x" * 3_500_000 + b"\n", "longer than"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"[1]\n", "not a JSON object"),
        (b'{"id": 7, "time": 7}\n', "no id"),
        (line(id="seven"), "no id"),
        (line(time="noon"), "no time"),
        (line(time=True), "no time"),
        (line(time=-1), "no time"),
        (line(time=10**12), "no time"),
    ],
)
def test_line_that_is_no_event_is_set_aside_with_its_reason_and_the_rest_goes_on(gateway, content, reason):
    gateway.raw(line() + content + (b"" if content.endswith(b"\n") else b"\n") + b"\n" + line())
    assert gateway.run() == 0
    assert len(gateway.receiver.events) == 2
    assert [reason in one["reason"] for one in gateway.set_aside()] == [True]
    assert gateway.files() == []
    assert gateway.metric("set_aside_total") == 1


def test_event_without_an_end_of_line_is_taken_where_it_is_whole(gateway):
    gateway.raw(line() + line().rstrip(b"\n"))
    assert gateway.run() == 0
    assert len(gateway.receiver.events) == 2
    assert gateway.set_aside() == []


def test_line_that_the_database_refuses_is_found_among_thousands(gateway):
    gateway.write(2500)
    gateway.raw(line() + line(helo="poison") + line() + line(helo="poison"))

    def refuse(lines: list[str]) -> None:
        if any("poison" in one for one in lines):
            raise program.PoisonError("cannot be stored")

    gateway.receiver.before = refuse
    assert gateway.run() == 0
    assert len(gateway.receiver.events) == 2502
    assert [one["reason"] for one in gateway.set_aside()] == ["the database refuses it: cannot be stored"] * 2


def test_what_is_set_aside_is_bounded_and_the_newest_is_kept(gateway, monkeypatch):
    monkeypatch.setattr(program, "SET_ASIDE_OCTETS", 3000)
    for hour in range(5):
        gateway.raw(b"junk" * 30 + b"\n" + b"junk\n" * 100, f"20261125T0{hour}.mail-gw1.0.jsonl")
        assert gateway.run() == 0
    assert sum(path.stat().st_size for path in gateway.aside.iterdir()) <= 2 * 3000
    assert "20261125T04.mail-gw1.0.jsonl" in {path.name for path in gateway.aside.iterdir()}
    assert gateway.metric("set_aside_total") == 505, "all are counted"


def test_file_that_cannot_be_set_aside_stays(gateway):
    gateway.raw(line() + b"junk\n")
    gateway.aside.rmdir()
    assert gateway.run() == program.EX_TEMPFAIL
    assert len(gateway.files()) == 1
    gateway.aside.mkdir()
    assert gateway.run() == 0
    assert (len(gateway.receiver.events), gateway.files()) == (1, [])


def test_file_that_grows_while_it_is_read_loses_nothing(gateway):
    gateway.write(3)
    path = gateway.spool / gateway.files()[0]
    late = [line(), line()]
    writer_of_a_stopped_worker = os.open(path, os.O_WRONLY | os.O_APPEND)

    def grow(lines: list[str]) -> None:
        if late:
            os.write(writer_of_a_stopped_worker, late.pop())

    gateway.receiver.after = grow
    assert gateway.run() == 0
    os.close(writer_of_a_stopped_worker)
    assert late == []
    assert len(gateway.receiver.events) == 5
    assert gateway.files() == []


def test_line_written_between_the_last_look_and_the_deletion_is_not_lost(gateway, monkeypatch):
    gateway.write(1)
    path = gateway.spool / gateway.files()[0]
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    unlink = Path.unlink

    def stopped_worker_writes_now(self: Path, missing_ok: bool = False) -> None:
        if self == path:
            os.write(descriptor, line())
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", stopped_worker_writes_now)
    assert gateway.run() == 0
    os.close(descriptor)
    assert len(gateway.receiver.events) == 2


def test_batches_are_bounded_in_lines_and_octets(gateway):
    gateway.write(4100, worker="a.0")
    gateway.raw(b"".join(line(helo="x" * 900_000) for _ in range(9)))
    assert gateway.run() == 0
    assert len(gateway.receiver.events) == 4109
    assert max(len(batch) for batch in gateway.receiver.batches) <= program.BATCH_LINES
    assert max(sum(map(len, batch)) for batch in gateway.receiver.batches) <= program.BATCH_OCTETS


def test_database_away_leaves_the_files_and_becomes_loud_when_it_lasts(gateway, capsys):
    gateway.write(10)
    assert gateway.run_without_database() == program.EX_TEMPFAIL
    assert len(gateway.files()) == 1
    assert gateway.metric("backlog_oldest_seconds") == 61
    said = capsys.readouterr().err
    assert "<4>not handed over: connection refused" in said
    assert "<3>" not in said
    assert gateway.run_without_database(NOON + 7 * 3600) == 1
    assert "<3>1 files of DMARC events wait, the oldest for 7 hours" in capsys.readouterr().err
    assert gateway.metric("last_success_timestamp_seconds") == 0
    assert gateway.run(NOON + 8 * 3600) == 0
    assert gateway.metric("last_success_timestamp_seconds") == NOON + 8 * 3600
    assert len(gateway.receiver.events) == 10


def test_directory_that_fills_is_told_even_where_all_is_handed_over(gateway, capsys):
    gateway.raw(b"x" * 600_000, "20261125T12.mail-gw1.0.jsonl")
    assert gateway.run() == 0
    assert "<3>0 files of DMARC events wait" in capsys.readouterr().err
    assert gateway.metric("backlog_bytes") == 600_000


def test_missing_directory_is_trouble_and_no_crash(gateway):
    gateway.spool.rmdir()
    assert gateway.run() == program.EX_TEMPFAIL


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(st.lists(st.booleans(), max_size=12), min_size=1, max_size=4),
    kills=st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=4),
    lines_in_a_batch=st.integers(1, 5),
)
def test_killed_anywhere_no_event_is_lost_or_doubled(files, kills, lines_in_a_batch):
    """``kills``: before or after the commit of a batch, at which one."""
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "BATCH_LINES", lines_in_a_batch)
        gateway = Gateway(Path(root))
        good: set[str] = set()
        junk = 0
        for number, content in enumerate(files):
            lines = [line() if is_event else b"junk %d\n" % position for position, is_event in enumerate(content)]
            good |= {json.loads(one)["id"] for one, is_event in zip(lines, content, strict=True) if is_event}
            junk += content.count(False)
            gateway.raw(b"".join(lines), f"20261125T0{number}.mail-gw1.0.jsonl")
        for is_before, at in kills:
            left = [at]

            def kill(lines: list[str], left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed

            setattr(gateway.receiver, "before" if is_before else "after", kill)
            with contextlib.suppress(Killed):
                gateway.run()
            gateway.receiver.before = gateway.receiver.after = lambda lines: None
        assert gateway.run() == 0
        assert set(gateway.receiver.events) == good
        assert gateway.files() == []
        assert len(gateway.set_aside()) == junk


@given(content=st.binary(max_size=300))
def test_any_octets_end_as_events_or_set_aside(content):
    taken: list[str] = []
    refused = program.Refused()
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        for batch in program.batches(file, refused):
            taken += batch
    assert len(taken) + refused.count == sum(1 for one in content.split(b"\n") if one)
    assert all("\0" not in one for one in taken)


def test_metrics_are_whole_and_survive_damage(gateway):
    gateway.metrics.write_text("dmarc_events_sent_total many\n")
    gateway.write(1)
    assert gateway.run() == 0
    text = gateway.metrics.read_text()
    assert text.count("# TYPE") == len(program.METRICS)
    assert gateway.metrics.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in gateway.metrics.parent.iterdir() if path.name.startswith(".")] == []


def test_configuration_is_read_and_a_wrong_one_named(tmp_path, capsys):
    path = tmp_path / "events.toml"
    path.write_text('host = "analytics.example.org"\nhosts = 1\n')
    assert program.main([str(path)]) == program.EX_CONFIG
    assert "hosts" in capsys.readouterr().err
    assert program.main([]) == 2
    assert program.main([str(tmp_path / "missing")]) == program.EX_CONFIG


def test_large_file_costs_little_memory(gateway):
    with (gateway.spool / "20261125T11.mail-gw1.0.jsonl").open("wb") as file:
        for _ in range(40_000):
            file.write(line(helo="x" * 500))
    gateway.receiver.take = lambda lines: len(lines)
    tracemalloc.start()
    assert gateway.run() == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000
