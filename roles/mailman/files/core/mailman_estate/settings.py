"""The plugin's own settings: the section ``[estate]`` of the file that ``[plugin.estate] configuration`` names.

    [estate]
    web_base = https://lists.example.org
    unsubscribe_key_file = /etc/mailman3/unsubscribe.key
    smtp_connections = 4

The pieces get them as a mapping of strings in ``install(settings)`` and read what is theirs.
"""

from __future__ import annotations

import configparser
import logging
from collections.abc import Mapping
from pathlib import Path

DEFAULT_PATH = "/etc/mailman3/estate.cfg"

log = logging.getLogger("mailman.plugins")


def load(path: str | Path) -> Mapping[str, str]:
    """The settings in a file. One that cannot be read or parsed is logged and counts as empty: every piece has defaults
    that send mail as stock Mailman does, and a list server that sends is better than one that does not start.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
        return dict(parser["estate"])
    except (OSError, UnicodeError, configparser.Error, KeyError) as error:
        log.error("%s gives no settings for the estate's plugin, which works with its defaults: %r", path, error)
        return {}


def number(settings: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    """A whole number of the settings; what is none, or lies outside the bounds, is logged and the default used."""
    given = settings.get(name, "").strip()
    if not given:
        return default
    try:
        if least <= (value := int(given)) <= most:
            return value
    except ValueError:
        pass
    log.error("%s = %s is no whole number from %d to %d; %d is used", name, given, least, most, default)
    return default
