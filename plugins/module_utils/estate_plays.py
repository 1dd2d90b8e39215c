"""What a run will do to a host and with which variables, read from the playbooks and the roles before it starts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML as Ansible writes it: values with tags such as ``!vault`` are of no interest here."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def roles_of(groups: Iterable[str], playbooks: str | Path, site: str = "site.yml") -> list[str]:
    """The roles, in the order of their application, that ``site`` and what it imports apply to members of ``groups``.

    :param groups: the inventory groups of a host (``group_names``); ``all`` is added.
    :param playbooks: the directory of the playbooks.
    :raises ValueError: when a playbook is missing or no YAML.
    """
    member = {*groups, "all"}
    roles: dict[str, None] = {}
    for play in _plays_of(Path(playbooks) / site, ()):
        if _applies(play.get("hosts"), member):
            for role in play.get("roles") or []:
                roles[role if isinstance(role, str) else role.get("role") or role["name"]] = None
    return list(roles)


def argument_spec(role: str, roles: str | Path) -> dict[str, Any]:
    """The options of a role's main entry point, from its meta/argument_specs.yml.

    :param roles: the directory of the roles.
    :raises ValueError: when the role has none.
    """
    content = _read(Path(roles) / role / "meta" / "argument_specs.yml")
    try:
        return content["argument_specs"]["main"]["options"]
    except (KeyError, TypeError):
        raise ValueError(f"meta/argument_specs.yml of the role {role} has no argument_specs.main.options") from None


def role_problems(results: Iterable[Mapping[str, Any]], names: Iterable[str], roles: str | Path) -> list[str]:
    """What is wrong with a host's role variables.

    :param results: the results of ``validate_argument_spec``, looped over role names.
    :param names: the names of all variables of the host.
    :param roles: the directory of the roles.
    """
    found = []
    known = sorted({str(name) for name in names})
    for result in results:
        role = str(result["item"])
        if result.get("argument_errors"):
            found += [f"role {role}: {error}" for error in result["argument_errors"]]
        elif not str(result.get("msg", "")).endswith("passed"):
            found.append(f"role {role}: {result.get('msg')}")
        options = argument_spec(role, roles)
        for name in known:
            if name.startswith(f"{role}_") and name not in options:
                close = difflib.get_close_matches(name, sorted(options), n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                found.append(f"role {role}: {name} is no argument of it{hint} (roles/{role}/defaults/main.yml has all)")
    return found


def _plays_of(path: Path, above: tuple[Path, ...]) -> Iterable[dict[str, Any]]:
    if path in above:
        raise ValueError(f"{path} imports itself")
    content = _read(path)
    for play in content if isinstance(content, list) else []:
        imported = play.get("ansible.builtin.import_playbook") or play.get("import_playbook")
        if imported:
            yield from _plays_of(path.parent / imported, (*above, path))
        else:
            yield play


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error


def _applies(hosts: Any, member: set[str]) -> bool:
    """Whether a host pattern of group names (``a:b``, ``a:!b``, ``a:&b``) takes in a host of these groups."""
    terms = hosts if isinstance(hosts, list) else re.split(r"[,:]", str(hosts))
    names = [str(term).strip() for term in terms if str(term).strip()]
    chosen = any(name in member for name in names if name[0] not in "!&")
    excluded = any(name[1:] in member for name in names if name[0] == "!")
    required = all(name[1:] in member for name in names if name[0] == "&")
    return chosen and required and not excluded
