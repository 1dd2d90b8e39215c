"""The organisation-address rule of a list: what it says, whom it refuses, and the file that keeps it.

A rule names domains; only addresses of these may become members. One file per list, ``<list-id>.json``, in a directory
below Mailman's data directory, so that it is in the backup with everything else. No file: no rule. A file that cannot
be read is an error and never "no rule". Neither Mailman nor its database is used here.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_DOMAINS = 500
MAX_SENTENCE = 1000

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_LIST_ID = re.compile(r"[^/\x00-\x20\x7f]{1,240}\Z")

ENGLISH = (
    "Only addresses of {domains} can be members of {list}; {address} is none of them. "
    "Please subscribe with the address that your organisation gave you."
)
JAPANESE = (
    "{list} に登録できるのは {domains} のメールアドレスに限られます。{address} は該当しないため登録できません。"
    "所属組織のメールアドレスで登録してください。"
)


class RuleFileError(Exception):
    """The file of a rule cannot be read or makes no sense; the text says which and why."""


@dataclass(frozen=True)
class Rule:
    """Domains whose addresses may be members, and the sentence for all others (None: a text of our own)."""

    domains: tuple[str, ...]
    sentence: str | None = None

    def allows(self, email: str) -> bool:
        """May this address be a member? ``example.org`` stands for itself, ``.example.org`` for subdomains too."""
        local, _, domain = email.strip().rpartition("@")
        domain = domain.lower().rstrip(".")
        if not local or not domain:
            return False
        return any(
            domain == allowed.removeprefix(".") or (allowed.startswith(".") and domain.endswith(allowed))
            for allowed in self.domains
        )

    def refusal(self, email: str, list_address: str, language: str) -> str:
        """The sentence for a refused address, for a list with this language code."""
        if self.sentence is not None:
            texts = [(self.sentence, language)]
        elif language.partition("_")[0] == "ja":
            texts = [(JAPANESE, "ja"), (ENGLISH, "en")]
        else:
            texts = [(ENGLISH, "en")]
        # one pass: what is filled in is not looked at again
        return "\n".join(
            re.sub(
                r"\{(address|list|domains)\}",
                lambda match, in_language=in_language: {
                    "address": email,
                    "list": list_address,
                    "domains": spoken(self.domains, in_language),
                }[match.group(1)],
                text,
            )
            for text, in_language in texts
        )


def spoken(domains: Iterable[str], language: str) -> str:
    """Domains in a sentence."""
    japanese = language.partition("_")[0] == "ja"
    subdomains = "{}(サブドメインを含む)" if japanese else "{} (with subdomains)"
    names = [subdomains.format(name[1:]) if name.startswith(".") else name for name in domains]
    if japanese or len(names) < 2:
        return "、".join(names)
    return ", ".join(names[:-1]) + " or " + names[-1]


def normal_rule(domains: Any, sentence: Any = None) -> Rule:
    """A rule from what somebody typed; raises ValueError with a sentence that says what is wrong."""
    if not isinstance(domains, list) or not domains:
        raise ValueError("domains must be a list with at least one domain; to end the rule, delete it.")
    if len(domains) > MAX_DOMAINS:
        raise ValueError(f"domains has {len(domains)} entries; at most {MAX_DOMAINS} are allowed.")
    normal = {_normal_domain(domain) for domain in domains}
    if sentence is not None:
        if not isinstance(sentence, str) or not sentence.strip() or len(sentence) > MAX_SENTENCE:
            raise ValueError(f"sentence must be a text of 1 to {MAX_SENTENCE} characters, or null.")
        if any((ord(char) < 32 and char != "\n") or 0xD800 <= ord(char) <= 0xDFFF for char in sentence):
            raise ValueError("sentence must not contain control characters.")
        sentence = sentence.strip()
    return Rule(tuple(sorted(normal, key=lambda domain: (domain.removeprefix("."), domain))), sentence)


def _normal_domain(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no domain.")
    domain = text.strip().lower()
    subdomains = domain.startswith(".")
    domain = domain.removeprefix(".").removesuffix(".")
    if not domain.isascii():
        try:
            domain = domain.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise ValueError(f"{text!r} is no domain.") from error
    labels = domain.split(".")
    if len(domain) > 253 or len(labels) < 2 or not all(_LABEL.match(label) for label in labels):
        raise ValueError(f"{text!r} is no domain: write example.org, or .example.org to include its subdomains.")
    return f".{domain}" if subdomains else domain


class RuleStore:
    """The rules of all lists, a file each."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)

    def _path(self, list_id: str) -> Path:
        if not _LIST_ID.match(list_id) or list_id.startswith("."):
            raise RuleFileError(f"{list_id!r} is no list-id")
        return self._directory / f"{list_id}.json"

    def get(self, list_id: str) -> Rule | None:
        """The rule of a list, None if it has none. Raises RuleFileError."""
        path = self._path(list_id)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return normal_rule(data["domains"], data["sentence"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RuleFileError(f"{path}: {error}") from error

    def all(self) -> dict[str, Rule | RuleFileError]:
        """Every rule by list-id; the error in the place of one that cannot be read. Raises RuleFileError."""
        try:
            names = sorted(entry.name for entry in os.scandir(self._directory) if entry.name.endswith(".json"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise RuleFileError(f"{self._directory}: {error}") from error
        found: dict[str, Rule | RuleFileError] = {}
        for list_id in (name.removesuffix(".json") for name in names):
            try:
                if (rule := self.get(list_id)) is not None:
                    found[list_id] = rule
            except RuleFileError as error:
                found[list_id] = error
        return found

    def set(self, list_id: str, rule: Rule) -> None:
        """Keep a rule: written beside the old file and put in its place. Raises OSError."""
        path = self._path(list_id)
        self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        text = json.dumps({"domains": rule.domains, "sentence": rule.sentence}, ensure_ascii=False, indent=1) + "\n"
        descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".new", dir=self._directory)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o640)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    def delete(self, list_id: str) -> None:
        """Forget a rule, if there is one. Raises OSError."""
        self._path(list_id).unlink(missing_ok=True)
