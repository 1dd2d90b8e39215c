"""The screening: every second, each mail that Postfix has delivered goes on to parsedmarc or aside."""

from __future__ import annotations

import logging
import signal
import threading
import time

from parsedmarc_intake.confined import look_at
from parsedmarc_intake.places import Places, mails
from parsedmarc_intake.settings import Settings
from parsedmarc_intake.store import Store

log = logging.getLogger(__name__)
#: Seconds between two looks into the mailbox.
INTERVAL = 1.0
#: After a mail could not be moved (a full disk), seconds until it is tried again.
PATIENCE = 30.0


class Screening:
    """Looks at what has come. One mail that cannot be dealt with never holds up the others."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self.places = Places(settings.home)
        self.store = store
        self.later: dict[str, float] = {}

    def once(self) -> int:
        """Deal with everything that is there now; returns how many mails went on or aside."""
        done = 0
        present = sorted(
            mails([self.places.incoming / "new", self.places.incoming / "cur"]), key=lambda path: path.name
        )
        for mail in present:
            if self.later.get(mail.name, 0) > time.monotonic():
                continue
            try:
                verdict = look_at(mail, self.settings)
                if verdict.kind is None:
                    self.places.let_in(mail)
                else:
                    self.places.put_aside(mail, verdict)
                    log.warning("%s set aside as %s: %s", mail.name, verdict.kind, verdict.reason)
                self.later.pop(mail.name, None)
                done += 1
            except FileNotFoundError:
                continue
            except OSError as error:
                self.later[mail.name] = time.monotonic() + PATIENCE
                log.error("%s could not be dealt with, and is tried again in %d s: %s", mail.name, PATIENCE, error)
        return done


def run(settings: Settings) -> int:
    """Screen until SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    store = Store(settings.dsn)
    screening = Screening(settings, store)
    screening.places.make()
    log.warning("Screening what comes to %s.", screening.places.incoming)
    while not stop.is_set():
        screening.once()
        store.record(screening.places)
        stop.wait(INTERVAL)
    return 0
