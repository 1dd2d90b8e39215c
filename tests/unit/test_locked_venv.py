"""The module locked_venv without pip, and the lock files that roles give it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted([*ROOT.glob("roles/*/files/requirements.txt"), *ROOT.glob("roles/*/files/requirements/*.txt")])
spec = importlib.util.spec_from_file_location("locked_venv", ROOT / "plugins/modules/locked_venv.py")
locked_venv = importlib.util.module_from_spec(spec)
spec.loader.exec_module(locked_venv)


class Ended(Exception):
    """The module has said its result."""


class Module:
    """An Ansible module whose Python and pip do nothing but note what they are told."""

    def __init__(self, path, requirements, check_mode=False, broken=""):
        options = {"python": "/usr/bin/python3", "compile_translations": False}
        self.params = options | {"path": str(path), "requirements": requirements}
        self.check_mode, self.broken = check_mode, broken
        self.commands = []

    def run_command(self, command):
        self.commands.append(command)
        if command[1:3] == ["-m", "venv"]:
            Path(command[3]).mkdir()
        return (1, "", "no such hash") if self.broken and self.broken in command else (0, "(3, 11)\n", "")

    def exit_json(self, **result):
        raise Ended(result)

    def fail_json(self, **result):
        raise Ended(result)


@pytest.fixture
def have(monkeypatch, tmp_path):
    """What the module says of a lock, and the commands that it ran."""

    def have(requirements, **options):
        module = Module(tmp_path / "core", requirements, **options)
        monkeypatch.setattr(locked_venv, "AnsibleModule", lambda **_: module)
        with pytest.raises(Ended) as ended:
            locked_venv.main()
        return ended.value.args[0], module.commands

    return have


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: str(path.relative_to(ROOT / "roles")))
def test_lock_has_a_hash_for_everything_and_what_builds_comes_first(lock):
    text = lock.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines
    assert all("==" in line and "--hash=sha256:" in line for line in lines)
    if lock.parts[-3] != "tlsrpt":  # all of its packages come as wheels
        assert any(line.startswith("setuptools==") and line.startswith(locked_venv.BUILDERS) for line in lines)
    # SQLAlchemy 2.1 breaks Mailman's core (GET /lists gives 500).
    assert not any(line.startswith("sqlalchemy==2.1") for line in lines)


def test_environment_that_is_whole_is_left_alone(have, tmp_path):
    assert have("a==1")[0]["changed"]
    first = (tmp_path / "core").resolve()
    result, commands = have("a==1")
    assert not result["changed"]
    assert len(commands) == 1  # which Python it is
    assert have("a==2")[0]["changed"]
    assert (tmp_path / "core").resolve() != first
    assert first.exists()  # services still run on it
    have("a==3")
    assert not first.exists()


def test_what_builds_is_installed_before_all_else(have):
    _, commands = have("a==1 \\\n    --hash=sha256:0\nsetuptools==80 \\\n    --hash=sha256:1\n")
    tools, everything = [command for command in commands if "pip" in command]
    assert "--no-build-isolation" not in tools
    assert "--no-build-isolation" in everything
    assert all("--require-hashes" in command and "--no-deps" in command for command in (tools, everything))


def test_failed_build_changes_nothing_and_says_what_pip_said(have, tmp_path):
    have("a==1")
    before = (tmp_path / "core").resolve()
    result, _ = have("a==2", broken="--no-build-isolation")
    assert "no such hash" in result["msg"]
    assert (tmp_path / "core").resolve() == before
    assert have("a==2")[0]["changed"]  # begun anew, since it was not whole


def test_check_mode_builds_nothing(have, tmp_path):
    result, _ = have("a==1", check_mode=True)
    assert result["changed"]
    assert list(tmp_path.iterdir()) == []
