"""The settings file, JSON, written by Ansible: domains, decisions about senders, readers, where things are."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT = Path("/etc/dmarc-analysis.json")
KINDS = ("own", "provider", "forwarder", "spoof")


class SettingsError(Exception):
    """The settings cannot be used; the message says why."""


@dataclass(frozen=True)
class Settings:
    """What the programs work by. ``python`` is the interpreter that has the database of addresses."""

    database: str
    domains: tuple[str, ...]
    senders: tuple[dict[str, str], ...]
    readers: tuple[str, ...]
    sql: Path
    python: Path
    nameservers: tuple[str, ...]
    dns_seconds: float


def load(path: Path) -> Settings:
    """Read the settings.

    :raises SettingsError: when the file cannot be read or is wrong.
    """
    try:
        given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        senders = []
        for sender in given["senders"]:
            network = str(ipaddress.ip_network(sender["network"]))
            if sender["kind"] not in KINDS:
                raise SettingsError(f"{path}: {network} is {sender['kind']!r}; known are {', '.join(KINDS)}")
            senders.append({**sender, "network": network})
        return Settings(
            database=given["database"],
            domains=tuple(sorted({name.lower().rstrip(".") for name in given["domains"]})),
            senders=tuple(senders),
            readers=tuple(given["readers"]),
            sql=Path(given["sql"]),
            python=Path(given["python"]),
            nameservers=tuple(given["nameservers"]),
            dns_seconds=float(given["dns_seconds"]),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from error
