"""Every role says what its arguments are, once: meta/argument_specs.yml and defaults/main.yml never disagree.

An argument without a sensible default stands commented out in the defaults and is ``required`` in the specification.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
ROLES = sorted(
    path.parent.parent
    for parent in ("roles", "lab/roles")
    for path in (REPOSITORY / parent).glob("*/defaults/main.yml")
)
READ_SUFFIXES = {".yml", ".yaml", ".j2", ".lua", ".conf", ".py"}

pytestmark = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def options(role: Path) -> dict[str, Any]:
    """The options of all entry points of a role."""
    content = yaml.safe_load((role / "meta/argument_specs.yml").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for entry in content["argument_specs"].values():
        found |= entry.get("options", {})
    return found


def defaults(role: Path) -> dict[str, Any]:
    """The role's defaults."""
    return yaml.safe_load((role / "defaults/main.yml").read_text(encoding="utf-8")) or {}


def commented_out(role: Path) -> set[str]:
    """The arguments that stand in the defaults as a comment, because they have no sensible default."""
    text = (role / "defaults/main.yml").read_text(encoding="utf-8")
    return set(re.findall(rf"^# ?({re.escape(role.name)}_\w+):", text, re.MULTILINE))


def is_template(value: Any) -> bool:
    """Whether a default is computed, so that the specification cannot state it."""
    if isinstance(value, dict):
        return any(is_template(inner) for inner in value.values())
    if isinstance(value, list):
        return any(is_template(inner) for inner in value)
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def described(name: str, option: dict[str, Any]) -> list[str]:
    """What an option and the options below it lack."""
    found = [f"{name}: no {field}" for field in ("description", "type") if not option.get(field)]
    if option.get("type") == "list" and not option.get("elements"):
        found.append(f"{name}: a list without elements")
    for inner, value in option.get("options", {}).items():
        found += described(f"{name}.{inner}", value)
    return found


def test_role_has_a_specification(role):
    assert (role / "meta/argument_specs.yml").is_file()


def test_every_default_is_specified(role):
    assert set(defaults(role)) - set(options(role)) == set()


def test_every_specified_argument_stands_in_the_defaults(role):
    assert set(options(role)) - set(defaults(role)) - commented_out(role) == set()


def test_mandatory_arguments_are_commented_out_and_only_they(role):
    required = {name for name, option in options(role).items() if option.get("required")}
    assert required & set(defaults(role)) == set(), "required, but the defaults set it"
    assert required - commented_out(role) == set(), "required, but the defaults do not mention it"
    assert set(options(role)) - set(defaults(role)) - required == set(), "neither default nor required"


def test_literal_defaults_are_equal(role):
    specified = options(role)
    different = {
        name: (value, specified[name].get("default"))
        for name, value in defaults(role).items()
        if name in specified and not is_template(value) and value != specified[name].get("default")
    }
    assert different == {}, "default in defaults/main.yml, default in argument_specs.yml"


def test_computed_defaults_are_not_stated(role):
    specified = options(role)
    stated = [name for name, value in defaults(role).items() if is_template(value) and "default" in specified[name]]
    assert stated == []


def test_every_option_has_a_description_and_a_type(role):
    assert [fault for name, option in options(role).items() for fault in described(name, option)] == []


def test_arguments_carry_the_name_of_the_role(role):
    assert [name for name in options(role) if not name.startswith(f"{role.name}_")] == []


def test_every_argument_is_used(role):
    texts = [
        path.read_text(encoding="utf-8", errors="replace")
        for path in role.rglob("*")
        if path.is_file() and path.suffix in READ_SUFFIXES and path.parent.name not in ("defaults", "meta")
    ]
    # A default that another default is computed from is used as well; a comment about it is no use.
    texts.append(
        re.sub(r"^(#.*|\w+:)", "", (role / "defaults/main.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    used = set(re.findall(r"\w+", "\n".join(texts)))
    assert sorted((commented_out(role) | set(defaults(role))) - used) == []
