#!/usr/bin/python
"""Ansible module: whether the live world agrees with the data model. Runs on the controller."""

from __future__ import annotations

import datetime
import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from ansible.module_utils import dns_check, dns_live, dns_report
except ImportError as _error:
    # Only dnspython or cryptography can be missing.
    dns_check = dns_live = dns_report = None
    _missing: Exception | None = _error
else:
    _missing = None

DOCUMENTATION = r"""
module: dns_verify
short_description: Compare the live world with the data model
description:
  - Compares the DNS records that the data model wants with what the controller's resolver, every authoritative server
    and the resolvers of the hosts answer, and looks at what hosts show to those who connect. Changes nothing there.
    Needs dnspython and cryptography.
options:
  zones:
    type: dict
    required: true
    description: Zone to its records, as the filter estate_zones gives.
  model:
    type: dict
    required: true
    description: The data model, estate_model.
  policies:
    type: dict
    default: {}
    description: Domain to the text of its MTA-STS policy.
  resolvers:
    type: list
    elements: str
    default: []
    description: Addresses of the resolvers to ask from here; those of /etc/resolv.conf when empty.
  views:
    type: dict
    default: {}
    description: Host to what the module dns_ask brought from it; without answers from one that could not be reached.
  connect:
    type: bool
    default: true
    description: Whether SMTP and web servers are connected to.
  ca_file:
    type: path
    description: Certificates (PEM) by which web servers are verified; those of the system when not given.
  timeout:
    type: float
    default: 2
    description: Seconds to wait for a DNS answer, which is asked for twice.
  connect_timeout:
    type: float
    default: 8
    description: Seconds to wait for an SMTP or web server.
  spf_lists:
    type: dict
    description: What C(dmarc-analysis lists) prints; who may send and never does is told then.
  output:
    type: path
    required: true
    description: File for the result (JSON). It also remembers outside SPF records, so that their change is told.
author: Trustworthy Email estate
"""

EXAMPLES = r"""
- name: See whether the world agrees
  dns_verify:
    zones: "{{ estate_model | estate_zones }}"
    model: "{{ estate_model }}"
    output: build/dns/verify.json
"""

RETURN = r"""
lines:
  description: The table and the summary, for people.
  returned: always
  type: list
differences:
  description: How many differences there are.
  returned: always
  type: int
"""


def earlier(path: Path) -> dict[str, Any]:
    """The result of the last run; nothing where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(new, path)


def verify(given: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
    """Do all checks; gives the document and the lines for people."""
    started = time.monotonic()
    task = dns_check.Task(
        zones=given["zones"],
        model=given["model"],
        policies=given["policies"],
        resolvers=given["resolvers"] or dns_live.system_resolvers(),
        views={host: view if view and view.get("answers") else None for host, view in given["views"].items()},
        connect=given["connect"],
        ca_file=given["ca_file"],
        timeout=given["connect_timeout"],
        earlier=earlier(path).get("spf_included") or {},
        spf_lists=given["spf_lists"],
    )
    asker = dns_live.Asker(given["timeout"])
    try:
        check = dns_check.Verification(task, asker)
        check.run()
    finally:
        asker.close()
    differences = check.findings.all()
    domains = len(given["model"]["domains"])
    spf = {name: {"lookups": cost.lookups, "void": cost.void} for name, cost in sorted(check.costs.items())}
    document = dns_report.document(
        differences,
        check.notes,
        check.places,
        {
            "checked": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 1),
            "records": check.records,
            "domains": domains,
        },
        spf,
        check.included,
    )
    lines = dns_report.table(differences)
    lines += [f"note: {note}" for note in check.notes]
    lines.append(dns_report.summary(differences, check.records, domains, len(check.places)))
    return document, lines


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "zones": {"type": "dict", "required": True},
            "model": {"type": "dict", "required": True},
            "policies": {"type": "dict", "default": {}},
            "resolvers": {"type": "list", "elements": "str", "default": []},
            "views": {"type": "dict", "default": {}},
            "connect": {"type": "bool", "default": True},
            "ca_file": {"type": "path"},
            "timeout": {"type": "float", "default": 2},
            "connect_timeout": {"type": "float", "default": 8},
            "spf_lists": {"type": "dict"},
            "output": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    if dns_check is None:
        module.fail_json(msg=missing_required_lib("dnspython and cryptography"), exception=str(_missing))
    path = Path(module.params["output"])
    try:
        document, lines = verify(module.params, path)
    except ValueError as error:
        module.fail_json(msg=f"DNS cannot be verified: {error}.")
    if not module.check_mode:
        try:
            write(path, document)
        except OSError as error:
            module.fail_json(msg=f"{path} cannot be written: {error.strerror}.", lines=lines)
    module.exit_json(changed=False, lines=lines, differences=len(document["differences"]))


if __name__ == "__main__":
    main()
