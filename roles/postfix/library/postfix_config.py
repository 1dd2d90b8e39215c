#!/usr/bin/python
"""Ansible module: replace a Postfix configuration, but only by one that Postfix itself accepts."""

from __future__ import annotations

import os
import re
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: postfix_config
short_description: Put a proven Postfix configuration in place
description:
  - Writes main.cf, master.cf, /etc/aliases and the lookup tables into a directory beside the live ones, compiles the
    tables and lets postmap(1), postalias(1), postconf(1) and postfix(1) judge them. Any warning stops the run and names
    the fault; the live configuration is then untouched.
  - Only files that differ are replaced, each by one rename. Files in maps.d that are not named any more are removed.
  - Queue files are never touched.
options:
  config_directory:
    type: path
    default: /etc/postfix
    description: The live configuration.
  main:
    type: str
    required: true
    description: Content of main.cf.
  master:
    type: str
    required: true
    description: Content of master.cf.
  aliases:
    type: str
    required: true
    description: Content of /etc/aliases.
  maps:
    type: dict
    default: {}
    description: Lookup tables by name, each a dict of type, mode and content; a secret one has no content here.
  secret_maps:
    type: dict
    default: {}
    description: Content of the secret tables by name; never shown.
  chroot_copies:
    type: list
    elements: path
    default: []
    description: Files that daemons in the chroot need as copies below the queue directory.
author: Trustworthy Email estate
"""

EXAMPLES = r"""
- name: Put the configuration in place
  postfix_config:
    main: "{{ lookup('ansible.builtin.template', 'main.cf.j2') }}"
    master: "{{ lookup('ansible.builtin.template', 'master.cf.j2') }}"
    aliases: "postmaster: root"
    maps:
      transport: {type: lmdb, mode: "0644", content: "example.org relay:[mail.example.org]"}
"""

RETURN = r"""
action:
  description: What Postfix needs to take the change up; none also when it is not running.
  type: str
  returned: always
  sample: reloaded
installed:
  description: False only in check mode on a host that has no Postfix yet.
  type: bool
  returned: always
changed_files:
  description: Paths that differ.
  type: list
  returned: always
"""

ALIASES = "/etc/aliases"
ALIASES_TYPE = "lmdb"
POSTCONF = "/usr/sbin/postconf"
SEARCH_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
OWNER = 0
SUFFIX = {"lmdb": ".lmdb", "hash": ".db", "btree": ".db"}

# postconf(5) says of each of these that Postfix must be stopped and started.
RESTART_PARAMETERS = (
    "inet_interfaces",
    "inet_protocols",
    "queue_directory",
    "data_directory",
    "mail_owner",
    "setgid_group",
    "maillog_file",
)

# What is looked at as a table: type:/path, but not a URL.
TABLE = re.compile(r"(?<![\w.-])([a-z0-9]+):/(?!/)([^\s,}]*)")


def read(path: str) -> str | None:
    """The content of a file, or None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(path: str, content: str, mode: int) -> None:
    """Write a new file with this mode from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)


class Item:
    """One file of the configuration: where it lives, what it shall hold, and whether it needs compiling."""

    def __init__(self, path: str, content: str, mode: str = "0644", kind: str = "", secret: bool = False) -> None:
        self.path = path
        self.content = content
        self.mode = int(mode, 8)
        self.compiled = path + SUFFIX[kind] if kind in SUFFIX else ""
        self.kind = kind
        self.before = read(path)
        self.secret = secret or (self.before is not None and not os.stat(path).st_mode & 0o004)

    @property
    def is_alias(self) -> bool:
        """Whether postalias(1), not postmap(1), compiles it."""
        return self.path == ALIASES

    def differs(self) -> bool:
        """Whether content, mode or the compiled form is not what it shall be."""
        if self.before != self.content:
            return True
        state = os.stat(self.path)
        if state.st_mode & 0o7777 != self.mode or state.st_uid != OWNER:
            return True
        if not self.compiled:
            return False
        try:
            compiled = os.stat(self.compiled)
        except FileNotFoundError:
            return True
        return compiled.st_mtime < state.st_mtime or compiled.st_mode & 0o7777 != self.mode

    def difference(self) -> dict[str, str]:
        """What ``--diff`` shows."""
        header = {"before_header": self.path, "after_header": self.path}
        if self.secret:
            return header | {"before": "(secret)\n", "after": "(secret, changed)\n"}
        return header | {"before": self.before or "", "after": self.content}


class Configuration:
    """The candidate, the live configuration, and the way from one to the other."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.live = module.params["config_directory"]
        self.maps_directory = os.path.join(self.live, "maps.d")
        self.installed = os.path.exists(POSTCONF)
        self.main = Item(os.path.join(self.live, "main.cf"), module.params["main"])
        self.master = Item(os.path.join(self.live, "master.cf"), module.params["master"])
        self.aliases = Item(ALIASES, module.params["aliases"], kind=ALIASES_TYPE)
        self.tables = [self._table(name, table) for name, table in module.params["maps"].items()]
        self.items = [*self.tables, self.aliases, self.master, self.main]

    def _table(self, name: str, table: dict[str, str]) -> Item:
        missing = [key for key in ("type", "mode") if not table.get(key)]
        if missing:
            self.stop(f"maps.{name} has no {' and no '.join(missing)}.")
        secret = table.get("content") is None
        if secret and name not in self.module.params["secret_maps"]:
            self.stop(f"maps.{name} has no content, and secret_maps has none for it.")
        content = self.module.params["secret_maps"][name] if secret else table["content"]
        return Item(os.path.join(self.maps_directory, name), content, table["mode"], table["type"], secret)

    def run(self, *command: str) -> tuple[int, str]:
        """Run a program; return its exit code and what it complained about."""
        code, _output, errors = self.module.run_command(list(command))
        return code, errors.strip()

    def stop(self, why: str, *details: str) -> None:
        """End the run; nothing live has been touched."""
        text = "\n".join(dict.fromkeys(line for detail in details for line in detail.splitlines()))
        self.module.fail_json(msg=f"{why} The live configuration is untouched.\n{text}".strip())

    def candidate(self, item: Item, directory: str) -> str:
        """Where an item lies within the candidate."""
        return os.path.join(directory, "aliases" if item.is_alias else os.path.relpath(item.path, self.live))

    def undefined_tables(self) -> None:
        """Stop at a table of an unknown type, or one of maps.d that nobody writes."""
        _code, types, _errors = self.module.run_command(["postconf", "-m"])
        services = (line.split()[0] for line in self.master.content.splitlines() if line[:1].isalpha())
        known = {*types.split(), *services}
        names = {item.path for item in self.tables}
        for item in (self.main, self.master):
            lines = "\n".join(line for line in item.content.splitlines() if "argv=" not in line and line[:1] != "#")
            for kind, rest in TABLE.findall(lines):
                if kind not in known:
                    self.stop(f"{item.path} uses the table type {kind!r} ({kind}:/{rest}), which this Postfix has not.")
                path = "/" + rest
                if path.startswith(self.maps_directory + "/") and path not in names:
                    self.stop(f"{item.path} refers to {kind}:{path}, but no such table is given.")

    def prove(self, directory: str) -> None:
        """Write the candidate into ``directory`` and let Postfix judge it; stop the run at the first fault."""
        self.undefined_tables()
        os.makedirs(os.path.join(directory, "maps.d"), 0o755)
        for item in self.items:
            write(self.candidate(item, directory), item.content, item.mode)
        for item in self.items:
            if item.compiled:
                candidate = self.candidate(item, directory)
                program = "postalias" if item.is_alias else "postmap"
                code, errors = self.run(program, "-c", directory, f"{item.kind}:{candidate}")
                if code or errors:
                    self.stop(f"The table {item.path} has a fault.", errors.replace(directory, self.live))
                os.chmod(candidate + SUFFIX[item.kind], item.mode)
        complaints = []
        for option in ("-n", "-M", "-P"):
            code, errors = self.run("postconf", "-c", directory, option)
            if code or errors:
                complaints.append(errors.replace(directory, self.live))
        if complaints:
            self.stop("Postfix does not accept the new configuration.", *complaints)
        if not self.module.check_mode:  # it creates missing queue directories
            code, errors = self.run("postfix", "-c", directory, "check")
            if code:
                self.stop("postfix check does not accept the new configuration.", errors.replace(directory, self.live))

    def stale(self) -> list[str]:
        """Files in maps.d that belong to no table."""
        if not os.path.isdir(self.maps_directory):
            return []
        wanted = {path for item in self.tables for path in (item.path, item.compiled)}
        present = (os.path.join(self.maps_directory, name) for name in sorted(os.listdir(self.maps_directory)))
        return [path for path in present if path not in wanted]

    def parameters(self, directory: str) -> str:
        """The values whose change needs a restart."""
        return self.module.run_command(["postconf", "-c", directory, *RESTART_PARAMETERS])[1]

    def chroot_copies(self) -> list[Item]:
        """Copies below the queue directory that are missing or differ from the original."""
        queue = self.module.run_command(["postconf", "-xh", "queue_directory"])[1].strip()
        copies = []
        for source in self.module.params["chroot_copies"]:
            try:
                with open(source, "rb") as file:
                    content = file.read().decode("utf-8", "surrogateescape")
            except FileNotFoundError:
                continue
            copy = Item(queue + source, content, mode=f"{os.stat(source).st_mode & 0o7777:04o}")
            if copy.differs():
                copies.append(copy)
        return copies

    def activate(self, directory: str, changed: list[Item], stale: list[str]) -> None:
        """Move the proven files into place: tables first, main.cf last."""
        os.makedirs(self.maps_directory, exist_ok=True)
        os.chmod(self.maps_directory, 0o755)  # whatever the umask
        for item in changed:
            candidate = self.candidate(item, directory)
            target = ALIASES + ".candidate" if item.is_alias else candidate
            if item.is_alias:  # /etc may be another file system than the configuration
                shutil.copy2(candidate, target)
            os.replace(target, item.path)
            if item.compiled:
                compiled = candidate + SUFFIX[item.kind]
                os.utime(compiled)
                if item.is_alias:
                    shutil.copy2(compiled, ALIASES + ".candidate")
                    compiled = ALIASES + ".candidate"
                os.replace(compiled, item.compiled)
        for path in stale:
            os.unlink(path)


def copy_into_chroot(item: Item) -> None:
    """Replace one copy below the queue directory by one rename."""
    os.makedirs(os.path.dirname(item.path), 0o755, exist_ok=True)
    write(item.path + ".candidate", item.content, item.mode)
    os.replace(item.path + ".candidate", item.path)


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "config_directory": {"type": "path", "default": "/etc/postfix"},
            "main": {"type": "str", "required": True},
            "master": {"type": "str", "required": True},
            "aliases": {"type": "str", "required": True},
            "maps": {"type": "dict", "default": {}},
            "secret_maps": {"type": "dict", "default": {}, "no_log": True},
            "chroot_copies": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    module.run_command_environ_update = {"LC_ALL": "C", "PATH": SEARCH_PATH}
    configuration = Configuration(module)
    changed = [item for item in configuration.items if item.differs()]
    stale = configuration.stale()
    result = {
        "changed": bool(changed or stale),
        "action": "none",
        "installed": configuration.installed,
        "changed_files": [item.path for item in changed] + stale,
        "diff": [item.difference() for item in changed]
        + [{"before_header": path, "before": "(present)\n", "after_header": path, "after": ""} for path in stale],
    }
    if not configuration.installed:
        if not module.check_mode:
            module.fail_json(msg=f"Postfix is not installed: there is no {POSTCONF}.")
        module.exit_json(**result | {"msg": "Not proven, because Postfix is not installed yet."})

    restart = False
    if result["changed"]:
        parent = module.tmpdir if module.check_mode else configuration.live
        directory = tempfile.mkdtemp(prefix=".candidate-", dir=parent)
        os.chmod(directory, 0o755)
        try:
            configuration.prove(directory)
            restart = configuration.parameters(configuration.live) != configuration.parameters(directory)
            if not module.check_mode:
                configuration.activate(directory, changed, stale)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    copies = configuration.chroot_copies()
    result["changed"] = result["changed"] or bool(copies)
    result["changed_files"] += [item.path for item in copies]
    result["diff"] += [item.difference() for item in copies]
    if not module.check_mode:
        for item in copies:
            copy_into_chroot(item)

    running = configuration.run("postfix", "-c", configuration.live, "status")[0] == 0
    needs_reload = copies or stale or any(not item.compiled for item in changed)
    if running and restart:
        result["action"] = "restarted"
    elif running and needs_reload:
        result["action"] = "reloaded"
    module.exit_json(**result)


if __name__ == "__main__":
    main()
