#!/usr/bin/python
"""Ansible module: carries DNS questions to the host's own resolver, and says what the host itself knows of its name.

Standard library only: a host that is to be looked at need not have anything installed. Answers go back as they came
(RFC 1035 §4), and the controller reads them.
"""

from __future__ import annotations

import os
import random
import re
import socket
import struct
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: dns_ask
short_description: Ask the host's own resolver
description:
  - Sends DNS questions to the first resolver of the host and gives the answers in hexadecimal, for dns_verify to read.
  - Tells the name with which Postfix greets others, and the public halves of signing keys that lie on the host.
options:
  questions:
    type: list
    elements: str
    required: true
    description: Name and type with a blank between them, such as C(example.org MX).
  resolver:
    type: str
    description: Address of the resolver; the first of /etc/resolv.conf when not given.
  timeout:
    type: float
    default: 2
    description: Seconds to wait for an answer; each question is asked twice.
  key_directories:
    type: list
    elements: path
    default: [/etc/opendkim/keys]
    description: Directories with private keys, named C(<selector>._domainkey.<domain>.pem). Only public halves leave.
author: Trustworthy Email estate
"""

EXAMPLES = r"""
- name: Ask for the gateways
  dns_ask:
    questions: [example.org MX]
"""

RETURN = r"""
answers:
  description: Question to I(wire), the answer in hexadecimal, or I(error); I(unchecked) when it only fails validation.
  returned: always
  type: dict
resolver:
  description: The resolver that was asked.
  returned: always
  type: str
helo:
  description: The name with which Postfix greets others; null without Postfix.
  returned: always
  type: str
keys:
  description: Name of the DNS record to the public key in base64.
  returned: always
  type: dict
"""

TYPES = {
    **{"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "DS": 43},
    **{"DNSKEY": 48, "TLSA": 52, "SVCB": 64, "HTTPS": 65, "CAA": 257},
}
RECURSION, AUTHENTIC, UNCHECKED = 0x0100, 0x0020, 0x0010
SERVFAIL = 2
TRUNCATED = 0x0200
PORT = 53
WORKERS = 64
TRIES = 2
MOST = 65535
EDNS_OCTETS = 1232
#: RSA keys are the whole structure in DNS, Ed25519 keys its last 32 octets (RFC 8463 §4).
ED25519_PREFIX = bytes.fromhex("302a300506032b6570032100")


def query(name: str, kind: int, flags: int) -> bytes:
    """A question in wire format, with EDNS and the wish for DNSSEC (RFC 6891)."""
    labels = [label.encode() for label in name.rstrip(".").split(".") if label]
    encoded = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    head = struct.pack(">HHHHHH", random.randrange(MOST), RECURSION | AUTHENTIC | flags, 1, 0, 0, 1)
    return head + encoded + struct.pack(">HH", kind, 1) + b"\0" + struct.pack(">HHIH", 41, EDNS_OCTETS, 0x8000, 0)


def belongs(answer: bytes, question: bytes) -> bool:
    """Whether an answer is one to this question: the same number, the same name and type."""
    end = question.index(b"\0", 12) + 5
    return len(answer) >= end and answer[:2] == question[:2] and answer[12:end].lower() == question[12:end].lower()


def by_udp(server: str, question: bytes, timeout: float) -> bytes:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as channel:
        channel.settimeout(timeout)
        channel.connect((server, PORT))
        channel.send(question)
        for _ in range(5):
            answer = channel.recv(MOST)
            if belongs(answer, question):
                return answer
    raise TimeoutError("only strange answers")


def by_tcp(server: str, question: bytes, timeout: float) -> bytes:
    with socket.create_connection((server, PORT), timeout=timeout) as channel:
        channel.sendall(struct.pack(">H", len(question)) + question)
        stream = channel.makefile("rb")
        length = struct.unpack(">H", stream.read(2))[0]
        answer = stream.read(length)
    if len(answer) != length or not belongs(answer, question):
        raise OSError("the answer is cut off")
    return answer


def exchange(server: str, question: bytes, timeout: float) -> bytes:
    """The answer, by TCP where it is too long.

    :raises OSError: without an answer.
    """
    for left in reversed(range(TRIES)):
        try:
            answer = by_udp(server, question, timeout)
            break
        except TimeoutError:
            if not left:
                raise
    truncated = struct.unpack(">H", answer[2:4])[0] & TRUNCATED
    return by_tcp(server, question, timeout) if truncated else answer


def ask(server: str, question: str, timeout: float) -> dict[str, Any]:
    """Ask one question, and once more without validation when the resolver refuses."""
    name, _, kind = question.partition(" ")
    try:
        number = TYPES[kind]
        answer = exchange(server, query(name, number, 0), timeout)
        if answer[3] & 15 != SERVFAIL:
            return {"wire": answer.hex()}
        again = exchange(server, query(name, number, UNCHECKED), timeout)
        return {"wire": answer.hex(), "unchecked": again[3] & 15 in (0, 3)}
    except KeyError:
        return {"error": f"unknown type {kind}"}
    except TimeoutError:
        return {"error": f"no answer in {TRIES} × {timeout:g} s"}
    except (OSError, ValueError, struct.error) as error:
        return {"error": str(getattr(error, "strerror", None) or error or type(error).__name__)}


def first_resolver() -> str:
    """The first resolver of /etc/resolv.conf; the host itself when there is none, as the C library does."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8") as lines:
            found = [match[1] for match in map(re.compile(r"^\s*nameserver\s+([0-9A-Fa-f.:]+)").match, lines) if match]
    except OSError:
        found = []
    return found[0] if found else "127.0.0.1"


def helo() -> str | None:
    """The name with which Postfix greets other hosts; None where it is not installed."""
    postconf = "/usr/sbin/postconf"
    if not os.path.exists(postconf):
        return None
    done = subprocess.run([postconf, "-xh", "smtp_helo_name"], capture_output=True, text=True, timeout=20)
    return done.stdout.strip() or None


def public_keys(directories: list[str]) -> dict[str, str]:
    """Record → public key of every private key on the host; the private half is read by openssl alone."""
    import base64

    found = {}
    for directory in directories:
        if not os.path.isdir(directory):
            continue
        for entry in sorted(os.listdir(directory)):
            record, extension = os.path.splitext(entry)
            if extension not in (".pem", ".private", ".key") or "._domainkey." not in record:
                continue
            done = subprocess.run(
                ["openssl", "pkey", "-in", os.path.join(directory, entry), "-pubout", "-outform", "DER"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=20,
            )
            if done.returncode == 0:
                der = done.stdout
                found[record] = base64.b64encode(der[12:] if der.startswith(ED25519_PREFIX) else der).decode()
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "questions": {"type": "list", "elements": "str", "required": True},
            "resolver": {"type": "str"},
            "timeout": {"type": "float", "default": 2},
            "key_directories": {
                "type": "list",
                "elements": "path",
                "default": ["/etc/opendkim/keys"],
                "no_log": False,
            },
        },
        supports_check_mode=True,
    )
    given: Mapping[str, Any] = module.params
    server = given["resolver"] or first_resolver()
    with ThreadPoolExecutor(WORKERS) as pool:
        answers = list(pool.map(lambda one: ask(server, one, given["timeout"]), given["questions"]))
    module.exit_json(
        changed=False,
        resolver=server,
        answers=dict(zip(given["questions"], answers, strict=True)),
        helo=helo(),
        keys=public_keys(given["key_directories"]),
    )


if __name__ == "__main__":
    main()
