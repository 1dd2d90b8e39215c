"""Documentation of the options that every module has that talks to Mailman's REST interface."""

from __future__ import annotations


class ModuleDocFragment:
    """Options of ``mailman_rest.REST_ARGUMENTS``."""

    DOCUMENTATION = r"""
options:
  url:
    type: str
    default: http://127.0.0.1:8001
    description: Mailman's REST interface.
  user:
    type: str
    default: restadmin
    description: User of the REST interface.
  password:
    type: str
    required: true
    description: Password of the REST interface.
"""
