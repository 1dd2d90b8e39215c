"""Filter of the role mailman: a directory of this repository as files for a host."""

from __future__ import annotations

import base64
from pathlib import Path


def mailman_tree(source: str, target: str) -> dict[str, dict[str, str]]:
    """All files below ``source`` by the path they shall have below ``target``, as the module mailman_files takes them.

    Compiled Python is left out. Raises ValueError when there is no such directory.
    """
    root = Path(source)
    if not root.is_dir():
        raise ValueError(f"{source} is no directory")
    found: dict[str, dict[str, str]] = {}
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.suffix == ".pyc":
            continue
        content = path.read_bytes()
        try:
            said = {"content": content.decode()}
        except UnicodeDecodeError:
            said = {"base64": base64.b64encode(content).decode()}
        found[f"{target}/{path.relative_to(root)}"] = said
    return found


class FilterModule:
    """Ansible finds the filters here."""

    def filters(self) -> dict[str, object]:
        return {"mailman_tree": mailman_tree}
