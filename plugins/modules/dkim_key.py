#!/usr/bin/python
"""Ansible module: private keys for DKIM and ARC that are made on the host and stay there."""

from __future__ import annotations

import base64
import grp
import os
import pwd
import re
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: dkim_key
short_description: Have signing keys on a host
description:
  - Makes RSA keys of 2048 bits by openssl in files NAME.pem, which only their owner can read. A key that is there is
    never made anew. Says which keys are there by their public halves; no private half is shown, unless I(export) asks.
options:
  directory:
    type: path
    required: true
    description: Directory of the keys; it is made when a key is.
  present:
    type: list
    elements: str
    default: []
    description: Names of the keys to have, SELECTOR._domainkey.DOMAIN.
  absent:
    type: list
    elements: str
    default: []
    description: Names of keys to remove.
  given:
    type: dict
    default: {}
    description: Name to private key (PEM) of keys that another host has made; hosts that share a key.
  export:
    type: list
    elements: str
    default: []
    description: Names of keys whose private half is returned, to be given to another host; say no_log.
  owner:
    type: str
    default: root
    description: User who can read the keys; root where there is none of this name yet.
  group:
    type: str
    description: Group of the keys; the owner's own when not given.
  mode:
    type: str
    default: "0600"
    description: Mode of the files.
author: Trustworthy Email estate
"""

EXAMPLES = r"""
- name: Make the next key
  dkim_key:
    directory: /etc/opendkim/made
    present: [20261128a._domainkey.example.org]
    owner: opendkim
"""

RETURN = r"""
found:
  description: Name to public key (the tag p=) of all keys that are there afterwards.
  returned: always
  type: dict
private:
  description: Name to private key, of I(export).
  returned: always
  type: dict
"""

NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?\._domainkey\.[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
BITS = 2048


class Keys:
    """The keys in one directory."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.directory = Path(module.params["directory"])

    def path(self, name: str) -> Path:
        """The file of a key."""
        return self.directory / f"{name}.pem"

    def openssl(self, *arguments: str, data: str = "", binary: bool = False) -> Any:
        """What openssl prints; nothing secret is on its command line."""
        program = self.module.get_bin_path("openssl", required=True)
        code, out, err = self.module.run_command(
            [program, *arguments], data=data or None, binary_data=True, encoding=None if binary else "utf-8"
        )
        if code:
            text = err if isinstance(err, str) else err.decode("utf-8", "replace")
            raise ValueError(f"openssl {arguments[0]}: {text.strip()[-200:]}")
        return out

    def public(self, name: str) -> str:
        """The tag p= of a key that is there (RFC 6376 section 3.6.1)."""
        der = self.openssl("pkey", "-in", str(self.path(name)), "-pubout", "-outform", "DER", binary=True)
        return base64.b64encode(der).decode()

    def present(self) -> dict[str, str]:
        """All keys that are there; a file that is no key counts as not there."""
        found = {}
        for path in sorted(self.directory.glob("*.pem")):
            if NAME.fullmatch(path.stem) and path.stat().st_size:
                try:
                    found[path.stem] = self.public(path.stem)
                except ValueError as error:
                    self.module.warn(f"{path} is no key: {error}")
        return found

    def owner(self) -> tuple[int, int]:
        """User and group of the files."""
        try:
            user = pwd.getpwnam(self.module.params["owner"])
        except KeyError:
            return 0, 0
        group = self.module.params["group"]
        try:
            return user.pw_uid, grp.getgrnam(group).gr_gid if group else user.pw_gid
        except KeyError:
            return user.pw_uid, 0

    def write(self, name: str, pem: str) -> None:
        """A new file, complete from the moment it has its name."""
        uid, gid = self.owner()
        mode = int(self.module.params["mode"], 8)
        if not self.directory.is_dir():
            self.directory.mkdir(mode=0o700, parents=True)
            os.chown(self.directory, uid, gid)
            if mode & 0o070:
                self.directory.chmod(0o750)
        handle, temporary = tempfile.mkstemp(dir=self.directory, prefix=".new-")
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(pem.strip() + "\n")
                file.flush()
                os.fchown(file.fileno(), uid, gid)
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(temporary, self.path(name))
        except BaseException:
            os.unlink(temporary)
            raise
        directory = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def make(self) -> str:
        """A new private key."""
        return self.openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", f"rsa_keygen_bits:{BITS}")


def run(module: AnsibleModule) -> dict[str, Any]:
    """Does the module's work."""
    keys, params = Keys(module), module.params
    there = keys.present()
    given = {name: pem for name, pem in params["given"].items() if name not in there}
    new = [name for name in params["present"] if name not in there and name not in given]
    old = [name for name in params["absent"] if keys.path(name).exists()]
    for name in (*given, *new, *old, *params["export"]):
        if not NAME.fullmatch(name):
            raise ValueError(f'"{name}" is not SELECTOR._domainkey.DOMAIN in lower case')
    if not module.check_mode:
        for name, pem in given.items():
            keys.openssl("pkey", "-noout", data=pem)
            keys.write(name, pem)
        for name in new:
            keys.write(name, keys.make())
        for name in old:
            keys.path(name).unlink()
        there = keys.present()
    private = {name: keys.path(name).read_text(encoding="ascii") for name in params["export"] if name in there}
    return {"changed": bool(given or new or old), "found": there, "private": private}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "present": {"type": "list", "elements": "str", "default": []},
            "absent": {"type": "list", "elements": "str", "default": []},
            "given": {"type": "dict", "default": {}, "no_log": True},
            "export": {"type": "list", "elements": "str", "default": []},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str"},
            "mode": {"type": "str", "default": "0600"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"signing keys in {module.params['directory']}: {error}")


if __name__ == "__main__":
    main()
