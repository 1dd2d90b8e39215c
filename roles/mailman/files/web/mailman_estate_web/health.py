"""``/health``: whether the web interface and what it needs are well, for the monitoring on this host."""

from __future__ import annotations

import requests
from django.conf import settings
from django.db import DatabaseError, connection
from django.http import Http404, HttpRequest, JsonResponse
from django.views.decorators.http import require_safe
from django_q.status import Stat

from . import limits

TIMEOUT = 5


@require_safe
def health(request: HttpRequest) -> JsonResponse:
    """200 when all is well, 503 when something is not; 404 to whoever comes through the proxy."""
    if limits.is_forwarded(request):
        raise Http404
    found = {"database": _database(), "mailman": _mailman()}
    # The task queue's heartbeat lies in the database.
    found["tasks"] = _tasks() if found["database"] == "ok" else "unknown"
    response = JsonResponse(found, status=200 if set(found.values()) == {"ok"} else 503)
    response["Cache-Control"] = "no-store"
    return response


def _database() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        return type(error).__name__
    return "ok"


def _mailman() -> str:
    try:
        answer = requests.get(
            f"{settings.MAILMAN_REST_API_URL}/3.1/system/versions",
            auth=(settings.MAILMAN_REST_API_USER, settings.MAILMAN_REST_API_PASS),
            timeout=TIMEOUT,
        )
    except requests.RequestException as error:
        return type(error).__name__
    return "ok" if answer.ok else f"answered {answer.status_code}"


def _tasks() -> str:
    # A cluster writes its state every second, to live for three.
    return "ok" if Stat.get_all() else "no heartbeat"
