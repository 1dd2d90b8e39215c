"""What Google, Yahoo and Microsoft ask of senders: thirteen rules, and four kinds of our mail at a receiver outside.

The rules are numbered as in docs/receivers-rules.md, which has the same table for people. TABLE gives for each rule and
each kind of mail either the check that a message of this kind must pass, or the reason why there is none.
"""

from __future__ import annotations

import base64
import email
import email.policy
import json
import re
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import getaddresses, parsedate_to_datetime

import dns.reversename
import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key

from estatelib import arc_verify, compose, dkim_verify, lookup, new_message_id
from estatelib.mail_program import SUBMISSIONS
from estatelib.places import GATEWAYS, OUTSIDE_ADDRESSES, REPOSITORY, STATE
from estatelib.reports import a_closed_day, events_of, report_day
from estatelib.spf import spf_check
from estatelib.waiting import wait

LISTS = "ml.example.org"
DEV, NEWS = f"dev@{LISTS}", f"news@{LISTS}"
OURS = "example.org"  # the organisational domain of everything that is ours
SINK = "example.edu"  # the receiver outside
ALICE, HANAKO = "alice@example.org", "hanako@sfc.example.org"
STRICT_AUTHOR = "user@example.com"  # p=reject, everything signed
UNSIGNED_AUTHOR = "user@example.net"  # p=reject, SPF only
EASY_AUTHOR = "user@example.ac.jp"  # p=none, SPF only
FORWARD, BAD_FORWARD = "forwarded-edu@example.org", "forwarded-bad@example.org"
QUIET = ("198.18.25.110", "load.example.net")  # the client that no limit of the gateways counts
BURST = 25
MOST_MESSAGES_PER_CONNECTION = 20  # Yahoo, for a start
MOST_CONNECTIONS = 20
SMALLEST_KEY, OUR_KEY = 1024, 2048  # bits

HOP = re.compile(
    r"from (?P<helo>\S+) \((?P<name>\S+) \[(?:IPv6:)?(?P<address>[0-9a-f.:]+)\]\).* by mx\.example\.\S+ \(Postfix\)"
    r" with (?P<protocol>\S+) id"
)


@dataclass(frozen=True)
class Sample:
    """One message of ours, as the receiver outside has it."""

    what: str
    copy: object  # Delivery
    forwarded: bool = False  # its author is somebody else, and his signature is all that his domain gave it
    about: dict[str, str] = field(default_factory=dict)

    @property
    def hop(self) -> dict[str, str]:
        """How the receiver's own server got it: HELO, name (if address and name agree), address, protocol."""
        found = [match for line in self.copy.headers("Received") if (match := HOP.search(line))]
        assert found, self.copy.headers("Received")
        return found[0].groupdict()

    @property
    def envelope(self) -> str:
        """The envelope sender, "" for the null sender."""
        return self.copy.header("Return-Path").strip("<>")

    @property
    def author(self) -> str:
        """The only address of the only From header."""
        ((_, address),) = getaddresses(self.copy.headers("From"))
        return address.lower()

    @property
    def author_domain(self) -> str:
        return self.author.rpartition("@")[2]

    def signatures(self) -> list[tuple[dict[str, str], bool]]:
        """The tags of every DKIM signature, top first, and whether it verifies."""
        texts = self.copy.headers("DKIM-Signature")
        return [(tags(text), dkim_verify(self.copy, signature=index)) for index, text in enumerate(texts)]

    def aligned_signature(self) -> dict[str, str]:
        """The tags of a signature that verifies and is of the author's organisation; {} without one."""
        home = organisation(self.author_domain)
        return next((found for found, good in self.signatures() if good and organisation(found["d"]) == home), {})


def tags(text: str) -> dict[str, str]:
    """The tags of a DKIM-Signature, a key or a DMARC record (RFC 6376 §3.2)."""
    pairs = (part.partition("=") for part in text.split(";") if part.strip())
    return {name.strip(): re.sub(r"\s+", "", value) for name, _, value in pairs}


def key_size(signature: dict[str, str]) -> int:
    """The bits of the key that a signature was made with."""
    (key,) = lookup(f"{signature['s']}._domainkey.{signature['d']}", "TXT")
    return load_der_public_key(base64.b64decode(tags(key)["p"])).key_size


def organisation(domain: str) -> str:
    """The organisational domain, for the names of the lab."""
    labels = domain.lower().split(".")
    return ".".join(labels[-3 if labels[-2:] in (["ac", "jp"], ["co", "jp"]) else -2 :])


def rcpt(estate, address: str):
    """What our host answers when the sink's server wants to send a bounce to an address: the first MX, or the name."""
    domain = address.rpartition("@")[2]
    host = min((record.split()[1] for record in lookup(domain, "MX")), default=domain).partition(".")[0]
    with estate.smtp_session(host, source=OUTSIDE_ADDRESSES[SINK][0]) as session:
        for line in ("EHLO mx.example.edu", "MAIL FROM:<>"):
            reply = session.command(line)
            assert reply.code == 250, reply
        return session.command(f"RCPT TO:<{address}>")


def bounce_to(sample: Sample, recipient: str) -> bytes:
    """The bounce that a receiver sends when the mailbox of a message turns out to be full (RFC 3464)."""
    text = (
        f"From: MAILER-DAEMON@mx.example.edu\nTo: {sample.envelope}\nSubject: Undelivered Mail Returned to Sender\n"
        f"Message-ID: <{uuid.uuid4().hex}@mx.example.edu>\nMIME-Version: 1.0\nAuto-Submitted: auto-replied\n"
        'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\n\n'
        "--b\nContent-Type: text/plain\n\nno such user\n\n--b\nContent-Type: message/delivery-status\n\n"
        f"Reporting-MTA: dns; mx.example.edu\n\nFinal-Recipient: rfc822; {recipient}\n"
        "Action: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 5.1.1 no such user\n\n--b--\n"
    )
    return text.replace("\n", "\r\n").encode()


# --- the mail ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def submission(estate) -> list[Sample]:
    """What our people write: by STARTTLS and by TLS, from a domain at p=none and from one at p=quarantine."""
    posts = [estate.user(ALICE).send(f"admin@{SINK}"), estate.user(HANAKO).send(f"admin@{SINK}", port=SUBMISSIONS)]
    assert [post.reply.code for post in posts] == [250, 250], posts
    return [Sample(f"mail of {post.sender}", estate.mailbox(post.to).wait_for(post.message_id, 60)) for post in posts]


@pytest.fixture(scope="module")
def subscriber(estate):
    """A member of a discussion list and of an announce list, outside."""
    address = f"rules{uuid.uuid4().hex[:8]}@{SINK}"
    with estate.list(DEV).with_members(address, STRICT_AUTHOR, EASY_AUTHOR), estate.list(NEWS).with_members(address):
        yield address


@pytest.fixture(scope="module")
def lists(estate, subscriber) -> list[Sample]:
    """Copies of posts: by authors of a domain with p=reject and one with p=none, and an announcement."""
    posts = {
        "post of an author with p=reject": estate.world("example.com").send(to=DEV),
        "post of an author with p=none": estate.world("example.ac.jp").send(to=DEV),
    }
    with estate.list(NEWS).set(accept_these_nonmembers=[f"^{re.escape(STRICT_AUTHOR)}$"]):
        posts["announcement"] = estate.world("example.com").send(to=NEWS)
        estate.mailbox(subscriber).wait_for(posts["announcement"].message_id, 60)
    return [
        Sample(what, estate.mailbox(subscriber).wait_for(post.message_id, 60), about={"list": post.to})
        for what, post in posts.items()
    ]


@pytest.fixture(scope="module")
def forwards(estate) -> list[Sample]:
    """What leaves again through each gateway: signed by its author, and not."""
    posts = {f"signed, by {name}": estate.world("example.com").send(to=FORWARD, gateway=name) for name in GATEWAYS}
    posts["unsigned"] = estate.world("example.net").send(to=FORWARD)
    mailbox = estate.mailbox(f"admin@{SINK}")
    return [
        Sample(f"forward, {what}", mailbox.wait_for(post.message_id, 60), True, {"signed": what[:6]})
        for what, post in posts.items()
    ]


@pytest.fixture(scope="module")
def automatic(estate) -> list[Sample]:
    """What our programs write: a bounce of each gateway, a list's request for confirmation, a DMARC report."""
    found = []
    for name in GATEWAYS:
        post = estate.world("example.com").send(to=BAD_FORWARD, gateway=name)
        bounce = estate.mailbox(STRICT_AUTHOR).wait_for_text(post.message_id, 60)
        found.append(Sample(f"bounce of {name}", bounce))
    newcomer = f"new{uuid.uuid4().hex[:8]}"
    estate.world(SINK).send(to=f"dev-join@{LISTS}", user=newcomer, subject="")
    found.append(Sample("confirmation", estate.mailbox(f"{newcomer}@{SINK}").wait_for_text("confirm", 60)))
    started = time.time()
    ((report_id, *_),) = report_day(estate, events_of(estate, SINK, GATEWAYS[:1]), a_closed_day())
    copy = estate.mailbox(f"dmarc@{SINK}").wait_for_text(f"Report-ID: {report_id}", 150, started)
    return [*found, Sample("DMARC report", copy)]


# --- the rules --------------------------------------------------------------------------------------------------------


def spf_passes(estate, sample: Sample) -> None:
    """1: SPF passes for the envelope sender's domain, or for HELO where the sender is null (RFC 7208 §2.4)."""
    domain = sample.envelope.rpartition("@")[2] or sample.hop["helo"]
    assert organisation(domain) == OURS
    assert spf_check(sample.hop["address"], domain) == "pass", f"{domain} from {sample.hop['address']}"


def dkim_passes(estate, sample: Sample) -> None:
    """2: a DKIM signature of the author's own organisation verifies, and its key is of 2048 bits."""
    signature = sample.aligned_signature()
    assert signature, sample.signatures()
    assert key_size(signature) >= (SMALLEST_KEY if sample.forwarded else OUR_KEY)
    assert "l" not in signature


def list_signs(estate, sample: Sample) -> None:
    """2: the list's own signature verifies, with a long key; where From is the list's, it is aligned."""
    (signature,) = [found for found, good in sample.signatures() if good and found["d"] == LISTS]
    assert key_size(signature) >= OUR_KEY
    assert "l" not in signature
    if organisation(sample.author_domain) == OURS:
        dkim_passes(estate, sample)


def dkim_passes_where_there_is_one(estate, sample: Sample) -> None:
    """2: the author's signature survives, if the author signed."""
    if sample.about["signed"] == "signed":
        dkim_passes(estate, sample)
    else:
        assert sample.signatures() == []


def dmarc_is_published(estate, sample: Sample) -> None:
    """3: the author's domain, or the organisation's, has a DMARC record with a policy and somewhere to report to."""
    records = lookup(f"_dmarc.{sample.author_domain}", "TXT") or lookup(f"_dmarc.{OURS}", "TXT")
    (record,) = [text for text in records if text.startswith("v=DMARC1")]
    assert tags(record)["p"] in ("none", "quarantine", "reject")
    assert tags(record)["rua"]


def is_aligned(estate, sample: Sample) -> None:
    """4: the author's domain is that of SPF or of DKIM, so that DMARC passes."""
    home = organisation(sample.author_domain)
    domain = sample.envelope.rpartition("@")[2] or sample.hop["helo"]
    by_spf = organisation(domain) == home and spf_check(sample.hop["address"], domain) == "pass"
    assert by_spf or sample.aligned_signature(), sample.copy.headers("From")


def is_aligned_where_it_matters(estate, sample: Sample) -> None:
    """4: list mail passes DMARC where the author's domain asks for more than p=none; else our seal vouches for it."""
    records = lookup(f"_dmarc.{sample.author_domain}", "TXT")
    if records and tags(records[0])["p"] == "none" and organisation(sample.author_domain) != OURS:
        chain_vouches(estate, sample)
    else:
        assert sample.author_domain == LISTS
        is_aligned(estate, sample)


def chain_vouches(estate, sample: Sample) -> None:
    """4, 10: the ARC chain verifies for two engines, the last seal is ours, and it says that DMARC passed with us."""
    for engine in ("dkimpy", "Mail::DKIM"):
        result = arc_verify(sample.copy, engine)
        assert result.cv == "pass", f"{engine}: {result}"
    last = max((tags(text) for text in sample.copy.headers("ARC-Seal")), key=lambda seal: int(seal["i"]))
    assert organisation(last["d"]) == OURS
    (first,) = [text for text in sample.copy.headers("ARC-Authentication-Results") if text.startswith("i=1;")]
    assert "dmarc=pass" in first


def has_reverse_name(estate, sample: Sample) -> None:
    """5: the address leads to a name, the name back to the address, and the client greets with that name."""
    hop = sample.hop
    names = lookup(dns.reversename.from_address(hop["address"]).to_text(), "PTR")
    assert names == [hop["helo"]] == [hop["name"]], hop
    assert hop["address"] in lookup(hop["helo"], "AAAA" if ":" in hop["address"] else "A")
    assert organisation(hop["helo"]) == OURS


def came_by_tls(estate, sample: Sample) -> None:
    """6: the receiver's server got it over TLS."""
    assert sample.hop["protocol"] == "ESMTPS", sample.hop


def is_well_formed(estate, sample: Sample) -> None:
    """8: RFC 5322: what must be there once is there once, and every line can be sent."""
    message = email.message_from_bytes(sample.copy.raw, policy=email.policy.default)
    for name in ("From", "Date", "Message-ID", "Subject"):
        assert len(sample.copy.headers(name)) == 1, f"{name}: {sample.copy.headers(name)}"
    for name in ("To", "Cc", "Reply-To", "Sender", "MIME-Version", "Content-Type", "In-Reply-To", "References"):
        assert len(sample.copy.headers(name)) <= 1, f"{name}: {sample.copy.headers(name)}"
    assert re.fullmatch(r"[^@\s]+@[a-z0-9.-]+\.[a-z]+", sample.author), sample.author
    assert re.fullmatch(r"<[^<>\s@]+@[^<>\s@]+>", sample.copy.header("Message-ID"))
    assert abs(parsedate_to_datetime(sample.copy.header("Date")).timestamp() - time.time()) < 86400
    defects = [*message.defects, *(defect for part in message.walk() for defect in part.defects)]
    assert defects == []
    head, _, _ = sample.copy.raw.partition(b"\r\n\r\n")
    assert head.isascii()
    assert max(map(len, sample.copy.raw.split(b"\r\n"))) <= 998


def author_may_use_the_address(estate, sample: Sample) -> None:
    """9: whoever signed in cannot write as somebody of a large provider, nor as a colleague."""
    for other in (STRICT_AUTHOR, "bob@example.org"):
        reply = estate.user(sample.author).send(f"admin@{SINK}", author=other).reply
        assert reply.code // 100 == 5, f"{other}: {reply}"


def stranger_is_not_the_author(estate, sample: Sample) -> None:
    """9: the author's domain is not one that forbids this: the list takes its place where the domain has a policy."""
    if organisation(sample.author_domain) == OURS:
        assert sample.author == sample.about["list"]
        assert STRICT_AUTHOR in sample.copy.header("Reply-To")
    else:
        (record,) = lookup(f"_dmarc.{sample.author_domain}", "TXT")
        assert tags(record)["p"] == "none"


def author_is_who_wrote_it(estate, sample: Sample) -> None:
    """9: From is the author's and untouched; the first seal says that it was genuine when it came to us."""
    assert sample.author in (STRICT_AUTHOR, UNSIGNED_AUTHOR)
    chain_vouches(estate, sample)


def author_is_ours(estate, sample: Sample) -> None:
    """9: what our programs write is in the name of a domain of ours."""
    assert organisation(sample.author_domain) == OURS


def is_sealed(estate, sample: Sample) -> None:
    """10: forwarders add ARC."""
    chain_vouches(estate, sample)
    assert len(sample.copy.headers("ARC-Seal")) == 1


def is_sealed_and_says_which_list(estate, sample: Sample) -> None:
    """10: lists add ARC to the gateway's, and List-Id (RFC 2919), which their signature covers."""
    chain_vouches(estate, sample)
    assert len(sample.copy.headers("ARC-Seal")) == 2
    assert f"<{sample.about['list'].replace('@', '.')}>" in sample.copy.header("List-Id")
    (signature,) = [found for found, good in sample.signatures() if good and found["d"] == LISTS]
    assert "list-id" in signature["h"].lower().split(":")


_CLICK = """
import json, ssl, sys, urllib.error, urllib.request
asked = json.load(sys.stdin)
class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None
context = ssl.create_default_context(cadata=asked["authority"])
opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), NoRedirect)
try:
    print(opener.open(asked["url"], asked["body"].encode() if asked["body"] else None, timeout=30).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def one_click_unsubscribes(estate, sample: Sample) -> None:
    """11: one https address, signed with its companion; a GET does nothing, a POST without cookies ends the membership.

    RFC 8058 §3.1, §3.2, §4. Google and Yahoo allow two days; here the answer means that it is done.
    """
    assert sample.copy.header("List-Unsubscribe-Post") == "List-Unsubscribe=One-Click"
    (url,) = re.findall(r"<(https:[^>]+)>", sample.copy.header("List-Unsubscribe"))
    (signature,) = [found for found, good in sample.signatures() if good and found["d"] == LISTS]
    assert {"list-unsubscribe", "list-unsubscribe-post"} <= set(signature["h"].lower().split(":"))

    if sample.author_domain != LISTS:
        return  # one click a list: the next membership has another address to click
    member = sample.copy.header("Delivered-To")
    mailing_list = estate.list(sample.about["list"])
    asked = {"url": url, "authority": (STATE / "pki/acme-root.pem").read_text(), "body": ""}
    answers = []
    try:
        for body in ("", "List-Unsubscribe=One-Click"):
            text = estate.host("world").run("python3", "-c", _CLICK, stdin=json.dumps(asked | {"body": body}))
            answers.append((text.strip(), mailing_list.member(member) is not None))
    finally:
        mailing_list.subscribe(member)
    assert answers == [("200", True), ("200", False)]


def answers_reach_the_author(estate, sample: Sample) -> None:
    """12: From and envelope sender take mail, and a bounce comes to the author."""
    for address in {sample.author, sample.envelope}:
        assert rcpt(estate, address).code == 250, address
    raw = bounce_to(sample, f"admin@{SINK}")
    post = estate.world(SINK).hand_over(sample.envelope, envelope="", raw=raw)
    assert post.reply.code == 250, post.reply
    assert estate.mailbox(sample.author).wait_for(post.message_id, 60)


def bounce_counts_against_the_member(estate, sample: Sample) -> None:
    """12: From, Reply-To and envelope sender take mail, and a bounce raises the member's score."""
    answers = getaddresses([*sample.copy.headers("From"), *sample.copy.headers("Reply-To")])
    for address in {
        sample.envelope,
        *(found for _, found in answers if organisation(found.rpartition("@")[2]) == OURS),
    }:
        assert rcpt(estate, address).code == 250, address
    member = sample.copy.header("Delivered-To")
    lst = estate.list(sample.about["list"])
    before = lst.member(member)["bounce_score"]
    raw = bounce_to(sample, member)
    assert estate.world(SINK).hand_over(sample.envelope, envelope="", raw=raw).reply.code == 250
    if before == 0:  # one a day is counted
        wait(lambda: lst.member(member)["bounce_score"] > 0, 60, f"bounce of {member} in the list's count")


def bounce_finds_the_way_back(estate, sample: Sample) -> None:
    """12: the SRS address takes a bounce and gives it to the original sender."""
    raw = bounce_to(sample, f"admin@{SINK}")
    post = estate.world(SINK).hand_over(sample.envelope, envelope="", raw=raw)
    assert post.reply.code == 250, post.reply
    assert estate.mailbox(sample.author).wait_for(post.message_id, 60)


def sender_takes_mail(estate, sample: Sample) -> None:
    """12: From and envelope sender take mail. What becomes of a report's bounce, test_dmarc_reports.py shows."""
    for address in {sample.author, sample.envelope} - {""}:
        assert rcpt(estate, address).code == 250, address


# --- the table --------------------------------------------------------------------------------------------------------

Check = Callable[[object, Sample], None]
KINDS = ("submission", "lists", "forwards", "automatic")
SPAM_RATE = "outside: what receivers' users report is seen in Postmaster Tools, SNDS and feedback loops only"
TABLE: dict[int, tuple[str, dict[str, Check | str]]] = {
    1: ("SPF passes", dict.fromkeys(KINDS, spf_passes)),
    2: ("DKIM passes, aligned, long key", {
        "submission": dkim_passes, "lists": list_signs, "forwards": dkim_passes_where_there_is_one,
        "automatic": dkim_passes}),
    3: ("DMARC record", {
        "submission": dmarc_is_published, "lists": dmarc_is_published, "automatic": dmarc_is_published,
        "forwards": "not applicable: From is the author's, whose domain publishes what it wants"}),
    4: ("From aligned", {
        "submission": is_aligned, "lists": is_aligned_where_it_matters, "forwards": chain_vouches,
        "automatic": is_aligned}),
    5: ("PTR, forward-confirmed; HELO", dict.fromkeys(KINDS, has_reverse_name)),
    6: ("TLS", dict.fromkeys(KINDS, came_by_tls)),
    7: ("Spam rate", dict.fromkeys(KINDS, SPAM_RATE)),
    8: ("RFC 5322", dict.fromkeys(KINDS, is_well_formed)),
    9: ("No other's name in From", {
        "submission": author_may_use_the_address, "lists": stranger_is_not_the_author,
        "forwards": author_is_who_wrote_it, "automatic": author_is_ours}),
    10: ("ARC; List-Id", {
        "submission": "not applicable: we are where it starts", "lists": is_sealed_and_says_which_list,
        "forwards": is_sealed, "automatic": "not applicable: we are where it starts"}),
    11: ("One-click unsubscription", {
        "submission": "not applicable: written by one person to others, subscribed to by nobody",
        "lists": one_click_unsubscribes,
        "forwards": "not applicable: the author's headers pass untouched; our user ends the forward",
        "automatic": "not applicable: each answers a message or a request, subscribed to by nobody"}),
    12: ("Answers and bounces arrive", {
        "submission": answers_reach_the_author, "lists": bounce_counts_against_the_member,
        "forwards": bounce_finds_the_way_back, "automatic": sender_takes_mail}),
}  # fmt: skip
CHECKED = [
    pytest.param(kind, check, id=f"{number}-{kind}")
    for number, (_, cells) in TABLE.items()
    for kind, check in cells.items()
    if callable(check)
]


@pytest.mark.parametrize(("kind", "check"), CHECKED)
def test_rule(estate, request, kind, check):
    samples = request.getfixturevalue(kind)
    for sample in samples:
        try:
            check(estate, sample)
        except AssertionError as error:
            raise AssertionError(f"{sample.what}: {error}") from error


# --- 13: how much at a time -------------------------------------------------------------------------------------------


def burst_of_submission(estate) -> None:
    """One person sends as fast as the host takes it."""
    to = f"burst@{SINK}"
    with estate.user(ALICE).session() as session:
        for _ in range(BURST):
            for line in (f"MAIL FROM:<{ALICE}>", f"RCPT TO:<{to}>"):
                assert session.command(line).code == 250, session.transcript
            assert session.data(compose(ALICE, to, message_id=new_message_id(OURS))).code == 250


def burst_of_lists(estate) -> None:
    """An announcement, with a copy for each of many members at one receiver."""
    members = [f"burst{number}@{SINK}" for number in range(BURST)]
    news = estate.list(NEWS)
    with ThreadPoolExecutor(4) as pool:
        try:
            list(pool.map(news.subscribe, members))
            with news.set(accept_these_nonmembers=[f"^{re.escape(STRICT_AUTHOR)}$"]):
                post = estate.world("example.com").send(to=NEWS)
                for member in members:
                    estate.mailbox(member).wait_for(post.message_id, 90)
        finally:
            list(pool.map(news.remove, members))


def burst_of_forwards(estate) -> None:
    """What comes for an address outside, all at once."""
    _burst_through_gateway(estate, FORWARD)


def burst_of_bounces(estate) -> None:
    """Forwards that their receiver refuses, and so as many bounces to one domain."""
    _burst_through_gateway(estate, BAD_FORWARD)


def _burst_through_gateway(estate, to: str) -> None:
    domain = QUIET[1]
    with estate.smtp_session(source=QUIET[0]) as session:
        for _ in range(BURST):
            raw = compose(f"user@{domain}", to, message_id=new_message_id(domain))
            assert session.transaction(domain, f"user@{domain}", [to], raw).code == 250, session.transcript


def connections(estate, host: str, since: float) -> tuple[list[int], int]:
    """What a host of ours did at the servers outside: messages of each connection, and most connections at a time."""
    log = estate.host("world").journal(since, "--unit=postfix.service", lines=50000)
    counts, running, most = [], set(), 0
    for line in log.splitlines():
        found = re.search(rf"smtpd\[(\d+)\]: (connect|disconnect) from {re.escape(host)}\[(.*)", line)
        if not found:
            continue
        if found[2] == "connect":
            running.add(found[1])
            most = max(most, len(running))
        elif found[1] in running:
            running.discard(found[1])
            mail = re.search(r" mail=(?:\d+/)?(\d+)", found[3])
            counts.append(int(mail[1]) if mail else 0)
    return counts, most


@pytest.mark.parametrize("kind", KINDS)
def test_rule_13_few_messages_on_a_connection_and_few_connections(estate, kind):
    """13: Yahoo wants at most 20 messages on a connection to begin with; the rest is for its answers to slow down."""
    burst, host = BURSTS[kind]
    since = time.time()
    burst(estate)

    def arrived() -> bool:
        counts, _ = connections(estate, host, since)
        return sum(counts) >= BURST

    wait(arrived, 90, f"{BURST} messages of {host}", pause=2)
    counts, most = connections(estate, host, since)
    assert max(counts) <= MOST_MESSAGES_PER_CONNECTION, counts
    assert most <= MOST_CONNECTIONS
    assert not estate.host(host.partition(".")[0]).queued_for(f"burst@{SINK}")


BURSTS = {
    "submission": (burst_of_submission, "smtp.example.org"),
    "lists": (burst_of_lists, "ml.example.org"),
    "forwards": (burst_of_forwards, "mail-gw1.example.org"),
    "automatic": (burst_of_bounces, "mail-gw1.example.org"),
}


# --- and the page -----------------------------------------------------------------------------------------------------


def test_page_for_people_says_the_same():
    """docs/receivers-rules.md has a row for each rule, and says where a rule is not checked."""
    page = (REPOSITORY / "docs/receivers-rules.md").read_text(encoding="utf-8")
    rows = {int(found[1]): found[0] for found in re.finditer(r"^\| (\d+) .*\|$", page, re.MULTILINE)}
    assert sorted(rows) == sorted([*TABLE, 13])
    for number, (_, cells) in TABLE.items():
        assert set(cells) == set(KINDS)
        written = [cell.strip() for cell in rows[number].strip("|").split("|")][2:]
        for kind, text in zip(KINDS, written, strict=True):
            check = cells[kind]
            word = "met" if callable(check) else check.partition(":")[0]
            assert text.startswith(word), f"{number}, {kind}: {text}"
