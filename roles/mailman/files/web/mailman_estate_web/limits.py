"""Rate limits for what strangers can do here: log in, sign up, have mail sent to somebody, subscribe somebody.

A limit counts requests in fixed windows of time: each request takes the next free slot of the window. A slot is taken
by the cache's ``add``, which fails when somebody else was faster, so that processes side by side count right (a
counter that is read and written back would not). The cache's keys are keyed hashes: no address lies in the database.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from django.conf import settings
from django.core.cache import caches
from django.http import HttpRequest
from django.utils.crypto import salted_hmac

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_RATE = re.compile(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,4})([smhd])")
_KINDS = ("client", "target")


@dataclass(frozen=True)
class Rate:
    """So many requests in so many seconds."""

    amount: int
    seconds: int


@dataclass(frozen=True)
class Action:
    """What a limit is for: methods of views, and the form fields that name whom it is about."""

    name: str
    views: frozenset[str]
    fields: tuple[str, ...] = ()
    methods: frozenset[str] = frozenset({"POST"})


ACTIONS = (
    Action("log_in", frozenset({"account_login", "account_reauthenticate"}), ("login",)),
    Action("sign_up", frozenset({"account_signup", "socialaccount_signup"}), ("email",)),
    Action("password", frozenset({"account_reset_password", "account_change_password"}), ("email",)),
    Action("address", frozenset({"account_email", "account_email_verification_sent"}), ("email",)),
    Action("subscribe", frozenset({"list_subscribe"})),
    Action("subscribe_anonymously", frozenset({"list_anonymous_subscribe"}), ("email",)),
    # Each of these has us ask the provider.
    Action(
        "provider",
        frozenset({"openid_connect_login", "openid_connect_callback"}),
        methods=frozenset({"GET", "HEAD", "POST"}),
    ),
)


def read_limits(limits: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Rate]]:
    """``{"log_in": {"client": "60/5m"}}`` as rates; ValueError says what is wrong with it."""
    known = {action.name for action in ACTIONS}
    rates: dict[str, dict[str, Rate]] = {}
    for name, kinds in limits.items():
        if name not in known:
            raise ValueError(f"there is no action {name!r}, only {', '.join(sorted(known))}")
        for kind, text in kinds.items():
            if kind not in _KINDS:
                raise ValueError(f"{name}: {kind!r} is neither client nor target")
            match = _RATE.fullmatch(text)
            if not match:
                raise ValueError(f"{name}: {text!r} is not like 60/5m")
            rates.setdefault(name, {})[kind] = Rate(int(match[1]), int(match[2]) * _UNITS[match[3]])
    return rates


def is_forwarded(request: HttpRequest) -> bool:
    """Whether the reverse proxy passed the request on: it always writes X-Forwarded-For."""
    return bool(request.headers.get("X-Forwarded-For")) or not _is_loopback(request.META.get("REMOTE_ADDR", ""))


def client_address(request: HttpRequest) -> str:
    """The address that a request comes from.

    The last entry of X-Forwarded-For, which our proxy has written; those before it were the client's to invent. The
    header is believed only of a proxy on this host: at a TCP port on loopback, or at a Unix socket (no address).
    """
    peer = request.META.get("REMOTE_ADDR", "")
    if not _is_loopback(peer):
        return peer
    last = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
    try:
        return str(ipaddress.ip_address(last))
    except ValueError:
        return peer or "127.0.0.1"


def client_network(address: str) -> str:
    """What is counted as one client: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)


def mailbox(address: str) -> str:
    """One name for the spellings of a mailbox: without case, blanks and the extension after a plus."""
    local, at, domain = address.strip().lower().rpartition("@")
    return local.partition("+")[0] + at + domain


def seconds_to_wait(request: HttpRequest, view: str) -> int:
    """Count a request to the view of that name; 0 when it may go on, else the seconds after which to come again."""
    wait = 0
    for action in ACTIONS:
        if view not in action.views or request.method not in action.methods:
            continue
        rates = read_limits(settings.ESTATE_RATE_LIMITS).get(action.name, {})
        # A client over its limit must not use up the target's.
        if "client" in rates:
            wait = _take(action.name, "client", client_network(client_address(request)), rates["client"])
        if wait or "target" not in rates:
            continue
        targets = {mailbox(request.POST.get(field, "")) for field in action.fields} - {""}
        wait = max([_take(action.name, "target", target, rates["target"]) for target in sorted(targets)], default=0)
    return wait


def _take(action: str, kind: str, whom: str, rate: Rate, now: float | None = None) -> int:
    now = time.time() if now is None else now
    window = int(now // rate.seconds)
    name = salted_hmac("mailman_estate_web.limits", f"{action}\0{kind}\0{whom}", algorithm="sha256").hexdigest()[:32]
    remaining = int((window + 1) * rate.seconds - now) + 1
    cache = caches["limits"]
    slots = [f"{name}:{window}:{slot}" for slot in range(rate.amount)]
    taken = cache.get_many(slots)
    for slot in slots:
        if slot not in taken and cache.add(slot, 1, remaining):
            return 0
    return remaining


def _is_loopback(address: str) -> bool:
    if not address:
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
