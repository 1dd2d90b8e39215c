"""What the DNS's word means for deliveries, what Postfix's answers mean, and how its queue manager is read."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmarc_reports.destinations import Destination, Destinations, Reason, Rules, resolve
from dmarc_reports.handover import Delivery, Handed, NotTaken, Unknown, answers, back_off, hand_over, judge, taken
from dmarc_reports.package import Mail
from estate_arc_policy import TemporaryDnsError

MAIL = Mail(
    "dmarc-reports+1@rua.example.org", "r@example.com", "<1@rua.example.org>", b"Subject: x\r\n\r\n.\r\nbody\r\n"
)
BOUNDS = (timedelta(minutes=1), timedelta(minutes=30))


def delivery(recipient: str, number: int = 1) -> Delivery:
    return Delivery(
        id=number, report_id="0" * 24, day=date(2026, 11, 24), policy_domain="example.com", recipient=recipient,
        recipient_domain=recipient.rpartition("@")[2], attempts=0, dns_failures=0, checked_at=None, max_bytes=None,
        sending_at=None, envelope_from=None, rua="",
    )  # fmt: skip


def verdict(rua: str, records: dict[str, str], mailboxes: tuple[str, ...] = ()):
    """The verdict on all outside addresses of a rua, with the DNS given; `servfail` stands for no answer."""

    def lookup(name: str) -> tuple[bytes, ...]:
        domain = name.rpartition("_dmarc.")[2]
        if records.get(domain) == "servfail":
            raise TemporaryDnsError(name)
        wanted = f"example.com._report._dmarc.{domain}" == name and domain in records
        return (records[domain].encode(),) if wanted else ()

    recipients = dict.fromkeys(uri.removeprefix("mailto:") for uri in rua.split(","))
    waiting = [delivery(name, number) for number, name in enumerate(recipients)]
    found = judge(waiting, resolve("example.com", rua, lookup, Rules()), {*recipients, *mailboxes})
    return (
        {one.recipient: to.address for one, to in found.authorised},
        {one.recipient: refused.reason for one, refused in found.settled},
        {one.recipient for one, _ in found.again},
        {to.address for to in found.further},
    )


def test_each_address_gets_the_word_of_its_own_domain():
    records = {"yes.example.net": "v=DMARC1", "down.example.net": "servfail"}
    rua = "mailto:a@yes.example.net,mailto:a@no.example.net,mailto:a@down.example.net"
    assert verdict(rua, records) == (
        {"a@yes.example.net": "a@yes.example.net"},
        {"a@no.example.net": Reason.NOT_AUTHORISED},
        {"a@down.example.net"},
        set(),
    )


def test_reason_of_an_address_that_is_named_twice_is_its_domains():
    settled = verdict("mailto:a@no.example.net,mailto:a@no.example.net", {})[1]
    assert settled == {"a@no.example.net": Reason.NOT_AUTHORISED}


def test_mailboxes_named_instead_take_the_place_of_the_published_one():
    records = {"m.example.net": "v=DMARC1; rua=mailto:new@m.example.net,mailto:two@m.example.net"}
    assert verdict("mailto:old@m.example.net", records) == (
        {"old@m.example.net": "new@m.example.net"}, {}, set(), {"two@m.example.net"}
    )  # fmt: skip


def test_mailbox_that_gets_the_report_already_gets_it_once():
    records = {"m.example.net": "v=DMARC1; rua=mailto:two@m.example.net"}
    authorised, settled, again, further = verdict("mailto:one@m.example.net,mailto:two@m.example.net", records)
    assert authorised == {"two@m.example.net": "two@m.example.net"}
    assert settled == {"one@m.example.net": Reason.DUPLICATE}
    assert (again, further) == (set(), set())
    handed_before = verdict("mailto:one@m.example.net", records, ("two@m.example.net",))
    assert handed_before[1] == {"one@m.example.net": Reason.DUPLICATE}


def test_address_taken_by_another_domains_word_is_never_used():
    found = Destinations((Destination("new", "b.example.net"),), ())
    waiting = [delivery("old@a.example.net")]
    result = judge(waiting, found, {"old@a.example.net"})
    assert result.authorised == ()
    assert [(one.recipient, refused.reason) for one, refused in result.settled] == [
        ("old@a.example.net", Reason.DUPLICATE)
    ]


@given(st.integers(0, 10**6))
def test_waiting_grows_within_bounds(tries):
    assert BOUNDS[0] <= back_off(tries, BOUNDS) <= back_off(tries + 1, BOUNDS) <= BOUNDS[1]


@contextmanager
def server(*replies: str | None) -> Iterator[tuple[str, int, list[bytes]]]:
    """One session of an SMTP server that says these replies in turn; None closes the connection."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as stream:
                data = False
                for reply in replies:
                    if reply is None:
                        return
                    stream.write(reply.encode() + b"\r\n")
                    stream.flush()
                    for line in stream:
                        heard.append(line)
                        if not data or line == b".\r\n":
                            break
                    data = reply.startswith("354")

        thread = threading.Thread(target=serve)
        thread.start()
        yield "127.0.0.1", listener.getsockname()[1], heard
        thread.join(10)


HELLO = ("220 hi", "250 hi")


def session(*replies: str | None) -> Handed | NotTaken | Unknown:
    with server(*replies) as (host, port, _):
        return hand_over(MAIL, host, port)


def test_mail_that_was_taken_is_named_by_its_queue_identifier():
    with server(*HELLO, "250 ok", "250 ok", "354 go", "250 2.0.0 Ok: queued as 4bXk2", "221 bye") as (
        host,
        port,
        heard,
    ):
        result = hand_over(MAIL, host, port)
    assert result == Handed("4bXk2", "250 2.0.0 Ok: queued as 4bXk2")
    assert heard[1:3] == [b"mail FROM:<dmarc-reports+1@rua.example.org>\r\n", b"rcpt TO:<r@example.com>\r\n"]
    assert b"..\r\n" in heard, "a line of a dot is no end"


def test_quit_that_goes_wrong_takes_nothing_back():
    for end in ("421 bye", None):
        assert isinstance(session(*HELLO, "250 ok", "250 ok", "354 go", "250 Ok: queued as A", end), Handed)


@pytest.mark.parametrize(
    ("replies", "code"),
    [
        (("421 busy",), 421),
        ((*HELLO, "451 4.3.0 no"), 451),
        ((*HELLO, "250 ok", "450 4.1.1 no"), 450),
        ((*HELLO, "250 ok", "250 ok", "451 no"), 451),
        ((*HELLO, "250 ok", "250 ok", "354 go", "451 4.7.1 milter"), 451),
        ((*HELLO, None), 0),
        ((*HELLO, "250 ok", "250 ok", None), 0),
    ],
)
def test_mail_that_was_not_taken_waits(replies, code):
    result = session(*replies)
    if replies[-1] is None and len(replies) == 5:
        assert isinstance(result, Unknown), "cut off at DATA: the journal is asked, which costs nothing"
    else:
        assert isinstance(result, NotTaken)
        assert (result.code, result.for_good) == (code, False)


def test_nobody_listening_is_our_own_trouble():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    result = hand_over(MAIL, "127.0.0.1", port)
    assert isinstance(result, NotTaken)
    assert (result.code, result.for_good) == (0, False)
    assert not answers("127.0.0.1", port)


def test_whole_mail_without_an_answer_is_unknown():
    assert isinstance(session(*HELLO, "250 ok", "250 ok", "354 go", None), Unknown)


@pytest.mark.parametrize(
    ("reply", "fate", "dsn"),
    [
        ("552 5.3.4 Message too big", "too_large", "5.3.4"),
        ("552 too big", "too_large", None),
        ("554 5.7.1 no", "refused", "5.7.1"),
        ("550 10.25.3.4 is blocked", "refused", None),
    ],
)
def test_refusal_by_our_own_postfix_is_told(reply, fate, dsn):
    result = session(*HELLO, "250 ok", reply)
    assert isinstance(result, NotTaken)
    assert (result.for_good, result.fate, result.dsn) == (True, fate, dsn)


def test_queue_manager_names_what_was_taken_and_nothing_else():
    lines = [
        "4bXk2: from=<dmarc-reports+a@rua.example.org>, size=900, nrcpt=1 (queue active)",
        "4bXk2: removed",
        "4bXk3: from=<dmarc-reports+b@rua.example.org>, status=expired, returned to sender",
        "warning: 4bXk4: from=<x>, size=1",
        "4bXk5: from=<>, size=100, nrcpt=1 (queue active)",
    ]
    assert dict(taken(lines)) == {"dmarc-reports+a@rua.example.org": "4bXk2", "": "4bXk5"}
