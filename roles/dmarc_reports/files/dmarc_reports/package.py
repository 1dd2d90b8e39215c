"""A report as a mail: compressed, named, with subject and a return path of its own (RFC 9990, "Transport").

The same report always gets the same identifier, file name and octets, so that one that is sent twice is known for what
it is. The identifier depends on the policy domain too: parsedmarc tells reports apart by reporter and identifier only.

The return path names report and recipient, `dmarc-reports+<report>-<code>@domain`; the code is an HMAC over both, so
that a bounce can be counted without a table and nobody can make one up.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import io
import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP

from .aggregate import Report
from .destinations import Destination, Reason, Refused
from .report_xml import Form, Reporter, render

MAX_LOCAL_PART = 64
_POLICY = SMTP.clone(cte_type="7bit")
"""No next hop may find anything to convert, which would break the signature."""
_CODE_BYTES = 10
_TOKEN = re.compile(r"([0-9a-f]{24})-([a-z2-7]{16})")


@dataclass(frozen=True)
class Sender:
    """Who sends the reports; envelope and From have one domain, so that SPF and DKIM of it are aligned."""

    org_name: str
    submitter: str
    """The domain that stands for the receiver of the mail: in subject and file name."""
    email: str
    """The From address, and the contact in the report."""
    bounce_mailbox: str = "dmarc-reports"
    extra_contact_info: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for a return path that could not be used."""
        if len(self.bounce_mailbox) + 1 + 24 + 1 + 16 > MAX_LOCAL_PART:
            raise ValueError(f"the mailbox {self.bounce_mailbox!r} leaves no room for a token in 64 characters")
        if not re.fullmatch(r"[^@\s]+@[a-z0-9._-]+", self.email):
            raise ValueError(f"{self.email!r} is no address")

    @property
    def domain(self) -> str:
        """The domain of From and of the return path."""
        return self.email.rpartition("@")[2]

    @property
    def reporter(self) -> Reporter:
        """The same, for the report itself."""
        return Reporter(self.org_name, self.email, self.extra_contact_info)


@dataclass(frozen=True)
class Frozen:
    """A report as it is kept until it is sent: nothing of it is made again from events or settings."""

    report_id: str
    policy_domain: str
    begin: int
    end: int
    messages: int
    records: int
    form: Form
    file_name: str
    subject: str
    content: bytes
    """gzip, as sent."""


@dataclass(frozen=True)
class Mail:
    """A mail to hand to the next hop."""

    envelope_from: str
    envelope_to: str
    message_id: str
    content: bytes
    """With CRLF line ends."""


def report_id(report: Report, submitter: str) -> str:
    """The Report-ID, which is the unique part of the file name as well: 24 hexadecimal digits."""
    names = (submitter, str(report.begin), str(report.end), str(report.configurations > 1), *astuple(report.published))
    return hashlib.sha256("\0".join(names).encode("utf-8")).hexdigest()[:24]


def file_name(report: Report, submitter: str) -> str:
    """`receiver!policy-domain!begin!end!unique-id.xml.gz`"""
    parts = (submitter, report.published.domain, str(report.begin), str(report.end), report_id(report, submitter))
    return "!".join(parts) + ".xml.gz"


def subject(report: Report, submitter: str) -> str:
    """The subject, by the ABNF of RFC 9990, "Email"."""
    number = report_id(report, submitter)
    return f"Report Domain: {report.published.domain} Submitter: {submitter} Report-ID: {number}"


def compress(xml: bytes) -> bytes:
    """gzip without time and name: the same octets for the same report (RFC 1952)."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
        stream.write(xml)
    return buffer.getvalue()


def token(key: bytes, number: str, recipient: str) -> str:
    """What the return path of one report to one recipient carries. Raises ValueError for a short key."""
    if len(key) < 32:
        raise ValueError("the key of the return path has less than 32 octets")
    code = hmac.digest(key, f"dmarc-report\0{number}\0{recipient}".encode(), "sha256")[:_CODE_BYTES]
    return f"{number}-{base64.b32encode(code).decode('ascii').lower()}"


def envelope_from(sender: Sender, key: bytes, number: str, recipient: str) -> str:
    """The return path of one report to one recipient."""
    return f"{sender.bounce_mailbox}+{token(key, number, recipient)}@{sender.domain}"


def bounced_report(sender: Sender, address: str) -> str | None:
    """The Report-ID in the address that a bounce came to; None if it is no return path of ours. Proves nothing yet."""
    local, _, domain = address.strip().removeprefix("<").removesuffix(">").lower().rpartition("@")
    mailbox, _, rest = local.partition("+")
    found = _TOKEN.fullmatch(rest)
    ours = mailbox == sender.bounce_mailbox.lower() and domain == sender.domain
    return found[1] if found and ours else None


def bounced_recipient(sender: Sender, key: bytes, address: str, recipients: Iterable[str]) -> str | None:
    """Which of a report's recipients a bounce is about; None where the code is made up. Case does not matter."""
    number = bounced_report(sender, address)
    if number is None:
        return None
    claimed = address.strip().removesuffix(">").lower().rpartition("@")[0].partition("+")[2]
    for recipient in recipients:
        if hmac.compare_digest(token(key, number, recipient).encode(), claimed.encode("utf-8")):
            return recipient
    return None


def freeze(report: Report, sender: Sender, form: Form = Form.RFC9990) -> Frozen:
    """Make the report as it will be sent. Raises ValueError for one without rows."""
    number = report_id(report, sender.submitter)
    return Frozen(
        report_id=number,
        policy_domain=report.published.domain,
        begin=report.begin,
        end=report.end,
        messages=report.messages,
        records=len(report.rows),
        form=form,
        file_name=file_name(report, sender.submitter),
        subject=subject(report, sender.submitter),
        content=compress(render(report, sender.reporter, number, form)),
    )


def build(
    report: Frozen, sender: Sender, destination: Destination, *, key: bytes, now: datetime, max_bytes: int
) -> Mail | Refused:
    """Make the mail of one report to one destination.

    `max_bytes` is the largest message our own hosts send. A mail larger than that or than the destination wants is not
    made: the size is the whole message's as it travels (RFC 9990: "after compression and after any encoding").
    """
    return_path = envelope_from(sender, key, report.report_id, destination.address)
    message_id = f"<{token(key, report.report_id, destination.address)}@{sender.domain}>"
    message = EmailMessage(policy=_POLICY)
    message["From"] = sender.email
    message["To"] = destination.address
    message["Subject"] = report.subject
    message["Date"] = now.astimezone(UTC)
    message["Message-ID"] = message_id
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(_text(report, sender))
    message.add_attachment(report.content, maintype="application", subtype="gzip", filename=report.file_name)
    message.set_boundary(f"=_{report.report_id}")
    # a long file name in one piece: receivers do not all read the continuations of RFC 2231
    content = message.as_bytes(policy=_POLICY.clone(max_line_length=990))
    limit = min(max_bytes, destination.max_bytes) if destination.max_bytes is not None else max_bytes
    if len(content) > limit:
        detail = f"{len(content)} octets, the limit is {limit}"
        return Refused(f"mailto:{destination.address}"[:200], Reason.TOO_LARGE, detail)
    return Mail(return_path, destination.address, message_id, content)


def _text(report: Frozen, sender: Sender) -> str:
    first, last = (
        datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S") for moment in (report.begin, report.end)
    )
    return (
        f"This is a DMARC aggregate report ({'RFC 9990' if report.form is Form.RFC9990 else 'RFC 7489'}) for\n"
        f"{report.policy_domain}\nby {sender.org_name}, from {first} to {last} UTC:\n"
        f"{report.messages} messages in {report.records} rows. It is meant for a program; it was sent because the\n"
        f"domain's DMARC record asks for it (rua=). Questions: {sender.email}\n"
    )
