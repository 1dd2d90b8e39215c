#!/usr/bin/python
"""Ansible module: the mail domains that Mailman has lists in."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.mailman_rest import REST_ARGUMENTS, Client, RestError

DOCUMENTATION = r"""
module: mailman_domains
short_description: Make Mailman know the domains in which lists live
description:
  - Adds the domains that are missing, by Mailman's REST interface. A domain that is not named is left alone and
    reported, because its lists would go with it.
options:
  domains:
    type: list
    elements: str
    required: true
    description: Names of the domains.
  wait:
    type: int
    default: 60
    description: Seconds to wait for a Mailman that is about to start.
extends_documentation_fragment: mailman_rest
author: Trustworthy Email estate
"""

EXAMPLES = r"""
- name: Have lists in ml.example.org
  mailman_domains:
    domains: [ml.example.org]
    password: "{{ mailman_rest_password }}"
"""

RETURN = r"""
added:
  description: Domains that were missing.
  returned: always
  type: list
unmanaged:
  description: Domains that Mailman has and the data does not name.
  returned: always
  type: list
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "domains": {"type": "list", "elements": "str", "required": True},
            "wait": {"type": "int", "default": 60},
            **REST_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    wanted = list(dict.fromkeys(module.params["domains"]))
    client = Client(module.params["url"], module.params["user"], module.params["password"])
    known: list[str] = []
    try:
        if not module.check_mode:
            client.wait(module.params["wait"])
        known = [entry["mail_host"] for entry in client.entries("domains")]
        if not module.check_mode:
            for domain in wanted:
                if domain not in known:
                    client.send("POST", "domains", data={"mail_host": domain})
    except RestError as error:
        # A dry run on a host where Mailman is yet to be installed.
        if not module.check_mode or error.status:
            module.fail_json(msg=f"the list domains: {error}")
    added = [domain for domain in wanted if domain not in known]
    lines = ["".join(f"{domain}\n" for domain in sorted(domains)) for domains in (known, {*known, *added})]
    diff = {"before_header": "domains", "after_header": "domains", "before": lines[0], "after": lines[1]}
    module.exit_json(
        changed=bool(added),
        added=added,
        unmanaged=sorted(set(known) - set(wanted)),
        diff=diff if added else {},
    )


if __name__ == "__main__":
    main()
