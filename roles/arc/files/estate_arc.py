#!/usr/bin/python3
"""The gateways' ARC milter: `estate_arc.py verify` in front of rspamd, `estate_arc.py seal` behind it (RFC 8617).

verify  removes Authentication-Results that claim our authserv-id and every private header from outside, judges the
        ARC chain, and tells rspamd and the seal stage what it found in X-Estate-ARC.
seal    adds arc= to rspamd's Authentication-Results, seals the message unless its chain is broken, removes
        X-Estate-ARC, and writes one DMARC event.

This file holds what talks to Postfix, systemd and Prometheus. What is decided about a message is decided in
estate_arc_chain.py (ARC) and estate_arc_dmarc.py (DMARC), which know nothing of milters.

A supervisor opens the socket and forks workers that share it, because one Python process uses one processor. A worker
that dies is replaced; on SIGTERM the workers take no new connection and finish the messages they have begun. Exit
codes: 0 stopped, 78 (EX_CONFIG) configuration wrong, 71 (EX_OSERR) socket or workers could not be had.
"""

from __future__ import annotations

import argparse
import functools
import ipaddress
import logging
import mmap
import os
import signal
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import estate_arc_chain as chain
import estate_arc_dmarc as dmarc
from estate_arc_dns import Resolver

STAGES = ("verify", "seal")
MAX_WORKERS = 64
MAX_HEADER_BYTES = 4 * 1024 * 1024
"""A message with a larger header is neither verified nor sealed; its forged header fields are still removed."""
FINISH = signal.SIGUSR1
"""From the supervisor to its workers: finish and go."""
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

log = logging.getLogger("estate-arc")


# ------------------------------------------------------------------------------------------------------- configuration


@dataclass(frozen=True)
class Config:
    """The configuration file, TOML. Every key is a role argument of the same name without `arc_`."""

    authserv_id: str
    gateway_name: str
    domain: str
    selector: str
    verify_port: int
    seal_port: int
    metrics_port: int
    dns_servers: list[str]
    dns_seconds: float
    on_error: str
    on_dns_error: str
    on_unjudged: str
    workers: int
    stop_seconds: float
    unjudged_clients: list[str] = field(default_factory=list)
    trusted_sealers: list[str] = field(default_factory=list)
    quarantine_header: str = ""
    events_directory: str = ""
    """Empty: no events."""
    events_max_bytes: int = 0
    run_directory: str = "/run/estate-arc"
    key_file: str = "arc.pem"
    """Relative to $CREDENTIALS_DIRECTORY, where systemd gives the daemon its key."""

    @functools.cached_property
    def unjudged_networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The networks of ``unjudged_clients``. Raises ValueError."""
        return [ipaddress.ip_network(network) for network in self.unjudged_clients]

    def judges(self, client: str) -> bool:
        """Whether the spam filter has to say something of a client's mail; an address that is none belongs to us."""
        try:
            address = ipaddress.ip_address(client)
        except ValueError:
            return False
        return not any(address in network for network in self.unjudged_networks)

    @property
    def worker_count(self) -> int:
        """Workers of one stage; one for each processor where none are given."""
        return min(self.workers or os.cpu_count() or 1, MAX_WORKERS - 1)


def read_config(path: str) -> Config:
    """Read and check the configuration. Raises ValueError in plain words."""
    with open(path, "rb") as file:
        data = tomllib.load(file)
    known = {item.name for item in fields(Config)}
    if unknown := sorted(set(data) - known):
        raise ValueError(f"unknown settings: {', '.join(unknown)}")
    try:
        config = Config(**data)
    except TypeError as error:
        raise ValueError(f"settings missing: {error}") from error
    for name, allowed in (
        ("on_error", ("unsealed", "tempfail")),
        ("on_dns_error", ("fail", "tempfail")),
        ("on_unjudged", ("unsealed", "tempfail")),
    ):
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name} is {getattr(config, name)!r}; allowed: {', '.join(allowed)}")
    return config


def read_sealer(config: Config) -> chain.Sealer:
    """The sealer with this host's key. Raises ValueError, OSError."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    with open(os.path.join(directory, config.key_file), "rb") as file:
        return chain.Sealer(file.read(), config.domain, config.selector)


# ------------------------------------------------------------------------------------------------------------- metrics


def _labelled(name: str, label: str, *values: str) -> list[str]:
    return [f'{name}{{{label}="{value}"}}' for value in values]


COUNTERS: tuple[str, ...] = (
    *_labelled("estate_arc_messages_total", "stage", *STAGES),
    *_labelled("estate_arc_chains_total", "result", "none", "pass", "fail"),
    "estate_arc_trusted_chains_total",
    *_labelled("estate_arc_stripped_headers_total", "header", "authentication-results", "x-estate-arc"),
    *_labelled(
        "estate_arc_seals_total", "outcome", "sealed", "chain_failed", "chain_full", "no_results", "unjudged", "error"
    ),
    *_labelled("estate_arc_errors_total", "stage", *STAGES),
    *_labelled("estate_arc_dns_failures_total", "stage", *STAGES),
    *_labelled("estate_arc_tempfails_total", "stage", *STAGES),
    *_labelled("estate_dmarc_events_total", "outcome", "written", "dropped", "no_author"),
    *_labelled("estate_arc_worker_starts_total", "stage", *STAGES),
    *(f'estate_arc_seconds_bucket{{stage="{stage}",le="{le}"}}' for stage in STAGES for le in (*BUCKETS, "+Inf")),
    *_labelled("estate_arc_seconds_sum", "stage", *STAGES),
    *_labelled("estate_arc_seconds_count", "stage", *STAGES),
)
WORKERS = _labelled("estate_arc_workers", "stage", *STAGES)
INDEX = {name: number for number, name in enumerate((*COUNTERS, *WORKERS))}

HELP = {
    "estate_arc_messages_total": "Messages seen to their end.",
    "estate_arc_chains_total": "ARC chains by what they were found to be.",
    "estate_arc_trusted_chains_total": "Valid chains whose outermost sealer is trusted.",
    "estate_arc_stripped_headers_total": "Forged or private header fields removed.",
    "estate_arc_seals_total": "What became of messages at the seal stage.",
    "estate_arc_errors_total": "Internal errors; each is in the journal.",
    "estate_arc_dns_failures_total": "Look-ups that timed out or failed.",
    "estate_arc_tempfails_total": "Messages answered 4xx by the milter.",
    "estate_dmarc_events_total": "DMARC events written, dropped for want of space, or not possible without an author.",
    "estate_arc_worker_starts_total": "Workers started, replacements included.",
    "estate_arc_seconds": "Time a message spends in the milter, DNS included.",
    "estate_arc_workers": "Workers that accept messages now.",
    "estate_dmarc_spool_bytes": "Size of the spooled DMARC events.",
}


class Counters:
    """Numbers shared by the processes of a stage: a file in /run, a row for each process, which alone writes it."""

    def __init__(self, directory: str, stage: str) -> None:
        """Opens or makes `<directory>/<stage>.counters`; numbers survive a restart of the daemon."""
        size = MAX_WORKERS * len(INDEX) * 8
        descriptor = os.open(os.path.join(directory, f"{stage}.counters"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, 0)
                os.ftruncate(descriptor, size)
            self._cells = memoryview(mmap.mmap(descriptor, size)).cast("d")
        finally:
            os.close(descriptor)
        self._row = 0
        self._lock = threading.Lock()

    def use_row(self, row: int) -> None:
        """Write to this row from now on."""
        self._row, self._lock = row * len(INDEX), threading.Lock()

    def add(self, name: str, amount: float = 1.0) -> None:
        """Count."""
        with self._lock:
            self._cells[self._row + INDEX[name]] += amount

    def set(self, name: str, value: float, row: int | None = None) -> None:
        """Set, in one's own row or, by the supervisor, in a worker's."""
        start = self._row if row is None else row * len(INDEX)
        self._cells[start + INDEX[name]] = value

    def observe(self, stage: str, seconds: float) -> None:
        """Add a duration to the histogram."""
        with self._lock:
            for le in (*BUCKETS, "+Inf"):
                if le == "+Inf" or seconds <= float(le):
                    self._cells[self._row + INDEX[f'estate_arc_seconds_bucket{{stage="{stage}",le="{le}"}}']] += 1
            self._cells[self._row + INDEX[f'estate_arc_seconds_sum{{stage="{stage}"}}']] += seconds
            self._cells[self._row + INDEX[f'estate_arc_seconds_count{{stage="{stage}"}}']] += 1

    def total(self, name: str) -> float:
        """Sum over all rows."""
        return sum(self._cells[INDEX[name] :: len(INDEX)])


def exposition(counters: list[Counters], spool_bytes: int | None) -> str:
    """The Prometheus text format, version 0.0.4."""
    lines, described = [], set()
    for name in (*COUNTERS, *WORKERS):
        family = name.partition("{")[0]
        for suffix in ("_bucket", "_sum", "_count"):
            if family.startswith("estate_arc_seconds"):
                family = family.removesuffix(suffix)
        if family not in described:
            described.add(family)
            kind = "histogram" if family == "estate_arc_seconds" else "gauge" if name in WORKERS else "counter"
            lines += [f"# HELP {family} {HELP[family]}", f"# TYPE {family} {kind}"]
        lines.append(f"{name} {sum(item.total(name) for item in counters):.12g}")
    if spool_bytes is not None:
        family = "estate_dmarc_spool_bytes"
        lines += [f"# HELP {family} {HELP[family]}", f"# TYPE {family} gauge", f"{family} {spool_bytes}"]
    return "\n".join(lines) + "\n"


def serve_metrics(config: Config, listener: socket.socket) -> None:
    """Answer GET /metrics until killed."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            counters = [Counters(config.run_directory, stage) for stage in STAGES]
            spool = None
            if config.events_directory:
                spool = dmarc.directory_bytes(config.events_directory)
            body = exposition(counters, spool).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(listener.getsockname(), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.daemon_threads = True
    server.serve_forever()


# ---------------------------------------------------------------------------------------------------------- the milters


class Busy:
    """Counts the messages in progress in this worker, so that a stop can wait for them."""

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


def run_worker(stage: str, config: Config, counters: Counters, worker: str, descriptor: int) -> None:
    """Serve one stage on the listening socket until SIGTERM. Imports python3-milter, which only the daemon needs."""
    import Milter

    busy = Busy()
    resolver = Resolver(config.dns_servers, config.dns_seconds)
    sealer = read_sealer(config) if stage == "seal" else None
    spool = None
    if sealer and config.events_directory:
        spool = dmarc.EventSpool(config.events_directory, f"{config.gateway_name}.{worker}", config.events_max_bytes)

    def decide(milter: Stage, work: Callable[[], int], *, always_tempfail: bool = False) -> int:
        """Run a step; an error becomes what `on_error` says, and is in the journal with its traceback."""
        begun = time.perf_counter()
        try:
            return work()
        except Exception:
            counters.add(f'estate_arc_errors_total{{stage="{stage}"}}')
            milter.broken = True
            refuse = always_tempfail or milter.touched or config.on_error == "tempfail"
            fate = "answered 451" if refuse else "let through unsealed"
            log.exception("%s: internal error, message %s", milter.getsymval("i"), fate)
            if refuse:
                return tempfail(milter, "4.3.0", "ARC filter failed, try again")
            return Milter.CONTINUE
        finally:
            milter.seconds += time.perf_counter() - begun

    def tempfail(milter: Stage, code: str, text: str) -> int:
        counters.add(f'estate_arc_tempfails_total{{stage="{stage}"}}')
        milter.setreply("451", code, text)
        return Milter.TEMPFAIL

    class Stage(Milter.Base):
        """What both stages collect of a message."""

        def __init__(self) -> None:
            self.source_ip = self.helo_name = ""
            self.in_progress = False
            self.reset()

        def reset(self) -> None:
            """Forget the last message."""
            if self.in_progress:
                busy.change(-1)
            self.in_progress = False
            self.sender = ""
            self.recipients: list[str] = []
            self.headers: list[chain.Header] = []
            self.header_bytes_seen = 0
            self.hasher: chain.BodyHash | None = None
            self.broken = self.touched = False
            self.seconds = 0.0

        @Milter.noreply
        def connect(self, hostname: str, family: int, hostaddr: Any) -> int:
            self.source_ip = hostaddr[0] if isinstance(hostaddr, tuple) else ""
            return Milter.CONTINUE

        @Milter.noreply
        def hello(self, hostname: str) -> int:
            self.helo_name = hostname
            return Milter.CONTINUE

        @Milter.noreply
        def envfrom(self, sender: str, *parameters: str) -> int:
            self.reset()
            busy.change(+1)
            self.in_progress = True
            self.sender = sender
            return Milter.CONTINUE

        @Milter.noreply
        def envrcpt(self, recipient: str, *parameters: str) -> int:
            if len(self.recipients) < 1000:
                self.recipients.append(recipient)
            return Milter.CONTINUE

        @Milter.noreply
        @Milter.decode("bytes")
        def header(self, name: str, value: bytes) -> int:
            self.header_bytes_seen += len(name) + len(value)
            raw = name.encode("utf-8", "surrogateescape").rstrip()
            # past the limit only what must be removed is kept
            if self.header_bytes_seen <= MAX_HEADER_BYTES or raw.lower() in (RESULTS, PRIVATE):
                self.headers.append((raw, value.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")))
            return Milter.CONTINUE

        def finish(self) -> None:
            """The message is through: count it."""
            counters.add(f'estate_arc_messages_total{{stage="{stage}"}}')
            counters.observe(stage, self.seconds)
            self.reset()

        def abort(self) -> int:
            self.reset()
            return Milter.CONTINUE

        def close(self) -> int:
            self.reset()
            return Milter.CONTINUE

        def remove(self, name: str, places: list[int]) -> None:
            """Delete the n-th fields of a name, counted from one; from the last, so that the numbers stay right."""
            for place in reversed(places):
                self.touched = True
                self.chgheader(name, place, "")

        def places(self, name: bytes, wanted: Callable[[bytes], bool]) -> list[int]:
            """The numbers of the fields of a name whose value is wanted."""
            values = [value for field_name, value in self.headers if field_name.lower() == name]
            return [place for place, value in enumerate(values, 1) if wanted(value)]

        def space(self, value: str) -> str:
            """A value as this MTA wants it: without its leading space where the MTA adds one itself."""
            return value if self._protocol & Milter.P_HDR_LEADSPC else value[1:]

    @Milter.header_leading_space  # on the final class: it works out there which callbacks Postfix must make
    class Verify(Stage):
        """First milter: strip what is forged, judge the chain."""

        def reset(self) -> None:
            super().reset()
            self.sets: tuple[chain.ArcSet, ...] = ()
            self.verdict: chain.Verdict | None = None

        def eoh(self) -> int:
            return decide(self, self._read_chain)

        def _read_chain(self) -> int:
            if self.header_bytes_seen > MAX_HEADER_BYTES:
                self.verdict = chain.Verdict("fail", "header too large")
                return Milter.CONTINUE
            try:
                self.sets = chain.read_chain(self.headers)
                self.hasher = chain.body_hash_for(self.sets) if self.sets else None
            except chain.ChainError as error:
                self.verdict = chain.Verdict("fail", str(error))
            if self.verdict is None and not self.sets:
                self.verdict = chain.Verdict("none")
            return Milter.CONTINUE

        def body(self, chunk: bytes) -> int:
            if self.hasher is None or self.broken:
                return Milter.SKIP  # Postfix need not send the rest
            return decide(self, lambda: self._hash(chunk))

        def _hash(self, chunk: bytes) -> int:
            self.hasher.update(chunk)  # type: ignore[union-attr]
            return Milter.CONTINUE

        def eom(self) -> int:
            # a forged field that cannot be removed must not get through, whatever on_error says
            answer = decide(self, self._strip, always_tempfail=True)
            if answer == Milter.CONTINUE and not self.broken:
                self.touched = False
                answer = decide(self, self._judge)
            self.finish()
            return answer

        def _strip(self) -> int:
            forged = self.places(RESULTS, lambda value: chain.names_authserv_id(value, config.authserv_id))
            private = self.places(PRIVATE, lambda value: True)
            self.remove("Authentication-Results", forged)
            self.remove(chain.HANDOVER, private)
            counters.add('estate_arc_stripped_headers_total{header="authentication-results"}', len(forged))
            counters.add('estate_arc_stripped_headers_total{header="x-estate-arc"}', len(private))
            return Milter.CONTINUE

        def _judge(self) -> int:
            deadline = time.monotonic() + 2 * config.dns_seconds
            verdict = self.verdict
            if verdict is None:
                assert self.hasher is not None
                verdict = chain.verify_chain(
                    self.headers, self.sets, self.hasher.digest(), lambda name: key_record(name, deadline)
                )
            if verdict.temporary:
                counters.add('estate_arc_dns_failures_total{stage="verify"}')
                if config.on_dns_error == "tempfail":
                    return tempfail(self, "4.7.5", "key of the ARC chain not available, try again")
            trust = chain.judge_trust(verdict, config.trusted_sealers, chain.author_domain(self.headers))
            self.addheader(chain.HANDOVER, self.space(f" {chain.handover_value(verdict.status, trust)}"))
            counters.add(f'estate_arc_chains_total{{result="{verdict.status}"}}')
            if trust.trusted:
                counters.add("estate_arc_trusted_chains_total")
            if verdict.status != "none":
                sealers = " ".join(arc_set.sealer for arc_set in verdict.sets[-3:])
                log.info(
                    "%s: arc=%s %s trusted=%s dmarc=%s sealers=%r",
                    self.getsymval("i"), verdict.status, verdict.reason, trust.trusted, trust.dmarc, sealers[:200],
                )  # fmt: skip
            return Milter.CONTINUE

    @Milter.header_leading_space
    class Seal(Stage):
        """Last milter: complete Authentication-Results, seal, record."""

        def eoh(self) -> int:
            self.hasher = chain.BodyHash()
            return Milter.CONTINUE

        @Milter.noreply
        def body(self, chunk: bytes) -> int:
            if not self.broken:
                decide(self, lambda: self._hash(chunk))
            return Milter.CONTINUE

        def _hash(self, chunk: bytes) -> int:
            self.hasher.update(chunk)  # type: ignore[union-attr]
            return Milter.CONTINUE

        def eom(self) -> int:
            if self.broken:  # hashing failed, which decide() has counted
                failed = config.on_error == "tempfail"
                answer = tempfail(self, "4.3.0", "ARC filter failed, try again") if failed else Milter.CONTINUE
            else:
                answer = decide(self, self._seal)
            if answer == Milter.CONTINUE and self.broken:
                counters.add('estate_arc_seals_total{outcome="error"}')
                answer = decide(self, self._clean, always_tempfail=True)
            self.finish()
            return answer

        def _clean(self) -> int:
            self.remove(chain.HANDOVER, self.places(PRIVATE, lambda value: True))
            return Milter.CONTINUE

        def _unjudged(self) -> int:
            """Nothing to vouch for: right for our own mail, a fault for mail from outside, which shall come again."""
            if not config.judges(self.source_ip):
                counters.add('estate_arc_seals_total{outcome="no_results"}')
                return self._clean()
            counters.add('estate_arc_seals_total{outcome="unjudged"}')
            found = [value[:60] for name, value in self.headers if name.lower() == RESULTS]
            log.warning("%s: no Authentication-Results of ours; there are: %r", self.getsymval("i"), found)
            if config.on_unjudged == "tempfail":
                return tempfail(self, "4.7.1", "message has not been judged, try again")
            return self._clean()

        def _seal(self) -> int:
            assert sealer is not None
            assert self.hasher is not None
            ours = self.places(RESULTS, lambda value: chain.names_authserv_id(value, config.authserv_id))
            if not ours:
                return self._unjudged()
            status, trust = self._handover()
            result = [value for name, value in self.headers if name.lower() == RESULTS][ours[0] - 1]
            quoted = f'"{self.source_ip}"' if ":" in self.source_ip else self.source_ip
            remote = f" smtp.remote-ip={quoted}" if quoted else ""
            text = chain.extend_results(result, "arc", f"arc={status}{remote}")
            new: list[tuple[str, str]] = []
            outcome = "chain_failed"
            if status != "fail":
                sets = chain.read_chain(self.headers)
                if len(sets) >= chain.MAX_SETS:
                    outcome = "chain_full"
                elif self.header_bytes_seen > MAX_HEADER_BYTES:
                    raise ValueError("header too large to seal")
                else:
                    new = sealer.seal(self.headers, self.hasher.digest(), text, sets, int(time.time()))
                    outcome = "sealed"
            self.touched = True
            self.chgheader("Authentication-Results", ours[0], self.space(f" {text}"))
            self._clean()
            for name, value in new:
                self.addheader(name, self.space(value), 0)
            counters.add(f'estate_arc_seals_total{{outcome="{outcome}"}}')
            self._record(chain.parse_authentication_results(result), status, trust)
            return Milter.CONTINUE

        def _handover(self) -> tuple[str, chain.Trust]:
            values = [value for name, value in self.headers if name.lower() == PRIVATE]
            handed = chain.parse_handover(values[0]) if len(values) == 1 else None
            if handed is None:
                raise ValueError(f"no readable {chain.HANDOVER}: did the message pass the verify stage?")
            if handed[0] == "none" and chain.arc_fields(self.headers):
                raise ValueError("ARC header fields appeared between the verify stage and the seal stage")
            return handed

        def _record(self, results: chain.AuthenticationResults, status: str, trust: chain.Trust) -> None:
            """Write the DMARC event; whatever goes wrong here concerns a report, never the message."""
            if spool is None:
                return
            try:
                author = dmarc.author_of(self.headers, results)
                if not author:
                    counters.add('estate_dmarc_events_total{outcome="no_author"}')
                    return
                deadline = time.monotonic() + config.dns_seconds
                event = dmarc.build_event(
                    dmarc.Envelope(
                        config.gateway_name, self.source_ip, self.helo_name, self.sender, tuple(self.recipients)
                    ),
                    author,
                    results,
                    lookup=lambda name: resolver.txt(name, deadline),
                    exists=lambda name: resolver.exists(name, deadline),
                    arc=status,
                    trust=trust,
                    quarantined=bool(config.quarantine_header) and any(
                        name.lower() == config.quarantine_header.lower().encode() for name, _ in self.headers
                    ),
                    now=time.time(),
                )  # fmt: skip
                if event["dns"] != "ok":
                    counters.add('estate_arc_dns_failures_total{stage="seal"}')
                written = spool.write(event)
                counters.add(f'estate_dmarc_events_total{{outcome="{"written" if written else "dropped"}"}}')
            except Exception:
                log.exception("%s: DMARC event could not be made", self.getsymval("i"))
                counters.add('estate_dmarc_events_total{outcome="dropped"}')
                counters.add('estate_arc_errors_total{stage="seal"}')

    def key_record(name: str, deadline: float) -> bytes | None:
        records = resolver.txt(name, deadline)
        return records[0] if records else None

    RESULTS, PRIVATE = b"authentication-results", chain.HANDOVER.lower().encode()
    Milter.factory = Verify if stage == "verify" else Seal
    counters.set(f'estate_arc_workers{{stage="{stage}"}}', 1)
    threading.Thread(target=finish_on_signal, args=(busy, config.stop_seconds, descriptor), daemon=True).start()
    Milter.runmilter(f"estate-arc-{stage}", f"fd:{descriptor}", rmsock=False)
    os._exit(0)


def finish_on_signal(busy: Busy, seconds: float, descriptor: int) -> None:
    """In a thread of its own: on FINISH take no new connection, wait for the messages in progress, and exit.

    libmilter's own way of stopping drops them. So its listening descriptor is replaced under its feet by a socket to
    which nobody connects, and it never learns that it has been stopped.
    """
    signal.sigwait({FINISH})
    nobody = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    nobody.bind(("127.0.0.1", 0))
    nobody.listen(1)
    nobody.setblocking(False)
    os.dup2(nobody.fileno(), descriptor)
    if not busy.wait_idle(seconds):
        log.warning("stopped with messages in progress; their senders will try again")
    time.sleep(0.5)  # the answer to the last message leaves after its callback has returned
    os._exit(0)


# ---------------------------------------------------------------------------------------------------------- supervising


class Supervisor:
    """Owns the sockets and keeps the workers running."""

    def __init__(self, stage: str, config: Config) -> None:
        self._stage, self._config = stage, config
        self._counters = Counters(config.run_directory, stage)
        self._jobs: dict[int, tuple[str, int]] = {}  # process → what it does, row
        self._sockets: dict[str, socket.socket] = {}
        self._started: dict[str, float] = {}
        self._gauge = f'estate_arc_workers{{stage="{stage}"}}'

    def listen(self) -> None:
        """Open the milter socket, and for the seal stage the metrics socket. Raises OSError."""
        port = self._config.verify_port if self._stage == "verify" else self._config.seal_port
        self._sockets["worker"] = _listener(port)
        # workers race for a new connection; the losers must not hang in accept()
        self._sockets["worker"].setblocking(False)
        if self._stage == "seal":
            self._sockets["metrics"] = _listener(self._config.metrics_port)

    def _start(self, job: str, row: int) -> None:
        name = f"{job}{row}"
        if time.monotonic() - self._started.get(name, float("-inf")) < 1.0:
            time.sleep(1.0)  # one that dies at once is not started in a tight loop
        self._started[name] = time.monotonic()
        parent = os.getpid()
        process = os.fork()
        if process:
            self._jobs[process] = (job, row)
            self._counters.add(f'estate_arc_worker_starts_total{{stage="{self._stage}"}}')
            return
        code = 70
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, {FINISH})
            if os.getppid() != parent:
                os._exit(0)
            if job == "metrics":
                serve_metrics(self._config, self._sockets["metrics"])
            self._counters.use_row(row)
            run_worker(self._stage, self._config, self._counters, str(row), self._sockets["worker"].fileno())
        except BaseException:
            log.exception("%s failed", job)
        finally:
            os._exit(code)

    def run(self) -> None:
        """Work until SIGTERM or SIGINT, then let the workers finish."""
        signals = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        count = self._config.worker_count
        for row in range(MAX_WORKERS):
            self._counters.set(self._gauge, 0, row)
        for row in range(1, count + 1):
            self._start("worker", row)
        if "metrics" in self._sockets:
            self._start("metrics", 0)
        notified = False
        while True:
            received = signal.sigtimedwait(signals, 0.1 if not notified else 60.0)
            if received and received.si_signo in (signal.SIGTERM, signal.SIGINT):
                break
            for job, row in self._reap():
                log.error("a %s died and is replaced", job)
                self._counters.set(self._gauge, 0, row)
                self._start(job, row)
            if not notified and self._counters.total(self._gauge) >= count:
                notify(f"READY=1\nSTATUS=accepting messages with {count} workers\nMAINPID={os.getpid()}")
                notified = True
        self._stop()

    def _reap(self) -> list[tuple[str, int]]:
        dead = []
        while self._jobs:
            process, _ = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                break
            if process in self._jobs:
                dead.append(self._jobs.pop(process))
        return dead

    def _stop(self) -> None:
        notify("STOPPING=1")
        for item in self._sockets.values():
            item.close()
        for process, (job, _) in self._jobs.items():
            os.kill(process, FINISH if job == "worker" else signal.SIGTERM)
        deadline = time.monotonic() + self._config.stop_seconds + 2.0
        while self._jobs and time.monotonic() < deadline:
            self._reap()
            signal.sigtimedwait({signal.SIGCHLD}, 0.2)
        for process in self._jobs:
            os.kill(process, signal.SIGKILL)
        for row in range(MAX_WORKERS):
            self._counters.set(self._gauge, 0, row)


def _listener(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # inherited by accepted connections: libmilter answers in small pieces, each of which would wait 40 ms for the last
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(512)
    return listener


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.sendall(state.encode())


class _JournalFormatter(logging.Formatter):
    """Puts the priority in front of each line, as systemd reads it (sd-daemon(3))."""

    LEVELS = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in self.LEVELS if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="ARC milter: verify in front of the spam filter, seal behind it")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--config", default="/etc/estate-arc/arc.toml")
    parser.add_argument("--check", action="store_true", help="only read the configuration")
    parser.add_argument("--check-key", metavar="FILE", help="only see whether FILE is a key that can seal")
    arguments = parser.parse_args()
    handler = logging.StreamHandler()
    handler.setFormatter(_JournalFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        if arguments.check_key:
            with open(arguments.check_key, "rb") as file:
                chain.Sealer(file.read(), "", "")
            return 0
        config = read_config(arguments.config)
        if arguments.check:
            return 0
        if arguments.stage == "seal":
            read_sealer(config)
    except (ValueError, OSError) as error:
        log.error("configuration %s: %s", arguments.config, error)
        return os.EX_CONFIG
    try:
        supervisor = Supervisor(arguments.stage, config)
        supervisor.listen()
        supervisor.run()
    except OSError as error:
        log.error("cannot work: %s", error)
        return os.EX_OSERR
    return 0


if __name__ == "__main__":
    sys.exit(main())
