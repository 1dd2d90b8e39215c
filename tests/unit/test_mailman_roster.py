"""A bulk change of members as it is read: what is refused as a whole, what row by row, and the order of the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailman_estate.roster_rows import MAX_ROWS, Request, read_request


def refusals(request: Request) -> list[tuple[str, int, str]]:
    return [(refusal.list, refusal.row, refusal.code) for refusal in request.refused]


def test_rows_apply_in_an_order_that_lets_a_member_change_the_role():
    request = read_request(
        {
            "add": [{"email": "a@example.org", "role": "owner"}],
            "change": [{"email": "b@example.org", "delivery_mode": "regular"}],
            "remove": [{"email": "a@example.org"}],
        }
    )
    assert [(row.list, row.role) for row in request.rows] == [
        ("remove", "member"), ("change", "member"), ("add", "owner"),
    ]  # fmt: skip
    assert (request.pre_verified, request.welcome, request.refused) == (True, False, ())


@pytest.mark.parametrize(
    "body",
    [
        None, [], "add", 5, {"add": None}, {"add": {}}, {"remove": "a@example.org"}, {"nonsense": []}, {5: []},
        {"pre_verified": "yes"}, {"pre_approved": False}, {"welcome": 1}, {"add": [{}] * (MAX_ROWS + 1)},
        {"add": [{}] * MAX_ROWS, "remove": [{}]},
    ],
)  # fmt: skip
def test_senseless_requests_are_refused_with_a_sentence(body):
    with pytest.raises(ValueError, match=r"\.$"):
        read_request(body)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("a@example.org", "invalid_row"),
        (None, "invalid_row"),
        ([], "invalid_row"),
        ({"email": "a@example.org", "colour": "red"}, "invalid_row"),
        ({"email": "a@example.org", "role": "boss"}, "invalid_row"),
        ({"email": "a@example.org", "role": []}, "invalid_row"),
        ({"email": "a@example.org", "role": None}, "invalid_row"),
        ({"email": "a@example.org", "delivery_mode": {}}, "invalid_row"),
        ({"email": "a@example.org", "delivery_status": None}, "invalid_row"),
        ({"email": "a@example.org", "moderation_action": ""}, "invalid_row"),
        ({"email": "a@example.org", "display_name": None}, "invalid_row"),
        ({"email": "a@example.org", "display_name": "x" * 201}, "invalid_row"),
        ({"email": "a@example.org", "display_name": "a\nb"}, "invalid_row"),
        ({"email": "a@example.org", "display_name": "a\ud800"}, "invalid_row"),
        ({}, "invalid_address"),
        ({"email": 5}, "invalid_address"),
        ({"email": " "}, "invalid_address"),
        ({"email": "x" * 1_000_000}, "invalid_address"),
        ({"email": "x" * 65 + "@example.org"}, "invalid_address"),
    ],
)
@pytest.mark.parametrize("name", ["add", "change", "remove"])
def test_senseless_rows_are_refused_alone(name, row, code):
    request = read_request({name: [row, {"email": "good@example.org"}]})
    assert refusals(request) == [(name, 0, code)]
    assert [row.email for row in request.rows] == ["good@example.org"]
    assert all(len(refusal.email) <= 254 and refusal.reason.endswith(".") for refusal in request.refused)


def test_same_membership_twice_is_applied_once():
    request = read_request(
        {
            "add": [
                {"email": "A@example.org"},
                {"email": "a@Example.org "},
                {"email": "a@example.org", "role": "owner"},
                {"email": "b@example.org"},
            ],
            "remove": [{"email": "b@example.org"}],
        }
    )
    assert refusals(request) == [("add", 1, "doubled"), ("add", 3, "doubled")]
    assert [(row.email, row.role) for row in request.rows] == [
        ("b@example.org", "member"), ("A@example.org", "member"), ("a@example.org", "owner"),
    ]  # fmt: skip


def test_only_what_a_row_names_is_set():
    (row,) = read_request({"change": [{"email": "a@example.org", "moderation_action": None}]}).rows
    assert row.values == {"moderation_action": None}
    (row,) = read_request({"change": [{"email": "a@example.org", "display_name": " 山田 "}]}).rows
    assert row.values == {"display_name": "山田"}


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["add", "change", "remove"]), st.lists(json, max_size=5)))
def test_every_row_is_applied_or_refused(body):
    request = read_request(body)
    assert len(request.rows) + len(request.refused) == sum(map(len, body.values()))
