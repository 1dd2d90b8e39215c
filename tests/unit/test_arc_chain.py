"""ARC chains: what passes, what fails, whom we believe, and what we put on top."""

from __future__ import annotations

import base64
import re
import time

import dkim
import pytest
from arc_data import outside
from arc_data.outside import MESSAGE, chain_of, lookup, seal
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

import estate_arc_chain as chain

TRUSTED = ["lists.example.edu", ".forwarders.example.net"]


def judge(message: bytes) -> chain.Verdict:
    return chain.verify_message(message, lookup)


def trust(message: bytes) -> chain.Trust:
    headers, _ = chain.split_message(message)
    return chain.judge_trust(judge(message), TRUSTED, chain.author_domain(headers))


def our_seal(message: bytes, results: str = "mx.example.org; dmarc=pass; arc=none") -> bytes:
    """What the seal stage does to a message that passed the verify stage."""
    headers, body = chain.split_message(message)
    hasher = chain.BodyHash()
    hasher.update(body)
    sealer = chain.Sealer(outside.key_pair()[0], "example.org", "arc2026")
    lines = sealer.seal(headers, hasher.digest(), results, chain.read_chain(headers), int(time.time()))
    for name, value in lines:
        message = f"{name}:{value}\r\n".replace("\n\t", "\r\n\t").encode() + message
    return message


# ------------------------------------------------------------------------------------------------------------ verifying


def test_message_without_arc_has_no_chain():
    assert judge(MESSAGE).status == "none"


@pytest.mark.parametrize("length", [1, 2, 5, 50])
def test_valid_chains_pass(length):
    message = chain_of(*(f"hop{number}.example.net" for number in range(length)))
    verdict = judge(message)
    assert (verdict.status, len(verdict.sets)) == ("pass", length), verdict
    assert dkim.arc_verify(message, dnsfunc=outside.dkimpy_lookup)[0] == b"pass"


def doubled_results(message: bytes) -> bytes:
    return b"ARC-Authentication-Results: i=1; mx.a.example; dmarc=pass\r\n" + message


def fifty_one(message: bytes) -> bytes:
    return message.replace(b"i=1;", b"i=51;").replace(b"i=2;", b"i=52;")


BREAKAGE = {
    "body": (lambda m: m.replace(b"at ten", b"at six"), "body has changed"),
    "subject": (lambda m: m.replace(b"A question", b"An answer"), "ARC-Message-Signature does not verify"),
    "second From": (lambda m: b"From: x@bank.example\r\n" + m, "ARC-Message-Signature does not verify"),
    "results in the AAR": (
        lambda m: re.sub(rb"(?s)(i=1; mx.*?)dmarc=pass", rb"\1dmarc=fail", m),
        "ARC-Seal does not verify",
    ),
    "doubled AAR above": (doubled_results, "doubled ARC header field"),
    "doubled AAR below": (lambda m: m.replace(b"From:", doubled_results(b"From:"), 1), "doubled ARC header field"),
    "i=51": (fifty_one, "instance number out of range"),
    "i=0": (lambda m: m.replace(b"i=1;", b"i=0;"), "instance number out of range"),
    "gap": (lambda m: m.replace(b"i=2;", b"i=3;"), "incomplete ARC set"),
    "seal missing": (lambda m: re.sub(rb"ARC-Seal: i=1.*?\r\n(?=\S)", b"", m, flags=re.S), "incomplete ARC set"),
    "cv=pass at i=1": (lambda m: m.replace(b"cv=none", b"cv=pass"), "cv= against the rule"),
    "cv=none at i=2": (lambda m: m.replace(b"cv=pass", b"cv=none"), "cv= against the rule"),
    "cv=fail": (lambda m: m.replace(b"cv=pass", b"cv=fail"), chain.ENDED),
    "cv=fail below": (lambda m: m.replace(b"cv=none", b"cv=fail"), chain.ENDED),
    "key gone": (lambda m: m.replace(b"d=b.example", b"d=nokey.example"), "no key record"),
    "no domain": (lambda m: m.replace(b"d=b.example", b"d=b..example"), "signing domain is no domain name"),
    "other algorithm": (lambda m: m.replace(b"rsa-sha256", b"rsa-sha1"), "unreadable ARC-Seal"),
    "h= in the seal": (lambda m: m.replace(b"cv=pass;", b"cv=pass; h=from;"), "ARC-Seal with h="),
    "seal in the AMS": (lambda m: m.replace(b"h=from", b"h=arc-seal:from"), "ARC-Message-Signature covers ARC-Seal"),
    "white space": (lambda m: m.replace(b"bh=", b"bh=" + b"\r\n " * 100), "ARC header fields too large"),
}


@pytest.mark.parametrize(("breakage", "reason"), BREAKAGE.values(), ids=BREAKAGE)
def test_broken_chains_fail_with_their_reason(breakage, reason):
    message = chain_of("a.example", "b.example")
    broken = breakage(message)
    assert broken != message
    verdict = judge(broken)
    assert (verdict.status, verdict.reason) == ("fail", reason)


def test_instances_count_and_not_the_place_of_the_header_fields():
    message = chain_of("a.example", "b.example")
    fields = re.findall(rb"(?s)ARC-.*?\r\n(?=\S)", message)
    rest = message[len(b"".join(fields)) :]
    assert judge(b"".join(reversed(fields)) + rest).status == "pass"


def test_key_that_answers_late_is_waited_for_and_not_taken_for_valid():
    """The race of rspamd 3.12: a forged first seal passed when its key arrived after the second's."""
    forged = chain_of("a.example", "b.example").replace(b"d=a.example", b"d=slow.example")

    def slow(name: str) -> bytes | None:
        if "slow" in name:
            time.sleep(0.05)
        return lookup(name)

    assert chain.verify_message(forged, slow).status == "fail"


def test_key_that_cannot_be_fetched_now_fails_the_chain_and_says_so():
    def dead(name: str) -> bytes | None:
        raise chain.TemporaryDnsError(name)

    verdict = chain.verify_message(chain_of("a.example"), dead)
    assert (verdict.status, verdict.temporary) == ("fail", True)


def test_long_forged_chain_costs_one_key():
    asked = []

    def counting(name: str) -> bytes | None:
        asked.append(name)
        return lookup(name)

    message = chain_of(*(f"hop{number}.example.net" for number in range(20))).replace(b"A question", b"An answer")
    assert chain.verify_message(message, counting).status == "fail"
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("record", "usable"),
    [
        (b"v=DKIM1; k=rsa; p=%s", True),
        (b"p=%s", True),
        (b"v=DKIM1; h=sha1:sha256; s=email; p=%s", True),
        (b"v=DKIM1; h=sha1; p=%s", False),
        (b"v=DKIM1; s=tlsrpt; p=%s", False),
        (b"v=DKIM2; p=%s", False),
        (b"v=DKIM1; k=ed25519; p=%s", False),
        (b"v=DKIM1; p=", False),
        (b"v=DKIM1", False),
        (b"v=DKIM1; p=!!!!", False),
        (b"v=DKIM1; p=AAAA%s", False),
        (b"", False),
        (b"v=DKIM1; n=" + b"x" * 5000 + b"; p=%s", False),
    ],
)
def test_key_records(record, usable):
    public = outside.key_pair()[1].partition(b"p=")[2]
    text = record.replace(b"%s", public)
    assert (chain.verify_message(chain_of("a.example"), lambda name: text).status == "pass") == usable


@pytest.mark.parametrize(("bits", "exponent"), [(512, 65537), (9000, 65537), (2048, 2**33 + 1)])
def test_weak_keys_and_keys_that_cost_too_much_are_refused(bits, exponent):
    public = rsa.RSAPublicNumbers(exponent, 2 ** (bits - 1) + 1).public_key()
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(chain.ChainError, match="key size"):
        chain.parse_key_record(b"v=DKIM1; p=" + base64.b64encode(der))


# ---------------------------------------------------------------------------------------------------------------- trust


def test_trusted_sealer_is_believed():
    assert trust(chain_of("lists.example.edu")) == chain.Trust(True, "pass", "lists.example.edu")
    assert trust(chain_of("a.forwarders.example.net")).trusted


@pytest.mark.parametrize("domain", ["example.edu", "x.lists.example.edu", "forwarders.example.net", "evil.example"])
def test_names_near_a_trusted_one_are_not_trusted(domain):
    assert trust(chain_of(domain)) == chain.Trust(False)


def test_trusted_set_below_a_strangers_is_not_believed():
    """The replay that rspamd's whitelist falls for."""
    genuine = chain_of("lists.example.edu").replace(b"at ten", b"at six")
    assert trust(seal(genuine, "evil.example", arc="pass")) == chain.Trust(False)


def test_all_trusted_from_outside_inward_reach_the_innermost():
    message = chain_of("a.forwarders.example.net", "lists.example.edu")
    assert trust(message).sealer == "a.forwarders.example.net"


def test_reading_stops_at_the_first_stranger():
    first = chain_of("evil.example", results=b"dmarc=pass header.from=example.com")
    message = seal(first, "lists.example.edu", b"dmarc=fail header.from=example.com", "pass")
    assert trust(message) == chain.Trust(True, "fail", "lists.example.edu")


def test_dmarc_pass_of_another_author_does_not_count():
    assert trust(chain_of("lists.example.edu", results=b"dmarc=pass header.from=other.example")).dmarc == "none"


@pytest.mark.parametrize(
    "results", [b"spf=pass", b"dmarc=pass header.from=example.com; dmarc=fail", b"dmarc=bestguess"]
)
def test_unclear_dmarc_results_are_none(results):
    assert trust(chain_of("lists.example.edu", results=results)).dmarc == "none"


@pytest.mark.parametrize("value", ["none; trusted=no; dmarc=none", "pass; trusted=yes; dmarc=pass"])
def test_handover_is_read_as_written(value):
    status, believed = chain.parse_handover(f" {value}".encode())
    assert chain.handover_value(status, believed) == value


@pytest.mark.parametrize("value", [b"", b"pass", b"pass; trusted=yes; dmarc=pass; x", b"PASS; trusted=yes; dmarc=pass"])
def test_anything_else_is_no_handover(value):
    assert chain.parse_handover(value) is None


# -------------------------------------------------------------------------------------------------------------- sealing


@pytest.mark.parametrize("hops", [0, 1, 3])
def test_our_seals_verify_with_dkimpy_and_with_us(hops):
    message = our_seal(chain_of(*(f"hop{number}.example.net" for number in range(hops))))
    assert judge(message).status == "pass"
    assert dkim.arc_verify(message, dnsfunc=outside.dkimpy_lookup)[0] == b"pass"
    assert message.startswith(b"ARC-Seal: i=%d; a=rsa-sha256; cv=%s;" % (hops + 1, b"pass" if hops else b"none"))


def test_nobody_seals_beyond_fifty():
    with pytest.raises(ValueError, match="fifty"):
        our_seal(chain_of(*(f"hop{number}.example.net" for number in range(50))))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.replace(b"Subject: A question", b"Subject:  A\r\n question"),
        lambda m: re.sub(rb"\r\n\t", b" ", m),
        lambda m: m.replace(b"meet at ten?", b"meet  at\tten?  "),
        lambda m: m + b"\r\n\r\n",
        lambda m: b"Received: from a by b; now\r\n" + m,
    ],
    ids=["refolded subject", "refolded sets", "body white space", "blank lines at the end", "one more hop"],
)
def test_seal_survives_what_mail_servers_do(change):
    message = our_seal(MESSAGE)
    assert judge(change(message)).status == "pass"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: b"Subject: Another\r\n" + m,
        lambda m: b"From: x@bank.example\r\n" + m,
        lambda m: b"Content-Type: text/html\r\n" + m,
    ],
)
def test_header_fields_added_on_top_break_the_seal(change):
    assert judge(change(our_seal(MESSAGE))).status == "fail"


def test_lines_of_our_set_are_short():
    many = "; ".join(f"dkim=pass header.d=d{number}.example.com header.s=selector{number}" for number in range(90))
    head = our_seal(MESSAGE, f"mx.example.org; {many}; arc=none").partition(b"\r\n\r\n")[0]
    assert max(map(len, head.split(b"\r\n"))) < 300


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_unusable_key_is_said_in_plain_words(pem):
    with pytest.raises(ValueError, match="ARC private key"):
        chain.Sealer(pem, "example.org", "arc2026")


# -------------------------------------------------------------------------------------------------------- author domain


@pytest.mark.parametrize(
    ("value", "domain"),
    [
        (b" a@example.com", "example.com"),
        (b" =?utf-8?q?A?= <a@EXAMPLE.com.>", "example.com"),
        (b' "x@evil.example" <a@example.com>', "example.com"),
        ("“ü” <a@bücher.example>".encode(), "xn--bcher-kva.example"),
        (b" a@example.com, b@example.net", ""),
        (b" nobody", ""),
        (b"", ""),
        (b" a@-", ""),
        (b" a@b..c", ""),
        (b" " + b"x" * 5000 + b"@example.com", ""),
    ],
)
def test_author_domain(value, domain):
    assert chain.author_domain([(b"From", value)]) == domain


def test_two_from_fields_have_no_author_domain():
    assert chain.author_domain([(b"From", b"a@example.com"), (b"from ", b"a@example.com")]) == ""
