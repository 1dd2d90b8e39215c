"""Mail routing derived from the data model, through the filters as templates call them."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from conftest import PUBLIC_KEY

import estate

FILTERS = estate.FilterModule().filters()


def test_every_filter_has_a_name_and_a_sentence():
    assert {
        "dkim_public_key", "estate_problems", "estate_relay_domains", "estate_relay_recipients", "estate_transport",
        "estate_verify_domains", "estate_zone_file", "estate_zones", "play_roles",
    } <= set(FILTERS)  # fmt: skip
    assert all(function.__doc__ for function in FILTERS.values())


def test_addresses_are_those_of_the_hosts_named_or_of_all(model):
    del model["hosts"]["ml"]["ipv4"]
    addresses = FILTERS["estate_addresses"]
    assert addresses(model, ["ml", "mail"]) == ["2001:db8:25::13", "198.18.25.20", "2001:db8:25::20"]
    assert addresses(model, []) == []
    assert len(addresses(model)) == 2 * len(model["hosts"]) - 1


def test_relay_domains_are_those_that_receive(model):
    assert FILTERS["estate_relay_domains"](model) == [
        "example.org", "load.example.org", "member.example.org", "ml.example.org", "rua.example.org", "sfc.example.org"
    ]  # fmt: skip


def test_closed_sending_only_and_srs_domains_are_not_relayed(model):
    model["domains"]["news.example.org"] = {"send": {"hosts": ["smtp"]}}
    routed = {*FILTERS["estate_relay_domains"](model), *FILTERS["estate_transport"](model)}
    assert not routed & {"closed.example.org", "news.example.org", "srs.example.org"}


def test_transport_names_the_next_hop_without_mx_look_up(model):
    assert FILTERS["estate_transport"](model) == {
        "example.org": "smtp:[mail.example.org]:25",
        "load.example.org": "smtp:[198.18.25.111]:25",
        "member.example.org": "smtp:[mx.member.example.org]:25",
        "ml.example.org": "smtp:[ml.example.org]:25",
        "rua.example.org": "smtp:[analytics.example.org]:25",
        "sfc.example.org": "smtp:[mail.example.org]:25",
    }


def test_transport_to_a_port_and_to_an_ipv6_address(model):
    model["domains"]["load.example.org"]["receive"]["next_hop"] = {"host": "2001:db8::1", "port": 2525}
    assert FILTERS["estate_transport"](model)["load.example.org"] == "smtp:[ipv6:2001:db8::1]:2525"


def test_recipients_are_addresses_where_listed_and_whole_domains_where_not(model):
    assert FILTERS["estate_relay_recipients"](model) == [
        "@example.org", "@load.example.org", "@member.example.org", "@ml.example.org", "@rua.example.org",
        "hanako@sfc.example.org", "postmaster@sfc.example.org",
    ]  # fmt: skip


def test_forwards_of_a_domain_with_listed_recipients_are_recipients_too(model):
    model["forwards"]["gone@sfc.example.org"] = "gone@example.com"
    assert "gone@sfc.example.org" in FILTERS["estate_relay_recipients"](model)


def test_recipients_left_out_means_verify(model):
    del model["domains"]["member.example.org"]["receive"]["recipients"]
    assert "member.example.org" in FILTERS["estate_verify_domains"](model)


def test_verified_domains(model):
    assert FILTERS["estate_verify_domains"](model) == [
        "example.org", "member.example.org", "ml.example.org", "rua.example.org"
    ]  # fmt: skip


def test_results_do_not_depend_on_the_order_of_the_data(model):
    shuffled = model | {"domains": dict(reversed(model["domains"].items()))}
    for name in ("estate_relay_domains", "estate_relay_recipients", "estate_verify_domains", "estate_zones"):
        assert FILTERS[name](shuffled) == FILTERS[name](model)
    assert list(FILTERS["estate_transport"](shuffled)) == list(FILTERS["estate_transport"](model))


def test_invalid_model_ends_with_a_hint_to_the_validation(model):
    model["domains"]["example.org"]["receive"]["next_hop"] = "nowhere"
    with pytest.raises(AnsibleFilterError, match=r"not valid .*nowhere.* playbooks/validate.yml"):
        FILTERS["estate_transport"](model)


def test_zone_file_of_the_filters_is_text(model):
    zones = FILTERS["estate_zones"](model, ttl=60)
    text = FILTERS["estate_zone_file"](zones["example.org"], "example.org", ["ns.example.com"])
    assert "@ 60 IN MX 10 mail-gw1.example.org.\n" in text


def test_lists_live_on_the_next_hop_of_their_domain(model):
    assert FILTERS["estate_list_domains"](model, "ml") == ["ml.example.org"]
    assert FILTERS["estate_list_domains"](model, "mail") == []


def test_forwards_reach_the_gateways_from_hosts_behind_them(model):
    model["forwards"] = {"away@example.org": ["a@example.com", "b@example.net"]}
    assert FILTERS["estate_forward_transport"](model) == {"away@example.org": "smtp:example.org"}


def test_first_selector_of_a_domain_of_lists_signs_for_everyone_and_the_next_one_waits(model):
    model["domains"]["ml.example.org"]["sign"]["selectors"] = ["new", "2026a"]
    model["dkim_public_keys"]["new._domainkey.ml.example.org"] = "p"
    private = {"new._domainkey.ml.example.org": "N", "2026a._domainkey.ml.example.org": "O", "x": "unused"}
    new, old = FILTERS["estate_signing_keys"](model, "ml", private)
    assert (new["selector"], new["private_key"], new["public_key"]) == ("new", "N", "p")
    assert new["sign"] == ["*"]
    assert (old["domain"], old["selector"], old["sign"]) == ("ml.example.org", "2026a", [])
    assert FILTERS["estate_signing_keys"](model, "smtp", {}) == []


def test_signing_key_that_is_not_in_the_vault_is_named(model):
    with pytest.raises(AnsibleFilterError, match=r"no private key for 2026a\._domainkey\.ml\.example\.org"):
        FILTERS["estate_signing_keys"](model, "ml", {})


SMTP_KEY = {"use": "dkim", "hosts": ["smtp"], "state": "signing", "dates": {}, "public_key": "p"}


def made(**keys):
    """``estate_dkim_keys`` for example.org by selector."""
    return {f"{selector}._domainkey.example.org": SMTP_KEY | change for selector, change in keys.items()}


def test_key_that_the_host_made_signs_when_the_records_say_so_and_has_no_private_key(model):
    model["domains"]["example.org"]["sign"] = {"signer": "smtp"}
    model["dkim_keys"] = made(
        old={"state": "retired"}, now={}, next={"state": "published"}, gone={"state": "removed"},
        seal={"use": "arc"}, elsewhere={"hosts": ["ml"]}, bad={"state": "retired", "revoked": True},
    )  # fmt: skip
    keys = FILTERS["estate_signing_keys"](model, "smtp", {})
    assert keys[0] == {"domain": "example.org", "selector": "now", "public_key": "p"}
    assert [(key["selector"], key["sign"]) for key in keys[1:]] == [("next", []), ("old", [])]
    model["domains"]["example.org"]["sign"]["signer"] = "mail"
    assert FILTERS["estate_signing_keys"](model, "smtp", {}) == []


def test_gateway_signs_its_bounces_in_its_own_name_unless_that_is_a_domain(model):
    model["dkim_keys"] = {"a._domainkey.mail-gw1.example.org": SMTP_KEY | {"hosts": ["mail-gw1"]}}
    own = {"domain": "mail-gw1.example.org", "selector": "a", "public_key": "p"}
    assert FILTERS["estate_signing_keys"](model, "mail-gw1", {}) == [own]
    assert FILTERS["estate_signing_keys"](model, "mail-gw2", {}) == []
    model["domains"]["mail-gw1.example.org"] = {"send": {"hosts": ["mail-gw1"]}, "sign": {"signer": "smtp"}}
    assert FILTERS["estate_signing_keys"](model, "mail-gw1", {}) == []


def test_key_of_the_vault_signs_until_one_that_the_host_made_does(model):
    model["domains"]["example.org"]["sign"] = {"signer": "smtp", "selectors": ["v"], "rotate": True}
    model["dkim_public_keys"]["v._domainkey.example.org"] = "q"
    private = {"v._domainkey.example.org": "V"}
    model["dkim_keys"] = made(next={"state": "published"})
    assert [(key["selector"], key.get("sign")) for key in FILTERS["estate_signing_keys"](model, "smtp", private)] == [
        ("v", None), ("next", []),
    ]  # fmt: skip
    model["dkim_keys"] = made(next={"state": "signing"})
    assert [(key["selector"], key.get("sign")) for key in FILTERS["estate_signing_keys"](model, "smtp", private)] == [
        ("next", None), ("v", []),
    ]  # fmt: skip


def test_made_keys_are_published_until_they_are_removed_and_shown_as_revoked(model):
    model["dkim_keys"] = {
        name: key | {"public_key": PUBLIC_KEY}
        for name, key in made(
            a={"state": "published"}, b={}, c={"state": "retired"}, d={"state": "removed"},
            e={"state": "retired", "revoked": True},
        ).items()
    }  # fmt: skip
    records = {
        record["name"].partition(".")[0]: record["value"]
        for record in FILTERS["estate_zones"](model)["example.org"]
        if record["name"].endswith("._domainkey.example.org")
    }
    assert sorted(records) == ["a", "arc2026", "b", "c", "e"]
    assert records["e"] == '"v=DKIM1; p="'
    assert PUBLIC_KEY[:100] in records["a"]
