#!/usr/bin/python
"""Ansible module: Mailman's mailing lists as the data wants them, all in one call."""

from __future__ import annotations

import contextlib
import functools
import grp
import os
import pwd
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.mailman_attributes import (
    ATTRIBUTES,
    HEADER_MATCH_FIELDS,
    LANGUAGES,
    SUB_ADDRESSES,
    TEMPLATE_NAMES,
    Claims,
    claims,
    list_name_fault,
    setting_fault,
    template_texts,
)
from ansible.module_utils.mailman_rest import REST_ARGUMENTS, Client, RestError

DOCUMENTATION = r"""
module: mailman_lists
short_description: Create and configure Mailman's lists from data
description:
  - Merges every list's definition on its profile and on the base, asks Mailman's REST interface for what is, and
    changes only what differs. What the data does not claim is left as the owners set it in the web interface.
  - A list that the data does not name is left alone and reported. A list is removed only where its definition says
    C(state=absent); the archive of its posts is kept.
  - A fault of one list stops neither the others nor the task; see RV(problems).
options:
  lists:
    type: dict
    required: true
    description: Definitions by the address of the list; docs/lists.md says what they hold.
  base:
    type: dict
    default: {}
    description: What holds for every list where neither profile nor list says otherwise.
  profiles:
    type: dict
    default: {}
    description: Profiles by name.
  template_directory:
    type: path
    default: /var/lib/mailman3/templates
    description: Mailman's template_dir, where the texts of lists are written.
  template_owner:
    type: str
    default: list
    description: User and group to whom those files belong.
extends_documentation_fragment: mailman_rest
author: Trustworthy Email estate
"""

EXAMPLES = r"""
- name: Have the lists
  mailman_lists:
    lists:
      dev@ml.example.org: {profile: discussion, description: Developers, owners: [olga@example.org]}
    profiles:
      discussion: {settings: {dmarc_mitigate_action: munge_from}}
    password: "{{ mailman_rest_password }}"
  register: lists
"""

RETURN = r"""
created:
  description: Lists that were created.
  returned: always
  type: list
removed:
  description: Lists that were removed; the archive of their posts is kept.
  returned: always
  type: list
altered:
  description: What changed, list to names of attributes and fields.
  returned: always
  type: dict
archive_stale:
  description: Lists of which the archive has older data than Mailman, such as its policy; C(mailman_sync) heals it.
  returned: always
  type: list
unmanaged:
  description: Lists that Mailman has and the data does not name.
  returned: always
  type: list
problems:
  description: What could not be done, in plain sentences. The rest was done.
  returned: always
  type: list
"""

ESTATE = ("plugins", "estate")
#: What HyperKitty keeps a copy of.
ARCHIVE_COPIES = ("archive_policy", "description", "display_name", "subject_prefix", "owners", "moderators")


def shown(value: Any) -> str:
    """A value in a diff."""
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if not isinstance(value, str) or value else '""'


class TemplateFiles:
    """The files below Mailman's template_dir.

    The directory belongs to Mailman's user, who could put links there: each step down refuses to follow one.
    """

    def __init__(self, directory: str, owner: str) -> None:
        self.directory = directory
        self.owner = owner

    @contextlib.contextmanager
    def _below(self, names: tuple[str, ...], create: bool) -> Iterator[int]:
        """A handle on the directory ``names`` below template_dir."""
        handles = [os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)]
        try:
            for name in names:
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=handles[-1])
                        self._give(name, handles[-1], 0o755)
                handles.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handles[-1]))
            yield handles[-1]
        finally:
            for handle in reversed(handles):
                os.close(handle)

    def _give(self, name: str, directory: int, mode: int) -> None:
        """Make what was just created Mailman's, whatever the umask is."""
        os.chmod(name, mode, dir_fd=directory)
        if os.geteuid() == 0:
            ids = pwd.getpwnam(self.owner).pw_uid, grp.getgrnam(self.owner).gr_gid
            os.chown(name, *ids, dir_fd=directory, follow_symlinks=False)

    def read(self, list_id: str) -> dict[tuple[str, str], str]:
        """(language, template) → text of a list's own files."""
        found: dict[tuple[str, str], str] = {}
        with contextlib.suppress(FileNotFoundError), self._below(("lists", list_id), False) as here:
            for language in sorted(set(os.listdir(here)) & set(LANGUAGES)):
                with self._below(("lists", list_id, language), False) as there:
                    for file in os.listdir(there):
                        name = file.removesuffix(".txt")
                        if file.endswith(".txt") and name in TEMPLATE_NAMES:
                            handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=there)
                            with open(handle, encoding="utf-8", errors="replace") as stream:
                                found[language, name] = stream.read()
        return found

    def write(self, list_id: str, language: str, name: str, text: str | None) -> None:
        """Replace a file at one stroke, or remove it."""
        with self._below(("lists", list_id, language), text is not None) as there:
            if text is None:
                os.unlink(f"{name}.txt", dir_fd=there)
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f".{name}.new", dir_fd=there)
            handle = os.open(f".{name}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=there)
            with open(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            self._give(f".{name}.new", there, 0o644)
            os.rename(f".{name}.new", f"{name}.txt", src_dir_fd=there, dst_dir_fd=there)


class Site:
    """What Mailman has, as far as one answer tells it for all lists."""

    def __init__(self, client: Client, posters: list[str], may_be_missing: bool = False) -> None:
        self._posters = posters
        self.lists: dict[str, str] = {}
        self.owners = self.moderators = self.accepted = self.posters = self._by_list([])
        self.rules: dict[str, dict[str, Any]] | None = {}
        try:
            self._ask(client)
        except RestError as error:
            if error.status or not may_be_missing:
                raise

    def _ask(self, client: Client) -> None:
        questions: list[Callable[[], Any]] = [
            lambda: client.entries("lists"),
            lambda: client.find("members", "find", role="owner"),
            lambda: client.find("members", "find", role="moderator"),
            lambda: client.find("members", "find", role="member", moderation_action="accept"),
            lambda: client.get(*ESTATE, "member-domains"),
        ]
        lists, owners, moderators, accepted, rules = client.each(lambda ask: ask(), questions)
        found = client.each(lambda who: client.find("members", "find", role="member", subscriber=who), self._posters)
        #: Memberships of those who may post where others are held.
        self.posters = self._by_list([member for members in found for member in members])
        self.lists = {entry["fqdn_listname"]: entry["list_id"] for entry in lists}
        self.owners = self._by_list(owners)
        self.moderators = self._by_list(moderators)
        #: Members whose posts are accepted although the list holds those of members.
        self.accepted = self._by_list(accepted)
        #: List-id → organisation rule; None when the estate's plugin is not there.
        self.rules = None if rules is None else rules["rules"]

    @staticmethod
    def _by_list(members: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
        """List-id → address in lower case → member id."""
        found: dict[str, dict[str, str]] = {}
        for member in members:
            found.setdefault(member["list_id"], {})[member["email"].lower()] = member["member_id"]
        return found


class ListWork:
    """The work on one list: what differs, and the doing of it."""

    #: Two lists may want the same new address at the same time, which Mailman does not bear.
    rosters = threading.Lock()

    def __init__(self, client: Client, site: Site, files: TemplateFiles, wanted: Claims, dry: bool) -> None:
        self.client, self.site, self.files, self.wanted, self.dry = client, site, files, wanted, dry
        self.path = ("lists", wanted.list_id)
        self.created = self.removed = False
        self.problems: list[str] = []
        #: (what, before, after), for the diff and the report.
        self.changes: list[tuple[str, Any, Any]] = []

    def say(self, what: str, reason: object) -> None:
        """Note what could not be done."""
        self.problems.append(f"{self.wanted.address}: {what}: {reason}")

    def change(self, what: str, before: Any, after: Any, *steps: Callable[[], Any]) -> bool:
        """Do the steps unless this is a dry run; whether all went well."""
        if not self.dry:
            try:
                for step in steps:
                    step()
            except (RestError, OSError) as error:
                self.say(what, error)
                return False
        self.changes.append((what, before, after))
        return True

    def run(self) -> ListWork:
        """Everything about this list."""
        try:
            self._run()
        except (RestError, OSError) as error:
            self.say("not looked into further", error)
        return self

    def _run(self) -> None:
        exists = self.wanted.address in self.site.lists
        if self.wanted.absent:
            if exists:
                self._remove()
            return
        if not exists and not self._create():
            return
        # In a dry run there is nothing to ask about a list that is yet to be made.
        there = exists or not self.dry
        config = (self.client.get(*self.path, "config") or {}) if there else {}
        self._settings(config, exists)
        language = self.wanted.settings.get("preferred_language") or config.get("preferred_language") or "en"
        self._templates(language, there)
        self._archivers(there)
        self._bans(there)
        self._header_matches(there)
        self._member_domains()
        self._roles("owners", "owner", self.site.owners)
        self._roles("moderators", "moderator", self.site.moderators)
        self._members(there)
        self._posters(there)

    def _remove(self) -> None:
        steps = [lambda: self.client.send("DELETE", *self.path)]
        for language, name in self.files.read(self.wanted.list_id):
            steps.append(functools.partial(self.files.write, self.wanted.list_id, language, name, None))
        if self.change("list", "present", "absent; the archive of its posts is kept", *steps):
            self.removed = True

    def _create(self) -> bool:
        policy = self.wanted.settings.get("archive_policy") or self.wanted.initial.get("archive_policy")
        # The style decides only what a list starts with; a private one is never public, not for a moment.
        style = "legacy-default" if policy in (None, "public") else "private-default"
        data = {"fqdn_listname": self.wanted.address, "style_name": style}
        self.created = self.change("list", "absent", "present", lambda: self.client.send("POST", "lists", data=data))
        return self.created

    def _settings(self, config: Mapping[str, Any], exists: bool) -> None:
        wanted = dict(self.wanted.settings) if exists else self.wanted.initial | self.wanted.settings
        if exists and config.get("archive_policy") == "private" and wanted.get("archive_policy") == "never":
            self.say(
                "archive_policy",
                "never would open the private archive to everybody (a fault of the archive);"
                " keep private and write archivers: {hyperkitty: false}",
            )
            del wanted["archive_policy"]
        different: dict[str, Any] = {}
        for name, value in wanted.items():
            if config and name not in config:
                self.say(name, "this release of Mailman has no such attribute")
            elif not config or ATTRIBUTES[name].normal(config[name]) != ATTRIBUTES[name].normal(value):
                different[name] = value
        if not different:
            return
        refused: set[str] = set()
        if not self.dry:
            refused = self._patch(different)
            kept = self.client.get(*self.path, "config")
            for name in different.keys() - refused:
                if ATTRIBUTES[name].normal(kept[name]) != ATTRIBUTES[name].normal(different[name]):
                    self.say(name, f"Mailman made {shown(kept[name])} of {shown(different[name])}; write it like that")
                    if kept[name] == config.get(name):
                        refused.add(name)
        for name, value in different.items():
            if name not in refused:
                self.changes.append((name, config.get(name), value))

    def _patch(self, values: Mapping[str, Any]) -> set[str]:
        """Send settings; the names of those that Mailman refused, which does not keep it from taking the others."""
        data = {name: ATTRIBUTES[name].form(value) for name, value in values.items()}
        try:
            self.client.send("PATCH", *self.path, "config", data=data)
        except RestError as error:
            if len(values) == 1 or error.status != 400:
                for name in values:
                    self.say(name, error)
                return set(values)
            return set().union(*(self._patch({name: value}) for name, value in values.items()))
        return set()

    def _templates(self, language: str, there: bool) -> None:
        wanted = {
            (code, name): text
            for name, value in self.wanted.templates.items()
            for code, text in template_texts(value, language).items()
        }
        current = self.files.read(self.wanted.list_id)
        for key in sorted(wanted.keys() | current.keys()):
            if wanted.get(key) != current.get(key):
                write = functools.partial(self.files.write, self.wanted.list_id, *key, wanted.get(key))
                self.change(f"template {key[1]} ({key[0]})", current.get(key), wanted.get(key), write)
        # What somebody wrote in the web interface would win over the file.
        if there and self.wanted.templates:
            for entry in self.client.entries(*self.path, "uris"):
                if entry["name"] in self.wanted.templates:
                    forget = {entry["name"]: ""}
                    step = functools.partial(self.client.send, "PATCH", *self.path, "uris", data=forget)
                    self.change(f"template {entry['name']}", entry["uri"], "the data's text", step)

    def _archivers(self, there: bool) -> None:
        if not self.wanted.archivers:
            return
        current = (self.client.get(*self.path, "archivers") or {}) if there else {}
        for name, on in self.wanted.archivers.items():
            if there and name not in current:
                known = ", ".join(sorted(set(current) - {"http_etag"})) or "none"
                self.say(f"archivers.{name}", f"Mailman has no such archiver switched on; it has: {known}")
            elif current.get(name) != on:
                data = {name: "true" if on else "false"}
                step = functools.partial(self.client.send, "PATCH", *self.path, "archivers", data=data)
                self.change(f"archivers.{name}", current.get(name), on, step)

    def _bans(self, there: bool) -> None:
        if self.wanted.bans is None:
            return
        current = [entry["email"] for entry in self.client.entries(*self.path, "bans")] if there else []
        # Mailman keeps addresses in lower case and patterns as they are.
        wanted = [ban if ban.startswith("^") else ban.lower() for ban in self.wanted.bans]
        steps = [
            functools.partial(self.client.send, "DELETE", *self.path, "bans", ban, missing_is_good=True)
            for ban in current
            if ban not in wanted
        ]
        for ban in wanted:
            if ban not in current:
                steps.append(functools.partial(self._ban, ban))
        if steps:
            self.change("bans", sorted(current), sorted(wanted), *steps)

    def _ban(self, ban: str) -> None:
        try:
            self.client.send("POST", *self.path, "bans", data={"email": ban})
        except RestError as error:
            # A pattern covers it already, of this list or of the whole site.
            if error.status != 400 or "already banned" not in str(error):
                raise

    def _header_matches(self, there: bool) -> None:
        if self.wanted.header_matches is None:
            return
        path, wanted = (*self.path, "header-matches"), self.wanted.header_matches
        entries = self.client.entries(*path) if there else []
        current = [{key: entry[key] for key in HEADER_MATCH_FIELDS if key in entry} for entry in entries]
        same = 0
        while same < min(len(current), len(wanted)) and current[same] == wanted[same]:
            same += 1
        steps = [
            functools.partial(self.client.send, "DELETE", *path, str(position))
            for position in range(len(current) - 1, same - 1, -1)
        ]
        steps += [functools.partial(self.client.send, "POST", *path, data=rule) for rule in wanted[same:]]
        if steps:
            self.change("header_matches", current, wanted, *steps)

    def _member_domains(self) -> None:
        if self.wanted.member_domains is None:
            return
        path = (*ESTATE, *self.path, "member-domains")
        if self.site.rules is None:
            self.say("member_domains", "the estate's plugin is not loaded in Mailman; run the role mailman first")
            return
        rule = self.site.rules.get(self.wanted.list_id) or {"domains": [], "sentence": None}
        wanted = {"domains": sorted(self.wanted.member_domains), "sentence": self.wanted.member_sentence}
        current = {"domains": sorted(rule["domains"]), "sentence": rule.get("sentence") or None}
        if not wanted["domains"]:
            wanted["sentence"] = None
        if current != wanted:
            step = functools.partial(self.client.send, "PUT", *path, data=wanted)
            if not wanted["domains"]:
                step = functools.partial(self.client.send, "DELETE", *path)
            self.change("member_domains", current, wanted, step)

    def _roles(self, what: str, role: str, everywhere: Mapping[str, Mapping[str, str]]) -> None:
        wanted = getattr(self.wanted, what)
        if wanted is None:
            return
        current = everywhere.get(self.wanted.list_id, {})
        names = {address.lower() for address in wanted}
        missing = [address for address in wanted if address.lower() not in current]
        surplus = [(address, member) for address, member in current.items() if address not in names]
        if not missing and not surplus:
            return
        # Those who come before those who go: a list is never without an owner.
        steps = [functools.partial(self._subscribe, address, role) for address in missing]
        steps += [functools.partial(self.client.send, "DELETE", "members", member) for _, member in surplus]
        with self.rosters:
            self.change(what, sorted(current), sorted(names), *steps)

    def _subscribe(self, address: str, role: str) -> None:
        data = {"list_id": self.wanted.list_id, "subscriber": address, "role": role}
        try:
            self.client.send("POST", "members", data=data)
        except RestError as error:
            raise RestError(f"{address}: {error}", error.status) from error

    def _members(self, there: bool) -> None:
        """Those named in the data are members; nobody else is touched."""
        if not self.wanted.members:
            return
        roster = {}
        if there:
            fields = ("email", "delivery_mode", "display_name", "member_id")
            entries = self.client.entries(*self.path, "roster", "member", fields=fields)
            roster = {entry["email"].lower(): entry for entry in entries}
        for member in self.wanted.members:
            current = roster.get(member["address"].lower())
            mode = member.get("delivery")
            if current is None:
                data = {"list_id": self.wanted.list_id, "subscriber": member["address"]}
                data |= dict.fromkeys(("pre_verified", "pre_confirmed", "pre_approved"), "true")
                data |= {"send_welcome_message": "false", "delivery_mode": mode or "regular"}
                if member.get("name"):
                    data["display_name"] = member["name"]
                step = functools.partial(self.client.send, "POST", "members", data=data)
                with self.rosters:
                    self.change(f"member {member['address']}", "absent", mode or "regular", step)
            elif mode and current["delivery_mode"] != mode:
                path = ("members", current["member_id"])
                step = functools.partial(self.client.send, "PATCH", *path, data={"delivery_mode": mode})
                self.change(f"member {member['address']}", current["delivery_mode"], mode, step)

    def _posters(self, there: bool) -> None:
        """Members who may post although the list holds what members write; the mark goes from everybody else."""
        if self.wanted.posters is None or not there:
            return
        marked = self.site.accepted.get(self.wanted.list_id, {})
        members = self.site.posters.get(self.wanted.list_id, {})
        wanted = [who.lower() for who in self.wanted.posters if not who.startswith("^")]
        for address in wanted:
            # A member named by the data a moment ago is not among those that were asked about.
            if not self.dry and any(what.lower() == f"member {address}" for what, _, _ in self.changes):
                members = members | {address: self.client.get(*self.path, "member", address)["member_id"]}
            if address in members and address not in marked:
                path = ("members", members[address])
                step = functools.partial(self.client.send, "PATCH", *path, data={"moderation_action": "accept"})
                self.change(f"poster {address}", "moderated", "accepted", step)
        for address, member_id in marked.items():
            if address not in wanted:
                step = functools.partial(
                    self.client.send, "PATCH", "members", member_id, data={"moderation_action": ""}
                )
                self.change(f"poster {address}", "accepted", "moderated", step)

    def diff(self) -> dict[str, str]:
        """Before and after, for ``--diff``."""
        before = "".join(f"{what}: {shown(old)}\n" for what, old, _ in self.changes if old is not None)
        after = "".join(f"{what}: {shown(new)}\n" for what, _, new in self.changes if new is not None)
        header = f"list {self.wanted.address}"
        return {"before_header": header, "after_header": header, "before": before, "after": after}


def faults(address: str, wanted: Claims) -> list[str]:
    """What Mailman would refuse anyway; the controller's validation has said so before, unless it was left out."""
    found = [f"{address}: {fault}" for fault in (list_name_fault(address),) if fault]
    if any(address.partition("@")[0].endswith(f"-{sub}") for sub in SUB_ADDRESSES):
        found.append(f"{address}: mail to this name would go to another list's own addresses")
    for name, value in [*wanted.settings.items(), *wanted.initial.items()]:
        fault = ATTRIBUTES[name].fault(value) if name in ATTRIBUTES else setting_fault(name, value)
        if fault:
            found.append(f"{address}: {name} is {shown(value)}: {fault}")
    found += [f"{address}: there is no template {name}" for name in wanted.templates if name not in TEMPLATE_NAMES]
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "lists": {"type": "dict", "required": True},
            "base": {"type": "dict", "default": {}},
            "profiles": {"type": "dict", "default": {}},
            "template_directory": {"type": "path", "default": "/var/lib/mailman3/templates"},
            "template_owner": {"type": "str", "default": "list"},
            **REST_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    given = module.params
    problems: list[str] = []
    wanted: list[Claims] = []
    for address, definition in given["lists"].items():
        try:
            one = claims(address, definition or {}, given["base"], given["profiles"])
            found = faults(address, one)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            found = [f"{address}: the definition is wrong: {error}"]
        if found:
            problems += found
        else:
            wanted.append(one)

    client = Client(given["url"], given["user"], given["password"])
    files = TemplateFiles(given["template_directory"], given["template_owner"])
    try:
        # A dry run may come to a host where Mailman is yet to be installed: nothing is there then.
        posters = {who.lower() for one in wanted for who in one.posters or [] if not who.startswith("^")}
        site = Site(client, sorted(posters), may_be_missing=module.check_mode)
    except RestError as error:
        module.fail_json(msg=f"the lists: {error}")
    work = client.each(lambda one: ListWork(client, site, files, one, module.check_mode).run(), wanted)

    altered = {one.wanted.address: [what for what, _, _ in one.changes] for one in work if one.changes}
    module.exit_json(
        changed=bool(altered),
        created=[one.wanted.address for one in work if one.created],
        removed=[one.wanted.address for one in work if one.removed],
        altered=altered,
        archive_stale=[
            one.wanted.address
            for one in work
            if one.created or any(what in ARCHIVE_COPIES for what, _, _ in one.changes)
        ],
        unmanaged=sorted(set(site.lists) - set(given["lists"])),
        problems=problems + [problem for one in work for problem in one.problems],
        diff=[one.diff() for one in work if one.changes],
    )


if __name__ == "__main__":
    main()
