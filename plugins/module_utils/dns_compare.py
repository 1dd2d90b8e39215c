"""The records that the data model wants, beside those that DNS answers: what differs, and what to do about it.

Everything is compared set by set (name and type), so a new kind of record needs nothing here; for those that mail
depends on there are words for what is wrong with them.

Follows RFC 7208 (SPF), RFC 6376 (DKIM), RFC 9989 and RFC 9990 (DMARC), RFC 8461, RFC 8460, RFC 7505, RFC 7672.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.dns_live import Answer
from ansible.module_utils.dns_spf import is_spf

NOTHING = "nothing"
#: What DNS keeps longer than this is in the way of a change of keys.
LONG_TTL = 86400
_TAG = re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(.*?)\s*", re.DOTALL)


@dataclass
class Difference:
    """One thing that is not as it should be.

    ``kind`` is a short word for machines (docs/dns-verify.md lists them), ``seen_from`` are the places that see it,
    ``todo`` says what to do in one sentence.
    """

    name: str
    type: str
    kind: str
    expected: str
    found: str
    todo: str
    seen_from: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """Differences of the same key are one, seen from several places."""
        return (self.name, self.type, self.kind, self.expected, self.found)


class Findings:
    """Differences, each once with all the places that see it, and the sets of records that nothing more is said of."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str, str, str], Difference] = {}
        self.broken: set[tuple[str, str]] = set()

    def add(self, difference: Difference | None, place: str) -> None:
        """Note a difference; None is none."""
        if difference is None:
            return
        known = self._found.setdefault(difference.key, difference)
        if place not in known.seen_from:
            known.seen_from.append(place)
        self.broken.add((difference.name, difference.type))

    def sound(self, *sets: tuple[str, str]) -> bool:
        """Whether nothing is known to be wrong with these names and types; an alias spoils the whole name."""
        return not any(one in self.broken or (one[0], "CNAME") in self.broken for one in sets)

    def all(self) -> list[Difference]:
        """All differences by name, from the top of DNS down."""
        return sorted(self._found.values(), key=lambda one: (one.name.split(".")[::-1], one.type, one.kind, one.found))


def role(name: str, rtype: str, records: Iterable[str]) -> str:
    """What a set of records is for, as a word: ``spf``, ``dkim``, ``dmarc``, … or the type in lower case."""
    if rtype != "TXT":
        return rtype.lower()
    labels = name.split(".")
    if "_domainkey" in labels:
        return "dkim"
    if "_report" in labels:
        return "authorisation"
    for label, word in (("_dmarc", "dmarc"), ("_mta-sts", "mta-sts"), ("_smtp", "tls-rpt")):
        if labels[0] == label:
            return word
    if "_bimi" in labels:
        return "bimi"
    return "spf" if any(is_spf(record) for record in records) else "txt"


WORDS = {
    **{"spf": "SPF record", "dkim": "DKIM key", "dmarc": "DMARC record", "authorisation": "report authorisation"},
    **{"mta-sts": "MTA-STS record", "tls-rpt": "TLS-RPT record", "bimi": "BIMI record", "txt": "TXT record"},
}


def tags(record: str) -> dict[str, str] | None:
    """The tags of a record such as DMARC's (RFC 6376 §3.2); None when it is no list of tags, or one is doubled."""
    found: dict[str, str] = {}
    for part in record.split(";"):
        if not part.strip():
            continue
        match = _TAG.fullmatch(part)
        if match is None or match[1] in found:
            return None
        found[match[1]] = match[2]
    return found


def canonical(what: str, record: str) -> Any:
    """A record in a form in which equal meaning is equal: order of tags, blanks and defaults do not count."""
    if what == "spf":
        terms = [term.lower() for term in record.split()]
        allows = [term for term in terms if not term.endswith("all")]
        # While nothing but plain matches stand before "all", their order says nothing.
        plain = all(not term.startswith(("-", "~", "?")) for term in allows)
        return ("spf", frozenset(allows) if plain else tuple(allows), tuple(t for t in terms if t.endswith("all")))
    if what in ("dkim", "dmarc", "authorisation", "mta-sts", "tls-rpt", "bimi"):
        found = tags(record)
        if found is None:
            return record
        if what == "dkim":
            found = {tag: "".join(value.split()) for tag, value in found.items() if tag not in ("v", "n")}
            found.setdefault("k", "rsa")
            if not found.get("p"):
                return ("dkim", "revoked")
        if what in ("dmarc", "tls-rpt") and "rua" in found:
            found["rua"] = ",".join(sorted(one.strip() for one in found["rua"].split(",")))
        if what == "dmarc":
            found = {tag: value.lower() if tag != "rua" else value for tag, value in found.items()}
        return (what, frozenset(found.items()))
    return record


def relevant(what: str, name: str, records: Sequence[str]) -> list[str]:
    """Of what stands at a name, what the comparison is about: others may keep TXT records of their own beside SPF."""
    if what == "spf":
        return [record for record in records if is_spf(record)]
    if what == "dmarc":
        # Receivers ignore what does not begin so (RFC 9989 §4.7); a tag list that is merely spoilt is not ignored here.
        return [record for record in records if record.lower().lstrip().startswith("v=dmarc1")] or list(records)
    return list(records)


def compare(name: str, rtype: str, expected: Sequence[str], answer: Answer) -> Difference | None:
    """The difference between the records that are wanted and an answer that says something; None when they agree.

    An empty ``expected`` says that there must be none.
    """
    what = role(name, rtype, expected)
    if answer.alias is not None and rtype != "CNAME":
        return Difference(
            name,
            "CNAME",
            "alias",
            "no alias",
            f"CNAME {answer.alias}",
            f"Remove the CNAME at {name} and publish the records themselves: mail servers need not follow an alias"
            " here (RFC 5321 §5.1, RFC 2181 §10.3), and no other record may stand beside one.",
        )
    found = relevant(what, name, answer.records)
    if Counter(canonical(what, one) for one in found) == Counter(canonical(what, one) for one in expected):
        return None
    kind, todo = explain(name, rtype, what, expected, found)
    return Difference(name, rtype, kind, shown(expected), shown(found), todo)


def shown(records: Sequence[str]) -> str:
    """Records as they are printed."""
    return " | ".join(sorted(records)) or NOTHING


def explain(name: str, rtype: str, what: str, expected: Sequence[str], found: Sequence[str]) -> tuple[str, str]:
    """What kind of difference it is, and what to do."""
    word = WORDS.get(what, f"{rtype} record")
    if not expected:
        return "extra", f"Remove the {word} at {name}: the data model has none there (any more)."
    if not found:
        return "missing", f"Publish the {word} at {name}: {_why(what, name)}."
    if rtype == "TXT" and len(found) > len(expected):
        return (
            "doubled",
            f"Leave only the expected {word} at {name} and remove the other: with two of them receivers act as if"
            " there were none, or take either.",
        )
    if rtype == "TXT" and len(expected) == 1 and len(found) == 1:
        return "differs", _differing_text(name, what, word, expected[0], found[0])
    if rtype == "MX":
        return _differing_mx(name, expected, found)
    lacking = sorted(set(expected) - set(found))
    surplus = sorted(set(found) - set(expected))
    if lacking and surplus:
        return "differs", f"At {name} {_put(lacking)} and {_take(surplus)}: {_why(what, name)}."
    if lacking:
        return "missing", f"At {name} {_put(lacking)}: {_why(what, name)}."
    return "extra", f"At {name} {_take(surplus)}: {_why_not(what, name)}."


def _put(records: Sequence[str]) -> str:
    return "publish " + ", ".join(records)


def _take(records: Sequence[str]) -> str:
    return "remove " + ", ".join(records)


def _why(what: str, name: str) -> str:
    return {
        "spf": f"without it nobody can tell who may send as {name}",
        "dkim": "without it signatures with this key do not verify",
        "dmarc": "without it receivers know no policy, and no reports come",
        "authorisation": "without it nobody sends the reports here",
        "mta-sts": "without it nobody asks for the policy, and TLS is not enforced",
        "tls-rpt": "without it nobody tells when TLS fails",
        "bimi": "without it no logo is shown",
        "mx": "without it mail does not arrive as it should",
        "a": "others find the host by it",
        "aaaa": "others find the host by it",
        "ptr": "receivers refuse mail from addresses that do not lead to a name and back",
        "tlsa": "senders that know DANE take only keys that are published",
        "caa": "any CA may issue certificates for the names below otherwise",
        "ns": "resolvers find the zone by these servers",
        "ds": "without the right one nothing in the zone validates",
        "srv": "mail programs find the host by it",
    }.get(what, "the data model has it")


def _why_not(what: str, name: str) -> str:
    return {
        "mx": f"senders would give mail for {name} to a host that the data model does not know",
        "a": "a part of the connections goes elsewhere",
        "aaaa": "a part of the connections goes elsewhere",
        "ptr": "an address shall lead to one name",
        "tlsa": "no host uses this key any more, or soon",
        "caa": "it lets somebody issue certificates whom the data model does not name",
    }.get(what, "the data model does not have it")


def _differing_mx(name: str, expected: Sequence[str], found: Sequence[str]) -> tuple[str, str]:
    if "0 ." in expected:
        return (
            "differs",
            f"Publish 'MX 0 .' alone at {name}: it takes no mail, and senders shall fail at once (RFC 7505).",
        )
    wanted, seen = ({record.split()[1]: record.split()[0] for record in side} for side in (expected, found))
    lacking, surplus = sorted(set(wanted) - set(seen)), sorted(set(seen) - set(wanted))
    if lacking or surplus:
        parts = [f"publish {', '.join(lacking)}"] if lacking else []
        parts += [f"remove {', '.join(surplus)}"] if surplus else []
        kind = "differs" if lacking and surplus else "missing" if lacking else "extra"
        reason = _why_not("mx", name) if surplus else "mail has one way less"
        return kind, f"In the MX of {name} {' and '.join(parts)}: {reason}."
    changed = ", ".join(
        f"{seen[host]} → {wanted[host]} for {host}" for host in sorted(wanted) if wanted[host] != seen[host]
    )
    return "differs", f"Set the preference in the MX of {name}: {changed}; the gateways share the load by it."


def _differing_text(name: str, what: str, word: str, expected: str, found: str) -> str:
    if what == "spf":
        wanted, seen = expected.lower().split(), found.lower().split()
        parts = [f"'{term}' is missing" for term in wanted if term not in seen]
        parts += [f"'{term}' is not in the data model" for term in seen if term not in wanted]
        return f"Publish the expected SPF record at {name}: {', '.join(parts) or 'its terms are in another order'}."
    if what == "dkim":
        return f"Publish the expected DKIM key at {name}: {_differing_key(expected, found)}."
    wanted_tags, seen_tags = tags(expected), tags(found)
    if wanted_tags is None or seen_tags is None:
        return f"Publish the expected {word} at {name}: what is there is no list of tags, or has one twice."
    parts = [
        f"{tag} is missing" if tag not in seen_tags else f"{tag} is '{seen_tags[tag]}' instead of '{value}'"
        for tag, value in wanted_tags.items()
        if seen_tags.get(tag) != value
    ]
    parts += [f"{tag}={seen_tags[tag]} is not in the data model" for tag in seen_tags if tag not in wanted_tags]
    hint = "; senders keep the former policy until the id changes" if what == "mta-sts" else ""
    return f"Publish the expected {word} at {name}: {', '.join(parts)}{hint}."


def _differing_key(expected: str, found: str) -> str:
    wanted, seen = tags(expected), tags(found)
    if wanted is None or seen is None:
        return "what is there is no list of tags, or has one twice, and no signature verifies"
    if wanted.get("p") and not seen.get("p"):
        return "what is there says that the key is revoked, so every signature fails"
    if seen.get("p") and not wanted.get("p"):
        return "the key is revoked by the data model, and whoever has its private half can still sign"
    if "".join(wanted.get("p", "").split()) != "".join(seen.get("p", "").split()):
        bits = key_bits(seen.get("p", ""))
        return f"another key is there ({bits}), so every signature fails"
    others = sorted(tag for tag in {*wanted, *seen} - {"p"} if wanted.get(tag) != seen.get(tag))
    return f"it differs in {', '.join(others)}"


def key_bits(public: str) -> str:
    """How long a public key is, in words (RSA's modulus is nearly the whole of it)."""
    try:
        raw = base64.b64decode("".join(public.split()), validate=True)
    except ValueError:
        return "not even base64"
    if len(raw) == 32:
        return "Ed25519"
    for bits in (512, 768, 1024, 1536, 2048, 3072, 4096):
        if bits // 8 <= len(raw) <= bits // 8 + 48:
            return f"RSA, {bits} bits"
    return f"{len(raw)} octets"


def expectations(
    zones: Mapping[str, Sequence[Mapping[str, Any]]], parse: Any
) -> dict[str, dict[tuple[str, str], list[str]]]:
    """Zone → name and type → records as they compare, of what the filter ``estate_zones`` gives.

    :raises ValueError: when a record is malformed.
    """
    found: dict[str, dict[tuple[str, str], list[str]]] = {}
    for zone, records in zones.items():
        sets = found.setdefault(zone, {})
        for record in records:
            sets.setdefault((record["name"], record["type"]), []).append(parse(record["type"], record["value"]))
    return found
