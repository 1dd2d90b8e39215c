"""Rows that Mailman's processes make twice when several begin at once, and that stop every post from then on.

A list's archivers and the cache of template files get their rows when they are first needed: look, and add what is not
there. Nothing in the database keeps two out runners, each with one of a new list's first posts, from adding both. From
then on Mailman asks for the one row and gets an exception, at every post. Here the first row then stays, the others go,
and Mailman asks again.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

from mailman.config import config
from mailman.model.cache import CacheEntry, CacheManager
from mailman.model.mailinglist import ListArchiver, ListArchiverSet
from sqlalchemy.exc import MultipleResultsFound

log = logging.getLogger("mailman.error")

#: A process that began at the same time may add one more after the others went.
TRIES = 5


def install(settings: Mapping[str, str]) -> None:
    """Put this around the methods that ask for one row. A further call does no harm."""
    if hasattr(ListArchiverSet.__init__, "stock"):
        return

    def archivers_of(_: Any, mlist: Any) -> None:
        for archiver in config.archivers:
            _keep_first(ListArchiver, ListArchiver.mailing_list == mlist, ListArchiver.name == archiver.name)

    def one_of(archivers: Any, name: str) -> None:
        mlist = archivers._mailing_list
        _keep_first(ListArchiver, ListArchiver.mailing_list == mlist, ListArchiver.name == name)

    def cached(_: Any, key: str) -> None:
        _keep_first(CacheEntry, CacheEntry.key == key)

    _mend(ListArchiverSet, "__init__", archivers_of)
    _mend(ListArchiverSet, "get", one_of)
    for name in ("add", "get", "evict"):
        _mend(CacheManager, name, cached)


def _mend(owner: type, name: str, tidy: Callable[[Any, Any], None]) -> None:
    """Where a method finds several rows, call ``tidy`` with its object and first argument, and then it again."""
    stock = getattr(owner, name)

    @functools.wraps(stock)
    def method(self: Any, first: Any, *arguments: Any, **options: Any) -> Any:
        for _ in range(TRIES):
            try:
                return stock(self, first, *arguments, **options)
            except MultipleResultsFound:
                tidy(self, first)
        return stock(self, first, *arguments, **options)

    method.stock = stock  # type: ignore[attr-defined]
    setattr(owner, name, method)


def _keep_first(model: Any, *conditions: Any) -> None:
    """Delete all rows of a table that fulfil the conditions but the first."""
    store = config.db.store
    numbers = [number for (number,) in store.query(model.id).filter(*conditions).order_by(model.id)]
    if len(numbers) > 1:
        log.warning("%s: %d rows where there must be one; the first stays", model.__tablename__, len(numbers))
        store.query(model).filter(model.id.in_(numbers[1:])).delete(synchronize_session=False)
