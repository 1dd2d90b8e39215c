"""The scenario's host as the tests see it: events go in, mails come out, and the database says what it knows."""

from __future__ import annotations

import base64
import csv
import email
import gzip
import io
import json
import re
import shlex
import subprocess
import sys
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from email import policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "tests/unit"))

from dmarc_report_schema import read  # noqa: E402

CONFIG = "/run/reports-under-test.toml"
GATEWAYS = ("mail-gw1", "mail-gw2")
USER = "setpriv --reuid=dmarc_reports --regid=dmarc_reports --init-groups env PYTHONPATH=/usr/local/lib/dmarc_reports"


def today() -> date:
    """The day it is, UTC."""
    return datetime.now(UTC).date()


def days_ago(number: int) -> date:
    """A day in the past."""
    return today() - timedelta(days=number)


def record(domain: str, tags: str = "p=none") -> dict[str, str]:
    """The policy that an event names, as the gateways write it."""
    found = {"p": "none", "adkim": "r", "aspf": "r", "t": "n"}
    found |= dict(tag.strip().split("=", 1) for tag in tags.split(";"))
    asked = {name: found.get(name, found["p"]) for name in ("p", "sp", "np")}
    requested = asked["p"] if found["t"] == "n" else {"reject": "quarantine"}.get(asked["p"], "none")
    return {
        "domain": domain, "record": f"v=DMARC1; {tags}", "discovery_method": "treewalk", **asked,
        "adkim": found["adkim"], "aspf": found["aspf"], "t": found["t"], "psd": "u", "applied": "p",
        "requested": requested,
    }  # fmt: skip


def event(day: date, domain: str, tags: str | None = "p=none", *, passed: bool = True, **fields: Any) -> dict[str, Any]:
    """One message's event at a gateway; without tags the domain has no policy."""
    moment = int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp())
    passed = passed and tags is not None
    content = {
        "version": 1, "id": str(uuid.uuid4()), "time": moment, "gateway": "mail-gw1", "source_ip": "192.0.2.7",
        "helo": f"mail.{domain}", "envelope_from": domain, "envelope_to": ["example.org"], "header_from": domain,
        "dns": "ok", "policy": None if tags is None else record(domain, tags),
        "spf": {"domain": domain, "scope": "mfrom", "result": "pass" if passed else "fail", "aligned": passed},
        "dkim": [], "dmarc": "none" if tags is None else "pass" if passed else "fail",
        "disposition": "pass" if passed else "none", "overrides": [],
    }  # fmt: skip
    return content | fields


@dataclass(frozen=True)
class Arrived:
    """A report mail, as a receiver of the world has it."""

    envelope_from: str
    envelope_to: str
    raw: bytes

    @property
    def message(self) -> EmailMessage:
        """The mail, read."""
        return email.message_from_bytes(self.raw, policy=policy.default)

    @property
    def attachment(self) -> EmailMessage:
        """Its only attachment."""
        (found,) = self.message.iter_attachments()
        return found

    @property
    def document(self) -> bytes:
        """The XML in it."""
        return gzip.decompress(self.attachment.get_content())

    @property
    def report(self) -> Element:
        """The report, after its structure was checked by the schema's rules."""
        return read(self.document)

    @property
    def report_id(self) -> str:
        """Its identifier."""
        return self.report.findtext("report_metadata/report_id") or ""

    @property
    def domain(self) -> str:
        """The policy domain."""
        return self.report.findtext("policy_published/domain") or ""

    @property
    def messages(self) -> int:
        """How many messages it counts."""
        return sum(int(count.text or 0) for count in self.report.iterfind("record/row/count"))


class World:
    """The host under test."""

    def run(self, command: str, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command as root."""
        return subprocess.run(
            ["ssh", "-F", str(REPOSITORY / ".lab/ssh/config"), "role-dmarc-reports", command],
            input=stdin, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def ask(self, command: str, stdin: str = "", timeout: float = 120) -> str:
        """Run a command that must succeed; gives its output."""
        done = self.run(command, stdin, timeout)
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout

    def sql(self, statement: str) -> list[dict[str, str]]:
        """Rows of the database, every value as text."""
        text = self.ask("psql -X -q -v ON_ERROR_STOP=1 --csv -U postgres -d dmarc", statement)
        return list(csv.DictReader(io.StringIO(text)))

    def one(self, statement: str) -> str:
        """The only value of a query."""
        ((value,),) = (row.values() for row in self.sql(statement))
        return value

    def configure(self, **settings: Any) -> None:
        """The role's configuration with other values, for the commands of a test."""
        text = self.ask("cat /etc/dmarc_reports/reports.toml")
        quick = {"spread_hours": 0, "per_minute": 6000, "wait_hours": 24, "unsure_seconds": 3}
        for name, value in (quick | settings).items():
            text, found = re.subn(rf"(?m)^{name} = .*$", f"{name} = {json.dumps(value)}", text)
            assert found == 1, name
        self.ask(f"install -o root -g dmarc_reports -m 0640 /dev/stdin {CONFIG}", text)

    def reports(self, command: str) -> str:
        """A command of the program, with the configuration of the test."""
        return self.ask(f"dmarc-reports --config {CONFIG} {command}")

    def killed_at(self, step: str, command: str, count: int = 1) -> bool:
        """Run a command that is killed at a step; False if it ended before it came there."""
        program = f"python3 -BP /usr/local/share/kill_at.py {step} {count} --config {CONFIG} {command}"
        done = self.run(f"cd /; {USER} {program}; exit $?")
        assert done.returncode in (3, 137), (step, done.returncode, done.stderr[-2000:])
        return done.returncode == 137

    def hand_in(self, events: list[dict[str, Any] | str], gateway: str = "mail-gw1") -> int:
        """Give events to the store as a gateway does; gives how many were new."""
        new = 0
        lines = [item if isinstance(item, str) else json.dumps(item) for item in events]
        for start in range(0, len(lines), 500):
            batch = json.dumps(lines[start : start + 500]).replace("'", "''")
            new += int(
                self.one(
                    f"SET ROLE dmarc_events; SELECT dmarc_reports.take_events('{gateway}', "
                    f"ARRAY(SELECT jsonb_array_elements_text('{batch}'::jsonb)))"
                )
            )
        return new

    def complete(self, until: date, *gateways: str) -> None:
        """The gateways say that all their events before the beginning of this day are here."""
        for gateway in gateways or GATEWAYS:
            self.sql(f"SET ROLE dmarc_events; SELECT dmarc_reports.events_complete('{gateway}', '{until} 00:00:00+00')")

    def mails(self) -> list[Arrived]:
        """What the receivers of the world have."""
        listing = self.ask(
            'cd /var/mail/world && for file in *; do [ -f "$file" ] && base64 -w0 "$file" && echo; done; true'
        )
        found = []
        for line in listing.split():
            head, _, raw = base64.b64decode(line).partition(b"\n\n")
            sender, recipients = head.decode().split("\n")
            found.append(Arrived(sender, recipients, raw))
        return found

    def wait_for_mails(self, number: int, seconds: float = 20) -> list[Arrived]:
        """The mails, when as many are there and nothing is left in Postfix's queue."""
        script = (
            f"for _ in $(seq {int(seconds * 4)}); do "
            f"[ $(ls /var/mail/world | wc -l) -ge {number} ] && postqueue -j | grep -q . || "
            f"{{ [ $(ls /var/mail/world | wc -l) -ge {number} ] && exit 0; }}; sleep 0.25; done"
        )
        self.run(script)
        found = self.mails()
        assert len(found) == number, ([mail.envelope_to for mail in found], self.journal())
        return found

    def answer(self, **answers: dict[str, str]) -> None:
        """What receivers answer, by domain or mailbox."""
        self.ask("cat > /run/receivers.json", json.dumps(answers))

    def journal(self) -> str:
        """The latest of Postfix and the program."""
        return self.ask("journalctl -n 60 --no-pager -o short-monotonic")

    def empty(self) -> None:
        """Nothing is known, nothing has arrived, nothing is on its way."""
        tables = "event, set_aside, watermark, day, report, delivery, pause"
        names = ", ".join(f"dmarc_reports.{table}" for table in tables.split(", "))
        self.sql(f"TRUNCATE {names} CASCADE; DELETE FROM dmarc_reports.survey_state WHERE name LIKE 'survey %'")
        self.ask(
            "rm -f /run/receivers.json; postsuper -d ALL >/dev/null 2>&1; "
            "find /var/mail/world /var/lib/dmarc_reports/bounces -type f -delete"
        )
        self.configure()

    def deliveries(self, columns: str = "recipient, state, fate") -> list[dict[str, str]]:
        """All deliveries."""
        return self.sql(f"SELECT {columns} FROM dmarc_reports.delivery ORDER BY day, recipient")

    def quoted(self, text: str) -> str:
        """A word of a command."""
        return shlex.quote(text)
