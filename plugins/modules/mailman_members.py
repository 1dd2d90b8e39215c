#!/usr/bin/python
"""Ansible module: many members of one mailing list at once, from rows or from a CSV file."""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.mailman_csv import Member, Parsed, Refused, parse, refused_file
from ansible.module_utils.mailman_rest import REST_ARGUMENTS, Client, RestError

DOCUMENTATION = r"""
module: mailman_members
short_description: Have the members that a CSV file names
description:
  - Compares the rows with the roster of a list and changes what differs, by the bulk resource of the estate's Mailman
    plugin. Nobody is asked and nobody gets a welcome message.
  - A row that cannot be used is reported with line and reason; the others go on.
options:
  list:
    type: str
    required: true
    description: Address of the list.
  csv:
    type: str
    required: true
    description: The file's bytes as the filter C(packed_file) gives them.
  mode:
    type: str
    choices: [add, sync]
    default: add
    description:
      - V(add) adds and changes. V(sync) also removes the members who are not in the file, and holders of another role
        where the file names that role. Who stands in a refused row is not removed.
  max_removed_percent:
    type: int
    default: 20
    description: V(sync) changes nothing if it would remove more of the members than this.
  force:
    type: bool
    default: false
    description: Remove as many as it takes.
extends_documentation_fragment: mailman_rest
author: Trustworthy Email estate
"""

EXAMPLES = r"""
- name: Have the members that the file names
  mailman_members:
    list: dev@ml.example.org
    csv: "{{ 'members.csv' | packed_file }}"
    password: "{{ mailman_rest_password }}"
"""

RETURN = r"""
counts:
  description: How many rows were added, changed, removed, unchanged, refused.
  returned: always
  type: dict
refused:
  description: Rows that were not applied, each a sentence with its line.
  returned: always
  type: list
refused_csv:
  description: The same as a CSV file; empty when there are none.
  returned: always
  type: str
notes:
  description: What was put right, in sentences.
  returned: always
  type: list
"""

#: Rows in one request; the plugin takes 2,000, and a request must end before the server loses patience.
BATCH = 1000
#: Lines of a diff that somebody still reads.
DIFF_LINES = 500


class Roster:
    """A list's memberships beside the rows that are wanted."""

    def __init__(self, entries: list[dict[str, Any]], parsed: Parsed) -> None:
        self.current = {(entry["email"].lower(), entry["role"]): entry for entry in entries}
        self.parsed = parsed
        self.lines = {member.key: member for member in parsed.members}
        self.add: list[dict[str, Any]] = []
        self.change: list[dict[str, Any]] = []
        self.remove: list[dict[str, Any]] = []

    def compare(self, remove: bool) -> None:
        """Fill in what is to be done."""
        for member in self.parsed.members:
            entry = self.current.get(member.key)
            wanted = {"display_name": member.name, "delivery_mode": member.delivery}
            wanted = {name: value for name, value in wanted.items() if value}
            if entry is None:
                self.add.append({"email": member.address, "role": member.role} | wanted)
                continue
            different = {name: value for name, value in wanted.items() if entry[name] != value}
            if different:
                self.change.append({"email": entry["email"], "role": member.role} | different)
        if remove:
            roles = {"member", *(member.role for member in self.parsed.members)}
            self.remove = [
                {"email": entry["email"], "role": role}
                for (email, role), entry in self.current.items()
                if role in roles and (email, role) not in self.lines and email not in self.parsed.mentioned
            ]

    def too_many(self, percent: int) -> str | None:
        """Why so many must not be removed without a word from a person; None when it is few."""
        for role in sorted({row["role"] for row in self.remove}):
            going = sum(row["role"] == role for row in self.remove)
            there = sum(key[1] == role for key in self.current)
            if going * 100 > there * percent:
                return (
                    f"would remove {going} of {there} with the role {role}, more than {percent} %;"
                    " nothing was changed. If that is meant: -e force=true"
                )
        return None

    def apply(self, client: Client, path: tuple[str, ...]) -> None:
        """Send all, a part at a time; rows that Mailman refuses join those that the file's reader refused."""
        rows = [(kind, row) for kind in ("remove", "change", "add") for row in getattr(self, kind)]
        for start in range(0, len(rows), BATCH):
            body: dict[str, Any] = {"add": [], "change": [], "remove": [], "pre_verified": True, "pre_approved": True}
            for kind, row in rows[start : start + BATCH]:
                body[kind].append(row)
            for refusal in client.send("POST", *path, data=body)["refused"]:
                self._refuse(body[refusal["list"]], refusal)

    def _refuse(self, sent: list[dict[str, Any]], refusal: dict[str, Any]) -> None:
        row = next(row for row in sent if row["email"].lower() == refusal["email"].lower())
        member: Member | None = self.lines.get((row["email"].lower(), row["role"]))
        getattr(self, refusal["list"]).remove(row)
        line = member.line if member else 0
        self.parsed.refused.append(Refused(line, refusal["reason"], f"{row['email']},{row.get('display_name', '')}"))

    def diff(self, address: str) -> dict[str, str]:
        """Before and after of the memberships that change."""

        def line(entry: dict[str, Any]) -> str:
            mode, name = entry.get("delivery_mode") or "regular", entry.get("display_name") or ""
            return f"{entry['role']} {entry['email']} {mode} {name}".rstrip()

        touched = [self.current[row["email"].lower(), row["role"]] for row in (*self.change, *self.remove)]
        changed = [self.current[row["email"].lower(), row["role"]] | row for row in self.change]
        parts = []
        for entries in (touched, [*changed, *self.add]):
            lines = sorted(map(line, entries))
            more = len(lines) - DIFF_LINES
            parts.append("\n".join([*lines[:DIFF_LINES], *([f"… and {more} more"] if more > 0 else [])]) + "\n")
        header = f"members of {address}"
        return {"before_header": header, "after_header": header, "before": parts[0], "after": parts[1]}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "list": {"type": "str", "required": True},
            "csv": {"type": "str", "required": True},
            "mode": {"type": "str", "choices": ["add", "sync"], "default": "add"},
            "max_removed_percent": {"type": "int", "default": 20},
            "force": {"type": "bool", "default": False},
            **REST_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    given = module.params
    address = given["list"].lower()
    try:
        parsed = parse(zlib.decompress(base64.b64decode(given["csv"], validate=True)))
    except (binascii.Error, zlib.error):
        module.fail_json(msg="csv must be what the filter packed_file gives")
    except ValueError as error:
        module.fail_json(msg=f"the file {error}")
    client = Client(given["url"], given["user"], given["password"])
    list_id = address.replace("@", ".", 1)
    path = ("plugins", "estate", "lists", list_id, "roster")
    try:
        answer = client.get(*path)
        if answer is None:
            missing = client.get("lists", list_id) is None
            module.fail_json(
                msg=f"{address}: there is no such list"
                if missing
                else f"{address}: the estate's plugin is not loaded in Mailman; run the role mailman first"
            )
        roster = Roster(answer["entries"], parsed)
        roster.compare(given["mode"] == "sync")
        why_not = roster.too_many(given["max_removed_percent"])
        if why_not and not given["force"]:
            module.fail_json(msg=f"{address}: sync {why_not}")
        diff = roster.diff(address)
        if not module.check_mode:
            roster.apply(client, path)
    except RestError as error:
        module.fail_json(msg=f"members of {address}: {error}")
    done = {kind: len(getattr(roster, kind)) for kind in ("add", "change", "remove")}
    counts = {"added": done["add"], "changed": done["change"], "removed": done["remove"]}
    counts |= {
        "unchanged": sum(key in roster.current for key in roster.lines) - done["change"],
        "refused": len(parsed.refused),
    }
    changed = any(done.values())
    module.exit_json(
        changed=changed,
        counts=counts,
        refused=[
            f"line {row.line}: {row.reason}" + (f" ({row.text[:60]})" if row.text else "")
            for row in sorted(parsed.refused, key=lambda row: row.line)
        ],
        refused_csv=refused_file(parsed.refused) if parsed.refused else "",
        notes=parsed.notes,
        diff=diff if changed else {},
    )


if __name__ == "__main__":
    main()
