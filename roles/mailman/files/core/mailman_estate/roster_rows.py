"""What a bulk change of a list's members asks for, read and checked as far as that goes without the database."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MAX_ROWS = 2_000
MAX_ADDRESS = 254
MAX_NAME = 200

LISTS = ("remove", "change", "add")
"""In the order in which they are applied, so that an address can leave one role and take another in one request."""
ROLES = ("member", "owner", "moderator", "nonmember")
CHOICES = {
    "role": ROLES,
    "delivery_mode": ("regular", "plaintext_digests", "mime_digests", "summary_digests"),
    "delivery_status": ("enabled", "by_user", "by_moderator", "by_bounces", "unknown"),
    "moderation_action": ("accept", "hold", "reject", "discard", "defer", None),
}
ATTRIBUTES = ("display_name", "delivery_mode", "delivery_status", "moderation_action")
OPTIONS = {"pre_verified": True, "pre_approved": True, "welcome": False}


@dataclass(frozen=True)
class Refusal:
    """A row that is not applied, and why."""

    list: str
    row: int
    email: str
    code: str
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """As the REST answer says it."""
        return {
            "list": self.list,
            "row": self.row,
            "email": self.email,
            "code": self.code,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Row:
    """One membership; ``values`` holds the attributes that were named."""

    list: str
    row: int
    email: str
    role: str
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """What makes two rows the same membership."""
        return self.email.lower(), self.role

    def refused(self, code: str, reason: str) -> Refusal:
        """This row, not applied."""
        return Refusal(self.list, self.row, self.email, code, reason)


@dataclass(frozen=True)
class Request:
    """A whole request: the rows to apply, in their order, those refused already, and how to apply them."""

    rows: tuple[Row, ...]
    refused: tuple[Refusal, ...]
    pre_verified: bool
    welcome: bool


def read_request(body: Any) -> Request:
    """Read a request; raises ValueError, with a sentence, for one that cannot be applied at all."""
    if not isinstance(body, dict):
        raise ValueError("The request must be a JSON object with the lists add, change and remove.")
    if unknown := sorted(set(body) - set(LISTS) - set(OPTIONS)):
        raise ValueError(f"Unknown: {', '.join(map(str, unknown))[:200]}.")
    for name in LISTS:
        if not isinstance(body.get(name, []), list):
            raise ValueError(f"{name} must be a list of rows.")
    options = OPTIONS | {name: body[name] for name in OPTIONS if name in body}
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false.")
    if not options["pre_approved"]:
        raise ValueError("pre_approved must be true: nobody is asked here; use POST /members for those who shall be.")
    count = sum(len(body.get(name, [])) for name in LISTS)
    if count > MAX_ROWS:
        raise ValueError(f"{count} rows are too many for one request; send at most {MAX_ROWS}.")
    rows, refused = [], []
    seen: dict[tuple[str, str], str] = {}
    for row in _rows(body):
        if isinstance(row, Row) and row.key in seen:
            row = row.refused("doubled", f"{row.email} stands as {row.role} in {seen[row.key]} already.")
        if isinstance(row, Refusal):
            refused.append(row)
        else:
            seen[row.key] = f"row {row.row} of {row.list}"
            rows.append(row)
    return Request(tuple(rows), tuple(refused), options["pre_verified"], options["welcome"])


def _rows(body: dict[str, Any]) -> Iterator[Row | Refusal]:
    for name in LISTS:
        for number, given in enumerate(body.get(name, [])):
            yield _row(name, number, given)


def _row(name: str, number: int, given: Any) -> Row | Refusal:
    email = given.get("email") if isinstance(given, dict) else given
    shown = email[:MAX_ADDRESS] if isinstance(email, str) else ""

    def refused(code: str, reason: str) -> Refusal:
        return Refusal(name, number, shown, code, reason)

    if not isinstance(given, dict):
        return refused("invalid_row", "A row must be an object with at least an email.")
    if unknown := sorted(map(str, set(given) - {"email", "role", *ATTRIBUTES})):
        return refused("invalid_row", f"Unknown: {', '.join(unknown)[:200]}.")
    if not isinstance(email, str):
        return refused("invalid_address", "The row has no address.")
    email = email.strip()
    if not email or len(email) > MAX_ADDRESS or email.rpartition("@")[0][64:]:
        return refused("invalid_address", "The address is empty or longer than mail allows.")
    values = {attribute: given[attribute] for attribute in ATTRIBUTES if attribute in given}
    for attribute, allowed in CHOICES.items():
        value = values.get(attribute, allowed[0]) if attribute != "role" else given.get("role", "member")
        if value not in allowed:
            names = ", ".join(map(str, allowed)).replace("None", "null")
            return refused("invalid_row", f"{attribute} must be one of {names}.")
    if "display_name" in values:
        display_name = values["display_name"]
        if not isinstance(display_name, str) or len(display_name) > MAX_NAME:
            return refused("invalid_row", f"display_name must be a text of at most {MAX_NAME} characters.")
        if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in display_name):
            return refused("invalid_row", "display_name must not contain control characters.")
        values["display_name"] = display_name.strip()
    return Row(name, number, email, given.get("role", "member"), values)
