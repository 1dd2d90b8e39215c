"""Search in the archive for every language: a Haystack backend on Whoosh, and the index brought up to date at once.

Whoosh splits text at blanks, and Japanese or Chinese has none: a whole sentence would be one word that nobody finds.
Here runs of such characters become overlapping pairs (日本語 → 日本, 本語) that are searched as a phrase,
everything else words by their stem. Text is compared in Unicode's compatibility form (NFKC), so that ｶﾀｶﾅ finds
カタカナ.

HyperKitty itself updates the index every hour. ``IndexLater`` notes that the archive has changed (``index.due``), upon
which systemd runs ``python -m mailman_estate_web.search``: it adds the posts since the last one that is in the index
and takes out what was deleted. Exit status 0: done; 1: the index could not be brought up to date.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from haystack.backends.whoosh_backend import WhooshEngine, WhooshSearchBackend, WhooshSearchQuery
from haystack.signals import BaseSignalProcessor
from whoosh.analysis import IDTokenizer, LowercaseFilter, StemFilter, Token, Tokenizer
from whoosh.fields import TEXT, Schema
from whoosh.qparser import QueryParserError

#: Written into the state of the index: another number has it built anew.
LAYOUT = 1
BATCH = 500
#: Posts that are looked at again: two that come at the same moment may be committed in another order than numbered.
OVERLAP = 50

_UNSPACED = (
    "\u0e00-\u0e7f"  # Thai
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # iteration marks, kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_WORDS = re.compile(rf"(?P<unspaced>[{_UNSPACED}]+)|[^\W{_UNSPACED}_]+(?:['’][^\W{_UNSPACED}_]+)*")


class MixedTokenizer(Tokenizer):
    """Words of languages with spaces, pairs of characters of those without.

    A single such character is found, too: the index has each beside the pair that begins with it.
    """

    def __call__(
        self,
        value: str,
        positions: bool = False,
        chars: bool = False,
        keeporiginal: bool = False,
        removestops: bool = True,
        start_pos: int = 0,
        start_char: int = 0,
        mode: str = "",
        **options: Any,
    ) -> Iterator[Token]:
        token = Token(positions, chars, removestops=removestops, mode=mode, **options)
        for position, (text, start) in enumerate(self._texts(unicodedata.normalize("NFKC", value))):
            alone = len(text) == 2 and text[0] != text and mode != "query" and _WORDS.match(text)["unspaced"]
            for form in (text, text[0]) if alone else (text,):
                token.text = form
                token.boost = 1.0
                token.stopped = False
                if keeporiginal:
                    token.original = form
                if positions:
                    token.pos = start_pos + position
                if chars:
                    token.startchar = start_char + start
                    token.endchar = start_char + start + len(form)
                yield token

    @staticmethod
    def _texts(value: str) -> Iterator[tuple[str, int]]:
        """Words and pairs with the place where they begin."""
        for match in _WORDS.finditer(value):
            text, start = match[0], match.start()
            if match["unspaced"] and len(text) > 1:
                for offset in range(len(text) - 1):
                    yield text[offset : offset + 2], start + offset
            else:
                yield text, start


def analyzer() -> Any:
    """What becomes of text on its way into the index, and of a question on its way to it."""
    return MixedTokenizer() | LowercaseFilter() | StemFilter()


class EstateBackend(WhooshSearchBackend):
    """Haystack's Whoosh backend with our analyser."""

    def build_schema(self, fields: Any) -> tuple[str, Schema]:
        content, schema = super().build_schema(fields)
        for name, field in schema.items():
            if type(field) is TEXT:
                # A list's name is one word: what a private list is excluded by must not fit another list.
                field.analyzer = IDTokenizer() | LowercaseFilter() if name == "mailinglist" else analyzer()
                field.multitoken_query = "phrase"
                field.format.analyzer = field.analyzer
        return content, schema

    def search(self, query_string: str, **options: Any) -> dict[str, Any]:
        """HyperKitty knows only the parsing errors of upstream's backends; ours are no result."""
        try:
            return super().search(query_string, **options)
        except QueryParserError:
            return {"results": [], "hits": 0}


class EstateQuery(WhooshSearchQuery):
    """Questions as people type them."""

    def clean(self, query_fragment: str) -> str:
        """A word with punctuation (example.org, C++) is the phrase of its parts; upstream looks for it as it stands."""
        words = []
        for word in query_fragment.split():
            if any(sign in word for sign in self.backend.RESERVED_CHARACTERS):
                parts = "".join(" " if sign in '\\+-&|!(){}[]^"~*?:./' else sign for sign in word).split()
                words.append('"' + " ".join(parts) + '"' if parts else "")
            elif word in self.backend.RESERVED_WORDS:
                words.append(word.lower())
            else:
                words.append(word.replace("'", " "))
        return " ".join(word for word in words if word.strip())

    def build_query_fragment(self, field: str, filter_type: str, value: Any) -> str:
        """What a field must be as a whole (the list's name) is not taken apart, or no list would have any post."""
        if filter_type == "exact" and isinstance(value, str):
            return f'{field}:("{value.replace(chr(34), " ")}")'
        return super().build_query_fragment(field, filter_type, value)


class EstateEngine(WhooshEngine):
    """For HAYSTACK_CONNECTIONS."""

    backend = EstateBackend
    query = EstateQuery


def directory() -> Path:
    """Where the index lies."""
    from django.conf import settings

    return Path(settings.HAYSTACK_CONNECTIONS["default"]["PATH"])


class IndexLater(BaseSignalProcessor):
    """For HAYSTACK_SIGNAL_PROCESSOR: note which posts have come or gone; nobody waits for the index."""

    def setup(self) -> None:
        from django.db.models.signals import post_delete, post_save

        post_save.connect(self.saved)
        post_delete.connect(self.deleted)

    def saved(self, sender: Any, **options: Any) -> None:
        if sender._meta.label == "hyperkitty.Email" and options.get("created"):
            self._note("")

    def deleted(self, sender: Any, instance: Any, **options: Any) -> None:
        if sender._meta.label == "hyperkitty.Email":
            self._note(f"{instance.pk}\n")

    @staticmethod
    def _note(line: str) -> None:
        # One write to a file opened for appending: what several processes note does not mix.
        descriptor = os.open(directory().with_name("index.due"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def read_state(path: Path) -> int:
    """The number of the last post in the index; 0 when the index must be built anew."""
    try:
        state = json.loads(path.read_text())
        return int(state["last"]) if state["layout"] == LAYOUT else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def write_state(path: Path, last: int) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps({"layout": LAYOUT, "last": last}))
    new.replace(path)


def update() -> None:
    """Bring the index up to date."""
    from haystack import connections
    from hyperkitty.models import Email

    place = directory()
    due, work = place.with_name("index.due"), place.with_name("index.work")
    state = place.with_name("index.state")
    backend = connections["default"].get_backend()
    index = connections["default"].get_unified_index().get_index(Email)
    # What comes from now on is noted anew; what a run that broke off had taken up is still there.
    gone = [int(line) for path in (work, due) if path.exists() for line in path.read_text().split() if line.isdigit()]
    work.write_text("".join(f"{number}\n" for number in gone))
    due.unlink(missing_ok=True)

    last = read_state(state)
    if not last:
        backend.clear()
    for number in gone:
        backend.remove(f"hyperkitty.email.{number}")
    start = max(0, last - OVERLAP)
    while posts := list(Email.objects.filter(id__gt=start).order_by("id")[:BATCH]):
        backend.update(index, posts)
        start = posts[-1].id
        write_state(state, max(start, last))
    work.unlink()


def main() -> int:
    import django

    django.setup()
    with directory().with_name("index.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            update()
        except Exception as error:
            # Noted again, so that systemd comes back.
            print(f"The search index could not be brought up to date: {error!r}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
