"""Mailman's queue runners keep a message whose time has not come, instead of shunting it.

Stock runners move a message to the shunt queue, where it waits for a human, whenever processing it fails: also when
PostgreSQL restarts, the resolver does not answer or the runner is told to stop in the middle. They also remove the
queue file before they commit to the database, so that a commit that fails loses what was in it. Here such a message
stays in its queue under its old name, untouched, and is taken up again; what fails for another reason is shunted as
ever. For a delivery that was interrupted, ``progress`` knows who has been served.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from dns.exception import DNSException
from lazr.config import as_timedelta
from mailman.config import config
from mailman.core.runner import Runner
from mailman.core.switchboard import Switchboard
from mailman.interfaces.runner import RunnerInterrupt
from requests.exceptions import RequestException
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError

from mailman_estate import progress

log = logging.getLogger("mailman.error")

#: Switchboard and name of the queue file that this process works on. Not in the message's metadata: what is held for a
#: moderator is stored with all of that.
_origin: tuple[Switchboard, str] | None = None
_PAUSE = 3.0
#: Causes that pass by themselves. PendingRollbackError: the session has not been rolled back after one of the
#: others.
_PASSING = (OperationalError, PendingRollbackError, DNSException, RequestException, ConnectionError, socket.gaierror)


def is_passing(error: BaseException) -> bool:
    """Whether trying again later can help: the database, the resolver or a local service is away, or we are to stop."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, (*_PASSING, RunnerInterrupt))


def origin() -> tuple[Switchboard, str] | None:
    """The queue file that this process works on, None outside a runner."""
    return _origin


def install(settings: Mapping[str, str]) -> None:
    """Put this in the place of the runners' own way. Once per process; a further call does no harm."""
    if hasattr(Runner._process_one_file, "stock"):
        return
    stock_process, stock_iteration = Runner._process_one_file, Runner._one_iteration
    stock_dequeue, stock_finish = Switchboard.dequeue, Switchboard.finish

    def dequeue(self: Switchboard, filebase: str) -> tuple[Any, dict[str, Any]]:
        """See ``mailman.interfaces.switchboard.ISwitchboard``."""
        global _origin
        _origin = (self, filebase)
        return stock_dequeue(self, filebase)

    def finish(self: Switchboard, filebase: str, preserve: bool = False) -> None:
        """See ``mailman.interfaces.switchboard.ISwitchboard``."""
        if not preserve and getattr(self, "_estate_keep", None) == filebase:
            self._estate_keep = None
            _put_back(self, filebase)
            return
        stock_finish(self, filebase, preserve)
        if not preserve:
            with contextlib.suppress(FileNotFoundError):
                progress.record_of(self.queue_directory, filebase).unlink()

    def process_one_file(self: Runner, msg: Any, msgdata: dict[str, Any]) -> None:
        """See ``mailman.interfaces.runner.IRunner``."""
        try:
            stock_process(self, msg, msgdata)
            config.db.commit()
        except Exception as error:
            if _origin is None or not is_passing(error) or _is_old(_origin[1]):
                raise
            if not isinstance(error, RunnerInterrupt):
                log.error(
                    "%s: %s waits in its queue: %s", self.name, msg.get("message-id", "a message"), _briefly(error)
                )
            _roll_back()
            _origin[0]._estate_keep = _origin[1]
            if not isinstance(error, RunnerInterrupt):
                _pause(self)

    def one_iteration(self: Runner) -> int:
        """See ``mailman.interfaces.runner.IRunner``."""
        try:
            return stock_iteration(self)
        except RunnerInterrupt:
            raise  # ends the runner's loop; no message is being processed here
        except Exception as error:
            # The commit after each message and the periodic work are not guarded in stock Mailman: the process ends,
            # and after max_restarts such ends it is not started again.
            if not is_passing(error):
                raise
            log.error("%s: goes on when this has passed: %s", self.name, _briefly(error))
            _roll_back()
            _pause(self)
            return 0

    process_one_file.stock = stock_process  # type: ignore[attr-defined]
    Switchboard.dequeue, Switchboard.finish = dequeue, finish
    Runner._process_one_file, Runner._one_iteration = process_one_file, one_iteration


def _briefly(error: BaseException) -> str:
    """The first line of an error; SQLAlchemy adds the statement and its values."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _put_back(switchboard: Switchboard, filebase: str) -> None:
    """Make the backup of a queue file the queue file again, at its old place in the order."""
    base = os.path.join(switchboard.queue_directory, filebase)
    with contextlib.suppress(FileNotFoundError):
        os.rename(base + ".bak", base + ".pck")


def _is_old(filebase: str) -> bool:
    """Whether a message has waited as long as undeliverable mail may ([mta] delivery_retry_period)."""
    with contextlib.suppress(ValueError):
        age = timedelta(seconds=time.time() - float(filebase.split("+", 1)[0]))
        return age > as_timedelta(config.mta.delivery_retry_period)
    return True


def _roll_back() -> None:
    """End the transaction; with the database away this fails, and the session then opens a new connection."""
    with contextlib.suppress(Exception):
        config.db.abort()


def _pause(runner: Runner) -> None:
    """Wait a moment before the next try; a signal ends that and stops the runner in its loop."""
    with contextlib.suppress(RunnerInterrupt):
        time.sleep(_PAUSE)
