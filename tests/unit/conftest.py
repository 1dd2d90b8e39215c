"""What the unit tests share: the repository's plugins on the import path, and the lab's data model."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
for directory in ("plugins/module_utils", "plugins/filter", "plugins/modules"):
    sys.path.append(str(REPOSITORY / directory))

# A real RSA-2048 public key, for tests that need one but not its private half.
PUBLIC_KEY = (
    "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEApGq+g7LFcB6dycCLEigrSfOXFt7ijIz+Armbcb612K8BZrWXRL7ISXgZn3Z5ETthmgAVvo"
    "cuOVMq1uV3eu3LBq41mmg2dMohy05j98/c7HE/W+UxSgVMHK7+obRWy7ft6VoGSa+FgsLTRetkLgCk4F+wl+ePl1qeRB3YP33RWEt0mBQYpPKL3nQE"
    "5Y+mPOsxWklg93gXxuwqcQZMcgyd/99JvdRmUbuP/NkC8HCYJ1lUzn6U0BWzxTRxsnNCKwKIIlqhUcZr8dCbZIM6spoB22CIPQD2A09CORUNVoaHAA"
    "vQRgooYGHP9GA4d38m3YljV828iBxQzJfd/jd4OqwnRQIDAQAB"
)


def load_model(site: str) -> dict[str, Any]:
    """``estate_model`` of a site as Ansible would build it, with a fixed key where templates derive one."""
    variables: dict[str, Any] = {}
    for path in sorted((REPOSITORY / "inventory" / site / "group_vars" / "all").glob("*.yml")):
        variables |= yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    variables["estate_dkim_public_keys"] = dict.fromkeys(variables["estate_dkim_public_keys"], PUBLIC_KEY)
    variables |= {"estate_dkim_keys": {}, "estate_tlsa": {}}
    return {field: variables[f"estate_{field}"] for field in variables["estate_model"]}


@pytest.fixture(scope="session")
def models() -> dict[str, dict[str, Any]]:
    return {site: load_model(site) for site in ("lab", "wide")}


@pytest.fixture
def model(models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The lab's data model, the test's own copy."""
    return copy.deepcopy(models["lab"])


@pytest.fixture
def wide_model(models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The production example's data model, the test's own copy."""
    return copy.deepcopy(models["wide"])
