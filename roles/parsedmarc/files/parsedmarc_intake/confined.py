"""Look at a mail in a process of its own, with limits of memory and time, so that no mail can stop the screening."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from pathlib import Path

from parsedmarc_intake.examine import Verdict, clean, examine
from parsedmarc_intake.settings import MEGABYTE, Settings

#: Address space that looking at a mail may take, in bytes: one of 15 MB with 50 MB in it takes less than half.
MEMORY = 512 * MEGABYTE
#: Seconds of processor time, and seconds by the clock on a busy host.
PROCESSOR = 30
SECONDS = 120


def _child(path: Path, settings: Settings, authenticate: bool, answer: int) -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR, PROCESSOR))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        verdict = examine(path, settings, authenticate=authenticate)
    except FileNotFoundError:
        os._exit(3)
    except MemoryError:
        verdict = Verdict("unexamined", "Looking at it takes more memory than is allowed.", size=path.stat().st_size)
    except Exception as error:
        name = type(error).__name__
        verdict = Verdict("unexamined", f"Looking at it failed: {name}: {clean(error)}", size=path.stat().st_size)
    data = json.dumps(verdict.as_dict()).encode()
    while data:
        data = data[os.write(answer, data) :]
    os._exit(0)


def look_at(path: Path, settings: Settings, *, authenticate: bool = True) -> Verdict:
    """The verdict on a mail; of kind ``unexamined`` if the limits were met.

    Raises FileNotFoundError if the mail has gone meanwhile.
    """
    size = path.stat().st_size
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.close(reading)
            _child(path, settings, authenticate, writing)
        finally:
            os._exit(4)
    os.close(writing)
    answer = bytearray()
    until = time.monotonic() + SECONDS
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while (left := until - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
            chunk = pipe.read(1 << 16)
            if not chunk:
                break
            answer += chunk
        else:
            os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 3:
        raise FileNotFoundError(path)
    if code == 0:
        return Verdict.of(json.loads(answer))
    return Verdict("unexamined", f"Looking at it takes more time or memory than is allowed ({code}).", size=size)
