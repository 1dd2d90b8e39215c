"""A list that the archive meets for the first time is private until core has said what it is.

HyperKitty takes every list for a public one at its first post and asks core afterwards, by a task: until that has run,
a private list's archive would be open, and with the tasks' service away for as long as that lasts.
"""

from __future__ import annotations

from typing import Any

from django.db.models.signals import pre_save


def connect() -> None:
    """Have new lists closed."""
    from hyperkitty.models import MailingList

    pre_save.connect(close_new_list, sender=MailingList, dispatch_uid="mailman_estate_web.archive")


def close_new_list(instance: Any, raw: bool = False, **_: Any) -> None:
    """Make a list private that is saved for the first time."""
    from hyperkitty.models import ArchivePolicy

    if instance._state.adding and not raw:
        instance.archive_policy = ArchivePolicy.private.value
