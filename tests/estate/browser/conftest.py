"""What the browser tests share: one Chromium a file, and visitors with a session each."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from estatelib.browser import SCREENSHOTS, Chromium, Visitor, chromium, forget_accounts
from estatelib.lists import MailingList, RestError, rest


@pytest.fixture(scope="session", autouse=True)
def _no_old_pictures() -> None:
    """Only what this run saw lies in the folder afterwards."""
    for picture in SCREENSHOTS.glob("*.png"):
        picture.unlink()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """Chromium, before a web interface in which nobody has an account yet."""
    forget_accounts()
    with chromium(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.fixture
def visit(browser: Chromium, request: pytest.FixtureRequest) -> Callable[..., AbstractContextManager[Visitor]]:
    """Make visitors; pictures carry the name of the test and what is given as the visitor's."""

    def make(who: str = "", **options: object) -> AbstractContextManager[Visitor]:
        test = re.sub(r"\W+", "-", request.node.name.removeprefix("test_")).strip("-")
        return browser.visitor(f"{test}-{who}" if who else test, **options)

    return make


@pytest.fixture
def newcomer() -> Iterator[str]:
    """An outside address that nobody has used before; Mailman forgets it afterwards, whatever the test did with it."""
    address = f"b{uuid.uuid4().hex[:8]}@example.edu"
    yield address
    for mailing_list in (MailingList(name) for name in ("dev@ml.example.org", "staff@ml.example.org")):
        mailing_list.remove(address)
        for request in mailing_list.requests():
            if request["email"] == address:
                rest("POST", f"{mailing_list.path}/requests/{request['token']}", {"action": "discard"})
    try:
        rest("DELETE", f"addresses/{address}")
    except RestError as error:
        if error.status != 404:
            raise
