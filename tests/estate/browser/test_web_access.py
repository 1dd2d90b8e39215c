"""Who may open which page: client certificates by path, and the languages of the interface."""

from __future__ import annotations

import pytest
from playwright.sync_api import Error

from estatelib.browser import SITE, SSO_LOGIN
from estatelib.places import STATE

MEMBER, STRANGER = STATE / "pki/members/olga.pem", STATE / "pki/strangers/members/mallory.pem"


def test_administration_is_closed_without_a_client_certificate(visit):
    with visit() as guest:
        assert guest.visit("/admin/") == 403
        assert "client certificate" in guest.text()
        guest.sign_in("olga")  # an administrator by her group, and still without a certificate
        assert guest.visit("/admin/") == 403


def test_administrator_with_the_certificate_of_a_member_gets_in(visit):
    with visit(certificate=MEMBER) as olga:
        assert olga.visit("/admin/") == 200
        assert olga.page.url.startswith(f"{SITE}/accounts/login/")
        olga.sign_in("olga")
        assert olga.visit("/admin/") == 200
        assert "Site administration" in olga.text()


def test_certificate_alone_opens_nothing(visit):
    with visit(certificate=STATE / "pki/members/alice.pem") as alice:
        alice.sign_in("alice")
        alice.visit("/admin/")
        assert "Site administration" not in alice.text()


def test_certificate_of_another_authority_is_refused(visit):
    """By an alert in the handshake (RFC 8446 §6.2), on every page."""
    with visit(certificate=STRANGER) as mallory, pytest.raises(Error, match="alert unknown ca"):
        mallory.page.request.get(f"{SITE}/mailman3/lists/")


@pytest.mark.parametrize("path", ["/mailman3/lists/", "/archives/", SSO_LOGIN, "/robots.txt"])
def test_everybody_else_needs_no_certificate(visit, path):
    with visit() as guest:
        assert guest.visit(path) == 200


@pytest.mark.parametrize("path", ["/archives/api/mailman/urls", "/archives/api/lists/", "/health"])
def test_what_only_programs_of_the_host_ask_for_is_hidden(visit, path):
    with visit(certificate=MEMBER) as guest:
        assert guest.page.request.get(f"{SITE}{path}").status == 404


def test_interface_speaks_the_language_of_the_browser(visit):
    pages = ("/mailman3/lists/dev.ml.example.org/", "/archives/", "/accounts/login/")
    with visit("ja", language="ja") as taro:
        for page, word in zip(pages, ("入会", "検索", "ログイン"), strict=True):
            assert taro.visit(page) == 200
            assert word in taro.page.content(), page
    with visit("en") as alice:
        for page, word in zip(pages, ("Subscribe", "Search", "Sign In"), strict=True):
            alice.visit(page)
            assert word in alice.page.content(), page
