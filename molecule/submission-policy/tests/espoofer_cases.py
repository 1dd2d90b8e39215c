"""Print espoofer's cases that concern the author, as JSON: ``python3 espoofer_cases.py LOGIN VICTIM RECIPIENT``.

The client cases, and of the server cases those of the From header (a8 to a19); the attacker is a user of ours.
espoofer's modules carry names of other packages, so this runs in a process of its own with espoofer's directory first
in PYTHONPATH.
"""

import base64
import copy
import json
import sys

import config
import testcases
from exploits_builder import ExploitsBuilder


def main(login: str, victim: str, recipient: str) -> None:
    """Print case → message, in base64."""
    cases = {}
    for name, case in testcases.test_cases.items():
        client = name.startswith("client_")
        if not client and int(name.removeprefix("server_a")) < 8:
            continue
        only = {name: copy.deepcopy(case)}
        encoded = base64.b64encode(b"<admin@legitimate.com>"), base64.b64encode(f"<{victim}>".encode())
        only[name]["data"]["from_header"] = case["data"]["from_header"].replace(*encoded)
        settings = config.config | {
            "case_id": name.encode(),
            "mode": "c" if client else "s",
            "attacker_site": login.partition("@")[2].encode(),
            "legitimate_site_address": victim.encode(),
            "victim_address": recipient.encode(),
            "subject_header": b"",
            "client_mode": {"username": login.encode()},
        }
        message = ExploitsBuilder(only, settings).generate_smtp_seqs()["msg_content"]
        # the attacker's own part of the server cases is the account's true address
        own = login.partition("@")[2].encode()
        for local in (b"first", b"any", b"second", b"s"):
            message = message.replace(b"<" + local + b"@" + own + b">", f"<{login}>".encode())
        cases[name] = base64.b64encode(message).decode()
    json.dump(cases, sys.stdout)


main(*sys.argv[1:])
