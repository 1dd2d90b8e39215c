#!/usr/bin/env python3
"""Send real messages through every path of the lab and print the way each took: the end of ``make lab``.

Exit status: 0 every message went the way it should, 1 one did not, 2 the lab does not answer.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from estatelib import Delivery, Estate, Mailbox, Post, World, auth_results
from estatelib.places import ADDRESSES, GATEWAYS, INJECTED_BY, INJECTION_HOST, INJECTION_PORT

GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n"
REFUSED = "refused"
COLUMNS = "{:<46} {:<56} {:<8} {:<6} {:<6} {:<5} {:<4} {}"
REFUSAL = "{:<46} {:<90} {}"


@dataclass(frozen=True)
class Path:
    """One row of the table: what is sent, how, to whom, and where it should end."""

    title: str
    send: Callable[[str], Post]
    to: str = "alice@example.org"
    expected: str = "INBOX"  # or "Junk" or REFUSED
    mailbox: str = ""  # where the mail ends, when that is not ``to``


def paths(estate: Estate) -> list[Path]:
    """Return every path that mail takes through the estate."""
    strict, own_server = estate.world("example.com"), estate.world("example.com").send
    spammer, by_hand = estate.world("example.co.jp"), estate.world("example.com").hand_over
    alice = "alice@example.org"
    forgery = partial(_forge, estate, strict)
    outside = {
        "example.com": "p=reject, DKIM",
        "example.net": "p=reject, only SPF",
        "example.edu": "p=none, only SPF",
        "example.jp": "no policy at all",
    }
    policies = [
        Path(f"{domain} ({policy}) by {gateway}", partial(estate.world(domain).send, gateway=gateway))
        for domain, policy in outside.items()
        for gateway in GATEWAYS
    ]
    return [
        *policies,
        Path("example.com by its own server and our MX", own_server),
        Path("example.com over IPv6", partial(own_server, family=6), "bob@example.org"),
        Path("to a campus with a recipient list", own_server, "hanako@sfc.example.org"),
        Path("to a member organisation's own host", own_server, "user@member.example.org"),
        Path("by a list whose seals we trust", own_server, "list@example.ac.jp", mailbox=alice),
        Path("by a list whose seals we do not trust", own_server, "list@example.edu", "Junk", mailbox=alice),
        Path("forwarded by us, with SRS", own_server, "forwarded-edu@example.org", mailbox="admin@example.edu"),
        Path("by one of us from anywhere, to a colleague", estate.user(alice).send, "bob@example.org"),
        Path("forged: example.com from a stranger", forgery, expected="Junk"),
        Path("spam", partial(spammer.hand_over, body=GTUBE), expected=REFUSED),
        Path("to nobody", by_hand, "nobody@example.org", REFUSED),
        Path("to a closed domain", by_hand, "anyone@closed.example.org", REFUSED),
    ]


def _forge(estate: Estate, victim: World, to: str) -> Post:
    return estate.forge(victim.compose(to), envelope=f"user@{victim.domain}", to=to)


def way(copy: Delivery) -> str:
    """Return the hosts a message passed, oldest first; ``⇒`` is a hop over TLS and ``→`` one in clear."""
    line = ""
    for hop in reversed(copy.headers("Received")):
        found = re.search(r"from (\S+).* by (\S+) .*with (\S+)", hop)
        if not found:
            continue
        source, target, protocol = (part.removesuffix(".example.org") for part in found.groups())
        if source in (INJECTED_BY, "world", target) or protocol == "LMTP":
            continue  # how the lab handed it in, a second round in one host, and the step into the mailbox
        arrow = " ⇒ " if protocol.endswith("S") else " → "
        line = (line or source) + arrow + target
    return line


def row(path: Path, post: Post) -> tuple[str, bool]:
    """Return the table row of a message that has been sent, and whether it ended where it should."""
    if post.reply and post.reply.code != 250:
        last = post.reply.text.splitlines()[-1]
        return REFUSAL.format(path.title, last[:90], REFUSED), path.expected == REFUSED
    mailbox = path.mailbox or path.to
    copy = Mailbox(mailbox).wait_for(post.message_id)
    verdict = auth_results(copy)
    results = [result or "-" for result in (verdict.spf, verdict.dkim, verdict.dmarc, verdict.arc)]
    seals = f"i={len(copy.headers('ARC-Seal'))}"
    line = COLUMNS.format(path.title, way(copy), *results, seals, f"{mailbox} {copy.folder}")
    return line, path.expected == copy.folder


def main() -> int:
    """Send everything first, then wait for each message and print its row."""
    estate = Estate()
    todo = paths(estate)
    try:
        sent = [(path, path.send(path.to)) for path in todo]
    except OSError as error:
        print(f"demo: the lab does not answer ({error}): run `make lab`", file=sys.stderr)
        return 2
    header = COLUMNS.format("message", "way (⇒ over TLS)", "spf", "dkim", "dmarc", "arc", "ARC", "where")
    print(header, "-" * len(header), sep="\n")
    wrong = 0
    for path, post in sent:
        try:
            line, right = row(path, post)
        except AssertionError as error:
            line, right = f"{path.title:<46} {error}", False
        wrong += not right
        print(line + ("" if right else f"   ← should be {path.expected}"))
    print(f"\n{len(sent) - wrong} of {len(sent)} messages went the way they should.\n")
    print(look_around())
    return int(bool(wrong))


def look_around() -> str:
    """Return what there is to look at, and how to log in."""
    return f"""Look around:
  any host              ssh -F .lab/ssh/config mail-gw1    (mail-gw2, ml, smtp, analytics, mail, world)
  mailboxes as files    .lab/mailboxes/mail/example.org/alice/Maildir/new/    (outside ones below .lab/mailboxes/world/)
  mailboxes by IMAP     {ADDRESSES["mail"][0]}, port 993, as alice@example.org; password in .lab/secrets/mailboxes
  send as one of us     {ADDRESSES["smtp"][0]}, port 587 or 465, as alice@example.org; .lab/secrets/submission-alice
  metrics, rspamd       ssh -F .lab/ssh/config -N -L 8897:127.0.0.1:8897 -L 11334:127.0.0.1:11334 mail-gw1
                        then http://127.0.0.1:8897/metrics and http://127.0.0.1:11334/
  send more             by SMTP to {INJECTION_HOST}:{INJECTION_PORT}; the sender's domain chooses the outside system
"""


if __name__ == "__main__":
    sys.exit(main())
