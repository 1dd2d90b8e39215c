"""The mailing lists' validation: every mistake is found and told in words that name list, field and value."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import estate_lists
import mailman_attributes

REPOSITORY = Path(__file__).resolve().parents[2]
REMOVE = object()
DEV = "dev@ml.example.org"


def site_lists(site: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / f"inventory/{site}/group_vars/all/lists.yml").read_text(encoding="utf-8"))


def found(data: dict[str, Any], model: dict[str, Any]) -> list[str]:
    return estate_lists.problems(
        data["estate_lists"], model, data.get("estate_list_base"), data.get("estate_list_profiles")
    )


@pytest.fixture
def data() -> dict[str, Any]:
    """Valid lists, the test's own copy."""
    return {
        "estate_lists": {
            DEV: {"profile": "discussion", "description": "Developers", "owners": ["alice@example.org"]},
            "plain@ml.example.org": {
                "profile": "transparent",
                "description": "Untouched",
                "owners": ["alice@example.org"],
            },
        },
        "estate_list_base": {},
        "estate_list_profiles": {},
    }


@pytest.mark.parametrize("site", ["lab", "wide"])
def test_lists_that_ship_are_valid(site, models):
    assert found(site_lists(site), models[site]) == []


def mistake(name: str, *path: Any, to: Any, says: str) -> Any:
    """One row of the table: a change below the list dev, and what the message must hold."""
    return pytest.param(path, to, says, id=name)


# fmt: off
MISTAKES = [
    mistake("unknown field", "owner", to=["alice@example.org"], says='no such field; did you mean "owners"?'),
    mistake("attribute outside settings", "archive_policy", to="private", says="write it below settings"),
    mistake("no profile", "profile", to=REMOVE, says="every list needs a profile"),
    mistake("unknown profile", "profile", to="discusion", says='did you mean "discussion"?'),
    mistake("unknown attribute", "settings", to={"max_mesage_size": 5}, says='did you mean "max_message_size"?'),
    mistake("bad choice", "settings", to={"archive_policy": "secret"}, says="accepted: public, private, never"),
    mistake("choice nearly right", "settings", to={"subscription_policy": "moderated"},
            says='did you mean "moderate"?'),
    mistake("bad number", "settings", to={"max_message_size": -1}, says="must be 0 or more"),
    mistake("number as text", "settings", to={"max_message_size": "40"}, says="must be 0 or more"),
    mistake("bad boolean", "settings", to={"advertised": "no"}, says="must be true or false"),
    mistake("bad time", "settings", to={"bounce_info_stale_after": "a week"}, says="such as 7d"),
    mistake("read-only attribute", "settings", to={"post_id": 1}, says="Mailman sets this itself"),
    mistake("attribute that is a field", "settings", to={"description": "x"}, says="the list's field description"),
    mistake("password as data", "settings", to={"moderator_password": "x"}, says="a password is not kept as data"),
    mistake("two lines in a prefix", "settings", to={"subject_prefix": "a\nb"}, says="single line"),
    mistake("bad pattern in an attribute", "settings", to={"accept_these_nonmembers": ["^("]},
            says="regular expression is wrong"),
    mistake("initial is checked too", "initial", to={"advertised": 1}, says="must be true or false"),
    mistake("no owners", "owners", to=REMOVE, says="a list needs an owner"),
    mistake("empty owners", "owners", to=[], says="a list needs an owner"),
    mistake("owner is no address", "owners", to=["alice"], says="local@domain"),
    mistake("owner twice", "owners", to=["alice@example.org", "Alice@example.org"], says="twice"),
    mistake("owner who does not exist", "owners", to=["nobody@sfc.example.org"], says="no such recipient"),
    mistake("owner in a closed domain", "owners", to=["x@closed.example.org"], says="receives no mail"),
    mistake("owner is a list", "owners", to=["plain@ml.example.org"], says="is a list itself"),
    mistake("no description", "description", to=REMOVE, says="what the list is for"),
    mistake("description of two lines", "description", to="a\nb", says="one line"),
    mistake("field left empty", "moderators", to=None, says="leave the field out"),
    mistake("unknown language", "language", to="jp", says="no such language"),
    mistake("ban is no pattern", "bans", to=["example.com"], says="a regular expression starts with ^"),
    mistake("bad regular expression", "bans", to=["^[a"], says="regular expression is wrong"),
    mistake("header match without pattern", "header_matches", to=[{"header": "x-spam"}], says="header, pattern"),
    mistake("header with colon", "header_matches", to=[{"header": "X-Spam:", "pattern": "y"}],
            says="without the colon"),
    mistake("header with bad pattern", "header_matches", to=[{"header": "X-Spam", "pattern": "*"}],
            says="regular expression is wrong"),
    mistake("header with bad action", "header_matches", to=[{"header": "X-Spam", "pattern": "y", "action": "drop"}],
            says="accepted: hold, reject"),
    mistake("member domain with @", "member_domains", to=["@example.org"], says="write the domain alone"),
    mistake("member domain with star", "member_domains", to=["*.example.org"], says="a dot before it"),
    mistake("member domain in capitals", "member_domains", to=["Example.org"], says="lower case"),
    mistake("sentence without rule", "member_sentence", to="Only we.", says="without member_domains"),
    mistake("member without address", "members", to=[{"name": "x"}], says="local@domain"),
    mistake("member with unknown delivery", "members", to=[{"address": "a@example.org", "delivery": "digest"}],
            says="delivery: regular"),
    mistake("member twice", "members", to=["a@example.org", {"address": "A@example.org"}], says="named twice"),
    mistake("list in itself", "members", to=[DEV], says="member of itself"),
    mistake("unknown template", "templates", to={"foter": "x"}, says='did you mean "footer"?'),
    mistake("template without the list's language", "templates", to={"footer": {"ja": "x"}},
            says="list's language, en"),
    mistake("lone dollar in a template", "templates", to={"footer": "costs $ 5"}, says="write $$"),
    mistake("unknown archiver", "archivers", to={"pipermail": True}, says="no such archiver"),
    mistake("one_click is no switch", "one_click", to="yes", says="must be true or false"),
    mistake("one-click without own copies", "settings", to={"personalize": "none"}, says="write one_click: false"),
    mistake("reply address missing", "settings", to={"reply_goes_to_list": "explicit_header"},
            says="needs reply_to_address"),
    mistake("nobody may post", "settings",
            to={"default_member_action": "discard", "default_nonmember_action": "discard"}, says="nobody could post"),
    mistake("unknown state", "state", to="gone", says="allowed: present, absent"),
    mistake("absent and described", "state", to="absent", says="to be removed"),
]
NAMES = [
    pytest.param("dev@lists.example.org", "has no lists: true in estate_domains", id="domain unknown"),
    pytest.param("dev@example.org", "has no lists: true in estate_domains", id="domain without lists"),
    pytest.param("dev-bounces@ml.example.org", "is the address bounces of the list dev@ml.example.org", id="clash"),
    pytest.param("x-request@ml.example.org", "ends in -request", id="sub-address of no list"),
    pytest.param("Dev2@ml.example.org", "lower case: dev2@ml.example.org", id="capitals"),
    pytest.param("de v@ml.example.org", "a list's name is", id="space"),
    pytest.param("dev+x@ml.example.org", "a list's name is", id="plus"),
    pytest.param("-dev@ml.example.org", "a list's name is", id="hyphen first"),
    pytest.param("noreply@ml.example.org", "address of the list host itself", id="noreply"),
    pytest.param("dev", "name@domain, is needed", id="no domain"),
]
# fmt: on


@pytest.mark.parametrize(("path", "to", "says"), MISTAKES)
def test_mistake_is_told_with_list_field_and_remedy(data, model, path, to, says):
    assert found(data, model) == []
    place = data["estate_lists"][DEV]
    if to is REMOVE:
        del place[path[0]]
    else:
        place[path[0]] = to
    problems = found(data, model)
    matching = [sentence for sentence in problems if says in sentence]
    assert matching, problems
    assert all(sentence.startswith(f"estate_lists['{DEV}'].{path[0]}") or path[0] == "state" for sentence in problems)


@pytest.mark.parametrize(("address", "says"), NAMES)
def test_wrong_name_of_a_list_is_told(data, model, address, says):
    data["estate_lists"][address] = dict(data["estate_lists"][DEV])
    problems = found(data, model)
    assert len(problems) == 1
    assert says in problems[0]


def test_list_that_is_forwarded_elsewhere_is_told(data, model):
    model["forwards"]["dev-owner@ml.example.org"] = "x@example.com"
    assert any("dev-owner@ml.example.org is forwarded" in sentence for sentence in found(data, model))


def test_list_that_the_gateways_would_refuse_is_told(data, model):
    model["domains"]["ml.example.org"]["receive"]["recipients"] = ["postmaster", "dev"]
    problems = found(data, model)
    assert any("is a recipient" in sentence for sentence in problems)
    assert any("the gateways would refuse it" in sentence and "plain@" in sentence for sentence in problems)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("settings", {"subject_prefix": "[plain] "}),
        ("settings", {"filter_content": True}),
        ("settings", {"posting_pipeline": "default-posting-pipeline"}),
        ("settings", {"dmarc_mitigate_action": "munge_from"}),
        ("settings", {"reply_goes_to_list": "point_to_list"}),
        ("settings", {"personalize": "full"}),
        ("initial", {"anonymous_list": True}),
        ("templates", {"footer": "-- \nplain\n"}),
    ],
)
def test_transparent_list_that_would_change_posts_is_told(data, model, field, value):
    data["estate_list_base"] = {}
    data["estate_lists"]["plain@ml.example.org"][field] = value
    if field == "initial":
        # The base claims the attribute, so that what a list starts with is never seen.
        assert found(data, model) == []
    else:
        assert any("changes what the author signed" in sentence for sentence in found(data, model))


def test_mistake_in_a_profile_or_the_base_is_told_where_it_stands(data, model):
    data["estate_list_profiles"] = {"mine": {"settings": {"advertized": True}, "profile": "discussion"}}
    data["estate_list_base"] = {"initial": {"archive_policy": "closed"}, "description": "x"}
    problems = "\n".join(found(data, model))
    assert """estate_list_profiles['mine'].settings.advertized is true: Mailman has no such attribute""" in problems
    assert "estate_list_profiles['mine'].profile" in problems
    assert "estate_list_base.initial.archive_policy" in problems
    assert "estate_list_base.description" in problems
    assert "only a list itself has this field" in problems


@pytest.mark.parametrize("lists", [None, [], "dev", {DEV: None}, {DEV: []}, {7: {}}, {None: {"profile": []}}])
def test_data_of_the_wrong_type_is_told_and_never_raises(model, lists):
    assert estate_lists.problems(lists, model)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(mailman_attributes.FIELDS)), value=JSON)
def test_no_value_of_a_field_raises(models, name, value):
    lists = {DEV: {"profile": "discussion", "description": "x", "owners": ["alice@example.org"], name: value}}
    for sentence in estate_lists.problems(lists, copy.deepcopy(models["lab"]), {name: value}, {"p": {name: value}}):
        assert sentence.startswith("estate_list")


def test_every_field_and_profile_is_documented():
    text = (REPOSITORY / "docs/lists.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`\n]+`", text))))
    assert sorted({*mailman_attributes.FIELDS, *estate_lists.built_in()[1]} - words) == []
