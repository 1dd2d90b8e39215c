"""Joining and leaving a list in the browser."""

from __future__ import annotations

import csv
import io
import re
import time

from estatelib.browser import SITE, page_of
from estatelib.waiting import wait

DEV, BOARD, STAFF = "dev@ml.example.org", "board@ml.example.org", "staff@ml.example.org"


def ask_to_join(guest, address: str, email: str) -> None:
    guest.visit(page_of(address))
    guest.page.fill("form[action*='anonymous_subscribe'] [name=email]", email)
    guest.press("form[action*='anonymous_subscribe'] [type=submit]")


def test_subscription_without_account_is_confirmed_by_the_mail_that_arrives(visit, estate, newcomer):
    mailing_list, since = estate.list(DEV), time.time() - 1
    with visit() as guest:
        ask_to_join(guest, DEV, newcomer)
        assert "inbox" in guest.notices()
        assert mailing_list.member(newcomer) is None
        mail = estate.mailbox(newcomer).wait_for_text("dev-confirm+", since=since, timeout=60)
        token = re.search(rb"dev-confirm\+([0-9a-f]+)@", mail.raw)[1].decode()
        guest.visit(f"{page_of(DEV)}confirm/?token={token}")
        assert newcomer in guest.text()
        guest.press("input[value=Confirm]")
    wait(lambda: mailing_list.member(newcomer), 20, f"membership of {newcomer}")


def test_outside_address_is_refused_by_a_list_of_the_organisation_with_the_reason(visit, estate, newcomer):
    with visit() as guest:
        ask_to_join(guest, STAFF, newcomer)
        assert "sfc.example.org" in guest.page.inner_text(".alert-danger")
    assert estate.list(STAFF).member(newcomer) is None
    assert newcomer not in [request["email"] for request in estate.list(STAFF).requests()]


def test_subscription_to_a_closed_list_waits_until_its_owner_says_yes_in_the_browser(visit, estate):
    mailing_list, address = estate.list(BOARD), "taro@example.org"
    mailing_list.remove(address)
    try:
        with visit("taro") as taro:
            taro.sign_in("taro")
            taro.subscribe(BOARD, address)
            assert "waiting for moderator" in taro.notices()
        assert mailing_list.member(address) is None
        with visit("owner") as alice:
            alice.sign_in("alice")
            assert alice.visit(f"{page_of(BOARD)}subscription_requests") == 200
            row = alice.page.locator("tr", has_text=address)
            alice.press(row.locator("[name=accept]"))
            assert "accepted" in alice.notices()
            assert alice.page.locator("tr", has_text=address).count() == 0
        assert wait(lambda: mailing_list.member(address), 20, f"membership of {address}")
    finally:
        mailing_list.remove(address)


def test_owner_subscribes_many_from_a_csv_file_and_sees_who_was_refused(visit, estate, newcomer):
    local = newcomer.partition("@")[0]
    rows = csv.DictReader(
        io.StringIO(
            "address,name\n"
            f'{local}1@example.org,"Bob, of sales"\n'
            f"{local}2@sfc.example.org,山田 花子\n"
            f"{local}3@example.edu,Outsider\n"
            "not-an-address,Nobody\n"
        )
    )
    people = {row["address"]: row["name"] for row in rows}
    inside = [address for address in people if address.endswith("example.org")]
    mailing_list = estate.list(STAFF)
    try:
        with visit() as alice:
            alice.sign_in("alice")
            assert alice.visit(f"{page_of(STAFF)}mass_subscribe/") == 200
            alice.page.fill("[name=emails]", "\n".join(f'"{name}" <{address}>' for address, name in people.items()))
            alice.page.check("[name=pre_verified]")
            alice.page.check("[name=send_welcome_message][value=False]")
            alice.press("form[action$='/mass_subscribe/'] [type=submit]")
            said = alice.notices()
            left = alice.page.input_value("[name=emails]")
        assert all(f"{address} has been subscribed" in said for address in inside), said
        assert any("sfc.example.org" in line and f"{local}3@example.edu" in line for line in said.splitlines()), said
        assert "not-an-address is not valid" in said
        assert left.split() == [f"{local}3@example.edu", "not-an-address"]
        assert set(inside) <= set(mailing_list.members())
        assert mailing_list.member(f"{local}3@example.edu") is None
        assert mailing_list.member(inside[1])["display_name"] == "山田 花子"
    finally:
        for address in people:
            mailing_list.remove(address)


def test_page_of_the_one_click_link_removes_nobody_and_its_button_does(visit, estate, newcomer):
    """RFC 8058 §3: link checkers open every URL in a mail; only a POST unsubscribes."""
    mailing_list, user = estate.list(DEV), newcomer.partition("@")[0]
    with mailing_list.with_members(newcomer):
        post = estate.world("example.edu").send(to=DEV, user=user, subject="One click")
        copy = estate.mailbox(newcomer).wait_for(post.message_id, timeout=60)
        found = re.search(rf"<{re.escape(SITE)}(/unsubscribe/[^>]+)>", copy.header("List-Unsubscribe"))
        assert found, "the copy has no link for one click"
        path = found[1]
        with visit("ja", language="ja") as guest:
            assert guest.visit(path) == 200
            assert "登録を解除する" in guest.text()
        with visit() as guest:
            assert guest.visit(path) == 200
            assert mailing_list.member(newcomer), "removed by looking at the page"
            guest.press("button")
            assert "You have been unsubscribed" in guest.text()
            assert mailing_list.member(newcomer) is None
            assert guest.visit(path) == 410
        with mailing_list.with_members(newcomer), visit("again") as guest:
            assert guest.visit(path) == 410, "the link of an earlier membership"
            assert guest.visit(path[:-4] + "AAAA") == 404
            assert mailing_list.member(newcomer)


def test_member_leaves_in_the_browser(visit, estate):
    mailing_list, address = estate.list(DEV), "taro@example.org"
    with mailing_list.with_members(address), visit() as taro:
        taro.sign_in("taro")
        taro.visit(page_of(DEV))
        taro.press("form[action$='/unsubscribe/'] [type=submit]")
        if mailing_list.member(address):  # the list wants it confirmed by mail
            mail = estate.mailbox(address).wait_for_text("dev-confirm+", since=time.time() - 10, timeout=60)
            token = re.search(rb"dev-confirm\+([0-9a-f]+)@", mail.raw)[1].decode()
            taro.visit(f"{page_of(DEV)}confirm/?token={token}")
            taro.press("input[value=Confirm]")
        wait(lambda: mailing_list.member(address) is None, 20, "end of taro's membership")
