"""What dns_update would change: the difference to what is there, and never what others have put beside it."""

from __future__ import annotations

import dns.name
import dns.rdataset
import dns.rdatatype
import dns.tsig
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dns_changes
from dns_changes import Wanted, changes, content, parse_name, parse_records, recall, remember

ZONE = dns.name.from_text("example.org")
SPF, OLD_SPF, FOREIGN = '"v=spf1 a -all"', '"v=spf1 mx -all"', '"some-site-verification=1234"'


def record(name, rdtype, value, ttl=60):
    return {"name": name, "type": rdtype, "value": value, "ttl": ttl}


def rrset(rdtype, *values, ttl=60):
    return dns.rdataset.from_text("IN", rdtype, ttl, *values)


def place(name, rdtype):
    return parse_name(name), dns.rdatatype.from_text(rdtype)


def lines(wanted, live, earlier=()):
    """The changes as the lines that go and come."""
    found = {place(*key): value for key, value in live.items()}
    steps = changes(parse_records(wanted), parse_records(recall(remember(earlier))), found)
    before, after = ({line for step in steps for line in step.lines()[side]} for side in (0, 1))
    return sorted(before - after), sorted(after - before)


def test_zone_that_is_as_wanted_stays():
    wanted = [record("example.org", "MX", "10 mx.example.org."), record("example.org", "TXT", SPF)]
    live = {
        ("example.org", "MX"): rrset("MX", "10 MX.example.org."),
        ("example.org", "TXT"): rrset("TXT", '"v=spf1 a" " -all"', FOREIGN),
    }
    assert lines(wanted, live) == ([], []), "names compare without case, texts however they are cut"


def test_missing_records_are_added():
    assert lines([record("example.org", "MX", "0 .")], {}) == ([], ["example.org 60 IN MX 0 ."])


def test_other_records_of_a_name_and_type_of_ours_go():
    wanted = [record("example.org", "MX", "10 mx1.example.org.")]
    live = {("example.org", "MX"): rrset("MX", "10 old.example.org.", "10 mx1.example.org.")}
    assert lines(wanted, live) == (["example.org 60 IN MX 10 old.example.org."], [])


def test_text_of_others_beside_ours_stays_and_an_older_spf_record_goes():
    live = {("example.org", "TXT"): rrset("TXT", FOREIGN, OLD_SPF)}
    assert lines([record("example.org", "TXT", SPF)], live) == (
        [f"example.org 60 IN TXT {OLD_SPF}"], [f"example.org 60 IN TXT {SPF}"]
    )  # fmt: skip


@pytest.mark.parametrize("name", ["_dmarc.example.org", "s1._domainkey.example.org", "_smtp._tls.example.org"])
def test_at_a_name_with_an_underscore_all_text_is_ours(name):
    live = {(name, "TXT"): rrset("TXT", '"k=rsa; p="', '"anything"')}
    gone, come = lines([record(name, "TXT", '"v=X1"')], live)
    assert (len(gone), len(come)) == (2, 1)


def test_time_to_live_follows_the_model_but_for_sets_that_others_have_a_part_in():
    wanted = [record("example.org", "TXT", SPF)]
    assert lines(wanted, {("example.org", "TXT"): rrset("TXT", SPF, ttl=300)}) == (
        [f"example.org 300 IN TXT {SPF}"], [f"example.org 60 IN TXT {SPF}"]
    )  # fmt: skip
    shared = {("example.org", "TXT"): rrset("TXT", SPF, FOREIGN, ttl=300)}
    assert lines(wanted, shared) == ([], [])
    assert lines(wanted, {("example.org", "TXT"): rrset("TXT", FOREIGN, ttl=300)}) == (
        [], [f"example.org 300 IN TXT {SPF}"]
    )  # fmt: skip


def test_what_was_published_before_and_is_wanted_no_longer_goes_and_nothing_else():
    earlier = [record("a.example.org", "A", "192.0.2.1"), record("example.org", "TXT", SPF)]
    live = {
        ("a.example.org", "A"): rrset("A", "192.0.2.1", "192.0.2.2"),
        ("example.org", "TXT"): rrset("TXT", SPF, OLD_SPF, FOREIGN),
    }
    assert lines([], live, earlier) == (["a.example.org 60 IN A 192.0.2.1", f"example.org 60 IN TXT {SPF}"], [])


def test_what_has_gone_already_needs_no_change():
    assert lines([], {}, [record("a.example.org", "A", "192.0.2.1")]) == ([], [])


def test_memory_holds_values_with_spaces():
    given_records = [record("example.org", "TXT", SPF), record("a.example.org", "TLSA", "3 1 1 " + "ab" * 32)]
    assert [entry | {"ttl": 60} for entry in recall(remember(given_records))] == sorted(
        given_records, key=lambda entry: entry["name"]
    )


def test_malformed_record_is_told_with_its_name():
    with pytest.raises(dns_changes.DnsError, match=r"^a\.example\.org A 192\.0\.2: "):
        parse_records([record("a.example.org", "A", "192.0.2")])
    with pytest.raises(dns_changes.DnsError, match="no domain name"):
        parse_records([record("a..example.org", "A", "192.0.2.1")])


def server(secret="c2VjcmV0"):
    return dns_changes.Server("192.0.2.53", 53, "estate", secret, "hmac-sha256", 1)


def test_secret_that_is_no_base64_is_told_without_showing_it():
    with pytest.raises(dns_changes.DnsError, match="secret of the key estate is not base64") as error:
        server("not base64!")
    assert "not base64!" not in str(error.value)


def test_every_change_states_what_it_has_seen():
    live = {place("a.example.org", "A"): rrset("A", "192.0.2.1", "192.0.2.2", ttl=300)}
    wanted = parse_records([record("a.example.org", "A", "192.0.2.3"), record("b.example.org", "A", "192.0.2.4")])
    (message,) = server().messages(ZONE, changes(wanted, {}, live))
    conditions = {(str(rrset.name), rdata.to_text()) for rrset in message.prerequisite for rdata in rrset}
    assert conditions == {("a.example.org.", "192.0.2.1"), ("a.example.org.", "192.0.2.2")}
    absent = [str(rrset.name) for rrset in message.prerequisite if not rrset]
    assert absent == ["b.example.org."]
    # RFC 2136 §2.4.2: a condition with a time to live is malformed.
    assert {rrset.ttl for rrset in message.prerequisite} == {0}


def test_many_changes_go_in_several_messages_and_none_is_lost():
    wanted = parse_records(
        record(f"s{number}._domainkey.example.org", "TXT", f'"{number}{"x" * 200}" "{"y" * 200}"')
        for number in range(400)
    )
    messages = list(server().messages(ZONE, changes(wanted, {}, {})))
    assert len(messages) > 1
    assert max(len(message.to_wire()) for message in messages) < 65000
    assert sorted(rrset.name for message in messages for rrset in message.update) == sorted(name for name, _ in wanted)


NAMES = st.sampled_from(["example.org", "_dmarc.example.org", "a.example.org"])
TEXTS = st.sampled_from([SPF, OLD_SPF, FOREIGN, '"v=DMARC1; p=none"'])
RECORDS = st.lists(st.builds(record, NAMES, st.just("TXT"), TEXTS, st.sampled_from([60, 300])), max_size=6)


@given(wanted=RECORDS, earlier=RECORDS, there=RECORDS)
def test_after_the_changes_all_that_is_wanted_is_there_and_a_second_run_changes_nothing(wanted, earlier, there):
    want, once, live = parse_records(wanted), parse_records(recall(remember(earlier))), parse_records(there)
    zone = {key: dns.rdataset.from_rdata_list(value.ttl, value.rdatas) for key, value in live.items()}
    before = {key: {content(rdata) for rdata in value} for key, value in zone.items()}
    for step in changes(want, once, zone):
        gone = {content(rdata) for rdata in step.remove}
        kept = [rdata for rdata in step.before if content(rdata) not in gone]
        found = [*kept, *step.add]
        zone[step.name, step.rdtype] = dns.rdataset.from_rdata_list(step.ttl, found) if found else None
    zone = {key: value for key, value in zone.items() if value}
    assert changes(want, once, zone) == []
    after = {key: {content(rdata) for rdata in value} for key, value in zone.items()}
    for key, value in want.items():
        assert {content(rdata) for rdata in value.rdatas} <= after[key]
    verification = content(parse_records([record("x", "TXT", FOREIGN)])[place("x", "TXT")].rdatas[0])
    for key, value in before.items():
        ours = {content(rdata) for rdata in (*want.get(key, NOTHING).rdatas, *once.get(key, NOTHING).rdatas)}
        plain = not key[0].labels[0].startswith(b"_")
        if verification in value and plain and verification not in ours:
            assert verification in after[key], "what others put there stays"


NOTHING = Wanted(0, ())
