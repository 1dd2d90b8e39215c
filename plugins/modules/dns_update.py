#!/usr/bin/python
"""Ansible module: the records that we want, in the zones that a name server takes dynamic updates for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from ansible.module_utils import dns_changes
except ImportError as _error:
    # Only dnspython can be missing.
    dns_changes = None
    _missing: Exception | None = _error
else:
    _missing = None

DOCUMENTATION = r"""
module: dns_update
short_description: Publish DNS records by dynamic update
description:
  - Compares zones on their primary server with the records that are wanted, and changes what differs (RFC 2136, signed
    by TSIG, RFC 8945). Needs dnspython.
  - Touches only names and types that are wanted or were, by this module's memory of the last run (I(state_file)). TXT
    records of others beside SPF stay.
  - A zone that fails does not keep the others from being changed; all failures come at once.
options:
  zones:
    type: dict
    required: true
    description: Zone to its records, each with I(name), I(type), I(value) and I(ttl), as the filter estate_zones gives.
  only:
    type: list
    elements: str
    description: The zones that the server takes changes for; all when not given.
  server:
    type: str
    required: true
    description: Address or name of the zones' primary server.
  port:
    type: int
    default: 53
    description: Its TCP port.
  key:
    type: str
    required: true
    description: Name of the TSIG key.
  secret:
    type: str
    required: true
    description: The key's secret in base64.
  algorithm:
    type: str
    default: hmac-sha256
    choices: [hmac-sha256, hmac-sha384, hmac-sha512]
    description: The key's algorithm.
  timeout:
    type: float
    default: 10
    description: Seconds to wait for an answer.
  state_file:
    type: path
    required: true
    description: File that remembers which records were published, so that those no longer wanted are removed.
author: Trustworthy Email estate
"""

EXAMPLES = r"""
- name: Publish the records
  dns_update:
    zones: "{{ estate_model | estate_zones }}"
    server: 192.0.2.53
    key: estate
    secret: "{{ vault_dns_update_key }}"
    state_file: keys/dns-applied.json
"""

RETURN = r"""
changes:
  description: Zone to the lines that were removed (-) and added (+).
  returned: always
  type: dict
remembered:
  description: Whether the state file was, or would be, written.
  returned: always
  type: bool
"""


def read_state(path: Path) -> dict[str, list[str]]:
    """What was published, zone by zone; nothing before the first run.

    :raises ValueError: when the file is not what this module writes.
    """
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    lines = state.values() if isinstance(state, dict) else [None]
    if not all(isinstance(zone, list) and all(str(line).count(" ") > 1 for line in zone) for zone in lines):
        raise ValueError(f"{path} is not what this module writes; restore it from version control")
    return state


def write_state(path: Path, state: Mapping[str, list[str]]) -> None:
    """Replace the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(dict(sorted(state.items())), indent=2) + "\n", encoding="utf-8")
    os.replace(new, path)


def bring(server: Any, zone: str, records: list[Any], earlier: list[str], dry: bool) -> list[Any]:
    """Have one zone as it is wanted; gives the changes that were, or would be, made.

    :raises DnsError: when that cannot be had.
    """
    origin = dns_changes.parse_name(zone)
    wanted, once = dns_changes.parse_records(records), dns_changes.parse_records(dns_changes.recall(earlier))
    for _ in range(dns_changes.ROUNDS):
        live = server.read(origin, {*wanted, *once})
        aliases = sorted({name.to_text(omit_final_dot=True) for name, rdtype in live if rdtype == dns_changes.CNAME})
        if aliases:
            raise dns_changes.DnsError(
                f"{zone}: aliases (CNAME) stand where records of ours belong: {', '.join(aliases)}; remove them first"
            )
        steps = dns_changes.changes(wanted, once, live)
        if dry or not steps:
            return steps
        if server.apply(origin, steps):
            left = dns_changes.changes(wanted, once, server.read(origin, {*wanted, *once}))
            if left:
                names = sorted({step.name.to_text(omit_final_dot=True) for step in left})
                raise dns_changes.DnsError(
                    f"{zone}: the server took the change, but does not show it at {', '.join(names)}; see its log"
                )
            return steps
    raise dns_changes.DnsError(f"{zone}: somebody else changes the same records all the time; run it again")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "zones": {"type": "dict", "required": True},
            "only": {"type": "list", "elements": "str"},
            "server": {"type": "str", "required": True},
            "port": {"type": "int", "default": 53},
            "key": {"type": "str", "required": True, "no_log": False},
            "secret": {"type": "str", "required": True, "no_log": True},
            "algorithm": {
                "type": "str",
                "default": "hmac-sha256",
                "choices": ["hmac-sha256", "hmac-sha384", "hmac-sha512"],
            },
            "timeout": {"type": "float", "default": 10},
            "state_file": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    if dns_changes is None:
        module.fail_json(msg=missing_required_lib("dnspython"), exception=str(_missing))
    given, only, path = module.params, module.params["only"], Path(module.params["state_file"])
    try:
        state = read_state(path)
        server = dns_changes.Server(
            *(given[name] for name in ("server", "port", "key", "secret", "algorithm", "timeout"))
        )
    except (ValueError, dns_changes.DnsError) as error:
        module.fail_json(msg=f"the records cannot be published: {error}.")
    remembered, problems, lines, diff = dict(state), [], {}, []
    for zone in sorted({*given["zones"], *state}):
        if only is not None and zone not in only:
            continue
        records = given["zones"].get(zone) or []
        try:
            steps = bring(server, zone, records, state.get(zone, []), module.check_mode)
        except dns_changes.DnsError as error:
            problems.append(f"{error}.")
            continue
        remembered[zone] = dns_changes.remember(records)
        if not remembered[zone]:
            del remembered[zone]
        if steps:
            before, after = ([line for step in steps for line in step.lines()[side]] for side in (0, 1))
            lines[zone] = [f"- {line}" for line in before if line not in after]
            lines[zone] += [f"+ {line}" for line in after if line not in before]
            diff.append(
                {
                    "before_header": f"{zone} as it is",
                    "after_header": f"{zone} as the data wants it",
                    "before": "".join(f"{line}\n" for line in before),
                    "after": "".join(f"{line}\n" for line in after),
                }
            )
    written = remembered != state
    if written and not module.check_mode:
        try:
            write_state(path, remembered)
        except OSError as error:
            problems.append(f"{path} cannot be written ({error.strerror}), so nobody remembers what was published.")
    result = {"changed": bool(lines) or written, "changes": lines, "remembered": written, "diff": diff}
    if problems:
        module.fail_json(msg="\n".join(problems), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
