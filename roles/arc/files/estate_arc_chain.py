"""ARC chains and Authentication-Results: reading, judging and sealing them (RFC 8617, RFC 8601, RFC 6376).

Pure functions: no sockets, no files, no milter. The milter (estate_arc.py) hands in the header fields and a body hash,
and a function that fetches a key; everything is decided here. Signature tags, header canonicalisation and the "b="
rule are dkimpy's; RSA is OpenSSL's (python3-cryptography), because dkimpy's own arithmetic takes 13 ms a seal.

dkim.arc_verify() itself is not called, for three reasons found by test: it hashes the whole body once per ARC set
(fifty sets over a 50 MB body take minutes), it raises IndexError on some AMS spellings, and it takes the order of the
ARC Sets from the place of the header fields instead of their instance numbers. The tests hold both verifiers to the
same verdicts on the public conformance suite.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from email.utils import getaddresses

import dkim
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils
from dkim.canonicalization import CanonicalizationPolicy, InvalidCanonicalizationPolicyError, Relaxed
from dkim.util import parse_tag_value

from estate_arc_policy import DOMAIN_NAME, TemporaryDnsError, normal_domain

Header = tuple[bytes, bytes]
"""Name and value of a header field: the value with its leading space, lines joined by CRLF, without the last CRLF."""

AAR = b"arc-authentication-results"
AMS = b"arc-message-signature"
SEAL = b"arc-seal"
ARC_NAMES = frozenset((AAR, AMS, SEAL))
HANDOVER = "X-Estate-ARC"
"""The private header field by which the verify stage tells rspamd and the seal stage what it found."""

MAX_SETS = 50
"""RFC 8617 §4.2.1."""
MAX_ARC_BYTES = 512 * 1024
"""All ARC header fields of a message together; a set is about 2 kB, fifty of them 100 kB."""
MAX_BLANK_RUN = 200
"""Longest run of white space in an ARC header field: longer ones only serve to slow down regular expressions."""
MAX_SIGNED_NAMES = 1000
"""Names in h=."""
ENDED = "an earlier hop found the chain broken"
"""Reason of a chain that carries a seal with cv=fail: it has ended there, whatever was added later."""
MIN_KEY_BITS, MAX_KEY_BITS = 1024, 8192
MAX_KEY_RECORD = 4096

SIGNED_NAMES = (
    b"from", b"sender", b"reply-to", b"to", b"cc", b"subject", b"date", b"message-id", b"in-reply-to", b"references",
    b"mime-version", b"content-type", b"content-transfer-encoding", b"content-id", b"content-description",
    b"resent-date", b"resent-from", b"resent-sender", b"resent-to", b"resent-cc", b"resent-message-id",
    b"list-id", b"list-help", b"list-unsubscribe", b"list-unsubscribe-post", b"list-subscribe", b"list-post",
    b"list-owner", b"list-archive", b"autocrypt", b"dkim-signature",
)  # fmt: skip
"""What our AMS covers when present: RFC 6376 §5.4.1, and DKIM-Signature as RFC 8617 §4.1.2 wants."""
OVERSIGNED_NAMES = (b"from", b"to", b"subject", b"date", b"content-type")
"""Named once more than present, so that nobody adds a second one that the reader would see instead."""

_BLANK_RUN = re.compile(rb"[ \t\r\n]{%d}" % MAX_BLANK_RUN)
_AAR_INSTANCE = re.compile(rb"\s*i\s*=\s*(\d{1,9})\s*;", re.IGNORECASE)
_INSTANCE = re.compile(rb"\d{1,9}\Z")


class ChainError(Exception):
    """The ARC chain of a message is broken; the text is a fixed phrase of ours, never the sender's words."""


# ----------------------------------------------------------------------------------------------- Authentication-Results


@dataclass(frozen=True)
class Result:
    """One method of an Authentication-Results field: `dkim=pass header.d=example.com` (RFC 8601 §2.2)."""

    method: str
    result: str
    properties: dict[str, str]


@dataclass(frozen=True)
class AuthenticationResults:
    """An Authentication-Results field. `authserv_id` is empty where the writer left it out, as some do."""

    authserv_id: str
    results: tuple[Result, ...]

    def of(self, method: str) -> list[Result]:
        """All results of one method, in their order."""
        return [result for result in self.results if result.method == method]


_GAP = re.compile(r"[ \t\r\n]+")
_ATOM = re.compile(r'[^ \t\r\n;="()]+')
_REST = re.compile(r'[^ \t\r\n;"()]+')
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_COMMENT_MARK = re.compile(r"[()\\]")


def _words(text: str) -> list[list[str]]:
    """Split at semicolons, then at white space and comments; a quoted string is part of its word, without quotes.

    Raises ValueError for an unclosed comment or quoted string.
    """
    segments: list[list[str]] = [[]]
    joined = False  # does the next token continue the current word?
    position, end = 0, len(text)
    while position < end:
        char = text[position]
        if char == "(":
            depth, position = 1, position + 1
            while depth:
                mark = _COMMENT_MARK.search(text, position)
                if mark is None:
                    raise ValueError("unclosed comment")
                position = mark.end() + (mark.group() == "\\")
                depth += {"(": 1, ")": -1}.get(mark.group(), 0)
            joined = False
            continue
        if char == ")":
            raise ValueError("unopened comment")
        if char == ";":
            segments.append([])
            joined, position = False, position + 1
            continue
        if gap := _GAP.match(text, position):
            joined, position = False, gap.end()
            continue
        if char == '"':
            quoted = _QUOTED.match(text, position)
            if quoted is None:
                raise ValueError("unclosed quoted string")
            token, position = re.sub(r"\\(.)", r"\1", quoted.group(1), flags=re.DOTALL), quoted.end()
        elif joined and "=" in segments[-1][-1]:  # all the rest is the value, further "=" included
            rest = _REST.match(text, position)
            token, position = rest.group(), rest.end()  # type: ignore[union-attr]
        elif char == "=":
            token, position = "=", position + 1
        else:
            atom = _ATOM.match(text, position)
            token, position = atom.group(), atom.end()  # type: ignore[union-attr]  # every other character is an atom's
        words = segments[-1]
        # white space around the first "=" of a word means nothing: `spf = pass`
        if words and (joined or (token == "=" and "=" not in words[-1]) or words[-1].find("=") == len(words[-1]) - 1):
            words[-1] += token
        else:
            words.append(token)
        joined = True
    return segments


def parse_authentication_results(value: bytes) -> AuthenticationResults:
    """Read an Authentication-Results value, tolerant of what real software writes.

    python3-authres refuses some of it (unquoted `=` in an address, a missing authserv-id) and drops comments; results
    are read here, and the AAR takes the field's text itself.
    Raises ValueError where comments or quotes do not close.
    """
    head, *segments = _words(value.decode("utf-8", "surrogateescape"))
    authserv_id = ""
    if head and "=" in head[0]:
        segments.insert(0, head)
    elif head:
        authserv_id = head[0]
    results = []
    for words in segments:
        if not words or "=" not in words[0]:
            continue
        method, _, result = words[0].partition("=")
        properties: dict[str, str] = {}
        for word in words[1:]:
            key, equals, content = word.partition("=")
            if equals:
                properties.setdefault(key.lower(), content)
        results.append(Result(method.partition("/")[0].lower(), result.lower(), properties))
    return AuthenticationResults(authserv_id, tuple(results))


def _same_id(written: str, authserv_id: str) -> bool:
    written = written.rstrip(".").casefold()
    if not written.isascii():
        try:
            written = written.encode("idna").decode("ascii")
        except UnicodeError:
            return False
    return written == authserv_id.casefold()


def names_authserv_id(value: bytes, authserv_id: str) -> bool:
    """Does this Authentication-Results value speak in our name (RFC 8601 §5)?

    Comments, quoting, folding, a version, upper case, a trailing dot and international spelling change nothing. A value
    that cannot be parsed is ours as soon as it contains our id: whoever reads it later may parse it differently.
    """
    try:
        head = _words(value.decode("utf-8", "surrogateescape"))[0]
    except ValueError:
        return authserv_id.casefold().encode() in re.sub(rb'[\s"\\]', b"", value).lower()
    joined = "".join(head)
    written = (*head[:1], joined, joined.removesuffix("1"))
    return any(_same_id(name.partition("/")[0], authserv_id) for name in written)


def extend_results(value: bytes, method: str, resinfo: str) -> str:
    """An Authentication-Results value with `resinfo` (`arc=pass …`) added and any older result of `method` taken out.

    Folding is made uniform (LF and a tab, lines below 200 characters where there is a space to break at).
    """
    text = value.decode("utf-8", "replace").strip().rstrip(";").rstrip()
    parts = _split_outside_quotes(text)
    kept = [part.strip() for part in parts[1:]]
    kept = [part for part in kept if part and not re.match(rf"(?i){method}\s*(/\s*\d+\s*)?=", part)]
    if len(kept) == 1 and kept[0].casefold() == "none":
        kept = []
    return fold(";\n\t".join([parts[0].strip(), *kept, resinfo]))


def _split_outside_quotes(text: str) -> list[str]:
    """Split at the semicolons that stand outside comments and quoted strings."""
    parts, start, depth, quoted, position = [], 0, 0, False, 0
    for mark in re.finditer(r'[;()"\\]', text):
        if mark.start() < position:
            continue
        char = mark.group()
        if char == "\\":
            position = mark.end() + 1
        elif quoted:
            quoted = char != '"'
        elif char == '"':
            quoted = depth == 0
        elif char == "(":
            depth += 1
        elif char == ")":
            depth = max(0, depth - 1)
        elif depth == 0:
            parts.append(text[start : mark.start()])
            start = mark.end()
    parts.append(text[start:])
    return parts


def fold(text: str, width: int = 200) -> str:
    """Fold long lines at spaces with LF and tab: the same after relaxed canonicalisation, and short enough for SMTP."""
    lines = []
    for line in re.sub(r"[ \t]*(?:\r?\n[ \t]*)+", "\n", text).split("\n"):
        rest = line
        while len(rest) > width and (cut := rest.rfind(" ", 1, width)) > 0:
            lines.append(rest[:cut].rstrip())
            rest = rest[cut + 1 :].lstrip()
        lines.append(rest)
    return "\n\t".join(line for line in lines if line)


# -------------------------------------------------------------------------------------------------------- body hashing


class BodyHash:
    """SHA-256 of a canonicalised body, fed in pieces: memory stays constant whatever the size (RFC 6376 §3.4.3, .4)."""

    def __init__(self, *, relaxed: bool = True, limit: int | None = None) -> None:
        """`limit` is the l= tag: only that many canonicalised octets count."""
        self._relaxed, self._left = relaxed, limit
        self._hash = hashlib.sha256()
        self._pending: list[bytes] = []  # white space and line ends whose meaning the next octets decide
        self._begun = False

    def _emit(self, data: bytes) -> None:
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        self._hash.update(data)

    def _canonical(self, data: bytes) -> bytes:
        # no regular expression: dkimpy's takes quadratic time on a long run of spaces
        if not self._relaxed:
            return data
        data = data.replace(b"\t", b" ")
        while b"  " in data:
            data = data.replace(b"  ", b" ")
        return data.replace(b" \r\n", b"\r\n")

    def update(self, data: bytes) -> None:
        """Take the next piece of the body; line ends are CRLF."""
        core = data.rstrip(b" \t\r\n" if self._relaxed else b"\r\n")
        if core:
            self._emit(self._canonical(b"".join(self._pending) + core))
            self._begun = True
            self._pending = [data[len(core) :]]
        else:
            self._pending.append(data)

    def digest(self) -> bytes:
        """The hash; call once, at the end of the body."""
        tail = self._canonical(b"".join(self._pending))
        end = len(tail)
        while tail.endswith(b"\r\n", 0, end):
            end -= 2
        tail = tail[:end]
        if self._begun or tail:
            self._emit(tail + b"\r\n")
        elif not self._relaxed:
            self._emit(b"\r\n")
        return self._hash.digest()


# ---------------------------------------------------------------------------------------------------- reading the chain


@dataclass(frozen=True)
class ArcSet:
    """One ARC Set: the three header fields of an instance and the tags of its two signatures."""

    instance: int
    aar: Header
    ams: Header
    seal: Header
    ams_tags: dict[bytes, bytes]
    seal_tags: dict[bytes, bytes]

    @property
    def sealer(self) -> str:
        """d= of the ARC-Seal, lower case."""
        return self.seal_tags[b"d"].decode("utf-8", "replace").lower()

    @property
    def signer(self) -> str:
        """d= of the ARC-Message-Signature, lower case."""
        return self.ams_tags[b"d"].decode("utf-8", "replace").lower()


@dataclass(frozen=True)
class Verdict:
    """What a chain is worth: `status` none, pass or fail; `reason` in our own words; the sets by instance."""

    status: str
    reason: str = ""
    sets: tuple[ArcSet, ...] = field(default=())
    temporary: bool = False
    """A key could not be fetched. RFC 8617 §5.2.1 calls this a permanent failure all the same."""


def arc_fields(headers: Iterable[Header]) -> list[Header]:
    """The ARC header fields of a message, as they stand."""
    return [header for header in headers if header[0].lower().rstrip() in ARC_NAMES]


def _relaxed(header: Header) -> Header:
    return Relaxed.canonicalize_headers([(header[0], header[1] + b"\r\n")])[0]


def _tags(header: Header, mandatory: list[bytes]) -> dict[bytes, bytes]:
    try:
        tags = parse_tag_value(_relaxed(header)[1])
        dkim.validate_signature_fields(tags, mandatory, arc=True)
    except Exception as error:  # dkimpy 1.1.4 raises UnboundLocalError, int() ValueError: all mean "unreadable"
        raise ChainError(f"unreadable {header[0].decode('ascii', 'replace')}") from error
    return tags


def _instance(value: bytes) -> int:
    if not _INSTANCE.match(value):
        raise ChainError("unreadable instance number")
    return int(value)


def read_chain(headers: Sequence[Header]) -> tuple[ArcSet, ...]:
    """The ARC Sets in the order of their instances; empty without ARC header fields.

    Everything that can be wrong without a key is found here (RFC 8617 §4.2, §5.2 steps 1-3): more than fifty sets, a
    gap, a missing or doubled field, unreadable tags, cv= against the rule. Cheap, and bounded whatever was sent.
    Raises ChainError.
    """
    fields = arc_fields(headers)
    if not fields:
        return ()
    if len(fields) > 3 * MAX_SETS:
        raise ChainError("more than 50 ARC sets")
    if sum(len(name) + len(value) for name, value in fields) > MAX_ARC_BYTES:
        raise ChainError("ARC header fields too large")
    found: dict[bytes, dict[int, tuple[Header, dict[bytes, bytes]]]] = {AAR: {}, AMS: {}, SEAL: {}}
    for header in fields:
        name, value = header[0].lower().rstrip(), header[1]
        if _BLANK_RUN.search(value):
            raise ChainError("ARC header fields too large")
        tags: dict[bytes, bytes] = {}
        if name == AAR:
            match = _AAR_INSTANCE.match(_relaxed(header)[1])
            if match is None:
                raise ChainError("unreadable ARC-Authentication-Results")
            instance = int(match.group(1))
        else:
            tags = _tags(header, [b"i", b"a", b"b", b"d", b"s", *((b"bh", b"h") if name == AMS else (b"cv",))])
            instance = _instance(tags[b"i"])
        if not 1 <= instance <= MAX_SETS:
            raise ChainError("instance number out of range")
        if instance in found[name]:
            raise ChainError("doubled ARC header field")
        found[name][instance] = (header, tags)
    last = max(max(by_instance, default=0) for by_instance in found.values())
    if any(len(by_instance) != last for by_instance in found.values()):
        raise ChainError("incomplete ARC set")
    sets = tuple(
        ArcSet(i, found[AAR][i][0], found[AMS][i][0], found[SEAL][i][0], found[AMS][i][1], found[SEAL][i][1])
        for i in range(1, last + 1)
    )
    for arc_set in sets:
        names = signed_names(arc_set)
        if SEAL in names:
            raise ChainError("ARC-Message-Signature covers ARC-Seal")
        if len(names) > MAX_SIGNED_NAMES:
            raise ChainError("ARC header fields too large")
        if b"h" in arc_set.seal_tags:
            raise ChainError("ARC-Seal with h=")
    if any(arc_set.seal_tags[b"cv"] == b"fail" for arc_set in sets):
        raise ChainError(ENDED)
    for arc_set in sets:
        if arc_set.seal_tags[b"cv"] != (b"none" if arc_set.instance == 1 else b"pass"):
            raise ChainError("cv= against the rule")
    _policy(sets[-1])
    return sets


def signed_names(arc_set: ArcSet) -> list[bytes]:
    """The header field names in h= of the ARC-Message-Signature, lower case, in their order."""
    return [name.strip().lower() for name in arc_set.ams_tags[b"h"].split(b":")]


def _policy(arc_set: ArcSet) -> CanonicalizationPolicy:
    try:
        return CanonicalizationPolicy.from_c_value(arc_set.ams_tags.get(b"c", b"relaxed/relaxed"))
    except InvalidCanonicalizationPolicyError as error:
        raise ChainError("unknown canonicalisation") from error


def body_hash_for(sets: Sequence[ArcSet]) -> BodyHash:
    """The hasher that the newest ARC-Message-Signature asks for."""
    tags = sets[-1].ams_tags
    limit = int(tags[b"l"]) if tags.get(b"l") else None
    return BodyHash(relaxed=_policy(sets[-1]).body_algorithm.name == b"relaxed", limit=limit)


# -------------------------------------------------------------------------------------------------- verifying the chain

KeyLookup = Callable[[str], bytes | None]
"""Name → text of its key record, None where there is none; raises TemporaryDnsError."""


@functools.lru_cache(maxsize=2048)
def parse_key_record(record: bytes) -> rsa.RSAPublicKey:
    """The RSA key of a DKIM key record (RFC 6376 §3.6.1, RFC 8301). Raises ChainError."""
    if len(record) > MAX_KEY_RECORD:
        raise ChainError("unusable key record")
    try:
        tags = parse_tag_value(record)
        if tags.get(b"v", b"DKIM1") != b"DKIM1" or tags.get(b"k", b"rsa") != b"rsa":
            raise ValueError("not an RSA key")
        if b"h" in tags and b"sha256" not in re.split(rb"\s*:\s*", tags[b"h"]):
            raise ValueError("not for SHA-256")
        if b"s" in tags and not {b"*", b"email"} & set(re.split(rb"\s*:\s*", tags[b"s"])):
            raise ValueError("not for mail")
        key = serialization.load_der_public_key(base64.b64decode(re.sub(rb"\s+", b"", tags[b"p"])))
    except (KeyError, ValueError, UnsupportedAlgorithm, dkim.util.InvalidTagValueList) as error:
        raise ChainError("unusable key record") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise ChainError("unusable key record")
    if not MIN_KEY_BITS <= key.key_size <= MAX_KEY_BITS or key.public_numbers().e >= 2**32:
        raise ChainError("key size not allowed")
    return key


def key_name(tags: dict[bytes, bytes]) -> str:
    """`selector._domainkey.domain` of a signature. Raises ChainError where that is no domain name."""
    parts = []
    for tag in (b"s", b"d"):
        try:
            text = tags[tag].decode("utf-8")
            text = text if text.isascii() else text.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise ChainError("signing domain is no domain name") from error
        if not DOMAIN_NAME.match(text) or ".." in text:
            raise ChainError("signing domain is no domain name")
        parts.append(text)
    return f"{parts[0]}._domainkey.{parts[1]}"


def _verify_signature(tags: dict[bytes, bytes], digest: bytes, lookup: KeyLookup) -> bool:
    record = lookup(key_name(tags))
    if record is None:
        raise ChainError("no key record")
    key = parse_key_record(record)
    try:
        signature = base64.b64decode(re.sub(rb"\s+", b"", tags[b"b"]))
        key.verify(signature, digest, padding.PKCS1v15(), utils.Prehashed(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _hash_field(hasher: hashlib._Hash, header: Header) -> None:
    hasher.update(header[0] + b":" + header[1])


def _without_signature(header: Header) -> Header:
    return header[0], dkim.RE_BTAG.sub(rb"\1", header[1])


def select(headers: Sequence[Header], names: Iterable[bytes]) -> list[Header]:
    """The header fields that h= names, each name taking the next one from the bottom up (RFC 6376 §5.4.2)."""
    by_name: dict[bytes, list[Header]] = {}
    for header in headers:
        by_name.setdefault(header[0].lower().rstrip(), []).append(header)
    return [left.pop() for name in names if (left := by_name.get(name))]


def ams_digest(headers: Sequence[Header], ams: Header, names: list[bytes], policy: CanonicalizationPolicy) -> bytes:
    """The hash that an ARC-Message-Signature signs."""
    chosen = [(name, value + b"\r\n") for name, value in select(headers, names)]
    hasher = hashlib.sha256()
    for header in policy.canonicalize_headers(chosen):
        _hash_field(hasher, header)
    name, value = policy.canonicalize_headers([_without_signature((ams[0], ams[1] + b"\r\n"))])[0]
    _hash_field(hasher, (name, value.rstrip()))
    return hasher.digest()


def seal_digests(sets: Sequence[ArcSet]) -> list[bytes]:
    """For each ARC-Seal the hash it signs: all sets up to its own in the order of instances (RFC 8617 §5.1.1)."""
    digests = []
    running = hashlib.sha256()
    for arc_set in sets:
        _hash_field(running, _relaxed(arc_set.aar))
        _hash_field(running, _relaxed(arc_set.ams))
        own = running.copy()
        # the space in front lets the "b=" rule see a b= that stands first
        name, value = _relaxed(_without_signature((arc_set.seal[0], b" " + _relaxed(arc_set.seal)[1].rstrip(b"\r\n"))))
        _hash_field(own, (name, value.rstrip()))
        digests.append(own.digest())
        _hash_field(running, _relaxed(arc_set.seal))
    return digests


def verify_chain(headers: Sequence[Header], sets: tuple[ArcSet, ...], body_hash: bytes, lookup: KeyLookup) -> Verdict:
    """Judge a chain that read_chain() found well-formed (RFC 8617 §5.2 steps 4-6).

    Newest first, and no further than the first failure, so that a long forged chain costs one key look-up.
    """
    if not sets:
        return Verdict("none")
    newest = sets[-1]
    try:
        claimed = base64.b64decode(re.sub(rb"\s+", b"", newest.ams_tags[b"bh"]))
        if claimed != body_hash:
            return Verdict("fail", "body has changed", sets)
        names = signed_names(newest)
        if b"from" in names:  # dkimpy's rule, kept: a second From that h= does not name makes the signature fail
            names.append(b"from")
        digest = ams_digest(headers, newest.ams, names, _policy(newest))
        if not _verify_signature(newest.ams_tags, digest, lookup):
            return Verdict("fail", "ARC-Message-Signature does not verify", sets)
        for arc_set, digest in reversed(list(zip(sets, seal_digests(sets), strict=True))):
            if not _verify_signature(arc_set.seal_tags, digest, lookup):
                return Verdict("fail", "ARC-Seal does not verify", sets)
    except TemporaryDnsError:
        return Verdict("fail", "key not available now", sets, temporary=True)
    except binascii.Error:
        return Verdict("fail", "unreadable ARC-Message-Signature", sets)
    except ChainError as error:
        return Verdict("fail", str(error), sets)
    return Verdict("pass", "", sets)


def verify_message(message: bytes, lookup: KeyLookup) -> Verdict:
    """Judge a whole message; the milter does the same in steps. For tests and by hand."""
    headers, body = split_message(message)
    try:
        sets = read_chain(headers)
    except ChainError as error:
        return Verdict("fail", str(error))
    if not sets:
        return Verdict("none")
    hasher = body_hash_for(sets)
    hasher.update(body)
    return verify_chain(headers, sets, hasher.digest(), lookup)


def split_message(message: bytes) -> tuple[list[Header], bytes]:
    """Header fields and body of a message with CRLF or LF line ends; lines that are no header field are left out."""
    message = re.sub(rb"\r?\n", b"\r\n", message)
    head, _, body = message.partition(b"\r\n\r\n") if not message.startswith(b"\r\n") else (b"", b"", message[2:])
    fields: list[list[bytes]] = []
    for line in head.removesuffix(b"\r\n").split(b"\r\n"):
        if line[:1] in (b" ", b"\t"):
            if fields:
                fields[-1].append(line)
        elif re.match(rb"[\x21-\x39\x3b-\x7e]+[ \t]*:", line):
            fields.append([line])
    headers = []
    for lines in fields:
        name, _, value = b"\r\n".join(lines).partition(b":")
        headers.append((name.rstrip(), value))
    return headers, body


# -------------------------------------------------------------------------------------------------------------- trust


@dataclass(frozen=True)
class Trust:
    """Whether a passing chain may change our mind about DMARC, and what its first trusted sealer says DMARC was."""

    trusted: bool
    dmarc: str = "none"
    sealer: str = ""


def is_trusted(domain: str, trusted: Iterable[str]) -> bool:
    """`example.edu` on the list means that domain; `.example.edu` means every domain below it."""
    return any(domain == entry or (entry.startswith(".") and domain.endswith(entry)) for entry in trusted)


def author_domain(headers: Sequence[Header]) -> str:
    """The domain of the one address in the one From field, lower case and in A-labels; empty where there is no such."""
    values = [value for name, value in headers if name.lower().rstrip() == b"from"]
    if len(values) != 1 or len(values[0]) > 4_000:
        return ""
    text = re.sub(r"\s+", " ", values[0].decode("utf-8", "replace"))
    addresses = [address for _, address in getaddresses([text]) if address]
    if len(addresses) != 1 or addresses[0].count("@") < 1:
        return ""
    return normal_domain(addresses[0].rpartition("@")[2])


def judge_trust(verdict: Verdict, trusted: Sequence[str], from_domain: str) -> Trust:
    """Apply the trust rule: from the outermost set inward as far as the sealers are on the list.

    The outermost sealer must be trusted, because it alone vouches for the message as it is now; each further one
    counts only while all outside it are trusted. A replayed set of a trusted sealer below a stranger's seal is
    therefore worth nothing. The DMARC result is read from the innermost set reached, the one nearest to the author. It
    counts only for the author domain that the message still carries, and nothing is trusted unless the newest AMS
    covers the whole body and the From field.
    """
    if verdict.status != "pass" or not verdict.sets:
        return Trust(False)
    newest = verdict.sets[-1]
    whole = b"l" not in newest.ams_tags and b"from" in signed_names(newest)
    if not whole or not is_trusted(newest.signer, trusted):
        return Trust(False)
    used = None
    for arc_set in reversed(verdict.sets):
        if not is_trusted(arc_set.sealer, trusted):
            break
        used = arc_set
    if used is None:
        return Trust(False)
    return Trust(True, _aar_dmarc(used, from_domain), used.sealer)


def _aar_dmarc(arc_set: ArcSet, from_domain: str) -> str:
    payload = arc_set.aar[1].partition(b";")[2]
    try:
        results = parse_authentication_results(payload).of("dmarc")
    except ValueError:
        return "none"
    if len(results) != 1 or not from_domain:
        return "none"
    evaluated = results[0].properties.get("header.from", "")
    if evaluated and normal_domain(evaluated.rpartition("@")[2]) != from_domain:
        return "none"
    return results[0].result if results[0].result in ("pass", "fail") else "none"


def handover_value(status: str, trust: Trust) -> str:
    """Value of X-Estate-ARC."""
    return f"{status}; trusted={'yes' if trust.trusted else 'no'}; dmarc={trust.dmarc}"


_HANDOVER = re.compile(rb"\s*(none|pass|fail); trusted=(yes|no); dmarc=(pass|fail|none)\s*\Z")


def parse_handover(value: bytes) -> tuple[str, Trust] | None:
    """What the verify stage wrote; None if it is not exactly that."""
    match = _HANDOVER.match(value)
    if match is None:
        return None
    status, trusted, dmarc = (part.decode("ascii") for part in match.groups())
    return status, Trust(trusted == "yes", dmarc)


# ------------------------------------------------------------------------------------------------------------- sealing


class Sealer:
    """Makes ARC Sets with one RSA key."""

    def __init__(self, pem: bytes, domain: str, selector: str) -> None:
        """`pem` is the private key, unencrypted, at least 1024 bits. Raises ValueError with what to do."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ValueError("the ARC private key is not an unencrypted PEM private key") from error
        if not isinstance(key, rsa.RSAPrivateKey) or key.key_size < MIN_KEY_BITS:
            raise ValueError("the ARC private key must be RSA with at least 1024 bits (RFC 8617 knows no other)")
        self._key, self.domain, self.selector = key, domain, selector

    def _sign(self, digest: bytes) -> str:
        signature = self._key.sign(digest, padding.PKCS1v15(), utils.Prehashed(hashes.SHA256()))
        text = base64.b64encode(signature).decode("ascii")
        return "\n\t ".join(text[at : at + 72] for at in range(0, len(text), 72))

    def seal(
        self, headers: Sequence[Header], body_hash: bytes, results: str, sets: Sequence[ArcSet], timestamp: int
    ) -> list[tuple[str, str]]:
        """The next ARC Set over a message whose chain is `sets` (valid, or empty): AAR, AMS, AS, in order of insertion.

        `results` is the Authentication-Results value that the AAR carries, `timestamp` is in UTC seconds.
        Values start with a space and fold with LF. Raises ValueError where fifty sets are reached.
        """
        instance = len(sets) + 1
        if instance > MAX_SETS:
            raise ValueError("the chain has reached fifty sets")
        aar = f" i={instance}; {fold(results)}"
        count: dict[bytes, int] = {}
        for name, _ in headers:
            count[name.lower().rstrip()] = count.get(name.lower().rstrip(), 0) + 1
        names = [name for name in SIGNED_NAMES for _ in range(min(count.get(name, 0), 20) + (name in OVERSIGNED_NAMES))]
        listed = _fold_names([name.decode("ascii") for name in names])
        ams = (
            f" i={instance}; a=rsa-sha256; c=relaxed/relaxed; d={self.domain};\n\ts={self.selector}; t={timestamp};\n\t"
            f"h={listed};\n\tbh={base64.b64encode(body_hash).decode('ascii')};\n\tb="
        )
        policy = CanonicalizationPolicy.from_c_value(b"relaxed/relaxed")
        digest = ams_digest(headers, (b"ARC-Message-Signature", _wire(ams)), names, policy)
        ams += self._sign(digest)
        validity = "none" if instance == 1 else "pass"
        seal = (
            f" i={instance}; a=rsa-sha256; cv={validity}; d={self.domain};\n\ts={self.selector}; t={timestamp};\n\tb="
        )
        new = ArcSet(instance, (AAR, _wire(aar)), (AMS, _wire(ams)), (SEAL, _wire(seal)), ams_tags={}, seal_tags={})
        seal += self._sign(seal_digests([*sets, new])[-1])
        return [("ARC-Authentication-Results", aar), ("ARC-Message-Signature", ams), ("ARC-Seal", seal)]


def _wire(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode("utf-8")


def _fold_names(names: list[str], width: int = 72) -> str:
    lines, line = [], ""
    for name in names:
        if line and len(line) + len(name) > width:
            lines.append(line)
            line = ""
        line += name + ":"
    lines.append(line)
    return "\n\t ".join(lines).rstrip(":")
