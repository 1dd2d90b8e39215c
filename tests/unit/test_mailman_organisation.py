"""The organisation-address rule: whom it lets in, what it says to others, and the file that keeps it."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailman_estate.member_domains import Rule, RuleFileError, RuleStore, normal_rule


@pytest.mark.parametrize(
    ("domains", "email", "allowed"),
    [
        (["example.org"], "a@example.org", True),
        (["example.org"], "A@Example.ORG", True),
        (["example.org"], "a@sub.example.org", False),
        (["example.org"], "a@example.org.example.com", False),
        (["example.org"], "a@notexample.org", False),
        ([".example.org"], "a@example.org", True),
        ([".example.org"], "a@b.c.example.org", True),
        ([".example.org"], "a@notexample.org", False),
        ([".example.org"], '"x@example.org"@example.com', False),
        ([".example.org"], "@example.org", False),
        ([".example.org"], "example.org", False),
        ([".example.org"], "a@", False),
        (["example.org", "example.edu"], "a@example.edu", True),
    ],
)
def test_who_may_be_a_member(domains, email, allowed):
    assert normal_rule(domains).allows(email) is allowed


def test_domains_are_kept_in_one_form():
    rule = normal_rule(["Example.ORG.", ".b.example.org", "日本語.jp", "example.org"])
    assert rule.domains == (".b.example.org", "example.org", "xn--wgv71a119e.jp")


@pytest.mark.parametrize(
    ("domains", "sentence"),
    [
        (None, None),
        ("example.org", None),
        ([], None),
        ([5], None),
        (["org"], None),
        (["."], None),
        ([""], None),
        (["a@example.org"], None),
        (["example..org"], None),
        (["*.example.org"], None),
        (["-a.example.org"], None),
        (["a" * 64 + ".org"], None),
        (["example.org"], ""),
        (["example.org"], " "),
        (["example.org"], 5),
        (["example.org"], "x" * 1001),
        (["example.org"], "a\rb"),
        ([f"d{number}.example.org" for number in range(501)], None),
    ],
)
def test_senseless_rules_are_refused_with_a_sentence(domains, sentence):
    with pytest.raises(ValueError, match=r"\w"):
        normal_rule(domains, sentence)


def test_sentence_of_the_list_is_filled_in_once():
    rule = Rule((".example.org", "example.edu"), "{address} not of {domains} on {list} {other}")
    said = rule.refusal("{list}@example.com", "dev@ml.example.org", "en")
    assert (
        said == "{list}@example.com not of example.org (with subdomains) or example.edu on dev@ml.example.org {other}"
    )


@pytest.mark.parametrize(("language", "japanese"), [("en", False), ("ja", True), ("de", False)])
def test_sentence_of_our_own_is_in_the_lists_language(language, japanese):
    said = Rule(("example.org",)).refusal("eve@example.com", "dev@ml.example.org", language)
    assert "Only addresses of example.org can be members of dev@ml.example.org; eve@example.com is none" in said
    assert ("所属組織" in said) is japanese
    # what a mail to somebody with an old program must be able to carry
    said.encode("iso-2022-jp")


def test_rules_are_kept(tmp_path):
    store = RuleStore(tmp_path / "estate" / "member-domains")
    assert store.get("dev.ml.example.org") is None
    assert store.all() == {}
    rule = normal_rule(["example.org"], "社内のみ\n{address}")
    store.set("dev.ml.example.org", rule)
    assert store.get("dev.ml.example.org") == rule
    assert store.all() == {"dev.ml.example.org": rule}
    assert [entry.name for entry in os.scandir(tmp_path / "estate" / "member-domains")] == ["dev.ml.example.org.json"]
    store.set("dev.ml.example.org", normal_rule(["example.edu"]))
    assert store.get("dev.ml.example.org").domains == ("example.edu",)
    store.delete("dev.ml.example.org")
    store.delete("dev.ml.example.org")
    assert store.get("dev.ml.example.org") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"domains": [], "sentence": null}', '{"domains": ["example.org"]}', "\xff"]
)
def test_file_that_makes_no_sense_is_an_error_and_not_no_rule(tmp_path, text):
    (tmp_path / "dev.ml.example.org.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RuleFileError, match=r"dev\.ml\.example\.org"):
        RuleStore(tmp_path).get("dev.ml.example.org")
    RuleStore(tmp_path).set("good.ml.example.org", Rule(("example.org",)))
    rules = RuleStore(tmp_path).all()
    assert isinstance(rules["dev.ml.example.org"], RuleFileError)
    assert rules["good.ml.example.org"] == Rule(("example.org",))


@pytest.mark.parametrize("list_id", ["../x", "a/b", "", ".hidden", "a\nb", "a\0b"])
def test_no_list_id_leads_out_of_the_directory(tmp_path, list_id):
    with pytest.raises(RuleFileError):
        RuleStore(tmp_path).set(list_id, Rule(("example.org",)))
    assert not list(tmp_path.rglob("*"))


@given(st.text(max_size=80))
def test_no_address_is_too_strange(email):
    assert Rule((".example.org",)).allows(email) in (True, False)
    assert email in Rule(("example.org",)).refusal(email, "dev@ml.example.org", "ja")


@given(st.lists(st.text(max_size=30), max_size=4))
def test_no_domain_is_too_strange(domains):
    try:
        rule = normal_rule(domains)
    except ValueError:
        return
    assert normal_rule(list(rule.domains)) == rule
