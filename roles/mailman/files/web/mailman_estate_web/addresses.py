"""Which addresses an account has in Mailman's core: those it has proved, and no others.

django-mailman3 (1.3.15) hands every address of an account to core at each sign-in, proved or not, with
``absorb_existing``: core then gives the address and all its subscriptions and lists to that account's user, and since
core knows the address as verified, the next step marks it as proved in the account as well. Whoever adds a stranger's
address to an account and signs in again would be the stranger. It also looks a new account up in core by an address
that nobody has proved yet, and renames the user it finds. The two handlers that do this are replaced here, and a third
one, which tells only the log when core refuses a new primary address.
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.error import HTTPError

from allauth.account.models import EmailAddress
from allauth.account.signals import email_changed, user_logged_in
from django.contrib import messages
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.db.models.signals import post_save
from django.http import HttpRequest
from django_mailman3 import signals as stock
from django_mailman3.lib.mailman import add_address_to_mailman_user, get_mailman_user
from django_mailman3.models import Profile
from mailmanclient import MailmanConnectionError

from . import pages

logger = logging.getLogger(__name__)


def connect() -> None:
    """Replace django-mailman3's handlers; ImproperlyConfigured when a release has none of that name any more."""
    user_model = get_user_model()
    if not (
        post_save.disconnect(stock.create_profile, sender=user_model)
        and user_logged_in.disconnect(stock.on_user_logged_in)
        and email_changed.disconnect(stock.on_email_changed)
    ):
        raise ImproperlyConfigured(
            "django-mailman3 has changed how it hands addresses to Mailman: mailman_estate_web/addresses.py must be"
            " looked at again before this release is used"
        )
    post_save.connect(user_saved, sender=user_model, dispatch_uid="mailman_estate_web.user_saved")
    user_logged_in.connect(user_signed_in, dispatch_uid="mailman_estate_web.user_signed_in")
    email_changed.connect(primary_changed, dispatch_uid="mailman_estate_web.primary_changed")


def user_saved(sender: Any, instance: Any, raw: bool = False, **kwargs: Any) -> None:
    """A profile for each account; its name goes to core once its address is proved."""
    if raw:
        return
    if is_proved(instance):
        stock.create_profile(sender, instance=instance, **kwargs)
    else:
        Profile.objects.get_or_create(user=instance)


def user_signed_in(sender: Any, user: Any, **kwargs: Any) -> None:
    """Bring the account and its user in core in line."""
    Profile.objects.get_or_create(user=user)
    if not is_proved(user):
        return
    try:
        synchronise(user)
    except (HTTPError, MailmanConnectionError) as error:
        # Signing in works without core; the next one does what this one could not.
        logger.warning("the addresses of account %s are not in line with Mailman: %s", user.pk, type(error).__name__)


def primary_changed(
    sender: Any, request: HttpRequest, user: Any, to_email_address: EmailAddress | None = None, **kwargs: Any
) -> None:
    """The account's primary address is the preferred one in core, too; what core has against it, the person reads."""
    if to_email_address is None or not to_email_address.verified:
        return
    try:
        add_address_to_mailman_user(user, to_email_address.email)
        mailman_user = get_mailman_user(user)
        if mailman_user is not None:
            mailman_user.preferred_address = to_email_address.email
        return
    except HTTPError as error:
        logger.info("account %s keeps its preferred address in Mailman: %s", user.pk, error.code)
        reason = str(error.msg)
    except MailmanConnectionError as error:
        logger.warning("the primary address of account %s did not reach Mailman: %s", user.pk, type(error).__name__)
        reason = ""
    texts = {
        "en": "Your subscriptions by primary address stay with the address that they had.",
        "ja": "主アドレスで登録しているリストには、これまでのアドレスがそのまま使われます。",
    }
    messages.warning(request, f"{pages.in_language(texts)[1]} {reason}".strip())


def is_proved(user: Any) -> bool:
    """Whether the address by which core knows the account is proved."""
    return bool(user.email) and EmailAddress.objects.filter(user=user, email__iexact=user.email, verified=True).exists()


def synchronise(user: Any) -> None:
    """Proved addresses of the account to core, and core's verified ones of the same user to the account."""
    mailman_user = get_mailman_user(user)
    if mailman_user is None:
        return
    proved = list(EmailAddress.objects.filter(user=user, verified=True).values_list("email", flat=True))
    for email in proved:
        address = mailman_user.addresses.find_by_email(email)
        if address is None:
            address = mailman_user.add_address(email, absorb_existing=True)
        if not address.verified:
            address.verify()
    for address in mailman_user.addresses:
        if not address.verified or address.email in proved:
            continue
        if EmailAddress.objects.filter(email__iexact=address.email, verified=True).exists():
            continue
        EmailAddress.objects.update_or_create(user=user, email=address.email, defaults={"verified": True})
