"""Whose From is rewritten (RFC 9989), within which time, and how names are written (RFC 2047)."""

from __future__ import annotations

import base64
import email
import email.utils
import re
from email.header import decode_header, make_header
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estate_arc_policy import TemporaryDnsError
from mailman_estate import dmarc, munging


class Dns:
    """A small DNS that can be dead, and takes its time then."""

    def __init__(self, records: dict[str, str], existing: tuple[str, ...] = ()) -> None:
        self.records, self.existing = records, existing
        self.now, self.asked, self.dead = 0.0, 0, False

    def _ask(self, deadline: float) -> None:
        self.asked += 1
        if self.dead:
            self.now = max(self.now, deadline)
            raise TemporaryDnsError("dead")

    def txt(self, name: str, deadline: float) -> tuple[bytes, ...]:
        self._ask(deadline)
        text = self.records.get(name.removeprefix("_dmarc."))
        return (text.encode(),) if text else ()

    def exists(self, name: str, deadline: float) -> bool:
        self._ask(deadline)
        return name in self.existing

    def judge(self) -> dmarc.Judge:
        return dmarc.Judge(self, 4, clock=lambda: self.now)


@pytest.mark.parametrize(
    ("record", "rewritten", "refused"),
    [
        ("v=DMARC1; p=reject", True, True),
        ("v=DMARC1; p=quarantine", True, True),
        ("v=DMARC1; p=none", False, False),
        ("v=DMARC1; p=reject; t=y", True, True),
        ("v=DMARC1; p=quarantine; t=y", True, False),
        ("v=DMARC1; p=none; sp=reject; np=reject", False, False),
        ("v=spf1 -all", False, False),
        (None, False, False),
    ],
)
def test_policy_of_the_author_domain_decides(record, rewritten, refused):
    judge = Dns({"example.com": record} if record else {}).judge()
    assert judge.asks("example.com", rewriting=True)[0] is rewritten
    assert judge.asks("example.com", rewriting=False)[0] is refused


@pytest.mark.parametrize(
    ("domain", "rewritten"),
    [("there.example.com", False), ("gone.example.com", True), ("a.b.c.d.e.f.g.h.i.gone.example.com", True)],
)
def test_domains_that_do_not_exist_have_a_policy_of_their_own(domain, rewritten):
    dns = Dns({"example.com": "v=DMARC1; p=none; sp=none; np=reject"}, ("there.example.com",))
    assert dns.judge().asks(domain, rewriting=True)[0] is rewritten


def test_dead_dns_counts_as_a_policy_and_soon_costs_no_time():
    dns = Dns({})
    dns.dead = True
    judge = dns.judge()
    for number in range(50):
        wanted, reason = judge.asks(f"d{number}.example.com", rewriting=True)
        assert wanted
        assert "does not answer" in reason
    assert dns.now == 4 * dmarc.SILENT_AFTER
    dns.dead, dns.now = False, dns.now + dmarc.SILENT_SECONDS
    assert judge.asks("example.com", rewriting=True) == (False, "example.com has no DMARC policy")


def test_one_slow_domain_does_not_silence_the_others():
    dns = Dns({"example.com": "v=DMARC1; p=none"})
    judge = dns.judge()
    for _ in range(5):
        dns.dead = True
        assert judge.asks("slow.example.net", rewriting=True)[0]
        dns.dead = False
        assert not judge.asks("example.com", rewriting=True)[0]


@pytest.mark.parametrize(
    ("patterns", "listed"),
    [
        ([], False),
        (["TARO@example.com"], True),
        ([r"^.*@example\.com$"], True),
        (["^(", "^taro@"], True),
        (["example.com"], False),
    ],
)
def test_addresses_of_the_list_count_and_a_broken_expression_stops_nothing(patterns, listed):
    assert dmarc.is_listed("taro@example.com", patterns) is listed


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        (["A <a@example.com>"], 1),
        (["a@example.com, b@example.com"], 2),
        (["a@example.com", "b@example.com"], 2),
        ([], 0),
    ],
)
def test_authors_are_counted(fields, count):
    assert len(dmarc.author_addresses(fields)) == count


# ---------------------------------------------------------------------------------------------------------------- names


def read_back(field: str) -> tuple[str, str]:
    """Name and address as a reader's program understands them."""
    name, address = email.utils.parseaddr(field)
    return str(make_header(decode_header(name))), address


@pytest.mark.parametrize("name", ["Taro", "Taro, Jr.", 'Ta"ro', "山田太郎", "Zoë 😀", "長い名前" * 50, "a" * 200])
def test_names_are_written_so_that_they_read_the_same(name):
    field = munging.mailbox(name, "list@ml.example.org")
    assert read_back(field) == (name, "list@ml.example.org")
    assert all(len(word) <= 75 for word in re.findall(r"=\?\S+\?=", field))
    assert all(len(line) <= 998 for line in field.splitlines())
    assert all(line.startswith(" ") for line in field.splitlines()[1:])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Taro", "Taro"),
        ("=?utf-8?b?5bGx55Sw?=", "山田"),
        ("=?iso-2022-jp?B?GyRCOzNFRBsoQg==?= =?utf-8?b?5bGx?=", "山田山"),
        ("=?x-nobody?q?abc?=", "abc"),
        ("=?utf-8?b?QQ=A?=", "=?utf-8?b?QQ=A?="),
        ("=?utf-8?q?a=0D=0ABcc=3A_x?=", "a Bcc: x"),
        ("a\u2028b\x00c", "a b c"),
    ],
)
def test_names_are_read(text, name):
    assert munging.plain_name(text) == name


@given(st.text(max_size=300))
def test_no_text_is_too_strange(text):
    name = munging.plain_name(text)
    assert len(name) <= munging.MAX_NAME
    assert not any(ord(char) < 32 or 0xD800 <= ord(char) <= 0xDFFF for char in name)
    field = munging.mailbox(name, "list@ml.example.org")
    assert field.isascii() or not name.isascii()
    field.encode("ascii")
    message = email.message_from_string(f"From: {field}\n\n")
    assert [key for key, _ in message.items()] == ["From"]
    str(make_header(munging.fragments_of(text)))


@given(
    st.binary(max_size=100),
    st.sampled_from(["utf-8", "iso-2022-jp", "euc-jp", "x-nobody", "us-ascii", "utf-7", "idna"]),
)
def test_no_encoded_word_is_too_strange(octets, charset):
    word = f"=?{charset}?b?{base64.b64encode(octets).decode()}?="
    munging.plain_name(word)
    str(make_header(munging.fragments_of(word)))


# -------------------------------------------------------------------------------------------------------------- headers


def rewrite(source: str, *, replies: str = "no_munging", action: str = "munge_from", member: str | None = None):
    """The fields that replace those of a post, by name; the list "Dev" has at most one member."""
    found = SimpleNamespace(display_name=member) if member else None
    roster = SimpleNamespace(get_member=lambda address: found)
    mlist = SimpleNamespace(
        members=roster,
        nonmembers=roster,
        display_name="Dev",
        fqdn_listname="dev@ml.example.org",
        posting_address="dev@ml.example.org",
        preferred_language=SimpleNamespace(code="en"),
        reply_goes_to_list=SimpleNamespace(name=replies),
        dmarc_mitigate_action=SimpleNamespace(name=action),
    )
    message = email.message_from_string(source + "\n\n")
    return dict(munging.rewritten_headers(mlist, message, {"original_sender": "sender@example.com"}))


TARO = "From: Taro <taro@example.com>"


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        (TARO, {}, {"From": "Taro via Dev <dev@ml.example.org>", "Reply-To": "Taro <taro@example.com>"}),
        (
            f"{TARO}\nReply-To: X <x@example.net>",
            {},
            {"From": "Taro via Dev <dev@ml.example.org>", "Reply-To": "X <x@example.net>, Taro <taro@example.com>"},
        ),
        (
            f"{TARO}\nReply-To: taro@example.com",
            {},
            {"From": "Taro via Dev <dev@ml.example.org>", "Reply-To": "taro@example.com"},
        ),
        (
            f"{TARO}\nCc: j@example.edu",
            {"replies": "point_to_list"},
            {"From": "Taro via Dev <dev@ml.example.org>", "Cc": "j@example.edu, Taro <taro@example.com>"},
        ),
        (
            f"{TARO}\nCc: j@example.edu",
            {"action": "wrap_message"},
            {
                "From": "Taro via Dev <dev@ml.example.org>",
                "Reply-To": "Taro <taro@example.com>",
                "Cc": "j@example.edu",
            },
        ),
        (
            "From: taro@example.com",
            {"member": "Yamada Taro"},
            {"From": "Yamada Taro via Dev <dev@ml.example.org>", "Reply-To": "taro@example.com"},
        ),
        (
            "From: taro@example.com",
            {},
            {"From": '"taro--- via Dev" <dev@ml.example.org>', "Reply-To": "taro@example.com"},
        ),
        (
            "From: a@example.com, b@example.com",
            {},
            {"From": '"sender--- via Dev" <dev@ml.example.org>', "Reply-To": "sender@example.com"},
        ),
    ],
)
def test_fields_as_stock_mailman_fills_them(source, options, expected, monkeypatch):
    # the sentence alone: its translation is Mailman's, and tested on a running one
    monkeypatch.setattr(munging, "via", lambda name, mlist: f"{name} via {mlist.display_name}")
    found = rewrite(source, **options)
    plain = {name: value.replace('"', "") for name, value in found.items()}
    assert plain == {name: value.replace('"', "") for name, value in expected.items()}
