"""The lab finds out the machine's peculiarities itself and reads its containers from the inventory."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

import lab

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make a machine with or without cgroup v2 and the right to raise limits; returns podman's extra arguments."""

    def build(cgroup2: bool, may_raise: bool, hard: int = 20000) -> tuple[str, ...]:
        if cgroup2:
            (tmp_path / "cgroup.controllers").write_text("cpu memory")
        status = tmp_path / "status"
        status.write_text(f"Name:\tx\nCapEff:\t{(1 << 24 if may_raise else 0) | 1:016x}\n")
        monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, hard))
        return lab.Quirks.detect(tmp_path, status).args

    return build


def test_ordinary_machine_needs_nothing_special(machine):
    assert machine(cgroup2=True, may_raise=True) == ()


def test_cgroup_v1_machine_uses_runc(machine):
    assert machine(cgroup2=False, may_raise=True) == ("--runtime", "runc")


def test_limits_are_explicit_and_below_the_hard_ones_where_they_cannot_be_raised(machine):
    assert machine(cgroup2=True, may_raise=False, hard=4096) == (
        *("--ulimit", "nofile=1024:4096"),
        *("--ulimit", "nproc=1024:4096"),
    )


def test_unlimited_machine_gets_a_ceiling_of_its_own(machine):
    assert "nofile=1024:20000" in machine(cgroup2=True, may_raise=False, hard=resource.RLIM_INFINITY)


def test_every_host_of_both_inventories_has_its_own_addresses():
    hosts = [host for inventory in lab.INVENTORIES for host in lab.inventory_hosts(inventory)]
    assert {"mail-gw1", "mail-gw2", "mail", "world", "role-postfix"} <= {host.name for host in hosts}
    for addresses in ([host.ipv4 for host in hosts], [host.ipv6 for host in hosts]):
        assert len(set(addresses)) == len(addresses)


def test_unknown_host_is_named():
    with pytest.raises(lab.LabError, match="mail-gw9"):
        lab.choose(lab.inventory_hosts(ROOT / "inventory/lab"), ["mail-gw9"])


def test_container_is_made_anew_when_its_files_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(lab, "STATE", tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    host = lab.Host("mail-gw1", "198.18.25.11", "2001:db8:25::11")
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki/ca.pem").write_text("the lab's CA")
    lab.ensure_ssh([host])
    first = lab.container_files(host)
    assert first == lab.container_files(host)
    (tmp_path / "ssh/host_ed25519").unlink()
    lab.ensure_ssh([host])
    assert first != lab.container_files(host)


def test_limit_of_inotify_instances_is_raised_and_never_lowered(tmp_path):
    limit = tmp_path / "max_user_instances"
    limit.write_text("128\n")
    lab.ensure_watches(limit)
    assert int(limit.read_text()) == lab.INOTIFY_INSTANCES
    limit.write_text("4096\n")
    lab.ensure_watches(limit)
    assert limit.read_text() == "4096\n"
