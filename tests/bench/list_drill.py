#!/usr/bin/env python3
"""200 posts to a list of 200 members while what carries them is killed in turn: everybody has each post exactly once.

Mailman's out runners, PostgreSQL and Postfix's master get SIGKILL again and again while the posts are on their way to a
sink. Whoever hands the posts over tries again after 4xx and cut connections, as Postfix does; all the rest has to come
back by itself. SMTP cannot avoid that a copy comes twice when one side dies between the other's 250 and its own note of
it (RFC 1047): with one queue id that was Postfix delivering; with two it was Mailman handing over, and the first of
them must then have been given within seconds of a kill, one at most for each connection of a runner. Any other double
is a fault.

Exit status: 0 nothing lost or shunted, every double explained; 1 otherwise; 2 the lab is not ready.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import sys
import time
from collections import Counter

from benchlib import BenchError, ends_tidily, podman
from list_fanout import LIST_HOST, FanoutSink, ListHost

from estatelib.hosts import CommandFailedError
from estatelib.lists import RestError, queues

SIZE = 2048
PATIENCE = 600  # seconds for all of it
AROUND = 5  # seconds around a kill in which a hand-over may have been cut
IN_FLIGHT = 16  # hand-overs at a time: 4 out runners with 4 connections each
BASE_52 = "0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz"  # of Postfix's long queue ids
#: How each is killed; the pattern of the runners is written so that it does not match the shell that looks for it.
VICTIMS = {
    "out runners": "pkill -KILL -u list -f -- '[-]-runner=out:'",
    "PostgreSQL": "systemctl kill --signal=KILL 'postgresql@*.service'",
    "Postfix": "systemctl kill --signal=KILL 'postfix*.service'",
}


def drill(host: ListHost, sink: FanoutSink, members: list[str], posts: int, rounds: int, kind: str) -> bool:
    """Post, kill, wait and count; whether everybody has everything once."""
    wanted = len(members) * posts
    deadline = time.monotonic() + PATIENCE
    with host.mail_to_the_sink(), host.lists(members) as lists, concurrent.futures.ThreadPoolExecutor(1) as pool:
        sink.ask("start")
        posting = pool.submit(host.run, "post", [lists[kind], SIZE, posts], PATIENCE)
        kills = list(VICTIMS) * rounds
        killed: list[tuple[float, str]] = []
        for number, name in enumerate(kills, 1):
            _wait_for(sink, wanted * number // (len(kills) + 1), deadline)
            killed.append((time.time(), name))
            podman(LIST_HOST, "sh", "-c", VICTIMS[name])
            print(f"  {sink.ask('count')['copies']} of {wanted} copies: killed {name}", flush=True)
        posting.result()
        _wait_for(sink, wanted, deadline, flush=True)
        time.sleep(5)  # a second copy
        doubled = sink.ask("doubled")
        left = queues()
    copies = sink.ask("count")["copies"]
    by_postfix = [ids for _, _, ids in doubled if len(set(ids)) == 1]
    by_mailman = Counter(_cause(min(ids, key=_taken), killed) for _, _, ids in doubled if len(set(ids)) > 1)
    print(f"{copies} of {wanted} copies; shunted {left['shunt']}, bad {left['bad']}")
    print(f"came twice: {len(by_postfix)} delivered twice by Postfix, and handed over twice:")
    for cause, times in by_mailman.items():
        print(f"  {times} × {cause or 'UNEXPLAINED'}")
    explained = all(cause and times <= IN_FLIGHT for cause, times in by_mailman.items())
    return copies == wanted and explained and not left["shunt"] and not left["bad"]


def _taken(queue_id: str) -> float:
    """UNIX time at which Postfix took a message: its long queue id begins with seconds and microseconds."""
    return _number(queue_id[:6]) + _number(queue_id[6:10]) / 1e6


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * len(BASE_52) + BASE_52.index(digit)
    return value


def _cause(queue_id: str, killed: list[tuple[float, str]]) -> str:
    """The kill that cut the hand-over of a message, empty when there was none."""
    near = [(when, name) for when, name in killed if abs(when - _taken(queue_id)) < AROUND and name != "PostgreSQL"]
    return f"{near[0][1]}, killed at {time.strftime('%T', time.localtime(near[0][0]))}" if near else ""


def _wait_for(sink: FanoutSink, copies: int, deadline: float, flush: bool = False) -> None:
    """Wait for so many copies; with ``flush`` Postfix is asked to try again at once what waits for its turn."""
    while (came := sink.ask("count")["copies"]) < copies:
        if time.monotonic() > deadline:
            raise BenchError(f"{came} of {copies} copies came within {PATIENCE} s")
        if flush:
            podman(LIST_HOST, "postqueue", "-f", check=False)
        time.sleep(2 if flush else 0.2)


def main() -> int:
    """Run the drill; see the module's text for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=200)
    parser.add_argument("--posts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is killed")
    parser.add_argument("--kind", choices=("batched", "personalised"), default="personalised")
    options = parser.parse_args()
    members = [f"fanout{number}@load.example.org" for number in range(options.members)]
    try:
        with ends_tidily():
            sink = FanoutSink()
            try:
                good = drill(ListHost(), sink, members, options.posts, options.rounds, options.kind)
            finally:
                sink.close()
    except (BenchError, CommandFailedError, RestError) as error:
        print(f"drill: {error}", file=sys.stderr)
        return 2
    print("met" if good else "NOT MET")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
