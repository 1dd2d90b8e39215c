"""The schemas of RFC 9990 and RFC 7489 (appendices) as tables, checked by this file's own code.

A schema validator is none of the repository's requirements.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

NAMESPACE = "{urn:ietf:params:xml:ns:dmarc-2.0}"
POLICY, PASS_FAIL, ALIGNMENT = "none|quarantine|reject", "pass|fail", "r|s"
DKIM = "none|pass|fail|policy|neutral|temperror|permerror"
TEXT, NUMBER = r"(?s).*", r"[0-9]+"
IPV4 = r"((1?[0-9]?[0-9]|2[0-4][0-9]|25[0-5])\.){3}(1?[0-9]?[0-9]|2[0-4][0-9]|25[0-5])"

# element → its children in order: name, least and greatest number, and what it holds (another table or a pattern)
RANGE = [("begin", 1, 1, NUMBER), ("end", 1, 1, NUMBER)]
NEW = [
    ("version", 0, 1, r"1\.0"),
    ("report_metadata", 1, 1, [
        ("org_name", 1, 1, TEXT), ("email", 1, 1, TEXT), ("extra_contact_info", 0, 1, TEXT), ("report_id", 1, 1, TEXT),
        ("date_range", 1, 1, RANGE), ("error", 0, 1, TEXT), ("generator", 0, 1, TEXT),
    ]),
    ("policy_published", 1, 1, [
        ("domain", 1, 1, TEXT), ("discovery_method", 0, 1, "psl|treewalk"), ("p", 1, 1, POLICY), ("sp", 0, 1, POLICY),
        ("np", 0, 1, POLICY), ("fo", 0, 1, TEXT), ("adkim", 0, 1, ALIGNMENT), ("aspf", 0, 1, ALIGNMENT),
        ("testing", 0, 1, "n|y"),
    ]),
    ("record", 1, None, [
        ("row", 1, 1, [
            ("source_ip", 1, 1, r"[0-9a-f.:]+"), ("count", 1, 1, NUMBER),
            ("policy_evaluated", 1, 1, [
                ("disposition", 1, 1, "none|pass|quarantine|reject"), ("dkim", 1, 1, PASS_FAIL),
                ("spf", 1, 1, PASS_FAIL),
                ("reason", 0, None, [
                    ("type", 1, 1, "local_policy|mailing_list|other|policy_test_mode|trusted_forwarder"),
                    ("comment", 0, 1, TEXT),
                ]),
            ]),
        ]),
        ("identifiers", 1, 1, [
            ("envelope_to", 0, 1, TEXT), ("envelope_from", 0, 1, TEXT), ("header_from", 1, 1, TEXT),
        ]),
        ("auth_results", 1, 1, [
            ("dkim", 0, None, [("domain", 1, 1, TEXT), ("selector", 1, 1, TEXT), ("result", 1, 1, DKIM)]),
            ("spf", 0, 1, [
                ("domain", 1, 1, TEXT), ("scope", 0, 1, "mfrom"),
                ("result", 1, 1, "none|pass|fail|softfail|policy|neutral|temperror|permerror"),
            ]),
        ]),
    ]),
]  # fmt: skip
OLD = [
    ("version", 1, 1, r"1\.0"),
    ("report_metadata", 1, 1, [
        ("org_name", 1, 1, TEXT), ("email", 1, 1, TEXT), ("extra_contact_info", 0, 1, TEXT), ("report_id", 1, 1, TEXT),
        ("date_range", 1, 1, RANGE), ("error", 0, None, TEXT),
    ]),
    ("policy_published", 1, 1, [
        ("domain", 1, 1, TEXT), ("p", 1, 1, POLICY), ("sp", 0, 1, POLICY), ("fo", 0, 1, TEXT),
        ("adkim", 0, 1, ALIGNMENT), ("aspf", 0, 1, ALIGNMENT), ("pct", 1, 1, r"[0-9]{1,2}|100"),
    ]),
    ("record", 1, None, [
        ("row", 1, 1, [
            ("source_ip", 1, 1, rf"{IPV4}|([A-Fa-f0-9]{{1,4}}:){{7}}[A-Fa-f0-9]{{1,4}}"), ("count", 1, 1, NUMBER),
            ("policy_evaluated", 1, 1, [
                ("disposition", 1, 1, POLICY), ("dkim", 1, 1, PASS_FAIL), ("spf", 1, 1, PASS_FAIL),
                ("reason", 0, None, [
                    ("type", 1, 1, "forwarded|sampled_out|trusted_forwarder|mailing_list|local_policy|other"),
                    ("comment", 0, 1, TEXT),
                ]),
            ]),
        ]),
        ("identifiers", 1, 1, [
            ("envelope_to", 0, 1, TEXT), ("envelope_from", 1, 1, TEXT), ("header_from", 1, 1, TEXT),
        ]),
        ("auth_results", 1, 1, [
            ("dkim", 0, None, [("domain", 1, 1, TEXT), ("selector", 0, 1, TEXT), ("result", 1, 1, DKIM)]),
            ("spf", 1, None, [
                ("domain", 1, 1, TEXT), ("scope", 1, 1, "helo|mfrom"),
                ("result", 1, 1, "none|neutral|pass|fail|softfail|temperror|permerror"),
            ]),
        ]),
    ]),
]  # fmt: skip


def faults(element: ElementTree.Element, rules: list | str, namespace: str, path: str = "") -> list[str]:
    """What is wrong with an element and all below it."""
    path = f"{path}/{element.tag.removeprefix(namespace)}"
    if element.attrib:
        return [f"{path}: attributes"]
    if isinstance(rules, str):
        wrong = len(element) or not re.fullmatch(rules, element.text or "")
        return [f"{path}: {element.text!r}"] if wrong else []
    found = [] if not (element.text or "").strip() else [f"{path}: text"]
    names = [child.tag for child in element]
    order = [namespace + name for name, *_ in rules]
    if names != sorted(names, key=lambda name: order.index(name) if name in order else -1):
        found.append(f"{path}: order {names}")
    found += [f"{path}: {name} does not belong here" for name in names if name not in order]
    for name, least, most, inner in rules:
        children = [child for child in element if child.tag == namespace + name]
        if not least <= len(children) <= (len(children) if most is None else most):
            found.append(f"{path}: {len(children)} × {name}")
        for child in children:
            found += faults(child, inner, namespace, path)
    return found


def read(document: bytes) -> ElementTree.Element:
    """The parsed document, after its structure was checked, without the namespace of RFC 9990."""
    root = ElementTree.fromstring(document)
    namespace = NAMESPACE if root.tag.startswith(NAMESPACE) else ""
    assert root.tag == f"{namespace}feedback"
    assert faults(root, NEW if namespace else OLD, namespace) == []
    for element in root.iter():
        element.tag = element.tag.removeprefix(namespace)
    return root
