"""Authentication-Results: which are ours, what they say, how arc= is added."""

from __future__ import annotations

import authres
import pytest

import estate_arc_chain as chain

OURS = [
    b" mx.example.org; spf=pass",
    b"mx.example.org;spf=pass",
    b" MX.Example.ORG; spf=pass",
    b' "mx.example.org"; spf=pass',
    b' "mx.\\example.org"; spf=pass',
    b" (a (nested \\) comment)) mx.example.org (x); spf=pass",
    b"\r\n\tmx.example.org\r\n\t; spf=pass",
    b" mx.example.org 1; spf=pass",
    b" mx.example.org/1; spf=pass",
    b" mx.example.org.; spf=pass",
    b" mx.(x)example.org; spf=pass",
    b" mx.example.org",
    b' mx.example.org; spf=pass reason="unclosed',
    b" (unclosed mx.example.org; spf=pass",
    b' "mx.example.org; spf=pass',
    b" ) mx.example.org; spf=pass",
]
FOREIGN = [
    b" mx.example.net; spf=pass smtp.mailfrom=x@mx.example.org",
    b" mx.example.org.example.net; spf=pass",
    b" xmx.example.org; spf=pass",
    b" mx.example.organ; spf=pass",
    b" (mx.example.org) mx.example.net; spf=pass",
    b" spf=pass smtp.mailfrom=mx.example.org",
    b' mx.example.net; dkim=pass reason="mx.example.org; spf=pass"',
    b"",
    b" ; spf=pass",
    b" (unclosed mx.example.net",
    b" \xff\xfe; spf=pass",
]


@pytest.mark.parametrize("value", OURS)
def test_results_in_our_name_are_recognised(value):
    assert chain.names_authserv_id(value, "mx.example.org")


@pytest.mark.parametrize("value", FOREIGN)
def test_results_of_others_are_left_alone(value):
    assert not chain.names_authserv_id(value, "mx.example.org")


def test_our_name_in_international_spelling_is_ours():
    assert chain.names_authserv_id(" bücher.example; spf=pass".encode(), "xn--bcher-kva.example")


RSPAMD = (
    b" mx.example.org;\r\n\tdkim=pass header.d=example.com header.s=s1 header.b=Ab/+c=;\r\n"
    b'\tdkim=fail ("body hash; did not verify") header.d=list.example header.s=x header.b=zz;\r\n'
    b"\tspf=pass (mx.example.org: domain of bounce+a=b@example.net designates 192.0.2.1 as permitted)"
    b" smtp.mailfrom=bounce+a=b@example.net;\r\n"
    b'\tdmarc=fail reason="SPF not aligned (relaxed); No valid DKIM" header.from=example.com (policy=reject)'
)


def test_what_rspamd_writes_is_understood():
    results = chain.parse_authentication_results(RSPAMD)
    assert results.authserv_id == "mx.example.org"
    assert [(item.method, item.result) for item in results.results] == [
        ("dkim", "pass"),
        ("dkim", "fail"),
        ("spf", "pass"),
        ("dmarc", "fail"),
    ]
    assert results.of("dkim")[0].properties == {"header.d": "example.com", "header.s": "s1", "header.b": "Ab/+c="}
    assert results.of("spf")[0].properties == {"smtp.mailfrom": "bounce+a=b@example.net"}
    assert results.of("dmarc")[0].properties["header.from"] == "example.com"


@pytest.mark.parametrize(
    ("value", "method", "result"),
    [
        (b"x.example; spf = pass", "spf", "pass"),
        (b"x.example; spf=(c)pass", "spf", "pass"),
        (b"x.example; SPF/1=Pass", "spf", "pass"),
        (b"spf=pass smtp.mailfrom=a@b.example", "spf", "pass"),
        (b'x.example; spf="pass"', "spf", "pass"),
    ],
)
def test_spellings_that_mean_the_same(value, method, result):
    found = chain.parse_authentication_results(value).results[0]
    assert (found.method, found.result) == (method, result)


def test_nothing_done_has_no_results():
    assert chain.parse_authentication_results(b"x.example; none").results == ()


@pytest.mark.parametrize("value", [b'x; a="b', b"x; (", b"x; )", b"x; (\\"])
def test_what_does_not_close_is_refused(value):
    with pytest.raises(ValueError, match=r"unclosed|unopened"):
        chain.parse_authentication_results(value)


def test_arc_result_is_added_and_the_rest_kept_with_its_comments():
    text = chain.extend_results(RSPAMD, "arc", "arc=pass smtp.remote-ip=192.0.2.1")
    assert text.endswith(";\n\tarc=pass smtp.remote-ip=192.0.2.1")
    assert "(mx.example.org: domain of bounce+a=b@example.net" in text.replace("\n\t", " ")
    assert '("body hash; did not verify")' in text
    assert text.count("\n\tdkim=") == 2


def test_older_arc_result_is_replaced():
    text = chain.extend_results(b"x.example; ARC = fail (no); arc=pass; spf=pass", "arc", "arc=none")
    assert text == "x.example;\n\tspf=pass;\n\tarc=none"


def test_none_gives_way_to_the_arc_result():
    assert chain.extend_results(b"x.example; none", "arc", "arc=none") == "x.example;\n\tarc=none"


def test_octets_that_are_no_utf8_do_no_harm():
    assert "arc=none" in chain.extend_results(
        b"x.example; spf=pass smtp.mailfrom=\xff\xfe@a.example", "arc", "arc=none"
    )


def test_the_field_we_write_is_read_alike_by_authres():
    plain = RSPAMD.replace(b"bounce+a=b@", b"bounce@").replace(b"Ab/+c=", b"Abc")
    text = chain.extend_results(plain, "arc", 'arc=pass smtp.remote-ip="2001:db8::1"')
    parsed = authres.AuthenticationResultsHeader.parse(f"Authentication-Results: {text}".replace("\n\t", "\r\n\t"))
    ours = chain.parse_authentication_results(text.encode())
    assert [(item.method, item.result) for item in parsed.results] == [
        (item.method, item.result) for item in ours.results
    ]
