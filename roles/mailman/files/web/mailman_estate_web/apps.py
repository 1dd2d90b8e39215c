"""The application's entry in INSTALLED_APPS; it must come before Mailman's own, whose templates it replaces."""

from __future__ import annotations

from django.apps import AppConfig


class EstateWebConfig(AppConfig):
    """Connects our signal handlers and checks once Django knows all models."""

    name = "mailman_estate_web"
    verbose_name = "Mailman of this estate"

    def ready(self) -> None:
        from . import accounts, addresses, archive, checks

        addresses.connect()
        accounts.connect()
        archive.connect()
        checks.register_checks()
