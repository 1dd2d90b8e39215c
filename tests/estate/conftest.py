"""What every estate test shares: the lab by name, and the hosts' journals beside a failure."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from estatelib import Estate, Host
from estatelib.places import ESTATE_HOSTS

JOURNALS = (*ESTATE_HOSTS, "world")


@pytest.fixture(scope="session")
def estate() -> Estate:
    """The running lab, built by ``make lab``."""
    return Estate()


@pytest.fixture(scope="session")
def session_start() -> float:
    """UNIX time at which the estate tests began."""
    return time.time()


@pytest.fixture(autouse=True)
def _started(request: pytest.FixtureRequest, session_start: float) -> None:
    """Remember when each test began, for its journal."""
    request.node.started = time.time()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Attach what the hosts logged during a failed test."""
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and report.failed:
        for name in JOURNALS:
            report.sections.append((f"journal of {name}", Host(name).journal(item.started, lines=40)))
