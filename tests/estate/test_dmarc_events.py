"""What the gateways remember of each message: the events from which DMARC reports are made, and the metrics."""

from __future__ import annotations

import json
import re
import time

import pytest

from estatelib.events import Events
from estatelib.places import ATTACKER

ALICE = "alice@example.org"
FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=9).read().decode())"


@pytest.fixture
def events(estate) -> Events:
    """The events of this test's messages."""
    return Events(estate)


def test_genuine_mail_is_on_record_with_its_aligned_results(estate, events):
    world = estate.world("example.com")
    assert world.hand_over(ALICE).reply.code == 250
    event = events.only(source_ip=world.address(), header_from="example.com", envelope_to=["example.org"])
    assert (event["dmarc"], event["disposition"]) == ("pass", "pass")
    assert event["spf"] == {"domain": "example.com", "scope": "mfrom", "result": "pass", "aligned": True}
    assert event["dkim"] == [{"domain": "example.com", "selector": "s1", "result": "pass", "aligned": True}]
    assert event["policy"]["p"] == "reject"


def test_quarantined_forgery_is_on_record_as_quarantined(estate, events):
    post = estate.forge(estate.world("example.com").compose(ALICE), envelope="user@example.com")
    assert post.reply.code == 250, post.reply
    event = events.only(source_ip=ATTACKER, header_from="example.com")
    assert (event["dmarc"], event["disposition"]) == ("fail", "quarantine")


def test_spf_that_passes_without_alignment_is_on_record_as_passing(estate, events):
    spammer = estate.world("example.co.jp")
    post = spammer.hand_over(ALICE, raw=estate.world("example.edu").compose(ALICE))
    assert post.reply.code == 250, post.reply
    event = events.only(source_ip=spammer.address(), header_from="example.edu")
    assert (event["spf"]["result"], event["spf"]["aligned"]) == ("pass", False)
    assert (event["dmarc"], event["disposition"]) == ("fail", "none")


def test_list_mail_saved_by_a_trusted_sealer_is_on_record_with_the_reason(estate, events):
    post = estate.world("example.com").send(to="list@example.ac.jp")
    estate.mailbox(ALICE).wait_for(post.message_id)
    event = events.only(header_from="example.com", envelope_from="example.ac.jp")
    assert (event["dmarc"], event["disposition"]) == ("fail", "none")
    assert [override["type"] for override in event["overrides"]] == ["trusted_forwarder"]


def test_the_record_holds_domains_and_no_local_parts(estate, events):
    world = estate.world("example.jp")
    assert world.hand_over(ALICE, user="somebody.private").reply.code == 250
    event = events.only(source_ip=world.address(), header_from="example.jp")
    assert "somebody" not in json.dumps(event)  # reports never speak of people
    assert "alice" not in json.dumps(event)


@pytest.mark.parametrize(("port", "counter"), [(8897, "estate_arc_messages_total"), (11334, "rspamd_scanned_total")])
def test_metrics_count_every_message(estate, port, counter):
    def value() -> float:
        text = estate.gateway("mail-gw1").run("python3", "-c", FETCH, f"http://127.0.0.1:{port}/metrics")
        return sum(float(number) for number in re.findall(rf"^{counter}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    before = value()
    assert estate.world("example.com").hand_over(ALICE, gateway="mail-gw1").reply.code == 250
    deadline = time.monotonic() + 15  # worker processes hand their counts on from time to time
    while value() == before:
        assert time.monotonic() < deadline
        time.sleep(0.5)
