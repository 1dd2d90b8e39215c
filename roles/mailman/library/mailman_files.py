#!/usr/bin/python
"""Ansible module: many files in one step."""

from __future__ import annotations

import base64
import grp
import os
import pwd
import shutil

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: mailman_files
short_description: Put many files in place in one step
description:
  - Compares content, owner and mode of every file and replaces those that differ, each by one rename.
  - Directories named in owned hold these files and no other.
  - Tells which of the files named in derived their makers should make again.
options:
  files:
    type: dict
    required: true
    description: By path, a dict of content (or base64), and where they are not root, root and 0644, owner, group, mode.
  owned:
    type: list
    elements: path
    default: []
    description: Directories whose other files are removed, apart from compiled Python.
  derived:
    type: dict
    default: {}
    description: Files that another program makes, each with the file that it makes it from.
author: Trustworthy Email estate
"""

EXAMPLES = r"""
- name: Put units in place
  mailman_files:
    files:
      /etc/systemd/system/example.service: {content: "[Service]\nExecStart=/bin/true\n"}
"""

RETURN = r"""
changed_files:
  description: Paths that were written, mended or removed.
  type: list
  returned: always
outdated:
  description: Paths of derived that are missing or older than what they are made from.
  type: list
  returned: always
"""


class File:
    """One file as it shall be."""

    def __init__(self, path: str, said: dict[str, str]) -> None:
        self.path = path
        self.content = base64.b64decode(said["base64"]) if "base64" in said else said["content"].encode()
        self.mode = int(said.get("mode", "0644"), 8)
        self.owner, self.group = said.get("owner", "root"), said.get("group", "root")

    def before(self) -> bytes | None:
        """What is there now; None when it is nothing, or no file."""
        if os.path.islink(self.path) or not os.path.isfile(self.path):
            return None
        with open(self.path, "rb") as file:
            return file.read()

    def ids(self) -> tuple[int, int]:
        return pwd.getpwnam(self.owner).pw_uid, grp.getgrnam(self.group).gr_gid

    def differs(self) -> bool:
        """Whether content, mode or owner is not as it shall be."""
        if self.before() != self.content:
            return True
        state = os.stat(self.path)
        try:
            return (state.st_mode & 0o7777, state.st_uid, state.st_gid) != (self.mode, *self.ids())
        except KeyError:
            return True

    def write(self) -> None:
        """Replace the file; it has its owner and mode from its first byte on."""
        os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
        new = f"{self.path}.ansible-new"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchown(file.fileno(), *self.ids())
            os.fchmod(file.fileno(), self.mode)
            file.write(self.content)
        os.replace(new, self.path)

    def difference(self) -> dict[str, str]:
        """What ``--diff`` shows; of a file that others may not read, only that it differs."""
        header = {"before_header": self.path, "after_header": self.path}
        before = self.before() or b""
        try:
            shown = before.decode(), self.content.decode()
        except UnicodeDecodeError:
            shown = "(binary)\n", "(binary, changed)\n"
        if not self.mode & 0o004:
            shown = "(secret)\n", "(secret, changed)\n"
        return header | {"before": shown[0], "after": shown[1]}


def strangers(directory: str, wanted: set[str]) -> list[str]:
    """Files in a directory that nobody named, and directories that hold none that is."""
    found = []
    for folder, folders, names in os.walk(directory):
        for name in list(folders):
            path = os.path.join(folder, name)
            if name == "__pycache__":
                folders.remove(name)
            elif not any(other.startswith(path + "/") for other in wanted):
                folders.remove(name)
                found.append(path)
        found += [path for path in (os.path.join(folder, name) for name in names) if path not in wanted]
    return found


def outdated(derived: dict[str, str]) -> list[str]:
    """Files that are missing or older than what they are made from; of nothing, nothing can be older."""
    found = []
    for path, source in derived.items():
        made = os.stat(path).st_mtime if os.path.exists(path) else None
        if made is None or (os.path.exists(source) and os.stat(source).st_mtime > made):
            found.append(path)
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "dict", "required": True},
            "owned": {"type": "list", "elements": "path", "default": []},
            "derived": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    files = [File(path, said) for path, said in module.params["files"].items()]
    old_umask = os.umask(0o022)
    changed = [file for file in files if file.differs()]
    surplus = [path for owned in module.params["owned"] for path in strangers(owned, {file.path for file in files})]
    difference = [file.difference() for file in changed]
    difference += [{"before_header": path, "after_header": "/dev/null", "before": "", "after": ""} for path in surplus]
    if not module.check_mode:
        for file in changed:
            try:
                file.write()
            except (OSError, KeyError) as error:
                module.fail_json(msg=f"{file.path} cannot be written: {error}")
        for path in surplus:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.remove(path)
    os.umask(old_umask)
    paths = [file.path for file in changed] + surplus
    late = outdated(module.params["derived"])
    module.exit_json(changed=bool(paths), changed_files=paths, outdated=late, diff=difference)


if __name__ == "__main__":
    main()
