"""What a mailing list can be told as data: fields, Mailman's attributes with their values, templates, and the merge.

The table of attributes is that of Mailman 3.3.9 and 3.3.10 (``/3.1/lists/<list>/config`` of its REST interface).  It
serves twice: on the controller, where a mistake is told before any host is touched, and on the list host, where what is
wanted is compared with what is.  Nothing here knows Ansible or HTTP.

A definition has *fields* (profile, owners, settings, …).  :func:`merge` puts the site's base, the profile and the list
on top of each other; :func:`claims` says which attributes of Mailman the result lays claim to.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Where an address or a pattern is allowed in Mailman's lists of senders.
_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_PIPELINE = re.compile(r"[a-z][a-z0-9-]*")
_LIST_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_TIME = re.compile(r"(?=\d)(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_TIME_UNITS = (604800, 86400, 3600, 60, 1)

LANGUAGES = (
    *("ar", "ast", "bg", "ca", "cs", "da", "de", "el", "en", "es", "et", "eu", "fi", "fr", "gl", "he", "hr", "hu"),
    *("ia", "it", "ja", "ko", "lt", "nl", "no", "pl", "pt", "pt_BR", "ro", "ru", "sk", "sl", "sr", "sv", "tr", "uk"),
    *("vi", "zh_CN", "zh_TW"),
)
ACTIONS = ("hold", "reject", "discard", "accept", "defer")
SUBSCRIPTION = ("open", "confirm", "moderate", "confirm_then_moderate")
RESPONSES = ("none", "respond_and_discard", "respond_and_continue")
ROLES = ("member", "owner", "moderator", "nonmember")
DELIVERY_MODES = ("regular", "plaintext_digests", "mime_digests", "summary_digests")

#: Local-part endings that Mailman answers to for every list (RFC 2142 has -request).
SUB_ADDRESSES = ("bounces", "confirm", "join", "leave", "owner", "request", "subscribe", "unsubscribe")


def suggestion(value: Any, allowed: Iterable[Any]) -> str:
    """``; did you mean "…"?`` for the closest of ``allowed``, or nothing."""
    close = difflib.get_close_matches(str(value), sorted(map(str, allowed)), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def address_fault(address: Any) -> str | None:
    """Why ``address`` is no mail address that Mailman takes as a member's (letters of either case); None when it is."""
    if not isinstance(address, str) or not address:
        return "a mail address local@domain is needed"
    local, at, domain = address.rpartition("@")
    if not at or not local or not domain:
        return "a mail address local@domain is needed"
    if "@" in local:
        return "an address holds one @ only"
    if not address.isascii():
        return "write internationalised domains as A-labels (xn--…); other letters are not possible before the @"
    if not _LOCAL.fullmatch(local) or len(local) > 64:
        return "the part before @ is at most 64 letters, digits and !#$%&'*+/=?^_`{|}~-. without quotes or spaces"
    labels = domain.split(".")
    if len(labels) < 2 or len(domain) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return "after the @ a full domain name is needed"
    return None


def pattern_fault(value: Any, lists: bool = False) -> str | None:
    """Why ``value`` is neither an address nor a regular expression (which starts with ^); None when it is one.

    :param lists: ``@other-list@domain``, the members of another list, is allowed too.
    """
    if isinstance(value, str) and value.startswith("^"):
        try:
            re.compile(value)
        except re.error as error:
            return f"the regular expression is wrong: {error}"
        return None
    if lists and isinstance(value, str) and value.startswith("@"):
        fault = address_fault(value[1:])
        return f"after the first @ the address of a list is needed: {fault}" if fault else None
    fault = address_fault(value)
    return f"{fault}; a regular expression starts with ^" if fault else None


def seconds(value: Any) -> float | None:
    """A length of time as Mailman writes it (``7d``, ``1w``, ``1d43200.0s``) in seconds; None if it is none."""
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if not match:
        return None
    return sum(float(part or 0) * unit for part, unit in zip(match.groups(), _TIME_UNITS, strict=True))


@dataclass(frozen=True)
class Attribute:
    """One attribute of a list's configuration.

    ``kind`` is boolean, choice, count, number, line, text, time, strings, patterns, senders, language or pipeline.
    """

    kind: str
    choices: tuple[str, ...] = ()

    def fault(self, value: Any) -> str | None:
        """Why Mailman would not take ``value``, with the accepted values; None when it would."""
        return _FAULTS[self.kind](self, value)

    def normal(self, value: Any) -> Any:
        """``value`` in the one form in which two equal values compare equal."""
        if self.kind == "time":
            return seconds(value)
        if self.kind == "number":
            return float(value)
        if self.kind in ("strings", "patterns", "senders"):
            return sorted(value or [])
        return value

    def form(self, value: Any) -> Any:
        """``value`` as it is sent to Mailman: text, or a list of texts."""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, list | tuple):
            return list(value)
        return str(value)


def _no_boolean(attribute: Attribute, value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _no_choice(attribute: Attribute, value: Any) -> str | None:
    if isinstance(value, str) and value in attribute.choices:
        return None
    return f"accepted: {', '.join(attribute.choices)}{suggestion(value, attribute.choices)}"


def _no_count(attribute: Attribute, value: Any) -> str | None:
    return None if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else "must be 0 or more"


def _no_number(attribute: Attribute, value: Any) -> str | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
    return None if good else "must be a number, 0 or more"


def _no_text(attribute: Attribute, value: Any) -> str | None:
    if not isinstance(value, str):
        return "must be text; put it in quotes"
    return "holds a NUL character" if "\0" in value else None


def _no_line(attribute: Attribute, value: Any) -> str | None:
    fault = _no_text(attribute, value)
    return fault or ("must be a single line" if "\n" in value or "\r" in value else None)


def _no_time(attribute: Attribute, value: Any) -> str | None:
    return None if seconds(value) is not None else "must be a length of time such as 7d, 12h or 1w"


def _no_strings(attribute: Attribute, value: Any) -> str | None:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        return "must be a list of texts"
    return None


def _no_patterns(attribute: Attribute, value: Any) -> str | None:
    if not isinstance(value, list):
        return "must be a list of addresses and regular expressions"
    faults = ((item, pattern_fault(item, attribute.kind == "senders")) for item in value)
    return next((f"{item!r}: {fault}" for item, fault in faults if fault), None)


def _no_language(attribute: Attribute, value: Any) -> str | None:
    return None if value in LANGUAGES else f"accepted: {', '.join(LANGUAGES)}{suggestion(value, LANGUAGES)}"


def _no_pipeline(attribute: Attribute, value: Any) -> str | None:
    good = isinstance(value, str) and _PIPELINE.fullmatch(value)
    return None if good else "must be the name of a pipeline, such as default-posting-pipeline"


_FAULTS = {
    "boolean": _no_boolean,
    "choice": _no_choice,
    "count": _no_count,
    "number": _no_number,
    "line": _no_line,
    "text": _no_text,
    "time": _no_time,
    "strings": _no_strings,
    "patterns": _no_patterns,
    "senders": _no_patterns,
    "language": _no_language,
    "pipeline": _no_pipeline,
}


def _table() -> dict[str, Attribute]:
    kinds = {
        "boolean": """admin_immed_notify admin_notify_mchanges administrivia advertised allow_list_posts anonymous_list
            bounce_notify_owner_on_bounce_increment bounce_notify_owner_on_disable bounce_notify_owner_on_removal
            collapse_alternatives convert_html_to_plaintext digest_send_periodic digests_enabled
            dmarc_mitigate_unconditionally emergency filter_content first_strip_reply_to gateway_to_mail gateway_to_news
            include_rfc2369_headers nntp_prefix_subject_too process_bounces require_explicit_destination
            respond_to_post_requests send_goodbye_message send_welcome_message""",
        "count": """bounce_score_threshold bounce_you_are_disabled_warnings max_days_to_hold max_message_size
            max_num_recipients""",
        "number": "digest_size_threshold",
        "line": "description display_name linked_newsgroup reply_to_address subject_prefix",
        "text": """autoresponse_owner_text autoresponse_postings_text autoresponse_request_text dmarc_moderation_notice
            dmarc_wrapped_message_text info""",
        "time": "autoresponse_grace_period bounce_info_stale_after bounce_you_are_disabled_warnings_interval",
        "strings": "acceptable_aliases filter_extensions filter_types pass_extensions pass_types",
        "patterns": "discard_these_nonmembers dmarc_addresses hold_these_nonmembers reject_these_nonmembers",
        "senders": "accept_these_nonmembers",
        "language": "preferred_language",
        "pipeline": "posting_pipeline",
    }
    choices = {
        "archive_policy": ("public", "private", "never"),
        "archive_rendering_mode": ("text", "markdown"),
        "autorespond_owner": RESPONSES,
        "autorespond_postings": RESPONSES,
        "autorespond_requests": RESPONSES,
        "default_member_action": ACTIONS,
        "default_nonmember_action": ACTIONS,
        "digest_volume_frequency": ("yearly", "monthly", "quarterly", "weekly", "daily"),
        "dmarc_mitigate_action": ("no_mitigation", "munge_from", "wrap_message", "reject", "discard"),
        "filter_action": ("hold", "reject", "discard", "accept", "defer", "forward", "preserve"),
        "forward_unrecognized_bounces_to": ("discard", "administrators", "site_owner"),
        "member_roster_visibility": ("public", "members", "moderators"),
        "newsgroup_moderation": ("none", "open_moderated", "moderated"),
        "personalize": ("none", "individual", "full"),
        "reply_goes_to_list": ("no_munging", "point_to_list", "explicit_header", "explicit_header_only"),
        "subscription_policy": SUBSCRIPTION,
        "unsubscription_policy": SUBSCRIPTION,
    }
    found = {name: Attribute(kind) for kind, names in kinds.items() for name in names.split()}
    found |= {name: Attribute("choice", accepted) for name, accepted in choices.items()}
    return dict(sorted(found.items()))


#: Every attribute that can be set, by name.
ATTRIBUTES = _table()
#: What Mailman shows but nobody sets.
READ_ONLY = (
    *("bounces_address", "created_at", "digest_last_sent_at", "fqdn_listname", "join_address", "last_post_at"),
    *("leave_address", "list_name", "mail_host", "next_digest_number", "no_reply_address", "owner_address", "post_id"),
    *("posting_address", "request_address", "usenet_watermark", "volume"),
)
#: Attributes that have a field of their own in a definition.
FIELD_OF_ATTRIBUTE = {
    "acceptable_aliases": "aliases",
    "description": "description",
    "display_name": "display_name",
    "preferred_language": "language",
}


def setting_fault(name: Any, value: Any) -> str | None:
    """Why a setting cannot stand in a definition; None when it can."""
    if name in FIELD_OF_ATTRIBUTE:
        return f"write it as the list's field {FIELD_OF_ATTRIBUTE[name]}, not below settings"
    if name in READ_ONLY:
        return "Mailman sets this itself"
    if name == "moderator_password":
        return "a password is not kept as data; set it in the web interface"
    if name not in ATTRIBUTES:
        return f"Mailman has no such attribute{suggestion(name, ATTRIBUTES)}; docs/lists.md says where they are listed"
    return ATTRIBUTES[name].fault(value)


# --- templates --------------------------------------------------------------------------------------------------------

#: Mailman's templates for a list: the name in the data and the name in Mailman. The long names are allowed as well.
TEMPLATES = {
    "footer": "list:member:regular:footer",
    "header": "list:member:regular:header",
    "digest_footer": "list:member:digest:footer",
    "digest_header": "list:member:digest:header",
    "digest_masthead": "list:member:digest:masthead",
    "welcome": "list:user:notice:welcome",
    "goodbye": "list:user:notice:goodbye",
    "hold": "list:user:notice:hold",
    "rejected": "list:user:notice:rejected",
    "refuse": "list:user:notice:refuse",
    "post": "list:user:notice:post",
    "probe": "list:user:notice:probe",
    "warning": "list:user:notice:warning",
    "no_more_today": "list:user:notice:no-more-today",
    "invite": "list:user:action:invite",
    "subscribe": "list:user:action:subscribe",
    "unsubscribe": "list:user:action:unsubscribe",
    "admin_post": "list:admin:action:post",
    "admin_subscribe": "list:admin:action:subscribe",
    "admin_unsubscribe": "list:admin:action:unsubscribe",
    "admin_subscribed": "list:admin:notice:subscribe",
    "admin_unsubscribed": "list:admin:notice:unsubscribe",
    "admin_unrecognized": "list:admin:notice:unrecognized",
    "admin_disabled": "list:admin:notice:disable",
    "admin_increment": "list:admin:notice:increment",
    "admin_pending": "list:admin:notice:pending",
    "admin_removal": "list:admin:notice:removal",
}
TEMPLATE_NAMES = frozenset(TEMPLATES.values())


def template_name(name: str) -> str:
    """Mailman's name of a template given by its short or its long name."""
    return TEMPLATES.get(name, name)


def template_texts(value: Any, language: str) -> dict[str, str]:
    """Language → text of a template in a list whose language is ``language``.

    One text stands for every language in which Mailman would look it up for this list.
    """
    if isinstance(value, Mapping):
        return {str(code): str(text) for code, text in value.items()}
    return dict.fromkeys(dict.fromkeys((language, "en")), str(value))


# --- definitions ------------------------------------------------------------------------------------------------------

#: Fields of a definition and the type of each in words.
FIELDS = {
    "state": "present or absent",
    "profile": "the name of a profile",
    "description": "one line of text",
    "display_name": "one line of text",
    "language": "a language code such as en or ja",
    "owners": "a list of addresses",
    "moderators": "a list of addresses",
    "posters": "a list of addresses and regular expressions, or the word owners",
    "members": "a list of addresses, or of mappings with address, name and delivery",
    "member_domains": "a list of domain names, with a leading dot where subdomains count too",
    "member_sentence": "text",
    "bans": "a list of addresses and regular expressions",
    "header_matches": "a list of mappings with header, pattern and action",
    "aliases": "a list of addresses and regular expressions",
    "archivers": "a mapping of archiver to true or false",
    "one_click": "true or false",
    "settings": "a mapping of Mailman's attributes",
    "initial": "a mapping of Mailman's attributes",
    "templates": "a mapping of template to text, or to a text for each language",
}
#: Fields that a base and a profile can have, too.
SHARED_FIELDS = tuple(name for name in FIELDS if name not in ("state", "profile", "display_name", "description"))
#: Fields that are merged key by key; all others are replaced as a whole.
MERGED_FIELDS = ("settings", "initial", "templates", "archivers")
HEADER_MATCH_FIELDS = ("header", "pattern", "action", "tag")
MEMBER_FIELDS = ("address", "name", "delivery")


def merge(base: Mapping[str, Any], profile: Mapping[str, Any], definition: Mapping[str, Any]) -> dict[str, Any]:
    """One definition from the three layers: a later layer replaces a field of an earlier one.

    Only the mappings of MERGED_FIELDS are merged, key by key and no deeper; lists are replaced.
    """
    merged: dict[str, Any] = {}
    for layer in (base, profile, definition):
        for name, value in layer.items():
            if name in MERGED_FIELDS:
                merged[name] = {**(merged.get(name) or {}), **(value or {})}
            else:
                merged[name] = value
    return merged


@dataclass
class Claims:
    """What the data says about one list; None means that the data does not say."""

    address: str
    absent: bool = False
    #: Attribute → value that shall hold, and that a new list starts with.
    settings: dict[str, Any] = field(default_factory=dict)
    initial: dict[str, Any] = field(default_factory=dict)
    owners: list[str] | None = None
    moderators: list[str] | None = None
    posters: list[str] | None = None
    members: list[dict[str, str]] | None = None
    member_domains: list[str] | None = None
    member_sentence: str | None = None
    bans: list[str] | None = None
    header_matches: list[dict[str, str]] | None = None
    archivers: dict[str, bool] = field(default_factory=dict)
    #: Mailman's template name → text, or language → text.
    templates: dict[str, Any] = field(default_factory=dict)

    @property
    def list_id(self) -> str:
        """The name of the list in List-Id (RFC 2919) and in the REST interface."""
        return self.address.replace("@", ".", 1)


def _fill_in(value: Any, address: str, display_name: str) -> Any:
    """``{list_name}``, ``{display_name}``, ``{domain}`` in a setting that a profile shares among its lists."""
    if not isinstance(value, str):
        return value
    name, _, domain = address.partition("@")
    for token, text in (("{list_name}", name), ("{display_name}", display_name), ("{domain}", domain)):
        value = value.replace(token, text)
    return value


def claims(
    address: str, definition: Mapping[str, Any], base: Mapping[str, Any], profiles: Mapping[str, Mapping[str, Any]]
) -> Claims:
    """What the data claims of the list ``address``, all layers merged.

    :raises ValueError: when the profile does not exist.
    """
    profile = definition.get("profile")
    if profile is not None and profile not in profiles:
        raise ValueError(
            f"there is no profile {profile!r}{suggestion(profile, profiles)}; known: {', '.join(profiles)}"
        )
    merged = merge(base, profiles[profile] if profile else {}, definition)
    found = Claims(address=address, absent=merged.get("state") == "absent")
    if found.absent:
        return found
    display_name = merged.get("display_name") or address.partition("@")[0].capitalize()
    for part, given in (("settings", found.settings), ("initial", found.initial)):
        given.update({k: _fill_in(v, address, display_name) for k, v in (merged.get(part) or {}).items()})
    for attribute, name in FIELD_OF_ATTRIBUTE.items():
        if merged.get(name) is not None:
            found.settings[attribute] = merged[name]
    if merged.get("one_click") is not None and "personalize" not in found.settings:
        found.settings["personalize"] = "individual" if merged["one_click"] else "none"
    for name in ("owners", "moderators", "posters", "member_domains", "bans"):
        if merged.get(name) is not None:
            setattr(found, name, list(dict.fromkeys(merged[name])))
    if found.posters is not None:
        # Who may post although others are held: members by a mark at their membership, others by this attribute.
        expanded = [who for item in found.posters for who in (found.owners or [] if item == "owners" else [item])]
        found.posters = list(dict.fromkeys(expanded))
        more = found.settings.get("accept_these_nonmembers") or []
        found.settings["accept_these_nonmembers"] = list(dict.fromkeys([*more, *found.posters]))
    if merged.get("members") is not None:
        found.members = [
            {"address": item} if isinstance(item, str) else {k: str(v) for k, v in item.items()}
            for item in merged["members"]
        ]
    if merged.get("header_matches") is not None:
        found.header_matches = [
            {"header": str(rule["header"]).lower()} | {k: str(v) for k, v in rule.items() if k != "header" and v}
            for rule in merged["header_matches"]
        ]
    found.member_sentence = merged.get("member_sentence") or None
    found.archivers = dict(merged.get("archivers") or {})
    found.templates = {template_name(k): v for k, v in (merged.get("templates") or {}).items()}
    return found


def list_name_fault(address: Any) -> str | None:
    """Why ``address`` cannot be that of a list; None when it can."""
    if not isinstance(address, str) or address.count("@") != 1:
        return "the address of a list, name@domain, is needed"
    name = address.partition("@")[0]
    if name != name.lower():
        return f"write the names of lists in lower case: {address.lower()}"
    if not _LIST_NAME.fullmatch(name) or ".." in name or name.endswith(".") or len(name) > 50:
        return "a list's name is at most 50 of a-z, 0-9, dot, hyphen and underscore, and starts with a letter or digit"
    return address_fault(address)
