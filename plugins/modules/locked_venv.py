#!/usr/bin/python
"""Ansible module: a virtual environment of Python that holds what a lock file says, and nothing else."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: locked_venv
short_description: Build a virtual environment by a lock file, and switch to it when it is whole
description:
  - The environment is built beside the one in use, in C(<path>-<digest of the lock and of Python>). C(path) is a link
    that is turned once the new one is whole, so a failed build changes nothing, and services go on with the old one
    until they are restarted. What neither is in use nor was before is removed.
  - pip takes its proxy, certificates and index from the task's C(environment).
options:
  path:
    type: path
    required: true
    description: The link by which the environment is used.
  requirements:
    type: str
    required: true
    description: The lock, a text in pip's format in which every package has a version and hashes.
  python:
    type: path
    default: /usr/bin/python3
    description: The interpreter that the environment is made for. It needs venv and ensurepip.
  compile_translations:
    type: bool
    default: false
    description: Compile the message catalogues that packages bring as text only. It needs msgfmt.
author: Trustworthy Email estate
"""

EXAMPLES = r"""
- name: Have the reporter
  locked_venv:
    path: /opt/tlsrpt/venv
    requirements: "{{ lookup('ansible.builtin.file', 'requirements.txt') }}"
  environment: "{{ tlsrpt_pip_environment }}"
"""

RETURN = r"""
place:
  description: Where the environment is.
  returned: always
  type: str
"""

#: Another number has every environment built anew.
LAYOUT = 1
#: What builds the few packages that come as source: locked, too, and installed before them.
BUILDERS = ("packaging==", "setuptools", "typing-extensions==", "vcs-versioning==", "wheel==")


def run(module: AnsibleModule, *command: str) -> str:
    """Run a command; its output is shown only when it fails."""
    status, output, errors = module.run_command(list(command))
    if status:
        module.fail_json(msg=f"{command[0]} {' '.join(command[1:4])} … failed:\n{(output + errors)[-4000:]}")
    return output


def build(module: AnsibleModule, place: Path, lock: str) -> None:
    """Make the environment; the file ``complete`` says that it is whole."""
    shutil.rmtree(place, ignore_errors=True)
    run(module, module.params["python"], "-m", "venv", str(place))
    install = [str(place / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    tools = [line for line in lock.replace("\\\n", " ").splitlines() if line.startswith(BUILDERS)]
    for text, options in (("\n".join(tools), []), (lock, ["--no-build-isolation"])):
        if text.strip():
            file = place / "requirements.txt"
            file.write_text(text + "\n", encoding="utf-8")
            run(module, *install, "--quiet", "--require-hashes", "--no-deps", *options, "-r", str(file))
    if module.params["compile_translations"]:
        for text in place.glob("lib/*/site-packages/**/LC_MESSAGES/*.po"):
            compiled = text.with_suffix(".mo")
            if not compiled.exists():
                run(module, "msgfmt", "--output-file", str(compiled), str(text))
    (place / "complete").touch()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "requirements": {"type": "str", "required": True},
            "python": {"type": "path", "default": "/usr/bin/python3"},
            "compile_translations": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    target, lock = Path(module.params["path"]), module.params["requirements"]
    if module.check_mode and not Path(module.params["python"]).exists():
        module.exit_json(changed=True, place="")
    version = run(module, module.params["python"], "-c", "import sys; print(sys.version_info[:2])").strip()
    digest = hashlib.sha256(f"{LAYOUT} {version}\n{lock}".encode()).hexdigest()[:12]
    place = target.with_name(f"{target.name}-{digest}")
    before = target.resolve() if target.is_symlink() else None
    whole = (place / "complete").exists()
    if (before == place and whole) or module.check_mode:
        module.exit_json(changed=not (before == place and whole), place=str(place))
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not whole:
        build(module, place, lock)
    link = target.with_name(f"{target.name}.new")
    link.unlink(missing_ok=True)
    link.symlink_to(place.name)
    link.replace(target)
    for old in target.parent.glob(f"{target.name}-*"):
        if old not in (place, before):
            shutil.rmtree(old)
    module.exit_json(changed=True, place=str(place))


if __name__ == "__main__":
    main()
