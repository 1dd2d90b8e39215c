"""The sender policy without a mail server: who a From names for every reader, and what is counted."""

from __future__ import annotations

import email
import email.policy
import json
import re
import threading
from email.utils import getaddresses

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import submission_policy
from submission_policy_author import Permitted, Refusal, check_envelope_sender, check_header, parse_mailbox
from submission_policy_state import Limits, State

OWN = Permitted.of(["Alice@example.org", "@lab.example.org"])
THRESHOLDS = {"limit": 3, "unknown": 3, "networks": 3}


def author(value: str | bytes, *more: tuple[str, bytes]) -> str:
    raw = value.encode() if isinstance(value, str) else value
    return check_header([("From", raw), *more], OWN, "alice")


@pytest.mark.parametrize(
    "value",
    [
        "alice@example.org", "ALICE@Example.Org", "Alice <alice+tag@example.org>", "J. Q. Public <x@lab.example.org>",
        '"Lee, A." <alice@example.org>', "alice@example.org (Alice)", "=?utf-8?b?QWxpY2U=?= <alice@example.org>",
        "=?iso-2022-jp?B?GyRCOzNFRBsoQg==?= <alice@example.org>", "山田 <alice@example.org>",
        "A\n B <alice@example.org>",
        '"alice@example.org" <alice@example.org>',
    ],
)  # fmt: skip
def test_ordinary_authors_are_taken(value):
    assert author(value)


@pytest.mark.parametrize(
    "value",
    [
        "", " ", "bob@example.org", "alice@example.org, bob@example.org", "alice@example.org bob@example.org",
        "<bob@example.org> <alice@example.org>", "<alice@example.org>bob@example.org", "<@b.org:alice@example.org>",
        "bob@example.org <alice@example.org>", '"bob@example.org" <alice@example.org>', "Group: alice@example.org;",
        '"bob\\@example.org" <alice@example.org>', "=?utf-8?b?Ym9iQGV4YW1wbGUub3Jn?= <alice@example.org>",
        "bob\uff20example.org <alice@example.org>", "=?utf-8?q?x?=@lab.example.org", '"a b"@lab.example.org',
        "alice@[192.0.2.1]", "alice@example.org (a) (b)", "alice(bob@example.org)@example.org", "alice@example.org\\,b",
        "=?utf-8?b?!?= <alice@example.org>", "A\u202eB <alice@example.org>", "=?utf-8?q?=00?= <alice@example.org>",
        "alice@example.org\nbob@example.org", "alice@example.org\x00", "a" * 3000 + " <alice@example.org>",
        b"\xff <alice@example.org>", "alice@sub.lab.example.org", "+x@example.org",
    ],
)  # fmt: skip
def test_other_authors_are_refused(value):
    with pytest.raises(Refusal):
        author(value)


@pytest.mark.parametrize("name", ["Sender", "Resent-From", "resent-sender"])
def test_every_field_that_names_a_sender_is_checked(name):
    assert author("alice@example.org", (name, b"alice@example.org"))
    with pytest.raises(Refusal, match="may not send as bob"):
        author("alice@example.org", (name, b"bob@example.org"))


@pytest.mark.parametrize("names", [[], ["From", "from"], ["From", "From "], ["From", "Sender", "Sender"]])
def test_number_of_fields_is_checked(names):
    with pytest.raises(Refusal):
        check_header([(name, b"alice@example.org") for name in names], OWN, "alice")


def test_envelope_sender_is_own_or_empty():
    for sender in ("<>", "<alice@example.org>", "<alice+list=x@example.org>"):
        check_envelope_sender(sender, OWN, "alice")
    for sender in ("<bob@example.org>", "<@b.org:alice@example.org>", "<alice>"):
        with pytest.raises(Refusal):
            check_envelope_sender(sender, OWN, "alice")


PIECES = st.sampled_from(
    ["alice@example.org", "bob@example.net", "<", ">", "(", ")", '"', "\\", ",", ":", ";", " ", "\t", "\n ", "@", "a",
     "=?utf-8?q?x=40y.org?=", "=?utf-8?b?PGJvYkBleGFtcGxlLm5ldD4=?=", "é", "\0", "[", "]", "."]
)  # fmt: skip


@settings(max_examples=2000, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=60).map(lambda text: text + "<alice@example.org>"))
@example("0.<alice@example.org>")
def test_no_reader_sees_another_address_than_ours(value):
    try:
        address = author(value.encode("utf-8", "surrogatepass"))
    except Refusal:
        return
    assert address == "alice@example.org"
    unfolded = value.replace("\n", "")
    assert [found for _name, found in getaddresses([unfolded])] == [address]
    try:
        header = email.message_from_string(f"From: {unfolded}\n\n", policy=email.policy.default)["From"]
    except AttributeError:
        assert re.search(r"\.\s*<", unfolded)  # Python's parser fails at a name that ends with a dot
    else:
        assert [item.addr_spec for item in header.addresses] == [address]
        assert {found.lower() for found in re.findall(r"[\w.+-]+@[\w.-]+", str(header))} == {address}
    angles = re.findall(r"<([^>]*)>", unfolded)
    assert all(found == address for found in angles)


@settings(max_examples=500, deadline=200)
@given(st.binary(max_size=2000))
def test_parser_answers_or_refuses_and_is_quick(value):
    try:
        address, _words = parse_mailbox("From", value)
    except Refusal:
        return
    assert re.fullmatch(r"[!-~]+@[A-Za-z0-9.-]+", address)


@pytest.mark.parametrize("piece", ["a ", '"a', "(", "a@", "\\", "=?", "<", '"" '])
def test_hostile_repetition_takes_no_time(piece):
    with pytest.raises(Refusal):
        author(piece * (1990 // len(piece)))


# ----------------------------------------------------------------------------------------------------------- the counts


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(tmp_path, clock):
    state = State(str(tmp_path / "state.sqlite"), THRESHOLDS, clock)
    yield state
    state.close()


def test_windows_slide_and_never_let_more_through(state, clock):
    limits = Limits(10, 25)
    accepted: list[float] = []
    for _ in range(60 * 24 * 2):
        clock.now += 61.7
        if not state.hold("alice", limits):
            assert state.charge("alice", 1)
            accepted.append(clock.now)
    for span, limit in ((3600, 10), (86400, 25)):
        assert max(sum(0 <= other - start < span for other in accepted) for start in accepted) == limit


def test_what_is_held_counts_and_what_comes_to_nothing_does_not(state):
    assert [state.hold("alice", Limits(2, 0)) for _ in range(3)] == ["", "", "hour"]
    assert state.hold("bob", Limits(2, 0)) == ""
    state.give_back("alice", 2)
    assert state.usage("alice").hour == 0
    assert state.hold("alice", Limits(2, 0)) == ""


def test_threads_together_never_pass_the_limit(state):
    accepted = []

    def work() -> None:
        for _ in range(10):
            if not state.hold("alice", Limits(50, 0)):
                assert state.charge("alice", 1)
                accepted.append(1)

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(accepted) == state.usage("alice").hour == 50


def test_counts_outlive_the_process(tmp_path, state, clock):
    state.hold("alice", Limits(5, 5))
    state.charge("alice", 1)
    state.block("bob", "by hand")
    other = State(str(tmp_path / "state.sqlite"), THRESHOLDS, clock)
    assert other.usage("alice").hour == 1
    assert other.is_blocked("bob")
    assert other.release("bob")
    assert not state.is_blocked("bob")
    other.close()


def test_signs_block_once_and_are_told_once(state, clock):
    assert [state.note("alice", "unknown", f"{n}@x") is not None for n in (1, 1, 2, 3, 4)] == [False] * 3 + [
        True,
        False,
    ]
    assert state.blocked(untold=True) == state.blocked() != []
    state.told(state.blocked())
    assert state.blocked(untold=True) == []
    assert not state.charge("alice", 1)
    for n in (1, 2):
        state.note("bob", "networks", str(n))
    clock.now += 3601
    assert state.note("bob", "networks", "3") is None, "an hour is over"


def test_limits_and_clients_are_read_from_the_data(tmp_path):
    senders = tmp_path / "senders.json"
    mark = ":".join(["AB"] * 32)
    data = {
        "users": {"Alice@example.org": {"addresses": ["alice@example.org"]},
                  "news@example.org": {"addresses": ["@example.org"], "limit": 5000}},
        "clients": {"net": {"networks": ["192.0.2.0/24"], "addresses": ["a@example.org"]},
                    "one": {"networks": ["192.0.2.9"], "certificates": [mark], "addresses": ["b@example.org"]}},
    }  # fmt: skip
    senders.write_text(json.dumps(data))
    values = {
        "senders_file": str(senders), "socket": "", "client_socket": "", "state_directory": "", "metrics_port": 1,
        "delimiter": "+", "hour": 200, "day": 1000, "block_after": THRESHOLDS, "network_bits": {"ipv4": 16, "ipv6": 32},
        "alert_from": "postmaster@example.org", "alert_to": "", "alert_seconds": 1, "alert_port": 25, "stop_seconds": 1,
    }  # fmt: skip
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(values))
    read = submission_policy.SendersFile(submission_policy.read_settings(str(file))).current()
    assert read.users["alice@example.org"].limits == Limits(200, 1000)
    assert read.users["news@example.org"].limits == Limits(1000, 5000)
    assert read.client("192.0.2.9", "").name == "client:one"
    assert read.client("192.0.2.8", "").name == "client:net"
    assert read.client("198.51.100.1", mark.lower()).name == "client:one"
    assert read.client("198.51.100.1", "") is None
    assert read.client("127.0.0.1", "").permitted.allows("postmaster@example.org")
    file.write_text(json.dumps(values | {"surplus": 1}))
    with pytest.raises(ValueError, match="surplus"):
        submission_policy.read_settings(str(file))
