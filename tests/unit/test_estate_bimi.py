"""The logo's profile: what receivers show has no problem, everything that could run, move, load or link has one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estate_bimi import MOST_OCTETS, bimi_problems

GOOD = """<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
     version="1.2" baseProfile="tiny-ps" viewBox="0 0 100 100">
  <title>Example Organisation</title>
  <desc>Two circles</desc>
  <defs>
    <linearGradient id="sky"><stop offset="0" stop-color="#004488"/></linearGradient>
    <circle id="dot" cx="30" cy="30" r="20"/>
  </defs>
  <rect width="100" height="100" fill="url(#sky)"/>
  <g fill="white"><use xlink:href="#dot"/><use xlink:href="#dot" x="40"/></g>
  <!-- a comment does no harm -->
</svg>
"""


def test_logo_of_the_profile_has_no_problem():
    assert bimi_problems(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (' version="1.2"', ' version="1.1"', 'version of the outermost element is "1.1"; it must be "1.2".'),
        (' version="1.2"', "", "version of the outermost element is missing"),
        ("tiny-ps", "tiny", 'baseProfile of the outermost element is "tiny"; it must be "tiny-ps".'),
        ("0 0 100 100", "0 0 100 50", "100 wide and 50 high; receivers show squares only."),
        ("0 0 100 100", "0,0 , 100,100", None),
        ("0 0 100 100", "0 0 100", "must be four numbers"),
        ("0 0 100 100", "0 0 inf inf", "squares only"),
        ("0 0 100 100", "0 0 nan nan", "squares only"),
        (' viewBox="0 0 100 100"', "", "viewBox of the outermost element is missing"),
        (' viewBox="0 0', ' x="0" viewBox="0 0', "has the attribute x"),
        (' viewBox="0 0', ' width="100%" viewBox="0 0', 'width of the outermost element is "100%"'),
        ("<title>Example Organisation</title>", "", "has no title"),
        ("<title>Example Organisation</title>", "<g><title>Example</title></g>", "has no title"),
        ("Example Organisation", " ", "has no title"),
        ("Example Organisation", "x" * 65, "the title has 65 characters; 64 at most."),
        ("<desc>", "<script>alert(1)</script><desc>", "script is not allowed, because a logo must not run code"),
        ("<rect ", '<rect onclick="alert(1)" ', "attribute onclick of rect is not allowed"),
        (
            "<use xlink",
            '<animate attributeName="x"/><use xlink',
            "is not allowed, because a logo must not move",
        ),
        ("<use xlink", '<image xlink:href="#dot"/><use xlink', "vectors only"),
        ("<use xlink", "<foreignObject/><use xlink", "foreignObject is not allowed"),
        ("<use xlink", "<filter/><use xlink", "the element filter is not allowed."),
        ("<use xlink", "<svg/><use xlink", "the element svg is not allowed"),
        ("<defs>", "<style>rect {fill: red}</style><defs>", "instead of a style sheet"),
        ("<rect ", '<rect style="fill: red" ', "attribute style of rect is not allowed"),
        ("<rect ", '<rect xmlns:i="urn:editor" i:layer="1" ', None),
        ("<rect ", '<i:data xmlns:i="urn:editor"/><rect ', "the element data is not of SVG"),
        ('xlink:href="#dot" x', 'xlink:href="https://example.com/dot.svg#dot" x', "only references within the logo"),
        ('xlink:href="#dot" x', 'xlink:href="data:image/png;base64,AAAA" x', "only references within the logo"),
        ("url(#sky)", "url( 'https://example.com/sky')", "only references within the logo"),
        ("<svg ", '<!DOCTYPE svg SYSTEM "http://example.com/svg.dtd"><svg ', "DOCTYPE"),
        ("</svg>", "", "no well-formed XML"),
        ("http://www.w3.org/2000/svg", "urn:something", "the outermost element is svg; it must be svg of http"),
    ],
)
def test_logo_that_receivers_would_not_show_is_told_why(old, new, says):
    assert old in GOOD
    found = bimi_problems(GOOD.replace(old, new, 1))
    if says is None:
        assert found == []
    else:
        assert [sentence for sentence in found if says in sentence], found
        assert all(sentence.endswith(".") for sentence in found)


def test_logo_of_32_kilobytes_is_the_largest():
    room = MOST_OCTETS - len(GOOD)
    assert bimi_problems(GOOD.replace("Two circles", "Two circles" + "x" * room)) == []
    (problem,) = bimi_problems(GOOD.replace("Two circles", "Two circles" + "x" * (room + 1)))
    assert problem.startswith(f"the logo has {MOST_OCTETS + 1} bytes")


def test_bomb_of_entities_is_not_opened():
    bomb = '<!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>' + GOOD.partition("?>")[2]
    (problem,) = bimi_problems(bomb)
    assert "DOCTYPE" in problem


@given(text=st.text() | st.text(alphabet='<>/="& svgtitle#:;!-?\x00', max_size=80))
def test_anything_gives_sentences_and_never_an_exception(text):
    assert all(isinstance(sentence, str) for sentence in bimi_problems(text))
    assert bimi_problems(text) != []
