"""Build a virtual environment by its lock file and switch to it: ``build_environment.py /opt/parsedmarc/venv``.

The lock, ``requirements.txt`` with hashes, lies beside this program. The environment is built beside the one in use, in
``/opt/parsedmarc/venv-<digest of the lock and of Python>``; the name in use is a link that is turned once the new one
is whole. So a failed build changes nothing, and services go on with the old one until they are restarted. What neither
is in use nor was before is removed.

pip takes its proxy, certificates and index from the environment. Prints "unchanged" when there is nothing to do;
with ``--check`` nothing is done at all. Exit status 1: the build failed, and pip's own words say why.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

#: Another number has the environment built anew.
LAYOUT = 1
#: What builds the few packages that come as source: locked, too, and installed before them.
BUILDERS = ("packaging==", "setuptools==", "wheel==")


def run(*command: str) -> None:
    """Run a command; its output is shown only when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{command[0]} {command[1]} … failed:\n{done.stdout[-4000:]}")


def build(place: Path, lock: str) -> None:
    """Make the environment; the file ``complete`` says that it is whole."""
    shutil.rmtree(place, ignore_errors=True)
    run(sys.executable, "-m", "venv", str(place))
    pip = [str(place / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    tools = [line for line in lock.replace("\\\n", " ").splitlines() if line.startswith(BUILDERS)]
    for requirements, options in (("\n".join(tools) + "\n", []), (lock, ["--no-build-isolation"])):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(requirements)
            file.flush()
            run(*pip, "--require-hashes", "--no-deps", *options, "-r", file.name)
    (place / "complete").touch()


def main(target: Path, check: bool) -> None:
    """Make the link ``target`` lead to an environment that holds what the lock says."""
    lock = Path(__file__).with_name("requirements.txt").read_text()
    digest = hashlib.sha256(f"{LAYOUT} {sys.version_info[:2]}\n{lock}".encode()).hexdigest()[:12]
    place = target.with_name(f"{target.name}-{digest}")
    before = target.resolve() if target.is_symlink() else None
    if before == place and (place / "complete").exists():
        print("unchanged")
        return
    if check:
        print(f"{target} would be {place.name}")
        return
    target.parent.mkdir(mode=0o755, exist_ok=True)
    if not (place / "complete").exists():
        build(place, lock)
    link = target.with_name(f"{target.name}.new")
    link.unlink(missing_ok=True)
    link.symlink_to(place.name)
    link.replace(target)
    for old in target.parent.glob(f"{target.name}-*"):
        if old not in (place, before):
            shutil.rmtree(old)
    print(f"{target} is {place.name} now")


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--check" in sys.argv[2:])
