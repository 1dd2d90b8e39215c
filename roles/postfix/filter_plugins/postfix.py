"""Filters that turn the data of the postfix role into main.cf values, master.cf services and lookup tables.

Syntax and meaning of what they write are those of postconf(5), master(5) and postmap(1).
"""

from __future__ import annotations

import re
from typing import Any

INDEXED_TYPES = ("lmdb", "hash", "btree")
TEXT_TYPES = ("texthash", "cidr", "regexp", "pcre")
MAP_TYPES = (*INDEXED_TYPES, *TEXT_TYPES, "inline")
MAPS_DIRECTORY = "/etc/postfix/maps.d"
LINE = 90

COLUMNS = ("private", "unprivileged", "chroot", "wakeup", "process_limit")
ARGUMENT_KEYS = ("name", "type", *COLUMNS, "command", "args", "state")

_MAP_REFERENCE = re.compile(r"(?<![\w-])map:([\w.-]+)")
_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
_PARAMETER = re.compile(r"^[A-Za-z][A-Za-z0-9_]*$")


def _scalar(value: Any) -> str:
    """One value as Postfix writes it: yes and no for booleans, nothing for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value).strip()


def _results(value: Any) -> str:
    """The right-hand side of a table entry; several results are joined by commas."""
    return ", ".join(_scalar(item) for item in value) if isinstance(value, list) else _scalar(value)


def _entries(table: dict[str, Any]) -> list[str]:
    """The lines of a table, from a dict of keys or from lines as they are."""
    entries = table.get("entries") or []
    if isinstance(entries, dict):
        return [f"{key}\t{_results(value)}" for key, value in entries.items()]
    return [str(line) for line in entries]


def _reference(name: str, maps: dict[str, Any]) -> str:
    """type:path of a table, or its whole content where the type is inline."""
    table = maps[name]
    if table["type"] == "inline":
        pairs = ", ".join(f"{{ {key} = {_results(value)} }}" for key, value in table["entries"].items())
        return f"inline:{{ {pairs} }}"
    return f"{table['type']}:{MAPS_DIRECTORY}/{name}"


def postfix_value(value: Any, maps: dict[str, Any], single_line: bool = False) -> str:
    """A parameter's value, with the blank before it.

    A list that is too long for one line goes to continuation lines, unless ``single_line`` is set. ``map:NAME`` becomes
    the type and path of that table.
    """
    items = value if isinstance(value, list) else [value]
    texts = [_MAP_REFERENCE.sub(lambda match: _reference(match[1], maps), _scalar(item)) for item in items]
    if not texts or texts == [""]:
        return ""
    texts = [re.sub(r"\s*\n\s*", " " if single_line else "\n    ", text) for text in texts]
    line = ", ".join(texts)
    if single_line or len(texts) == 1 or len(line) <= LINE:
        return " " + line
    return "\n    " + ",\n    ".join(texts)


def postfix_services(stock: list[dict[str, Any]], services: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """master.cf services: ``services`` merged on ``stock`` by name and type, those with state absent left out.

    A service that replaces another keeps its place in the file, so that a difference shows only what changed.
    """
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for service in [*stock, *services]:
        key = (service["name"], service["type"])
        before = merged.get(key, dict.fromkeys(COLUMNS, "-") | {"command": "", "args": {}, "state": "present"})
        given = {name: value for name, value in service.items() if value is not None}
        merged[key] = before | given | {"args": before["args"] | given.get("args", {})}
    return [service for service in merged.values() if service["state"] == "present"]


def _is_secret(table: dict[str, Any]) -> bool:
    return not int(str(table.get("mode") or "0644"), 8) & 0o004


def _content(table: dict[str, Any], header: str) -> str:
    return "\n".join([header.rstrip(), "", *_entries(table)]) + "\n"


def postfix_map_files(maps: dict[str, Any], header: str) -> dict[str, dict[str, Any]]:
    """Tables that are files, by name: type, mode and content; the content of a secret one is left out."""
    return {
        name: {
            "type": table["type"],
            "mode": str(table.get("mode") or "0644"),
            "content": None if _is_secret(table) else _content(table, header),
        }
        for name, table in maps.items()
        if table["type"] != "inline"
    }


def postfix_secret_map_files(maps: dict[str, Any], header: str) -> dict[str, str]:
    """The content of the secret tables, by name."""
    return {
        name: _content(table, header) for name, table in maps.items() if table["type"] != "inline" and _is_secret(table)
    }


def _table_problems(name: str, table: Any) -> list[str]:
    where = f"postfix_maps.{name}"
    if not _NAME.match(name):
        return [f"{where}: a table's name is a file name of letters, digits, '_', '-' and '.'."]
    if not isinstance(table, dict):
        return [f"{where} must be a dict with type and entries."]
    problems = [
        f"{where}.{key} is unknown; allowed are type, entries and mode."
        for key in table
        if key not in ("type", "entries", "mode")
    ]
    kind = table.get("type")
    if kind not in MAP_TYPES:
        problems.append(f"{where}.type is {kind!r}; allowed are {', '.join(MAP_TYPES)}.")
    entries = table.get("entries")
    if not isinstance(entries, (dict, list)):
        problems.append(f"{where}.entries must be a dict or a list of lines.")
        return problems
    if kind == "inline" and not (isinstance(entries, dict) and entries):
        problems.append(f"{where}.entries must be a dict with at least one key, because its type is inline.")
    keyed = isinstance(entries, dict)
    for number, entry in enumerate(entries, 1):
        text = _results(entries[entry]) if keyed else str(entry)
        label = f"the entry {entry!r}" if keyed else f"line {number}"  # a whole line may be a secret
        if "\n" in f"{entry}{text}":
            problems.append(f"{where}: {label} contains a line break.")
        elif keyed and kind in INDEXED_TYPES and not re.fullmatch(r"[^\s#]\S*", str(entry)):
            problems.append(f"{where}: the key {entry!r} is empty or contains a blank, or begins with '#'.")
        elif not text:
            problems.append(f"{where}: {label} {'has no result' if keyed else 'is empty'}.")
    mode = table.get("mode") or "0644"
    if not isinstance(mode, str) or not re.fullmatch(r"0?[0-7]{3}", mode):  # 0640 without quotes is the number 416
        problems.append(f"{where}.mode is {mode!r}; write it as a quoted octal number such as '0640'.")
    elif kind == "inline" and _is_secret(table):
        problems.append(f"{where}.mode is {mode!r}, but everyone can read main.cf, where an inline table stands.")
    return problems


def _parameter_problems(where: str, parameters: dict[str, Any], maps: dict[str, Any]) -> list[str]:
    problems = []
    for name, value in parameters.items():
        if not _PARAMETER.match(str(name)):
            problems.append(f"{where}: {name!r} cannot be a main.cf parameter.")
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, (dict, list)) for item in items):
            problems.append(f"{where}.{name} must be a string, a number, a boolean or a list of those, not {value!r}.")
            continue
        for reference in _MAP_REFERENCE.findall(" ".join(map(_scalar, items))):
            if reference not in maps:
                problems.append(f"{where}.{name} refers to map:{reference}, but postfix_maps has no {reference!r}.")
    return problems


def _service_problems(services: list[dict[str, Any]], stock: list[dict[str, Any]], maps: dict[str, Any]) -> list[str]:
    known = {(service["name"], service["type"]) for service in stock}
    problems, seen = [], set()
    for service in services:
        key = (service["name"], service["type"])
        where = f"postfix_master: the service {key[0]}/{key[1]}"
        if key in seen:
            problems.append(f"{where} is given twice.")
        seen.add(key)
        unknown = [name for name in service if name not in ARGUMENT_KEYS]
        if unknown:
            problems.append(f"{where} has unknown keys: {', '.join(unknown)}.")
        if service.get("state") == "absent":
            if key not in known:
                problems.append(f"{where} is to be absent, but Postfix has no such service of its own.")
            continue
        if key not in known and not service.get("command"):
            problems.append(f"{where} is not one of Postfix's own and therefore needs a command.")
        problems += _parameter_problems(f"{where}, args", service.get("args") or {}, maps)
    return problems


def postfix_problems(data: dict[str, Any]) -> list[str]:
    """What contradicts itself in the role's arguments, in plain sentences; empty when nothing does.

    ``data`` has the keys main, overrides, master, maps, aliases, tls_chain, tls_chain_files and services (Postfix's
    own).
    """
    maps = data["maps"]
    problems = [problem for name, table in maps.items() for problem in _table_problems(str(name), table)]
    problems += _parameter_problems("postfix_main", data["main"], maps)
    problems += _parameter_problems("postfix_main_overrides", data["overrides"], maps)
    problems += _service_problems(data["master"], data["services"], maps)
    for name, target in data["aliases"].items():
        if not _results(target) or "\n" in _results(target):
            problems.append(f"postfix_aliases.{name} needs an address or a list of addresses, not {target!r}.")
    chain = data["tls_chain"]
    if chain and not ("PRIVATE KEY-----" in chain and "-----BEGIN CERTIFICATE-----" in chain):
        problems.append("postfix_tls_chain must hold a private key followed by its certificate chain, both as PEM.")
    files = data["tls_chain_files"]
    if chain and files:
        problems.append("postfix_tls_chain and postfix_tls_chain_files are both given; one of them must be empty.")
    problems += [
        f"postfix_tls_chain_files has {path!r}, which is no plain absolute path."
        for path in files
        if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", str(path))
    ]
    return problems


class FilterModule:
    """The filters of the postfix role."""

    def filters(self) -> dict[str, Any]:
        """Filters by name."""
        return {
            "postfix_map_files": postfix_map_files,
            "postfix_problems": postfix_problems,
            "postfix_secret_map_files": postfix_secret_map_files,
            "postfix_services": postfix_services,
            "postfix_value": postfix_value,
        }
