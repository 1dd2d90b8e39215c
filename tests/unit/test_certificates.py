"""A run of the certificates program that ends at any of its writes leaves what the next run finishes.

The CA is a function here: what it is asked and how it is asked, molecule/certificates shows with a real one.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PROGRAM = Path(__file__).resolve().parents[2] / "roles/certificates/files/certificates.py"
CONFIG = {
    "names": ["mail.example.org"],
    "keys": ["ecdsa", "rsa"],
    "challenge": "standalone",
    "renew_days": 30.0,
    "reload": [],
    "deploy": [],
    "tlsa": [],
}


class Killed(BaseException):
    """The end of a process."""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """The program in a directory of its own, with a CA that always answers."""
    specification = importlib.util.spec_from_file_location("certificates_program", PROGRAM)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(__import__("sys").modules, "certificates_program", module)
    specification.loader.exec_module(module)
    for name in ("live", "next", "challenges", "requests"):
        (tmp_path / name).mkdir()
    authority, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)

    def obtain(config, key):
        certificate = (
            x509.CertificateBuilder()
            .subject_name(module.name_of(config))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "CA")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=90))
            .add_extension(module.alternative_names(config), critical=False)
            .sign(authority, hashes.SHA256())
        )
        return [certificate.public_bytes(serialization.Encoding.PEM).decode()]

    # One kind of key is enough here, and the other one is slow to make.
    monkeypatch.setattr(module, "new_key", lambda algorithm: ec.generate_private_key(ec.SECP256R1()))
    monkeypatch.setattr(module, "STATE", tmp_path)
    monkeypatch.setattr(module, "obtain", obtain)
    return module


def kill_at(monkeypatch, step: int, after: bool):
    """End the process at its ``step``-th write, before or after the file is in place; returns the count of writes."""
    count, rename = [0], os.rename

    def counted(source, target):
        count[0] += 1
        if count[0] == step and not after:
            raise Killed
        rename(source, target)
        if count[0] == step:
            raise Killed

    monkeypatch.setattr(os, "rename", counted)
    return count


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(1, 14))
@pytest.mark.parametrize("what", ["first", "roll"])
def test_run_that_ends_at_any_write_is_finished_by_the_next(program, monkeypatch, what, step, after):
    config = program.Config(**CONFIG)
    before = {"current": {}, "next": {}}
    if what == "roll":
        assert program.renew(config) == (True, 0)
        before = program.digests_of(config)
    with monkeypatch.context() as patched:
        count = kill_at(patched, step, after)
        try:
            program.renew(config, roll=config.keys if what == "roll" else None)
        except Killed:
            pass
        else:
            assert count[0] < step, "nothing was interrupted, though there were writes enough"
            assert what == "roll" or step > 9
    between = program.digests_of(config)
    assert program.renew(config)[1] == 0
    after_all = program.digests_of(config)
    memory = json.loads((program.STATE / "state.json").read_text())
    assert memory["rolling"] == {}
    assert memory["deployed"] == program.digest_in_use(config)
    assert not list(program.STATE.rglob(".new-*"))
    for algorithm in config.keys:
        live = program.load_live(algorithm)
        assert not live.self_signed
        # A key that anybody may have seen is the one in use, or the one before a rollover that has been decided.
        assert after_all["current"][algorithm] in {
            between["current"].get(algorithm),
            between["next"].get(algorithm),
        } or not between["current"].get(algorithm)
        if what == "roll":
            assert after_all["current"][algorithm] in {before["current"][algorithm], before["next"][algorithm]}
        assert after_all["next"][algorithm] != after_all["current"][algorithm]


def test_rollover_that_was_decided_is_finished_for_every_key(program, monkeypatch):
    config = program.Config(**CONFIG)
    program.renew(config)
    before = program.digests_of(config)
    with monkeypatch.context() as patched:
        patched.setattr(program, "obtain", lambda *_: (_ for _ in ()).throw(program.Trouble("the CA is away")))
        assert program.renew(config, roll=config.keys) == (False, 1)
        assert program.digests_of(config) == before
    assert program.renew(config) == (True, 0)
    assert program.digests_of(config)["current"] == before["next"]


def test_configuration_that_is_wrong_is_told(program, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG | {"keys": ["dsa"]}))
    with pytest.raises(program.Trouble, match="the algorithms are ecdsa, rsa"):
        program.Config.read(path)
    path.write_text(json.dumps(CONFIG | {"unknown": 1}))
    with pytest.raises(program.Trouble, match="cannot be used"):
        program.Config.read(path)
