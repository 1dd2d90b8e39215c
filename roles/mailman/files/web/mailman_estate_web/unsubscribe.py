"""One-click unsubscription (RFC 8058): a POST with a token from a member's own copy ends that membership.

No cookies, no log-in, no redirect, no question (§3.1, §3.2): the receiver's mail system sends the POST for its user.
GET shows a page with a button and changes nothing, since link checkers fetch every URL in a mail. The token
(mailman_estate/one_click.py) names the membership, so that nothing but this membership can be ended with it, and
nothing at all once it has ended. The log names the list, never the member or the token.

Answers to a POST: 200 removed, or not a member any more (the mail system may send it twice); 400 the body is not that
of RFC 8058 §3.2; 404 the token was not made here; 503 Mailman does not answer, come again.
"""

from __future__ import annotations

import logging
import os
from urllib.parse import quote

import requests
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.utils.translation import get_language
from django.views.decorators.csrf import csrf_exempt

from mailman_estate import one_click

from . import pages

logger = logging.getLogger(__name__)

#: Seconds to connect to Mailman's core, and to wait for its answer: it may be writing a notice to the list's owners.
TIMEOUT = (3, 20)
RETRY_AFTER = 300
METHODS = ("GET", "HEAD", "POST")

_keys: tuple[tuple[int, int], tuple[bytes, ...]] | None = None


class CoreError(Exception):
    """Mailman's core did not answer, or not as it should."""


@csrf_exempt
def unsubscribe(request: HttpRequest, token: str) -> HttpResponse:
    """See the module."""
    if request.method not in METHODS:
        return pages.protect(HttpResponseNotAllowed(METHODS))
    try:
        list_id, member_id = one_click.read_token(_read_keys(), token)
    except OSError as error:
        logger.error("the key of the one-click tokens cannot be read: %s", error.strerror)
        return _later(request)
    except ValueError:
        return _unknown(request)
    try:
        if request.method == "POST":
            return _remove(request, list_id, member_id)
        return _ask(request, list_id, member_id)
    except (CoreError, requests.RequestException) as error:
        # An exception of requests may quote the URL, and with it the member.
        reason = str(error) if isinstance(error, CoreError) else type(error).__name__
        logger.warning("one-click unsubscription from %s: Mailman's core: %s", list_id, reason)
        return _later(request)


def _remove(request: HttpRequest, list_id: str, member_id: str) -> HttpResponse:
    request.upload_handlers = []  # files are no part of this
    if request.POST.getlist("List-Unsubscribe") != ["One-Click"]:
        return _answer(
            request,
            400,
            {"en": "Nothing was changed", "ja": "変更はありません"},
            {
                "en": "The request must have the one field List-Unsubscribe=One-Click (RFC 8058).",
                "ja": "リクエストには List-Unsubscribe=One-Click という項目が必要です (RFC 8058)。",
            },
        )
    gone = not _is_member(list_id, member_id)
    if not gone:
        answer = _call("DELETE", f"members/{member_id}", {"pre_confirmed": "true", "pre_approved": "true"})
        gone = answer.status_code == 404  # somebody was faster
        if not gone and answer.status_code != 204:
            raise CoreError(f"answered {answer.status_code} when asked to remove a member")
        logger.info("one-click unsubscription from %s", list_id)
    name = _address(list_id)
    if gone:
        return _answer(
            request,
            200,
            *_ended(name),
        )
    return _answer(
        request,
        200,
        {"en": "Unsubscribed", "ja": "登録を解除しました"},
        {
            "en": f"You have been unsubscribed from {name} and will get no more mail from it.",
            "ja": f"{name} の登録を解除しました。今後このリストからのメールは届きません。",
        },
    )


def _ask(request: HttpRequest, list_id: str, member_id: str) -> HttpResponse:
    name = _address(list_id)
    if not _is_member(list_id, member_id):
        return pages.page(
            request,
            *_ended(name),
            status=410,
        )
    return pages.page(
        request,
        {"en": f"Unsubscribe from {name}", "ja": f"{name} の登録解除"},
        {
            "en": f"Press the button to end the subscription of the address to which {name} sent the mail with this"
            " link.",
            "ja": f"下のボタンを押すと、このリンクを含むメールを受け取ったアドレスの {name} への登録を解除します。",
        },
        button={"en": "Unsubscribe", "ja": "登録を解除する"},
    )


def _ended(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Title and text where nobody is left to remove."""
    return {"en": "You are not subscribed", "ja": "登録されていません"}, {
        "en": f"The subscription to {name} that this link belongs to has already ended.",
        "ja": f"このリンクに対応する {name} の登録は、すでに解除されています。",
    }


def _unknown(request: HttpRequest) -> HttpResponse:
    return _answer(
        request,
        404,
        {"en": "This link is not valid", "ja": "このリンクは無効です"},
        {
            "en": "It was not made here, or it is not complete. Nothing was changed.",
            "ja": "このサイトのリンクではないか、途中で切れています。変更は行われていません。",
        },
    )


def _later(request: HttpRequest) -> HttpResponse:
    return _answer(
        request,
        503,
        {"en": "Please try again later", "ja": "後でもう一度お試しください"},
        {
            "en": "The mailing list system does not answer at the moment. Nothing was changed.",
            "ja": "メーリングリストのシステムが現在応答していません。変更は行われていません。",
        },
        RETRY_AFTER,
    )


def _answer(
    request: HttpRequest, status: int, title: dict[str, str], text: dict[str, str], retry_after: int = 0
) -> HttpResponse:
    """A page for whoever pressed our button or opened the link, a line of text for a mail system's POST."""
    if request.method != "POST" or (status in (200, 503) and "page" in request.POST):
        return pages.page(request, title, text, status=status, retry_after=retry_after)
    content = f"{pages.in_language(title)[1]}. {pages.in_language(text)[1]}\n"
    response = HttpResponse(content, status=status, content_type="text/plain; charset=utf-8")
    response["Content-Language"] = get_language() or "en"
    return pages.protect(response, retry_after)


def _is_member(list_id: str, member_id: str) -> bool:
    answer = _call("GET", f"members/{member_id}")
    if answer.status_code == 404:
        return False
    if answer.status_code != 200:
        raise CoreError(f"answered {answer.status_code} when asked for a member")
    member = answer.json()
    return member.get("list_id") == list_id and member.get("role") == "member"


def _call(method: str, path: str, data: dict[str, str] | None = None) -> requests.Response:
    """Ask Mailman's REST interface; every answer is returned, also one that says no."""
    return requests.request(
        method,
        f"{settings.MAILMAN_REST_API_URL}/3.1/{path}",
        data=data,
        auth=(settings.MAILMAN_REST_API_USER, settings.MAILMAN_REST_API_PASS),
        timeout=TIMEOUT,
    )


def _address(list_id: str) -> str:
    """How people know the list; its id where the list is no more."""
    answer = _call("GET", f"lists/{quote(list_id, safe='')}")
    return str(answer.json().get("fqdn_listname", list_id)) if answer.status_code == 200 else list_id


def _read_keys() -> tuple[bytes, ...]:
    """The keys, read anew when their file was replaced."""
    global _keys
    path = settings.ESTATE_UNSUBSCRIBE_KEY_FILE
    status = os.stat(path)
    version = (status.st_mtime_ns, status.st_ino)
    if _keys is None or _keys[0] != version:
        try:
            _keys = version, one_click.load_keys(path)
        except ValueError as error:
            raise OSError(0, str(error)) from error
    return _keys[1]
