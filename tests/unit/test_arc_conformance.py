"""The public ARC validation suite (ValiMail's arc_test_suite, in Mail::DKIM's copy) through our verifier.

The suite is in the Debian source package of libmail-dkim-perl and is fetched from the package archive that this
machine uses, once, into .lab/cache/. Its 170 cases are all judged; three of that copy's verdicts contradict RFC 8617
and are asserted by name with the verdict of the RFC. Without an archive the test fails, since nothing has been proven.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import dkim
import pytest
import yaml
from arc_data.sources import fetch_source

import estate_arc_chain as chain

CACHE = Path(__file__).resolve().parents[2] / ".lab/cache"
SUITE = "t/arc_test_suite/arc-draft-validation-tests.yml"
CASES = 170
DEVIATIONS = {
    # case: what the copy says, what RFC 8617 says, and where
    "ams_fields_a_sha1": ("pass", "fail"),  # §4.1.2: only the algorithms of RFC 8463/8301, which forbids rsa-sha1
    "as_fields_a_sha1": ("pass", "fail"),  # §4.1.3
    "ams_fields_c_na": ("fail", "pass"),  # §4.1.2: c= is optional, "relaxed/relaxed" without it
}


def load_cases() -> dict[str, tuple[str, bytes, dict[str, str]]]:
    """Case → (what the copy says, message, DNS)."""
    cases = {}
    with tarfile.open(fetch_source("libmail-dkim-perl", CACHE)) as archive:
        member = next(name for name in archive.getnames() if name.endswith(SUITE))
        text = archive.extractfile(member).read()
    for scenario in filter(None, yaml.safe_load_all(text)):
        for name, case in scenario["tests"].items():
            message = (case["message"] or "").encode()
            cases[name] = ((case["cv"] or "").lower(), message, scenario["txt-records"])
    return cases


@pytest.fixture(scope="module")
def cases():
    return load_cases()


def verdict_of(message: bytes, records: dict[str, str]) -> str:
    """Our verdict in the suite's words, which call a chain that has ended with cv=fail the empty word."""

    def lookup(name: str) -> bytes | None:
        record = records.get(name)
        return record.encode() if record else None

    verdict = chain.verify_message(message, lookup)
    return "" if verdict.reason == chain.ENDED else verdict.status


def test_suite_is_complete(cases):
    assert len(cases) == CASES


def test_every_case_is_judged_as_rfc_8617_wants(cases):
    ours = {name: verdict_of(message, records) for name, (_, message, records) in cases.items()}
    different = {name: (cases[name][0], verdict) for name, verdict in ours.items() if verdict != cases[name][0]}
    assert different == DEVIATIONS
    assert len(ours) - len(different) == 167


def test_dkimpy_judges_every_case_alike(cases):
    for name, (_, message, records) in cases.items():

        def lookup(asked: bytes, timeout: int = 5, records: dict[str, str] = records) -> bytes | None:
            record = records.get(asked.decode().rstrip("."))
            return record.encode() if record else None

        theirs = dkim.arc_verify(message, dnsfunc=lookup)[0]
        assert verdict_of(message, records) == (theirs or b"").decode(), name
