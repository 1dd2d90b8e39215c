"""A message that names a character set which does not exist is a message as any other.

Stock rules and handlers decode with whatever the Content-Type says and shunt the message when Python has no such codec,
or one that is none for text (``base64``). RFC 2046 §4.1.2 leaves what is not known to the receiver: here it counts as
if no character set were named.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.message import Message
from typing import Any


def decodes(charset: str) -> bool:
    """Whether Python can make text of any octets in this character set."""
    try:
        b"\xff".decode(charset, "replace")
    except (LookupError, UnicodeError, ValueError):
        return False
    return True


def install(settings: Mapping[str, str]) -> None:
    """Put this in the place of what messages in Mailman say about themselves. A further call does no harm."""
    # Imported here: what is above knows no Mailman.
    from mailman.email.message import Message as MailmanMessage

    def get_content_charset(self: Message, failobj: Any = None) -> Any:
        """See ``email.message.Message.get_content_charset``."""
        charset = Message.get_content_charset(self, failobj)
        return charset if charset is failobj or decodes(charset) else failobj

    MailmanMessage.get_content_charset = get_content_charset
