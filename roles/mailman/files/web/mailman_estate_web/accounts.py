"""Accounts: who may make one, which of them a single sign-on opens, and who administers the site.

OpenID Connect by django-allauth. Three rules are ours:

- An address counts as verified only where the provider says ``"email_verified": true`` (OpenID Connect Core §5.1), not
  where it says ``"false"`` or nothing, and it opens an existing account only if that account has proved the same
  address, too. Somebody's address that was entered elsewhere but never proved is taken from there.
- Administrators are those whom the provider lists in a group, as of their last sign-in: the right is given and taken
  then. A sign-in by password of such an account takes it, because nobody has said that it still holds; the site's own
  administrators (ESTATE_ADMINS) keep it. Their sessions are short.
- A provider that does not answer is a page that says so, with 503.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.models import EmailAddress
from allauth.account.signals import user_logged_in
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.models import SocialAccount, SocialLogin
from django.conf import settings
from django.contrib.auth import get_user_model
from django.http import HttpRequest
from requests import RequestException

from . import limits, pages

logger = logging.getLogger(__name__)


class EstateAccountAdapter(DefaultAccountAdapter):
    """Local accounts."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        """Whether strangers may make an account with a password here."""
        return bool(settings.ESTATE_LOCAL_SIGNUP)

    def get_client_ip(self, request: HttpRequest) -> str:
        """For allauth's own rate limits, which would believe the client's X-Forwarded-For."""
        return limits.client_network(limits.client_address(request))


class EstateSocialAccountAdapter(DefaultSocialAccountAdapter):
    """Accounts of the single sign-on."""

    def is_open_for_signup(self, request: HttpRequest, sociallogin: SocialLogin) -> bool:
        """Whoever the provider knows may come, also where nobody may sign up locally."""
        return True

    def populate_user(self, request: HttpRequest, sociallogin: SocialLogin, data: Mapping[str, Any]) -> Any:
        """Called before allauth looks for an account: only the truth value counts as verified."""
        for address in sociallogin.email_addresses:
            address.verified = address.verified is True
        return super().populate_user(request, sociallogin, data)

    def can_authenticate_by_email(self, login: SocialLogin, email: str) -> bool:
        """Whether a verified address may open an account that is not connected yet: only if both sides proved it."""
        proved_here = EmailAddress.objects.filter(email__iexact=email, verified=True).exists()
        return proved_here and bool(super().can_authenticate_by_email(login, email))

    def pre_social_login(self, request: HttpRequest, sociallogin: SocialLogin) -> None:
        """Before a new account is made: its proved addresses are nobody else's unproved ones."""
        if not sociallogin.is_existing and sociallogin.state.get("process") != "connect":
            for address in sociallogin.email_addresses:
                if address.verified:
                    _forget_unproved(address.email)

    def on_authentication_error(
        self,
        request: HttpRequest,
        provider: Any,
        error: Any = None,
        exception: Exception | None = None,
        extra_context: dict[str, Any] | None = None,
    ) -> None:
        """A provider that cannot be reached half-way through."""
        if isinstance(exception, RequestException):
            raise ImmediateHttpResponse(pages.provider_unavailable(request, exception))


def connect() -> None:
    """Have administrators looked at whenever somebody has signed in."""
    user_logged_in.connect(set_rights, dispatch_uid="mailman_estate_web.set_rights")


def set_rights(request: HttpRequest, user: Any, sociallogin: SocialLogin | None = None, **kwargs: Any) -> None:
    """Give or take the administrator's right; ``sociallogin`` is what the provider has just said, if it was asked."""
    group = settings.ESTATE_OIDC_ADMIN_GROUP
    if not group or user.get_username() in settings.ESTATE_ADMINS:
        return
    if sociallogin is None and not SocialAccount.objects.filter(user=user).exists():
        return
    is_admin = sociallogin is not None and group in groups(sociallogin.account.extra_data)
    if is_admin:
        request.session.set_expiry(settings.ESTATE_ADMIN_SESSION)
    if (user.is_superuser, user.is_staff) != (is_admin, is_admin):
        user.is_superuser = user.is_staff = is_admin
        user.save(update_fields=["is_superuser", "is_staff"])
        logger.warning("account %s is %s administrator by group", user.pk, "now" if is_admin else "no longer")


def groups(claims: Mapping[str, Any]) -> set[str]:
    """The groups that the provider states, in the user information or else in the ID token.

    allauth keeps the user information alone (before 65.11) or both under a name each. One group may be a plain string.
    """
    name = settings.ESTATE_OIDC_GROUPS_CLAIM
    for source in (claims.get("userinfo"), claims.get("id_token"), claims):
        if isinstance(source, Mapping) and name in source:
            stated = source[name]
            stated = [stated] if isinstance(stated, str) else stated
            return {group for group in stated if isinstance(group, str)} if isinstance(stated, list) else set()
    return set()


def _forget_unproved(email: str) -> None:
    """Take an address from the accounts that only claim it, so that its owner can have it."""
    claimed, _ = EmailAddress.objects.filter(email__iexact=email, verified=False).delete()
    users = get_user_model().objects.filter(email__iexact=email)
    proved = EmailAddress.objects.filter(email__iexact=email, verified=True).values("user_id")
    claimed += users.exclude(pk__in=proved).update(email="")
    if claimed:
        logger.warning("an address that accounts claimed without proof went to its owner")
