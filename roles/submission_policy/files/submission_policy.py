#!/usr/bin/python3
"""The submission host's sender policy: a milter before the DKIM signer, and the operator's command (RFC 6409 §6.1).

`submission-policy serve` compares what a message says of its author with who sent it, counts recipients, blocks
accounts that look stolen and tells the postmaster. `status`, `block` and `release` are for the operator.

This file holds what talks to Postfix, systemd, Prometheus and the postmaster. What a message may say is decided in
submission_policy_author.py, what is counted in submission_policy_state.py; neither knows of milters.

One process, a thread for each of Postfix's sessions. On SIGUSR1 (KillSignal of the unit; libmilter keeps SIGTERM for
itself and drops messages on it) it takes no new session and finishes the messages it has begun. Exit codes: 0 stopped,
1 the command found nothing to do, 78 (EX_CONFIG) configuration wrong, 71 (EX_OSERR) sockets or state not to be had.
"""

from __future__ import annotations

import argparse
import email.message
import email.utils
import ipaddress
import json
import logging
import os
import secrets
import signal
import smtplib
import socket
import sqlite3
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from submission_policy_author import Header, Permitted, Refusal, check_envelope_sender, check_header, has, show
from submission_policy_state import SIGNS, Limits, State

CONFIG = "/etc/submission-policy/settings.json"
MAX_HEADER_BYTES = 1024 * 1024
"""A larger header is refused: Postfix's own fields and a long list of recipients are a few kilobytes."""
MAX_CERTIFICATES = 10_000
"""Connections whose client certificate is remembered."""
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)

log = logging.getLogger("submission-policy")


# ------------------------------------------------------------------------------------------------------- configuration


@dataclass(frozen=True)
class Settings:
    """settings.json, read at the start. Every key is a role argument of the same name without `submission_policy_`."""

    senders_file: str
    socket: str
    client_socket: str
    state_directory: str
    metrics_port: int
    delimiter: str
    hour: int
    day: int
    block_after: dict[str, int]
    network_bits: dict[str, int]
    alert_from: str
    alert_to: str
    alert_seconds: int
    alert_port: int
    stop_seconds: int

    @property
    def state_file(self) -> str:
        """Where the counts are."""
        return os.path.join(self.state_directory, "state.sqlite")


def read_settings(path: str) -> Settings:
    """Read and check the settings. Raises ValueError in plain words, OSError."""
    with open(path, encoding="utf-8") as file:
        data = json.load(file)
    known = {item.name for item in fields(Settings)}
    if not isinstance(data, dict) or set(data) != known:
        raise ValueError(f"settings unknown or missing: {', '.join(sorted(known ^ set(data)))}")
    settings = Settings(**data)
    if unknown := set(settings.block_after) - set(SIGNS):
        raise ValueError(f"block_after: {', '.join(sorted(unknown))} is no sign; there are {', '.join(SIGNS)}")
    return settings


@dataclass(frozen=True)
class Sender:
    """Somebody who may send: an account that signed in, or a host inside."""

    name: str
    permitted: Permitted
    limits: Limits
    account: bool
    """An account can be stolen: networks and unknown recipients of a host inside prove nothing."""


class Senders:
    """senders.json: `users` by login, `clients` by name, as the data model has them."""

    def __init__(self, data: Mapping[str, Any], settings: Settings) -> None:
        """Raises ValueError, KeyError, TypeError for data that is not as it must be."""
        self.users: dict[str, Sender] = {}
        for login, user in data["users"].items():
            limits = Limits(settings.hour, settings.day)
            if user.get("limit"):  # a larger day has a larger hour, in proportion
                part = int(user["limit"]) * settings.hour // settings.day if settings.day else settings.hour
                limits = Limits(max(settings.hour, part) if settings.hour else 0, int(user["limit"]))
            permitted = Permitted.of(user["addresses"], settings.delimiter)
            self.users[login.lower()] = Sender(login.lower(), permitted, limits, True)
        self._networks: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, Sender]] = []
        self._certificates: dict[str, Sender] = {}
        own = {alias: [settings.alert_from] for alias in ("127.0.0.1/32", "::1/128") if settings.alert_from}
        for name, client in data["clients"].items():
            addresses = list(client["addresses"])
            networks = [ipaddress.ip_network(item) for item in client.get("networks") or []]
            if any(item.is_loopback for item in networks):
                addresses.append(settings.alert_from)
            permitted = Permitted.of(addresses, settings.delimiter)
            sender = Sender(f"client:{name}", permitted, Limits(0, int(client.get("limit") or 0)), False)
            self._networks += [(network, sender) for network in networks]
            self._certificates |= {mark.upper(): sender for mark in client.get("certificates") or []}
        for network, addresses in own.items():  # our own alert, where the data do not name this host
            sender = Sender("client:localhost", Permitted.of(addresses, settings.delimiter), Limits(0, 0), False)
            self._networks.append((ipaddress.ip_network(network), sender))
        # the narrowest first; of equal ones the data's own
        self._networks.sort(key=lambda item: -item[0].prefixlen)

    def client(self, address: str, certificate: str) -> Sender | None:
        """A host that did not sign in, by the fingerprint of its certificate or by its address."""
        if certificate and certificate.upper() in self._certificates:
            return self._certificates[certificate.upper()]
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return None
        return next((sender for network, sender in self._networks if parsed in network), None)


class SendersFile:
    """The senders, read anew when the file was replaced: nobody waits for a restart because somebody came or left."""

    def __init__(self, settings: Settings) -> None:
        """Reads the file. Raises ValueError, OSError."""
        self._settings = settings
        self._lock = threading.Lock()
        self._seen = self._mark()
        self._senders = self.read()

    def _mark(self) -> tuple[int, int, int]:
        status = os.stat(self._settings.senders_file)
        return status.st_ino, status.st_mtime_ns, status.st_size

    def read(self) -> Senders:
        """Read the file. Raises ValueError, OSError."""
        with open(self._settings.senders_file, encoding="utf-8") as file:
            data = json.load(file)
        try:
            return Senders(data, self._settings)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"senders not as they must be: {error!r}") from error

    def current(self) -> Senders:
        """The senders of now; a file that cannot be read leaves those of before in force."""
        with self._lock:
            try:
                mark = self._mark()
                if mark != self._seen:
                    self._seen = mark
                    self._senders = self.read()
                    log.info("senders read: %d accounts", len(self._senders.users))
            except (OSError, ValueError) as error:
                log.error("%s cannot be read, the last good one stays in force: %s", self._settings.senders_file, error)
            return self._senders


def network_of(address: str, bits: Mapping[str, int]) -> str:
    """The network that an address counts as, of the size given for `ipv4` and `ipv6`."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    return str(ipaddress.ip_network((parsed, bits[f"ipv{parsed.version}"]), strict=False))


# ------------------------------------------------------------------------------------------------------------- metrics


class Counters:
    """Numbers of this process for Prometheus; they begin at zero when it does."""

    HELP: ClassVar = {
        "estate_submission_messages_total": "Messages by what became of them.",
        "estate_submission_recipients_total": "Recipients by what became of them.",
        "estate_submission_refusals_total": "Refused messages by reason.",
        "estate_submission_breakouts_total": "Accounts blocked, by the sign that gave them away.",
        "estate_submission_alerts_total": "Alert mails to the postmaster.",
        "estate_submission_seconds": "Time a message spends in the policy.",
        "estate_submission_blocked_logins": "Accounts blocked now.",
    }
    LABELS: ClassVar = {
        "estate_submission_messages_total": ("outcome", ("accepted", "refused", "limited", "blocked", "error")),
        "estate_submission_recipients_total": ("outcome", ("accepted", "limited", "unknown")),
        "estate_submission_refusals_total": (
            "reason",
            ("address", "count", "display", "encoded", "envelope", "header", "sender", "size", "syntax"),
        ),
        "estate_submission_breakouts_total": ("sign", SIGNS),
        "estate_submission_alerts_total": ("outcome", ("sent", "failed")),
    }

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = {(name, value): 0 for name, (_, values) in self.LABELS.items() for value in values}
        self._buckets = dict.fromkeys((*BUCKETS, float("inf")), 0)
        self._seconds = 0.0

    def add(self, name: str, value: str, amount: int = 1) -> None:
        """Count."""
        with self._lock:
            self._numbers[f"estate_submission_{name}_total", value] += amount

    def observe(self, seconds: float) -> None:
        """Add a message's time."""
        with self._lock:
            self._seconds += seconds
            for bound in self._buckets:
                if seconds <= bound:
                    self._buckets[bound] += 1

    def exposition(self, blocked: int) -> str:
        """The Prometheus text format, version 0.0.4."""
        with self._lock:
            numbers, buckets, seconds = dict(self._numbers), dict(self._buckets), self._seconds
        lines: list[str] = []
        for name, text in self.HELP.items():
            kind = "counter" if name in self.LABELS else "histogram" if name.endswith("_seconds") else "gauge"
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            if kind == "counter":
                label, values = self.LABELS[name]
                lines += [f'{name}{{{label}="{value}"}} {numbers[name, value]}' for value in values]
            elif kind == "gauge":
                lines.append(f"{name} {blocked}")
            else:
                bounds = {bound: "+Inf" if bound == float("inf") else str(bound) for bound in buckets}
                lines += [f'{name}_bucket{{le="{bounds[bound]}"}} {count}' for bound, count in buckets.items()]
                lines += [f"{name}_sum {seconds:.9g}", f"{name}_count {buckets[float('inf')]}"]
        return "\n".join(lines) + "\n"


def serve_metrics(port: int, counters: Counters, state: State) -> None:
    """Answer GET /metrics on loopback, in a thread. Raises OSError when the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            body = counters.exposition(len(state.blocked())).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()


# ------------------------------------------------------------------------------------------------- client certificates


class Certificates:
    """Which client certificate came with which connection.

    Postfix tells a milter only the common names in a certificate, which everybody can choose. Its policy protocol
    (SMTPD_POLICY_README) tells the fingerprint; Postfix asks here at RCPT, before it asks the milter.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], str] = OrderedDict()

    def learn(self, address: str, port: str, fingerprint: str) -> None:
        """This connection showed this certificate; empty: none."""
        with self._lock:
            self._known.pop((address, port), None)
            if fingerprint:
                self._known[address, port] = fingerprint
                if len(self._known) > MAX_CERTIFICATES:
                    self._known.popitem(last=False)

    def of(self, address: str, port: str) -> str:
        """The fingerprint of a connection's certificate, or nothing."""
        with self._lock:
            return self._known.get((address, port), "")

    def serve(self, listener: socket.socket) -> None:
        """Answer Postfix's questions, always with DUNNO, in threads."""

        def answer(connection: socket.socket) -> None:
            with connection, connection.makefile("rb") as lines:
                connection.settimeout(600)
                attributes: dict[str, str] = {}
                try:
                    while line := lines.readline(65536):
                        text = line.decode("utf-8", "replace").rstrip("\r\n")
                        if text:
                            name, _, value = text.partition("=")
                            if len(attributes) < 100:
                                attributes[name] = value
                            continue
                        address, port = attributes.get("client_address", ""), attributes.get("client_port", "")
                        self.learn(address, port, attributes.get("ccert_fingerprint", ""))
                        attributes = {}
                        connection.sendall(b"action=DUNNO\n\n")
                except OSError:
                    pass

        def accept() -> None:
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()


# --------------------------------------------------------------------------------------------------------------- alerts


class Alerts:
    """One mail to the postmaster for each break-out; those that come close together share one."""

    def __init__(self, settings: Settings, state: State, counters: Counters) -> None:
        self._settings, self._state, self._counters = settings, state, counters
        self._wake = threading.Event()

    def wake(self) -> None:
        """Somebody was blocked."""
        self._wake.set()

    def run(self) -> None:
        """Send what is to be told, now and whenever there is something; what could not be sent is tried again."""
        while True:
            self._wake.wait(30)
            self._wake.clear()
            try:
                blocks = self._state.blocked(untold=True)
                if not blocks or not self._settings.alert_to:
                    continue
                self._send(blocks)
                self._state.told(blocks)
                self._counters.add("alerts", "sent")
                log.info("postmaster told of %s", ", ".join(item.login for item in blocks))
            except (OSError, smtplib.SMTPException, sqlite3.Error) as error:
                self._counters.add("alerts", "failed")
                log.error("alert not sent, tried again in half a minute: %s", error)
            else:
                time.sleep(self._settings.alert_seconds)
                self._wake.set()  # for those who were blocked meanwhile

    def _send(self, blocks: list[Any]) -> None:
        host = socket.getfqdn()
        mail = email.message.EmailMessage()
        logins = ", ".join(item.login for item in blocks[:3]) + (", ..." if len(blocks) > 3 else "")
        mail["From"], mail["To"] = self._settings.alert_from, self._settings.alert_to
        mail["Subject"] = f"Account blocked: {logins}"
        mail["Date"] = email.utils.localtime()
        mail["Message-ID"] = email.utils.make_msgid(domain=self._settings.alert_from.rpartition("@")[2])
        mail["Auto-Submitted"] = "auto-generated"
        lines = [f"On {host}, these accounts send what does not look like their owners' mail:", ""]
        for item in blocks:
            when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(item.time))
            lines += [f"{item.login}", f"  since {when}: {item.detail}", ""]
        lines += [
            "They may not send until they are released; their mail is answered 451 and waits with the sender.",
            "If the owner knows nothing of it, change the password first, and look into the queue (postqueue -p) for",
            "what was accepted before. Then:",
            "",
            *(f"  submission-policy release {item.login}" for item in blocks[:100]),
        ]
        mail.set_content("\n".join(lines) + "\n")
        with smtplib.SMTP("127.0.0.1", self._settings.alert_port, local_hostname=host, timeout=60) as client:
            client.send_message(mail, from_addr="", to_addrs=[self._settings.alert_to])


# ----------------------------------------------------------------------------------------------------------- the milter


class Busy:
    """Counts the messages in progress, so that a stop can wait for them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._messages = 0

    def change(self, amount: int) -> None:
        """Begin (+1) or end (-1) a message."""
        with self._condition:
            self._messages += amount
            self._condition.notify_all()

    def wait_idle(self, seconds: float) -> bool:
        """Wait until no message is in progress; False when time is up."""
        with self._condition:
            return self._condition.wait_for(lambda: self._messages == 0, seconds)


def run_milter(settings: Settings, state: State, counters: Counters, alerts: Alerts, busy: Busy, listener: Any) -> None:
    """Serve Postfix until the process ends. Imports python3-milter, which only the daemon needs."""
    import Milter

    senders = SendersFile(settings)
    certificates = Certificates()
    certificates.serve(listener["client"])

    @Milter.rejected_recipients
    class Policy(Milter.Base):
        """One session of Postfix."""

        def __init__(self) -> None:
            self.address = self.port = ""
            self.in_progress = False
            self.held = 0
            self.sender: Sender | None = None
            self._begin()

        def _begin(self) -> None:
            """Forget the last message."""
            if self.held and self.sender:
                state.give_back(self.sender.name, self.held)
            if self.in_progress:
                busy.change(-1)
            self.in_progress = self.limited = False
            self.held = 0
            self.sender = None
            self.envelope = ""
            self.headers: list[Header] = []
            self.header_size = 0
            self.seconds = 0.0

        def _run(self, work: Callable[[], int]) -> int:
            """Run a step. An error of ours has the client try again: nothing leaves unchecked."""
            begun = time.perf_counter()
            try:
                return work()
            except Refusal as refusal:
                counters.add("messages", "refused")
                counters.add("refusals", refusal.kind)
                self._log(logging.WARNING, f"refused: {refusal}")
                self.setreply("550", refusal.code, show(str(refusal), 400))
                return Milter.REJECT
            except Exception:
                counters.add("messages", "error")
                log.exception("%s: internal error, answered 451", self.getsymval("i"))
                self.setreply("451", "4.3.0", "sender policy failed, try again")
                return Milter.TEMPFAIL
            finally:
                self.seconds += time.perf_counter() - begun

        def _log(self, level: int, text: str) -> None:
            name = self.sender.name if self.sender else self.getsymval("{auth_authen}") or "nobody"
            log.log(level, "%s: login=%s client=%s %s", self.getsymval("i") or "-", show(name), self.address, text)

        def _later(self, outcome: str, text: str) -> int:
            if outcome:
                counters.add("messages", outcome)
            self._log(logging.WARNING, f"answered 451: {text}")
            self.setreply("451", "4.7.1", show(text, 400))
            return Milter.TEMPFAIL

        def _blocked(self) -> int:
            return self._later("blocked", "this account is stopped because of unusual mail; the postmaster knows")

        def _note(self, sign: str, what: str) -> bool:
            """Note a sign of a break-out; whether it was one too many."""
            block = state.note(self.sender.name, sign, what) if self.sender else None
            if block:
                counters.add("breakouts", sign)
                self._log(logging.ERROR, f"BLOCKED: {block.detail}")
                alerts.wake()
            return block is not None

        @Milter.noreply
        def connect(self, hostname: str, family: int, hostaddr: Any) -> int:
            self.address, self.port = (str(item) for item in hostaddr[:2]) if isinstance(hostaddr, tuple) else ("", "")
            return Milter.CONTINUE

        def envfrom(self, sender: str, *parameters: str) -> int:
            self._begin()
            busy.change(+1)
            self.in_progress = True
            self.envelope = sender
            answer = self._run(self._account)
            if answer != Milter.CONTINUE:
                self._begin()
            return answer

        def _account(self) -> int:
            login = self.getsymval("{auth_authen}")
            if not login:
                return Milter.CONTINUE  # whoever it is, he is asked at RCPT: his certificate is known then
            self.sender = senders.current().users.get(login.lower())
            if self.sender is None:
                return self._later("", f"the account {show(login)} has no addresses here")
            if state.is_blocked(self.sender.name):
                return self._blocked()
            if self._note("networks", network_of(self.address, settings.network_bits)):
                return self._blocked()
            check_envelope_sender(self.envelope, self.sender.permitted, self.sender.name)
            return Milter.CONTINUE

        def envrcpt(self, recipient: str, *parameters: str) -> int:
            return self._run(lambda: self._recipient(recipient))

        def _recipient(self, recipient: str) -> int:
            if self.getsymval("{rcpt_mailer}") == "error":  # Postfix has refused it, and tells us
                if self.sender and self.sender.account and (self.getsymval("{rcpt_host}") or "").startswith("5.1."):
                    counters.add("recipients", "unknown")
                    self._note("unknown", recipient)
                return Milter.CONTINUE
            if self.sender is None:
                self.sender = senders.current().client(self.address, certificates.of(self.address, self.port))
                if self.sender is None:
                    raise Refusal("sender", "sign in to send mail here")
                if state.is_blocked(self.sender.name):
                    return self._blocked()
                check_envelope_sender(self.envelope, self.sender.permitted, self.sender.name)
            window = state.hold(self.sender.name, self.sender.limits)
            if not window:
                self.held += 1
                return Milter.CONTINUE
            counters.add("recipients", "limited")
            first, self.limited = not self.limited, True
            if first and self._note("limit", secrets.token_hex(8)):
                return self._blocked()
            limit = self.sender.limits.hour if window == "hour" else self.sender.limits.day
            text = (
                f"limit of {limit} recipients in {'an hour' if window == 'hour' else 'a day'} reached; try again later"
            )
            if first:
                return self._later("limited", text)
            self.setreply("451", "4.7.1", text)
            return Milter.TEMPFAIL

        @Milter.noreply
        @Milter.decode("bytes")
        def header(self, name: str, value: bytes) -> int:
            self.header_size += len(name) + len(value)
            if self.header_size <= MAX_HEADER_BYTES:
                self.headers.append((name, value))
            return Milter.CONTINUE

        def eoh(self) -> int:
            return self._run(self._author)

        def _author(self) -> int:
            if self.sender is None:
                raise Refusal("sender", "sign in to send mail here")
            if self.header_size > MAX_HEADER_BYTES:
                raise Refusal("size", f"the header is larger than {MAX_HEADER_BYTES} bytes", "5.3.4")
            self.author = check_header(self.headers, self.sender.permitted, self.sender.name)
            return Milter.CONTINUE

        def eom(self) -> int:
            answer = self._run(self._take)
            counters.observe(self.seconds)
            self._begin()
            return answer

        def _take(self) -> int:
            assert self.sender is not None
            if not has(self.headers, "date"):  # RFC 6409 §8.1, §8.2
                self.addheader("Date", email.utils.formatdate(localtime=True))
            if not has(self.headers, "message-id"):
                self.addheader("Message-ID", f"<{time.time_ns():x}.{secrets.token_hex(8)}@{self.getsymval('j')}>")
            recipients = self.held
            charged = state.charge(self.sender.name, recipients)
            self.held = 0
            if not charged:
                return self._blocked()
            counters.add("messages", "accepted")
            counters.add("recipients", "accepted", recipients)
            self._log(logging.INFO, f"accepted: from={show(self.author)} recipients={recipients}")
            return Milter.CONTINUE

        def abort(self) -> int:
            self._begin()
            return Milter.CONTINUE

        def close(self) -> int:
            certificates.learn(self.address, self.port, "")
            self._begin()
            return Milter.CONTINUE

    Milter.factory = Policy
    Milter.set_flags(Milter.ADDHDRS)
    notify("READY=1")
    Milter.runmilter("submission-policy", f"fd:{listener['milter'].fileno()}", rmsock=False)


def finish_on_signal(busy: Busy, seconds: float, descriptor: int) -> None:
    """In a thread of its own: on SIGUSR1 take no new session, wait for the messages in progress, and exit.

    libmilter's own way of stopping drops them. So its listening descriptor is replaced under its feet by a socket to
    which nobody connects, and it never learns that it has been stopped.
    """
    signal.sigwait({signal.SIGUSR1})
    notify("STOPPING=1")
    nobody = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    nobody.bind(f"\0submission-policy-stopped-{os.getpid()}")
    nobody.listen(1)
    nobody.setblocking(False)
    os.dup2(nobody.fileno(), descriptor)
    if not busy.wait_idle(seconds):
        log.warning("stopped with messages in progress; their senders will try again")
    time.sleep(0.3)  # the answer to the last message leaves after its callback has returned
    os._exit(0)


def _listener(path: str) -> socket.socket:
    """A Unix socket that whoever may enter its directory can use."""
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o666)
    listener.listen(512)
    return listener


def notify(text: str) -> None:
    """Tell systemd (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.sendall(text.encode())


# ---------------------------------------------------------------------------------------------------------- the command


class _JournalFormatter(logging.Formatter):
    """Puts the priority in front of each line, as systemd reads it (sd-daemon(3))."""

    LEVELS = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in self.LEVELS if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def serve(settings: Settings) -> int:
    """Run the daemon."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    state, counters, busy = State(settings.state_file, settings.block_after), Counters(), Busy()
    alerts = Alerts(settings, state, counters)
    listener = {"milter": _listener(settings.socket), "client": _listener(settings.client_socket)}
    serve_metrics(settings.metrics_port, counters, state)
    stop = (busy, settings.stop_seconds, listener["milter"].fileno())
    threading.Thread(target=finish_on_signal, args=stop, daemon=True).start()
    threading.Thread(target=alerts.run, daemon=True).start()
    alerts.wake()
    run_milter(settings, state, counters, alerts, busy, listener)
    return 0


def status(state: State, as_json: bool) -> int:
    """Print who is blocked and who sent how much."""
    blocked, senders = state.blocked(), state.senders()
    if as_json:
        data = {
            "blocked": {item.login: {"time": item.time, "sign": item.sign, "detail": item.detail} for item in blocked},
            "sent": {login: {"hour": usage.hour, "day": usage.day} for login, usage in senders},
        }
        print(json.dumps(data, indent=2, sort_keys=True))
        return 0
    print("blocked:" if blocked else "nobody is blocked")
    for item in blocked:
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(item.time))
        print(f"  {item.login}  since {when}  {item.sign}: {item.detail}")
    print("recipients accepted, last hour and last day:" if senders else "nothing was sent in the last day")
    for login, usage in senders:
        print(f"  {usage.hour:6} {usage.day:6}  {login}")
    return 0


def _become_owner(directory: str) -> None:
    """The operator's command works as the daemon's user, so that no file of root's stands in the daemon's way."""
    owner = os.stat(directory)
    if os.geteuid() == 0 and owner.st_uid:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="submission-policy", description="sender policy of the submission host")
    parser.add_argument("--config", default=CONFIG, help=f"settings; {CONFIG} unless said otherwise")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="run the milter")
    check = commands.add_parser("check", help="only read settings and senders")
    check.add_argument("--senders", metavar="FILE", help="read these senders instead")
    shown = commands.add_parser("status", help="who is blocked, and who sent how much")
    shown.add_argument("--json", action="store_true", help="for programs")
    for name, text in (("release", "let accounts send again, with a clean record"), ("block", "stop accounts")):
        command = commands.add_parser(name, help=text)
        command.add_argument("login", nargs="+")
    arguments = parser.parse_args()
    handler = logging.StreamHandler()
    handler.setFormatter(_JournalFormatter("%(message)s") if arguments.command == "serve" else logging.Formatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        settings = read_settings(arguments.config)
        if arguments.command == "check":
            if arguments.senders:
                settings = Settings(**{**vars(settings), "senders_file": arguments.senders})
            SendersFile(settings)
            return 0
    except (ValueError, OSError) as error:
        log.error("configuration %s: %s", arguments.config, error)
        return os.EX_CONFIG
    try:
        if arguments.command == "serve":
            SendersFile(settings)
            return serve(settings)
        _become_owner(settings.state_directory)
        state = State(settings.state_file, settings.block_after)
        if arguments.command == "status":
            return status(state, arguments.json)
        code = 0
        for login in (item.lower() for item in arguments.login):
            if arguments.command == "block":
                state.block(login, "by the operator")
                print(f"{login} is blocked")
            elif state.release(login):
                print(f"{login} may send again")
            else:
                print(f"{login} was not blocked; its counts are cleared")
                code = 1
        return code
    except ValueError as error:
        log.error("configuration: %s", error)
        return os.EX_CONFIG
    except (OSError, sqlite3.Error) as error:
        log.error("cannot work: %s", error)
        return os.EX_OSERR


if __name__ == "__main__":
    sys.exit(main())
