"""The lists' tests share the lab with the estate's."""

from __future__ import annotations

import pytest

from estatelib import Estate


@pytest.fixture(scope="session")
def estate() -> Estate:
    """The running lab, with playbooks/list_host.yml rolled out."""
    return Estate()
