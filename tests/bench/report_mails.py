"""Mails that bring DMARC and TLS reports, good ones and a hostile set; for the intake's tests and its drill.

Made as reporters make them: a MIME message with a gzipped attachment, and the field by which the gateways say that its
DMARC result was a pass. ``hostile()`` names for each mail the folder in which it has to end.
"""

from __future__ import annotations

import gzip
import io
import json
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from email import policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

RECIPIENT = "dmarc@rua.example.org"
DAY = 86_400
#: Yesterday, as most reports are about.
BEGIN = int(time.time()) // DAY * DAY - DAY
STORED = "archive/aggregate"
TLS_STORED = "archive/tls"


@dataclass(frozen=True)
class Case:
    """A mail and where it has to end."""

    name: str
    mail: bytes
    folder: str
    #: key of the report in the database, if it has to be there: report id and domain
    report: tuple[str, str] | None = None


def record(ip: str = "192.0.2.1", count: object = 1, header_from: str = "example.org") -> str:
    """One row of an aggregate report."""
    return (
        f"<record><row><source_ip>{ip}</source_ip><count>{count}</count><policy_evaluated>"
        "<disposition>none</disposition><dkim>pass</dkim><spf>fail</spf></policy_evaluated></row>"
        f"<identifiers><header_from>{header_from}</header_from></identifiers><auth_results><dkim>"
        f"<domain>{header_from}</domain><selector>s1</selector><result>pass</result></dkim></auth_results></record>"
    )


def aggregate(
    report_id: str,
    domain: str = "example.org",
    org: str = "reporter.example.com",
    begin: object = BEGIN,
    end: object = BEGIN + DAY - 1,
    records: str | None = None,
    before: str = "",
) -> str:
    """The XML of an aggregate report (RFC 7489)."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{before}<feedback><report_metadata><org_name>{org}</org_name>'
        f"<email>noreply@{'reporter.example.com'}</email><report_id>{report_id}</report_id><date_range>"
        f"<begin>{begin}</begin><end>{end}</end></date_range></report_metadata><policy_published>"
        f"<domain>{domain}</domain><adkim>r</adkim><aspf>r</aspf><p>none</p><sp>none</sp><pct>100</pct>"
        f"</policy_published>{record() if records is None else records}</feedback>"
    )


def tls(report_id: str, **changed: Any) -> dict[str, Any]:
    """A TLS report (RFC 8460)."""
    day = time.strftime("%Y-%m-%d", time.gmtime(BEGIN))
    failures = [
        {
            "result-type": "certificate-expired",
            "sending-mta-ip": changed.pop("sending", "192.0.2.5"),
            "receiving-ip": changed.pop("receiving", "198.51.100.7"),
            "receiving-mx-hostname": "mx.example.org",
            "failed-session-count": changed.pop("failed", 3),
        }
    ]
    report: dict[str, Any] = {
        "organization-name": "Reporter",
        "date-range": {"start-datetime": f"{day}T00:00:00Z", "end-datetime": f"{day}T23:59:59Z"},
        "contact-info": "tls@reporter.example.com",
        "report-id": report_id,
        "policies": [
            {
                "policy": {"policy-type": "sts", "policy-string": ["version: STSv1"], "policy-domain": "example.org"},
                "summary": {
                    "total-successful-session-count": changed.pop("successful", 100),
                    "total-failure-session-count": 3,
                },
                "failure-details": failures,
            }
        ],
    }
    return report | changed


def message(
    attachment: bytes | None = None,
    kind: str = "application/gzip",
    file_name: str = "report.xml.gz",
    author: str = "noreply@reporter.example.com",
    dmarc: str | None = "pass",
    subject: str = "Report domain: example.org",
    text: str = "This is a report.\n",
    to: str = RECIPIENT,
) -> bytes:
    """The mail as it leaves the gateway. ``dmarc`` None: without Authentication-Results."""
    mail = EmailMessage(policy=policy.SMTP)
    if dmarc is not None:
        domain = author.rpartition("@")[2].rstrip(">")
        mail["Authentication-Results"] = (
            f"mx.example.org; spf=pass smtp.mailfrom={domain}; dmarc={dmarc} (p=none) header.from={domain}"
        )
    mail["From"] = author
    mail["To"] = to
    mail["Subject"] = subject
    mail["Message-ID"] = f"<{time.time_ns()}@reporter.example.com>"
    mail["Date"] = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime())
    mail.set_content(text)
    if attachment is not None:
        main, _, sub = kind.partition("/")
        mail.add_attachment(attachment, maintype=main, subtype=sub, filename=file_name)
    return mail.as_bytes()


def good(report_id: str, **changed: Any) -> bytes:
    """A mail with a report that has to be stored."""
    return message(gzip.compress(aggregate(report_id, **changed).encode()))


def good_tls(report: dict[str, Any], **changed: Any) -> bytes:
    """A mail with a TLS report."""
    return message(
        gzip.compress(json.dumps(report).encode()), "application/tlsrpt+gzip", "report.json.gz", **changed
    ).replace(RECIPIENT.encode(), b"tlsrpt@rua.example.org")


def zipped(*files: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", compression) as writer:
        for name, content in files:
            writer.writestr(name, content)
    return archive.getvalue()


def gzip_bomb(size: int) -> bytes:
    """So many blanks, a thousandth of that as gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    blank = b" " * (1 << 20)
    return b"".join([packer.compress(blank) for _ in range(size >> 20)]) + packer.flush()


FAILURE = """\
Authentication-Results: mx.example.org; dmarc=pass header.from=reporter.example.com
From: noreply@reporter.example.com
To: dmarc@rua.example.org
Subject: FW: A private matter
Message-ID: <failure-1@reporter.example.com>
MIME-Version: 1.0
Content-Type: multipart/report; report-type=feedback-report; boundary=x

--x
Content-Type: text/plain

This is an email abuse report.
--x
Content-Type: message/feedback-report

Feedback-Type: auth-failure
User-Agent: Reporter/1.0
Version: 1
Original-Mail-From: <somebody@example.org>
Arrival-Date: Tue, 24 Nov 2026 10:00:00 +0000
Source-IP: 192.0.2.1
Authentication-Results: reporter.example.com; dmarc=fail header.from=example.org
Auth-Failure: dmarc
Reported-Domain: example.org
Delivery-Result: delivered
Identity-Alignment: none

--x
Content-Type: message/rfc822

From: somebody@example.org
To: somebody@example.com
Subject: A private matter
Message-ID: <private@example.org>
Date: Tue, 24 Nov 2026 10:00:00 +0000

Private words.
--x--
"""


def hostile(mark: str = "") -> Iterator[Case]:
    """Bad mails of many kinds, the large ones last. ``mark`` begins the ids of those that are stored after all."""

    def xml(name: str, text: str | bytes, folder: str, key: tuple[str, str] | None = None) -> Case:
        content = text if isinstance(text, bytes) else text.encode()
        return Case(name, message(gzip.compress(content), file_name=f"{name}.xml.gz"), folder, key)

    def tls_case(name: str, folder: str, **changed: Any) -> Case:
        return Case(f"tls-{name}", good_tls(tls(f"{mark}tls-{name}", **changed)), folder)

    aside = {kind: f"set-aside/{kind}" for kind in (
        "unauthenticated", "too-large", "too-many-records", "hostile", "implausible", "not-a-report", "failure-report",
        "invalid", "poison",
    )}  # fmt: skip
    laughs = "".join(f'<!ENTITY {chr(n + 1)} "{f"&{chr(n)};" * 10}">' for n in range(ord("a"), ord("z")))
    entities = f'<!DOCTYPE feedback [<!ENTITY a "ha">{laughs}]>'
    doctype = '<!DOCTYPE feedback [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    yield xml("xxe", aggregate("xxe", org="&x;", before=doctype), aside["hostile"])
    yield xml("xxe-broken", aggregate("xxe", org="&x;", before=doctype) + "<open>", aside["hostile"])
    yield xml("laughs", aggregate("laughs", org="&z;", before=entities), aside["hostile"])
    yield xml("deep", aggregate("deep", records="<a>" * 50_000 + "</a>" * 50_000), aside["hostile"])
    yield xml("not-xml", "nothing of this is XML", aside["not-a-report"])
    yield xml("other-xml", "<html><body>hello</body></html>", aside["not-a-report"])
    yield xml("empty-xml", "", aside["not-a-report"])
    yield xml("no-id", aggregate("").replace("<report_id></report_id>", ""), aside["not-a-report"])
    yield xml("count-huge", aggregate("count-huge", records=record(count=99_999_999_999)), aside["implausible"])
    yield xml("count-negative", aggregate("count-negative", records=record(count=-5)), aside["implausible"])
    yield xml("count-word", aggregate("count-word", records=record(count="many")), aside["invalid"])
    yield xml("address-bad", aggregate("address-bad", records=record(ip="999.1.2.3")), aside["invalid"])
    yield xml("address-empty", aggregate("address-empty", records=record(ip="")), aside["invalid"])
    yield xml("nul", aggregate(f"{mark}nul").replace("reporter", "rep\0orter"), STORED, (f"{mark}nul", "example.org"))
    yield xml("years-99", aggregate("years-99", begin=BEGIN - 99 * 365 * DAY, end=BEGIN), aside["implausible"])
    yield xml("year-9999", aggregate("y9999", begin=253_370_764_800, end=253_370_851_200), aside["implausible"])
    yield xml("year-3-million", aggregate("y3m", begin=10**14, end=10**14 + DAY), aside["implausible"])
    yield xml("backwards", aggregate("backwards", begin=BEGIN + DAY, end=BEGIN), aside["implausible"])
    yield xml("no-number", aggregate("no-number", begin="yesterday"), aside["implausible"])
    script = "&lt;script&gt;alert(1)&lt;/script&gt; Inc"
    image = record(header_from="&lt;img src=x onerror=alert(1)&gt;")
    yield xml("script", aggregate(f"{mark}script", org=script, records=image), STORED, (f"{mark}script", "example.org"))
    yield xml(
        "latin-1",
        aggregate(f"{mark}latin-1", org="Fuß GmbH").encode("latin-1"),
        STORED,
        (f"{mark}latin-1", "example.org"),
    )
    yield xml(
        "upper-case",
        aggregate(f"{mark}upper-case").replace("pass", "PASS"),
        STORED,
        (f"{mark}upper-case", "example.org"),
    )
    yield xml(
        "quote", aggregate(f"{mark}o'clock\";drop table x"), STORED, (f"{mark}o'clock\";drop table x", "example.org")
    )

    packed = gzip.compress(aggregate("packed").encode())
    yield Case("gzip-cut", message(packed[: len(packed) // 2]), aside["not-a-report"])
    yield Case("zip-cut", message(zipped(("r.xml", b"<feedback/>"))[:-30], "application/zip"), aside["not-a-report"])
    yield Case("zip-in-zip", message(zipped(("r.zip", zipped(("r.xml", b"<a/>")))), "application/zip"),
               aside["not-a-report"])  # fmt: skip
    yield Case("gzip-in-gzip", message(gzip.compress(packed)), aside["not-a-report"])
    yield Case("zip-many", message(zipped(*((f"{n}.xml", b"<a/>") for n in range(2_000))), "application/zip"),
               aside["not-a-report"])  # fmt: skip
    yield Case("zip-of-nothing", message(zipped(), "application/zip"), aside["not-a-report"])
    good_zip = zipped(("report.xml", aggregate(f"{mark}zip").encode()))
    yield Case("zip", message(good_zip, "application/zip", "r.zip"), STORED, (f"{mark}zip", "example.org"))

    yield tls_case("count", aside["implausible"], successful=10**12)
    yield tls_case("failed", aside["implausible"], failed=-1)
    yield tls_case("address", TLS_STORED, receiving="unknown", sending="not-an-address")
    yield tls_case("no-name", TLS_STORED, **{"organization-name": None})
    yield tls_case("nul", aside["poison"], **{"organization-name": "rep\0orter"})
    yield tls_case("no-policies", aside["not-a-report"], policies="none")
    yield tls_case("year-9999", aside["implausible"], **{
        "date-range": {"start-datetime": "9999-01-01T00:00:00Z", "end-datetime": "9999-01-02T00:00:00Z"}
    })  # fmt: skip
    nested = gzip.compress(b"[" * 200_000)
    yield Case("tls-deep", message(nested, "application/tlsrpt+gzip", "r.json.gz"), aside["not-a-report"])

    yield Case("no-dmarc", message(packed, dmarc=None), aside["unauthenticated"])
    yield Case("dmarc-fail", message(packed, dmarc="fail"), aside["unauthenticated"])
    yield Case("dmarc-none", message(packed, dmarc="none"), aside["unauthenticated"])
    yield Case("dmarc-forged", message(packed, dmarc="fail").replace(
        b"From:", b"Authentication-Results: mx.example.org; dmarc=pass\r\nFrom:", 1), aside["unauthenticated"],
    )  # fmt: skip
    comment = message(packed, dmarc=None).replace(
        b"From:", b"Authentication-Results: mx.example.org (; dmarc=pass); dmarc=fail\r\nFrom:", 1)  # fmt: skip
    yield Case("dmarc-comment", comment, aside["unauthenticated"])
    yield Case("two-authors", message(packed, author="a@example.com, b@example.net"), aside["unauthenticated"])
    yield Case("failure-report", FAILURE.encode(), aside["failure-report"])

    allowed = b"Authentication-Results: mx.example.org; dmarc=pass\r\nFrom: a@example.com\r\n"
    yield Case("nothing", b"\r\n", aside["unauthenticated"])
    yield Case("no-body", allowed + b"\r\n", aside["not-a-report"])
    yield Case("spam", message(text="Buy this.\n", subject="Cheap watches"), aside["not-a-report"])
    mime = b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=a\r\n\r\n"
    broken = b"--b\r\nContent-Type: application/gzip\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!!"
    yield Case("mime-broken", allowed + mime + broken, aside["not-a-report"])
    klingon = (
        b"Subject: =?no-such-charset?b?4pi6?=\r\nContent-Type: text/plain; charset=klingon\r\n\r\n\xff\xfe\xfd\r\n"
    )
    yield Case("charset", allowed + klingon, aside["not-a-report"])
    yield Case("many-parts", allowed + mime + b"--a\r\n\r\n\r\n" * 300_000, aside["not-a-report"])
    yield Case("many-fields", allowed + b"X: y\r\n" * 100_000 + b"\r\nbody\r\n", aside["not-a-report"])
    yield Case("bomb-second", _with_two(packed, gzip_bomb(200 << 20)), aside["too-large"])
    yield Case("gzip-bomb", message(gzip_bomb(1 << 30)), aside["too-large"])
    yield Case("zip-bomb", message(zipped(("r.xml", b" " * (300 << 20))), "application/zip"), aside["too-large"])
    yield xml("blanks", aggregate("blanks", org=" " * (99 << 20)), aside["too-large"])
    small = record().partition("<auth_results>")[0] + "</record>"
    yield xml("records-200000", aggregate("many", records=small * 200_000), aside["too-many-records"])
    yield xml("signatures", aggregate("signatures", records=record().replace(
        "<dkim><domain>", "<dkim>" + "<domain/>" * 3_000_000 + "<domain>")), aside["too-many-records"])  # fmt: skip
    yield Case("mail-25-mb", message(b"\0" * (18 << 20), "application/octet-stream", "big.bin"), aside["too-large"])


def _with_two(first: bytes, second: bytes) -> bytes:
    mail = EmailMessage(policy=policy.SMTP)
    mail["Authentication-Results"] = "mx.example.org; dmarc=pass"
    mail["From"] = "a@example.com"
    mail["To"] = RECIPIENT
    mail["Subject"] = "Two"
    mail.set_content("Two reports.\n")
    for content in (first, second):
        mail.add_attachment(content, maintype="application", subtype="gzip", filename="r.xml.gz")
    return mail.as_bytes()


#: Where the real reports have to end.
SAMPLES = {
    "Report_domain-_borschow.com_Submitter-_google.com_Report-ID-_949348866075514174.eml": STORED,
    "_example.com_1538204542_1538463818.xml": STORED,
    "addisonfoods.com_example.com_1536105600_1536191999.xml": STORED,
    "dmarc_ruf_report_linkedin.eml": "set-aside/failure-report",
    "estadocuenta1.infonacot.gob.mx_example.com_1536853302_1536939702_2940.xml.zip": STORED,
    "example.net_example.com_1529366400_1529452799.xml": STORED,
    "fastmail.com_example.com_1516060800_1516147199_102675056.xml.gz": STORED,
    "google.com_smtp_tls_report.eml": TLS_STORED,
    "ikea.com_example.de_1538690400_1538776800.xml": STORED,
    "nice-input.xml.gz": STORED,
    "protection.outlook.com_example.com_1711756800_1711843200.xml": STORED,
    "rfc8460.json": TLS_STORED,
    "rfc9990-sample.xml": STORED,
    "twilight.eml": STORED,
    "usssa.com_example.com_1538784000_1538870399.xml": STORED,
}


def samples(directory: Path) -> Iterator[Case]:
    """The real reports, those that are no mail put into one, all of them believed by the gateway."""
    for name, folder in SAMPLES.items():
        content = (directory / name).read_bytes()
        if name.endswith(".eml"):
            # one of them comes from an mbox file
            content = content.partition(b"\n")[2] if content.startswith(b"From ") else content
            mail = b"Authentication-Results: mx.example.org; dmarc=pass\n" + content.lstrip()
        elif name.endswith(".zip"):
            mail = message(content, "application/zip", name)
        elif name.endswith(".gz"):
            mail = message(content, "application/gzip", name)
        elif name.endswith(".json"):
            mail = message(content, "application/tlsrpt+json", name)
        else:
            mail = message(content, "text/xml", name)
        yield Case(name, mail, folder)
