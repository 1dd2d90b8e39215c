"""The role mailman's programs, its filter and its module, without a host."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest

ROLE = Path(__file__).resolve().parents[2] / "roles/mailman"


def load(path):
    """A program of the role as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


watch = load(ROLE / "files/programs/watch.py")
wait_ready = load(ROLE / "files/programs/wait_ready.py")
tree = load(ROLE / "filter_plugins/mailman_tree.py")
files = load(ROLE / "library/mailman_files.py")


def queue(directory, name, *ages):
    """A queue with a file of each age in seconds."""
    place = directory / "queue" / name
    place.mkdir(parents=True)
    for number, age in enumerate(ages):
        path = place / f"{number}+x.pck"
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    return watch.Queue.read(place, time.time())


def test_quiet_queues_raise_no_alert(tmp_path):
    queues = [queue(tmp_path, "in", 5), queue(tmp_path, "shunt"), queue(tmp_path, "retry", 90000)]
    spool = watch.Queue("spool", 1, 30)
    assert watch.alerts(queues, spool, set(watch.RUNNERS)) == {}


@pytest.mark.parametrize(
    ("name", "age", "alert"),
    [("shunt", 1, "shunt"), ("bad", 1, "bad"), ("in", 4000, "waiting"), ("out", 4000, "waiting")],
)
def test_queue_that_needs_a_person_raises_its_alert(tmp_path, name, age, alert):
    assert list(watch.alerts([queue(tmp_path, name, age)], watch.Queue("spool", 0, 0), set(watch.RUNNERS))) == [alert]


def test_missing_runner_and_late_archive_raise_theirs():
    found = watch.alerts([], watch.Queue("spool", 3, 700), set(watch.RUNNERS) - {"out"})
    assert set(found) == {"runner", "archive"}
    assert "out" in found["runner"]


def test_stopped_core_is_systemds_business():
    assert watch.alerts([], watch.Queue("spool", 0, 0), set()) == {}


@pytest.mark.parametrize("words", [b"mailman: runner [out:0:4]\0", b"python3\0/x/runner\0-C\0c\0--runner=out:0:4\0"])
def test_runner_is_known_by_either_of_its_names(tmp_path, words):
    (tmp_path / "12").mkdir()
    (tmp_path / "12/cmdline").write_bytes(words)
    assert watch.running(tmp_path) == {"out"}


def test_runner_of_rest_is_known_by_the_name_that_gunicorn_gives_it(tmp_path):
    (tmp_path / "13").mkdir()
    (tmp_path / "13/cmdline").write_bytes(b"gunicorn: master [gunicorn]\0")
    assert watch.running(tmp_path) == {"rest"}


def test_metrics_are_prometheus_text(tmp_path):
    text = watch.metrics([queue(tmp_path, "in", 7)], watch.Queue("spool", 2, 3), {"out"})
    assert 'mailman_queue_files{queue="in"} 1\n' in text
    assert "mailman_archive_spool_files 2\n" in text
    assert 'mailman_runner_up{runner="out"} 1\n' in text
    assert 'mailman_runner_up{runner="in"} 0\n' in text


def test_missing_directory_is_an_empty_queue(tmp_path):
    assert watch.Queue.read(tmp_path / "nothing", time.time()).files == 0


def test_waiting_ends_when_every_port_answers(capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert wait_ready.main(["5", port, port]) == 0
    assert wait_ready.main(["0", port]) == 1
    assert port in capsys.readouterr().err


def test_tree_holds_text_and_binary_but_nothing_compiled(tmp_path):
    (tmp_path / "a/__pycache__").mkdir(parents=True)
    (tmp_path / "a/x.py").write_text("日本語\n")
    (tmp_path / "a/x.png").write_bytes(b"\xff\xd8")
    (tmp_path / "a/__pycache__/x.pyc").write_bytes(b"x")
    (tmp_path / "link.py").symlink_to("a/x.py")
    found = tree.mailman_tree(str(tmp_path), "/to")
    assert found == {"/to/a/x.py": {"content": "日本語\n"}, "/to/a/x.png": {"base64": "/9g="},
                     "/to/link.py": {"content": "日本語\n"}}  # fmt: skip


def test_tree_of_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no directory"):
        tree.mailman_tree(str(tmp_path / "nothing"), "/to")


def test_strangers_are_found_and_compiled_python_is_none(tmp_path):
    for name in ("mine/a.py", "mine/__pycache__/a.pyc", "mine/old.py", "gone/b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = files.strangers(str(tmp_path), {str(tmp_path / "mine/a.py")})
    assert sorted(found) == [str(tmp_path / "gone"), str(tmp_path / "mine/old.py")]


def test_table_that_is_missing_or_older_than_its_text_is_to_be_made_again(tmp_path):
    for name, age in {"old": 0, "old.db": 60, "new": 60, "new.db": 0, "missing": 0, "sole.db": 0}.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    tables = {f"{tmp_path}/{name}.db": f"{tmp_path}/{name}" for name in ("old", "new", "missing", "sole", "nothing")}
    assert files.outdated(tables) == [f"{tmp_path}/{name}.db" for name in ("old", "missing", "nothing")]


def test_secret_file_shows_no_content(tmp_path):
    secret = files.File(str(tmp_path / "key"), {"content": "do-not-show\n", "mode": "0640"})
    assert "do-not-show" not in json.dumps(secret.difference())
