"""Members only with an address of the listed domains: the rule at every door by which an address becomes a member.

A ban with a negative look-ahead would also discard the posts of outsiders; this rule concerns memberships only (role
``member``), so that posts, owners, moderators and nonmembers stay as they are. The doors:

- ``SubscriptionManager.register`` and ``.confirm``: subscribing by mail, on the web, by REST, invitations and their
  confirmation, a moderator's approval – refused before anybody is asked to confirm anything;
- ``MailingList.subscribe``: what all of these and everything else (the command line, imports) end in;
- ``Member.address`` and ``User.preferred_address``: a member changes to another address;
- ``User.absorb``: a membership passes to another user, whose address may be an outside one.

Whoever is refused reads why: the error is a kind of `MembershipIsBannedError`, which Mailman's mail commands print and
its command line reports; the REST resources, which hide that error's text, are given it back here. If the rule itself
cannot be read, everybody is refused with a sentence that says so.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mailman.config import config
from mailman.interfaces.address import IAddress
from mailman.interfaces.listmanager import IListManager, ListDeletedEvent
from mailman.interfaces.member import MemberRole, MembershipIsBannedError
from mailman.interfaces.pending import IPendings
from mailman.interfaces.subscriptions import ISubscriptionManager
from zope import event
from zope.component import getUtility

from mailman_estate.member_domains import Rule, RuleFileError, RuleStore

log = logging.getLogger("mailman.subscribe")
elog = logging.getLogger("mailman.error")

UNREADABLE = (
    "Nobody can become a member of {list} at the moment, because the rule about its members cannot be read. "
    "Please write to {owner}."
)


class OrganisationRuleError(MembershipIsBannedError):
    """An address may not be a member because of its domain; the text is the sentence for its owner."""

    last: OrganisationRuleError | None = None
    """The last one of this process; the REST resources look it up (one request at a time in a process)."""

    def __init__(self, mlist: Any, address: str, sentence: str) -> None:
        super().__init__(mlist, address)
        self._sentence = sentence
        OrganisationRuleError.last = self

    def __str__(self) -> str:
        return self._sentence


def store() -> RuleStore:
    """The rules of this installation."""
    return RuleStore(Path(config.DATA_DIR) / "estate" / "member-domains")


def rule_for(mlist: Any) -> Rule | None:
    """The rule of a list, None if it has none. Raises RuleFileError."""
    return store().get(mlist.list_id)


def check(mlist: Any, email: str | None) -> None:
    """Raise `OrganisationRuleError` if this address may not be a member of the list."""
    if not email:
        return
    try:
        rule = rule_for(mlist)
        if rule is None or rule.allows(email):
            return
        sentence = rule.refusal(email, mlist.posting_address, mlist.preferred_language.code)
    except Exception:
        elog.exception("%s: the rule about members' addresses cannot be applied, %s is refused", mlist.list_id, email)
        sentence = unreadable(mlist)
    log.info("%s: %s refused, not an address of the organisation", mlist.fqdn_listname, email)
    raise OrganisationRuleError(mlist, email, sentence)


def unreadable(mlist: Any) -> str:
    """What to say where the rule cannot be read."""
    return UNREADABLE.format(list=mlist.posting_address, owner=mlist.owner_address)


def address_of(subscriber: Any) -> str | None:
    """The address by which a subscriber (address or user) would be a member."""
    if subscriber is None:
        return None
    if IAddress.providedBy(subscriber):
        return str(subscriber.email)
    preferred = subscriber.preferred_address
    return None if preferred is None else str(preferred.email)


def _check_user(user: Any, email: str | None) -> None:
    """Check a new address against all lists of which a user is a member by the preferred address."""
    from mailman.model.member import Member

    if user.id is None:
        return
    members = config.db.store.query(Member).filter_by(user_id=user.id, role=MemberRole.member)
    for list_id in {member.list_id for member in members}:
        mlist = getUtility(IListManager).get_by_list_id(list_id)
        if mlist is not None:
            check(mlist, email)


# ------------------------------------------------------------------------------------------------------------ the doors


def _around(owner: type, name: str, make: Callable[[Any], Any]) -> None:
    """Replace a method by ``make(stock method)``, however often this is called."""
    stock = getattr(owner.__dict__[name], "stock", owner.__dict__[name])
    method = functools.wraps(stock)(make(stock))
    method.stock = stock
    setattr(owner, name, method)


def _around_setter(owner: type, name: str, before: Callable[[Any, Any], None]) -> None:
    """Call ``before(object, value)`` ahead of a property's setter."""
    stock = owner.__dict__[name]
    setter = getattr(stock.fset, "stock", stock.fset)

    def checked(self: Any, value: Any) -> None:
        before(self, value)
        setter(self, value)

    checked.stock = setter  # type: ignore[attr-defined]
    setattr(owner, name, property(stock.fget, checked, stock.fdel, stock.__doc__))


def _register(stock: Any) -> Any:
    def register(self: Any, subscriber: Any = None, **arguments: Any) -> Any:
        check(self._mlist, address_of(subscriber))
        return stock(self, subscriber, **arguments)

    return register


def _confirm(stock: Any) -> Any:
    def confirm(self: Any, token: Any) -> Any:
        pendable = None if token is None else getUtility(IPendings).confirm(token, expunge=False)
        if pendable is not None and pendable.get("type") == "subscription":
            # refused: the request stays, for a moderator to reject it or the rule to change
            check(self._mlist, pendable.get("email"))
        return stock(self, token)

    return confirm


def _subscribe(stock: Any) -> Any:
    def subscribe(
        self: Any, subscriber: Any, role: Any = MemberRole.member, send_welcome_message: bool | None = None
    ) -> Any:
        if role is MemberRole.member:
            check(self, address_of(subscriber))
        return stock(self, subscriber, role, send_welcome_message)

    return subscribe


def _absorb(stock: Any) -> Any:
    def absorb(self: Any, user: Any) -> Any:
        if user is not self:
            _check_user(user, address_of(self))
        return stock(self, user)

    return absorb


def _new_member_address(member: Any, address: Any) -> None:
    if member.role is MemberRole.member:
        check(member.mailing_list, address.email)


def _answering(stock: Any) -> Any:
    """A REST responder that gives the sentence to whoever asked."""

    def responder(self: Any, request: Any, response: Any, **arguments: Any) -> Any:
        from mailman.rest.helpers import bad_request

        OrganisationRuleError.last = None
        try:
            result = stock(self, request, response, **arguments)
        except OrganisationRuleError as error:
            config.db.abort()
            bad_request(response, str(error))
            return None
        if OrganisationRuleError.last is not None and str(response.status).startswith("400"):
            bad_request(response, str(OrganisationRuleError.last))
        return result

    return responder


def _confirm_command(stock: Any) -> Any:
    def process(self: Any, mlist: Any, msg: Any, msgdata: Any, arguments: Any, results: Any) -> Any:
        OrganisationRuleError.last = None
        status = stock(self, mlist, msg, msgdata, arguments, results)
        if OrganisationRuleError.last is not None:
            # stock Mailman prints the reason, but keeps what came to LIST-confirm@ unanswered
            results.send_response = True
        return status

    return process


def _forget_rule(happened: object) -> None:
    if not isinstance(happened, ListDeletedEvent):
        return
    name, _, host = happened.fqdn_listname.partition("@")
    try:
        store().delete(f"{name}.{host}")
    except (OSError, RuleFileError):
        elog.exception("%s: the rule about members' addresses could not be deleted", happened.fqdn_listname)


def install(settings: Mapping[str, str] | None = None) -> None:
    """Guard every door. Once per process; a further call does no harm."""
    from mailman.app.subscriptions import SubscriptionManager
    from mailman.commands.eml_confirm import Confirm
    from mailman.model.mailinglist import MailingList
    from mailman.model.member import Member
    from mailman.model.user import User
    from mailman.rest.addresses import PreferredAddress, UserAddresses
    from mailman.rest.members import AllMembers, AMember
    from mailman.rest.sub_moderation import IndividualRequest

    assert ISubscriptionManager.implementedBy(SubscriptionManager)
    _around(SubscriptionManager, "register", _register)
    _around(SubscriptionManager, "confirm", _confirm)
    _around(MailingList, "subscribe", _subscribe)
    _around(User, "absorb", _absorb)
    _around_setter(Member, "address", _new_member_address)
    _around_setter(User, "preferred_address", lambda user, address: _check_user(user, address.email))
    _around(Confirm, "process", _confirm_command)
    for resource, responder in (
        (AllMembers, "on_post"),
        (AMember, "on_patch"),
        (IndividualRequest, "on_post"),
        (PreferredAddress, "on_post"),
        (UserAddresses, "on_post"),
    ):
        _around(resource, responder, _answering)
    if _forget_rule not in event.subscribers:
        event.subscribers.append(_forget_rule)
