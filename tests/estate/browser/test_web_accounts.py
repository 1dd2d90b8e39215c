"""Accounts: single sign-on, whose addresses count, who administers the site."""

from __future__ import annotations

import time

from estatelib.browser import SITE, claims, link
from estatelib.waiting import wait

DEV, STAFF = "dev@ml.example.org", "staff@ml.example.org"
ADMINISTRATION = "/mailman3/system/"
ADMINISTRATORS = ["members", "mail-admins"]


def address_line(visitor, address: str):
    """What the account says of one of its addresses."""
    visitor.visit("/accounts/email/")
    return visitor.page.locator("form.email_list label", has_text=address)


def add_address(visitor, estate, address: str) -> None:
    """Add an address to the account and prove it by the mail that arrives."""
    since = time.time() - 1
    visitor.visit("/accounts/email/")
    visitor.page.fill("form.add_email input[type=email]", address)
    visitor.press("[name=action_add]")
    assert "Unverified" in address_line(visitor, address).inner_text()
    mail = estate.mailbox(address).wait_for_text("/accounts/confirm-email/", since=since, timeout=60)
    visitor.visit(link(mail, "/accounts/confirm-email/"))
    visitor.press("form[action*='confirm-email'] [type=submit]")
    assert "Unverified" not in address_line(visitor, address).inner_text()


def remove_address(visitor, address: str) -> None:
    visitor.visit("/accounts/email/")
    visitor.page.on("dialog", lambda dialog: dialog.accept())
    visitor.page.check(f"input[value='{address}']")
    visitor.press("[name=action_remove]")
    assert visitor.page.locator("form.email_list label", has_text=address).count() == 0


def make_primary(visitor, address: str) -> None:
    visitor.visit("/accounts/email/")
    visitor.page.check(f"input[value='{address}']")
    visitor.press("[name=action_primary]")


def test_member_signs_in_by_single_sign_on_and_has_the_verified_address(visit):
    with visit() as alice:
        alice.sign_in("alice")
        assert "alice" in alice.notices()
        line = address_line(alice, "alice@example.org").inner_text()
        assert "Verified" in line
        assert "Unverified" not in line


def test_sign_in_that_was_given_up_ends_on_a_page_of_the_site(visit):
    with visit() as alice:
        alice.visit("/accounts/login/")
        alice.press(".socialaccount_provider")
        alice.press("#cancel")
        assert alice.page.url.startswith(f"{SITE}/")
        assert alice.page.locator("link[rel=stylesheet]").count() > 0
        alice.visit("/user-profile/")
        assert alice.page.url.startswith(f"{SITE}/accounts/login/")


def test_unverified_address_does_not_open_the_account_of_its_owner(visit):
    with visit("owner") as alice:
        alice.sign_in("alice")
    with visit("mallory") as mallory:
        mallory.sign_in("mallory")
        assert "alice@example.org" in mallory.text()  # a mail went there, to be confirmed by whoever reads it
        assert mallory.page.locator("link[rel=stylesheet]").count() > 0
        mallory.visit("/user-profile/")
        assert mallory.page.url.startswith(f"{SITE}/accounts/login/")
    with visit("owner-again") as alice:
        alice.sign_in("alice")
        assert "Unverified" not in address_line(alice, "alice@example.org").inner_text()


def test_administrator_by_group_is_one_as_long_as_the_provider_says_so(visit):
    with visit("before") as taro:
        taro.sign_in("taro")
        assert taro.visit(ADMINISTRATION) == 403
    with claims(taro={"groups": ADMINISTRATORS}), visit("given") as taro:
        taro.sign_in("taro")
        assert taro.visit(ADMINISTRATION) == 200
        assert "System Information" in taro.text()
    with visit("taken") as taro:
        taro.sign_in("taro")
        assert taro.visit(ADMINISTRATION) == 403


def test_person_without_single_sign_on_signs_up_with_an_address_that_is_proved(visit, estate, newcomer):
    since, password = time.time() - 1, "a long pass phrase, and 1"
    with visit() as guest:
        guest.visit("/accounts/signup/")
        guest.page.fill("form.signup [name=email]", newcomer)
        guest.page.fill("form.signup [name=username]", newcomer.partition("@")[0])
        guest.page.fill("form.signup [name=password1]", password)
        guest.page.fill("form.signup [name=password2]", password)
        guest.press("form.signup [type=submit]")
        guest.visit("/user-profile/")
        assert guest.page.url.startswith(f"{SITE}/accounts/login/")
        mail = estate.mailbox(newcomer).wait_for_text("/accounts/confirm-email/", since=since, timeout=60)
        guest.visit(link(mail, "/accounts/confirm-email/"))
        guest.press("form[action*='confirm-email'] [type=submit]")
        guest.visit("/accounts/login/")
        guest.page.fill("form.login [name=login]", newcomer)
        guest.page.fill("form.login [name=password]", password)
        guest.press("form.login [type=submit]")
        assert "Unverified" not in address_line(guest, newcomer).inner_text()


def test_second_address_of_an_account_may_be_the_one_that_is_subscribed(visit, estate, newcomer):
    mailing_list = estate.list(DEV)
    with visit() as taro:
        taro.sign_in("taro")
        add_address(taro, estate, newcomer)
        taro.subscribe(DEV, newcomer)
        assert "You are subscribed" in taro.notices()
        wait(lambda: mailing_list.member(newcomer), 20, f"membership of {newcomer}")
        assert mailing_list.member("taro@example.org") is None
        taro.visit("/mailman3/accounts/subscriptions/")
        assert newcomer in taro.text()
        mailing_list.remove(newcomer)
        remove_address(taro, newcomer)


def test_organisation_rule_holds_for_the_second_address_of_a_member(visit, estate, newcomer):
    """It can neither be subscribed nor be made the primary one, by which the account is a member."""
    mailing_list = estate.list(STAFF)
    with visit() as taro:
        taro.sign_in("taro")
        add_address(taro, estate, newcomer)
        taro.subscribe(STAFF, newcomer)
        assert "sfc.example.org" in taro.notices()
        assert mailing_list.member(newcomer) is None
        try:
            taro.subscribe(STAFF)
            wait(lambda: mailing_list.member("taro@example.org"), 20, "membership of taro")
            make_primary(taro, newcomer)
            assert "sfc.example.org" in taro.notices()
            assert mailing_list.member("taro@example.org")
            assert mailing_list.member(newcomer) is None
            make_primary(taro, "taro@example.org")
            remove_address(taro, newcomer)
        finally:
            mailing_list.remove("taro@example.org")
