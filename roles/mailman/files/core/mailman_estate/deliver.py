"""Delivery of one post to many members, with one-click unsubscription in each member's own copy (RFC 8058).

``[mta] outgoing: mailman_estate.deliver.deliver``. Mailman's own function goes on doing what it does: it chooses
batched or individual delivery, writes smtp.log and sorts failures into bounces and retries. The two agents that it uses
are ours. They write the message out once, seal it once (ARC, RFC 8617), and hand it over through a few pipelined
connections at a time; ``progress`` keeps who has been served, so that a runner that is killed serves nobody else twice.

Individual copies of a list with ``personalize: individual`` get their own List-Unsubscribe and List-Unsubscribe-Post,
put between header and body as octets. The ARC seal leaves these two out (RFC 8617 §4.1.2 lets the sealer choose), so
one seal fits all copies; the DKIM signature, made by the mail system afterwards, covers them. Where each copy differs
in more than header lines – a footer that names the member, ``personalize: full`` – every copy is made and sealed by
Mailman's own callbacks, which takes its time, and sent in the same way.

What goes wrong in here before anything is sent is logged, and Mailman's own agent delivers. A recipient whose copy
cannot be made or sent goes to the retry queue, alone.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import queue
import re
import smtplib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from email import message_from_bytes
from typing import Any, NamedTuple
from uuid import UUID

from lazr.config import as_boolean
from mailman.config import config
from mailman.email.message import Message
from mailman.interfaces.mailinglist import Personalization
from mailman.interfaces.mta import SomeRecipientsFailed
from mailman.interfaces.runner import RunnerInterrupt
from mailman.interfaces.template import ITemplateLoader, ITemplateManager
from mailman.mta import deliver as stock
from mailman.mta.base import BaseDelivery
from mailman.mta.bulk import BulkDelivery
from mailman.mta.deliver import Deliver
from sqlalchemy.exc import SQLAlchemyError
from zope.component import getUtility

from mailman_estate import one_click, runners, wire
from mailman_estate.progress import Progress, record_of, sweep
from mailman_estate.recipients import memberships
from mailman_estate.settings import number
from mailman_estate.submission import ConnectionLost, Refused, submit

log = logging.getLogger("mailman.error")
smtp_log = logging.getLogger("mailman.smtp")

#: Members served by individual copies before other mail that waits in the queue gets its turn.
SLICE = 1000
#: The same for batched copies, which go some ten times as fast.
BATCHED_SLICE = 20000
#: Seconds that a mail system which does not answer is waited for, before what is left goes back into the queue.
PATIENCE = 15
#: RFC 5321 §4.5.3.2.6: the longest wait, for the reply to the final dot.
TIMEOUT = 600
#: Name of the record of who has been served, in the metadata; never stored.
PROGRESS = "_estate_progress"
#: Header fields that differ from copy to copy; the ARC seal of individual copies leaves them out.
OWN_FIELDS = (b"list-unsubscribe", b"list-unsubscribe-post")
PERSONAL = re.compile(r"\$\{?(member|user_\w+)\b")
DECORATIONS = ("list:member:regular:header", "list:member:regular:footer")
NOT_TRIED = "not tried: the mail system cannot be reached, or Mailman stops"
#: Stands for a copy that could not be made.
NO_COPY = wire.Copy(b"", b"", 0)

_swept: set[str] = set()


class _Settings:
    """What ``install`` was given."""

    web_base = ""
    key_file = ""
    connections = 4


def install(settings: Mapping[str, str]) -> None:
    """Take the settings ``web_base``, ``unsubscribe_key_file`` and ``smtp_connections`` (1 to 20)."""
    _Settings.web_base = settings.get("web_base", "").strip().rstrip("/")
    _Settings.key_file = settings.get("unsubscribe_key_file", "").strip()
    _Settings.connections = number(settings, "smtp_connections", 4, 1, 20)


class Job(NamedTuple):
    """One message to hand over."""

    sender: str
    recipients: list[str]
    copy: wire.Copy


def deliver(mlist: Any, msg: Message, msgdata: dict[str, Any]) -> None:
    """See ``mailman.interfaces.mta``; raises SomeRecipientsFailed as ``mailman.mta.deliver.deliver`` does."""
    if not msgdata.get("recipients"):
        return
    origin = runners.origin()
    progress = _progress(origin)
    wanted = set(msgdata["recipients"])
    rest = sorted(wanted - progress.accepted)
    if progress.accepted:
        smtp_log.info("%s goes to %d recipients who have not had it yet", msg["message-id"], len(rest))
    individual = msgdata.get("verp") or mlist.personalize is not Personalization.none
    size = SLICE if individual else BATCHED_SLICE
    temporary: list[str] = []
    permanent: list[Any] = []
    msgdata[PROGRESS] = progress
    try:
        while rest:
            part, rest = rest[:size], rest[size:]
            msgdata["recipients"] = part
            try:
                stock.deliver(mlist, msg, msgdata)
            except SomeRecipientsFailed as failed:
                temporary += [one for one in failed.temporary_failures if one not in progress.untried]
                permanent += failed.permanent_failures
            if progress.untried or (rest and _others_wait(origin)):
                break
    except BaseException:
        # Wherever the message goes from here, it goes to those who have not had it.
        msgdata["recipients"] = sorted(wanted - progress.accepted)
        raise
    finally:
        progress.close()
        del msgdata[PROGRESS]
    if later := sorted(progress.untried.union(rest)):
        config.switchboards["out"].enqueue(msg, msgdata, recipients=later)
    if temporary or permanent:
        raise SomeRecipientsFailed(temporary, permanent)


class BatchedCopies(BulkDelivery):
    """One message for many recipients of a chunk, as Mailman's own, through several connections."""

    def deliver(self, mlist: Any, msg: Message, msgdata: dict[str, Any]) -> Refused:
        """See ``mailman.interfaces.mta.IMailTransportAgentDelivery``."""
        return _deliver(self, super().deliver, mlist, msg, msgdata)

    def jobs(self, mlist: Any, msg: Message, msgdata: dict[str, Any]) -> Iterator[Job]:
        """What is to be handed over. The message is changed in place and the changes noted, as Mailman does."""
        if mlist.include_rfc2369_headers and not msgdata.get("arc_signed"):
            del msg["List-Unsubscribe-Post"]  # it spoke of another list's List-Unsubscribe, which is replaced by now
        self.decorate(mlist, msg, msgdata)
        if not msgdata.get("arc_signed"):
            _mend(msg)
        self.arc_sign(mlist, msg, msgdata)
        octets = wire.as_copy(wire.mended(wire.written(msg)))
        sender = self._get_sender(mlist, msg, msgdata)
        chunks = self.chunkify(msgdata["recipients"])
        return (Job(sender, sorted(chunk), octets) for chunk in chunks)


class OwnCopies(Deliver):
    """A message of its own for each recipient."""

    def deliver(self, mlist: Any, msg: Message, msgdata: dict[str, Any]) -> Refused:
        """See ``mailman.interfaces.mta.IMailTransportAgentDelivery``."""
        return _deliver(self, super().deliver, mlist, msg, msgdata)

    def jobs(self, mlist: Any, msg: Message, msgdata: dict[str, Any]) -> Iterator[Job]:
        """What is to be handed over, made as it is asked for."""
        links = _links(mlist, msg, msgdata)
        if mlist.personalize is Personalization.full or _names_member(mlist, msgdata):
            make = self._made_for_each(mlist, msg, msgdata, links)
        else:
            make = self._made_once(mlist, msg, msgdata, links)
        return self._each(mlist, msg, msgdata, make)

    def _each(
        self, mlist: Any, msg: Message, msgdata: dict[str, Any], make: Callable[[str], wire.Copy]
    ) -> Iterator[Job]:
        data = msgdata.copy()
        for recipient in msgdata["recipients"]:
            data["recipient"] = recipient
            try:
                job = Job(self._get_sender(mlist, msg, data), [recipient], make(recipient))
            except RunnerInterrupt:
                raise
            except Exception:
                log.exception("%s: no copy for %s could be made; tried again later", msg["message-id"], recipient)
                job = Job("", [recipient], NO_COPY)
            yield job

    def _made_once(
        self, mlist: Any, msg: Message, msgdata: dict[str, Any], links: Links | None
    ) -> Callable[[str], wire.Copy]:
        """Copies that differ in header lines only."""
        common, data = copy.deepcopy(msg), msgdata.copy()
        del common["x-mailman-copy"]
        self.decorate(mlist, common, data)
        octets = self._sealed(mlist, common, data, links)
        doubled = msgdata.get("add-dup-header", ())

        def make(recipient: str) -> wire.Copy:
            own = b"X-Mailman-Copy: yes\r\n" if recipient in doubled else b""
            return octets.with_own(own + links.lines(recipient) if links else own)

        return make

    def _made_for_each(
        self, mlist: Any, msg: Message, msgdata: dict[str, Any], links: Links | None
    ) -> Callable[[str], wire.Copy]:
        """Copies of which each is made by Mailman's callbacks."""

        def make(recipient: str) -> wire.Copy:
            own, data = copy.deepcopy(msg), msgdata.copy()
            data["recipient"] = recipient
            data["member"] = mlist.members.get_member(recipient.lower())
            self.avoid_duplicates(mlist, own, data)
            self.decorate(mlist, own, data)
            self.personalize_to(mlist, own, data)
            octets = self._sealed(mlist, own, data, links)
            return octets.with_own(links.lines(recipient)) if links else octets

        return make

    def _sealed(self, mlist: Any, msg: Message, msgdata: dict[str, Any], links: Links | None) -> wire.Copy:
        """The message, sealed and written out; with ``links`` without the fields that each copy has of its own."""
        if not msgdata.get("arc_signed"):
            _mend(msg)
        if links is None:
            self.arc_sign(mlist, msg, msgdata)
        else:
            del msg["List-Unsubscribe"], msg["List-Unsubscribe-Post"]
            covered = config.arc.headers if config.arc_enabled else None
            try:
                if covered is not None:
                    config.arc.headers = [name for name in covered if name not in OWN_FIELDS]
                self.arc_sign(mlist, msg, msgdata)
            finally:
                if covered is not None:
                    config.arc.headers = covered
        return wire.as_copy(wire.mended(wire.written(msg)))


class Links:
    """The header lines by which each member of a list leaves it with one click."""

    def __init__(self, mlist: Any, stock_lines: bytes, keys: tuple[bytes, ...], members: Mapping[str, UUID]) -> None:
        self._list_id, self._leave = mlist.list_id, mlist.leave_address
        self._stock_lines, self._keys, self._members = stock_lines, keys, members

    def lines(self, recipient: str) -> bytes:
        """The member's own lines; for somebody who is no member those that every copy would have."""
        member_id = self._members.get(recipient.lower())
        if member_id is None:
            return self._stock_lines
        token = one_click.make_token(self._keys, self._list_id, member_id)
        return wire.one_click(f"{_Settings.web_base}/unsubscribe/{token}", self._leave)


def _links(mlist: Any, msg: Message, msgdata: dict[str, Any]) -> Links | None:
    """The members' links, None for mail that gets none: notices, lists without own copies, copies sealed before."""
    if (
        mlist.personalize is Personalization.none
        or msgdata.get("reduced_list_headers")
        or msgdata.get("arc_signed")
        or not (msgdata.get("to_list") or msgdata.get("isdigest") or "list-post" in msg)
        or not _Settings.web_base
    ):
        return None
    try:
        keys = one_click.load_keys(_Settings.key_file)
    except (OSError, ValueError) as error:
        log.error("%s: copies go out without one-click unsubscription: %s", mlist.fqdn_listname, error)
        return None
    policy = msg.policy.clone(linesep="\r\n")
    values = msg.get_all("List-Unsubscribe", [])
    stock_lines = b"".join(policy.fold_binary("List-Unsubscribe", value) for value in values)
    return Links(mlist, wire.mended(stock_lines), keys, memberships(mlist))


def _names_member(mlist: Any, msgdata: dict[str, Any]) -> bool:
    """Whether header or footer have something of the member in them, in their text or in the URI they come from."""
    if msgdata.get("isdigest") or msgdata.get("nodecorate"):
        return False
    manager, loader = getUtility(ITemplateManager), getUtility(ITemplateLoader)
    for name in DECORATIONS:
        for context in (mlist.list_id, mlist.mail_host, None):
            template = manager.raw(name, context)
            if template is not None and PERSONAL.search(template.uri):
                return True
        if PERSONAL.search(loader.get(name, mlist)):
            return True
    return False


def _mend(msg: Message) -> None:
    """Make every CR or LF that stands alone a line end, before the seal covers it."""
    octets = wire.written(msg)
    if wire.has_stray_line_ends(octets):
        msg.__dict__.update(message_from_bytes(wire.mended(octets), Message).__dict__)


def _progress(origin: Any) -> Progress:
    """The record of who has been served from a queue file; a record that cannot be read counts as none."""
    if origin is None:
        return Progress(None)
    switchboard, filebase = origin
    try:
        if switchboard.queue_directory not in _swept:
            _swept.add(switchboard.queue_directory)
            sweep(switchboard.queue_directory)
        return Progress(record_of(switchboard.queue_directory, filebase))
    except OSError:
        log.exception("%s: nobody knows who has been served", filebase)
        return Progress(None)


def _others_wait(origin: Any) -> bool:
    """Whether the runner has other messages to deliver."""
    return origin is not None and bool(origin[0].files)


def _deliver(agent: Any, stock_deliver: Callable[..., Refused], mlist: Any, msg: Message, msgdata: Any) -> Refused:
    """Deliver by the agent's jobs; by Mailman's own way where they cannot be made, or in developers' mode."""
    progress = msgdata.get(PROGRESS) or Progress(None)
    jobs = None
    if not as_boolean(config.devmode.enabled):
        try:
            jobs = agent.jobs(mlist, msg, msgdata)
        except (RunnerInterrupt, SQLAlchemyError):
            raise
        except Exception:
            log.exception("%s is delivered Mailman's slow way", msg["message-id"])
    if jobs is None:
        refused = stock_deliver(mlist, msg, msgdata)
        progress.add(set(msgdata["recipients"]).difference(refused))
        return refused
    return _Connections(progress).send(jobs, msgdata["recipients"])


class _Connections:
    """A few connections to the mail system, each served by a thread, that share the jobs of one delivery."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._jobs: queue.Queue[Job | None] = queue.Queue(4 * _Settings.connections)
        self._threads: list[threading.Thread] = []
        self._refused: Refused = {}
        self._stopping = False
        self._away_since: float | None = None

    def send(self, jobs: Iterable[Job], recipients: Iterable[str]) -> Refused:
        """Hand everything over and return who was refused.

        Those who were neither accepted nor refused are in the progress's ``untried`` and, with code 444, in the answer.
        """
        try:
            for job in jobs:
                if self._stopping:
                    break
                if len(self._threads) < _Settings.connections:
                    thread = threading.Thread(target=self._work, daemon=True)
                    self._threads.append(thread)
                    thread.start()
                self._jobs.put(job)
        except RunnerInterrupt:
            self._stopping = True
        except Exception:
            log.exception("the delivery ends early; what is left of it follows")
            self._stopping = True
        self._wait()
        left = set(recipients).difference(self._progress.accepted, self._refused)
        self._progress.untried = left
        return self._refused | dict.fromkeys(left, (444, NOT_TRIED))

    def _wait(self) -> None:
        """Until every thread has ended; a signal to stop makes them end after the message they are at."""
        ends = len(self._threads)
        while ends or any(thread.is_alive() for thread in self._threads):
            try:
                while ends:
                    self._jobs.put(None)
                    ends -= 1
                for thread in self._threads:
                    thread.join()
            except RunnerInterrupt:
                self._stopping = True

    def _work(self) -> None:
        """What each thread does. It never raises, or its jobs would lie in the queue for ever."""
        connection = BaseDelivery()._connection
        while (job := self._jobs.get()) is not None:
            if self._stopping:
                continue
            try:
                self._one(connection, job)
            except Exception:
                log.exception("a message to %d recipients could not be sent; tried again later", len(job.recipients))
                self._refused.update(dict.fromkeys(job.recipients, (444, "could not be sent")))
        with contextlib.suppress(Exception):
            connection.quit()

    def _one(self, connection: Any, job: Job) -> None:
        """Send one message; its recipients are then accepted, refused or, when there is no connection, neither."""
        if job.copy is NO_COPY:
            self._refused.update(dict.fromkeys(job.recipients, (444, "no copy could be made")))
            return
        for last_try in (False, True):
            if not self._connect(connection):
                return
            try:
                refused = submit(connection._connection, job.sender, job.recipients, job.copy)
            except ConnectionLost as lost:
                connection._connection = None
                if not lost.tried and not last_try:
                    continue  # it had been closed since the last message
                smtp_log.error("%d recipients: %s", len(job.recipients), lost)
                refused = dict.fromkeys(job.recipients, (444, str(lost)))
            except ValueError as error:
                refused = dict.fromkeys(job.recipients, (553, str(error)))
            break
        if served := [recipient for recipient in job.recipients if recipient not in refused]:
            try:
                self._progress.add(served)
            except OSError:
                log.exception("%d recipients have been served but it could not be noted", len(served))
        self._refused.update(refused)
        if connection._connection is not None:
            connection._session_count -= 1
            if connection._connection.sock is None or connection._session_count == 0:
                connection.quit()

    def _connect(self, connection: Any) -> bool:
        """Open the connection if it is not. False: the mail system has been away for too long, or we are to stop."""
        while connection._connection is None and not self._stopping:
            try:
                connection._connect()
                connection._connection.sock.settimeout(TIMEOUT)
                # Without it the kernel waits 40 ms for an acknowledgement now and then.
                connection._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection._connection.ehlo_or_helo_if_needed()
                connection._login()
                self._away_since = None
            except (OSError, smtplib.SMTPException) as error:
                with contextlib.suppress(Exception):
                    connection.quit()
                connection._connection = None
                now = time.monotonic()
                self._away_since = self._away_since or now
                if now - self._away_since > PATIENCE:
                    log.error(
                        "mail waits: %s:%s cannot be reached: %s", config.mta.smtp_host, config.mta.smtp_port, error
                    )
                    self._stopping = True
                else:
                    time.sleep(1)
        return not self._stopping


# The one seam that Mailman's own function has.
stock.BulkDelivery, stock.Deliver = BatchedCopies, OwnCopies
