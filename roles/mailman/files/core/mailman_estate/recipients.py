"""Who gets a post: one query for a whole list, instead of five for each of its members.

Mailman loads each member, its address, its user and the preferences of all three one by one: 8 to 10 seconds for 10,000
members. The answer here is the same. Preferences are taken from the membership, else its address, else the user of that
address, else the system (``mailman.model.member.Member._lookup``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from uuid import UUID

from mailman.config import config
from mailman.core.constants import system_preferences
from mailman.handlers.member_recipients import MemberRecipients
from mailman.interfaces.member import DeliveryMode, DeliveryStatus, MemberRole
from mailman.model.address import Address
from mailman.model.member import Member
from mailman.model.preferences import Preferences
from mailman.model.user import User
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased

log = logging.getLogger("mailman.error")


class Subscription(NamedTuple):
    """A membership in the role of a member, with what decides whether mail goes there."""

    email: str  # in lower case
    member_id: UUID
    explicit: bool  # subscribed by this very address, not by whichever a user prefers
    mode: DeliveryMode
    status: DeliveryStatus


def subscriptions(mlist: Any) -> Iterator[Subscription]:
    """Every membership of a list in the role of a member that has an address."""
    subscriber, owner = aliased(User), aliased(User)
    own, of_address, of_user = aliased(Preferences), aliased(Preferences), aliased(Preferences)
    query = (
        select(
            Address.email,
            Member._member_id,
            Member.address_id,
            func.coalesce(own.delivery_mode, of_address.delivery_mode, of_user.delivery_mode),
            func.coalesce(own.delivery_status, of_address.delivery_status, of_user.delivery_status),
        )
        .select_from(Member)
        .outerjoin(subscriber, subscriber.id == Member.user_id)
        .join(Address, Address.id == func.coalesce(Member.address_id, subscriber._preferred_address_id))
        .outerjoin(owner, owner.id == Address.user_id)
        .outerjoin(own, own.id == Member.preferences_id)
        .outerjoin(of_address, of_address.id == Address.preferences_id)
        .outerjoin(of_user, of_user.id == owner.preferences_id)
        .where(Member.list_id == mlist.list_id, Member.role == MemberRole.member)
    )
    for email, member_id, address_id, mode, status in config.db.store.execute(query):
        yield Subscription(
            email,
            member_id,
            address_id is not None,
            system_preferences.delivery_mode if mode is None else mode,
            system_preferences.delivery_status if status is None else status,
        )


def regular_recipients(mlist: Any) -> set[str]:
    """The addresses, in lower case, to which a post goes at once."""
    return {
        one.email
        for one in subscriptions(mlist)
        if one.mode is DeliveryMode.regular and one.status is DeliveryStatus.enabled
    }


def memberships(mlist: Any) -> dict[str, UUID]:
    """The id of the membership behind each address in lower case, as ``mlist.members.get_member`` finds it: where a
    person is subscribed by an address and as a user who prefers it, by the address.
    """
    found: dict[str, UUID] = {}
    for one in sorted(subscriptions(mlist), key=lambda one: one.explicit):
        found[one.email] = one.member_id
    return found


def install(settings: Mapping[str, str]) -> None:
    """Put this in the place of the handler's own way. Once per process; a further call does no harm."""
    stock = getattr(MemberRecipients.process, "stock", MemberRecipients.process)

    def process(self: MemberRecipients, mlist: Any, msg: Any, msgdata: dict[str, Any]) -> None:
        """See ``IHandler``. A header field Urgent, on which stock Mailman fails, means nothing."""
        if "recipients" in msgdata:
            return
        try:
            recipients = regular_recipients(mlist)
        except SQLAlchemyError:
            raise  # the database is not there; stock Mailman would not find it either
        except Exception:
            log.exception("%s: recipients are calculated Mailman's slow way", mlist.fqdn_listname)
            stock(self, mlist, msg, msgdata)
            return
        author = mlist.members.get_member(msg.sender)
        if author is not None and not author.receive_own_postings:
            recipients.discard(author.address.email)
        msgdata["recipients"] = recipients

    process.stock = stock  # type: ignore[attr-defined]
    MemberRecipients.process = process
