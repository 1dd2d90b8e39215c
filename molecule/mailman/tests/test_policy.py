"""Whose From is rewritten, who may become a member, and whole rosters at once: a running Mailman, asked as people do.

Posts and commands come in by LMTP. What Mailman sends goes to a mail server of this test's own, and what it asks the
DNS to a small DNS of this test's own: mailman.cfg and estate.cfg point there for the time of these tests.
"""

from __future__ import annotations

import base64
import email
import email.policy
import json
import shlex
import time
import uuid
from collections.abc import Callable, Iterator
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import parseaddr
from typing import Any

import pytest

HOST = "ml.example.org"
DOMAIN = "policy.example.org"
SECONDS = 60

# Domain → TXT records at _dmarc.<domain>
DNS = {
    "reject.example.com": ["v=DMARC1; p=reject"],
    "quarantine.example.com": ["v=DMARC1; p=quarantine"],
    "none.example.com": ["v=DMARC1; p=none; rua=mailto:d@none.example.com"],
    "testing.example.com": ["v=DMARC1; p=quarantine; t=y"],
    "sp.example.com": ["v=DMARC1; p=none; sp=reject; psd=n"],
    "np.example.com": ["v=DMARC1; p=none; sp=none; np=reject; psd=n"],
    "double.example.com": ["v=DMARC1; p=reject", "v=DMARC1; p=quarantine"],
    "broken.example.com": ["v=DMARC1; p=refuse"],
    "suffix.example.com": ["v=DMARC1; p=reject; psd=y"],
}
EXISTING = ("there.sp.example.com", "there.np.example.com", "org.suffix.example.com")
UNANSWERED = "dead.example.net"

TOOL = r'''
"""The test's hands on the host: REST calls, LMTP, and a mail server that keeps what it gets."""
import base64, concurrent.futures, json, os, re, smtplib, sys, time, urllib.error, urllib.request, uuid

DIRECTORY = "/var/tmp/policy-sink"

def rest(method, path, body):
    config = open("/etc/mailman3/mailman.cfg", encoding="utf-8").read()
    password = re.search(r"^admin_pass\s*[:=]\s*(\S+)", config, re.M).group(1)
    user = re.search(r"^admin_user\s*[:=]\s*(\S+)", config, re.M).group(1)
    request = urllib.request.Request("http://127.0.0.1:8001/3.1/" + path, method=method)
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    request.add_header("Authorization", "Basic " + token)
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    try:
        return {"status": status, "body": json.loads(text)}
    except ValueError:
        return {"status": status, "body": text}

def main():
    if sys.argv[1] == "sink":
        from aiosmtpd.controller import Controller
        os.makedirs(DIRECTORY, exist_ok=True)
        class Keep:
            async def handle_DATA(self, server, session, envelope):
                kept = {"to": envelope.rcpt_tos, "data": base64.b64encode(envelope.content).decode()}
                name = os.path.join(DIRECTORY, f"{time.time():.6f}-{uuid.uuid4().hex}")
                with open(name + ".new", "w") as file:
                    json.dump(kept, file)
                os.rename(name + ".new", name)
                return "250 kept"
        Controller(Keep(), hostname="127.0.0.1", port=10099).start()
        while True:
            time.sleep(60)
    given = json.loads(base64.b64decode(sys.argv[2]))
    if sys.argv[1] == "rest":
        print(json.dumps([rest(*call) for call in given]))
    elif sys.argv[1] == "parallel":
        with concurrent.futures.ThreadPoolExecutor(len(given)) as pool:
            print(json.dumps(list(pool.map(lambda call: rest(*call), given))))
    elif sys.argv[1] == "lmtp":
        with smtplib.LMTP("127.0.0.1", 8024, timeout=30) as server:
            for sender, recipient, message in given:
                server.sendmail(sender, [recipient], base64.b64decode(message))
    elif sys.argv[1] == "mails":
        names = sorted(name for name in os.listdir(DIRECTORY) if not name.endswith(".new"))
        print(json.dumps([json.load(open(os.path.join(DIRECTORY, name))) for name in names]))

main()
'''


def received(octets: bytes) -> EmailMessage:
    """A message, and in ``octets`` what came: Python writes long fields anew when it is asked for a message's text."""
    message = email.message_from_bytes(octets, policy=email.policy.default)
    message.octets = octets
    return message


class Mailman:
    """The Mailman under test."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.shunted = 0
        venv = "/opt/mailman/core/bin/python"
        self.python = venv if host.file(venv).exists else "/usr/bin/python3"

    def tool(self, command: str, given: Any = None) -> Any:
        argument = base64.b64encode(json.dumps(given).encode()).decode()
        done = self.host.run(f"{self.python} /var/tmp/policy_tool.py {command} {argument}")
        assert done.rc == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    def rest(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        answer = self.tool("rest", [[method, path, body]])[0]
        return answer["status"], answer["body"]

    def hand_in(self, *messages: tuple[str, str, bytes]) -> None:
        """Envelope sender, recipient and text of each."""
        self.tool("lmtp", [[*ends, base64.b64encode(text).decode()] for *ends, text in messages])

    def mails(self) -> list[tuple[list[str], EmailMessage]]:
        """Recipients and messages that Mailman has sent so far."""
        return [(mail["to"], received(base64.b64decode(mail["data"]))) for mail in self.tool("mails")]

    def wait_for(self, wanted: Callable[[list[str], EmailMessage], bool], count: int = 1) -> list[EmailMessage]:
        deadline = time.monotonic() + SECONDS
        while True:
            found = [message for to, message in self.mails() if wanted(to, message)]
            if len(found) >= count:
                return found
            if time.monotonic() > deadline:
                log = self.host.run("tail -n 30 /var/log/mailman3/*.log /var/log/mailman3/*/*.log 2>&1").stdout
                pytest.fail(f"{len(found)} of {count} messages came within {SECONDS} s\n{log}")
            time.sleep(1)

    def make_list(self, name: str, **settings: Any) -> str:
        """A list of this name as if new; its list-id."""
        self.rest("DELETE", f"lists/{name}@{DOMAIN}")
        status, body = self.rest("POST", "lists", {"fqdn_listname": f"{name}@{DOMAIN}"})
        assert status == 201, body
        settings = {"display_name": name.title(), "send_welcome_message": False, **settings}
        status, body = self.rest("PATCH", f"lists/{name}.{DOMAIN}/config", settings)
        assert status == 204, body
        return f"{name}.{DOMAIN}"

    def members(self, list_id: str, role: str = "member") -> list[str]:
        status, body = self.rest("GET", f"plugins/estate/lists/{list_id}/roster?role={role}")
        assert status == 200, body
        return [entry["email"] for entry in body["entries"]]

    def restart(self) -> None:
        assert self.host.run("systemctl restart mailman3.service").rc == 0
        probe = "import socket; [socket.create_connection(('127.0.0.1', port), 1) for port in (8001, 8024)]"
        for _ in range(60):
            if self.host.run(f"python3 -c {shlex.quote(probe)}").rc == 0:
                return
            time.sleep(1)
        pytest.fail(self.host.run("journalctl -u mailman3.service -n 50 --no-pager").stdout)


@pytest.fixture(scope="module")
def mailman(host: Any) -> Iterator[Mailman]:
    mailman = Mailman(host)
    tool = base64.b64encode(TOOL.encode()).decode()
    host.run_expect([0], f"echo {tool} | base64 -d > /var/tmp/policy_tool.py; rm -rf /var/tmp/policy-sink")
    host.run_expect([0], "test -x /usr/sbin/dnsmasq || DEBIAN_FRONTEND=noninteractive apt-get -qy install dnsmasq-base")
    records = [f"--txt-record=_dmarc.{name},{shlex.quote(text)}" for name, texts in DNS.items() for text in texts]
    hosts = [f"--host-record={name},192.0.2.1" for name in (*DNS, *EXISTING)]
    unanswered = f"--server=/{UNANSWERED}/192.0.2.254"
    host.run_expect(
        [0],
        "systemctl stop policy-dns policy-sink 2>/dev/null; systemctl reset-failed policy-dns policy-sink 2>/dev/null; "
        "systemd-run -q --unit policy-dns dnsmasq --no-daemon --conf-file=/dev/null --no-resolv --no-hosts"
        f" --bind-interfaces --listen-address=127.0.0.153 {unanswered} --local=/#/ "
        + " ".join(records + hosts)
        + f" && systemd-run -q --unit policy-sink {mailman.python} /var/tmp/policy_tool.py sink",
    )
    for name in ("mailman.cfg", "estate.cfg"):
        host.run_expect([0], f"cp -p /etc/mailman3/{name} /var/tmp/policy-{name}")
    try:
        host.run_expect([0], "sed -i -E 's/^smtp_port.*/smtp_port: 10099/' /etc/mailman3/mailman.cfg")
        host.run_expect([0], "sed -i -E '/^resolver/d' /etc/mailman3/estate.cfg")
        host.run_expect([0], "sed -i '/^\\[estate\\]/a resolver = 127.0.0.153' /etc/mailman3/estate.cfg")
        mailman.restart()
        mailman.rest("POST", "domains", {"mail_host": DOMAIN})
        mailman.shunted = mailman.rest("GET", "queues/shunt")[1]["count"]
        yield mailman
        mailman.rest("DELETE", f"domains/{DOMAIN}")
    finally:
        for name in ("mailman.cfg", "estate.cfg"):
            host.run(f"cp -p /var/tmp/policy-{name} /etc/mailman3/{name}")
        host.run("systemctl stop policy-dns policy-sink")
        mailman.restart()


def post(author: str, to: str, subject: str = "Post", body: str = "Good morning.\n", **fields: str) -> bytes:
    """A post; ``author`` as it stands in From."""
    head = {"From": author, "To": to, "Subject": subject, "Message-ID": f"<{uuid.uuid4()}@test.example>", **fields}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in head.items() if value]
    return ("\n".join(lines) + "\n\n" + body).encode("utf-8", "surrogateescape")


def by_subject(subject: str, reader: str | None = None) -> Callable[[list[str], EmailMessage], bool]:
    return lambda to, message: subject in str(message["subject"]) and (reader is None or reader in to)


# -------------------------------------------------------------------------------------------------------- whose From

POLICIES = [
    ("reject.example.com", True, "p=reject"),
    ("quarantine.example.com", True, "p=quarantine"),
    ("none.example.com", False, "p=none"),
    ("nothing.example.edu", False, "no record"),
    ("testing.example.com", True, "in test mode: to see what lists do"),
    ("there.sp.example.com", True, "sp of the organizational domain"),
    ("a.b.c.d.e.f.g.h.there.sp.example.com", True, "found by the tree walk, nine labels up"),
    ("there.np.example.com", False, "np, and the domain exists"),
    ("gone.np.example.com", True, "np, and the domain does not exist"),
    ("double.example.com", False, "two records are none"),
    ("broken.example.com", False, "a record without a policy and without rua"),
    ("www.org.suffix.example.com", True, "below a public suffix, psd=y"),
    (f"www.{UNANSWERED}", True, "no answer: better rewritten than lost"),
]


@pytest.fixture(scope="module")
def posts(mailman: Mailman) -> dict[str, EmailMessage]:
    """What a reader gets of a post from each domain, by domain; and how long it took."""
    settings = {"default_nonmember_action": "accept", "dmarc_mitigate_action": "munge_from"}
    list_id = mailman.make_list("munging", **settings)
    mailman.rest("POST", f"plugins/estate/lists/{list_id}/roster", {"add": [{"email": "reader@example.net"}]})
    to = f"munging@{DOMAIN}"
    mailman.hand_in(
        *((f"taro@{domain}", to, post(f"Taro <taro@{domain}>", to, f"from {domain}.")) for domain, *_ in POLICIES)
    )
    found = mailman.wait_for(lambda to, message: "reader@example.net" in to, len(POLICIES))
    return {str(message["subject"]).rpartition("from ")[2].rstrip("."): message for message in found}


@pytest.mark.parametrize(("domain", "rewritten", "why"), POLICIES, ids=[why for *_, why in POLICIES])
def test_from_is_rewritten_where_the_authors_domain_asks_for_it(posts, domain, rewritten, why):
    message = posts[domain]
    (author,) = message["from"].addresses
    if rewritten:
        assert (author.addr_spec, author.display_name) == (f"munging@{DOMAIN}", "Taro via Munging")
        assert [address.addr_spec for address in message["reply-to"].addresses] == [f"taro@{domain}"]
    else:
        assert (author.addr_spec, author.display_name) == (f"taro@{domain}", "Taro")
        assert message["reply-to"] is None


LONG = "長い名前" * 20
NAMES = {
    "plain": ("山田太郎", "=?utf-8?b?5bGx55Sw5aSq6YOO?= <n@reject.example.com>"),
    "iso-2022-jp": ("山田", "=?iso-2022-jp?B?GyRCOzNFRBsoQg==?= <n@reject.example.com>"),
    "outside of the list's character set": ("Zoë 😀", "=?utf-8?b?Wm/DqyDwn5iA?= <n@reject.example.com>"),
    "unknown character set": ("ABC", "=?x-nobody?b?QUJD?= <n@reject.example.com>"),
    "a line break in an encoded word": ("a Bcc: x@y", "=?utf-8?b?YQpCY2M6IHhAeQ==?= <n@reject.example.com>"),
    "long": (
        "長い名前" * 20,
        f"=?utf-8?b?{base64.b64encode(('長い名前' * 20).encode()).decode()}?= <n@reject.example.com>",
    ),
    "raw UTF-8": (None, "山田 <n@reject.example.com>"),
    "broken base64": (None, "=?utf-8?b?QQ=A?= <n@reject.example.com>"),
    "two authors": (None, "A <n@reject.example.com>, B <m@none.example.com>"),
}


@pytest.fixture(scope="module", params=["en", "ja"])
def names(mailman: Mailman, request: pytest.FixtureRequest) -> dict[str, EmailMessage]:
    """What a reader of a list in this language gets of posts with difficult names, by the kind of name."""
    language = request.param
    list_id = mailman.make_list(
        f"names-{language}",
        default_nonmember_action="accept",
        dmarc_mitigate_action="munge_from",
        preferred_language=language,
        subject_prefix="",
    )
    reader = f"reader-{language}@example.net"
    mailman.rest("POST", f"plugins/estate/lists/{list_id}/roster", {"add": [{"email": reader}]})
    to = f"names-{language}@{DOMAIN}"
    kinds = list(NAMES)
    mailman.hand_in(
        *(
            ("n@reject.example.com", to, post(NAMES[kind][1], to, f"name {number}."))
            for number, kind in enumerate(kinds)
        )
    )
    found = mailman.wait_for(lambda to, message: reader in to, len(kinds))
    return {kinds[int(str(message["subject"]).strip(".").split()[-1])]: message for message in found}


def shown_name(message: EmailMessage) -> str:
    """The author's name as RFC 2047 has it read (`EmailMessage` puts blanks between the words of a long one)."""
    raw = email.message_from_bytes(message.octets, policy=email.policy.compat32)["from"]
    return str(make_header(decode_header(parseaddr(raw)[0])))


@pytest.mark.parametrize("kind", NAMES)
def test_rewritten_from_shows_the_authors_name_and_no_name_stops_a_post(names, kind):
    message = names[kind]
    (author,) = message["from"].addresses
    assert author.domain == DOMAIN
    expected = NAMES[kind][0]
    if expected is not None:
        assert shown_name(message).startswith(expected + " ")
    assert message["bcc"] is None
    raw = message.octets.partition(b"\r\n\r\n")[0]
    assert all(len(line) <= 998 for line in raw.splitlines())
    words = [word for word in raw.split() if word.startswith(b"=?")]
    assert all(len(word) <= 75 for word in words if b"=?utf-8?" in word), words


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("transparent", {"dmarc_mitigate_action": "no_mitigation", "subject_prefix": ""}),
        ("anonymous", {"dmarc_mitigate_action": "munge_from", "anonymous_list": True}),
    ],
)
def test_lists_without_rewriting_are_left_alone(mailman, name, settings):
    list_id = mailman.make_list(name, default_nonmember_action="accept", **settings)
    mailman.rest("POST", f"plugins/estate/lists/{list_id}/roster", {"add": [{"email": f"reader@{name}.example.net"}]})
    to = f"{name}@{DOMAIN}"
    mailman.hand_in(("taro@reject.example.com", to, post("Taro <taro@reject.example.com>", to, f"untouched {name}")))
    (message,) = mailman.wait_for(by_subject(f"untouched {name}"))
    (author,) = message["from"].addresses
    assert "via" not in author.display_name
    assert author.addr_spec == ("taro@reject.example.com" if name == "transparent" else to)


def test_replies_go_where_stock_mailman_sends_them(mailman):
    list_id = mailman.make_list(
        "replies", default_nonmember_action="accept", dmarc_mitigate_action="munge_from",
        reply_goes_to_list="point_to_list",
    )  # fmt: skip
    mailman.rest("POST", f"plugins/estate/lists/{list_id}/roster", {"add": [{"email": "reader@replies.example.net"}]})
    to = f"replies@{DOMAIN}"
    message = post("Taro <taro@reject.example.com>", to, "reply here", Cc="Jiro <jiro@example.edu>")
    mailman.hand_in(("taro@reject.example.com", to, message))
    (found,) = mailman.wait_for(by_subject("reply here"))
    copied = [address.addr_spec for address in found["cc"].addresses]
    assert copied == ["jiro@example.edu", "taro@reject.example.com"]
    assert [address.addr_spec for address in found["reply-to"].addresses] == [to]


@pytest.mark.parametrize(
    "subject",
    ["=?utf-8?b?QQ=A?=", "=?x-nobody?b?QUJD?=", "=?iso-2022-jp?b?GyRCMDEyGyhC/w==?=", "=?utf-8?b?/w==?=", "生の件名"],
    ids=["broken base64", "unknown character set", "stray escapes", "wrong character set", "raw UTF-8"],
)
@pytest.mark.parametrize("language", ["en", "ja"])
def test_no_subject_stops_a_post(mailman, subject, language):
    name = f"subject-{language}-{uuid.uuid4().hex[:8]}"
    list_id = mailman.make_list(name, default_nonmember_action="accept", preferred_language=language)
    mailman.rest("POST", f"plugins/estate/lists/{list_id}/roster", {"add": [{"email": f"{name}@example.net"}]})
    to = f"{name}@{DOMAIN}"
    mailman.hand_in(("taro@none.example.com", to, post("Taro <taro@none.example.com>", to, subject)))
    (message,) = mailman.wait_for(lambda to, message: f"{name}@example.net" in to)
    assert str(message["subject"]).lower().startswith(f"[{name}] ")


# ----------------------------------------------------------------------------------------------------- who may come in

SENTENCE = "Only people of {domains}: {address} is not, so not on {list}."


def sentence(address: str, list_id: str) -> str:
    return f"Only people of example.org: {address} is not, so not on {list_id.replace('.', '@', 1)}."


@pytest.fixture
def closed(mailman: Mailman) -> str:
    """A list for members of example.org only."""
    name = f"closed-{uuid.uuid4().hex[:8]}"
    list_id = mailman.make_list(name, subscription_policy="confirm", default_nonmember_action="accept")
    path = f"plugins/estate/lists/{list_id}/member-domains"
    status, body = mailman.rest("PUT", path, {"domains": ["Example.ORG"], "sentence": SENTENCE})
    assert status == 204, body
    return list_id


def unfolded(message: EmailMessage) -> str:
    return " ".join(message.get_body().get_content().split())


@pytest.mark.parametrize("door", ["join@", "subscribe@", "request@ subscribe", "request@ join address="])
def test_outsider_is_refused_by_mail_with_the_reason(mailman, closed, door):
    name, _, host = closed.partition(".")
    outsider = f"eve-{uuid.uuid4().hex[:8]}@example.com"
    suffix, _, command = door.partition("@ ")
    to = f"{name}-{suffix.rstrip('@')}@{host}"
    if command.endswith("="):
        command += outsider
    mailman.hand_in((outsider, to, post(f"Eve <{outsider}>", to, command or "hello")))
    (answer,) = mailman.wait_for(lambda to, message: outsider in to)
    assert sentence(outsider, closed) in unfolded(answer)
    assert mailman.members(closed) == []


def test_insider_comes_in_by_mail(mailman, closed):
    name, _, host = closed.partition(".")
    insider = f"taro-{uuid.uuid4().hex[:8]}@example.org"
    mailman.hand_in((insider, f"{name}-join@{host}", post(f"Taro <{insider}>", f"{name}-join@{host}")))
    (question,) = mailman.wait_for(lambda to, message: insider in to)
    confirm = question["from"].addresses[0].addr_spec
    assert confirm.startswith(f"{name}-confirm+")
    mailman.hand_in((insider, confirm, post(f"Taro <{insider}>", confirm, f"Re: {question['subject']}")))
    deadline = time.monotonic() + SECONDS
    while mailman.members(closed) != [insider] and time.monotonic() < deadline:
        time.sleep(1)
    assert mailman.members(closed) == [insider]


def test_request_from_before_the_rule_is_refused_when_confirmed(mailman, closed):
    name, _, host = closed.partition(".")
    outsider = f"eve-{uuid.uuid4().hex[:8]}@example.com"
    rule = f"plugins/estate/lists/{closed}/member-domains"
    assert mailman.rest("DELETE", rule)[0] == 204
    mailman.hand_in((outsider, f"{name}-join@{host}", post(f"Eve <{outsider}>", f"{name}-join@{host}")))
    (question,) = mailman.wait_for(lambda to, message: outsider in to)
    assert mailman.rest("PUT", rule, {"domains": ["example.org"], "sentence": SENTENCE})[0] == 204
    confirm = question["from"].addresses[0].addr_spec
    mailman.hand_in((outsider, confirm, post(f"Eve <{outsider}>", confirm, "Re: confirm")))
    answers = mailman.wait_for(lambda to, message: outsider in to, 2)
    assert any(sentence(outsider, closed) in unfolded(answer) for answer in answers)
    assert mailman.members(closed) == []


@pytest.mark.parametrize("how", ["subscribing", "mass subscribing", "invitation"])
def test_outsider_is_refused_by_rest_with_the_reason(mailman, closed, how):
    flags = {
        "subscribing": {},
        "mass subscribing": {"pre_verified": True, "pre_confirmed": True, "pre_approved": True},
        "invitation": {"invitation": True},
    }
    member = {"list_id": closed, "subscriber": "mallory@example.com", **flags[how]}
    status, body = mailman.rest("POST", "members", member)
    assert (status, body["description"]) == (400, sentence("mallory@example.com", closed))
    assert mailman.members(closed) == []


def test_moderator_cannot_approve_an_outsider(mailman, closed):
    rule = f"plugins/estate/lists/{closed}/member-domains"
    mailman.rest("DELETE", rule)
    mailman.rest("PATCH", f"lists/{closed}/config", {"subscription_policy": "moderate"})
    held = {"list_id": closed, "subscriber": "held@example.com", "pre_verified": True, "pre_confirmed": True}
    status, body = mailman.rest("POST", "members", held)
    assert (status, body["token_owner"]) == (202, "moderator")
    mailman.rest("PUT", rule, {"domains": ["example.org"], "sentence": SENTENCE})
    status, refused = mailman.rest("POST", f"lists/{closed}/requests/{body['token']}", {"action": "accept"})
    assert (status, refused["description"]) == (400, sentence("held@example.com", closed))
    # the request is still there, to be rejected with a reason
    assert mailman.rest("GET", f"lists/{closed}/requests/{body['token']}")[0] == 200
    assert mailman.members(closed) == []


@pytest.mark.parametrize("as_user", [False, True], ids=["by address", "by preferred address"])
def test_member_cannot_change_to_an_outside_address(mailman, closed, as_user):
    name = uuid.uuid4().hex[:8]
    inside, outside, other = f"{name}@example.org", f"{name}@example.com", f"{name}.2@example.org"
    ready = {"pre_verified": True, "pre_confirmed": True, "pre_approved": True}
    status, user = mailman.rest("POST", "users", {"email": inside})
    assert status == 201, user
    user_id = mailman.rest("GET", f"users/{inside}")[1]["user_id"]
    for address in (outside, other):
        assert mailman.rest("POST", f"users/{user_id}/addresses", {"email": address})[0] == 201
    for address in (inside, outside, other):
        assert mailman.rest("POST", f"addresses/{address}/verify", {})[0] == 204
    assert mailman.rest("POST", f"users/{user_id}/preferred_address", {"email": inside})[0] == 201
    subscriber = user_id if as_user else inside
    status, body = mailman.rest("POST", "members", {"list_id": closed, "subscriber": subscriber, **ready})
    assert status == 201, body
    entry = mailman.rest("GET", f"plugins/estate/lists/{closed}/roster")[1]["entries"][0]
    if as_user:
        method, path, field = "POST", f"users/{user_id}/preferred_address", "email"
    else:
        method, path, field = "PATCH", f"members/{entry['member_id']}", "address"
    status, body = mailman.rest(method, path, {field: outside})
    assert (status, body["description"]) == (400, sentence(outside, closed))
    assert mailman.members(closed) == [inside]
    assert mailman.rest(method, path, {field: other})[0] in (201, 204)
    assert mailman.members(closed) == [other]


def test_owners_and_posts_of_outsiders_are_not_touched(mailman, closed):
    owner = {"list_id": closed, "subscriber": "boss@example.com", "role": "owner"}
    assert mailman.rest("POST", "members", owner)[0] == 201
    mailman.rest("POST", f"plugins/estate/lists/{closed}/roster", {"add": [{"email": "reader@example.org"}]})
    to = closed.replace(".", "@", 1)
    mailman.hand_in(("eve@none.example.com", to, post("Eve <eve@none.example.com>", to, f"outside {closed}")))
    mailman.wait_for(by_subject(f"outside {closed}", "reader@example.org"))


def test_members_from_before_the_rule_are_named_and_stay(mailman, closed):
    rule = f"plugins/estate/lists/{closed}/member-domains"
    mailman.rest("DELETE", rule)
    rows = [{"email": address} for address in ("old@example.com", "sub@a.example.org", "in@example.org")]
    mailman.rest("POST", f"plugins/estate/lists/{closed}/roster", {"add": rows})
    mailman.rest("PUT", rule, {"domains": ["example.org"]})
    assert mailman.rest("GET", rule)[1]["outside"] == ["old@example.com", "sub@a.example.org"]
    mailman.rest("PUT", rule, {"domains": [".example.org"]})
    assert mailman.rest("GET", rule)[1] == {
        "domains": [".example.org"],
        "sentence": None,
        "outside": ["old@example.com"],
    }
    assert len(mailman.members(closed)) == 3


def test_rule_that_cannot_be_read_lets_nobody_in(mailman, closed):
    found = mailman.host.run(f"find /var/lib/mailman3 -name {closed}.json").stdout.split()
    assert len(found) == 1
    mailman.host.run_expect([0], f"echo broken > {found[0]}")
    status, body = mailman.rest("POST", "members", {"list_id": closed, "subscriber": "taro@example.org"})
    assert status == 400
    assert "cannot be read" in body["description"]
    assert "error" in mailman.rest("GET", "plugins/estate/member-domains")[1]["rules"][closed]
    status, body = mailman.rest("POST", f"plugins/estate/lists/{closed}/roster", {"add": [{"email": "b@example.org"}]})
    assert [row["code"] for row in body["refused"]] == ["organisation_rule"]
    mailman.rest("PUT", f"plugins/estate/lists/{closed}/member-domains", {"domains": ["example.org"]})
    status, body = mailman.rest("POST", f"plugins/estate/lists/{closed}/roster", {"add": [{"email": "b@example.org"}]})
    assert body["added"] == 1


def test_rule_goes_with_its_list(mailman, closed):
    assert closed in mailman.rest("GET", "plugins/estate/member-domains")[1]["rules"]
    assert mailman.rest("DELETE", f"lists/{closed}")[0] == 204
    assert closed not in mailman.rest("GET", "plugins/estate/member-domains")[1]["rules"]


# -------------------------------------------------------------------------------------------------------- whole rosters


def test_members_added_in_bulk_are_like_those_added_one_by_one(mailman):
    list_id = mailman.make_list("alike", subscription_policy="open")
    one = {"list_id": list_id, "subscriber": "One@example.org", "display_name": "One", "pre_verified": True}
    assert mailman.rest("POST", "members", one)[0] == 201
    rows = {"add": [{"email": "Two@example.org", "display_name": "Two"}]}
    assert mailman.rest("POST", f"plugins/estate/lists/{list_id}/roster", rows)[1]["added"] == 1
    seen = {}
    for name in ("one", "two"):
        address = f"{name}@example.org"
        member = mailman.rest("GET", f"lists/{list_id}/member/{address}")[1]
        person = mailman.rest("GET", f"users/{address}")[1]
        known = mailman.rest("GET", f"addresses/{address}")[1]
        seen[name] = [
            {key: value for key, value in member.items() if key not in ("member_id", "user", "self_link", "http_etag")},
            sorted(person),
            sorted(known),
            known["original_email"],
        ]
    text = json.dumps(seen["one"]).replace("One", "Two").replace("one@", "two@")
    assert json.loads(text) == seen["two"]
    # and they leave as easily
    member_id = mailman.rest("GET", f"lists/{list_id}/member/two@example.org")[1]["member_id"]
    assert mailman.rest("DELETE", f"members/{member_id}")[0] == 204
    assert mailman.members(list_id) == ["one@example.org"]


def test_refused_rows_do_not_stop_the_others(mailman):
    list_id = mailman.make_list("rows")
    path = f"plugins/estate/lists/{list_id}/roster"
    mailman.rest("POST", f"lists/{list_id}/bans", {"email": "^.*@banned.example.com$"})
    mailman.rest(
        "PUT", f"plugins/estate/lists/{list_id}/member-domains", {"domains": [".example.org", "banned.example.com"]}
    )
    mailman.rest("POST", path, {"add": [{"email": "here@example.org"}]})
    rows = [
        {"email": "good@example.org", "display_name": "山田"},
        {"email": "no address"},
        {"email": "Good@Example.org"},
        {"email": "x@banned.example.com"},
        {"email": "eve@example.com"},
        {"email": "eve@example.com", "role": "owner"},
        {"email": "here@example.org"},
        {"email": f"rows@{DOMAIN}"},
        {"email": "mode@example.org", "delivery_mode": "pigeon"},
        {"email": "name@example.org", "display_name": "a\r\nBcc: x@example.com"},
        {"email": "x" * 60_000 + "@example.org"},
        "text",
    ]
    status, body = mailman.rest("POST", path, {"add": rows, "remove": [{"email": "nobody@example.org"}]})
    assert (status, body["added"]) == (200, 2)
    assert [(row["list"], row["row"], row["code"]) for row in body["refused"]] == [
        ("add", 1, "invalid_address"),
        ("add", 2, "doubled"),
        ("add", 3, "banned"),
        ("add", 4, "organisation_rule"),
        ("add", 6, "already_member"),
        ("add", 7, "list_address"),
        ("add", 8, "invalid_row"),
        ("add", 9, "invalid_row"),
        ("add", 10, "invalid_address"),
        ("add", 11, "invalid_row"),
        ("remove", 0, "not_a_member"),
    ]
    assert mailman.members(list_id) == ["good@example.org", "here@example.org"]
    assert mailman.members(list_id, "owner") == ["eve@example.com"]


def test_change_and_removal(mailman):
    list_id = mailman.make_list("changes")
    path = f"plugins/estate/lists/{list_id}/roster"
    mailman.rest("POST", path, {"add": [{"email": f"{name}@example.org"} for name in "abc"]})
    wanted = {
        "change": [
            {
                "email": "a@example.org", "display_name": "山田", "delivery_mode": "mime_digests",
                "delivery_status": "by_moderator", "moderation_action": "hold",
            },
            {"email": "b@example.org", "delivery_mode": "regular"},
        ],
        "remove": [{"email": "c@example.org"}],
    }  # fmt: skip
    status, body = mailman.rest("POST", path, wanted)
    counts = {name: body[name] for name in ("added", "changed", "removed", "unchanged")}
    assert (status, counts) == (200, {"added": 0, "changed": 1, "removed": 1, "unchanged": 1})
    first, second = mailman.rest("GET", path)[1]["entries"]
    assert {key: first[key] for key in wanted["change"][0]} == wanted["change"][0]
    assert (second["email"], second["delivery_mode"]) == ("b@example.org", "regular")
    assert mailman.rest("POST", path, {"change": wanted["change"]})[1]["unchanged"] == 2


def test_welcome_is_sent_where_it_is_asked_for(mailman):
    list_id = mailman.make_list("welcome", send_welcome_message=True, admin_notify_mchanges=True)
    path = f"plugins/estate/lists/{list_id}/roster"
    mark = uuid.uuid4().hex[:8]
    mailman.rest("POST", path, {"add": [{"email": f"boss-{mark}@example.org", "role": "owner"}]})
    mailman.rest("POST", path, {"add": [{"email": f"quiet-{mark}@example.org"}]})
    mailman.rest("POST", path, {"add": [{"email": f"loud-{mark}@example.org"}], "welcome": True})
    mailman.wait_for(lambda to, message: f"loud-{mark}@example.org" in to)
    reached = {address for to, _ in mailman.mails() for address in to if mark in address}
    assert reached == {f"loud-{mark}@example.org"}


def test_requests_at_the_same_time_make_nobody_a_member_twice(mailman):
    lists = [mailman.make_list("parallel-1"), mailman.make_list("parallel-2")]
    mark = uuid.uuid4().hex[:8]
    rows = [{"email": f"p{number}@{mark}.example.org"} for number in range(200)]
    calls = [["POST", f"plugins/estate/lists/{list_id}/roster", {"add": rows}] for list_id in lists * 3]
    answers = mailman.tool("parallel", calls)
    assert [answer["status"] for answer in answers] == [200] * 6
    assert sum(answer["body"]["added"] for answer in answers) == 400
    assert [len(mailman.members(list_id)) for list_id in lists] == [200, 200]


@pytest.mark.parametrize("body", [None, [], {"add": 1}, {"nonsense": []}, {"pre_approved": False}, {"welcome": "no"}])
def test_senseless_requests_are_refused_as_a_whole(mailman, body):
    list_id = mailman.make_list("senseless")
    status, answer = mailman.rest("POST", f"plugins/estate/lists/{list_id}/roster", body)
    assert status == 400
    assert answer["description"].endswith(".")


def test_too_many_rows_are_refused_as_a_whole(mailman):
    list_id = mailman.make_list("many")
    rows = {"add": [{"email": f"m{number}@example.org"} for number in range(2001)]}
    status, answer = mailman.rest("POST", f"plugins/estate/lists/{list_id}/roster", rows)
    assert (status, "at most 2000" in answer["description"]) == (400, True)


def test_resources_want_the_credential(mailman):
    probe = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8001/3.1/plugins/estate/member-domains')"
    assert "401" in mailman.host.run(f"python3 -c {shlex.quote(probe)}").stderr


def test_two_thousand_members_at_once_and_the_roster(mailman):
    """How long 10,000 take is measured by tests/bench/lists_as_data.py."""
    list_id = mailman.make_list("large")
    path = f"plugins/estate/lists/{list_id}/roster"
    mark = uuid.uuid4().hex[:8]
    rows = [{"email": f"m{number}@{mark}.example.org"} for number in range(2000)]
    _status, answer = mailman.rest("POST", path, {"add": rows})
    assert answer["added"] == len(rows), answer
    _status, answer = mailman.rest("GET", path)
    assert len(answer["entries"]) == len(rows)
    assert mailman.rest("DELETE", f"lists/{list_id}")[0] == 204


def test_nothing_was_shunted(mailman):
    status, queue = mailman.rest("GET", "queues/shunt")
    assert (status, queue["count"]) == (200, mailman.shunted)
