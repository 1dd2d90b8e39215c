"""One command says whether the live world agrees with the data model: some wrong records are named, and nothing else.

The short form of tests/bench/dns_sabotage.py, which knows many more kinds; the zones are afterwards as they were.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/bench"))

import dns_sabotage  # noqa: E402

KINDS = ("MX lacks a gateway", "SPF with 11 look-ups", "DMARC without np", "PTR to another name")
SECONDS = 20
PATIENCE = 3  # the machine may be busy with other tests
SVG = """<svg xmlns="http://www.w3.org/2000/svg" version="1.2" baseProfile="tiny-ps" viewBox="0 0 100 100">
  <title>A circle</title>
  <circle cx="50" cy="50" r="40"/>
</svg>
"""


@pytest.fixture(scope="module")
def sound() -> Iterator[None]:
    """Nothing is wrong before, and nothing afterwards."""
    dns_sabotage.restore()
    dns_sabotage.forget()
    assert dns_sabotage.verify()["differences"] == []
    yield
    assert dns_sabotage.verify()["differences"] == []


def test_live_world_agrees_and_the_command_says_so(sound):
    done = subprocess.run(
        [ROOT / ".venv/bin/ansible-playbook", "playbooks/dns_verify.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE * SECONDS,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " domains agree, seen from " in done.stdout


@pytest.mark.parametrize("what", KINDS)
def test_wrong_record_is_named_and_nothing_else(sound, what):
    (fault,) = (one for one in dns_sabotage.faults() if one.what == what)
    good, told = dns_sabotage.try_one(fault, frozenset(), here=True)
    assert good, told


@pytest.mark.parametrize(
    ("logo", "fault"),
    [(SVG, None), (SVG.replace("<circle", "<script"), "script"), (SVG.replace("tiny-ps", "tiny"), "baseProfile")],
    ids=["good", "with a script", "of another profile"],
)
def test_logo_is_fetched_and_looked_at(sound, logo, fault):
    variables, changes = dns_sabotage.with_logo()
    file = "/var/lib/mailman3/web/static/logo.svg"
    dns_sabotage.podman("lab-ml", "tee", file, stdin=logo)
    try:
        with dns_sabotage.broken(changes):
            found = dns_sabotage.verify_here(variables, connect=True)["differences"]
    finally:
        dns_sabotage.podman("lab-ml", "rm", file)
    if fault is None:
        assert found == []
    else:
        (one,) = found
        assert (one["name"], one["kind"]) == (dns_sabotage.LOGO[0], "logo")
        assert fault in one["found"]


def test_command_fails_for_a_difference(sound):
    with dns_sabotage.broken({("sfc.example.org", "MX"): []}):
        done = subprocess.run(
            [ROOT / ".venv/bin/ansible-playbook", "playbooks/dns_verify.yml"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE * SECONDS,
        )
    assert done.returncode != 0
    assert "Publish the MX record at sfc.example.org" in done.stdout
