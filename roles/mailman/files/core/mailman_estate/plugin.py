"""The plugin that ``[plugin.estate] class: mailman_estate.plugin.EstatePlugin`` loads into every Mailman process.

Each piece is a module of this package with an ``install(settings)`` that puts it in its place; all of them work on
Mailman 3.3.9 and 3.3.10. A piece that cannot be installed is logged and left out: Mailman then does without it, and no
mail waits or is lost for that. A piece that this installation does not have (its module is missing) is no error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from mailman.config import config
from mailman.interfaces.plugin import IPlugin
from public import public
from zope.interface import implementer

from mailman_estate import settings

log = logging.getLogger("mailman.plugins")

#: In this order; all of them once rules, chains, handlers and pipelines are made.
PIECES = ("charsets", "doubles", "authenticity", "dmarc", "munging", "organisation", "recipients", "runners", "deliver")


@public
@implementer(IPlugin)
class EstatePlugin:
    """The estate's plugin; ``name`` is set by Mailman to the name of the section in mailman.cfg."""

    name = "estate"

    def __init__(self) -> None:
        #: The root of the REST resources below /3.1/plugins/<name>/, None while there is none.
        self.resource: object | None = None

    def pre_hook(self) -> None:
        """Called before the database is opened; nothing of ours is needed that early."""

    def post_hook(self) -> None:
        """Called when everything is made: put each piece in its place."""
        section = dict(config.plugin_configs).get(self.name)
        path = section["configuration"].strip() if section is not None else ""
        values = settings.load(path or settings.DEFAULT_PATH)
        for piece in PIECES:
            _install(piece, values)
        self.resource = getattr(_module("rest"), "resource", None)


def _install(piece: str, values: Mapping[str, str]) -> None:
    """Call the piece's ``install``; whatever it raises is logged and never stops Mailman."""
    install = getattr(_module(piece), "install", None)
    if install is None:
        return
    try:
        install(values)
    except Exception:
        log.exception("mailman_estate.%s could not be installed; Mailman works on without it", piece)


def _module(piece: str) -> ModuleType | None:
    """The module of this package with that name, None where there is none or it cannot be loaded (logged)."""
    name = f"{__package__}.{piece}"
    if find_spec(name) is None:
        return None
    try:
        return import_module(name)
    except Exception:
        log.exception("%s could not be loaded; Mailman works on without it", name)
        return None
