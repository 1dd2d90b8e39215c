"""Whatever is switched off, no message is lost, doubled, or let through unchecked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from estatelib import Service
from estatelib.places import GATEWAYS

ALICE = "alice@example.org"


@contextmanager
def everywhere(estate, unit: str) -> Iterator[None]:
    """Keep a unit stopped on both gateways inside the block; they stop side by side, since rspamd takes its time."""
    services = [estate.gateway(name).service(unit) for name in GATEWAYS]
    with ThreadPoolExecutor() as pool:
        try:
            list(pool.map(Service.stop, services))
            yield
        finally:
            list(pool.map(Service.start, services))


def assert_delivered_once(estate, posts) -> None:
    """Let everybody who holds the mail try again, and find each message exactly once."""
    deadline = time.monotonic() + 60
    waiting = list(posts)
    while waiting and time.monotonic() < deadline:
        for name in (*GATEWAYS, "world"):
            estate.host(name).flush()
        time.sleep(1)
        waiting = [post for post in waiting if not estate.mailbox(post.to).find(post.message_id)]
    assert not waiting, f"{len(waiting)} of {len(posts)} messages did not arrive"
    for post in posts:
        estate.mailbox(post.to).wait_for(post.message_id)  # fails on a second copy


@pytest.mark.parametrize("unit", ["rspamd", "arc-verify", "arc-seal"])
def test_gateway_without_a_filter_answers_try_later_and_everything_arrives_afterwards(estate, unit):
    with everywhere(estate, unit):
        refused = estate.world("example.com").hand_over(ALICE)
        posts = [estate.world("example.com").send(to=ALICE) for _ in range(3)]
        time.sleep(2)  # the outside server's first attempt
        assert not any(estate.mailbox(ALICE).find(post.message_id) for post in posts)
    assert refused.reply.code // 100 == 4, refused.reply
    assert_delivered_once(estate, posts)


def test_mail_takes_the_healthy_gateway_while_the_other_has_no_filter(estate):
    with estate.gateway("mail-gw1").service("arc-verify").stopped():
        post = estate.world("example.com").send(to=ALICE)
        copy = estate.mailbox(ALICE).wait_for(post.message_id)
    assert any("by mail-gw2.example.org" in hop for hop in copy.headers("Received"))


def test_loss_of_the_key_value_store_neither_loses_mail_nor_lets_it_in_unchecked(estate):
    with everywhere(estate, "valkey-server@rspamd"):
        post = estate.world("example.com").hand_over(ALICE)
        assert post.reply.code == 250 or post.reply.code // 100 == 4, post.reply
        sent = estate.world("example.com").send(to=ALICE)
    assert_delivered_once(estate, [sent, post] if post.reply.code == 250 else [sent])


def test_loss_of_the_srs_daemon_loses_nothing(estate):
    with everywhere(estate, "postsrsd"):
        plain = estate.world("example.com").send(to=ALICE)
        forward = estate.world("example.com").send(to="forwarded-edu@example.org")
        time.sleep(2)
    assert_delivered_once(estate, [plain])
    deadline = time.monotonic() + 60
    while not estate.mailbox("admin@example.edu").find(forward.message_id) and time.monotonic() < deadline:
        for name in (*GATEWAYS, "world"):
            estate.host(name).flush()
        time.sleep(1)
    assert "srs.example.org" in estate.mailbox("admin@example.edu").wait_for(forward.message_id).header("Return-Path")


def test_mail_waits_in_the_queue_while_the_next_hop_is_down_and_arrives_afterwards(estate):
    estate.world("example.com").hand_over(ALICE)  # alice is in the verification cache of the gateway from here on
    with estate.host("mail").service("postfix").stopped():
        post = estate.world("example.com").hand_over(ALICE)
        assert post.reply.code == 250, post.reply  # the gateway still knows its recipients
        listed = estate.world("example.com").hand_over("hanako@sfc.example.org")
        assert listed.reply.code == 250, listed.reply
        assert estate.gateway("mail-gw1").wait_until_queued(ALICE)
    assert_delivered_once(estate, [post, listed])


def test_unknown_recipient_is_never_accepted_while_the_next_hop_is_down(estate):
    with estate.host("mail").service("postfix").stopped():
        post = estate.world("example.com").hand_over(f"fresh-{time.time_ns()}@example.org")
    assert post.reply.code // 100 in (4, 5), post.reply
