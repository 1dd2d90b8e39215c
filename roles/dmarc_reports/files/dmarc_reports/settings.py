"""What the site says about its reports: one TOML file, written by the role, read once by each command."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from .destinations import Rules
from .package import Sender

CONFIG = Path("/etc/dmarc_reports/reports.toml")


class SettingsError(ValueError):
    """The file cannot be used; the text says why."""


@dataclass(frozen=True)
class Settings:
    """The whole configuration."""

    enabled: bool
    """Whether reports are sent; without, days are closed and reports are kept."""
    database: str
    """Connection string of PostgreSQL."""
    sender: Sender
    key: bytes
    """For the return path."""
    rules: Rules
    rfc7489_receivers: tuple[str, ...]
    """Recipient or policy domains whose reports have the old form; `.example.org` stands for all below it."""
    gateways: tuple[str, ...]
    wait: timedelta
    catch_up_days: int
    spread: timedelta
    per_minute: int
    max_bytes: int
    smtp_host: str
    smtp_port: int
    syslog_name: str
    """Postfix's, as in `postfix/qmgr`."""
    unsure: timedelta
    """How long a hand-over that was cut off may still turn up in the journal."""
    dns_servers: tuple[str, ...]
    bounces: Path
    """Maildir of what comes back."""
    pause_failures: int
    """So many failures in a row, over so many days, and a domain is left alone for a while."""
    pause_days: int
    keep_content_days: int
    keep_events_days: int
    keep_reports_days: int
    survey_to: str = ""
    """Who gets the monthly survey by mail; empty: nobody."""

    @classmethod
    def read(cls, path: Path = CONFIG) -> Settings:
        """Read the file. Raises SettingsError."""
        try:
            content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"{path} is no TOML: {error}") from error
        try:
            return cls(
                enabled=content["enabled"],
                database=content["database"],
                sender=Sender(**content["sender"]),
                key=content["key"].encode("utf-8"),
                rules=Rules(
                    own=tuple(content["own_domains"]),
                    excluded=tuple(content["excluded_domains"]),
                    max_addresses=content["max_addresses"],
                ),
                rfc7489_receivers=tuple(content["rfc7489_receivers"]),
                gateways=tuple(content["gateways"]),
                wait=timedelta(hours=content["wait_hours"]),
                catch_up_days=content["catch_up_days"],
                spread=timedelta(hours=content["spread_hours"]),
                per_minute=content["per_minute"],
                max_bytes=content["max_bytes"],
                smtp_host=content["smtp_host"],
                smtp_port=content["smtp_port"],
                syslog_name=content["syslog_name"],
                unsure=timedelta(seconds=content["unsure_seconds"]),
                dns_servers=tuple(content["dns_servers"]),
                bounces=Path(content["bounces"]),
                pause_failures=content["pause_failures"],
                pause_days=content["pause_days"],
                keep_content_days=content["keep_content_days"],
                keep_events_days=content["keep_events_days"],
                keep_reports_days=content["keep_reports_days"],
                survey_to=content["survey_to"],
            )
        except KeyError as error:
            raise SettingsError(f"{path} lacks {error}") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise SettingsError(f"{path}: {error}") from error
