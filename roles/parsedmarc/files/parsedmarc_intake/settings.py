"""The settings: an INI file with the one section ``[intake]``."""

from __future__ import annotations

import configparser
from dataclasses import dataclass, field, fields
from pathlib import Path

MEGABYTE = 1 << 20


class SettingsError(Exception):
    """The file of settings cannot be used."""


@dataclass(frozen=True)
class Settings:
    """What the operator decides.

    Sizes are in bytes, ages in days, ``retry_after`` in seconds. ``authserv_id`` is the name by which the gateways sign
    their Authentication-Results (RFC 8601); empty: mail is not asked for a DMARC result.
    """

    home: Path = Path("/var/lib/parsedmarc")
    database: str = "dmarc"
    authserv_id: str = ""
    accept_unauthenticated: frozenset[str] = frozenset()
    failure_reports: bool = False
    max_mail: int = 15 * MEGABYTE
    max_unpacked: int = 50 * MEGABYTE
    max_records: int = 50_000
    keep_reports_months: int = 25
    keep_failure_days: int = 30
    keep_archive_days: int = 90
    keep_set_aside_days: int = 30
    stuck_minutes: int = 30
    memory: int = 2048 * MEGABYTE
    parsedmarc: Path = Path("/opt/parsedmarc/venv/bin/parsedmarc")
    single_config: Path = Path("/etc/parsedmarc-single.ini")
    metrics_file: Path | None = None
    rounds: int = field(default=5)

    @property
    def dsn(self) -> str:
        """Peer authentication by the Unix socket: there is no password."""
        return f"postgresql:///{self.database}?host=/var/run/postgresql&connect_timeout=5"


def load(path: Path) -> Settings:
    """Read the settings.

    Raises SettingsError, in plain words, when the file is missing, has an unknown name or a value of the wrong kind.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with path.open(encoding="utf-8") as file:
            parser.read_file(file)
        section = parser["intake"]
    except (OSError, configparser.Error, KeyError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    known = {item.name: item for item in fields(Settings)}
    values: dict[str, object] = {}
    for name, text in section.items():
        if name not in known:
            raise SettingsError(f"{path}: there is no setting {name}")
        kind = str(known[name].type)
        try:
            if kind == "int":
                values[name] = int(text)
            elif kind == "bool":
                values[name] = section.getboolean(name)
            elif kind.startswith("frozenset"):
                values[name] = frozenset(word.lower() for word in text.split())
            elif kind.startswith("Path"):
                values[name] = Path(text) if text else None
            else:
                values[name] = text
        except ValueError as error:
            raise SettingsError(f"{path}: {name} is {text!r}, which it cannot be") from error
    return Settings(**values)  # type: ignore[arg-type]
