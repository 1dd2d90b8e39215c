"""Look at the daemons of a gateway, and kill one: runs inside the gateway, prints one line of JSON.

``gateway_agent.py cpu``
    Seconds of processor time that each systemd unit has used so far, ended children included.

``gateway_agent.py kill UNIT PORT main|worker SECONDS``
    SIGKILL to the main process of a unit (a pattern of systemctl), or to one of its worker processes; then wait (at
    most SECONDS) until systemd, or the main process, has replaced it and PORT answers, and say how long that took.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """One process and the unit it belongs to."""

    pid: int
    parent: int
    name: str
    unit: str
    seconds: float


def processes() -> list[Process]:
    """Every process of this host."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat, cgroup = (folder / "stat").read_text(), (folder / "cgroup").read_text()
        except OSError:
            continue  # it has just ended
        name, _, rest = stat.partition("(")[2].rpartition(")")
        fields = rest.split()
        unit = re.search(r"/([^/\n]+\.(?:service|scope))(?:/[^/\n]*)?$", cgroup, re.MULTILINE)
        used = sum(int(value) for value in fields[11:15])  # utime stime cutime cstime
        found.append(Process(int(folder.name), int(fields[1]), name, unit[1] if unit else "", used / TICKS))
    return found


def cpu() -> dict[str, float]:
    """Seconds of processor time by unit."""
    used: dict[str, float] = {}
    for process in processes():
        used[process.unit] = used.get(process.unit, 0.0) + process.seconds
    return used


def running_unit(pattern: str) -> str:
    """The running unit whose name fits a pattern of systemctl; LookupError when there is not exactly one."""
    units = subprocess.run(
        ["systemctl", "list-units", "--plain", "--no-legend", "--state=running", "--type=service", pattern],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    ).stdout.splitlines()
    if len(units) != 1:
        raise LookupError(f"{len(units)} running units are named {pattern}")
    return units[0].split()[0]


def show(unit: str) -> dict[str, str]:
    """What systemd says of a unit."""
    properties = "MainPID,Restart,ActiveState,SubState"
    lines = subprocess.run(
        ["systemctl", "show", f"--property={properties}", unit], capture_output=True, text=True, check=True, timeout=10
    ).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def workers(main: int) -> set[int]:
    """The children of a process."""
    return {process.pid for process in processes() if process.parent == main}


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def kill(pattern: str, port: int, which: str, seconds: float) -> dict[str, object]:
    """Kill and wait; what happened is in the answer."""
    try:
        unit = running_unit(pattern)
    except LookupError as error:
        return {"error": str(error)}
    before = show(unit)
    main = int(before["MainPID"])
    children = workers(main)
    if which == "worker" and not children:
        return {"unit": unit, "error": f"{unit} has no worker process"}
    victim = main if which == "main" else min(children)
    name = next(process.name for process in processes() if process.pid == victim)
    os.kill(victim, signal.SIGKILL)
    killed = time.time()
    result = {"unit": unit, "victim": f"{name}[{victim}]", "time": killed, "restart": before["Restart"], "back": None}
    while time.time() < killed + seconds:
        time.sleep(0.1)
        if which == "main":
            now = show(unit)
            replaced = now["ActiveState"] == "active" and int(now["MainPID"]) not in (0, main)
        else:
            replaced = len(workers(main) - {victim}) >= len(children) or int(show(unit)["MainPID"]) != main
        if replaced and answers(port):
            result["back"] = time.time() - killed
            break
    return result


def main(arguments: list[str]) -> None:
    if arguments[0] == "cpu":
        print(json.dumps(cpu()))
    else:
        print(json.dumps(kill(arguments[1], int(arguments[2]), arguments[3], float(arguments[4]))))


if __name__ == "__main__":
    main(sys.argv[1:])
