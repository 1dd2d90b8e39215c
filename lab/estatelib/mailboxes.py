"""Read the lab's Maildirs, which are bind-mounted from the state directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesHeaderParser
from functools import cache
from pathlib import Path

from .places import ESTATE_MAIL_DOMAINS, MAILBOXES
from .waiting import wait


@cache
def _message_id(file: Path) -> str:
    """Return the Message-ID of a stored message ("" when it has none); a Maildir file never changes."""
    return str(_headers(file.read_bytes()).get("Message-ID", "")).strip()


@dataclass(frozen=True)
class Delivery:
    """A message as it lies in a mailbox."""

    folder: str  # "INBOX" or "Junk"
    raw: bytes  # with CRLF line ends, as on the wire
    message: Message = field(compare=False)

    def headers(self, name: str) -> list[str]:
        """Return every value of a header, unfolded, top first."""
        return [" ".join(str(value).split()) for value in self.message.get_all(name, [])]

    def header(self, name: str) -> str:
        """Return the one value of a header; several or none is a failure."""
        values = self.headers(name)
        assert len(values) == 1, f"expected one {name}, found {values}"
        return values[0]


@dataclass(frozen=True)
class Mailbox:
    """A mailbox of the estate or of the outside world."""

    address: str

    @property
    def maildir(self) -> Path:
        """Return the Maildir on this machine."""
        local, _, domain = self.address.partition("@")
        side = "mail" if domain in ESTATE_MAIL_DOMAINS else "world"
        return MAILBOXES / side / domain / local / "Maildir"

    def _files(self) -> list[tuple[str, Path]]:
        folders = {"INBOX": self.maildir, "Junk": self.maildir / ".Junk"}
        return [
            (folder, file)
            for folder, path in folders.items()
            for state in ("new", "cur")
            if (path / state).is_dir()
            for file in (path / state).iterdir()
        ]

    def find(self, message_id: str) -> list[Delivery]:
        """Return every copy of the message now in the mailbox."""
        return [_delivery(folder, file) for folder, file in self._files() if _message_id(file) == message_id]

    def search(self, text: str, since: float = 0) -> list[Delivery]:
        """Return the messages younger than a UNIX time that contain ``text`` (a bounce quotes what it returns)."""
        return [
            _delivery(folder, file)
            for folder, file in self._files()
            if file.stat().st_mtime >= since and text.encode() in file.read_bytes()
        ]

    def wait_for(self, message_id: str, timeout: float = 30) -> Delivery:
        """Return the message as soon as it is there."""
        copies = self._wait(lambda: self.find(message_id), timeout, f"message {message_id}")
        assert len(copies) == 1, f"{len(copies)} copies of {message_id} in {self.address}"
        return copies[0]

    def wait_for_text(self, text: str, timeout: float = 30, since: float = 0) -> Delivery:
        """Return the first message that contains ``text`` as soon as it is there."""
        return self._wait(lambda: self.search(text, since), timeout, f"message containing {text!r}")[0]

    def _wait(self, look: Callable[[], list[Delivery]], timeout: float, what: str) -> list[Delivery]:
        return wait(look, timeout, f"{what} in {self.address}", pause=0.1)


def _delivery(folder: str, file: Path) -> Delivery:
    raw = file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return Delivery(folder, raw, _headers(raw))


def _headers(raw: bytes) -> Message:
    """Parse the header only: some tests send bodies that no parser should be given."""
    return BytesHeaderParser().parsebytes(raw)
