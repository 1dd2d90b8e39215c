"""Hand posts to the archive that it could not take when they were sent.

While the web interface is down, core keeps each post for the archive in a spool, and looks there again only when the
next post comes: on a quiet site never. A timer runs this as core's user, with core's Python.

A post that the archive refuses although it answers (a NUL byte in the body, for example) would be tried for ever: the
fifth time it goes to the queue "bad", where the watch finds it. Exit status 0: done, or the archive does not answer
yet; 1: something else is wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

CONFIG = "/etc/mailman3/mailman.cfg"
STATE = Path("/var/lib/mailman3")
SPOOL = STATE / "archives/hyperkitty/spool"
REFUSALS = STATE / "data/archive_refusals.json"
MOST_REFUSALS = 5


def flush() -> None:
    """Send what waits, oldest first, until the archive does not answer."""
    from mailman.core.initialize import initialize

    initialize(CONFIG)
    from mailman_hyperkitty import Archiver
    from requests.exceptions import RequestException

    archiver = Archiver()
    spool = archiver._switchboard
    refusals: dict[str, int] = json.loads(REFUSALS.read_text()) if REFUSALS.exists() else {}
    refused: dict[str, int] = {}
    for name in spool.files:
        try:
            message, data = spool.dequeue(name)  # to .bak, which core takes up again should this process die
        except FileNotFoundError:
            continue  # core itself was quicker
        except Exception as error:
            print(f"{name} is no queue file ({error}): put aside", file=sys.stderr)
            spool.finish(name, preserve=True)
            continue
        key = f"{data['mlist'].list_id} {message['message-id']}"
        try:
            archiver._send_message(data["mlist"], message)
        except RequestException:
            (SPOOL / f"{name}.bak").rename(SPOOL / f"{name}.pck")
            print("the archive does not answer; its posts wait")
            refused |= refusals
            break
        except ValueError as error:
            refused[key] = refusals.get(key, 0) + 1
            given_up = refused[key] >= MOST_REFUSALS
            print(f"the archive refuses {key} ({str(error)[:200]}){': put aside' if given_up else ''}", file=sys.stderr)
            if given_up:
                del refused[key]
                spool.finish(name, preserve=True)
            else:
                (SPOOL / f"{name}.bak").rename(SPOOL / f"{name}.pck")
        else:
            spool.finish(name)
            print(f"archived {key}")
    new = REFUSALS.with_suffix(".new")
    new.write_text(json.dumps(refused))
    new.replace(REFUSALS)


if __name__ == "__main__":
    if any(SPOOL.glob("*.pck")):
        flush()
