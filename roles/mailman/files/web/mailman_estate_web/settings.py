"""What the application needs in Django's settings: ``from mailman_estate_web.settings import *``, then the site's own.

A site may change each value after the import. ``checks.py`` stops Django where something that protects is missing.
"""

from __future__ import annotations

from typing import Any

from django.contrib.messages import constants as levels

ROOT_URLCONF = "mailman_estate_web.urls"
ACCOUNT_ADAPTER = "mailman_estate_web.accounts.EstateAccountAdapter"
SOCIALACCOUNT_ADAPTER = "mailman_estate_web.accounts.EstateSocialAccountAdapter"

#: What is an error here is a danger to Bootstrap, whose styles the pages use.
MESSAGE_TAGS = {levels.ERROR: "danger"}

#: The last entry of MIDDLEWARE: it wants to know who has signed in, and what the form says.
ESTATE_MIDDLEWARE = ["mailman_estate_web.middleware.EstateMiddleware"]

#: Entry of CACHES. The counters of the rate limits have a table of their own: pages of the archive must not displace
#: them, and all processes must see the same ones. ``createcachetable`` makes it.
ESTATE_LIMITS_CACHE: dict[str, Any] = {
    "BACKEND": "django.core.cache.backends.db.DatabaseCache",
    "LOCATION": "estate_limits",
    "OPTIONS": {"MAX_ENTRIES": 100_000},
}

#: Action → who is counted → how often in how long. "client" is the address a request comes from (of IPv6 its /64: a
#: customer has that many), "target" the address or account that it is about. The first keeps one machine from trying
#: everything, the second many machines from flooding one mailbox. Whole campuses come from one address: the limits for
#: clients are wide.
ESTATE_RATE_LIMITS: dict[str, dict[str, str]] = {
    "log_in": {"client": "60/5m", "target": "10/10m"},
    "sign_up": {"client": "20/1h", "target": "3/1h"},
    "password": {"client": "20/1h", "target": "3/1h"},
    "address": {"client": "40/1h", "target": "5/1h"},
    "subscribe": {"client": "60/1h"},
    "subscribe_anonymously": {"client": "30/1h", "target": "5/1h"},
    "provider": {"client": "120/5m"},
}

#: Whether people may make an account here, without the single sign-on.
ESTATE_LOCAL_SIGNUP = True
#: The claim that holds a person's groups, and the group whose members administer the site; empty for none.
ESTATE_OIDC_GROUPS_CLAIM = "groups"
ESTATE_OIDC_ADMIN_GROUP = ""
#: Administrators whatever the provider says: user name → e-mail address.
ESTATE_ADMINS: dict[str, str] = {}
#: Seconds after which an administrator by group signs in again, so that a lost group is noticed.
ESTATE_ADMIN_SESSION = 12 * 3600

#: The keys of the one-click tokens, see mailman_estate/one_click.py; read again when the file changes.
ESTATE_UNSUBSCRIBE_KEY_FILE = "/etc/mailman3/unsubscribe.key"
