#!/usr/bin/env python3
"""Run dmarc-reports and kill it (SIGKILL) when it enters or leaves a function: kill_at.py STEP COUNT ARGUMENTS…

STEP is call:MODULE:FUNCTION or return:MODULE:FUNCTION, MODULE as it is imported, FUNCTION with its class; the process
dies at the COUNT-th time. The program itself knows nothing of it. Run as the program's user, with its PYTHONPATH.

Exit status: killed, or 3 if the program ended before it came there.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from types import FrameType
from typing import Any


def main() -> int:
    """Watch, and run the program."""
    event, module, function = sys.argv[1].split(":")
    left = int(sys.argv[2])

    def watch(frame: FrameType, what: str, _value: Any) -> None:
        nonlocal left
        code = frame.f_code
        if what == event and code.co_qualname == function and frame.f_globals.get("__name__") == module:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.argv = ["dmarc-reports", *sys.argv[3:]]
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        runpy.run_module("dmarc_reports", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            return int(end.code)
    finally:
        sys.setprofile(None)
    return 3


if __name__ == "__main__":
    sys.exit(main())
