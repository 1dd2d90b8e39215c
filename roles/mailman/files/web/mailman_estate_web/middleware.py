"""Before each view: rate limits, and what only Mailman's core may ask. After it: a provider that does not answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from allauth.socialaccount.providers.oauth2.client import OAuth2Error
from django.http import Http404, HttpRequest, HttpResponse
from requests import RequestException

from . import limits, pages

logger = logging.getLogger(__name__)

#: Views of HyperKitty for core alone. They look at the peer's address, which is loopback for whatever the proxy passes
#: on, so that only their key would protect them.
CORE_VIEWS = frozenset({"hk_mailman_urls", "hk_mailman_archive"})
PROVIDER_VIEWS = frozenset({"openid_connect_login", "openid_connect_callback"})


class EstateMiddleware:
    """See the module."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view: Any, arguments: Any, keywords: Any) -> HttpResponse | None:
        name = _view_name(request)
        if name in CORE_VIEWS and limits.is_forwarded(request):
            raise Http404
        wait = limits.seconds_to_wait(request, name)
        if not wait:
            return None
        logger.warning("rate limit of %s reached", name)
        return pages.too_many(request, wait)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """The provider's discovery document is fetched where allauth catches nothing: 503 instead of 500."""
        if _view_name(request) not in PROVIDER_VIEWS or not isinstance(exception, RequestException | OAuth2Error):
            return None
        return pages.provider_unavailable(request, exception)


def _view_name(request: HttpRequest) -> str:
    match = request.resolver_match
    return (match.url_name or "") if match else ""
