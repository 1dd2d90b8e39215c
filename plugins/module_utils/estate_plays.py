"""What a run will do to a host and with which variables, read from the playbooks and the roles before it starts."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
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


def role_problems(role: str, roles: str | Path, names: Iterable[str], value_of: Callable[[str], Any]) -> list[str]:
    """What is wrong with a host's variables for one role, by the role's argument specification.

    Ansible's own validator compares them, as it will again when the role starts; here it happens before any host is
    touched, for variables that cannot be computed and for unknown ones too.

    :param roles: the directory of the roles.
    :param names: the names of all variables of the host.
    :param value_of: gives a variable's value; may raise anything when it cannot be computed.
    """
    try:
        options = argument_spec(role, roles)
    except ValueError as error:
        return [f"role {role}: {error}"]
    found, values, broken = [], {}, []
    for name in sorted({str(name) for name in names}):
        if name in options:
            try:
                values[name] = _plain(value_of(name))
            except Exception as error:  # whatever a template raises belongs to the variable
                found.append(f"role {role}: {name} cannot be computed: {error}")
                broken.append(name)
        elif name.startswith(f"{role}_"):
            close = difflib.get_close_matches(name, sorted(options), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            found.append(f"role {role}: {name} is no argument of it{hint} (roles/{role}/defaults/main.yml has all)")
    computed = {name: option for name, option in options.items() if name not in broken}
    result = ArgumentSpecValidator(computed).validate(values)
    secrets = [values[name] for name, option in computed.items() if option.get("no_log") and values.get(name)]
    for message in result.error_messages:
        for secret in secrets:
            message = message.replace(str(secret), "(secret)")
        found.append(f"role {role}: {message}")
    return found


def _plain(value: Any) -> Any:
    """The value with everything in it computed (Ansible computes the parts of lists and mappings when asked for)."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, str) else value


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


@functools.cache
def _read(path: Path) -> Any:
    """The YAML of a file, read once in a process: a template is evaluated several times."""
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
