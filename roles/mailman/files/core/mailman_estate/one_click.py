"""The token of a one-click unsubscription (RFC 8058): it names one membership of one list, signed.

The core writes it into ``List-Unsubscribe: <https://…/unsubscribe/TOKEN>`` of a member's own copy; the web application
reads it back. RFC 8058 §3.1 wants an "opaque identifier" that identifies list and recipient and is hard to forge, and
§4 warns of those who guess. Neither Mailman nor Django is imported here, since both sides use it.

    token = base64url( 0x01 | member id, 16 octets | MAC, 16 octets | list id )       without padding

The MAC is HMAC-SHA-256 (RFC 2104, cut to 128 bits as its §5 allows) over everything else and a label that no other use
of the key shares. A membership's id is never given out again, so the token is void once the membership has ended, also
when the same address subscribes anew. The token itself names no address.

Several keys may be given: the first one signs, all of them verify, so that a key can be replaced while mail with the
old one still lies in mailboxes.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import uuid
from collections.abc import Sequence
from pathlib import Path

_VERSION = b"\x01"
_LABEL = b"mailman_estate one-click unsubscription\x00"
_MAC_LENGTH = 16
_HEAD = len(_VERSION) + 16
#: A list id is a host name with a list name in front (RFC 2919 §2): printable ASCII, at most 255 octets.
_LIST_ID = re.compile(r"[!-.0-;=?A-~]{1,255}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{44,384}")
_SHORTEST_KEY = 32

Key = str | bytes


def load_keys(path: str | Path) -> tuple[bytes, ...]:
    """The keys in a file, one a line, the one that signs first; blank lines and lines that start with ``#`` are none.

    Raises OSError when the file cannot be read and ValueError when it has no key or a short one; the message never
    quotes the key.
    """
    lines = [line.strip() for line in Path(path).read_bytes().splitlines()]
    return _keys([line for line in lines if line and not line.startswith(b"#")], str(path))


def make_token(key: Key | Sequence[Key], list_id: str, member_id: uuid.UUID | str | int) -> str:
    """The token for a member of a list, signed with ``key`` or the first of several.

    ``list_id`` is Mailman's (``dev.ml.example.org``); ``member_id`` the membership's UUID, as such, as hexadecimal or
    as the integer that Mailman stores. Raises ValueError for anything else.
    """
    if not _LIST_ID.fullmatch(list_id):
        raise ValueError(f"{list_id!r} is no list id")
    payload = _VERSION + _member(member_id).bytes + list_id.encode("ascii")
    mac = _mac(_keys(key)[0], payload)
    return base64.urlsafe_b64encode(payload[:_HEAD] + mac + payload[_HEAD:]).rstrip(b"=").decode()


def read_token(key: Key | Sequence[Key], token: str) -> tuple[str, str]:
    """List id and member id (hexadecimal, as Mailman's REST API writes it) of a token signed with one of the keys.

    Raises ValueError for everything that ``make_token`` did not write with one of them, to the octet.
    """
    keys = _keys(key)
    if not _TOKEN.fullmatch(token):
        raise ValueError("this is no token")
    try:
        octets = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("this is no token") from error
    # Unused bits of the last character: one token, one spelling.
    if base64.urlsafe_b64encode(octets).rstrip(b"=").decode() != token or octets[:1] != _VERSION:
        raise ValueError("this is no token")
    payload, mac = octets[:_HEAD] + octets[_HEAD + _MAC_LENGTH :], octets[_HEAD : _HEAD + _MAC_LENGTH]
    # Every key is tried, whether an earlier one fitted or not.
    if not max([hmac.compare_digest(_mac(one, payload), mac) for one in keys]):
        raise ValueError("the token is not signed by this site")
    return payload[_HEAD:].decode(), uuid.UUID(bytes=payload[1:_HEAD]).hex


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, _LABEL + payload, "sha256")[:_MAC_LENGTH]


def _member(member_id: uuid.UUID | str | int) -> uuid.UUID:
    if isinstance(member_id, uuid.UUID):
        return member_id
    try:
        return uuid.UUID(int=member_id) if isinstance(member_id, int) else uuid.UUID(hex=member_id)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{member_id!r} is no member id") from error


def _keys(key: Key | Sequence[Key], source: str = "the key") -> tuple[bytes, ...]:
    given = [key] if isinstance(key, str | bytes) else list(key)
    keys = tuple(one.encode() if isinstance(one, str) else one for one in given)
    if not keys:
        raise ValueError(f"{source}: there is no key")
    if any(len(one) < _SHORTEST_KEY for one in keys):
        raise ValueError(f"{source}: a key has fewer than {_SHORTEST_KEY} characters")
    return keys
