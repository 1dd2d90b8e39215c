"""What two handlers of Mailman do for a post, without the rewriting of fields that its author may have signed.

Mailman's ``avoid-duplicates`` writes Cc anew for every post that has one, and ``cook-headers`` Reply-To:
``"Bob" <b@…>`` comes out as ``Bob <b@…>``, and the author's DKIM signature (RFC 6376) over that field is void.
A list with the pipeline ``estate-transparent-pipeline`` has this handler in place of both.
"""

from __future__ import annotations

from email.utils import getaddresses
from typing import Any

from mailman.core.i18n import _
from mailman.interfaces.handler import IHandler
from public import public
from zope.interface import implementer


@public
@implementer(IHandler)
class Untouched:
    """Spare members a second copy, and mark the post as a list's; no field of the author's changes."""

    name = "estate-untouched"
    description = _("Suppress duplicates without a change of the author's header.")

    def process(self, mlist: Any, msg: Any, msgdata: dict[str, Any]) -> None:
        """See ``IHandler``."""
        msgdata["original_sender"] = msg.sender
        if "precedence" not in msg:
            msg["Precedence"] = "list"
        fields = [str(value) for name in ("to", "cc", "resent-to", "resent-cc") for value in msg.get_all(name, [])]
        addressed = {address for _name, address in getaddresses(fields) if address}
        spared = set()
        for address in addressed & set(msgdata.get("recipients") or ()):
            member = mlist.members.get_member(address)
            if member is not None and not member.receive_list_copy:
                spared.add(address)
        if spared:
            msgdata["recipients"] = [address for address in msgdata["recipients"] if address not in spared]
