"""What members get of a post, and that everybody gets it once: a running Mailman, killed and refused as in real life.

Posts come in by LMTP. What Mailman sends goes to a mail server of this test's own, which keeps it and refuses or waits
where it is told to: mailman.cfg points there for the time of these tests.
"""

from __future__ import annotations

import base64
import email
import email.policy
import json
import re
import shlex
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from typing import Any, NamedTuple

import pytest

HOST = "ml.example.org"
DOMAIN = "delivery.example.org"
SECONDS = 60
QUEUE = "/var/lib/mailman3/queue"

TOOL = r'''
"""The test's hands on the host: REST calls, LMTP, and a mail server that keeps what it gets."""
import asyncio, base64, json, os, re, smtplib, sys, time, urllib.error, urllib.request

PLACE = "/var/tmp/delivery-sink"
RULES = PLACE + "/rules.json"

def rest(method, path, body):
    config = open("/etc/mailman3/mailman.cfg", encoding="utf-8").read()
    password = re.search(r"^admin_pass\s*[:=]\s*(\S+)", config, re.M).group(1)
    request = urllib.request.Request("http://127.0.0.1:8001/3.1/" + path, method=method)
    request.add_header("Authorization", "Basic " + base64.b64encode(f"restadmin:{password}".encode()).decode())
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    try:
        return [status, json.loads(text)]
    except ValueError:
        return [status, text]

def rules():
    """{"refuse": {address: [reply, times]}, "seconds": wait before the reply to a message}"""
    try:
        return json.load(open(RULES))
    except FileNotFoundError:
        return {}

refused = {}

async def session(reader, writer):
    recipients, sender = [], ""
    writer.write(b"220 sink ESMTP\r\n")
    while line := await reader.readline():
        verb, answer = line[:4].upper(), "250 ok"
        if verb == b"EHLO":
            answer = "250-sink\r\n250-PIPELINING\r\n250-SIZE 100000000\r\n250 8BITMIME"
        elif verb == b"MAIL":
            recipients, sender = [], re.search(r"<(.*?)>", line.decode()).group(1)
        elif verb == b"RCPT":
            address = re.search(r"<(.*?)>", line.decode()).group(1)
            reply, times = rules().get("refuse", {}).get(address, ["", 0])
            refused[address] = refused.get(address, 0) + 1
            if refused[address] <= times:
                answer = reply
            else:
                recipients.append(address)
        elif verb == b"DATA" and not recipients:
            answer = "554 no valid recipients"
        elif verb == b"DATA":
            writer.write(b"354 go\r\n")
            lines = []
            while (line := await reader.readline()) not in (b".\r\n", b""):
                lines.append(line.removeprefix(b"."))
            data = b"".join(lines)
            await asyncio.sleep(rules().get("seconds", 0))
            if line:
                name = f"{PLACE}/{time.time():.6f}-{id(data)}.mail"
                with open(name + ".new", "w") as file:
                    kept = {"from": sender, "to": recipients, "data": base64.b64encode(data).decode()}
                    json.dump(kept, file)
                os.rename(name + ".new", name)
        writer.write(f"{answer}\r\n".encode())
        if verb == b"QUIT":
            break
        await writer.drain()
    writer.close()

async def sink():
    os.makedirs(PLACE, exist_ok=True)
    server = await asyncio.start_server(session, "127.0.0.1", 10097, limit=1 << 26)
    await server.serve_forever()

def main():
    if sys.argv[1] == "sink":
        asyncio.run(sink())
    given = json.loads(sys.stdin.buffer.read() or b"null")
    if sys.argv[1] == "rest":
        print(json.dumps(rest(*given)))
    elif sys.argv[1] == "lmtp":
        for sender, recipient, message, times in given:
            with smtplib.LMTP("127.0.0.1", 8024, timeout=60) as server:
                head, end, body = base64.b64decode(message).partition(b"\n\n")
                whole = head + end + body * times
                server.sendmail(sender, [recipient], whole.replace(b"\n", b"\r\n"))
    elif sys.argv[1] == "mails":
        names = sorted(name for name in os.listdir(PLACE) if name.endswith(".mail"))
        mails = [json.load(open(os.path.join(PLACE, name))) for name in names]
        print(json.dumps([mail for mail in mails if given.encode() in base64.b64decode(mail["data"])]))
    elif sys.argv[1] == "sizes":
        mails = [json.load(open(os.path.join(PLACE, name))) for name in os.listdir(PLACE) if name.endswith(".mail")]
        messages = [base64.b64decode(mail["data"]) for mail in mails]
        print(json.dumps([len(message) for message in messages if given.encode() in message]))
    elif sys.argv[1] == "arc":
        import dkim, subprocess
        public = subprocess.run(["openssl", "rsa", "-in", "/etc/mailman3/arc.pem", "-pubout", "-outform", "DER"],
                                capture_output=True, check=True).stdout
        record = b"v=DKIM1; p=" + base64.b64encode(public)
        cv, results, reason = dkim.ARC(base64.b64decode(given)).verify(dnsfunc=lambda name, timeout=5: record)
        print(json.dumps([cv.decode() if cv else None, reason]))
    elif sys.argv[1] == "token":
        sys.path.insert(0, "/usr/local/lib/mailman-estate")
        from mailman_estate import one_click
        print(json.dumps(one_click.read_token(one_click.load_keys("/etc/mailman3/unsubscribe.key"), given)))

main()
'''


class Mail(NamedTuple):
    """A message as it left Mailman."""

    sender: str
    recipients: list[str]
    octets: bytes

    @property
    def message(self) -> EmailMessage:
        return email.message_from_bytes(self.octets, policy=email.policy.default)

    def fields(self, name: str) -> list[str]:
        """The values of a header field, unfolded; read from the octets."""
        head = self.octets.partition(b"\r\n\r\n")[0].decode("utf-8", "replace")
        unfolded = re.sub(r"\r\n[ \t]+", " ", head)
        return re.findall(rf"(?im)^{name}: *(.*?)\r?$", unfolded)


class Mailman:
    """The Mailman under test."""

    def __init__(self, host: Any) -> None:
        self.host = host
        venv = "/opt/mailman/core/bin/python"
        self.python = venv if host.file(venv).exists else "/usr/bin/python3"

    def tool(self, command: str, given: Any = None) -> Any:
        path = f"/var/tmp/delivery-{uuid.uuid4().hex}"
        encoded = base64.b64encode(json.dumps(given).encode()).decode()
        for start in range(0, len(encoded), 90_000):
            self.host.run_expect([0], f"printf %s {encoded[start : start + 90_000]} >> {path}")
        done = self.host.run(f"base64 -d {path} | {self.python} /var/tmp/delivery_tool.py {command}; rm {path}")
        assert not done.stderr.strip(), done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    def rest(self, method: str, path: str, body: Any = None, expect: int | None = None) -> Any:
        status, answer = self.tool("rest", [method, path, body])
        assert expect is None or status == expect, answer
        return answer

    def rules(self, **rules: Any) -> None:
        """What the mail server does from now on."""
        encoded = base64.b64encode(json.dumps(rules).encode()).decode()
        place = "/var/tmp/delivery-sink/rules.json"
        self.host.run_expect([0], f"echo {encoded} | base64 -d > {place}.new && mv {place}.new {place}")

    def post(self, to: str, body: bytes = b"Good morning.\n", head: bytes = b"", times: int = 1) -> str:
        """Hand in a post that the gateway has found genuine; the word by which it is found again."""
        word = f"w{uuid.uuid4().hex}"
        self.hand_in((to, word, body, head), times=times)
        return word

    def hand_in(self, *posts: tuple[str, str, bytes, bytes], times: int = 1) -> None:
        self.tool(
            "lmtp",
            [
                [
                    "taro@none.example.net",
                    to,
                    base64.b64encode(
                        b"Authentication-Results: mx.example.org; dkim=pass header.d=none.example.net\n"
                        + (head or b"Content-Type: text/plain; charset=us-ascii\n")
                        + f"From: Taro <taro@none.example.net>\nTo: {to}\nSubject: {word}\n"
                        f"Message-ID: <{word}@none.example.net>\nDate: Tue, 24 Nov 2026 10:00:00 +0900\n"
                        "MIME-Version: 1.0\n\n".encode()
                        + body
                    ).decode(),
                    times,
                ]
                for to, word, body, head in posts
            ],
        )

    def mails(self, word: str) -> list[Mail]:
        """What Mailman has sent so far of the post with this word."""
        found = self.tool("mails", word)
        return [Mail(mail["from"], mail["to"], base64.b64decode(mail["data"])) for mail in found]

    def wait_for(self, word: str, recipients: int) -> list[Mail]:
        """Wait until so many recipients have the post, and a moment longer for what ought not to come."""
        until(lambda: sum(len(mail.recipients) for mail in self.mails(word)) >= recipients, self.logs)
        time.sleep(2)
        return self.mails(word)

    def logs(self) -> str:
        return self.host.run("tail -n 30 /var/log/mailman3/*.log /var/log/mailman3/*/*.log 2>&1").stdout

    def make_list(self, name: str, members: list[str], **settings: Any) -> str:
        """A list of this name as if new; its address."""
        address = f"{name}@{DOMAIN}"
        self.rest("DELETE", f"lists/{address}")
        self.rest("POST", "lists", {"fqdn_listname": address}, 201)
        settings = {"default_nonmember_action": "accept", "send_welcome_message": False, **settings}
        self.rest("PATCH", f"lists/{name}.{DOMAIN}/config", settings, 204)
        rows = [{"email": member} for member in members]
        self.rest("POST", f"plugins/estate/lists/{name}.{DOMAIN}/roster", {"add": rows}, 200)
        return address

    def member_id(self, name: str, address: str) -> str:
        member = self.rest("GET", f"lists/{name}.{DOMAIN}/member/{address}", None, 200)
        return member["self_link"].rpartition("/")[2]

    def seal(self, mail: Mail) -> list[Any]:
        """Validation status and reason of the ARC chain, by dkimpy."""
        return self.tool("arc", base64.b64encode(mail.octets).decode())

    def shunted(self) -> list[str]:
        return self.host.run(f"ls {QUEUE}/shunt {QUEUE}/bad").stdout.split()

    def restart(self) -> None:
        self.host.run_expect([0], "systemctl restart mailman3.service")
        self.wait_until_up()

    def wait_until_up(self) -> None:
        probe = "import socket; [socket.create_connection(('127.0.0.1', port), 1) for port in (8001, 8024)]"
        until(lambda: self.host.run(f"python3 -c {shlex.quote(probe)}").rc == 0, self.logs)


def until(holds: Callable[[], bool], explain: Callable[[], str], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s\n{explain()}")
        time.sleep(0.5)


@pytest.fixture(scope="module")
def mailman(host: Any) -> Iterator[Mailman]:
    mailman = Mailman(host)
    tool = base64.b64encode(TOOL.encode()).decode()
    host.run_expect([0], f"echo {tool} | base64 -d > /var/tmp/delivery_tool.py; rm -rf /var/tmp/delivery-sink")
    host.run_expect(
        [0],
        "systemctl stop delivery-sink 2>/dev/null; systemctl reset-failed delivery-sink 2>/dev/null; "
        f"systemd-run -q --unit delivery-sink {mailman.python} /var/tmp/delivery_tool.py sink",
    )
    host.run_expect([0], "cp -p /etc/mailman3/mailman.cfg /var/tmp/delivery-mailman.cfg")
    try:
        host.run_expect([0], "sed -i -E 's/^smtp_port.*/smtp_port: 10097/' /etc/mailman3/mailman.cfg")
        mailman.restart()
        mailman.rest("POST", "domains", {"mail_host": DOMAIN})
        yield mailman
        mailman.rest("DELETE", f"domains/{DOMAIN}")
    finally:
        host.run("cp -p /var/tmp/delivery-mailman.cfg /etc/mailman3/mailman.cfg; systemctl stop delivery-sink")
        mailman.restart()


@pytest.fixture(autouse=True)
def nothing_is_shunted(mailman: Mailman) -> Iterator[None]:
    mailman.rules()
    before = mailman.shunted()
    yield
    mailman.rules()
    assert mailman.shunted() == before, mailman.logs()


MEMBERS = ["alice@example.net", "bob@example.com", "carol@example.edu"]


def served(mails: list[Mail]) -> Counter[str]:
    return Counter(recipient for mail in mails for recipient in mail.recipients)


# ------------------------------------------------------------------------------------------------------- own copies


def test_each_member_gets_a_copy_with_a_link_of_its_own(mailman: Mailman):
    to = mailman.make_list("own", MEMBERS, personalize="individual")
    other = b"List-Unsubscribe: <https://elsewhere.example/>\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\n"
    mails = mailman.wait_for(mailman.post(to, head=other), 3)
    assert served(mails) == dict.fromkeys(MEMBERS, 1)
    for mail in mails:
        (member,) = mail.recipients
        (unsubscribe,) = mail.fields("List-Unsubscribe")
        link = re.fullmatch(rf"<https://{HOST}/unsubscribe/([\w-]+)>, <mailto:own-leave@{DOMAIN}>", unsubscribe)
        assert link, unsubscribe
        assert mailman.tool("token", link[1]) == [f"own.{DOMAIN}", mailman.member_id("own", member)]
        assert mail.fields("List-Unsubscribe-Post") == ["List-Unsubscribe=One-Click"]
        assert mailman.seal(mail)[0] == "pass"


def test_batched_copies_keep_the_usual_header(mailman: Mailman):
    to = mailman.make_list("batched", MEMBERS, personalize="none")
    mails = mailman.wait_for(mailman.post(to, head=b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\n"), 3)
    assert served(mails) == dict.fromkeys(MEMBERS, 1)
    for mail in mails:
        assert mail.fields("List-Unsubscribe") == [f"<mailto:batched-leave@{DOMAIN}>"]
        assert mail.fields("List-Unsubscribe-Post") == []
        assert mailman.seal(mail)[0] == "pass"


def test_a_footer_that_names_the_member_names_each_one(mailman: Mailman):
    to = mailman.make_list("footer", MEMBERS, personalize="individual")
    place = f"/var/lib/mailman3/templates/lists/footer.{DOMAIN}/en"
    text = shlex.quote("-- \nSent to $user_delivered_to\n")
    name = "list:member:regular:footer.txt"
    mailman.host.run_expect([0], f"mkdir -p {place} && printf %s {text} > {place}/{name} && chmod -R a+rX {place}")
    try:
        mails = mailman.wait_for(mailman.post(to), 3)
    finally:
        mailman.host.run(f"rm -r {place}")
    assert served(mails) == dict.fromkeys(MEMBERS, 1)
    for mail in mails:
        assert f"Sent to {mail.recipients[0]}" in mail.message.get_content()
        assert f"https://{HOST}/unsubscribe/" in mail.fields("List-Unsubscribe")[0]
        assert mailman.seal(mail)[0] == "pass"


def test_full_personalisation_writes_the_member_into_to(mailman: Mailman):
    to = mailman.make_list("full", MEMBERS, personalize="full")
    mails = mailman.wait_for(mailman.post(to), 3)
    assert {mail.recipients[0]: mail.message["to"].addresses[0].addr_spec for mail in mails} == {
        member: member for member in MEMBERS
    }
    assert all(mailman.seal(mail)[0] == "pass" and mail.fields("List-Unsubscribe-Post") for mail in mails)


ODD = {
    "ISO-2022-JP": (b"Content-Type: text/plain; charset=iso-2022-jp\n", b"\x1b$BF|K\\8l\x1b(B\n.\n..\n\x1b$B\n"),
    "raw 8 bit": (b"X-Raw: \xe6\x97\xa5\nContent-Type: text/plain; charset=utf-8\n", "日本語\n".encode()),
    "NUL": (b"Content-Type: text/plain; charset=us-ascii\n", b"NUL \x00 and \xff\n"),
    "unknown character set": (b"Content-Type: text/plain; charset=no-such-thing\n", b"what is this\n"),
    "nonsense": (b"Content-Type: nonsense\nContent-Transfer-Encoding: 9bit\nUrgent: yes\n", b"x\n"),
    "lone CR": (b"Content-Type: text/plain; charset=us-ascii\n", b"lone \r CR\r\n.\r\rend\n"),
}


@pytest.fixture(scope="module", params=["none", "individual"])
def odd(mailman: Mailman, request: pytest.FixtureRequest) -> dict[str, list[Mail]]:
    """What two members got of each odd post, batched and each for itself."""
    to = mailman.make_list("odd", MEMBERS[:2], personalize=request.param)
    words = {name: f"w{uuid.uuid4().hex}" for name in ODD}
    mailman.hand_in(*((to, words[name], body, head) for name, (head, body) in ODD.items()))
    return {name: mailman.wait_for(word, 2) for name, word in words.items()}


@pytest.mark.parametrize("name", ODD)
def test_odd_posts_arrive_whole_and_sealed(mailman: Mailman, odd: dict[str, list[Mail]], name: str):
    assert served(odd[name]) == dict.fromkeys(MEMBERS[:2], 1)
    for mail in odd[name]:
        assert not re.search(rb"\r(?!\n)|(?<!\r)\n", mail.octets)
        assert mailman.seal(mail)[0] == "pass"


@pytest.mark.drill
def test_a_post_of_25_megabytes_arrives_whole(mailman: Mailman):
    to = mailman.make_list("large", MEMBERS[:2], personalize="individual", max_message_size=0)
    kind = b"Content-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n"
    word = mailman.post(to, b"QUJD\n" * 1000, kind, times=4200)
    until(lambda: mailman.tool("sizes", word) != [], mailman.logs)
    time.sleep(2)
    assert [size > 25_000_000 for size in mailman.tool("sizes", word)] == [True, True]


# ----------------------------------------------------------------------------------------------- everybody, and once


@pytest.mark.parametrize("kind", ["none", "individual"])
def test_who_is_refused_for_now_is_tried_again_alone(mailman: Mailman, kind: str):
    later = f"later-{kind}@example.com"
    to = mailman.make_list("refused", ["alice@example.net", later, "carol@example.edu"], personalize=kind)
    mailman.rules(refuse={later: ["451 4.2.1 mailbox busy", 1]})
    word = mailman.post(to)
    assert served(mailman.wait_for(word, 2)) == {"alice@example.net": 1, "carol@example.edu": 1}
    until(lambda: bool(mailman.host.run(f"ls {QUEUE}/retry").stdout.strip()), mailman.logs)
    mailman.host.run_expect([0], "pkill -9 -f 'runner=retry:'")  # it looks at its queue when it starts
    assert served(mailman.wait_for(word, 3)) == {"alice@example.net": 1, later: 1, "carol@example.edu": 1}


def test_who_is_refused_for_good_is_a_bounce(mailman: Mailman):
    to = mailman.make_list("gone", ["alice@example.net", "gone@example.com"], personalize="individual")
    mailman.rules(refuse={"gone@example.com": ["550 5.1.1 unknown", 99]})
    assert served(mailman.wait_for(mailman.post(to), 1)) == {"alice@example.net": 1}

    def noted() -> bool:
        member = mailman.rest("GET", f"lists/gone.{DOMAIN}/member/gone@example.com", None, 200)
        return member.get("bounce_score", 0) == 1

    until(noted, mailman.logs, 150)


@pytest.mark.drill
@pytest.mark.parametrize("kind", ["none", "individual"])
def test_a_killed_runner_serves_nobody_twice(mailman: Mailman, kind: str):
    members = [f"m{number}@example.com" for number in range(200)]
    to = mailman.make_list("killed", members, personalize=kind)
    mailman.rules(seconds=0.05 if kind == "individual" else 1)
    word = mailman.post(to)
    until(lambda: bool(mailman.mails(word)), mailman.logs)
    time.sleep(1)
    mailman.host.run_expect([0], "pkill -9 -f 'runner=out:'")
    mailman.rules()
    counted = served(mailman.wait_for(word, 200))
    assert set(counted) == set(members)
    doubled = [member for member, times in counted.items() if times > 1]
    assert max(counted.values()) <= 2
    # What was under way on the four connections.
    most = 4 * (1 if kind == "individual" else 500)
    assert len(doubled) <= most


@pytest.mark.drill
def test_a_stopped_mailman_goes_on_where_it_was(mailman: Mailman):
    members = [f"m{number}@example.com" for number in range(200)]
    to = mailman.make_list("stopped", members, personalize="individual")
    mailman.rules(seconds=0.05)
    word = mailman.post(to)
    until(lambda: bool(mailman.mails(word)), mailman.logs)
    mailman.restart()
    mailman.rules()
    assert served(mailman.wait_for(word, 200)) == dict.fromkeys(members, 1)


def test_a_mail_server_that_is_away_is_waited_for(mailman: Mailman):
    to = mailman.make_list("away", MEMBERS, personalize="individual")
    mailman.host.run_expect([0], "systemctl stop delivery-sink")
    try:
        word = mailman.post(to)
        time.sleep(5)
    finally:
        mailman.host.run_expect(
            [0], f"systemd-run -q --unit delivery-sink {mailman.python} /var/tmp/delivery_tool.py sink"
        )
    assert served(mailman.wait_for(word, 3)) == dict.fromkeys(MEMBERS, 1)


def test_a_database_that_restarts_costs_no_post(mailman: Mailman):
    to = mailman.make_list("database", MEMBERS, personalize="individual")
    words = [f"w{uuid.uuid4().hex}" for _ in range(12)]
    mailman.hand_in(*((to, word, b"hello\n", b"") for word in words[:8]))
    mailman.host.run_expect([0], "systemctl restart postgresql.service")
    mailman.hand_in(*((to, word, b"hello\n", b"") for word in words[8:]))
    for word in words:
        assert served(mailman.wait_for(word, 3)) == dict.fromkeys(MEMBERS, 1)


# -------------------------------------------------------------------------------------------------------- recipients


def test_who_wants_no_mail_gets_none(mailman: Mailman):
    everybody = [
        "on@example.net",
        "off@example.net",
        "digest@example.net",
        "person@example.net",
        "taro@none.example.net",
    ]
    to = mailman.make_list("wishes", everybody, personalize="individual")

    def prefer(path: str, **preferences: Any) -> None:
        mailman.rest("PATCH", f"{path}/preferences", preferences, 204)

    def member(address: str) -> str:
        return f"members/{mailman.member_id('wishes', address)}"

    prefer(member("off@example.net"), delivery_status="by_user")
    prefer(member("digest@example.net"), delivery_mode="mime_digests")
    prefer("addresses/person@example.net", delivery_status="by_user")
    prefer(member("taro@none.example.net"), receive_own_postings=False)
    assert served(mailman.wait_for(mailman.post(to), 1)) == {"on@example.net": 1}
    # The membership's own wish stands above the address's.
    prefer(member("person@example.net"), delivery_status="enabled")
    prefer(member("taro@none.example.net"), receive_own_postings=True)
    wanted = {"on@example.net": 1, "person@example.net": 1, "taro@none.example.net": 1}
    assert served(mailman.wait_for(mailman.post(to), 3)) == wanted
