"""Filters about mailing lists: ``{{ estate_lists | estate_list_problems(estate_model) }}``, and CSV for the list host.

The work is done by the modules in plugins/module_utils; this file only gives them to templates.
"""

from __future__ import annotations

import base64
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

sys.path.append(str(Path(__file__).resolve().parents[1] / "module_utils"))

import estate_lists


def estate_list_problems(lists: Any, model: Any, base: Any = None, profiles: Any = None) -> list[str]:
    """Everything that is wrong with the mailing lists, in plain sentences; empty when they are valid."""
    return estate_lists.problems(lists, model, base, profiles)


def packed_file(path: str) -> str:
    """The bytes of a file on the controller, packed into text for a module's argument.

    Bytes, because a list of members comes in whatever encoding somebody's spreadsheet writes.
    """
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise AnsibleFilterError(f"{path}: {error.strerror}") from error
    return base64.b64encode(zlib.compress(content)).decode()


class FilterModule:
    """What Ansible asks for the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by the name under which templates call them."""
        return {function.__name__: function for function in (estate_list_problems, packed_file)}
