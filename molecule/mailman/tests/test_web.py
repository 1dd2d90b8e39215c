"""Our part of the web interface: one-click unsubscription, accounts of the single sign-on, rate limits, health."""

from __future__ import annotations

import base64
import json
import re
import time
from urllib.parse import urlencode

import pytest

WEB = "http://127.0.0.1:8000"
LIST, LIST_ID = "one.click@ml.example.org", "one.click.ml.example.org"
ANNA, BERT = "anna@example.com", "bert@example.net"
ONE_CLICK = "List-Unsubscribe=One-Click"
FORM = "application/x-www-form-urlencoded"

HTTP = """
import json, sys, urllib.error, urllib.request
class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None
answers = []
for asked in json.load(sys.stdin):
    body = asked["body"]
    request = urllib.request.Request(asked["url"], body.encode() if body is not None else None, asked["headers"],
                                     method=asked["method"])
    try:
        answer = urllib.request.build_opener(Stay).open(request, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    answers.append([answer.status, answer.headers.items(), answer.read().decode(errors="replace")])
print(json.dumps(answers))
"""

DJANGO = """
import json, sys
import django
django.setup()
from allauth.account.models import EmailAddress
from django.contrib.auth import get_user_model
from django.core.cache import caches
from django_mailman3.lib.mailman import get_mailman_client
User = get_user_model()
core = get_mailman_client()
given = json.load(sys.stdin)

def answer(what):
    print("\\x02" + json.dumps(what))

def user(name, email, verified, others=()):
    made = User.objects.create_user(name, email, "a long password of " + name)
    EmailAddress.objects.create(user=made, email=email, verified=verified, primary=True)
    for other, proved in others:
        EmailAddress.objects.create(user=made, email=other, verified=proved, primary=False)
    return made

def sign_in(claims, process="login"):
    import allauth
    from allauth.core import context
    from allauth.socialaccount.adapter import get_adapter
    from allauth.socialaccount.helpers import complete_social_login
    from django.contrib.auth.models import AnonymousUser
    from django.contrib.messages.storage.cookie import CookieStorage
    from django.contrib.sessions.backends.db import SessionStore
    from django.test import RequestFactory
    from types import SimpleNamespace
    request = RequestFactory().get("/accounts/oidc/sso/login/callback/", HTTP_HOST="ml.example.org",
                                   HTTP_X_FORWARDED_PROTO="https")
    request.session, request.user, request.allauth = SessionStore(), AnonymousUser(), SimpleNamespace()
    request._messages = CookieStorage(request)
    with context.request_context(request):
        provider = get_adapter(request).get_provider(request, "sso")
        login = provider.sociallogin_from_response(
            request, {"userinfo": claims, "id_token": {}} if allauth.VERSION[:2] >= (65, 11) else claims)
        login.state = {"process": process}
        complete_social_login(request, login)
    return request
"""

MEMBERS = """
from mailman_estate import one_click
from django.conf import settings
from urllib.error import HTTPError
address, list_id = given["list"], given["list_id"]
try:
    domain = core.get_domain("ml.example.org")
except HTTPError:
    domain = core.create_domain("ml.example.org")
try:
    mlist = core.get_list(list_id)
except HTTPError:
    mlist = domain.create_list(address.partition("@")[0])
mlist.settings.update({"send_welcome_message": False, "unsubscription_policy": "moderate"})
mlist.settings.save()
tokens = {}
for email in given["members"]:
    try:
        member = mlist.get_member(email)
    except (HTTPError, ValueError):
        mlist.subscribe(email, pre_verified=True, pre_confirmed=True, pre_approved=True)
        member = mlist.get_member(email)
    key = one_click.load_keys(settings.ESTATE_UNSUBSCRIBE_KEY_FILE)
    tokens[email] = one_click.make_token(key, list_id, member.member_id)
answer(tokens)
"""

PEOPLE = """
for name in given["names"]:
    User.objects.filter(username__startswith=name).delete()
EmailAddress.objects.filter(email__in=given["addresses"]).delete()
User.objects.filter(email__in=given["addresses"]).delete()
caches["default"].clear()
for address in given["addresses"]:
    try:
        core.get_user(address).delete()
    except Exception as error:
        if getattr(error, "code", None) != 404:
            raise
"""


def python(host):
    """The interpreter of the web interface, of either backend."""
    own = "/opt/mailman/web/bin/python"
    return own if host.file(own).exists else "/usr/bin/python3"


def run(host, code, given):
    """What a program prints that runs as the web interface does."""
    stdin, program = (base64.b64encode(text.encode()).decode() for text in (json.dumps(given), code))
    done = host.run(
        f"echo {stdin} | base64 -d | runuser -u mailmanweb -- env -C / PYTHONPATH=/etc/mailman3:/usr/local/lib/"
        f"mailman-estate DJANGO_SETTINGS_MODULE=settings PYTHONDONTWRITEBYTECODE=1 {python(host)} -c "
        f'"$(echo {program} | base64 -d)"'
    )
    assert done.rc == 0, done.stderr[-2000:]
    return done.stdout


def django(host, code, **given):
    """What a program answers that runs with the site's settings and database."""
    return json.loads(run(host, DJANGO + code, given).rpartition("\x02")[2] or "null")


def ask(host, *asked):
    """Answers as (status, header fields, text); each asked is (method, path, body, header fields)."""
    requests = [
        {
            "method": method,
            "url": WEB + path,
            "body": body,
            "headers": {"Host": "ml.example.org", "X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"} | more,
        }
        for method, path, body, more in asked
    ]
    answers = json.loads(run(host, HTTP, requests))
    return [(status, {name.lower(): value for name, value in fields}, text) for status, fields, text in answers]


def post(host, token, body=ONE_CLICK, kind=FORM, **more):
    """The answer to a mail system's POST."""
    return ask(host, ("POST", f"/unsubscribe/{token}", body, {"Content-Type": kind} | more))[0]


def get(host, path, method="GET", **more):
    """The answer to a browser."""
    return ask(host, (method, path, None, more))[0]


def subscribed(host):
    """Addresses of the list's members."""
    return set(django(host, f'answer([m.email for m in core.get_list("{LIST_ID}").members])'))


@pytest.fixture
def tokens(host):
    """Anna and Bert are members of a list whose owners must agree before anybody leaves; token by address."""
    return django(host, MEMBERS, list=LIST, list_id=LIST_ID, members=[ANNA, BERT])


# --- one-click unsubscription


@pytest.mark.parametrize("kind", [FORM, "multipart/form-data"])
def test_post_ends_exactly_that_membership_at_once(host, tokens, kind):
    body = ONE_CLICK
    if kind != FORM:
        body = f'--x\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\n{"One-Click"}\r\n--x--\r\n'
        kind += "; boundary=x"
    status, fields, text = post(host, tokens[ANNA], body, kind)
    assert (status, "unsubscribed" in text) == (200, True), text
    assert not {"set-cookie", "location"} & set(fields)
    assert "noindex" in fields["x-robots-tag"]
    assert subscribed(host) == {BERT}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_link_checker_unsubscribes_nobody(host, tokens, method):
    status, fields, _ = get(host, f"/unsubscribe/{tokens[ANNA]}", method)
    assert status == 200
    assert "set-cookie" not in fields
    assert subscribed(host) == {ANNA, BERT}


@pytest.mark.parametrize(
    ("language", "button"), [("en", "Unsubscribe"), ("ja", "登録を解除する"), ("fr", "Unsubscribe")]
)
def test_page_has_a_button_in_the_readers_language_and_it_works(host, tokens, language, button):
    page = get(host, f"/unsubscribe/{tokens[ANNA]}", **{"Accept-Language": language})[2]
    assert f">{button}</button>" in page
    assert LIST in page
    assert ANNA not in page
    fields = "&".join("=".join(pair) for pair in re.findall(r'name="([\w-]+)" value="([\w-]+)"', page))
    assert post(host, tokens[ANNA], fields)[1]["content-type"].startswith("text/html")
    assert subscribed(host) == {BERT}


def test_old_token_cannot_end_a_new_membership(host, tokens):
    post(host, tokens[ANNA])
    assert get(host, f"/unsubscribe/{tokens[ANNA]}")[0] == 410
    new = django(host, MEMBERS, list=LIST, list_id=LIST_ID, members=[ANNA])
    assert new[ANNA] != tokens[ANNA]
    status, _, text = post(host, tokens[ANNA])
    assert (status, "already ended" in text) == (200, True)
    assert subscribed(host) == {ANNA, BERT}


@pytest.mark.parametrize(
    "mangle",
    [lambda t: t[:-1] + ("A" if t[-1] != "A" else "B"), lambda t: t[:-3], lambda t: t.swapcase(), lambda t: "x" * 80],
)
def test_forged_token_is_refused(host, tokens, mangle):
    for status, *_ in (post(host, mangle(tokens[ANNA])), get(host, f"/unsubscribe/{mangle(tokens[ANNA])}")):
        assert status == 404
    assert subscribed(host) == {ANNA, BERT}


@pytest.mark.parametrize("body", ["", "List-Unsubscribe=Two-Click", "x=y", ONE_CLICK + "&" + ONE_CLICK])
def test_another_post_changes_nothing(host, tokens, body):
    assert post(host, tokens[ANNA], body)[0] == 400
    assert subscribed(host) == {ANNA, BERT}


def test_while_core_is_down_the_mail_system_is_told_to_come_again(host, tokens):
    host.run("systemctl stop mailman3.service")
    try:
        status, fields, _ = post(host, tokens[ANNA])
    finally:
        host.run("systemctl start mailman3.service")
    assert (status, int(fields["retry-after"]) > 0) == (503, True)
    end = time.monotonic() + 120
    while get(host, f"/unsubscribe/{tokens[ANNA]}")[0] == 503:
        assert time.monotonic() < end, "core does not come back"
        time.sleep(2)
    assert subscribed(host) == {ANNA, BERT}


def test_log_names_neither_member_nor_token(host, tokens):
    post(host, tokens[ANNA], "refused")
    assert get(host, f"/unsubscribe/{tokens[ANNA]}", "PUT")[0] == 405
    post(host, tokens[ANNA])
    get(host, f"/unsubscribe/{tokens[ANNA]}")
    log = host.check_output("journalctl -u mailman-web.service --since=-5min --no-pager")
    assert f"one-click unsubscription from {LIST_ID}" in log
    assert ANNA not in log
    assert tokens[ANNA] not in log


# --- what is open to whom


def test_first_page_is_that_of_the_lists(host):
    status, fields, _ = get(host, "/")
    assert (status, fields["location"]) == (302, "/mailman3/lists/")


def test_health_is_told_on_this_host_only(host):
    assert get(host, "/health")[0] == 404
    status, _, text = ask(host, ("GET", "/health", None, {"X-Forwarded-For": ""}))[0]
    assert (status, set(json.loads(text).values())) == (200, {"ok"}), text


@pytest.mark.parametrize("path", ["/archives/api/mailman/urls", "/archives/api/mailman/archive"])
def test_interface_of_the_archive_is_not_there_for_the_proxy(host, path):
    assert get(host, path)[0] == 404
    assert ask(host, ("GET", path, None, {"X-Forwarded-For": ""}))[0][0] != 404


def test_administration_asks_for_the_common_log_in(host):
    status, fields, _ = get(host, "/admin/login/?next=/admin/")
    assert (status, fields["location"].startswith("/accounts/login/")) == (302, True)


@pytest.mark.parametrize("elsewhere", ["https://example.com/", "//example.com/", "/\\example.com"])
def test_log_in_leads_to_no_other_site(host, elsewhere):
    django(host, PEOPLE + 'user("hana", "hana@example.org", True)\ncaches["limits"].clear()',
           names=["hana"], addresses=["hana@example.org"])  # fmt: skip
    filled = {"login": "hana", "password": "a long password of hana", "next": elsewhere}
    status, fields, _ = forms(host, "/accounts/login/", ("192.0.2.1", filled))[0]
    assert (status, "example.com" in fields["location"]) == (302, False)


def test_log_in_leads_to_the_provider_whose_certificate_is_of_a_private_authority(host):
    status, fields, text = get(host, "/accounts/oidc/sso/login/")
    assert status == 302, text
    assert fields["location"].startswith("https://sso.example.org/auth?")
    assert "client_id=mailman" in fields["location"]


@pytest.fixture(params=["away", "somebody else"])
def broken_provider(host, request):
    """A provider to which no way leads, and one whose certificate our authority has not signed."""
    if request.param == "away":
        first, last = "ip route add unreachable 198.18.25.113", "ip route del unreachable 198.18.25.113"
    else:
        kept, used = "/etc/mailman3/oidc-ca.kept", "/etc/mailman3/oidc-ca.pem"
        first = f"mv {used} {kept} && cp /etc/ssl/certs/ISRG_Root_X1.pem {used} && chmod 0644 {used}"
        last = f"mv {kept} {used}"
    assert host.run(first).rc == 0
    yield
    assert host.run(last).rc == 0


@pytest.mark.usefixtures("broken_provider")
def test_provider_that_does_not_answer_is_a_page_not_an_error(host):
    status, fields, text = get(host, "/accounts/oidc/sso/login/")
    assert (status, "does not answer" in text, int(fields["retry-after"]) > 0) == (503, True, True)


# --- rate limits


def forms(host, path, *filled):
    """Answers to a form that is sent again and again; each filled is (X-Forwarded-For, fields)."""
    _, headers, text = get(host, path if "anonymous" not in path else f"/mailman3/lists/{LIST_ID}/")
    secret = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', text)[1]
    cookie = re.search(r"csrftoken=(\w+)", headers["set-cookie"])[1]
    more = {"Cookie": f"csrftoken={cookie}", "Referer": "https://ml.example.org/", "Content-Type": FORM}
    asked = [
        ("POST", path, urlencode(fields | {"csrfmiddlewaretoken": secret}), more | {"X-Forwarded-For": forwarded})
        for forwarded, fields in filled
    ]
    return ask(host, *asked)


def refused(host, path, most, attempt, last):
    """The first answer with 429 to ``attempt(n)``, which must come, but not before the limit; then to ``last``.

    A window of time may end on the way, hence twice as many attempts as the limit allows.
    """
    django(host, 'caches["limits"].clear()')
    *answers, after = forms(host, path, *[attempt(n) for n in range(2 * most + 1)], last)
    states = [status for status, *_ in answers]
    assert 429 in states, "nobody was refused"
    assert states.index(429) >= most
    assert set(states) <= {200, 302, 429}
    assert after[0] in (200, 302), "others are let through"
    return answers[states.index(429)]


def test_password_of_an_account_cannot_be_tried_from_many_machines(host):
    _, fields, text = refused(
        host,
        "/accounts/login/",
        10,
        lambda n: (f"198.51.100.{n}", {"login": "Olga ", "password": f"guess {n}"}),
        ("198.51.100.1", {"login": "somebody-else", "password": "x"}),
    )
    assert 0 < int(fields["retry-after"]) <= 601
    assert "Please try again" in text


def test_stranger_is_not_flooded_with_confirmations(host, tokens):
    refused(
        host,
        f"/mailman3/lists/{LIST_ID}/anonymous_subscribe",
        5,
        lambda n: (f"198.51.100.{n}", {"email": f"Victim+{n}@example.com", "display_name": ""}),
        ("198.51.100.1", {"email": "other@example.com", "display_name": ""}),
    )


def test_client_cannot_invent_addresses_to_come_from(host):
    refused(
        host,
        "/accounts/password/reset/",
        20,
        lambda n: (f"192.0.2.{n}, 2001:db8::{n:x}", {"email": f"p{n}@example.com"}),
        ("192.0.2.1, 2001:db8:0:1::1", {"email": "q@example.com"}),
    )


# --- accounts of the single sign-on: what the provider says is given to the code that hears it


def signed_in(host, code, *names, **given):
    """What the code answers, after the people of these names were forgotten."""
    given = {"names": names, "addresses": [f"{name}@example.org" for name in names]} | given
    return django(host, PEOPLE + code, **given)


@pytest.mark.parametrize(
    ("verified", "proved_here", "same"),
    [(True, True, True), (False, True, False), ("true", True, False), (None, True, False), (True, False, False)],
)
def test_address_opens_an_account_only_if_both_sides_proved_it(host, verified, proved_here, same):
    answer = signed_in(
        host,
        """
owner = user("jiro", "jiro@example.org", given["proved_here"])
request = sign_in({"sub": "sso-jiro", "preferred_username": "sso-jiro", "email": "jiro@example.org",
                   "email_verified": given["verified"]})
answer([request.user.is_authenticated, request.user.pk == owner.pk,
        list(EmailAddress.objects.filter(email="jiro@example.org").values_list("user__username", "verified"))])
""",
        *("jiro", "sso-jiro"),
        verified=verified,
        proved_here=proved_here,
    )
    assert answer[1] is same
    if verified is True and not proved_here:
        assert answer == [True, False, [["sso-jiro", True]]], "who has proved the address has it"
    elif not same:
        assert answer == [False, False, [["jiro", True]]], "nobody comes in by saying so"


def test_administrator_is_who_is_in_the_group_at_the_last_sign_in(host):
    answer = signed_in(
        host,
        """
claims = {"sub": "kenji", "preferred_username": "kenji", "email": "kenji@example.org", "email_verified": True}
seen = []
for groups in (["mail-admins"], ["members"], "mail-admins", ["mail-admins-emeriti"], None, ["mail-admins"]):
    request = sign_in(claims | {"groups": groups})
    now = User.objects.get(username="kenji")
    seen.append([now.is_superuser, now.is_staff])
seen.append(request.session.get_expiry_age() <= 12 * 3600)
from allauth.account.signals import user_logged_in
user_logged_in.send(User, request=request, user=now)                 # with a password, as allauth tells it
seen.append(User.objects.get(username="kenji").is_superuser)
answer(seen)
""",
        "kenji",
    )
    no, yes = [False, False], [True, True]
    assert answer == [yes, no, yes, no, no, yes, True, False]


def test_administrator_of_the_site_stays_one_without_the_group(host):
    answer = django(
        host,
        """
sign_in({"sub": "olga", "preferred_username": "olga", "email": "olga@example.org", "email_verified": True,
         "groups": []})
answer(list(User.objects.filter(username="olga").values_list("is_superuser", "socialaccount__uid")))
""",
    )
    assert answer == [[True, "olga"]]


def test_strangers_address_in_an_account_gives_nothing_of_the_stranger(host, tokens):
    answer = signed_in(
        host,
        """
from allauth.account.signals import user_logged_in
owner = core.get_user(given["victim"])
thief = user("mallory", "mallory@example.org", True, [(given["victim"], False)])
for _ in range(2):
    user_logged_in.send(User, request=None, user=thief)
answer([core.get_user(given["victim"]).user_id == owner.user_id,
        [str(address) for address in core.get_user("mallory@example.org").addresses],
        EmailAddress.objects.get(user=thief, email=given["victim"]).verified])
""",
        "mallory",
        victim=BERT,
    )
    assert answer == [True, ["mallory@example.org"], False]


def test_several_proved_addresses_are_one_person_in_mailman(host):
    answer = signed_in(
        host,
        """
from allauth.account.signals import user_logged_in
person = user("yuki", "yuki@example.org", True, [("yuki2@example.org", True)])
user_logged_in.send(User, request=None, user=person)
found = core.get_user("yuki@example.org")
answer([core.get_user("yuki2@example.org").user_id == found.user_id, all(a.verified for a in found.addresses)])
""",
        *("yuki", "yuki2"),
    )
    assert answer == [True, True]


def test_unproved_name_renames_nobody_in_mailman(host):
    answer = signed_in(
        host,
        """
core.create_user("rin@example.org", "", display_name="Rin").addresses[0].verify()
User.objects.create(username="mallory", email="rin@example.org", first_name="Mallory")
answer(core.get_user("rin@example.org").display_name)
""",
        *("rin", "mallory"),
    )
    assert answer == "Rin"
