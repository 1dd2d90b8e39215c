"""Reports checked against the schemas of RFC 9990 and RFC 7489 (appendices), as the package dmarc carries them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

from lxml import etree

NAMESPACE = "{urn:ietf:params:xml:ns:dmarc-2.0}"

_package = importlib.util.find_spec("dmarc")
assert _package is not None
assert _package.origin
_SCHEMAS = Path(_package.origin).parent / "report/schemas"
_NEW = etree.XMLSchema(file=str(_SCHEMAS / "dmarc-2.0.xsd"))
_OLD = etree.XMLSchema(file=str(_SCHEMAS / "dmarc.xsd"))


def faults(document: bytes) -> list[str]:
    """What is wrong with a report by the schema of its form; the namespace is RFC 9990's or none."""
    root = etree.fromstring(document, etree.XMLParser(resolve_entities=False, no_network=True))
    schema = _NEW if root.tag.startswith(NAMESPACE) else _OLD
    return [] if schema.validate(root) else [str(entry) for entry in schema.error_log]


def read(document: bytes) -> ElementTree.Element:
    """The parsed document, after it was checked, without the namespace of RFC 9990."""
    assert faults(document) == []
    root = ElementTree.fromstring(document)
    for element in root.iter():
        element.tag = element.tag.removeprefix(NAMESPACE)
    return root
