"""Whose report is believed: the gateways' DMARC result, read as RFC 8601 writes it and as attackers would."""

from __future__ import annotations

from email import message_from_string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsedmarc_intake.authentication import problem, statements, without_comments

GATEWAY = "mx.example.org"


def asked(*fields: str, author: str = "noreply@example.com", accepted: tuple[str, ...] = ()) -> str | None:
    """The verdict on a mail with these Authentication-Results."""
    header = "".join(f"Authentication-Results: {field}\n" for field in fields)
    return problem(message_from_string(f"{header}From: {author}\n\nbody\n"), GATEWAY, frozenset(accepted))


@pytest.mark.parametrize(
    "field",
    [
        "mx.example.org; dmarc=pass header.from=example.com",
        "MX.example.org 1; spf=fail; dmarc=pass (p=reject sp=none; pct=100) header.from=Example.COM",
        'mx.example.org; dkim=pass reason="; dmarc=fail"; dmarc = pass',
        '"mx.example.org"; dmarc/1=pass',
        "mx.example.org (a (nested) comment); dmarc=pass",
    ],
)
def test_pass_is_believed(field):
    assert asked(field) is None


@pytest.mark.parametrize(
    "field",
    [
        "mx.example.org; dmarc=fail header.from=example.com",
        "mx.example.org; dmarc=none",
        "mx.example.org; spf=pass; dkim=pass",
        "mx.example.org (; dmarc=pass)",
        'mx.example.org; spf=pass reason="x; dmarc=pass"',
        "mx.example.org; dmarc=pass header.from=example.net",
        "mx.example.org; dmarc=pass; dmarc=fail",
        "mx.example.org; none",
        "mx.example.org",
        "",
        "mx.example.org.evil.example; dmarc=pass",
        "mx.example.com; dmarc=pass",
        "mx.example.org; xdmarc=pass",
    ],
)
def test_anything_else_is_not(field):
    assert asked(field)


def test_only_the_first_field_of_the_gateway_counts():
    assert asked("mx.example.org; dmarc=fail", "mx.example.org; dmarc=pass")
    assert asked("other.example; dmarc=fail", "mx.example.org; dmarc=pass") is None


@pytest.mark.parametrize("author", ["", "nobody", "a@example.com, b@example.net"])
def test_a_report_has_one_author(author):
    assert asked("mx.example.org; dmarc=pass", author=author)


def test_two_from_fields_are_refused():
    mail = message_from_string(
        "Authentication-Results: mx.example.org; dmarc=pass\nFrom: a@example.com\nFrom: b@example.com\n\n"
    )
    assert problem(mail, GATEWAY, frozenset())


def test_accepted_domain_needs_no_pass_but_its_neighbours_do():
    assert asked("mx.example.org; dmarc=fail", accepted=("example.com",)) is None
    assert asked(accepted=("example.com",)) is None
    assert asked("mx.example.org; dmarc=fail", author="a@sub.example.com", accepted=("example.com",))


def test_without_gateway_nothing_is_asked():
    assert problem(message_from_string("From: a@b\n\n"), "", frozenset()) is None


@given(st.text(alphabet='ab();"\\= ', max_size=60))
def test_no_field_is_too_strange(text):
    assert "(" not in without_comments(text) or '"' in text
    identity, found = statements(text)
    assert isinstance(identity, str)
    assert isinstance(found, list)
