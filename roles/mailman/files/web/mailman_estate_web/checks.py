"""Django system checks: what protects the site and is not switched on stops ``migrate`` and the start."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import Error, Tags, register

from . import limits
from . import settings as defaults


def register_checks() -> None:
    """Have Django run the checks of this module."""
    register(check_settings, Tags.security)


def check_settings(app_configs: Any, **kwargs: Any) -> list[Error]:
    """The middleware is there, the counters are shared by all processes, the limits can be understood."""
    problems: list[Error] = []

    def problem(number: int, text: str, hint: str) -> None:
        problems.append(Error(text, hint=hint, id=f"mailman_estate_web.E{number:03}"))

    missing = sorted(name for name in vars(defaults) if name.startswith("ESTATE_") and not hasattr(settings, name))
    if missing:
        problem(4, f"{', '.join(missing)} not set.", "from mailman_estate_web.settings import *")
        return problems
    if settings.ESTATE_MIDDLEWARE[0] not in settings.MIDDLEWARE:
        problem(1, "Nothing limits how often passwords are tried.", "MIDDLEWARE += ESTATE_MIDDLEWARE")
    if "limits" not in settings.CACHES:
        problem(2, "The rate limits have no cache.", 'CACHES["limits"] = ESTATE_LIMITS_CACHE')
    elif settings.CACHES["limits"]["BACKEND"].endswith((".LocMemCache", ".DummyCache")):
        problem(2, "Each process would count for itself.", 'CACHES["limits"] = ESTATE_LIMITS_CACHE')
    try:
        limits.read_limits(settings.ESTATE_RATE_LIMITS)
    except ValueError as error:
        problem(3, f"ESTATE_RATE_LIMITS: {error}", 'For example {"log_in": {"client": "60/5m", "target": "10/10m"}}')
    return problems
