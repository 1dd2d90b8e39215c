"""What the reports say becomes a change of the data model, and only what somebody has decided on."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import estate_dns
import estate_model
import estate_spf


def to_add(ip: str, verdict: str = "add", domain: str = "example.org", **more: Any) -> dict[str, Any]:
    row = {
        "domain": domain,
        "in_model": True,
        "ip": ip,
        "source_name": None,
        "as_name": "Example Net",
        "n": 100,
        "dkim_pct": 99.5,
        "reporters": 6,
        "days": 20,
        "last_day": "2026-11-20",
        "kind": "own" if verdict == "add" else None,
        "label": "centre" if verdict == "add" else None,
        "suggested": "own?",
        "verdict": verdict,
        "reason": "because",
    }
    return row | more


def listed(network: str, verdict: str = "keep", via: str = "ip4", domain: str = "example.org") -> dict[str, Any]:
    return {
        "domain": domain,
        "network": network,
        "via": via,
        "aligned": 0,
        "total": 0,
        "last_day": "2026-05-01" if verdict == "remove" else None,
        "verdict": verdict,
        "reason": "",
    }


def lists(add: list[Any] = (), remove: list[Any] = (), **published: Any) -> dict[str, Any]:  # type: ignore[assignment]
    return {"days": 90, "add": list(add), "remove": list(remove), "published": published}


def change(model: dict[str, Any], given: dict[str, Any], domain: str = "example.org") -> estate_spf.Change:
    (found,) = [one for one in estate_spf.changes(estate_model.parse(model), given) if one.domain == domain]
    return found


@pytest.fixture
def sending(model: dict[str, Any]) -> dict[str, Any]:
    """The lab's model, with a network and two includes besides the hosts."""
    new = copy.deepcopy(model)
    new["domains"]["example.org"]["send"] |= {
        "networks": ["198.51.100.0/24"],
        "includes": ["one.example.com", "two.example.com"],
    }
    return new


def test_a_model_that_fits_stays_as_it_is(sending: dict[str, Any]) -> None:
    found = change(sending, lists())
    assert found.send is None
    estate = estate_model.parse(sending)
    assert found.record == estate_dns.spf_value(estate.domains["example.org"], estate)
    assert "  nothing to change" in estate_spf.report(estate, lists())


def test_a_host_of_ours_is_added_by_name_and_another_address_as_a_network(sending: dict[str, Any]) -> None:
    known = sending["hosts"]["mail"]
    given = lists([to_add(known["ipv4"]), to_add("192.0.2.77"), to_add("2001:db8:77::1"), to_add("198.51.100.9")])
    found = change(sending, given)
    assert found.send is not None
    assert "mail" in found.send["hosts"]
    assert found.send["networks"] == ["198.51.100.0/24", "192.0.2.77", "2001:db8:77::1"]
    assert "ip4:192.0.2.77" in found.record.split()
    assert "ip6:2001:db8:77::1" in found.record.split()
    text = "\n".join(estate_spf.report(estate_model.parse(sending), given))
    assert '        networks: [198.51.100.0/24, 192.0.2.77, "2001:db8:77::1"]' in text


@pytest.mark.parametrize("verdict", ["add?", "look", "leave?"])
def test_what_nobody_has_decided_on_is_listed_and_changes_nothing(sending: dict[str, Any], verdict: str) -> None:
    found = change(sending, lists([to_add("192.0.2.77", verdict)]))
    assert found.send is None
    assert len(found.undecided) == 1
    assert "own?" in found.undecided[0]


def test_a_provider_with_an_envelope_of_its_own_is_a_note(sending: dict[str, Any]) -> None:
    found = change(sending, lists([to_add("192.0.2.77", "envelope")]))
    assert (found.send, found.add, found.undecided) == (None, [], [])
    assert "192.0.2.77" in found.notes[0]


def test_a_silent_network_goes_and_a_host_only_with_all_its_addresses(sending: dict[str, Any]) -> None:
    host = sending["hosts"]["ml"]
    rows = [listed("198.51.100.0/24", "remove"), listed(f"{host['ipv4']}/32", "remove")]
    found = change(sending, lists(remove=[*rows, listed(f"{host['ipv6']}/128", "keep", "ip6")]))
    assert found.send is not None
    assert "ml" in found.send["hosts"]
    assert found.send["networks"] == []
    assert found.remove == ["network 198.51.100.0/24: last mail on 2026-05-01"]
    found = change(sending, lists(remove=[*rows, listed(f"{host['ipv6']}/128", "remove", "ip6")]))
    assert found.send is not None
    assert "ml" not in found.send["hosts"]


def test_an_include_goes_only_when_all_that_is_in_it_is_silent(sending: dict[str, Any]) -> None:
    inside = [
        listed("203.0.113.0/25", "remove", "include:one.example.com ip4"),
        listed("203.0.113.128/25", "remove", "include:one.example.com include:deep.example.com ip4"),
    ]
    found = change(sending, lists(remove=inside))
    assert found.send is not None
    assert found.send["includes"] == ["two.example.com"]
    inside[1]["verdict"] = "keep"
    assert change(sending, lists(remove=inside)).send is None
    inside[1]["verdict"] = "not enough data"
    assert change(sending, lists(remove=inside)).send is None


def test_more_than_ten_lookups_are_flattened_the_dearest_include_first(sending: dict[str, Any]) -> None:
    inside = [
        listed("203.0.113.0/25", via="include:one.example.com ip4"),
        listed("203.0.113.128/25", via="include:two.example.com ip4"),
        listed("100.64.0.0/16", via="include:two.example.com include:x.example.com ip4"),
    ]
    published = {"example.org": {"includes": {"one.example.com": 4, "two.example.com": 7}, "record": None}}
    found = change(sending, lists(remove=inside, **published))
    assert found.send is not None
    assert found.send["includes"] == ["one.example.com"]
    assert found.send["networks"] == ["198.51.100.0/24", "203.0.113.128/25", "100.64.0.0/16"]
    assert found.lookups == 4
    assert any("costs 7 look-ups and is written as 2 networks" in note for note in found.notes)
    published["example.org"]["includes"] = {"one.example.com": 4, "two.example.com": 6}
    assert change(sending, lists(remove=inside, **published)).send is None


def test_lookups_that_cannot_be_flattened_are_told(sending: dict[str, Any]) -> None:
    published = {"example.org": {"includes": {"one.example.com": 6, "two.example.com": 6}, "record": None}}
    found = change(sending, lists(**published))
    assert found.send is None
    assert "the networks of the includes are not known" in found.notes[0]


def test_what_dns_has_and_the_model_has_not_is_told(sending: dict[str, Any]) -> None:
    published = {"example.org": {"record": "v=spf1 ip4:192.0.2.200 -all", "problem": "something", "includes": {}}}
    found = change(sending, lists(remove=[listed("192.0.2.200/32", "remove")], **published))
    assert found.send is None
    assert "DNS now: something" in found.notes
    assert any("another record than the data model" in note for note in found.notes)
    assert any(note.startswith("192.0.2.200/32 is published (ip4) and silent") for note in found.notes)


def test_a_name_outside_the_model_and_a_closed_domain_are_told(sending: dict[str, Any]) -> None:
    given = lists([to_add("192.0.2.77", domain="sub.example.org", in_model=False)])
    assert "needs an entry in estate_domains" in change(sending, given, "sub.example.org").notes[0]
    given = lists([to_add("192.0.2.77", domain="closed.example.org")])
    found = change(sending, given, "closed.example.org")
    assert found.send is None
    assert "closed in the data model" in found.notes[0]


def test_a_flood_of_addresses_does_not_hide_the_rest(sending: dict[str, Any]) -> None:
    rows = [to_add(f"11.0.{number}.1", "look") for number in range(60)]
    lines = estate_spf.report(estate_model.parse(sending), lists(rows))
    assert len([line for line in lines if "undecided" in line]) == estate_spf.MAX_ROWS + 1
    assert any("and 10 more with less mail" in line for line in lines)
