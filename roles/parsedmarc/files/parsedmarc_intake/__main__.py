"""``parsedmarc-intake``: screening, upkeep, and the operator's commands. Exit status 1: it failed; 2: wrong use."""

from __future__ import annotations

import argparse
import logging
import os
import pwd
import sys
from pathlib import Path

from parsedmarc_intake import operator, screen, upkeep
from parsedmarc_intake.examine import KINDS
from parsedmarc_intake.settings import SettingsError, load

USER = "parsedmarc"


def become(user: str) -> None:
    """root has no business with strangers' mail: what follows is done as the user whose mailbox it is."""
    if os.geteuid():
        return
    entry = pwd.getpwnam(user)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(
        prog="parsedmarc-intake", description="Reports that came in, and what became of them."
    )
    parser.add_argument("--config", type=Path, default=Path("/etc/parsedmarc-intake.conf"), help="file of settings")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("screen", help="look at what comes in, until stopped (the service does this)")
    commands.add_parser("upkeep", help="try again, heal, retire and count, once (the timer does this)")
    listed = commands.add_parser("list", help="list what was set aside")
    listed.add_argument("kind", nargs="?", choices=sorted(KINDS))
    listed.add_argument("--json", action="store_true", help="for programs")
    shown = commands.add_parser("show", help="show one mail's reason and header")
    shown.add_argument("mail", help="its name, or the beginning of it")
    released = commands.add_parser("release", help="let mails in after all")
    released.add_argument("mail", nargs="+", help="their names, or the beginnings of them")
    released.add_argument("--anyway", action="store_true", help="whatever else is found in them")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    os.umask(0o027)
    try:
        become(USER)
        settings = load(arguments.config)
        if arguments.command == "screen":
            return screen.run(settings)
        if arguments.command == "upkeep":
            return upkeep.run(settings)
        if arguments.command == "list":
            print(operator.listing(settings, arguments.kind, arguments.json))
        elif arguments.command == "show":
            print(operator.show(settings, arguments.mail))
        else:
            print("\n".join(operator.release(settings, arguments.mail, arguments.anyway)))
    except (SettingsError, operator.OperatorError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
