"""Cross-checks of the mailing lists' data: a list of plain sentences, empty when all is valid.

Each sentence names the list, the field, its value and what is allowed, for example::

    estate_lists['dev@ml.example.org'].profile is "discusion": no such profile; did you mean "discussion"?; known: …

No input raises: a part of the wrong type is reported and not looked into.  docs/lists.md explains the fields;
:mod:`mailman_attributes` knows what Mailman accepts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from estate_checks import _names, _plain, _show, _suggestion
from estate_names import address_fault, domain_name_fault
from mailman_attributes import (
    DELIVERY_MODES,
    FIELDS,
    HEADER_MATCH_FIELDS,
    LANGUAGES,
    MEMBER_FIELDS,
    SHARED_FIELDS,
    SUB_ADDRESSES,
    TEMPLATE_NAMES,
    TEMPLATES,
    list_name_fault,
    merge,
    pattern_fault,
    setting_fault,
    template_name,
)
from mailman_attributes import (
    address_fault as member_fault,
)

_PROFILES = Path(__file__).resolve().parents[2] / "roles/mailman/vars/lists.yml"
_HEADER = re.compile(r"[!-9;-~]+")
_PLACEHOLDER = re.compile(r"\$(?!\$|[A-Za-z_]|\{[A-Za-z_]\w*\})")
HEADER_ACTIONS = ("hold", "reject", "discard", "accept")
MAILMAN_OWN = ("noreply", "postmaster", "mailman", "mailman-loop", "abuse")


@functools.cache
def built_in() -> tuple[dict[str, Any], dict[str, Any]]:
    """The base and the profiles that the role mailman brings along."""
    content = yaml.safe_load(_PROFILES.read_text(encoding="utf-8"))
    return content["__mailman_list_base"], content["__mailman_list_profiles"]


def problems(lists: Any, model: Any, base: Any = None, profiles: Any = None) -> list[str]:
    """Everything that is wrong with the mailing lists of a site.

    :param lists: ``estate_lists``, definitions by the lists' addresses.
    :param model: ``estate_model``; what is wrong with it, :func:`estate_checks.problems` says.
    :param base: ``estate_list_base``, what the site puts over the role's base.
    :param profiles: ``estate_list_profiles``, the site's profiles besides the role's.
    """
    return _Checker(_plain(lists), _plain(model), _plain(base), _plain(profiles)).run()


class _Checker:
    """One pass over the lists of one site; collects sentences."""

    def __init__(self, lists: Any, model: Any, base: Any, profiles: Any) -> None:
        self.found: list[str] = []
        model = model if isinstance(model, dict) else {}
        self.domains = model["domains"] if isinstance(model.get("domains"), dict) else {}
        self.forwards = model["forwards"] if isinstance(model.get("forwards"), dict) else {}
        self.given, self.given_base, self.given_profiles = lists, base or {}, profiles or {}
        self.lists: dict[Any, Any] = lists if isinstance(lists, dict) else {}
        own_base, own_profiles = built_in()
        self.profiles: dict[str, Any] = own_profiles | (self.given_profiles if isinstance(profiles, dict) else {})
        self.base = own_base
        #: Layers with a fault, which are not put together with others.
        self.faulty: set[Any] = set()

    def say(self, path: str, value: Any, text: str) -> None:
        """One problem: where, what is there, what should be."""
        self.found.append(f"{path} is {_show(value)}: {text}")

    def run(self) -> list[str]:
        """All checks, in the order of the data."""
        if not isinstance(self.given, dict):
            self.say("estate_lists", self.given, "must be a mapping: the address of a list to what it is like")
        if not isinstance(self.given_base, dict):
            self.say("estate_list_base", self.given_base, "must be a mapping of fields that lists share")
        else:
            self.shared("estate_list_base", self.given_base)
            if not self.found:
                self.base = merge(self.base, {}, self.given_base)
        if not isinstance(self.given_profiles, dict):
            self.say(
                "estate_list_profiles", self.given_profiles, "must be a mapping: name to the fields of the profile"
            )
        else:
            for name, profile in self.given_profiles.items():
                before = len(self.found)
                self.shared(f"estate_list_profiles['{name}']", profile)
                if len(self.found) > before:
                    self.faulty.add(name)
        spelt: dict[str, str] = {}
        for address, definition in self.lists.items():
            path = f"estate_lists['{address}']"
            self.address(path, address)
            if isinstance(address, str) and spelt.setdefault(address.lower(), address) != address:
                self.say(path, address, f"is the same list as {spelt[address.lower()]}")
            self.definition(path, address, definition)
        return list(dict.fromkeys(self.found))

    def shared(self, path: str, layer: Any) -> None:
        """A base or a profile."""
        if not isinstance(layer, dict):
            self.say(path, layer, f"must be a mapping with fields such as {', '.join(SHARED_FIELDS[:4])}")
            return
        self.fields(path, layer, SHARED_FIELDS)

    # -- the name -----------------------------------------------------------------------------------------------

    def address(self, path: str, address: Any) -> None:
        """The list's address: well-formed, in a domain of lists, and nobody else's."""
        fault = list_name_fault(address)
        if fault:
            self.say(path, address, fault)
            return
        name, _, domain = address.partition("@")
        carriers = [
            key for key, value in self.domains.items() if isinstance(value, dict) and value.get("lists") is True
        ]
        if domain not in carriers:
            self.say(
                path,
                address,
                f"{domain} has no lists: true in estate_domains{_suggestion(domain, carriers)};"
                f" domains of lists: {_names(carriers)}",
            )
            return
        for sub in SUB_ADDRESSES:
            if not name.endswith(f"-{sub}") or name == f"-{sub}":
                continue
            other = f"{name.removesuffix(f'-{sub}')}@{domain}"
            if other in self.lists:
                self.say(path, address, f"is the address {sub} of the list {other}")
            else:
                self.say(path, address, f"ends in -{sub}, which is an address of Mailman's own in every list")
        if name in MAILMAN_OWN:
            self.say(path, address, f"{name} is an address of the list host itself (RFC 2142)")
        for what in [address, *(f"{name}-{sub}@{domain}" for sub in SUB_ADDRESSES)]:
            if what in self.forwards:
                self.say(path, address, f"{what} is forwarded in estate_forwards; mail would never reach the list")
        receive = self.domains[domain].get("receive")
        recipients = receive.get("recipients") if isinstance(receive, dict) else None
        if isinstance(recipients, list):
            if name in recipients:
                self.say(path, address, f"is a recipient in estate_domains['{domain}'].receive.recipients as well")
            else:
                self.say(
                    path,
                    address,
                    f"the gateways would refuse it: estate_domains['{domain}'].receive.recipients is a list without it;"
                    " write verify",
                )

    # -- the fields ---------------------------------------------------------------------------------------------

    def definition(self, path: str, address: Any, definition: Any) -> None:
        """One list, and then what its layers come to."""
        if not isinstance(definition, dict):
            self.say(path, definition, f"must be a mapping with fields such as {', '.join(list(FIELDS)[:6])}")
            return
        before = len(self.found)
        self.fields(path, definition, tuple(FIELDS))
        state = definition.get("state", "present")
        if state not in ("present", "absent"):
            self.say(f"{path}.state", state, f"allowed: present, absent{_suggestion(state, ('present', 'absent'))}")
        if state == "absent":
            for name in definition:
                if name not in ("state", "description"):
                    self.say(f"{path}.{name}", definition[name], "the list is to be removed; remove this, too")
            return
        profile = definition.get("profile")
        if profile is None:
            self.say(f"{path}.profile", profile, f"every list needs a profile; known: {_names(self.profiles)}")
        elif not isinstance(profile, str) or profile not in self.profiles:
            self.say(
                f"{path}.profile",
                profile,
                f"no such profile{_suggestion(profile, self.profiles)}; known: {_names(self.profiles)}",
            )
        elif len(self.found) == before and profile not in self.faulty:
            self.whole(path, address, merge(self.base, self.profiles[profile], definition))

    def fields(self, path: str, layer: Mapping[Any, Any], allowed: tuple[str, ...]) -> None:
        """The fields of one layer, each by itself."""
        checks = {
            "description": self.line,
            "display_name": self.line,
            "member_sentence": self.text,
            "language": self.language,
            "owners": self.own_addresses,
            "moderators": self.own_addresses,
            "posters": self.posters,
            "members": self.members,
            "member_domains": self.member_domains,
            "bans": self.patterns,
            "header_matches": self.header_matches,
            "aliases": self.patterns,
            "archivers": self.archivers,
            "one_click": self.boolean,
            "settings": self.settings,
            "initial": self.settings,
            "templates": self.templates,
        }
        for name, value in layer.items():
            where = f"{path}.{name}"
            if name not in allowed:
                self.say(where, value, self.unknown_field(name, allowed))
            elif name in checks:
                if value is None:
                    self.say(where, value, f"must be {FIELDS[name]}; leave the field out to say nothing")
                else:
                    checks[name](where, value)

    @staticmethod
    def unknown_field(name: Any, allowed: tuple[str, ...]) -> str:
        if name in FIELDS:
            return "only a list itself has this field"
        if setting_fault(name, None) is None or "no such attribute" not in str(setting_fault(name, None)):
            return "this is an attribute of Mailman; write it below settings"
        return f"there is no such field{_suggestion(name, allowed)}; allowed: {', '.join(allowed)}"

    def boolean(self, path: str, value: Any) -> None:
        if not isinstance(value, bool):
            self.say(path, value, "must be true or false")

    def text(self, path: str, value: Any) -> None:
        if not isinstance(value, str):
            self.say(path, value, "must be text; put it in quotes")

    def line(self, path: str, value: Any) -> None:
        if not isinstance(value, str) or not value.strip() or re.search(r"[\x00-\x1f\x7f]", value):
            self.say(path, value, "must be one line of text")
        elif value != value.strip():
            self.say(path, value, "begins or ends with a space")

    def language(self, path: str, value: Any) -> None:
        if value not in LANGUAGES:
            self.say(path, value, f"Mailman has no such language{_suggestion(value, LANGUAGES)}; for example en or ja")

    def list_of(self, path: str, value: Any, what: str) -> list[Any]:
        """The elements of a list; reports another type and elements named twice."""
        if not isinstance(value, list):
            self.say(path, value, f"must be a list of {what}")
            return []
        seen: set[str] = set()
        for item in value:
            # Mailman compares addresses without regard to case, but not regular expressions.
            key = item.lower() if isinstance(item, str) and not item.startswith("^") else _show(item)
            if key in seen:
                self.say(path, value, f"names {_show(item)} twice")
            seen.add(key)
        return value

    def own_addresses(self, path: str, value: Any) -> None:
        """Owners and moderators: mail to them must not come back to the list."""
        for address in self.list_of(path, value, "addresses"):
            fault = address_fault(address)
            if fault:
                self.say(path, address, fault)
            elif address in self.lists:
                self.say(path, address, "is a list itself; name people, or notices to them go round in circles")
            else:
                self.reachable(path, address)

    def reachable(self, path: str, address: str) -> None:
        """An address in a domain of ours must be one that mail reaches."""
        local, _, domain = address.rpartition("@")
        fields = self.domains.get(domain)
        if not isinstance(fields, dict) or address in self.forwards:
            return
        receive = fields.get("receive")
        if not isinstance(receive, dict):
            self.say(path, address, f"{domain} receives no mail in estate_domains")
        elif isinstance(receive.get("recipients"), list) and local not in receive["recipients"]:
            self.say(path, address, f"no such recipient in estate_domains['{domain}'].receive.recipients")

    def patterns(self, path: str, value: Any) -> None:
        for item in self.list_of(path, value, "addresses and regular expressions"):
            fault = pattern_fault(item)
            if fault:
                self.say(path, item, fault)

    def posters(self, path: str, value: Any) -> None:
        for item in self.list_of(path, value, "addresses and regular expressions, and the word owners"):
            fault = None if item == "owners" else pattern_fault(item)
            if fault:
                self.say(path, item, fault)

    def members(self, path: str, value: Any) -> None:
        """Members named in the data: those whom nobody has to ask."""
        seen: set[str] = set()
        for item in self.list_of(path, value, "addresses, or of mappings with address, name and delivery"):
            fields = {"address": item} if isinstance(item, str) else item
            if not isinstance(fields, dict):
                self.say(path, item, "must be an address or a mapping with address, name and delivery")
                continue
            for name in fields:
                if name not in MEMBER_FIELDS:
                    self.say(
                        path, item, f"{name}: allowed are {', '.join(MEMBER_FIELDS)}{_suggestion(name, MEMBER_FIELDS)}"
                    )
            address, mode = fields.get("address"), fields.get("delivery", "regular")
            fault = member_fault(address)
            if fault:
                self.say(path, item, fault)
            elif address.lower() in seen:
                self.say(path, item, "is named twice")
            else:
                seen.add(address.lower())
            if mode not in DELIVERY_MODES:
                self.say(path, item, f"delivery: {', '.join(DELIVERY_MODES)}{_suggestion(mode, DELIVERY_MODES)}")

    def member_domains(self, path: str, value: Any) -> None:
        for item in self.list_of(path, value, "domain names"):
            if isinstance(item, str) and ("@" in item or "*" in item or item.startswith("^")):
                self.say(path, item, "write the domain alone; a dot before it counts subdomains in (.example.org)")
                continue
            fault = domain_name_fault(item.removeprefix(".") if isinstance(item, str) else item)
            if fault:
                self.say(path, item, fault)

    def header_matches(self, path: str, value: Any) -> None:
        for rule in self.list_of(path, value, "mappings with header, pattern and action"):
            if not isinstance(rule, dict) or not {"header", "pattern"} <= set(rule):
                self.say(path, rule, "must be a mapping with header, pattern and action")
                continue
            for name in rule:
                if name not in HEADER_MATCH_FIELDS:
                    self.say(path, rule, f"{name}: allowed are {', '.join(HEADER_MATCH_FIELDS)}")
            header, pattern, action = rule["header"], rule["pattern"], rule.get("action")
            if not isinstance(header, str) or not _HEADER.fullmatch(header):
                self.say(f"{path}.header", header, "must be the name of a header field, without the colon")
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                self.say(f"{path}.pattern", pattern, f"the regular expression is wrong: {error}")
            if action is not None and action not in HEADER_ACTIONS:
                self.say(
                    f"{path}.action",
                    action,
                    f"accepted: {', '.join(HEADER_ACTIONS)}{_suggestion(action, HEADER_ACTIONS)}",
                )

    def archivers(self, path: str, value: Any) -> None:
        if not isinstance(value, dict):
            self.say(path, value, f"must be {FIELDS['archivers']}")
            return
        for name, on in value.items():
            if name not in ("hyperkitty", "mhonarc", "mail-archive", "prototype"):
                self.say(f"{path}.{name}", on, "Mailman has no such archiver; the estate has hyperkitty")
            self.boolean(f"{path}.{name}", on)

    def settings(self, path: str, value: Any) -> None:
        if not isinstance(value, dict):
            self.say(path, value, "must be a mapping of Mailman's attributes")
            return
        for name, item in value.items():
            fault = setting_fault(name, item)
            if fault:
                self.say(f"{path}.{name}", item, fault)

    def templates(self, path: str, value: Any) -> None:
        if not isinstance(value, dict):
            self.say(path, value, f"must be {FIELDS['templates']}")
            return
        for name, item in value.items():
            where = f"{path}.{name}"
            if template_name(str(name)) not in TEMPLATE_NAMES:
                self.say(
                    where, item, f"there is no such template{_suggestion(name, TEMPLATES)}; known: {_names(TEMPLATES)}"
                )
                continue
            texts = item if isinstance(item, dict) else {"": item}
            for code, text in texts.items():
                if code and code not in LANGUAGES:
                    self.say(where, code, f"Mailman has no such language{_suggestion(code, LANGUAGES)}")
                if not isinstance(text, str):
                    self.say(where, text, "must be text, or a text for each language (en: …, ja: …)")
                elif match := _PLACEHOLDER.search(text):
                    start = match.start()
                    self.say(where, text[start : start + 20], "a $ that begins no placeholder; write $$ for the sign")

    # -- the whole ----------------------------------------------------------------------------------------------

    def whole(self, path: str, address: Any, merged: Mapping[str, Any]) -> None:
        """Contradictions that appear only when base, profile and list are put together."""
        settings = {**(merged.get("initial") or {}), **(merged.get("settings") or {})}
        if not merged.get("owners"):
            self.say(f"{path}.owners", merged.get("owners"), "a list needs an owner, whom its notices go to")
        if not merged.get("description"):
            self.say(f"{path}.description", merged.get("description"), "say in one line what the list is for")
        fixed = merged.get("settings") or {}
        if "personalize" in fixed and merged.get("one_click") is True and fixed["personalize"] == "none":
            self.say(
                f"{path}.settings.personalize",
                "none",
                "one-click needs a copy for each member; write one_click: false, or leave this out",
            )
        explicit = str(settings.get("reply_goes_to_list", "")).startswith("explicit_header")
        if explicit and not settings.get("reply_to_address"):
            self.say(
                f"{path}.settings.reply_goes_to_list",
                settings["reply_goes_to_list"],
                "needs reply_to_address, the address that replies go to",
            )
        if merged.get("member_sentence") and not merged.get("member_domains"):
            self.say(f"{path}.member_sentence", merged["member_sentence"], "is never read without member_domains")
        self.held_for_nobody(path, merged, settings)
        self.transparent(path, merged, settings)
        language = merged.get("language", "en")
        for name, item in (merged.get("templates") or {}).items():
            if isinstance(item, dict) and language not in item:
                self.say(f"{path}.templates.{name}", sorted(item), f"has no text in the list's language, {language}")
        for member in merged.get("members") or []:
            who = member if isinstance(member, str) else member.get("address")
            if who == address:
                self.say(f"{path}.members", who, "a list cannot be a member of itself")

    def held_for_nobody(self, path: str, merged: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        closed = settings.get("default_member_action") in ("reject", "discard")
        outside = settings.get("default_nonmember_action") in ("reject", "discard")
        if closed and outside and not merged.get("posters") and not settings.get("accept_these_nonmembers"):
            self.say(
                f"{path}.settings.default_member_action",
                settings["default_member_action"],
                "nobody could post: name posters, or hold posts for the moderators",
            )

    def transparent(self, path: str, merged: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """What breaks the author's DKIM signature on a list that promises to keep it."""
        if merged.get("profile") != "transparent" or "transparent" in self.given_profiles:
            return
        promises = {
            "posting_pipeline": ("estate-transparent-pipeline",),
            "subject_prefix": ("",),
            "filter_content": (False,),
            "convert_html_to_plaintext": (False,),
            "anonymous_list": (False,),
            "dmarc_mitigate_action": ("no_mitigation",),
            "reply_goes_to_list": ("no_munging",),
            "first_strip_reply_to": (False,),
            "personalize": ("none", "individual"),
        }
        for name, kept in promises.items():
            if name in settings and settings[name] not in kept:
                self.say(
                    f"{path}.settings.{name}",
                    settings[name],
                    f"changes what the author signed; profile transparent needs {' or '.join(map(_show, kept))}",
                )
        for name in ("header", "footer"):
            text = (merged.get("templates") or {}).get(name)
            texts: Iterable[Any] = text.values() if isinstance(text, dict) else [text]
            if any(isinstance(item, str) and item.strip() for item in texts):
                self.say(f"{path}.templates.{name}", text, "changes what the author signed; use the profile discussion")
