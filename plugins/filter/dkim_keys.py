"""Filters for the life of signing keys that hosts make (``playbooks/dkim_rotate.yml``).

The decisions are made by plugins/module_utils/dkim_life.py, which knows nothing of Ansible. Times are ISO 8601.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

sys.path.append(str(Path(__file__).resolve().parents[1] / "module_utils"))

import dkim_life
import estate_model


def dkim_looks(model: Mapping[str, Any], files: Mapping[str, Any], now: str) -> dict[str, dict[str, str]]:
    """What the name servers are asked: record → zone and expected key (``dkim_look``)."""
    return dkim_life.looks(estate_model.parse(model), files, dkim_life.moment(now))


def dkim_wanted(
    model: Mapping[str, Any],
    files: Mapping[str, Any],
    view: Mapping[str, Any],
    now: str,
    compromised: Sequence[str] = (),
    first_only: bool = False,
) -> dict[str, Any]:
    """Keys that must be made or handed on: ``new``, ``share``, ``waits``."""
    return dkim_life.wanted(
        estate_model.parse(model),
        files,
        view,
        dkim_life.moment(now),
        compromised=compromised,
        first_only=first_only,
    )


def dkim_made(
    model: Mapping[str, Any], work: Mapping[str, Any], files: Mapping[str, Any], now: str
) -> dict[str, dict[str, Any]]:
    """``estate_dkim_keys`` after what ``dkim_wanted`` asked for has been done."""
    return dkim_life.made(estate_model.parse(model), work, files, dkim_life.moment(now))


def dkim_moves(
    model: Mapping[str, Any],
    files: Mapping[str, Any],
    view: Mapping[str, Any],
    now: str,
    compromised: Sequence[str] = (),
    first_only: bool = False,
) -> dict[str, Any]:
    """Keys that can move on, what hosts have to do for it, and what is awaited."""
    return dkim_life.moves(
        estate_model.parse(model),
        files,
        view,
        dkim_life.moment(now),
        compromised=compromised,
        first_only=first_only,
    )


def dkim_done(
    moves: Mapping[str, Any], hosts: Sequence[str], gone: Sequence[str], now: str
) -> dict[str, dict[str, Any]]:
    """``estate_dkim_keys`` after ``hosts`` have done their part of ``dkim_moves``."""
    return dkim_life.done(moves, hosts, gone, dkim_life.moment(now))


def dkim_zones(model: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Zone → the records of the keys that hosts made, as ``dns_update`` takes them."""
    found = dkim_life.key_zones(estate_model.parse(model))
    return {zone: [dict(record) for record in records] for zone, records in found.items()}


def estate_made_seal(model: Mapping[str, Any], host: str, domain: str) -> str:
    """Selector of the ARC key that a host has made and seals with, or nothing: ``estate_model | …(host, domain)``."""
    return estate_model.made_seal(estate_model.parse(model), host, domain)


def dkim_line(record: Mapping[str, Any]) -> str:
    """A record as a line of a master file."""
    return f"{record['name']}. {record['ttl']} IN {record['type']} {record['value']}"


def _in_plain_words(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise AnsibleFilterError(f"{function.__name__}: {type(error).__name__}: {error}") from error

    return wrapped


class FilterModule:
    """What Ansible asks for the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by the name under which templates call them."""
        functions = (dkim_done, dkim_line, dkim_looks, dkim_made, dkim_moves, dkim_wanted, dkim_zones, estate_made_seal)
        return {function.__name__: _in_plain_words(function) for function in functions}
