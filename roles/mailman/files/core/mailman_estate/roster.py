"""A list's members read in one query and changed in one transaction.

Mailman's REST takes 23 ms for each new member and 16 s to show 10,000, because it asks the database a handful of
questions for each of them. Here the same model classes, made by the same constructors, are filled and looked up for the
whole request at once. A member made here is what ``POST /members`` makes: an address linked to a user, preferences for
each of the three, and identifiers recorded in the table ``uid``; the events are told to everybody but the part of core
that mails the owners about each member.
"""

from __future__ import annotations

import contextlib
import logging
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from mailman.app.membership import handle_SubscriptionEvent
from mailman.app.notifications import send_welcome_message
from mailman.config import config
from mailman.core.constants import system_preferences
from mailman.interfaces.action import Action
from mailman.interfaces.address import IEmailValidator
from mailman.interfaces.member import DeliveryMode, DeliveryStatus, MemberRole, SubscriptionEvent
from mailman.model import member as member_module
from mailman.model import user as user_module
from mailman.model.address import Address
from mailman.model.bans import Ban
from mailman.model.member import Member
from mailman.model.preferences import Preferences
from mailman.model.uid import UID
from mailman.model.user import User
from mailman.utilities.datetime import now
from sqlalchemy import func, insert, or_, select, text
from sqlalchemy.orm import aliased, joinedload
from zope import event
from zope.component import getUtility

from mailman_estate import organisation
from mailman_estate.member_domains import Rule, RuleFileError
from mailman_estate.roster_rows import Refusal, Request, Row

log = logging.getLogger("mailman.subscribe")


def read_roster(mlist: Any, role: MemberRole | None = None) -> list[dict[str, Any]]:
    """All memberships of a list (of one role), as the README describes them, sorted by address and role."""
    own, preferred = aliased(Address), aliased(Address)
    subscriber, owner = aliased(User), aliased(User)
    of_member, of_address, of_user = aliased(Preferences), aliased(Preferences), aliased(Preferences)
    email = func.coalesce(own.email, preferred.email)
    statement = (
        select(
            Member._member_id,
            email,
            own.id,
            own.display_name,
            subscriber.display_name,
            owner.display_name,
            func.coalesce(own._verified_on, preferred._verified_on),
            Member.role,
            Member.moderation_action,
            *(
                getattr(preferences, attribute)
                for attribute in ("delivery_mode", "delivery_status")
                for preferences in (of_member, of_address, of_user)
            ),
        )
        .select_from(Member)
        .outerjoin(own, own.id == Member.address_id)
        .outerjoin(subscriber, subscriber.id == Member.user_id)
        .outerjoin(preferred, preferred.id == subscriber._preferred_address_id)
        .outerjoin(owner, owner.id == func.coalesce(own.user_id, preferred.user_id))
        .outerjoin(of_member, of_member.id == Member.preferences_id)
        .outerjoin(of_address, of_address.id == func.coalesce(own.preferences_id, preferred.preferences_id))
        .outerjoin(of_user, of_user.id == owner.preferences_id)
        .where(Member.list_id == mlist.list_id)
    )
    if role is not None:
        statement = statement.where(Member.role == role)
    entries = []
    for row in config.db.store.execute(statement):
        member_id, address, as_address, name, subscriber_name, owner_name, verified, as_role, action, *rest = row
        mode = next((value for value in rest[:3] if value is not None), system_preferences.delivery_mode)
        status = next((value for value in rest[3:] if value is not None), system_preferences.delivery_status)
        entries.append({
            "member_id": member_id.hex,
            "email": address,
            "display_name": (name if as_address is not None else subscriber_name) or owner_name or "",
            "role": as_role.name,
            "delivery_mode": mode.name,
            "delivery_status": status.name,
            "moderation_action": None if action is None else action.name,
            "subscription_mode": "as_user" if as_address is None else "as_address",
            "verified": verified is not None,
        })  # fmt: skip
    entries.sort(key=lambda entry: (entry["email"] or "", entry["role"]))
    return entries


def members_outside(mlist: Any, rule: Rule) -> list[str]:
    """The members (role member) whose addresses a rule would refuse, sorted."""
    subscriber, preferred = aliased(User), aliased(Address)
    statement = (
        select(func.coalesce(Address.email, preferred.email))
        .select_from(Member)
        .outerjoin(Address, Address.id == Member.address_id)
        .outerjoin(subscriber, subscriber.id == Member.user_id)
        .outerjoin(preferred, preferred.id == subscriber._preferred_address_id)
        .where(Member.list_id == mlist.list_id, Member.role == MemberRole.member)
    )
    emails = config.db.store.execute(statement).scalars()
    return sorted({email for email in emails if email and not rule.allows(email)})


def apply_request(mlist: Any, request: Request) -> dict[str, Any]:
    """Apply a request in the transaction at hand and flush it; the caller commits. The answer is that of the README."""
    return _Change(mlist, request).run()


class _Bans:
    """The bans that concern a list, loaded once; the same answer as `IBanManager.is_banned`."""

    def __init__(self, list_id: str) -> None:
        statement = select(Ban.email).where(or_(Ban.list_id == list_id, Ban.list_id.is_(None)))
        emails = set(config.db.store.execute(statement).scalars())
        self._exact = emails
        self._patterns = [re.compile(email, re.IGNORECASE) for email in emails if email.startswith("^")]

    def hit(self, email: str) -> bool:
        """Is an address (lower case) banned?"""
        return email in self._exact or any(pattern.match(email) for pattern in self._patterns)


class _UidPool:
    """Identifiers made and recorded together, handed out like those of Mailman's factory."""

    def __init__(self, count: int) -> None:
        store = config.db.store
        wanted = {uuid.uuid4() for _ in range(count)}
        while taken := set(store.execute(select(UID.uid).where(UID.uid.in_(wanted))).scalars()) if wanted else None:
            wanted = wanted - taken | {uuid.uuid4() for _ in taken}
        if wanted:
            store.execute(insert(UID.__table__), [{"uid": uid} for uid in wanted])
        self._free = iter(wanted)

    def new(self) -> uuid.UUID:
        """The next one."""
        return next(self._free)


@contextlib.contextmanager
def _uids(count: int) -> Iterator[None]:
    """Let new users and members take their identifiers from a pool. One request at a time in a process."""
    pool = _UidPool(count)
    factories = member_module.uid_factory, user_module.uid_factory
    member_module.uid_factory = user_module.uid_factory = pool
    try:
        yield
    finally:
        member_module.uid_factory, user_module.uid_factory = factories


class _Change:
    """One request on one list."""

    def __init__(self, mlist: Any, request: Request) -> None:
        self._mlist, self._request = mlist, request
        self._store = config.db.store
        self._refused: list[Refusal] = list(request.refused)
        self._counts: Counter[str] = Counter()
        self._addresses: dict[str, Any] = {}
        self._members: dict[tuple[str, str], Any] = {}
        self._welcome: list[Any] = []

    def run(self) -> dict[str, Any]:
        if self._request.rows:
            self._lock()
            self._load({row.email.lower() for row in self._request.rows})
            for row in self._of("remove"):
                self._remove(row)
            for row in self._of("change"):
                self._change(row)
            self._store.flush()
            self._add_all([row for row in self._of("add") if self._may_add(row)])
        for member in self._welcome:
            send_welcome_message(self._mlist, member, member.preferred_language)
        counts = {name: self._counts[name] for name in ("added", "changed", "removed", "unchanged")}
        if self._request.rows:
            log.info("%s: many members at once: %s, %d refused", self._mlist.fqdn_listname, counts, len(self._refused))
        refused = sorted(self._refused, key=lambda refusal: (refusal.list, refusal.row))
        return counts | {"refused": [refusal.as_dict() for refusal in refused]}

    def _of(self, name: str) -> Iterable[Row]:
        return [row for row in self._request.rows if row.list == name]

    def _refuse(self, row: Row, code: str, reason: str) -> None:
        self._refused.append(row.refused(code, reason))

    def _lock(self) -> None:
        """Let bulk changes wait for each other, also those of different lists.

        No constraint of the database forbids double members, and two lists may bring the same new addresses.
        """
        if self._store.get_bind().dialect.name == "postgresql":
            self._store.execute(text("SELECT pg_advisory_xact_lock(hashtext('mailman_estate roster'))"))

    def _load(self, emails: set[str]) -> None:
        """Everything the rows are about: addresses with their users, and the memberships in this list."""
        store = self._store
        found = store.execute(
            select(Address).where(Address.email.in_(emails)).options(joinedload(Address.user))
        ).scalars()
        self._addresses = {address.email: address for address in found}
        here = select(Member).where(Member.list_id == self._mlist.list_id).options(joinedload(Member.preferences))
        by_address = here.join(Member._address).where(Address.email.in_(emails)).add_columns(Address.email)
        by_user = (here.join(Member._user).join(User._preferred_address).where(Address.email.in_(emails))).add_columns(
            Address.email
        )
        # where an address is a member twice, the explicit membership is the one meant (as in Mailman's rosters)
        for statement in (by_user, by_address):
            for member, email in store.execute(statement):
                member._mailing_list = self._mlist
                self._members[email, member.role.name] = member

    def _remove(self, row: Row) -> None:
        member = self._members.pop(row.key, None)
        if member is None:
            self._refuse(row, "not_a_member", f"{row.email} is no {row.role} of the list.")
            return
        member.unsubscribe()
        self._counts["removed"] += 1

    def _change(self, row: Row) -> None:
        member = self._members.get(row.key)
        if member is None:
            self._refuse(row, "not_a_member", f"{row.email} is no {row.role} of the list.")
            return
        before = self._state(member)
        self._set(member, row)
        self._counts["changed" if self._state(member) != before else "unchanged"] += 1

    @staticmethod
    def _state(member: Any) -> tuple[Any, ...]:
        return member.display_name, member.delivery_mode, member.delivery_status, member.moderation_action

    @staticmethod
    def _set(member: Any, row: Row) -> None:
        """Set what a row names, where it differs from what holds."""
        values = row.values
        if (name := values.get("display_name")) and member.display_name != name:
            member.subscriber.display_name = name
            if member.user is not None and not member.user.display_name:
                member.user.display_name = name
        if "delivery_mode" in values and member.delivery_mode.name != values["delivery_mode"]:
            member.preferences.delivery_mode = DeliveryMode[values["delivery_mode"]]
        if "delivery_status" in values and member.delivery_status.name != values["delivery_status"]:
            member.preferences.delivery_status = DeliveryStatus[values["delivery_status"]]
        if "moderation_action" in values:
            action = values["moderation_action"]
            member.moderation_action = None if action is None else Action[action]

    # ------------------------------------------------------------------------------------------------------------ add

    def _may_add(self, row: Row) -> bool:
        """Check a row as Mailman does: valid, not the list itself, not banned, no member yet; and by the rule."""
        email, role = row.key
        if not hasattr(self, "_bans"):
            self._bans = _Bans(self._mlist.list_id)
            self._validator = getUtility(IEmailValidator)
            try:
                self._rule, self._rule_error = organisation.rule_for(self._mlist), ""
            except RuleFileError:
                log.exception("%s: the rule about members' addresses cannot be read", self._mlist.list_id)
                self._rule, self._rule_error = None, organisation.unreadable(self._mlist)
        if not self._validator.is_valid(row.email):
            self._refuse(row, "invalid_address", f"{row.email} is no mail address.")
        elif email == self._mlist.posting_address and role != "nonmember":
            self._refuse(row, "list_address", "The list's own address cannot be its member.")
        elif row.key in self._members:
            self._refuse(row, "already_member", f"{row.email} is a {role} of the list already.")
        elif self._bans.hit(email):
            self._refuse(row, "banned", f"{row.email} is banned from the list.")
        elif role == "member" and self._rule_error:
            self._refuse(row, "organisation_rule", self._rule_error)
        elif role == "member" and self._rule is not None and not self._rule.allows(email):
            language = self._mlist.preferred_language.code
            reason = self._rule.refusal(row.email, self._mlist.posting_address, language)
            self._refuse(row, "organisation_rule", reason)
        else:
            return True
        return False

    def _add_all(self, rows: list[Row]) -> None:
        emails = {row.email.lower() for row in rows}
        without_user = sum(
            email not in self._addresses or self._addresses[email].user is None for email in emails
        )  # fmt: skip
        with _uids(len(rows) + without_user), self._store.no_autoflush:
            members = [self._add(row) for row in rows]
        self._store.flush()
        for member in members:
            happened = SubscriptionEvent(self._mlist, member, send_welcome_message=self._request.welcome)
            for subscriber in list(event.subscribers):
                if subscriber is not handle_SubscriptionEvent:
                    subscriber(happened)
            if self._request.welcome and member.role is MemberRole.member:
                self._welcome.append(member)
        self._counts["added"] += len(members)

    def _add(self, row: Row) -> Any:
        email, role = row.key
        name = row.values.get("display_name", "")
        address = self._addresses.get(email)
        if address is None:
            address = Address(row.email, name)
            address.preferences = Preferences()
            self._store.add(address)
            self._addresses[email] = address
        if address.user is None:
            User(name or address.display_name, Preferences()).link(address)
        if self._request.pre_verified and address.verified_on is None:
            address.verified_on = now()
        if role == "member" and (nonmember := self._members.pop((email, "nonmember"), None)) is not None:
            nonmember.unsubscribe()
        member = Member(MemberRole[role], self._mlist.list_id, address)
        member._mailing_list = self._mlist
        member.preferences = Preferences()
        self._store.add(member)
        self._members[row.key] = member
        self._set(member, row)
        return member
