"""Wait for what the lab does by itself; every wait has an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait(look: Callable[[], Found], timeout: float, what: str, pause: float = 0.5) -> Found:
    """Return the first true answer of ``look``, asked every ``pause`` seconds; say ``what`` was missing in the end."""
    deadline = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} after {timeout:.0f} s")
        time.sleep(pause)
