"""What both files of tests share."""

from __future__ import annotations

import pytest
from world import World


@pytest.fixture(scope="module")
def quiet(host):
    """The service does not run while tests give its commands; afterwards it does again."""
    world = World()
    world.ask("systemctl stop dmarc-reports")
    yield world
    world.empty()
    world.ask("systemctl start dmarc-reports")
