"""Whether a logo is one that receivers show beside mail (BIMI): the profile SVG Tiny Portable/Secure.

The rules are those of draft-svg-tiny-ps-abrotman: SVG Tiny 1.2 (W3C) without what could run, move, load or link, in a
square, with a title; and the size that draft-brotman-ietf-bimi-guidance names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"
MOST_OCTETS = 32 * 1024
LONGEST_TITLE = 64
ELEMENTS = frozenset(
    re.findall(
        r"\S+",
        "circle defs desc ellipse font font-face g glyph hkern line linearGradient metadata missing-glyph path"
        " polygon polyline radialGradient rect solidColor stop svg switch tbreak text textArea title tspan use",
    )
)
#: Why the elements that people meet most are not allowed; of others only that they are not.
REASONS = {
    **dict.fromkeys(("script", "handler", "listener"), "a logo must not run code"),
    **dict.fromkeys(
        ("animate", "animateColor", "animateMotion", "animateTransform", "animation", "discard", "mpath", "set"),
        "a logo must not move",
    ),
    **dict.fromkeys(("image", "audio", "video"), "a logo is vectors only; draw it anew instead of embedding a picture"),
    **dict.fromkeys(("a", "foreignObject", "prefetch", "font-face-uri"), "a logo must not lead elsewhere"),
    "style": "write fill and stroke as attributes instead of a style sheet",
}
_NUMBERS = re.compile(r"[\s,]+")
_REFERENCE = re.compile(r"url\(\s*['\"]?\s*([^'\")\s]*)", re.IGNORECASE)
_DECLARATION = re.compile(r"<!(DOCTYPE|ENTITY)", re.IGNORECASE)


def bimi_problems(svg_text: str) -> list[str]:
    """What is wrong with a logo, in plain sentences; empty when receivers may show it.

    :param svg_text: the file's text, decompressed.
    """
    found = []
    size = len(svg_text.encode("utf-8", "surrogatepass"))
    if size > MOST_OCTETS:
        found.append(f"the logo has {size} bytes; receivers take {MOST_OCTETS} at most (32 kB).")
    if _DECLARATION.search(svg_text):
        # Nothing is expanded and nothing parsed: a logo needs neither, an attack does.
        return [*found, "the logo has a DOCTYPE or an ENTITY declaration, which leads elsewhere; remove it."]
    try:
        root = ElementTree.fromstring(svg_text.encode("utf-8", "surrogatepass"))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        return [*found, f"the logo is no well-formed XML: {error}."]
    if root.tag != f"{SVG}svg":
        return [*found, f"the outermost element is {_plain(root.tag)}; it must be svg of http://www.w3.org/2000/svg."]
    found += _root_problems(root)
    for element in root.iter():
        found += _element_problems(element, element is root)
    return list(dict.fromkeys(found))


def _root_problems(root: ElementTree.Element) -> Iterator[str]:
    for name, wanted in (("version", "1.2"), ("baseProfile", "tiny-ps")):
        if root.get(name) != wanted:
            is_there = f'is "{root.get(name)}"' if name in root.attrib else "is missing"
            yield f'{name} of the outermost element {is_there}; it must be "{wanted}".'
    for name in ("x", "y"):
        if name in root.attrib:
            yield f"the outermost element has the attribute {name}; remove it."
    for name in ("width", "height"):
        if root.get(name, "").strip().endswith("%"):
            yield f'{name} of the outermost element is "{root.get(name)}"; give a number or leave it out.'
    yield from _square_problems(root.get("viewBox"))
    titles = [child for child in root if child.tag == f"{SVG}title"]
    text = "".join(titles[0].itertext()).strip() if titles else ""
    if not text:
        yield "the logo has no title; put the organisation's name into a title element, directly in the outermost one."
    elif len(text) > LONGEST_TITLE:
        yield f"the title has {len(text)} characters; {LONGEST_TITLE} at most."


def _square_problems(view_box: str | None) -> Iterator[str]:
    if view_box is None:
        yield 'viewBox of the outermost element is missing; give a square such as "0 0 100 100".'
        return
    try:
        _, _, width, height = map(float, _NUMBERS.split(view_box.strip()))
    except ValueError:
        yield f'viewBox is "{view_box}"; it must be four numbers such as "0 0 100 100".'
        return
    if not 0 < width == height < float("inf"):
        yield f'viewBox is "{view_box}", {width:g} wide and {height:g} high; receivers show squares only.'


def _element_problems(element: ElementTree.Element, is_root: bool) -> Iterator[str]:
    name = _plain(element.tag)
    if not str(element.tag).startswith(SVG):
        yield f"the element {name} is not of SVG; editors leave such: export the logo without editor data."
        return
    if name not in ELEMENTS or (name == "svg" and not is_root):
        reason = f", because {REASONS[name]}" if name in REASONS else ""
        yield f"the element {name} is not allowed{reason}."
    for key, value in element.attrib.items():
        attribute = _plain(key)
        if attribute.lower().startswith("on"):
            yield f"the attribute {attribute} of {name} is not allowed, because a logo must not run code."
        elif attribute == "style":
            yield f"the attribute style of {name} is not allowed; write fill and stroke as attributes of their own."
        elif _leads_out(attribute, value):
            yield f'{attribute} of {name} is "{value[:60]}"; only references within the logo (#…) are allowed.'


def _leads_out(attribute: str, value: str) -> bool:
    """Whether an attribute refers to anything outside the logo."""
    targets = _REFERENCE.findall(value) + ([value.strip()] if attribute in ("href", "src") else [])
    return not all(target.startswith("#") for target in targets)


def _plain(tag: object) -> str:
    """A name without its namespace."""
    return str(tag).rpartition("}")[2]
