"""Print the server cases of espoofer (as ``python3 espoofer_cases.py ATTACKER VICTIM RECIPIENT SELECTOR``) as JSON.

espoofer's modules carry names of other packages (``dkim``, ``config``), so this runs in a process of its own with
espoofer's directory first in PYTHONPATH. The attacker's private key is the file ``dkimkey`` in the working directory.
"""

import base64
import copy
import json
import sys

import config
import testcases
from exploits_builder import ExploitsBuilder


def main(attacker: str, victim: str, recipient: str, selector: str) -> None:
    """Print each case as {"name", "description", "helo", "sender", "recipient", "message"}."""
    cases = []
    for name, case in testcases.test_cases.items():
        if not name.startswith("server_"):
            continue
        only = {name: copy.deepcopy(case)}
        if "dkim_para" in case:  # the attacker signs with a key that really is in DNS
            only[name]["dkim_para"]["s"] = case["dkim_para"]["s"].replace(b"selector", selector.encode())
        encoded = base64.b64encode(b"<admin@legitimate.com>"), base64.b64encode(f"<{victim}>".encode())
        only[name]["data"]["from_header"] = case["data"]["from_header"].replace(*encoded)
        settings = config.config | {
            "case_id": name.encode(),
            "mode": "s",
            "attacker_site": attacker.encode(),
            "legitimate_site_address": victim.encode(),
            "victim_address": recipient.encode(),
            "subject_header": b"",
        }
        sequence = ExploitsBuilder(only, settings).generate_smtp_seqs()
        cases.append(
            {
                "name": name,
                "description": case["description"].decode(),
                "helo": sequence["helo"].decode(),
                "sender": sequence["mailfrom"].decode(),
                "recipient": sequence["rcptto"].decode(),
                "message": base64.b64encode(sequence["msg_content"]).decode(),
            }
        )
    json.dump(cases, sys.stdout)


main(*sys.argv[1:])
