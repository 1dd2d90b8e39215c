"""Lists and members as data, applied to a running Mailman as an operator applies them: by ansible-playbook.

The lists of these tests are in the domain lists.example.org and are removed again, by data, at the end.
"""

from __future__ import annotations

import base64
import email
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dkim
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

REPOSITORY = Path(__file__).resolve().parents[3]
DOMAIN = "lists.example.org"
OWNER = "olga@example.org"
DEV = f"dev@{DOMAIN}"
PLAY = """
- hosts: list_host
  gather_facts: false
  tasks:
    - ansible.builtin.import_role:
        name: mailman
        tasks_from: lists
"""
SINK = "/var/mail/sink"


@dataclass
class Run:
    """What ansible-playbook said."""

    rc: int
    text: str

    @property
    def changed(self) -> int:
        return int(re.findall(r"changed=(\d+)", self.text)[-1])


class Lists:
    """The list host, and the way to it."""

    def __init__(self, host: Any, folder: Path) -> None:
        self.host, self.folder = host, folder
        config = self.host.file("/etc/mailman3/mailman.cfg").content_string
        self.password = re.search(r"^admin_pass\s*[:=]\s*(\S+)", config, re.MULTILINE)[1]
        self.given: dict[str, Any] = {}
        name = host.backend.host.name
        ssh = f"-F {host.backend.ssh_config}"
        (folder / "hosts.yml").write_text(
            yaml.safe_dump(
                {
                    "list_host": {"hosts": {name: {"ansible_ssh_common_args": ssh, "ansible_user": "root"}}},
                    "disabled": {"hosts": {}},
                }
            )
        )
        (folder / "lists.yml").write_text(PLAY)

    def playbook(self, playbook: Path, variables: dict[str, Any], *options: str) -> Run:
        (self.folder / "variables.json").write_text(json.dumps({"mailman_rest_password": self.password} | variables))
        done = subprocess.run(
            [
                *(str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(self.folder / "hosts.yml")),
                *("-e", f"@{self.folder / 'variables.json'}", *options, str(playbook)),
            ],
            # mitogen does not read the lab's ssh configuration.
            env=os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_STRATEGY": "linear"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Run(done.returncode, done.stdout + done.stderr)

    def apply(self, lists: dict[str, Any], *options: str, good: bool = True) -> Run:
        """Apply the lists; each is in the data from now on."""
        wanted = {address: {"description": "A test", "owners": [OWNER]} | fields for address, fields in lists.items()}
        variables = {"mailman_domains": [DOMAIN], "mailman_lists": wanted}
        run = self.playbook(self.folder / "lists.yml", variables, *options)
        self.given |= wanted
        assert (run.rc == 0) is good, run.text
        return run

    def members(self, address: str, csv: bytes, *options: str) -> Run:
        (self.folder / "members.csv").write_bytes(csv)
        values = ("-e", f"list={address}", "-e", f"csv={self.folder}/members.csv", *options)
        return self.playbook(REPOSITORY / "playbooks/lists_members.yml", {}, *values)

    def rest(self, method: str, path: str, **form: Any) -> Any:
        words = ["curl", "-sS", "-u", f"restadmin:{self.password}", "-X", method, f"http://127.0.0.1:8001/3.1/{path}"]
        for key, value in form.items():
            words += ["--data-urlencode", f"{key}={value}"]
        result = self.host.run(" ".join(["%s"] * len(words)), *words)
        assert result.rc == 0, result.stderr
        return json.loads(result.stdout) if result.stdout.strip() else None

    def config(self, address: str) -> dict[str, Any]:
        return self.rest("GET", f"lists/{address.replace('@', '.')}/config")

    def emails(self, path: str) -> list[str]:
        return sorted(entry["email"] for entry in self.rest("GET", path).get("entries", []))

    def archive(self, address: str) -> str:
        """The status that a stranger gets for a list's archive."""
        url = f"http://127.0.0.1:8000/archives/list/{address}/"
        command = f"curl -s -o /dev/null -w '%{{http_code}}' -H 'X-Forwarded-Proto: https' {url}"
        return self.host.run(command).stdout

    def post(self, content: bytes, sender: str, recipient: str, identity: str) -> email.message.Message:
        """Hand a post to Mailman and wait for a member's copy."""
        program = (
            "import smtplib,sys,base64;s=smtplib.LMTP('127.0.0.1',8024);"
            f"s.sendmail({sender!r},[{recipient!r}],base64.b64decode(sys.stdin.read()));s.quit()"
        )
        encoded = base64.b64encode(content).decode()
        self.host.run_expect([0], f'echo {encoded} | python3 -c "{program}"')
        for _ in range(60):
            found = self.host.run(f"grep -rl {identity} {SINK}/new {SINK}/cur").stdout.split()
            if found:
                text = self.host.run(f"base64 -w0 {found[0]}").stdout
                return email.message_from_bytes(base64.b64decode(text))
            time.sleep(1)
        raise AssertionError(self.host.run("tail -n 40 /var/log/mailman3/*.log /var/log/mail.log").stdout)

    def post_first(self, address: str, status: str) -> None:
        """A member's post, with which the archive gets to know a list; it is never open before it answers so."""
        identity = f"{uuid.uuid4()}@example.com"
        text = f"From: hanako@example.com\r\nTo: {address}\r\nSubject: first\r\nMessage-ID: <{identity}>\r\n\r\nx\r\n"
        self.post(text.encode(), "hanako@example.com", address, identity)
        found = []
        while not found or found[-1] != status:
            assert len(found) < 120, found
            found.append(self.archive(address))
            time.sleep(0.5)
        assert set(found) <= {"404", "403", status}


@pytest.fixture(scope="module")
def lists(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lists]:
    lists = Lists(host, tmp_path_factory.mktemp("lists"))
    yield lists
    gone = {address: {"state": "absent"} for address in lists.given}
    run = lists.playbook(lists.folder / "lists.yml", {"mailman_domains": [DOMAIN], "mailman_lists": gone})
    assert run.rc == 0, run.text
    known = [entry["fqdn_listname"] for entry in lists.rest("GET", "lists").get("entries", [])]
    assert not set(known) & set(gone)
    lists.rest("DELETE", f"domains/{DOMAIN}")


DISCUSSION = {
    "profile": "discussion",
    "display_name": "Dev",
    "owners": [OWNER, "Alice@example.org"],
    "moderators": ["alice@example.org"],
    "bans": ["spam@example.com", r"^.*@bad\.example$"],
    "header_matches": [
        {"header": "X-Spam-Status", "pattern": "^yes", "action": "hold"},
        {"header": "X-Other", "pattern": "x"},
    ],
    "aliases": ["dev@example.org"],
    "settings": {"bounce_info_stale_after": "36h", "accept_these_nonmembers": [r"^.*@friends\.example$"]},
}


def test_dry_run_shows_the_list_and_makes_none(lists):
    run = lists.apply({DEV: DISCUSSION}, "--check", "--diff")
    assert run.changed > 0
    assert "+subject_prefix: [Dev]" in run.text
    assert DEV not in [entry["fqdn_listname"] for entry in lists.rest("GET", "lists").get("entries", [])]


def test_list_is_made_as_the_data_says_and_a_second_run_changes_nothing(lists):
    assert lists.apply({DEV: DISCUSSION}).changed > 0
    config = lists.config(DEV)
    assert config["subject_prefix"] == "[Dev] "
    assert config["dmarc_mitigate_action"] == "munge_from"
    assert config["personalize"] == "individual"
    assert config["max_message_size"] == 10240
    assert config["acceptable_aliases"] == ["dev@example.org"]
    assert lists.emails(f"lists/dev.{DOMAIN}/roster/owner") == ["alice@example.org", OWNER]
    assert lists.emails(f"lists/dev.{DOMAIN}/bans") == [r"^.*@bad\.example$", "spam@example.com"]
    rules = lists.rest("GET", f"lists/dev.{DOMAIN}/header-matches")["entries"]
    assert [(rule["header"], rule.get("action")) for rule in rules] == [("x-spam-status", "hold"), ("x-other", None)]
    assert lists.apply({DEV: DISCUSSION}).changed == 0


def test_owner_s_change_stays_unless_the_data_claims_it(lists):
    lists.apply({DEV: DISCUSSION})
    lists.rest("PATCH", f"lists/dev.{DOMAIN}/config", info="by an owner", max_message_size=77)
    lists.rest("PATCH", f"lists/dev.{DOMAIN}/config", dmarc_mitigate_action="no_mitigation")
    run = lists.apply({DEV: DISCUSSION}, "--diff")
    config = lists.config(DEV)
    assert (config["info"], config["max_message_size"]) == ("by an owner", 77)
    assert config["dmarc_mitigate_action"] == "munge_from"
    assert "-dmarc_mitigate_action: no_mitigation" in run.text


def test_owners_bans_and_rules_are_exactly_those_of_the_data(lists):
    less = DISCUSSION | {
        "owners": [OWNER],
        "bans": ["spam@example.com"],
        "header_matches": DISCUSSION["header_matches"][1:],
    }
    lists.apply({DEV: less})
    assert lists.emails(f"lists/dev.{DOMAIN}/roster/owner") == [OWNER]
    assert lists.emails(f"lists/dev.{DOMAIN}/bans") == ["spam@example.com"]
    rules = lists.rest("GET", f"lists/dev.{DOMAIN}/header-matches")["entries"]
    assert [rule["header"] for rule in rules] == ["x-other"]
    assert lists.apply({DEV: less}).changed == 0


def test_fault_of_one_attribute_or_list_stops_nothing_else(lists):
    other = f"other@{DOMAIN}"
    bad = {"profile": "discussion", "settings": {"posting_pipeline": "no-such-pipeline", "info": "good"}}
    run = lists.apply({f"bad@{DOMAIN}": bad, other: {"profile": "discussion"}}, good=False)
    assert f"bad@{DOMAIN}: posting_pipeline" in run.text
    assert "Unknown pipeline: no-such-pipeline" in run.text
    assert lists.config(f"bad@{DOMAIN}")["info"] == "good"
    assert lists.config(other)["personalize"] == "individual"


def test_list_that_is_not_in_the_data_is_named_and_left_alone(lists):
    lists.rest("POST", "lists", fqdn_listname=f"byhand@{DOMAIN}")
    lists.given[f"byhand@{DOMAIN}"] = {}
    run = lists.apply({DEV: DISCUSSION})
    assert re.search(rf"Left alone.*byhand@{DOMAIN}", run.text.replace("\n", " "))
    assert lists.config(f"byhand@{DOMAIN}")["list_name"] == "byhand"


def test_archive_that_becomes_private_is_closed_at_once(lists):
    address = f"open@{DOMAIN}"
    definition = {"profile": "discussion", "members": ["hanako@example.com"]}
    lists.apply({address: definition})
    lists.post_first(address, "200")
    lists.apply({address: definition | {"settings": {"archive_policy": "private"}}})
    assert lists.archive(address) == "403"


def test_private_archive_is_never_opened_by_never(lists):
    address = f"closed@{DOMAIN}"
    definition = {"profile": "private", "members": ["hanako@example.com"]}
    lists.apply({address: definition})
    assert lists.config(address)["archive_policy"] == "private"
    lists.post_first(address, "403")
    run = lists.apply({address: definition | {"settings": {"archive_policy": "never"}}}, good=False)
    assert "would open the private archive" in run.text
    assert lists.config(address)["archive_policy"] == "private"
    assert lists.archive(address) == "403"


def test_organisation_rule_is_made_and_taken_back_by_data(lists):
    address, path = f"staff@{DOMAIN}", f"plugins/estate/lists/staff.{DOMAIN}/member-domains"
    rule = {"profile": "private", "member_domains": ["example.org", ".sfc.example.org"]}
    lists.apply({address: rule})
    assert sorted(lists.rest("GET", path)["domains"]) == [".sfc.example.org", "example.org"]
    assert lists.apply({address: rule}).changed == 0
    lists.apply({address: {"profile": "private", "member_domains": []}})
    assert lists.rest("GET", path)["domains"] == []


def test_only_posters_are_accepted_on_an_announce_list(lists):
    address = f"news@{DOMAIN}"
    news = {"profile": "announce", "members": [OWNER, "reader@example.com"]}
    lists.apply({address: news})
    path = f"plugins/estate/lists/news.{DOMAIN}/roster?role=member"
    marks = {entry["email"]: entry["moderation_action"] for entry in lists.rest("GET", path)["entries"]}
    assert marks == {OWNER: "accept", "reader@example.com": None}
    assert lists.config(address)["default_member_action"] == "hold"
    assert lists.apply({address: news}).changed == 0
    lists.apply({address: news | {"posters": []}})
    marks = [entry["moderation_action"] for entry in lists.rest("GET", path)["entries"]]
    assert marks == [None, None]


def test_japanese_list_has_its_own_footer_and_forgets_the_web_s(lists):
    address = f"nihongo@{DOMAIN}"
    definition = {
        "profile": "discussion",
        "language": "ja",
        "display_name": "日本語",
        "members": ["hanako@example.com"],
        "templates": {"footer": {"ja": "--\n$display_name の脚注\n"}},
    }
    lists.apply({address: definition})
    lists.rest(
        "PATCH", f"lists/nihongo.{DOMAIN}/uris", **{"list:member:regular:footer": "http://127.0.0.1:9/of-the-web"}
    )
    assert lists.apply({address: definition}).changed > 0
    assert lists.apply({address: definition}).changed == 0
    identity = f"{uuid.uuid4().hex}@example.com"
    content = (
        f"From: hanako@example.com\r\nTo: {address}\r\nSubject: test\r\nMessage-ID: <{identity}>\r\n"
        "Date: Tue, 24 Nov 2026 00:00:00 +0000\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
        "本文\r\n"
    ).encode()
    copy = lists.post(content, "hanako@example.com", address, identity)
    texts = [part.get_payload(decode=True).decode() for part in copy.walk() if not part.is_multipart()]
    assert any("日本語 の脚注" in text for text in texts), texts


def test_author_s_signature_survives_the_transparent_list(lists):
    address = f"plain@{DOMAIN}"
    lists.apply({address: {"profile": "transparent", "members": ["author@example.com", "reader@example.com"]}})
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = base64.b64encode(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    identity = f"{uuid.uuid4().hex}@example.com"
    content = (
        "From: Author <author@example.com>\r\n"
        f"To: {address}\r\n"
        # Fields that Mailman's own pipeline would write anew, without these quotation marks.
        'Cc: "Bob" <bob@example.net>, "Carol" <carol@example.net>\r\n'
        'Reply-To: "The Author" <author@example.com>\r\n'
        "Subject: What I signed\r\n"
        f"Message-ID: <{identity}>\r\n"
        "Date: Tue, 24 Nov 2026 00:00:00 +0000\r\n"
        "MIME-Version: 1.0\r\n"
        "Content-Type: multipart/alternative; boundary=half\r\n\r\n"
        "--half\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
        "One =E6=9C=AC line\r\n--half\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p>One line</p>\r\n--half--\r\n"
    ).encode()
    signed = [b"from", b"to", b"cc", b"subject", b"date", b"message-id", b"mime-version", b"content-type", b"reply-to"]
    options = {"canonicalize": (b"relaxed", b"relaxed"), "include_headers": signed}
    post = dkim.sign(content, b"s", b"example.com", private, **options) + content
    copy = lists.post(post, "author@example.com", address, identity)
    assert copy["List-Id"]
    received = copy.as_bytes()
    assert dkim.verify(received, dnsfunc=lambda name, timeout=5: b"v=DKIM1; p=" + public)
    assert not dkim.verify(received.replace(b"One line", b"Two lines"), dnsfunc=lambda name, timeout=5: b"p=" + public)


# --- members ----------------------------------------------------------------------------------------------------------


def test_members_come_from_a_file_with_mistakes_and_nothing_is_lost(lists):
    address = f"crowd@{DOMAIN}"
    lists.apply({address: {"profile": "discussion", "bans": ["banned@example.com"]}})
    csv = (
        "address,name,role,delivery\n"
        "hanako@example.com,山田 花子,,mime_digests\n"
        "Taro@example.com,Taro,,\n"
        "taro@EXAMPLE.com,Taro,,\n"
        "=1+1@example.com,,,\n"
        "banned@example.com,,,\n"
        "last@example.com,,,\n"
    ).encode("cp932")
    dry = lists.members(address, csv, "--check", "--diff")
    assert dry.rc == 0
    assert "+member hanako@example.com mime_digests 山田 花子" in dry.text
    assert lists.emails(f"lists/crowd.{DOMAIN}/roster/member") == []

    run = lists.members(address, csv)
    assert run.rc == 0, run.text
    assert "3 added, 0 changed, 0 removed, 0 unchanged, 2 refused" in run.text.replace("\n", " ").replace("  ", " ")
    roster = {entry["email"]: entry for entry in lists.rest("GET", f"lists/crowd.{DOMAIN}/roster/member")["entries"]}
    assert sorted(roster) == ["hanako@example.com", "last@example.com", "taro@example.com"]
    assert roster["hanako@example.com"]["delivery_mode"] == "mime_digests"
    assert roster["hanako@example.com"]["display_name"] == "山田 花子"
    refused = (lists.folder / "members.refused.csv").read_text()
    assert re.search(r"^5,.*like a spreadsheet's formula", refused, re.MULTILINE), refused
    assert re.search(r"^6,.*banned@example\.com", refused, re.MULTILINE), refused
    assert lists.members(address, csv).changed == 0


def test_sync_removes_members_but_never_a_crowd_by_mistake(lists):
    address = f"crowd@{DOMAIN}"
    everybody = "address\n" + "".join(f"m{number}@example.com\n" for number in range(10))
    lists.apply({address: {"profile": "discussion"}})
    lists.members(address, everybody.encode(), "-e", "mode=sync", "-e", "force=true")
    assert len(lists.emails(f"lists/crowd.{DOMAIN}/roster/member")) == 10
    run = lists.members(address, b"address\nm0@example.com\n", "-e", "mode=sync")
    assert run.rc != 0
    assert "would remove 9 of 10" in run.text
    assert len(lists.emails(f"lists/crowd.{DOMAIN}/roster/member")) == 10
    assert lists.members(address, everybody.replace("m9@example.com\n", "").encode(), "-e", "mode=sync").rc == 0
    assert len(lists.emails(f"lists/crowd.{DOMAIN}/roster/member")) == 9


def test_unknown_list_and_unusable_file_are_told_in_plain_words(lists):
    assert "there is no such list" in lists.members(f"nolist@{DOMAIN}", b"address\na@example.com\n").text
    assert "is empty" in lists.members(DEV, b"").text


def test_password_of_mailman_is_in_no_output(lists):
    texts = [lists.apply({DEV: DISCUSSION}, "-vvv", "--diff").text, lists.members(DEV, b"address\n", "-vvv").text]
    assert not any(lists.password in text for text in texts)
