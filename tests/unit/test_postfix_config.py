"""The module postfix_config: what it writes, what it refuses, what it says, and what Postfix needs afterwards.

Small shell scripts stand for the exit codes and complaints of Postfix's programs; that the real ones judge as
they should is proven by the role's scenario.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

import postfix_config

MAIN = "myhostname = relay.example.org\ninet_interfaces = all\ntransport_maps = lmdb:{live}/maps.d/transport\n"
MASTER = "smtp inet n - y - - smtpd\nrelay unix - - y - - smtp\n"
ALIASES = "postmaster: root\n"
TRANSPORT = {"type": "lmdb", "mode": "0644", "content": "example.org\trelay:[mail.example.org]\n"}
CLIENTS = {"type": "cidr", "mode": "0644", "content": "192.0.2.0/24\tREJECT\n"}
PASSWORD = {"type": "lmdb", "mode": "0600", "content": None}

# Each notes how it was called. A line "complain TEXT" in a file makes the program that reads it complain, as
# Postfix does: postconf with exit code 0, the others with 1.
PROGRAMS = {
    "postconf": """
        case "$*" in
            -m) printf 'cidr\\nlmdb\\npcre\\nproxy\\n'; exit ;;
            "-xh queue_directory") echo "$QUEUE"; exit ;;
        esac
        shift; directory=$1; shift
        case "$1" in
            -n) sed -n "s,^complain,postconf: warning: $directory/main.cf:,p" "$directory/main.cf" >&2 ;;
            -M) sed -n "s,^complain,postconf: warning: $directory/master.cf:,p" "$directory/master.cf" >&2 ;;
            -P) ;;
            *) for name; do grep "^$name =" "$directory/main.cf"; done; exit 0 ;;
        esac
    """,
    "postmap": """
        file=${3#*:}
        sed -n "s,^complain,postmap: warning: $file:,p" "$file" >&2
        cp "$file" "$file.lmdb"
        if grep -q ^complain "$file"; then exit 1; fi
    """,
    "postalias": """
        file=${3#*:}
        sed -n "s,^complain,postalias: warning: $file:,p" "$file" >&2
        cp "$file" "$file.lmdb"
    """,
    "postfix": """
        case "$3" in
            status) test -e "$RUNNING" ;;
            check) if grep -q '^# unfit' "$2/main.cf"; then echo "postfix: fatal: $2: unfit" >&2; exit 1; fi ;;
        esac
    """,
}


class Host:
    """A host as the module sees it, all of it below one directory."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.capsys = capsys
        self.live = root / "etc" / "postfix"
        self.maps = self.live / "maps.d"
        self.aliases = root / "etc" / "aliases"
        self.queue = root / "queue"
        self.running = root / "running"
        self.calls_file = root / "calls"
        self.live.mkdir(parents=True)
        self.queue.mkdir()
        self.running.touch()

    def install(self) -> None:
        """Put the programs where the module looks for them."""
        programs = self.root / "programs"
        programs.mkdir()
        for name, text in PROGRAMS.items():
            path = programs / name
            variables = f"QUEUE={self.queue}\nRUNNING={self.running}\n"
            path.write_text(f'#!/bin/sh\n{variables}echo "{name} $*" >> {self.calls_file}\n{text}')
            path.chmod(0o755)

    def arguments(self, **changed: Any) -> dict[str, Any]:
        """Arguments that are right but for what is given."""
        return {
            "config_directory": str(self.live),
            "main": MAIN.format(live=self.live),
            "master": MASTER,
            "aliases": ALIASES,
            "maps": {"transport": TRANSPORT},
        } | changed

    def run(self, check: bool = False, **changed: Any) -> dict[str, Any]:
        """Run the module; return what it tells Ansible."""
        self.calls_file.unlink(missing_ok=True)
        internal = {"_ansible_check_mode": check, "_ansible_diff": True, "_ansible_remote_tmp": str(self.root / "tmp")}
        with patch_module_args(self.arguments(**changed) | internal), pytest.raises(SystemExit):
            postfix_config.main()
        return json.loads(self.capsys.readouterr().out)

    def calls(self) -> list[str]:
        """The programs that the last run called."""
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    def files(self) -> dict[str, tuple[str, str]]:
        """Mode and content of every file below etc and the queue directory."""
        return {
            str(path.relative_to(self.root)): (oct(stat.S_IMODE(path.stat().st_mode)), path.read_text())
            for top in ("etc", "queue")
            for path in sorted((self.root / top).rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Host]:
    """A host without Postfix."""
    monkeypatch.setattr(postfix_config, "ALIASES", str(tmp_path / "etc" / "aliases"))
    monkeypatch.setattr(postfix_config, "POSTCONF", str(tmp_path / "programs" / "postconf"))
    monkeypatch.setattr(postfix_config, "SEARCH_PATH", f"{tmp_path / 'programs'}:/usr/bin:/bin")
    monkeypatch.setattr(postfix_config, "OWNER", os.getuid())
    before = os.umask(0o077)
    yield Host(tmp_path, capsys)
    os.umask(before)


@pytest.fixture
def fresh(bare: Host) -> Host:
    """A host on which Postfix is installed and runs, not yet with our configuration."""
    bare.install()
    return bare


@pytest.fixture
def host(fresh: Host) -> Host:
    """A host on which our configuration is live."""
    result = fresh.run()
    assert not result.get("failed"), result
    return fresh


# --- putting it in place ----------------------------------------------------------------------------------------------


def test_everything_is_written_with_its_compiled_form(fresh):
    result = fresh.run(maps={"transport": TRANSPORT, "clients": CLIENTS})
    assert result["changed"]
    assert fresh.files() == {
        "etc/aliases": ("0o644", ALIASES),
        "etc/aliases.lmdb": ("0o644", ALIASES),
        "etc/postfix/main.cf": ("0o644", MAIN.format(live=fresh.live)),
        "etc/postfix/master.cf": ("0o644", MASTER),
        "etc/postfix/maps.d/clients": ("0o644", CLIENTS["content"]),
        "etc/postfix/maps.d/transport": ("0o644", TRANSPORT["content"]),
        "etc/postfix/maps.d/transport.lmdb": ("0o644", TRANSPORT["content"]),
    }


def test_the_candidate_is_judged_not_the_live_configuration_and_leaves_nothing_behind(fresh):
    fresh.run()
    for call in fresh.calls():
        assert call.split()[1] != "-c" or ".candidate-" in call or call.endswith(("status", "maillog_file")), call
    judges = {" ".join([call.split()[0], call.split()[-1]]) for call in fresh.calls()}
    assert {"postconf -n", "postconf -M", "postconf -P", "postfix check"} <= judges
    assert not [path for path in fresh.root.rglob("*") if "candidate" in path.name]


def test_a_second_run_changes_nothing_and_judges_nothing(host):
    before = host.files()
    result = host.run()
    assert not result["changed"]
    assert (result["action"], result["changed_files"], result["diff"]) == ("none", [], [])
    assert host.files() == before
    assert not [call for call in host.calls() if not call.endswith(("queue_directory", "status"))]


def test_only_what_differs_is_replaced(host):
    inodes = {path: path.stat().st_ino for path in host.live.glob("*.cf")}
    result = host.run(master=MASTER + "lmtp unix - - y - - lmtp\n")
    assert result["changed_files"] == [str(host.live / "master.cf")]
    changed = [path.name for path, inode in inodes.items() if path.stat().st_ino != inode]
    assert changed == ["master.cf"]


@pytest.mark.parametrize(
    ("damage", "path"),
    [
        (lambda host: (host.maps / "transport").chmod(0o666), "maps.d/transport"),
        (lambda host: (host.maps / "transport.lmdb").unlink(), "maps.d/transport"),
        (lambda host: os.utime(host.maps / "transport.lmdb", (1, 1)), "maps.d/transport"),
        (lambda host: (host.maps / "transport.lmdb").chmod(0o666), "maps.d/transport"),
        (lambda host: (host.live / "main.cf").write_text("mynetworks = 0.0.0.0/0\n"), "main.cf"),
        (lambda host: (host.live / "master.cf").unlink(), "master.cf"),
        (lambda host: Path(f"{host.aliases}.lmdb").unlink(), "../aliases"),
    ],
    ids=["mode", "no compiled form", "old compiled form", "mode of the compiled form", "content", "gone", "aliases"],
)
def test_what_somebody_changed_by_hand_is_put_right(host, damage: Callable[[Host], Any], path):
    before = host.files()
    damage(host)
    assert host.run()["changed_files"] == [os.path.normpath(host.live / path)]
    assert host.files() == before
    assert not host.run()["changed"]


def test_a_file_of_another_owner_is_replaced(host, monkeypatch):
    monkeypatch.setattr(postfix_config, "OWNER", os.getuid() + 1)
    assert len(host.run(check=True)["changed_files"]) == 4


def test_a_table_that_is_named_no_more_is_removed(host):
    host.run(maps={"transport": TRANSPORT, "clients": CLIENTS, "old": TRANSPORT})
    result = host.run(maps={"transport": TRANSPORT, "clients": CLIENTS})
    assert result["changed_files"] == [str(host.maps / "old"), str(host.maps / "old.lmdb")]
    assert sorted(path.name for path in host.maps.iterdir()) == ["clients", "transport", "transport.lmdb"]


def test_bytes_that_are_not_utf8_are_compared_not_choked_on(host):
    (host.live / "main.cf").write_bytes(b"# caf\xe9\n")
    assert host.run()["changed_files"] == [str(host.live / "main.cf")]


# --- what Postfix needs afterwards ------------------------------------------------------------------------------------


def main_with(host: Host, line: str) -> dict[str, str]:
    """main.cf with one line more."""
    return {"main": MAIN.format(live=host.live) + line + "\n"}


@pytest.mark.parametrize(
    ("change", "action"),
    [
        (lambda host: {}, "none"),
        (
            lambda host: {"maps": {"transport": TRANSPORT | {"content": "example.org\trelay:[new.example.org]\n"}}},
            "none",
        ),
        (lambda host: {"aliases": ALIASES + "abuse: root\n"}, "none"),
        (lambda host: {"maps": {"transport": TRANSPORT, "clients": CLIENTS}}, "reloaded"),
        (lambda host: {"master": MASTER + "lmtp unix - - y - - lmtp\n"}, "reloaded"),
        (lambda host: main_with(host, "message_size_limit = 1000"), "reloaded"),
        *[
            (lambda host, name=name: main_with(host, f"{name} = new"), "restarted")
            for name in postfix_config.RESTART_PARAMETERS
            if name != "inet_interfaces"
        ],
        (lambda host: {"main": MAIN.format(live=host.live).replace("= all", "= loopback-only")}, "restarted"),
    ],
    ids=[
        "nothing",
        "indexed table",
        "aliases",
        "table read at start",
        "master.cf",
        "main.cf",
        *[name for name in postfix_config.RESTART_PARAMETERS if name != "inet_interfaces"],
        "inet_interfaces",
    ],
)
def test_action_is_the_mildest_that_takes_the_change_up(host, change, action):
    # Check mode announces the same action, so that the handler tells the truth there, too.
    assert host.run(check=True, **change(host))["action"] == action
    assert host.run(**change(host))["action"] == action
    assert host.run(**change(host))["action"] == "none"


def test_a_removed_table_needs_a_reload(host):
    host.run(maps={"transport": TRANSPORT, "old": TRANSPORT})
    assert host.run()["action"] == "reloaded"


def test_a_postfix_that_does_not_run_needs_nothing(host):
    host.running.unlink()
    result = host.run(**main_with(host, "inet_protocols = ipv4"))
    assert (result["changed"], result["action"]) == (True, "none")


# --- copies for the chroot --------------------------------------------------------------------------------------------


def test_copies_for_the_chroot_follow_their_originals(host):
    source = host.root / "resolv.conf"
    absent = host.root / "absent"
    copy = Path(f"{host.queue}{source}")
    source.write_text("nameserver 127.0.0.1\n")
    copies = [str(source), str(absent)]

    assert host.run(check=True, chroot_copies=copies)["changed_files"] == [str(copy)]
    assert not copy.exists()
    result = host.run(chroot_copies=copies)
    assert (result["changed_files"], result["action"]) == ([str(copy)], "reloaded")
    assert copy.read_text() == source.read_text()
    assert not host.run(chroot_copies=copies)["changed"]

    source.write_text("nameserver ::1\n")
    source.chmod(0o600)
    assert host.run(chroot_copies=copies)["changed"]
    assert (copy.read_text(), stat.S_IMODE(copy.stat().st_mode)) == ("nameserver ::1\n", 0o600)
    assert not Path(f"{host.queue}{absent}").exists()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [False, True], ids=["for real", "check mode"])
@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        (
            lambda host: main_with(host, "complain unused parameter: smtpd_baner"),
            ["Postfix does not accept the new configuration.", "{live}/main.cf: unused parameter: smtpd_baner"],
        ),
        (
            lambda host: main_with(host, "complain first") | {"master": MASTER + "complain second\n"},
            ["{live}/main.cf: first", "{live}/master.cf: second"],
        ),
        (
            lambda host: {"maps": {"transport": TRANSPORT | {"content": "complain duplicate entry\n"}}},
            ["The table {live}/maps.d/transport has a fault.", "{live}/maps.d/transport: duplicate entry"],
        ),
        (
            lambda host: {"aliases": "complain need name\n"},
            ["The table {aliases} has a fault.", "need name"],
        ),
        (
            lambda host: main_with(host, "relocated_maps = zork:/etc/moved"),
            ["{live}/main.cf uses the table type 'zork' (zork:/etc/moved), which this Postfix has not."],
        ),
        (
            lambda host: main_with(host, f"relocated_maps = proxy:lmdb:{host.live}/maps.d/moved"),
            ["{live}/main.cf refers to lmdb:{live}/maps.d/moved, but no such table is given."],
        ),
        (
            lambda host: {"master": MASTER + f"    -o {{ relocated_maps = cidr:{host.live}/maps.d/moved }}\n"},
            ["{live}/master.cf refers to cidr:{live}/maps.d/moved, but no such table is given."],
        ),
        (lambda host: {"maps": {}}, ["{live}/main.cf refers to lmdb:{live}/maps.d/transport, but no such table"]),
        (lambda host: {"maps": {"transport": {"content": "a b\n"}}}, ["maps.transport has no type and no mode."]),
        (
            lambda host: {"maps": {"transport": TRANSPORT | {"content": None}}},
            ["maps.transport has no content, and secret_maps has none for it."],
        ),
    ],
    ids=[
        "main.cf",
        "both files",
        "table",
        "aliases",
        "unknown type",
        "unknown table",
        "unknown table in master.cf",
        "table taken away",
        "no type",
        "no content",
    ],
)
def test_a_fault_stops_the_run_is_named_and_changes_nothing(host, check, change, sentences):
    before = host.files()
    result = host.run(check=check, **change(host))
    assert result["failed"]
    assert "The live configuration is untouched." in result["msg"]
    for sentence in sentences:
        assert sentence.format(live=host.live, aliases=host.aliases) in result["msg"]
    assert ".candidate-" not in result["msg"]
    assert host.files() == before
    assert not [path for path in host.root.rglob("*") if "candidate" in path.name]


def test_postfix_check_has_the_last_word_but_not_in_check_mode_where_it_would_make_directories(host):
    before = host.files()
    result = host.run(**main_with(host, "# unfit"))
    assert result["msg"].startswith("postfix check does not accept the new configuration.")
    assert f"postfix: fatal: {host.live}: unfit" in result["msg"]
    assert host.files() == before
    assert not host.run(check=True, **main_with(host, "# unfit")).get("failed")
    assert not [call for call in host.calls() if call.endswith(" check")]


@pytest.mark.parametrize(
    "line",
    [
        "virtual_alias_maps = proxy:cidr:/etc/other, pcre:/etc/more",
        "smtpd_milters = unix:/run/milter.sock, inet:127.0.0.1:8895",
        "default_transport = relay:/nowhere",
        "smtp_tls_policy_url = https://example.org/policy",
        "# relocated_maps = zork:/etc/moved",
    ],
)
def test_what_only_looks_like_an_unknown_table_is_let_pass(host, line):
    programs = host.root / "programs" / "postconf"
    programs.write_text(programs.read_text().replace("proxy\\n", "proxy\\nunix\\n"))
    assert not host.run(**main_with(host, line)).get("failed")


def test_the_arguments_of_a_pipe_service_are_nobody_s_tables(host):
    line = "dovecot unix - n n - - pipe flags=DR argv=/bin/deliver zork:/etc/moved\n"
    assert not host.run(master=MASTER + line).get("failed")


@pytest.mark.parametrize("name", ["main", "master", "aliases"])
def test_a_missing_argument_is_named(host, name):
    arguments = host.arguments()
    del arguments[name]
    with patch_module_args(arguments), pytest.raises(SystemExit):
        postfix_config.main()
    assert json.loads(host.capsys.readouterr().out)["msg"] == f"missing required arguments: {name}"


def test_an_unknown_argument_is_named(host):
    assert "mian" in host.run(mian="x")["msg"]


# --- check mode and a bare host ---------------------------------------------------------------------------------------


def test_check_mode_says_what_would_change_and_changes_nothing(host):
    before = host.files()
    change = main_with(host, "message_size_limit = 1000") | {"maps": {"transport": TRANSPORT, "clients": CLIENTS}}
    announced = host.run(check=True, **change)
    assert host.files() == before
    done = host.run(**change)
    assert announced["changed"]
    for key in ("changed", "changed_files", "diff", "action"):
        assert announced[key] == done[key]


def test_check_mode_keeps_a_table_that_is_to_be_removed(host):
    host.run(maps={"transport": TRANSPORT, "old": CLIENTS})
    before = host.files()
    result = host.run(check=True)
    assert result["changed_files"] == [str(host.maps / "old")]
    assert host.files() == before


def test_a_bare_host_in_check_mode_is_told_about_not_touched(bare):
    result = bare.run(check=True)
    assert (result["changed"], result["installed"], result["action"]) == (True, False, "none")
    assert result["msg"] == "Not proven, because Postfix is not installed yet."
    assert [Path(each["after_header"]).name for each in result["diff"]] == [
        "transport",
        "aliases",
        "master.cf",
        "main.cf",
    ]
    assert bare.files() == {}


def test_a_bare_host_stops_the_run(bare):
    assert bare.run()["msg"] == f"Postfix is not installed: there is no {postfix_config.POSTCONF}."
    assert bare.files() == {}


# --- the difference, and secrets --------------------------------------------------------------------------------------


def test_the_difference_shows_before_and_after(host):
    (shown,) = host.run(master=MASTER + "lmtp unix - - y - - lmtp\n")["diff"]
    assert shown == {
        "before_header": str(host.live / "master.cf"),
        "before": MASTER,
        "after_header": str(host.live / "master.cf"),
        "after": MASTER + "lmtp unix - - y - - lmtp\n",
    }


def secret(content: str) -> dict[str, Any]:
    """Arguments with a secret table."""
    return {"maps": {"transport": TRANSPORT, "password": PASSWORD}, "secret_maps": {"password": content}}


def test_a_secret_table_is_readable_by_its_owner_alone_from_its_first_byte_on(host, monkeypatch):
    modes = []
    original = os.fdopen

    def noted(descriptor: int, *rest: Any, **more: Any) -> Any:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return original(descriptor, *rest, **more)

    monkeypatch.setattr(os, "fdopen", noted)
    host.run(**secret("mail.example.org\tuser:hunter2\n"))
    assert 0o600 in modes
    for name in ("password", "password.lmdb"):
        assert stat.S_IMODE((host.maps / name).stat().st_mode) == 0o600
    assert (host.maps / "password").read_text() == "mail.example.org\tuser:hunter2\n"


@pytest.mark.parametrize("check", [False, True], ids=["for real", "check mode"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda: {}, lambda: secret("a\thunter2\n")),
        (lambda: secret("a\thunter1\n"), lambda: secret("a\thunter2\n")),
        (lambda: secret("a\thunter1\n"), lambda: secret("complain a fault\na\thunter2\n")),
        (lambda: secret("a\thunter1\n"), dict),
        (
            lambda: secret("a\thunter1\n"),
            lambda: {"maps": {"transport": TRANSPORT, "password": TRANSPORT}},
        ),
        (
            lambda: {"maps": {"transport": TRANSPORT, "password": TRANSPORT}},
            lambda: secret("a\thunter2\n"),
        ),
    ],
    ids=["new", "changed", "faulty", "removed", "no secret any more", "secret from now on"],
)
def test_no_output_shows_a_secret_neither_the_old_nor_the_new(host, check, before, after):
    host.run(**before())
    result = host.run(check=check, **after())
    assert "hunter" not in json.dumps(result)
    assert result.get("failed") or str(host.maps / "password") in result["changed_files"]


def test_a_changed_secret_is_announced(host):
    host.run(**secret("a\thunter1\n"))
    (shown,) = host.run(**secret("a\thunter2\n"))["diff"]
    assert (shown["before"], shown["after"]) == ("(secret)\n", "(secret, changed)\n")
