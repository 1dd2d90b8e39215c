"""The export's masks: Crypto-PAn by its published vectors, pseudonyms, rounding, groups."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dmarc_analysis.export_mask import CryptoPan, Groups, Mask, round_count, round_time

# Key and samples of the authors' own program (Crypto-PAn 1.0, sample.cpp and its traces).
PUBLISHED_KEY = bytes(
    [21, 34, 23, 141, 51, 164, 207, 128, 19, 10, 91, 22, 73, 144, 125, 16,
     216, 152, 143, 131, 121, 121, 101, 39, 98, 87, 76, 45, 42, 132, 34, 2]
)  # fmt: skip
PUBLISHED = {
    "128.11.68.132": "135.242.180.132",
    "129.118.74.4": "134.136.186.123",
    "130.132.252.244": "133.68.164.234",
    "141.223.7.43": "141.167.8.160",
    "141.233.145.108": "141.129.237.235",
    "152.163.225.39": "151.140.114.167",
    "156.29.3.236": "147.225.12.42",
    "165.247.96.84": "162.9.99.234",
    "166.107.77.190": "160.132.178.185",
    "192.102.249.13": "252.138.62.131",
    "192.215.32.125": "252.43.47.189",
    "192.233.80.103": "252.25.108.8",
    "192.41.57.43": "252.222.221.184",
}
# The same scheme over 128 bits, as PyPI's yacryptopan publishes it.
PUBLISHED_6 = {
    "::1": "78ff:f001:9fc0:20df:8380:b1f1:704:ed",
    "::2": "78ff:f001:9fc0:20df:8380:b1f1:704:ef",
    "::ffff": "78ff:f001:9fc0:20df:8380:b1f1:704:f838",
    "2001:db8::1": "4401:2bc:603f:d91d:27f:ff8e:e6f1:dc1e",
    "2001:db8::2": "4401:2bc:603f:d91d:27f:ff8e:e6f1:dc1c",
}
KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
OWN = ["example.org", "ml.example.org", "example.ac.jp"]
SENDERS = [("192.0.2.0/24", "provider"), ("192.0.2.128/25", "own"), ("2001:db8::/32", "own")]

keys = st.binary(min_size=32, max_size=32)
domains = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,9}){1,3}", fullmatch=True)


@pytest.mark.parametrize(("original", "masked"), [*PUBLISHED.items(), *PUBLISHED_6.items()])
def test_addresses_are_masked_as_the_published_samples_are(original, masked):
    assert CryptoPan(PUBLISHED_KEY, published=True).address(original) == masked


def test_addresses_that_are_their_own_mask_as_published_are_not_so_here():
    addresses = [0x0A000000 + 77 * number for number in range(30_000)]
    key = next(
        key
        for key in (bytes([number]) * 32 for number in range(256))
        if any(CryptoPan(key, published=True).number(one, 32) == one for one in addresses[::10])
    )
    pan = CryptoPan(key)
    assert not any(pan.number(one, 32) == one for one in addresses)


def common_bits(one: int, other: int, bits: int) -> int:
    """How many leading bits two numbers of ``bits`` bits share."""
    return bits - (one ^ other).bit_length()


@given(keys, st.booleans(), st.sampled_from([32, 128]), st.data())
def test_two_addresses_share_exactly_as_many_leading_bits_as_before(key, published, bits, data):
    one = data.draw(st.integers(0, 2**bits - 1))
    other = one ^ data.draw(st.integers(0, 2**bits - 1)) >> data.draw(st.integers(0, bits))
    pan = CryptoPan(key, published=published)
    assert common_bits(pan.number(one, bits), pan.number(other, bits), bits) == common_bits(one, other, bits)


@given(st.ip_addresses(), st.ip_addresses())
def test_different_addresses_of_one_kind_stay_different_and_of_their_family(one, other):
    mask = Mask(KEY, OWN, [])
    assume(one != other and not getattr(one, "ipv4_mapped", None) and not getattr(other, "ipv4_mapped", None))
    masked, other_masked = mask.address(str(one))[0], mask.address(str(other))[0]
    assert masked != other_masked
    assert ipaddress.ip_address(masked).version == one.version


def test_own_addresses_share_no_prefix_with_their_neighbours_but_with_each_other():
    mask = Mask(KEY, OWN, SENDERS)
    provider, own, own_too = (int(ipaddress.ip_address(mask.address(f"192.0.2.{last}")[0])) for last in (1, 129, 130))
    assert common_bits(own, own_too, 32) == common_bits(129, 130, 32)
    assert common_bits(provider, own, 32) < 24


def test_kind_of_an_address_is_that_of_the_smallest_network_around_it():
    mask = Mask(KEY, OWN, SENDERS)
    kinds = [mask.address(address)[1] for address in ("192.0.2.1", "192.0.2.129", "2001:db8::1", "203.0.113.1")]
    assert kinds == ["provider", "own", "own", ""]


def test_ipv4_address_written_as_ipv6_is_the_same_address():
    mask = Mask(KEY, OWN, SENDERS)
    assert mask.address("::ffff:192.0.2.1") == mask.address("192.0.2.1")


def test_families_are_masked_independently():
    """With one key for both, an IPv6 prefix would tell the mask of the IPv4 prefix with the same bits."""
    mask = Mask(KEY, OWN, [])
    first = int(ipaddress.ip_address(mask.address("192.0.2.1")[0]))
    bits = int(ipaddress.ip_address("192.0.2.1"))
    assert first != int(ipaddress.ip_address(mask.address(str(ipaddress.IPv6Address(bits << 96)))[0])) >> 96


@given(domains)
def test_pseudonym_shows_nothing_of_a_name_but_whose_it_is(name):
    assume(not any(name == own or name.endswith(f".{own}") for own in OWN))
    mask = Mask(KEY, OWN, [])
    assert re.fullmatch("out-[0-9a-f]{16}", mask.name(name))
    assert re.fullmatch("own-[123]-[0-9a-f]{16}", mask.name(f"{name}.example.org"))
    assert mask.name(name) == Mask(KEY, OWN, []).name(name.upper() + ".") != Mask(OTHER_KEY, OWN, []).name(name)


def test_own_domains_are_numbered_by_the_key_and_not_by_the_alphabet():
    def order(key: bytes) -> tuple[str, ...]:
        return tuple(Mask(key, OWN, []).name(name) for name in OWN)

    assert {"own-1", "own-2", "own-3"} == set(order(KEY))
    assert len({order(bytes([number]) * 32) for number in range(20)}) > 1
    assert order(KEY) == tuple(Mask(KEY, reversed(OWN), []).name(name) for name in OWN)


def test_name_that_only_ends_like_an_own_domain_is_outside():
    mask = Mask(KEY, OWN, [])
    assert mask.name("notexample.org").startswith("out-")
    assert mask.name("org").startswith("out-")


def test_empty_names_stay_empty():
    mask = Mask(KEY, OWN, [])
    assert (mask.name(""), mask.reporter(" "), mask.selector("example.com", "")) == ("", "", "")
    assert mask.originals() == set()


def test_selector_has_another_pseudonym_for_each_domain():
    mask = Mask(KEY, OWN, [])
    assert mask.selector("example.com", "s1") == mask.selector("Example.com.", "S1")
    assert mask.selector("example.com", "s1") != mask.selector("example.net", "s1")


def test_kinds_of_words_do_not_share_pseudonyms():
    mask = Mask(KEY, OWN, [])
    tokens = {mask.name("example.com")[4:], mask.reporter("example.com")[4:], mask.gateway("example.com")[3:]}
    assert len(tokens) == 3


def test_everything_that_was_masked_is_known_as_original():
    mask = Mask(KEY, OWN, [])
    mask.address("192.0.2.1")
    for call, word in ((mask.name, "Mail.Example.COM"), (mask.reporter, "Example Inc."), (mask.gateway, "gw1")):
        call(word)
    mask.selector("example.com", "selector1")
    assert mask.originals() == {"192.0.2.1", "Mail.Example.COM", "mail.example.com", "example inc.", "gw1", "selector1"}


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(33)])
def test_key_of_another_length_is_refused(key):
    with pytest.raises(ValueError, match="32 octets"):
        Mask(key, OWN, [])
    with pytest.raises(ValueError, match="32 octets"):
        CryptoPan(key)


@pytest.mark.parametrize(
    ("number", "rounded"),
    [(0, None), (4, None), (5, 5), (9, 9), (99, 99), (104, 100), (105, 110), (995, 1000), (10_347, 10_000),
     (12_500, 13_000), (9_999_999, 10_000_000)],
)  # fmt: skip
def test_counts_have_two_digits_and_small_ones_are_not_told(number, rounded):
    assert round_count(number, 5) == rounded


@given(st.integers(5, 10**12))
def test_rounded_count_is_near_the_true_one_and_round(number):
    rounded = round_count(number, 5)
    assert abs(rounded - number) <= number * 0.05
    assert re.fullmatch("[1-9][0-9]?0*", str(rounded))
    assert round_count(rounded, 5) == rounded


@given(st.integers(0, 2**33), st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]))
def test_time_is_rounded_down_within_its_day(moment, hours):
    rounded = round_time(moment, hours)
    assert 0 <= moment - rounded < 3600 * hours
    assert rounded // 86400 == moment // 86400
    assert rounded % (3600 * hours) == 0


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 9))), st.integers(2, 6))
def test_groups_are_large_when_enough_different_sources_are_in_them(pairs, k):
    groups = Groups(k)
    for group, member in pairs:
        groups.add(group, member)
    expected = {name for name in "ABC" if len({member for group, member in pairs if group == name}) >= k}
    assert groups.large() == expected
