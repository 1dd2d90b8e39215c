#!/usr/bin/python3
"""TLS certificates of a mail host: kept valid by ACME (RFC 8555), their keys kept for DANE (RFC 7672).

Every key algorithm has a current key, which is in use, and a next key, which waits. TLSA records 3 1 1 (RFC 6698) of
both are published, so a renewal, which keeps the key, and a rollover, which takes the next one, never meet a sender
that knows neither. ``renew`` is what the timer runs; ``roll`` takes the next keys, once DNS has them everywhere for a
TTL.

The protocol is dehydrated's, as a user who sees no key: it gets a certificate signing request and gives a chain. What
is in use is one file for each algorithm, key and chain together, replaced in one step: live/<algorithm>.pem. Until a
CA has answered it holds a certificate signed by the key itself, which DANE takes as well.

An interrupted run leaves old files or new ones; the next run goes on from there. Exit codes: 0 all is well, 1 something
could not be done (what is in use stays), 2 wrong usage or configuration, 3 a rollover would be too early.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import fcntl
import hashlib
import http.server
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rdatatype
import dns.resolver
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

CONFIG = Path("/etc/certificates/config.json")
DEHYDRATED_CONFIG = Path("/etc/certificates/dehydrated.conf")
STATE = Path("/var/lib/certificates")
USER = "certificates"

ALGORITHMS = ("ecdsa", "rsa")
PATIENCE = 300  # seconds that one certificate may take, and that a run waits for another one
DEPLOY_PATIENCE = 120  # seconds that one command may take that takes a new certificate into use
DNS_PATIENCE = 5  # seconds that one name server has
SELF_SIGNED_DAYS = 3650
PEM_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
PEM_KEY = re.compile(r"-----BEGIN (?:\w+ )?PRIVATE KEY-----.+?-----END (?:\w+ )?PRIVATE KEY-----\n?", re.DOTALL)
# base64url (RFC 8555 section 8.3).
TOKEN = re.compile(r"/\.well-known/acme-challenge/([A-Za-z0-9_-]{1,128})")

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Trouble(Exception):
    """Something that could not be done, in words for the operator."""


@dataclass(frozen=True)
class Config:
    """What the role wrote: names of the certificate, key algorithms, and what to do with a new certificate."""

    names: list[str]
    keys: list[str]
    challenge: str
    renew_days: float
    reload: list[str]
    deploy: list[str]
    tlsa: list[str]

    @classmethod
    def read(cls, path: Path = CONFIG) -> Config:
        """The configuration.

        :raises Trouble: when it is missing or wrong.
        """
        try:
            config = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise Trouble(f"{path} cannot be used: {error}") from error
        if not config.names or not config.keys or set(config.keys) - set(ALGORITHMS):
            raise Trouble(f"{path}: names and keys are needed; the algorithms are {', '.join(ALGORITHMS)}")
        return config


@dataclass
class Memory:
    """What is remembered from run to run, in state.json."""

    #: Digest of what is in use as the commands last saw it.
    deployed: str = ""
    #: Digest of a key -> since when (Unix time) DNS has it everywhere, and the TTL (s) that has to pass from then.
    seen: dict[str, dict[str, float]] = field(default_factory=dict)
    #: Algorithm -> digest of the next key that a rollover has decided to take.
    rolling: dict[str, str] = field(default_factory=dict)
    last_run: float = 0
    last_success: float = 0
    problems: list[str] = field(default_factory=list)

    @classmethod
    def read(cls) -> Memory:
        """What is remembered; nothing when the file is missing or broken, which only makes a rollover wait again."""
        try:
            return cls(**json.loads((STATE / "state.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self) -> None:
        """Keep it."""
        replace(STATE / "state.json", json.dumps(self.__dict__, indent=2, sort_keys=True) + "\n", 0o600)


@dataclass(frozen=True)
class Live:
    """Key and certificate chain in use."""

    key: PrivateKey
    chain: list[x509.Certificate]

    @property
    def self_signed(self) -> bool:
        """Whether no CA has answered yet."""
        return self.chain[0].issuer == self.chain[0].subject

    @property
    def names(self) -> set[str]:
        """The names in the certificate."""
        try:
            extension = self.chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            return set()
        return set(extension.value.get_values_for_type(x509.DNSName))

    def due(self, config: Config, now: datetime.datetime) -> str:
        """Why a new certificate is needed; empty when none is."""
        leaf = self.chain[0]
        if self.self_signed:
            return "no CA has signed it yet"
        if self.names != set(config.names):
            return "the names have changed"
        left = until(leaf) - now
        # Certificates that live for days only are renewed when a third is left.
        if left < min(datetime.timedelta(days=config.renew_days), (until(leaf) - since(leaf)) / 3):
            return f"it is valid until {until(leaf):%Y-%m-%d %H:%M} UTC only"
        return ""


def since(certificate: x509.Certificate) -> datetime.datetime:
    """From when on a certificate is valid."""
    if hasattr(certificate, "not_valid_before_utc"):
        return certificate.not_valid_before_utc
    return certificate.not_valid_before.replace(tzinfo=datetime.UTC)  # before cryptography 42


def until(certificate: x509.Certificate) -> datetime.datetime:
    """Until when a certificate is valid."""
    if hasattr(certificate, "not_valid_after_utc"):
        return certificate.not_valid_after_utc
    return certificate.not_valid_after.replace(tzinfo=datetime.UTC)


def say(text: str) -> None:
    """One line for the journal or the operator."""
    print(text, file=sys.stderr, flush=True)


def replace(path: Path, text: str, mode: int) -> None:
    """Put a file in place in one step and for good, so that a reader sees the old content or the new."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".new-", delete=False, encoding="utf-8") as new:
        try:
            os.fchmod(new.fileno(), mode)
            new.write(text)
            new.flush()
            os.fsync(new.fileno())
            os.rename(new.name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new.name)
            raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def new_key(algorithm: str) -> PrivateKey:
    """A key that every receiver and sender of mail can use: P-256, or RSA with 3072 bits (NCSC-NL 2025)."""
    if algorithm == "ecdsa":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=3072)


def key_pem(key: PrivateKey) -> str:
    """A key as unencrypted PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def digest(key: PrivateKey | Any) -> str:
    """What a TLSA record 3 1 1 says of a private or public key: SHA-256 of its SubjectPublicKeyInfo (RFC 6698 §2.1)."""
    public = key.public_key() if hasattr(key, "public_key") else key
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def live_path(algorithm: str) -> Path:
    """Where key and chain in use are."""
    return STATE / "live" / f"{algorithm}.pem"


def next_path(algorithm: str) -> Path:
    """Where the key is that waits."""
    return STATE / "next" / f"{algorithm}.pem"


def load_key(path: Path) -> PrivateKey | None:
    """The private key in a PEM file; None when there is none that can be used."""
    try:
        found = PEM_KEY.search(path.read_text(encoding="ascii"))
        return serialization.load_pem_private_key(found[0].encode(), password=None) if found else None
    except (OSError, ValueError, TypeError):
        return None


def load_chain(text: str) -> list[x509.Certificate]:
    """The certificates among other text, in PEM; ValueError when there is none (RFC 7468 §5)."""
    chain = [x509.load_pem_x509_certificate(found.encode()) for found in PEM_CERTIFICATE.findall(text)]
    if not chain:
        raise ValueError("no certificate")
    return chain


def load_live(algorithm: str) -> Live | None:
    """What is in use; None when there is none, or none that can be used."""
    key = load_key(live_path(algorithm))
    if key is None:
        return None
    try:
        chain = load_chain(live_path(algorithm).read_text("ascii"))
    except (OSError, ValueError):
        return None
    return Live(key, chain) if digest(chain[0]) == digest(key) else None


def name_of(config: Config) -> x509.Name:
    """The subject: the first name, where it fits (RFC 5280: 64 characters)."""
    names = [name for name in config.names[:1] if len(name) <= 64]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])


def alternative_names(config: Config) -> x509.SubjectAlternativeName:
    """All the names."""
    return x509.SubjectAlternativeName([x509.DNSName(name) for name in config.names])


def self_signed(config: Config, key: PrivateKey) -> str:
    """A certificate, as PEM, that a key signs for itself until a CA answers."""
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name_of(config))
        .issuer_name(name_of(config))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(alternative_names(config), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def signing_request(config: Config, key: PrivateKey) -> str:
    """What the CA is asked to sign, as PEM (RFC 2986)."""
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name_of(config))
        .add_extension(alternative_names(config), critical=False)
        .sign(key, hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.PEM).decode()


def prepare(config: Config, algorithm: str) -> bool:
    """Have a key in use, with whatever certificate, and another one that waits; True when one had to be made."""
    made = False
    waiting = load_key(next_path(algorithm))
    live = load_live(algorithm)
    if live is None:
        # A key whose certificate is lost stays; of a lost key the next one is already known to others.
        key = load_key(live_path(algorithm)) or waiting or new_key(algorithm)
        replace(live_path(algorithm), key_pem(key) + self_signed(config, key), 0o600)
        live, made = load_live(algorithm), True
        if live is None:
            raise Trouble(f"{live_path(algorithm)} was written and cannot be read")
        say(f"{algorithm}: key made or taken, with a certificate of its own until the CA answers")
    if waiting is None or digest(waiting) == digest(live.key):
        replace(next_path(algorithm), key_pem(new_key(algorithm)), 0o600)
        made = True
        say(f"{algorithm}: next key made; its TLSA record is to be published")
    return made


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers to challenges (RFC 8555 §8.3), and nothing else."""

    timeout = 10
    server_version, sys_version = "", ""

    def do_GET(self) -> None:
        """The key authorisation for a token."""
        found = TOKEN.fullmatch(self.path)
        try:
            body = (STATE / "challenges" / found[1]).read_bytes() if found else None
        except OSError:
            body = None
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: Any) -> None:
        """Whoever asks on port 80 is nobody's business."""


class Listener(http.server.ThreadingHTTPServer):
    """A server on a socket that somebody else has bound, for a bounded number of clients."""

    daemon_threads = True

    def __init__(self, descriptor: int) -> None:
        """Take over the listening socket."""
        super().__init__(("", 0), Answers, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(fileno=descriptor)
        self.free = threading.BoundedSemaphore(32)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve it in a thread of its own, or drop it."""
        if self.free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve it and make room for the next one."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()


def answer(descriptors: list[int]) -> int:
    """Answer challenges on these sockets until standard input ends, which it does with the run that began it."""
    for descriptor in descriptors:
        threading.Thread(target=Listener(descriptor).serve_forever, daemon=True).start()
    # Nobody listens for longer than a challenge may take, whatever happens.
    threading.Timer(PATIENCE + 60, os._exit, [1]).start()
    sys.stdin.buffer.read()
    os._exit(0)


def port_80() -> list[socket.socket]:
    """Listening sockets on port 80 of IPv4 and IPv6.

    :raises OSError: when the port is taken.
    """
    sockets: list[socket.socket] = []
    try:
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            try:
                listening = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                continue
            sockets.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                listening.bind((address, 80))
                listening.listen(64)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                sockets.remove(listening)
                listening.close()
    except OSError:
        for listening in sockets:
            listening.close()
        raise
    return sockets


@contextlib.contextmanager
def listening(config: Config) -> Iterator[None]:
    """Have port 80 answered while a challenge is open: by us, or by the web server of this host."""
    try:
        sockets = port_80()
    except OSError as error:
        if config.challenge == "webroot" and error.errno == errno.EADDRINUSE:
            yield
            return
        raise Trouble(f"port 80 cannot be used for the CA's challenge: {error.strerror}") from error
    descriptors = [one.fileno() for one in sockets]
    child = subprocess.Popen(
        [sys.executable, __file__, "answer", *map(str, descriptors)],
        stdin=subprocess.PIPE,
        pass_fds=descriptors,
        **unprivileged(),
    )
    for one in sockets:
        one.close()
    try:
        yield
    finally:
        child.kill()
        child.wait()


def unprivileged() -> dict[str, Any]:
    """How a process is started that needs none of our rights."""
    return {
        "user": USER,
        "group": USER,
        "extra_groups": [],
        "cwd": "/",
        "env": {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(STATE / "acme")},
    }


def forget_account(broken_only: bool) -> None:
    """Remove the accounts at the CA, so that a new one is made; with ``broken_only`` those that cannot be used."""
    for directory in (STATE / "acme" / "accounts").glob("*"):
        try:
            whole = bool(json.loads((directory / "account_id.json").read_text(encoding="utf-8"))["url"])
            whole = whole and load_key(directory / "account_key.pem") is not None
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not (broken_only and whole):
            shutil.rmtree(directory, ignore_errors=True)


def ask_ca(request: str) -> str:
    """What dehydrated says to a signing request: the CA's chain as PEM.

    :raises Trouble: when there is none, with the reason.
    """
    with tempfile.TemporaryDirectory(dir=STATE / "requests") as directory:
        os.chmod(directory, 0o755)
        path = Path(directory) / "request.pem"
        path.write_text(request, encoding="ascii")
        path.chmod(0o644)
        command = ["/usr/bin/dehydrated", "--config", str(DEHYDRATED_CONFIG), "--no-lock", "--accept-terms"]
        process = subprocess.Popen(
            [*command, "--signcsr", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            **unprivileged(),
        )
        try:
            output, said = process.communicate(timeout=PATIENCE)
        except BaseException as error:
            # A shell that goes on alone would answer nobody.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise Trouble(f"no certificate after {PATIENCE} seconds") from error
            raise
    if process.returncode or not PEM_CERTIFICATE.search(output):
        raise Trouble(reason(said))
    return output


def reason(said: str) -> str:
    """The one line that matters of what dehydrated says: the CA's own words where there are any."""
    detail = re.search(r'"detail"\s*[:\]]?\s*:?\s*"((?:[^"\\]|\\.)*)"', said)
    kind = re.search(r"urn:ietf:params:acme:error:\w+", said)
    error = re.findall(r"ERROR: (.*\S)", said) or [line for line in said.splitlines() if line.strip()][-1:]
    parts = [detail[1] if detail else "", kind[0] if kind else "", *([] if detail else error[:1])]
    return " ".join(part.strip() for part in parts if part) or "dehydrated said nothing"


def obtain(config: Config, key: PrivateKey) -> list[str]:
    """A chain from the CA for a key, as PEM, checked.

    :raises Trouble: when the CA gives none, or one that would not work.
    """
    forget_account(broken_only=True)
    request = signing_request(config, key)
    with listening(config):
        try:
            output = ask_ca(request)
        except Trouble as trouble:
            if "accountDoesNotExist" not in str(trouble):
                raise
            say("the CA knows our account no longer; a new one is made")
            forget_account(broken_only=False)
            output = ask_ca(request)
    chain = PEM_CERTIFICATE.findall(output)
    live = Live(key, load_chain(output))
    leaf = live.chain[0]
    now = datetime.datetime.now(datetime.UTC)
    if digest(leaf) != digest(key):
        raise Trouble("the CA's certificate is for another key")
    if not set(config.names) <= live.names:
        raise Trouble(f"the CA's certificate is for {', '.join(sorted(live.names))}")
    if not since(leaf) <= now < until(leaf):
        raise Trouble(f"the CA's certificate is not valid now; is the clock right? It says {now:%Y-%m-%d %H:%M} UTC")
    return [pem if pem.endswith("\n") else pem + "\n" for pem in chain]


def servers_of(owner: str) -> tuple[dns.name.Name, dict[str, list[str]]]:
    """The zone of a name and its authoritative servers with their addresses.

    :raises Trouble: when they cannot be found.
    """
    resolver = dns.resolver.Resolver()
    resolver.lifetime = 3 * DNS_PATIENCE
    try:
        zone = dns.resolver.zone_for_name(owner, resolver=resolver, lifetime=3 * DNS_PATIENCE)
        servers: dict[str, list[str]] = {}
        for server in resolver.resolve(zone, "NS"):
            addresses = servers.setdefault(str(server.target), [])
            for kind in ("A", "AAAA"):
                with contextlib.suppress(dns.resolver.NoAnswer):
                    addresses += [record.address for record in resolver.resolve(server.target, kind)]
    except dns.exception.DNSException as error:
        raise Trouble(f"the name servers of {owner} cannot be found: {error}") from error
    return zone, servers


def ask_server(addresses: list[str], owner: str | dns.name.Name, kind: str) -> dns.message.Message | None:
    """The first answer of a server by any of its addresses; None when there is none."""
    for address in addresses:
        query = dns.message.make_query(owner, kind, want_dnssec=False, use_edns=0, payload=1232)
        query.flags &= ~dns.flags.RD
        with contextlib.suppress(dns.exception.DNSException, OSError):
            answered, _ = dns.query.udp_with_fallback(query, address, timeout=DNS_PATIENCE, ignore_unexpected=True)
            return answered
    return None


def published(owner: str) -> tuple[dict[str, set[str]], float]:
    """Server -> digests of its TLSA records 3 1 1 for a name; and for how long (s) resolvers may know older ones.

    :raises Trouble: when a server does not answer.
    """
    zone, servers = servers_of(owner)
    found: dict[str, set[str]] = {}
    wait = 0.0
    for server, addresses in servers.items():
        soa = ask_server(addresses, zone, "SOA")
        message = ask_server(addresses, owner, "TLSA")
        if soa is None or message is None or not message.flags & dns.flags.AA:
            raise Trouble(f"{server} does not answer for {owner}")
        digests = found.setdefault(server, set())
        for rrset in soa.answer:
            if rrset.rdtype == dns.rdatatype.SOA:  # where there was no record before (RFC 2308 section 5)
                wait = max(wait, min(rrset.ttl, rrset[0].minimum))
        for rrset in message.answer:
            if rrset.rdtype == dns.rdatatype.TLSA:
                wait = max(wait, rrset.ttl)
                digests |= {r.cert.hex() for r in rrset if (r.usage, r.selector, r.mtype) == (3, 1, 1)}
    return found, wait


@dataclass
class View:
    """What DNS says of our keys."""

    #: Name -> digests that all its servers have; None when DNS could not be asked.
    everywhere: dict[str, set[str] | None] = field(default_factory=dict)
    #: Names that have TLSA records at all: their senders verify.
    bound: set[str] = field(default_factory=set)
    troubles: list[str] = field(default_factory=list)


def look(config: Config, memory: Memory, digests: list[str]) -> View:
    """Ask DNS for our TLSA records, and remember since when it has had each key of ours everywhere."""
    view, now, waits = View(), time.time(), [0.0]
    for owner in config.tlsa:
        try:
            found, wait = published(owner)
        except Trouble as trouble:
            view.everywhere[owner] = None
            view.troubles.append(str(trouble))
            continue
        view.everywhere[owner] = set.intersection(*found.values()) if found else set()
        if any(found.values()):
            view.bound.add(owner)
        waits.append(wait)
    if None in view.everywhere.values():
        return view  # what is not known changes nothing
    for one in digests:
        if config.tlsa and all(one in (known or set()) for known in view.everywhere.values()):
            before = memory.seen.get(one, {"since": now, "wait": 0})
            memory.seen[one] = {"since": before["since"], "wait": max(before["wait"], *waits)}
        else:
            memory.seen.pop(one, None)
    memory.seen = {one: seen for one, seen in memory.seen.items() if one in digests}
    return view


def too_early(config: Config, memory: Memory, view: View, algorithm: str, waiting: str) -> str:
    """Why the next key cannot be taken yet; empty when it can."""
    if not config.tlsa:
        return ""  # no sender knows our keys
    for owner, known in view.everywhere.items():
        if known is None:
            return f"{algorithm}: DNS cannot be asked. " + " ".join(view.troubles)
        if waiting not in known:
            return (
                f"{algorithm}: not every name server of {owner} has 3 1 1 {waiting} of the next key; "
                "publish it (docs/certificates.md)"
            )
    end = memory.seen[waiting]["since"] + memory.seen[waiting]["wait"]
    if time.time() < end:
        clock = datetime.datetime.fromtimestamp(end, datetime.UTC)
        return (
            f"{algorithm}: resolvers may still know the records of before the next key's; "
            f"again after {clock:%Y-%m-%d %H:%M:%S} UTC"
        )
    return ""


def digest_in_use(config: Config) -> str:
    """A digest over all that is in use."""
    return hashlib.sha256(b"".join(live_path(algorithm).read_bytes() for algorithm in config.keys)).hexdigest()


def deploy(config: Config) -> None:
    """Have the daemons take up what is in use.

    :raises Trouble: when one of them does not.
    """
    troubles = []
    for unit in config.reload:
        if subprocess.run(["systemctl", "is-active", "--quiet", unit], check=False).returncode == 0:
            troubles += run_command(["systemctl", "reload-or-restart", unit])
    for command in config.deploy:
        troubles += run_command(["/bin/sh", "-c", command])
    if troubles:
        raise Trouble("; ".join(troubles))


def run_command(command: list[str]) -> list[str]:
    """Run a command; what went wrong, if anything."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEPLOY_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return [f"'{' '.join(command)}' took longer than {DEPLOY_PATIENCE} seconds"]
    said = (done.stderr or done.stdout).strip().splitlines()[-1:]
    return [f"'{' '.join(command)}' failed: {' '.join(said)}"] if done.returncode else []


def metrics(config: Config, memory: Memory, view: View) -> str:
    """The state in Prometheus' text format."""
    lines = [
        "# HELP certificates_not_after_seconds Unix time until which the certificate in use is valid.",
        "# TYPE certificates_not_after_seconds gauge",
        "# HELP certificates_lifetime_seconds For how long the certificate in use is valid in all.",
        "# TYPE certificates_lifetime_seconds gauge",
        "# HELP certificates_from_ca Whether a CA has signed the certificate in use.",
        "# TYPE certificates_from_ca gauge",
        "# HELP certificates_tlsa_published Whether every name server has the key's TLSA record, where there are any.",
        "# TYPE certificates_tlsa_published gauge",
    ]
    for algorithm in config.keys:
        live, waiting = load_live(algorithm), load_key(next_path(algorithm))
        if live is None or waiting is None:
            continue
        label, leaf = f'algorithm="{algorithm}"', live.chain[0]
        lifetime = (until(leaf) - since(leaf)).total_seconds()
        lines += [
            f'certificates_not_after_seconds{{{label},name="{config.names[0]}"}} {until(leaf).timestamp():.0f}',
            f"certificates_lifetime_seconds{{{label}}} {lifetime:.0f}",
            f"certificates_from_ca{{{label}}} {int(not live.self_signed)}",
        ]
        for owner, known in view.everywhere.items():
            if owner in view.bound and known is not None:
                lines += [
                    f'certificates_tlsa_published{{{label},owner="{owner}",key="{key}"}} {int(one in known)}'
                    for key, one in (("current", digest(live.key)), ("next", digest(waiting)))
                ]
    lines += [
        "# HELP certificates_last_run_seconds Unix time of the last run.",
        "# TYPE certificates_last_run_seconds gauge",
        f"certificates_last_run_seconds {memory.last_run:.0f}",
        "# HELP certificates_last_success_seconds Unix time of the last run without trouble.",
        "# TYPE certificates_last_success_seconds gauge",
        f"certificates_last_success_seconds {memory.last_success:.0f}",
        "# HELP certificates_troubles What could not be done in the last run.",
        "# TYPE certificates_troubles gauge",
        f"certificates_troubles {len(memory.problems)}",
    ]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One run at a time.

    :raises Trouble: when the other one does not end.
    """
    with (STATE / "lock").open("w") as lock:
        end = time.monotonic() + 2 * PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise Trouble("another run does not end (systemctl status certificates.service)") from None
                time.sleep(0.5)
        yield


def sweep() -> None:
    """Remove what an interrupted run has left."""
    for directory in (STATE, STATE / "live", STATE / "next"):
        for path in directory.glob(".new-*"):
            path.unlink()
    for path in (STATE / "challenges").iterdir():
        path.unlink()
    for path in (STATE / "requests").iterdir():
        shutil.rmtree(path, ignore_errors=True)


def digests_of(config: Config) -> dict[str, dict[str, str]]:
    """Which -> algorithm -> digest of the keys, as far as there are any."""
    live = {algorithm: load_key(live_path(algorithm)) for algorithm in config.keys}
    waiting = {algorithm: load_key(next_path(algorithm)) for algorithm in config.keys}
    return {
        "current": {algorithm: digest(key) for algorithm, key in live.items() if key},
        "next": {algorithm: digest(key) for algorithm, key in waiting.items() if key},
    }


def renew_one(config: Config, memory: Memory, algorithm: str, force: bool) -> bool:
    """Have a certificate for the key that is to be in use; True when there is a new one.

    :raises Trouble: when there is none; what is in use stays.
    """
    live, waiting = load_live(algorithm), load_key(next_path(algorithm))
    if live is None or waiting is None:
        raise Trouble("there is no key")
    if memory.rolling.get(algorithm) not in (None, digest(waiting)):
        memory.rolling.pop(algorithm)  # that rollover is done
    roll = algorithm in memory.rolling
    why = "its next key is taken" if roll else live.due(config, datetime.datetime.now(datetime.UTC))
    if not why and not force:
        return False
    key = waiting if roll else live.key
    chain = obtain(config, key)
    replace(live_path(algorithm), key_pem(key) + "".join(chain), 0o600)
    say(f"{algorithm}: new certificate ({why or 'on demand'})")
    if roll:
        prepare(config, algorithm)
        memory.rolling.pop(algorithm)
        memory.write()
    return True


def renew(
    config: Config, force: bool = False, roll: list[str] | None = None, at_once: bool = False
) -> tuple[bool, int]:
    """Do all that is due; whether something has changed, and the exit code.

    :param force: new certificates for the keys in use, whether due or not.
    :param roll: algorithms whose next key is to be taken.
    :param at_once: take it without asking DNS.
    """
    with alone():
        sweep()
        memory, problems = Memory.read(), []
        changed = any([prepare(config, algorithm) for algorithm in config.keys])
        keys = digests_of(config)
        view = look(config, memory, [*keys["current"].values(), *keys["next"].values()])
        early = []
        if roll is not None:
            # A rollover that was interrupted is finished first; its keys were looked for in DNS before.
            roll = [algorithm for algorithm in roll if memory.rolling.get(algorithm) == keys["next"][algorithm]] or roll
            early = [
                text
                for algorithm in roll
                if algorithm not in memory.rolling and not at_once
                if (text := too_early(config, memory, view, algorithm, keys["next"][algorithm]))
            ]
            if not early:
                memory.rolling |= {algorithm: keys["next"][algorithm] for algorithm in roll}
            for text in early:
                say(text)
        memory.write()
        for algorithm in config.keys:
            try:
                changed |= renew_one(config, memory, algorithm, force)
            except Trouble as trouble:
                problems.append(f"{algorithm}: no new certificate: {trouble}")
        if memory.deployed != (in_use := digest_in_use(config)):
            try:
                deploy(config)
                memory.deployed = in_use
            except Trouble as trouble:
                problems.append(f"the new certificate is not in use yet: {trouble}")
        for owner, known in view.everywhere.items():
            missing = sorted(set(keys["current"].values()) - (known or set())) if owner in view.bound else []
            if missing:
                say(f"{owner} has TLSA records, but not 3 1 1 {' and '.join(missing)}: mail of senders with DANE waits")
        memory.last_run = time.time()
        memory.problems = problems
        if not problems:
            memory.last_success = memory.last_run
        memory.write()
        if roll:
            keys = digests_of(config)
            view = look(config, memory, [*keys["current"].values(), *keys["next"].values()])
            memory.write()
        replace(STATE / "metrics.prom", metrics(config, memory, view), 0o644)
    for text in problems:
        say(text)
    return changed, 1 if problems else 3 if early else 0


def status(config: Config) -> dict[str, Any]:
    """All that an operator wants to know."""
    memory = Memory.read()
    keys = digests_of(config)
    view = look(config, memory, [*keys["current"].values(), *keys["next"].values()])
    certificates = {}
    for algorithm in config.keys:
        if live := load_live(algorithm):
            waiting = keys["next"].get(algorithm, "")
            certificates[algorithm] = {
                "names": sorted(live.names),
                "valid_until": f"{until(live.chain[0]):%Y-%m-%d %H:%M:%S} UTC",
                "from_ca": not live.self_signed,
                "issuer": live.chain[0].issuer.rfc4514_string(),
                "current": digest(live.key),
                "next": waiting,
                "roll": too_early(config, memory, view, algorithm, waiting) or "possible",
            }
    return {
        "certificates": certificates,
        "tlsa": {owner: None if known is None else sorted(known) for owner, known in view.everywhere.items()},
        "dns_troubles": view.troubles,
        "problems": memory.problems,
        "in_use": bool(certificates) and memory.deployed == digest_in_use(config),
    }


def show(found: dict[str, Any]) -> str:
    """The state as lines for people."""
    lines = []
    for algorithm, one in found["certificates"].items():
        origin = one["issuer"] if one["from_ca"] else "itself: no CA has answered yet"
        lines += [
            f"{algorithm}: {', '.join(one['names'])}",
            f"  valid until  {one['valid_until']}, signed by {origin}",
            f"  current key  3 1 1 {one['current']}",
            f"  next key     3 1 1 {one['next']}",
            f"  rollover     {one['roll']}",
        ]
        for owner, known in found["tlsa"].items():
            missing = [which for which in ("current", "next") if known is not None and one[which] not in known]
            lacks = f"lacks the {' and the '.join(missing)} key" if missing else "ok"
            says = "cannot be asked" if known is None else lacks
            lines.append(f"  {owner}  {says}")
    lines += [f"DNS: {text}" for text in found["dns_troubles"]]
    lines += [f"last run: {text}" for text in found["problems"]]
    lines += [] if found["in_use"] else ["the daemons have not taken up what is here"]
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    parser = argparse.ArgumentParser(prog="certificates", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("renew", help="do all that is due; the timer runs this")
    one.add_argument("--force", action="store_true", help="new certificates for the same keys, due or not")
    one.add_argument("--report", action="store_true", help="print the outcome as JSON")
    two = commands.add_parser("roll", help="take the next keys into use")
    two.add_argument("--algorithm", choices=ALGORITHMS, help="only this one")
    two.add_argument("--at-once", action="store_true", help="whatever DNS says: for a key that others have")
    three = commands.add_parser("status", help="show certificates, keys and what DNS says of them")
    three.add_argument("--json", action="store_true", help="as JSON")
    commands.add_parser("digests", help="print the data of the TLSA records 3 1 1 as JSON, current keys first")
    commands.add_parser("answer").add_argument("descriptors", nargs="+", type=int)
    return parser


def main() -> int:
    """Do what the command line says."""
    options = arguments().parse_args()
    if options.command == "answer":
        return answer(options.descriptors)
    try:
        config = Config.read()
        pwd.getpwnam(USER)
        if options.command == "renew":
            changed, code = renew(config, force=options.force)
            if options.report:
                print(json.dumps({"changed": changed, "problems": Memory.read().problems}))
        elif options.command == "roll":
            chosen = [options.algorithm] if options.algorithm else config.keys
            if set(chosen) - set(config.keys):
                raise Trouble(f"{options.algorithm} is not among the keys of this host: {', '.join(config.keys)}")
            _, code = renew(config, roll=chosen, at_once=options.at_once)
        elif options.command == "status":
            found, code = status(config), 0
            print(json.dumps(found, indent=2) if options.json else show(found))
        else:
            keys, code = digests_of(config), 0
            print(json.dumps([*keys["current"].values(), *keys["next"].values()]))
    except (Trouble, KeyError) as error:
        say(str(error))
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
