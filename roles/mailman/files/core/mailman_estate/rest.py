"""The plugin's REST resources, below ``/<api>/plugins/estate/``; README.md describes them.

Mailman's own middleware has checked the credential before any responder here is called.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import falcon
from mailman.config import config
from mailman.interfaces.listmanager import IListManager
from mailman.interfaces.member import MemberRole
from mailman.rest.helpers import CONTENT_TYPE_JSON, NotFound, bad_request, child, conflict, no_content
from sqlalchemy.exc import IntegrityError
from zope.component import getUtility

from mailman_estate import organisation, roster
from mailman_estate.member_domains import RuleFileError, normal_rule
from mailman_estate.roster_rows import ROLES, read_request

MAX_BODY = 4 * 1024 * 1024

log = logging.getLogger("mailman.http")


def _answer(response: Any, body: dict[str, Any]) -> None:
    response.status = falcon.HTTP_200
    response.content_type = CONTENT_TYPE_JSON
    response.text = json.dumps(body, ensure_ascii=False)


def _failed(response: Any, sentence: str) -> None:
    """Undo what was begun, and say so. Mailman commits after a responder returns, whatever the status."""
    config.db.abort()
    response.status = falcon.HTTP_500
    response.content_type = CONTENT_TYPE_JSON
    response.text = json.dumps({"title": "500 Internal Server Error", "description": sentence}, ensure_ascii=False)


def _body(request: Any) -> Any:
    """The JSON of a request. Raises ValueError with a sentence."""
    if (request.content_length or 0) > MAX_BODY:
        raise ValueError(f"The request is larger than {MAX_BODY // 1024 // 1024} MB; send it in parts.")
    try:
        return json.loads(request.bounded_stream.read(MAX_BODY + 1) or b"null")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The request is no JSON: {error}") from error


class MemberDomains:
    """The organisation-address rule of one list."""

    def __init__(self, mlist: Any) -> None:
        self._mlist = mlist

    def on_get(self, request: Any, response: Any) -> None:
        """The rule, and who is a member in spite of it."""
        try:
            rule = organisation.rule_for(self._mlist)
        except RuleFileError as error:
            _failed(response, f"The rule cannot be read: {error}. PUT it again.")
            return
        if rule is None:
            _answer(response, {"domains": [], "sentence": None, "outside": []})
            return
        outside = roster.members_outside(self._mlist, rule)
        _answer(response, {"domains": rule.domains, "sentence": rule.sentence, "outside": outside})

    def on_put(self, request: Any, response: Any) -> None:
        """Set the rule."""
        try:
            body = _body(request)
            if not isinstance(body, dict) or not set(body) <= {"domains", "sentence"}:
                raise ValueError("The request must be a JSON object with domains and perhaps a sentence.")
            rule = normal_rule(body.get("domains"), body.get("sentence"))
        except ValueError as error:
            bad_request(response, str(error))
            return
        self._store(response, lambda: organisation.store().set(self._mlist.list_id, rule))

    def on_delete(self, request: Any, response: Any) -> None:
        """End the rule."""
        self._store(response, lambda: organisation.store().delete(self._mlist.list_id))

    def _store(self, response: Any, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, RuleFileError) as error:
            log.exception("%s: the rule about members' addresses could not be stored", self._mlist.list_id)
            _failed(response, f"The rule could not be stored: {error}")
            return
        no_content(response)


class Roster:
    """All memberships of one list."""

    def __init__(self, mlist: Any) -> None:
        self._mlist = mlist

    def on_get(self, request: Any, response: Any) -> None:
        """Everybody, or everybody in one role."""
        role = request.get_param("role")
        if role is not None and role not in ROLES:
            bad_request(response, f"role must be one of {', '.join(ROLES)}.")
            return
        entries = roster.read_roster(self._mlist, None if role is None else MemberRole[role])
        _answer(response, {"entries": entries, "total_size": len(entries)})

    def on_post(self, request: Any, response: Any) -> None:
        """Apply many changes at once, all or none of those that were not refused."""
        try:
            wanted = read_request(_body(request))
        except ValueError as error:
            bad_request(response, str(error))
            return
        try:
            result = roster.apply_request(self._mlist, wanted)
            config.db.commit()
        except IntegrityError:
            config.db.abort()
            conflict(response, "Somebody else changed the same members at the same time. Nothing was done; try again.")
            return
        except Exception:
            log.exception("%s: a change of many members failed", self._mlist.list_id)
            _failed(response, "The change failed and was undone as a whole; Mailman's log says why.")
            return
        _answer(response, result)


class Rules:
    """The organisation-address rules of all lists."""

    def on_get(self, request: Any, response: Any) -> None:
        """Every rule by list-id."""
        try:
            rules = organisation.store().all()
        except RuleFileError as error:
            _failed(response, f"The rules cannot be read: {error}.")
            return
        found = {
            list_id: {"domains": [], "sentence": None, "error": str(rule)}
            if isinstance(rule, RuleFileError)
            else {"domains": rule.domains, "sentence": rule.sentence}
            for list_id, rule in rules.items()
        }
        _answer(response, {"rules": found})


class AList:
    """What this plugin has for one list."""

    def __init__(self, mlist: Any) -> None:
        self._mlist = mlist

    @child("member-domains")
    def member_domains(self, context: Any, segments: list[str]) -> Any:
        """/plugins/estate/lists/<list-id>/member-domains"""
        return MemberDomains(self._mlist), segments

    @child()
    def roster(self, context: Any, segments: list[str]) -> Any:
        """/plugins/estate/lists/<list-id>/roster"""
        return Roster(self._mlist), segments


class Estate:
    """The root of this plugin's resources."""

    @child("member-domains")
    def member_domains(self, context: Any, segments: list[str]) -> Any:
        """/plugins/estate/member-domains"""
        return Rules(), segments

    @child()
    def lists(self, context: Any, segments: list[str]) -> Any:
        """/plugins/estate/lists/<list-id or posting address>/…"""
        if not segments:
            return NotFound(), []
        name = segments.pop(0)
        manager = getUtility(IListManager)
        mlist = manager.get(name) if "@" in name else manager.get_by_list_id(name)
        return (NotFound(), []) if mlist is None else (AList(mlist), segments)


resource = Estate()
