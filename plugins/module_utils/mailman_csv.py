"""Members of a mailing list from a CSV file as people make them: any spreadsheet, any encoding, any mistake.

The first line names the columns: ``address``, and if wanted ``name``, ``role`` and ``delivery``, in any order.  A row
that cannot be used is set aside with its line number and a reason and never stops the others; only a file that is no
list of members at all is refused as a whole (ValueError).  The format is RFC 4180, with semicolons or tabs as well.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field

ROLES = ("member", "owner", "moderator", "nonmember")
DELIVERY_MODES = ("regular", "plaintext_digests", "mime_digests", "summary_digests")
COLUMNS = ("address", "name", "role", "delivery")
MAX_LINE = 4000
MAX_NAME = 200
MAX_BYTES = 64 * 1024 * 1024
#: So many lines may one quoted cell span.
MAX_CELL_LINES = 5
SHOWN = 200

_ADDRESS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9.-]+\.[A-Za-z0-9-]+")
_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_HALF_WIDTH = re.compile("[\uff61-\uff9f]")


@dataclass(frozen=True)
class Member:
    """One usable row; an empty name or delivery says nothing about it."""

    line: int
    address: str
    name: str
    role: str
    delivery: str

    @property
    def key(self) -> tuple[str, str]:
        """What makes two rows the same membership."""
        return self.address.lower(), self.role


@dataclass(frozen=True)
class Refused:
    """A row set aside: where, why, and (shortened) what."""

    line: int
    reason: str
    text: str


@dataclass
class Parsed:
    """What a file holds."""

    encoding: str
    members: list[Member] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    #: What was put right, in sentences with the line number.
    notes: list[str] = field(default_factory=list)
    #: Addresses that refused rows name: they must not be taken for absent.
    mentioned: set[str] = field(default_factory=set)


class _Bad(Exception):
    """This row cannot be used; the message says why."""


def decode(content: bytes) -> tuple[str, str]:
    """Text and the name of its encoding.

    :raises ValueError: when it is none of those that spreadsheets write in our part of the world.
    """
    for mark, name in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(mark):
            return _strictly(content, name)
    start = content[:400]
    if len(start) >= 8 and start.count(0) * 3 > len(start):
        # UTF-16 without its mark: every other byte of an address is zero.
        return _strictly(content, "utf-16-be" if start[0] == 0 else "utf-16-le")
    if b"\x1b$" in content or b"\x1b(" in content:
        return _strictly(content, "iso2022_jp_ext")
    candidates: list[tuple[int, str, str]] = []
    for position, name in enumerate(("utf-8", "cp932", "euc_jp")):
        try:
            text = content.decode(name)
        except UnicodeDecodeError:
            continue
        if name == "utf-8":
            return text, name
        # EUC-JP read as cp932 gives rows of half-width katakana.
        candidates.append((len(_HALF_WIDTH.findall(text)), f"{position}{name}", text))
    if not candidates:
        raise ValueError(
            "is in no encoding known here (UTF-8, UTF-16, cp932/Shift_JIS, EUC-JP, ISO-2022-JP); save it as CSV UTF-8"
        )
    _, name, text = min(candidates)
    return text, name[1:]


def _strictly(content: bytes, name: str) -> tuple[str, str]:
    try:
        return content.decode(name), name
    except UnicodeDecodeError as error:
        raise ValueError(
            f"begins as {name}, but byte {error.start} and what follows is none; save it as CSV UTF-8"
        ) from error


def parse(content: bytes) -> Parsed:
    """The members that a file names.

    :param content: the file as it is on disk.
    :raises ValueError: a sentence without subject, when the whole file cannot be used.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"is {len(content)} bytes long; {MAX_BYTES} are the most")
    text, encoding = decode(content)
    lines = re.split(r"\r\n|\n|\r", text)
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise ValueError("is empty; the first line names the columns: address,name,role,delivery")
    delimiter, columns = _header(lines[first])
    parsed = Parsed(encoding=encoding)
    if encoding not in ("utf-8", "utf-8-sig"):
        parsed.notes.append(f"read as {encoding}")
    seen: dict[tuple[str, str], Member] = {}
    number = first + 1
    while number < len(lines):
        start, raw = number, lines[number]
        number += 1
        if not raw.strip():
            continue
        try:
            raw, taken = _whole(lines, start, delimiter, len(columns))
            number = start + taken
            member = _member(start + 1, _cells(raw, delimiter, columns), parsed)
        except _Bad as bad:
            parsed.refused.append(Refused(start + 1, str(bad), raw[:SHOWN] + ("…" if len(raw) > SHOWN else "")))
            parsed.mentioned |= {address.lower() for address in _ADDRESS.findall(raw[:MAX_LINE])}
            continue
        known = seen.setdefault(member.key, member)
        if known is member:
            parsed.members.append(member)
            continue
        note = f"line {member.line}: {member.address} is in line {known.line} already"
        if known.address != member.address:
            note += f" as {known.address}"
        if (known.name, known.delivery) != (member.name, member.delivery):
            note += "; the name and delivery of the first are used"
        parsed.notes.append(note)
    return parsed


def _header(line: str) -> tuple[str, list[str]]:
    """Delimiter and columns."""
    delimiter = max(",;\t", key=line.count)
    try:
        cells = next(csv.reader([line[:MAX_LINE]], delimiter=delimiter, strict=True), [])
    except csv.Error:
        cells = []
    columns = [cell.strip().lower() for cell in cells]
    while columns and not columns[-1]:
        columns.pop()
    if "address" not in columns:
        raise ValueError(
            f"begins with {line[:80]!r}; the first line must name the columns: address, and if wanted name, role,"
            " delivery"
        )
    for name in columns:
        if name not in COLUMNS:
            raise ValueError(f"has a column {name!r}; known are {', '.join(COLUMNS)}")
        if columns.count(name) > 1:
            raise ValueError(f"has two columns {name}")
    return delimiter, columns


def _whole(lines: list[str], start: int, delimiter: str, columns: int) -> tuple[str, int]:
    """The row that begins at a line, and how many lines it takes: a quoted cell may hold line breaks.

    A quote that is never closed costs its own line only.
    """
    raw = lines[start]
    if len(raw) > MAX_LINE:
        raise _Bad(f"the line is {len(raw)} characters long; {MAX_LINE} are the most")
    if raw.count('"') % 2 == 0:
        return raw, 1
    for taken in range(2, MAX_CELL_LINES + 1):
        more = lines[start + 1 : start + taken]
        if len(more) < taken - 1 or len(more[-1]) > MAX_LINE:
            break
        joined = "\n".join([raw, *more])
        if joined.count('"') % 2 == 0:
            inside = [cell for cell in csv.reader(io.StringIO(joined), delimiter=delimiter)]
            if len(inside) == 1 and len(inside[0]) <= columns and not any(_ADDRESS.search(line) for line in more):
                return joined, taken
            break
    raise _Bad("a quotation mark is opened and not closed")


def _cells(raw: str, delimiter: str, columns: list[str]) -> dict[str, str]:
    if "\0" in raw:
        raise _Bad("holds a NUL character")
    try:
        rows = list(csv.reader(io.StringIO(raw, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise _Bad(f"is no CSV: {error}") from error
    cells = rows[0] if len(rows) == 1 else []
    while len(cells) > len(columns) and not cells[-1].strip():
        cells.pop()
    if len(cells) != len(columns):
        raise _Bad(f"has {len(cells)} columns; the first line names {len(columns)}")
    return dict(zip(columns, cells, strict=True))


def _member(line: int, cells: dict[str, str], parsed: Parsed) -> Member:
    for name, cell in cells.items():
        if cell.lstrip(" ").startswith(_FORMULA):
            raise _Bad(f"{name} begins with {cell.lstrip(' ')[0]!r}, like a spreadsheet's formula")
    address = _address(line, cells["address"].strip(), parsed)
    name = cells.get("name", "")
    if "\n" in name:
        parsed.notes.append(f"line {line}: the line break in the name became a space")
    name = " ".join(name.split())
    if _CONTROL.search(name):
        raise _Bad("the name holds a control character")
    if len(name) > MAX_NAME:
        raise _Bad(f"the name is {len(name)} characters long; {MAX_NAME} are the most")
    role = cells.get("role", "").strip().lower() or "member"
    if role not in ROLES:
        raise _Bad(f"role is {role[:40]!r}; known are {', '.join(ROLES)}")
    delivery = cells.get("delivery", "").strip().lower()
    if delivery and delivery not in DELIVERY_MODES:
        raise _Bad(f"delivery is {delivery[:40]!r}; known are {', '.join(DELIVERY_MODES)}")
    return Member(line, address, name, role, delivery)


def _address(line: int, address: str, parsed: Parsed) -> str:
    """The address as Mailman keeps it, with an internationalised domain as A-labels (RFC 5891)."""
    local, at, domain = address.rpartition("@")
    if not address:
        raise _Bad("there is no address")
    if not at or not local or not domain:
        raise _Bad(f"{address[:80]!r} is no address: local@domain is needed")
    if "@" in local:
        raise _Bad("an address holds one @ only")
    if not local.isascii():
        raise _Bad("before the @ only ASCII letters are possible")
    if not _LOCAL.fullmatch(local) or len(local) > 64:
        raise _Bad(f"what stands before the @ is not possible: {local[:80]!r}")
    if not domain.isascii():
        try:
            domain = domain.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise _Bad("the domain is no internationalised domain name") from error
        parsed.notes.append(f"line {line}: the domain is written as {domain}")
    labels = domain.split(".")
    good = len(labels) > 1 and len(domain) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
    if not good or labels[-1].isdigit():
        raise _Bad(f"what stands after the @ is no full domain name: {domain[:80]!r}")
    return f"{local}@{domain}"


def refused_file(refused: list[Refused]) -> str:
    """The refused rows as a CSV file: line, reason, row. No cell of it is a formula to a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["line", "reason", "row"])
    for row in sorted(refused, key=lambda row: row.line):
        text = _CONTROL.sub("�", row.text)
        writer.writerow([row.line, row.reason, "'" + text if text.startswith(_FORMULA) else text])
    return out.getvalue()
