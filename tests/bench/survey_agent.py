"""Runs inside a container, as root, beside whatever is there: a world of receivers in trouble, and the reports to it.

PostgreSQL, unbound, Postfix and the receivers are instances of their own below one directory and on loopback addresses
of their own; of the container only the programs and the journal are used. Its resolv.conf names this world's DNS for
as long as it takes, which asks the container's own resolver for every name but `.example`. Prints one JSON object and
leaves nothing behind.

    survey_agent.py DOMAINS-A-KIND SECONDS       with the programs in ./lib and the SQL in ./sql
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import json
import os
import pwd
import shutil
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

BASE = Path("/run/survey-drill")
SPOOL = Path("/var/spool/survey-drill")
HERE = Path(__file__).resolve().parent
OWN = "127.53.0.1"
SINK = "127.53.1.{}"
PORT = 2525
RESOLV_CONF = Path("/etc/resolv.conf")
SYSLOG_NAME = "postfix-survey"
RETURN_DOMAIN = "rua.drill.example"
LIFETIME = 30
"""Seconds after which this Postfix gives a mail up."""
DELAYED_AFTER = 2
GATEWAY = "gw.drill.example"


@dataclass(frozen=True)
class Kind:
    """A kind of trouble: what the domains of it do, and what the survey has to say."""

    name: str
    fate: str
    state: str = "settled"
    dns: str = "mx"
    """mx | none | a text for local-data"""
    rua: str = "mailto:reports@{domain}"
    policy: str = ""
    """TLS policy of our Postfix."""
    ehlo: tuple[str, ...] = ()
    greeting: str | None = "220 sink.drill.example ESMTP"
    """None: never. Empty: the connection is closed."""
    mail: str = "250 2.1.0 Ok"
    rcpt: str = "250 2.1.5 Ok"
    first_rcpt: str = ""
    data: str = "250 2.0.0 Taken"
    listens: bool = True
    sends_back: str = ""
    """bounce | delay | vacation | forged | words"""


KINDS = (
    Kind("taken", "taken"),
    Kind("greylisted first", "taken", first_rcpt="450 4.7.1 Greylisted, please try again in a minute"),
    Kind("deferred for ever", "expired", rcpt="451 4.3.0 Temporary lookup failure"),
    Kind("greylisted for ever", "expired", rcpt="450 4.2.0 <r@x>: Recipient address rejected: Greylisted"),
    Kind("refused by policy", "spam_policy", rcpt="550 5.7.1 Message rejected by local policy"),
    Kind("refused as spam", "spam_policy", data="554 5.7.1 Spam message rejected"),
    Kind("relay denied", "refused", rcpt="554 5.7.1 <r@x>: Relay access denied"),
    Kind("refused", "refused", rcpt="550 5.0.0 No"),
    Kind("mailbox full", "mailbox_full", rcpt="552 5.2.2 Mailbox full"),
    Kind("mailbox full, for now", "mailbox_full", rcpt="452 4.2.2 The recipient's inbox is out of storage space"),
    Kind("no mailbox", "no_mailbox", rcpt="550 5.1.1 <r@x>: Recipient address rejected: User unknown"),
    Kind("no mailbox, by words", "no_mailbox", rcpt="550 5.4.1 Recipient address rejected: Access denied. [x.outlook]"),
    Kind("too large by SIZE", "too_large", ehlo=("SIZE 500",)),
    Kind("too large by 552", "too_large", data="552 5.3.4 Message too big for system"),
    Kind("NXDOMAIN", "nxdomain", dns="none"),
    Kind("no MX, no address", "no_mx", dns='{domain}. TXT "v=spf1 -all"'),
    Kind("null MX", "no_mx", dns="{domain}. MX 0 ."),
    Kind("MX without address", "no_mx", dns="{domain}. MX 10 nowhere.{domain}."),
    Kind("DNS refuses", "unreachable", dns="refuse"),
    Kind("TLS demanded here", "tls", policy="encrypt"),
    Kind("TLS broken", "tls", policy="encrypt", ehlo=("STARTTLS",)),
    Kind("TLS demanded there", "tls", mail="530 5.7.0 Must issue a STARTTLS command first"),
    Kind("connection refused", "unreachable", listens=False),
    Kind("time-out", "unreachable", greeting=None),
    Kind("closed at once", "unreachable", greeting=""),
    Kind("not served here", "expired", greeting="421 4.3.2 Too many connections, try again later"),
    Kind("bounced later", "bounced_later", sends_back="bounce"),
    Kind("bounced in words", "bounced_later", sends_back="words"),
    Kind("delayed there", "taken", sends_back="delay"),
    Kind("automatic reply", "taken", sends_back="vacation"),
    Kind("forged bounce", "taken", sends_back="forged"),
    Kind("outside, authorised", "taken", rua="mailto:reports@authorised.sinks.example"),
    Kind("not authorised", "not_authorised", rua="mailto:reports@silent.sinks.example"),
    Kind("mailto missing", "wrong_syntax", rua="reports@{domain}"),
    Kind("wrong syntax", "wrong_syntax", rua="mailto:reports@"),
    Kind("not mailto", "not_mailto", rua="https://{domain}/dmarc"),
    Kind("excluded", "excluded"),
    Kind("paused", "paused"),
)
TAKEN = next(kind for kind in KINDS if kind.name == "taken")


def domain(kind: Kind, number: int) -> str:
    """The name of a lab domain."""
    return f"d{number}.k{KINDS.index(kind)}.example"


def address(kind: Kind) -> str:
    """Where the receivers of a kind listen."""
    return SINK.format(KINDS.index(kind) + 1)


# --- the receivers


class Sinks:
    """One SMTP server for each kind, in a thread of their own."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.back: asyncio.Queue[tuple[str, str, str]] = asyncio.Queue()
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Listen everywhere."""
        self.thread.start()
        if not self.ready.wait(10):
            raise SystemExit("the receivers do not listen")

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._listen())
        self.ready.set()
        self.loop.run_until_complete(self._send_back())

    async def _listen(self) -> None:
        for kind in KINDS:
            if kind.listens:
                await asyncio.start_server(lambda r, w, kind=kind: self._serve(kind, r, w), address(kind), PORT)

    async def _serve(self, kind: Kind, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.TimeoutError, ValueError, asyncio.IncompleteReadError):
            async with asyncio.timeout(60):
                await self._talk(kind, reader, writer)
        with contextlib.suppress(OSError):
            writer.close()

    async def _talk(self, kind: Kind, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(*lines: str) -> None:
            writer.write("".join(f"{line}\r\n" for line in lines).encode())

        if kind.greeting is None:
            await reader.read()
            return
        if not kind.greeting:
            return
        say(kind.greeting)
        sender = recipient = ""
        while line := (await reader.readline()).decode("latin-1").strip():
            verb, rest = line.split(" ")[0].upper(), line.partition(":")[2]
            match verb:
                case "EHLO" | "HELO":
                    words = ("sink.drill.example", "ENHANCEDSTATUSCODES", *kind.ehlo)
                    say(*(f"250-{word}" for word in words[:-1]), f"250 {words[-1]}")
                case "STARTTLS":
                    say("220 2.0.0 Ready")
                    await writer.drain()
                    writer.write(b"this is no handshake\r\n" * 10)
                    return
                case "MAIL":
                    sender = rest.partition(">")[0].strip("< ")
                    say(kind.mail)
                case "RCPT":
                    recipient = rest.partition(">")[0].strip("< ")
                    first = kind.first_rcpt and recipient not in self.seen
                    self.seen.add(recipient)
                    say(kind.first_rcpt if first else kind.rcpt)
                case "DATA":
                    say("354 go on")
                    await reader.readuntil(b"\r\n.\r\n")
                    say(kind.data)
                    if kind.sends_back:
                        self.back.put_nowait((kind.sends_back, sender, recipient))
                case "QUIT":
                    say("221 2.0.0 Bye")
                    return
                case _:
                    say("250 2.0.0 Ok")
            await writer.drain()

    async def _send_back(self) -> None:
        while True:
            what, sender, recipient = await self.back.get()
            await asyncio.sleep(DELAYED_AFTER)
            await asyncio.to_thread(send_back, what, sender, recipient)


def send_back(what: str, sender: str, recipient: str) -> None:
    """What a receiver sends to the return path of a report that it took."""
    import smtplib

    subject, headers = "Undelivered Mail Returned to Sender", "Auto-Submitted: auto-replied\r\n"
    body = "\r\nFor information only.\r\n"
    if what in ("bounce", "delay", "forged"):
        action, status = ("delayed", "4.4.1") if what == "delay" else ("failed", "5.1.1")
        if what == "forged":
            sender = sender[: sender.rindex("@") - 1] + ("a" if sender[sender.rindex("@") - 1] != "a" else "b") + (
                sender[sender.rindex("@") :]
            )  # fmt: skip
        headers += 'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n'
        body = (
            "\r\n--b\r\nContent-Type: text/plain\r\n\r\nSorry.\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n"
            f"Reporting-MTA: dns; sink.example\r\n\r\nFinal-Recipient: rfc822; {recipient}\r\nAction: {action}\r\n"
            f"Status: {status}\r\nDiagnostic-Code: smtp; 550 {status} User unknown behind the gateway\r\n\r\n--b--\r\n"
        )
    elif what == "words":
        headers = ""
        body = f"\r\nHi. This is the qmail-send program.\r\n<{recipient}>:\r\n192.0.2.1 said: 550 no such user here\r\n"
    else:
        subject = "Out of office"
    text = f"From: MAILER-DAEMON@sink.drill.example\r\nTo: {sender}\r\nSubject: {subject}\r\n{headers}{body}"
    if what == "vacation":
        text = text.replace("MAILER-DAEMON@sink.drill.example", recipient)
    with smtplib.SMTP(OWN, 10025, local_hostname="sink.drill.example", timeout=20) as smtp:
        smtp.sendmail("", [sender], text.encode())


# --- the machinery


def run(*command: str, user: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command; its own words when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, user=user, timeout=300, cwd="/", **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:120]} failed: {(done.stderr or done.stdout).strip()[-800:]}")
    return done


def program(name: str) -> str:
    """A program of PostgreSQL's newest version here."""
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
    if not found:
        raise SystemExit("this container has no PostgreSQL")
    return found[-1]


def start_postgresql() -> None:
    """A cluster of its own, without durability."""
    data = BASE / "pg"
    data.mkdir()
    shutil.chown(data, "postgres", "postgres")
    run(program("initdb"), "-D", str(data), "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N", user="postgres")
    options = f"-k {data} -c listen_addresses= -c port=5499 -c fsync=off -c shared_buffers=32MB"
    run(program("pg_ctl"), "-D", str(data), "-w", "-l", str(data / "log"), "-o", options, "start", user="postgres")


def connect(user: str, database: str = "dmarc") -> psycopg.Connection[Any]:
    return psycopg.connect(host=str(BASE / "pg"), port=5499, user=user, dbname=database, autocommit=True)


def make_schema() -> None:
    """The role's own SQL, as the role applies it."""
    with connect("postgres", "postgres") as conn:
        conn.execute("CREATE ROLE dmarc_reports LOGIN")
        conn.execute("CREATE DATABASE dmarc")
    with connect("postgres") as conn:
        conn.execute("CREATE SCHEMA dmarc_reports AUTHORIZATION dmarc_reports")
    with connect("dmarc_reports") as conn, conn.transaction():
        for path in sorted((HERE / "sql").glob("*.sql")):
            conn.execute(path.read_text())


def resolvers() -> list[str]:
    """Whom the container asks."""
    words = [line.split() for line in RESOLV_CONF.read_text().splitlines()]
    return [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]


def start_unbound(count: int) -> subprocess.Popen[bytes]:
    """The DNS of this world; every other name does not exist."""
    records = [
        "authorised.sinks.example. MX 10 mx.authorised.sinks.example.",
        f"mx.authorised.sinks.example. A {address(TAKEN)}",
        "silent.sinks.example. MX 10 mx.authorised.sinks.example.",
    ]
    zones = ['local-zone: "example." static', 'local-data: "example. SOA a. b. 1 60 60 60 1"']
    for kind in KINDS:
        for number in range(count):
            name = domain(kind, number)
            if "authorised.sinks" in kind.rua:
                records.append(f'{name}._report._dmarc.authorised.sinks.example. TXT "v=DMARC1"')
            match kind.dns:
                case "mx":
                    records += [f"{name}. MX 10 mx.{name}.", f"mx.{name}. A {address(kind)}"]
                case "none":
                    pass
                case "refuse":
                    zones.append(f'local-zone: "{name}" refuse')
                case text:
                    records.append(text.format(domain=name))
    config = BASE / "unbound.conf"
    lines = [
        "server:", f"interface: {OWN}", "port: 53", "do-daemonize: no", "use-syslog: no", 'logfile: ""', 'username: ""',
        'chroot: ""', 'directory: "/run/survey-drill"', 'pidfile: ""', 'module-config: "iterator"', "num-threads: 1",
        "access-control: 127.0.0.0/8 allow", *zones, *(f"local-data: '{record}'" for record in records),
        "do-not-query-localhost: no", "remote-control:", "control-enable: no", "forward-zone:", 'name: "."',
        *(f"forward-addr: {server}" for server in resolvers()),
    ]  # fmt: skip
    config.write_text("\n".join(lines) + "\n")
    process = subprocess.Popen(["unbound", "-c", str(config)], stderr=(BASE / "unbound.log").open("wb"))
    time.sleep(1)
    if process.poll() is not None:
        raise SystemExit(f"unbound: {(BASE / 'unbound.log').read_text()[-500:]}")
    return process


def postfix(*arguments: str) -> None:
    run("postfix", "-c", str(BASE / "postfix"), *arguments)


def start_postfix(count: int) -> None:
    """An instance of its own: it gives up soon, and tries often."""
    config, uid = BASE / "postfix", pwd.getpwnam("nobody").pw_uid
    config.mkdir()
    for folder in (SPOOL, BASE / "data", BASE / "state", BASE / "state/bounces"):
        folder.mkdir()
    shutil.chown(BASE / "data", "postfix")
    shutil.chown(BASE / "state/bounces", "nobody")
    names = [(kind, domain(kind, number)) for kind in KINDS for number in range(count)]
    (config / "transport").write_text(
        "".join(f"{name} smtp:{name}:{PORT}\n" for _, name in names)
        + f"authorised.sinks.example smtp:authorised.sinks.example:{PORT}\n"
    )
    (config / "tls").write_text(
        "".join(f"[{name}]:{PORT} {kind.policy}\n{name}:{PORT} {kind.policy}\n" for kind, name in names if kind.policy)
    )
    settings = {
        "compatibility_level": "3.6", "queue_directory": SPOOL, "data_directory": BASE / "data",
        "syslog_name": SYSLOG_NAME, "myhostname": "drill.example", "mydestination": "",
        "inet_interfaces": "loopback-only",
        "inet_protocols": "ipv4", "mynetworks": "127.0.0.0/8", "smtpd_relay_restrictions": "permit_mynetworks, reject",
        "alias_maps": "", "local_recipient_maps": "", "recipient_delimiter": "+", "enable_long_queue_ids": "yes",
        "smtp_host_lookup": "dns", "transport_maps": f"texthash:{config}/transport", "message_size_limit": 20_000_000,
        "smtp_tls_policy_maps": f"texthash:{config}/tls", "smtp_tls_security_level": "may",
        "virtual_mailbox_domains": RETURN_DOMAIN, "virtual_mailbox_base": BASE / "state",
        "virtual_mailbox_maps": "static:bounces/", "virtual_uid_maps": f"static:{uid}",
        "virtual_gid_maps": f"static:{uid}", "virtual_minimum_uid": 1, "maximal_queue_lifetime": f"{LIFETIME}s",
        "bounce_queue_lifetime": f"{LIFETIME}s", "minimal_backoff_time": "4s", "maximal_backoff_time": "8s",
        "queue_run_delay": "4s", "smtp_connect_timeout": "3s", "smtp_helo_timeout": "3s", "smtp_starttls_timeout": "5s",
        "default_process_limit": 60, "smtpd_client_connection_count_limit": 0, "notify_classes": "", "maillog_file": "",
        "multi_instance_enable": "no", "multi_instance_directories": "",
    }  # fmt: skip
    (config / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    plain = (
        "cleanup", "bounce", "defer", "trace", "rewrite", "error", "retry", "discard", "proxymap", "anvil", "scache",
        "tlsmgr", "virtual", "verify", "flush", "pickup", "showq", "local", "relay",
    )  # fmt: skip
    special = {
        "defer": "bounce", "trace": "bounce", "rewrite": "trivial-rewrite", "retry": "error", "relay": "smtp",
    }  # fmt: skip
    limits = {"cleanup": "0", "bounce": "0", "defer": "0", "trace": "0", "tlsmgr": "1", "scache": "1", "anvil": "1"}
    lines = [f"{OWN}:10025 inet n - n - - smtpd", "qmgr unix n - n 300 1 qmgr", "smtp unix - - n - - smtp"]
    for name in plain:
        rights = "n - n" if name == "virtual" or name == "local" else "- - n"
        wake = {"tlsmgr": "1000?", "pickup": "60", "flush": "1000?"}.get(name, "-")
        private = "n" if name in ("cleanup", "pickup", "flush", "showq") else "-"
        unprivileged = "n" if rights.startswith("n") else "-"
        lines.append(f"{name} unix {private} {unprivileged} n {wake} {limits.get(name, '-')} {special.get(name, name)}")
    (config / "master.cf").write_text("\n".join(lines) + "\n")
    postfix("start")


# --- the reports


def event(day: datetime, name: str, rua: str) -> str:
    """One message, as a gateway's milter writes it down."""
    return json.dumps(
        {
            "version": 1, "id": str(uuid.uuid4()), "time": int(day.timestamp()) + 43200, "gateway": GATEWAY,
            "source_ip": "192.0.2.1", "helo": "mx.example.com", "envelope_from": name, "envelope_to": ["example.org"],
            "header_from": name, "dns": "ok",
            "policy": {
                "domain": name, "record": f"v=DMARC1; p=none; rua={rua}", "discovery_method": "treewalk", "p": "none",
                "sp": "none", "np": "none", "adkim": "r", "aspf": "r", "t": "n", "psd": "u", "applied": "p",
                "requested": "none",
            },
            "spf": {"domain": name, "scope": "mfrom", "result": "fail", "aligned": False}, "dkim": [], "dmarc": "fail",
            "rspamd_dmarc": "fail", "disposition": "none", "overrides": [],
            "arc": {"result": "none", "trusted": False, "dmarc": "none"},
        }
    )  # fmt: skip


def write_settings() -> None:
    """What the role would write."""
    (BASE / "reports.toml").write_text(
        f"""
enabled = true
database = "host={BASE}/pg port=5499 user=dmarc_reports dbname=dmarc"
key = "{uuid.uuid4().hex}{uuid.uuid4().hex}"
gateways = ["{GATEWAY}"]
wait_hours = 0
catch_up_days = 14
own_domains = []
excluded_domains = {json.dumps([f".k{number}.example" for number, kind in enumerate(KINDS) if kind.name == "excluded"])}
rfc7489_receivers = []
max_addresses = 5
spread_hours = 0
per_minute = 6000
max_bytes = 1000000
smtp_host = "{OWN}"
smtp_port = 10025
syslog_name = "{SYSLOG_NAME}"
unsure_seconds = 600
dns_servers = ["{OWN}"]
bounces = "{BASE}/state/bounces"
pause_failures = 5
pause_days = 5
survey_to = ""
keep_content_days = 30
keep_events_days = 60
keep_reports_days = 400
[sender]
org_name = "Survey Drill"
submitter = "drill.example"
email = "dmarc-reports@{RETURN_DOMAIN}"
bounce_mailbox = "dmarc-reports"
extra_contact_info = ""
"""
    )


def reports(*arguments: str) -> str:
    """The real program."""
    environment = {**os.environ, "PYTHONPATH": str(HERE / "lib")}
    command = [sys.executable, "-B", "-m", "dmarc_reports", "--config", str(BASE / "reports.toml"), *arguments]
    return run(*command, env=environment).stdout


def drill(count: int, seconds: int) -> dict[str, Any]:
    """Report to every domain, wait until every fate is known, and say what was found."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    names = {domain(kind, number): kind for kind in KINDS for number in range(count)}
    lines = [
        event(today - timedelta(days=1), name, kind.rua.format(domain=name))
        for name, kind in names.items()
    ]  # fmt: skip
    with connect("dmarc_reports") as conn:
        conn.execute("SELECT dmarc_reports.take_events(%s, %s)", [GATEWAY, lines])
        conn.execute("SELECT dmarc_reports.events_complete(%s, %s)", [GATEWAY, today])
        for name, kind in names.items():
            if kind.fate == "paused":
                conn.execute(
                    "INSERT INTO dmarc_reports.pause (recipient_domain, failures, until, last_fate) "
                    "VALUES (%s, 5, now() + interval '1 week', 'refused')",
                    [name],
                )
        began = time.monotonic()
        said = [reports("close").strip(), reports("send").strip()]
        sent = time.monotonic() - began
        returning = sum(bool(kind.sends_back) for kind in KINDS) * count
        while time.monotonic() - began < seconds:
            time.sleep(5)
            reports("settle")
            row = conn.execute(
                "SELECT (SELECT count(*) FROM dmarc_reports.delivery WHERE state <> 'settled'), "
                "(SELECT count(*) FROM dmarc_reports.returned WHERE kind <> 'confirmed'), "
                "(SELECT count(*) FROM dmarc_reports.returned WHERE kind = 'confirmed'), "
                "(SELECT count(*) FROM dmarc_reports.delivery WHERE handed_at IS NOT NULL "
                "AND fate NOT IN ('taken', 'bounced_later', 'deferred'))"
            ).fetchone()
            if row and row[0] == 0 and row[1] >= returning and row[2] >= row[3]:
                break
        found = conn.execute(
            "SELECT policy_domain, state, fate, dsn, reply FROM dmarc_reports.delivery ORDER BY id"
        ).fetchall()
        returned = conn.execute("SELECT kind, count(*) FROM dmarc_reports.returned GROUP BY 1").fetchall()
        failed = conn.execute(
            "SELECT count(*) FROM dmarc_reports.delivery WHERE handed_at IS NOT NULL "
            "AND fate NOT IN ('taken', 'bounced_later')"
        ).fetchone()
    return {
        "kinds": [[kind.name, kind.fate, [domain(kind, number) for number in range(count)]] for kind in KINDS],
        "found": [list(row) for row in found],
        "returned": dict(returned),
        "returned_expected": {
            "bounced_later": sum(kind.sends_back in ("bounce", "words") for kind in KINDS) * count,
            "delayed": count, "auto_reply": count, "set_aside": count, "confirmed": failed[0] if failed else 0,
        },
        "said": said, "sent_seconds": sent, "seconds": time.monotonic() - began,
        "survey": reports("survey", f"{today - timedelta(days=1):%Y-%m}"),
    }  # fmt: skip


def main(count: int, seconds: int) -> None:
    """Build the world, drill, tear it down."""
    for place in (BASE, SPOOL):
        if place.exists():
            raise SystemExit(f"{place} exists: another drill runs, or one was cut off; remove it if not")
    BASE.mkdir(mode=0o755)
    unbound, resolv_conf = None, RESOLV_CONF.read_text()
    try:
        start_postgresql()
        make_schema()
        unbound = start_unbound(count)
        RESOLV_CONF.write_text(f"nameserver {OWN}\n")
        start_postfix(count)
        Sinks().start()
        write_settings()
        print(json.dumps(drill(count, seconds)))
    finally:
        RESOLV_CONF.write_text(resolv_conf)
        if (SPOOL / "pid/master.pid").exists():
            with contextlib.suppress(SystemExit):
                postfix("stop")
        if unbound is not None:
            unbound.terminate()
        if (BASE / "pg/postmaster.pid").exists():
            with contextlib.suppress(SystemExit):
                run(program("pg_ctl"), "-D", str(BASE / "pg"), "-m", "immediate", "stop", user="postgres")
        if "KEEP_SURVEY_DRILL" not in os.environ:
            shutil.rmtree(BASE, ignore_errors=True)
            shutil.rmtree(SPOOL, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
