"""Members from CSV files as people make them: what can be used is used, the rest is set aside with a reason."""

from __future__ import annotations

import contextlib
import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailman_csv import Parsed, decode, parse, refused_file


def one(row: str) -> Parsed:
    return parse(f"address,name,role,delivery\n{row}\n".encode())


def addresses(content: bytes) -> list[str]:
    return [member.address for member in parse(content).members]


# --- encodings --------------------------------------------------------------------------------------------------------

JAPANESE = "address,name\nhanako@example.org,山田 花子\ntaro@example.org,ソース表示\n"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "cp932", "euc_jp", "iso2022_jp", "utf-16", "utf-16-le", "utf-16-be"]
)
def test_japanese_names_survive_whatever_the_spreadsheet_writes(encoding):
    parsed = parse(JAPANESE.encode(encoding))
    assert [member.name for member in parsed.members] == ["山田 花子", "ソース表示"]
    assert parsed.refused == []


def test_unknown_encoding_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="save it as CSV UTF-8"):
        decode(b"address,name\nx@example.org,\xff\xfd\x81\n")


def test_truncated_utf_16_is_refused_in_plain_words():
    with pytest.raises(ValueError, match="begins as utf-16"):
        parse("address\nx@example.org\n".encode("utf-16") + b"\0")


# --- whole files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\n  \n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"alice@example.org,Alice\n", "must name the columns"),
        (b"address,nickname\n", "column 'nickname'"),
        (b"address,address\n", "two columns address"),
        (b'address,"name\n', "must name the columns"),
    ],
)
def test_file_that_is_no_list_of_members_is_refused(content, says):
    with pytest.raises(ValueError, match=says):
        parse(content)


def test_header_alone_names_nobody():
    assert parse(b"address,name\n").members == []


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_other_delimiters_and_line_ends_are_understood(delimiter, end):
    lines = ["Name,Address,", "Alice,alice@example.org,", "", "Bob,bob@example.org"]
    content = end.join(lines).replace(",", delimiter).encode()
    assert addresses(content) == ["alice@example.org", "bob@example.org"]


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("=cmd@example.org,,,", "like a spreadsheet's formula"),
        ("a@example.org,=1+1,,", "like a spreadsheet's formula"),
        ("a@example.org,+81 3,,", "like a spreadsheet's formula"),
        ("a@example.org,-x,,", "like a spreadsheet's formula"),
        ("a@example.org,@x,,", "like a spreadsheet's formula"),
        ("alice,,,", "local@domain is needed"),
        ("@example.org,,,", "like a spreadsheet's formula"),
        (",Nobody,,", "there is no address"),
        ("a@b@example.org,,,", "one @ only"),
        ("a b@example.org,,,", "what stands before the @"),
        ("a..b@example.org,,,", "what stands before the @"),
        ("たろう@example.org,,,", "only ASCII letters"),
        ("a@example,,,", "no full domain name"),
        ("a@-example.org,,,", "no full domain name"),
        ("a@127.0.0.1,,,", "no full domain name"),
        ("a@example.org,,boss,", "role is 'boss'; known are member, owner"),
        ("a@example.org,,,digest", "delivery is 'digest'; known are regular"),
        ("a@example.org,A", "has 2 columns; the first line names 4"),
        ("a@example.org,A,,,,x", "has 6 columns"),
        ("a@example.org,A\0B,,", "NUL"),
        ("a@example.org,A\x07B,,", "control character"),
        ('a@example.org,"A"B,,', "is no CSV"),
        ('a@example.org,"A,,', "opened and not closed"),
        (f"a@example.org,{'A' * 201},,", "201 characters long"),
        (f"a@example.org,{'A' * 1_000_000},,", "1000016 characters long"),
        (f"{'a' * 65}@example.org,,,", "what stands before the @"),
    ],
)
def test_bad_row_is_refused_with_its_line_and_the_others_go_on(row, says):
    parsed = parse(f"address,name,role,delivery\nfirst@example.org,,,\n{row}\nlast@example.org,,,\n".encode())
    assert [member.address for member in parsed.members] == ["first@example.org", "last@example.org"]
    (refused,) = parsed.refused
    assert refused.line == 3
    assert says in refused.reason
    assert len(refused.text) <= 201


def test_good_row_says_only_what_it_says():
    (member,) = one(' Alice@Example.org ," Alice  A. ", Owner ,mime_digests').members
    assert (member.address, member.name, member.role, member.delivery) == (
        "Alice@Example.org", "Alice A.", "owner", "mime_digests",
    )  # fmt: skip
    (member,) = one("alice@example.org,,,").members
    assert (member.name, member.role, member.delivery) == ("", "member", "")


def test_doubled_and_mixed_case_addresses_are_one_member_with_a_note():
    parsed = parse(b"address,name\nalice@example.org,A\nALICE@example.org,B\nalice@example.org,A\n")
    assert [(member.address, member.name) for member in parsed.members] == [("alice@example.org", "A")]
    assert parsed.refused == []
    assert parsed.notes[0].startswith("line 3: ALICE@example.org is in line 2 already as alice@example.org")
    assert "line 4" in parsed.notes[1]


def test_one_person_may_have_two_roles():
    parsed = parse(b"address,role\nolga@example.org,owner\nolga@example.org,member\n")
    assert [member.role for member in parsed.members] == ["owner", "member"]


def test_internationalised_domain_is_written_as_a_label_with_a_note():
    parsed = parse("address\nuser@例え.jp\n".encode())
    assert [member.address for member in parsed.members] == ["user@xn--r8jz45g.jp"]
    assert parsed.notes == ["line 2: the domain is written as xn--r8jz45g.jp"]


def test_line_break_in_a_quoted_name_becomes_a_space():
    parsed = one('a@example.org,"Alice\nA.",,\nb@example.org,,,')
    assert [(member.name, member.line) for member in parsed.members] == [("Alice A.", 2), ("", 4)]
    assert parsed.notes == ["line 2: the line break in the name became a space"]


def test_quotation_mark_that_is_never_closed_costs_its_own_line_only():
    parsed = one('a@example.org,"A,,\nb@example.org,B,,\nc@example.org,"C",,\nd@example.org,"D,,\ne@example.org,,,')
    assert [member.address for member in parsed.members] == ["b@example.org", "c@example.org", "e@example.org"]
    assert [refused.line for refused in parsed.refused] == [2, 5]


def test_addresses_of_refused_rows_are_known():
    assert one("A@example.org,=x,,").mentioned == {"a@example.org"}


def test_ten_thousand_rows_are_read_at_once():
    content = "address,name\n" + "".join(f'm{number}@example.org,"Member {number}"\n' for number in range(10_000))
    assert len(parse(content.encode()).members) == 10_000


# --- what is given back -----------------------------------------------------------------------------------------------


def test_refused_rows_come_back_as_a_file_without_formulas():
    parsed = parse(b"address,name\n=1+1@example.org,x\nok@example.org,y\nb,\0\n")
    rows = list(csv.reader(io.StringIO(refused_file(parsed.refused))))
    assert rows[0] == ["line", "reason", "row"]
    assert [row[0] for row in rows[1:]] == ["2", "4"]
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(st.text(max_size=60), max_size=6), raw=st.binary(max_size=40))
def test_nothing_is_lost_and_nothing_raises(rows, raw):
    text = "address,name\n" + "\n".join(rows)
    try:
        parsed = parse(text.encode("utf-8", "surrogatepass"))
    except ValueError:
        pass
    else:
        lines = {member.line for member in parsed.members} | {refused.line for refused in parsed.refused}
        assert all(1 < line <= text.count("\n") + text.count("\r") + 1 for line in lines)
    with contextlib.suppress(ValueError):
        parse(raw)


@settings(max_examples=100, deadline=None)
@given(
    bad=st.lists(
        st.sampled_from(['x@example.org,"', "=1,", "no address,x", "a,b,c", "\0,", "é@example.org,", "y" * 9000]),
        max_size=8,
    ),
    seed=st.randoms(),
)
def test_good_rows_go_on_whatever_stands_between_them(bad, seed):
    good = [f"good{number}@example.org,Good {number}" for number in range(8)]
    rows = good + bad
    seed.shuffle(rows)
    parsed = parse(("address,name\n" + "\n".join(rows) + "\n").encode())
    assert len(parsed.members) == len(good)
    assert len(parsed.refused) == len(bad)
