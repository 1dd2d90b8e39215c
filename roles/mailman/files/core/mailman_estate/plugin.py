"""The plugin that ``[plugin.estate] class: mailman_estate.plugin.EstatePlugin`` loads into every Mailman process.

Each piece is a module of this package with an ``install()`` that puts it in its place; all of them work on Mailman
3.3.9 and 3.3.10. A piece that cannot be installed is logged and left out: Mailman then does without it, and no mail
waits or is lost for that. A piece that this installation does not have (its module is missing) is no error.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec

from mailman.interfaces.plugin import IPlugin
from public import public
from zope.interface import implementer

log = logging.getLogger("mailman.plugins")

#: Pieces that must be in place before rules, handlers and pipelines are made, in this order.
EARLY = ("organisation", "munging")
#: Pieces that change what is made by then.
LATE = ("runners", "recipients")


@public
@implementer(IPlugin)
class EstatePlugin:
    """The estate's plugin; ``name`` is set by Mailman to the name of the section in mailman.cfg."""

    name = "estate"

    def __init__(self) -> None:
        #: The root of the REST resources below /3.1/plugins/<name>/, None while there is none.
        self.resource: object | None = None

    def pre_hook(self) -> None:
        """Called before the database is opened and rules, chains, handlers and pipelines are made."""
        for piece in EARLY:
            _install(piece)

    def post_hook(self) -> None:
        """Called when everything is made."""
        for piece in LATE:
            _install(piece)
        rest = _module("rest")
        self.resource = getattr(rest, "resource", None)


def _install(piece: str) -> None:
    """Call the piece's ``install()``; whatever it raises is logged and never stops Mailman."""
    module = _module(piece)
    if module is None:
        return
    try:
        module.install()
    except Exception:
        log.exception("mailman_estate.%s could not be installed; Mailman works on without it", piece)


def _module(piece: str) -> object | None:
    """The module of this package with that name, None where there is none or it cannot be loaded (logged)."""
    name = f"{__package__}.{piece}"
    if find_spec(name) is None:
        return None
    try:
        return import_module(name)
    except Exception:
        log.exception("%s could not be loaded; Mailman works on without it", name)
        return None
