"""Pages that must work when little else does: one template, no database, no session, in the reader's language."""

from __future__ import annotations

import logging

from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.utils.translation import get_language

logger = logging.getLogger(__name__)

#: The pages need nothing from anywhere, and nobody may frame them.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"


def in_language(texts: dict[str, str]) -> tuple[str, str]:
    """The language of the reader that there is a text in, and the text; English where there is no other."""
    language = (get_language() or "en").partition("-")[0]
    language = language if language in texts else "en"
    return language, texts[language]


def page(
    request: HttpRequest,
    title: dict[str, str],
    text: dict[str, str],
    status: int = 200,
    button: dict[str, str] | None = None,
    retry_after: int = 0,
) -> HttpResponse:
    """A page with a heading, a sentence and perhaps a button that posts to the page's own address."""
    language, heading = in_language(title)
    context = {
        "language": language,
        "title": heading,
        "text": in_language(text)[1],
        "button": in_language(button)[1] if button else "",
    }
    response = HttpResponse(render_to_string("mailman_estate_web/page.html", context), status=status)
    return protect(response, retry_after)


def protect(response: HttpResponse, retry_after: int = 0) -> HttpResponse:
    """Headers that keep a page out of caches, search engines, frames and Referer fields.

    Nor does Django log the refusal: it would name the whole path, and with it the token.
    """
    response._has_been_logged = True
    response["Cache-Control"] = "no-store"
    response["Content-Security-Policy"] = POLICY
    response["Referrer-Policy"] = "no-referrer"
    response["X-Robots-Tag"] = "noindex, nofollow"
    if retry_after:
        response["Retry-After"] = str(retry_after)
    return response


def too_many(request: HttpRequest, seconds: int) -> HttpResponse:
    """429 (RFC 6585 §4), with the time to wait."""
    minutes = max(1, -(-seconds // 60))
    return page(
        request,
        {"en": "Too many requests", "ja": "アクセスが多すぎます"},
        {
            "en": "This was tried too often in a short time. Please try again in "
            + ("a minute." if minutes == 1 else f"{minutes} minutes."),
            "ja": f"短い時間に何度も操作が行われました。{minutes}分ほど待ってから、もう一度お試しください。",
        },
        status=429,
        retry_after=seconds,
    )


def handler429(request: HttpRequest) -> HttpResponse:
    """For allauth's own limits, which do not say how long to wait: a minute, or five for failed log-ins."""
    return too_many(request, 300)


def provider_unavailable(request: HttpRequest, error: Exception) -> HttpResponse:
    """503 while the single sign-on cannot be asked; the log says what kind of error it was, not for whom."""
    logger.warning("the OpenID Connect provider cannot be used: %s", type(error).__name__)
    return page(
        request,
        {"en": "Sign-in is not available", "ja": "サインインできません"},
        {
            "en": "The organisation's sign-in service does not answer at the moment. Your account is well."
            " Please try again in a few minutes.",
            "ja": "組織のサインインサービスが現在応答していません。アカウントに問題はありません。"
            "数分後にもう一度お試しください。",
        },
        status=503,
        retry_after=120,
    )
