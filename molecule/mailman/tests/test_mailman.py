"""Mailman as an author, a member, a reader of the archive and whoever watches the host see it."""

from __future__ import annotations

import base64
import email.policy
import json
import re
import time
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

import pytest

LIST, LIST_ID = "talk@ml.example.org", "talk.ml.example.org"
PRIVATE, PRIVATE_ID = "board@ml.example.org", "board.ml.example.org"
PASSWORD = "rest-password-of-the-scenario"
MEMBERS = ("alice@example.com", "taro@example.net")
UNITS = ("mailman3", "mailman-web", "mailman-qcluster")
JOBS = ("digests", "notify", "archive", "watch", "index", "web-hourly", "web-daily", "web-monthly", "web-yearly")

HTTP = """
import base64, json, sys, urllib.error, urllib.request
asked = json.loads(sys.argv[1])
request = urllib.request.Request(asked["url"], method=asked["method"], headers=asked["headers"])
if asked["body"] is not None:
    request.data = asked["body"].encode()
class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None
try:
    answer = urllib.request.build_opener(Stay).open(request, timeout=60)
except urllib.error.HTTPError as error:
    answer = error
print(json.dumps([answer.status, answer.read().decode(errors="replace")]))
"""
LMTP = """
import smtplib, sys
with smtplib.LMTP("127.0.0.1", 8024) as client:
    client.sendmail(sys.argv[1], [sys.argv[2]], sys.stdin.buffer.read())
"""
VERIFY = """
import dkim, sys
result = dkim.ARC(sys.stdin.buffer.read()).verify()
print(result[0].decode(), max(entry["instance"] for entry in result[1]))
"""
WITHOUT_VOLUME = """
import pickle, sys, time
from email import message_from_string
from mailman.email.message import Message
message = message_from_string("From: alice@example.com\\nMessage-ID: <wrong@example.com>\\n\\nx\\n", Message)
with open(f"/var/lib/mailman3/queue/digest/{time.time()!r}+{'a' * 40}.pck", "wb") as file:
    pickle.dump(message, file)
    pickle.dump({"listid": "talk.ml.example.org", "version": 3, "_parsemsg": False}, file)
"""


def run(host, code, *arguments, stdin=b"", user="root", python="/usr/bin/python3"):
    """What a program prints that runs on the host."""
    encoded = base64.b64encode(stdin).decode()
    done = host.run("echo %s | base64 -d | runuser -u %s -- env -C / %s -c %s " + "%s " * len(arguments),
                    encoded, user, python, code, *arguments)  # fmt: skip
    assert done.rc == 0, done.stderr
    return done.stdout


def http(host, url, method="GET", body=None, **headers):
    """Status and text of an answer."""
    asked = {"url": url, "method": method, "body": body, "headers": headers}
    return json.loads(run(host, HTTP, json.dumps(asked)))


def rest(host, path, method="GET", password=PASSWORD, **fields):
    """Status and text of an answer of core's REST."""
    login = base64.b64encode(f"restadmin:{password}".encode()).decode()
    return http(host, f"http://127.0.0.1:8001/3.1/{path}", method, json.dumps(fields) if fields else None,
                Authorization=f"Basic {login}", **{"Content-Type": "application/json"})  # fmt: skip


def web(host, path, **headers):
    """Status and text of a page, as the proxy asks for it."""
    return http(
        host, f"http://127.0.0.1:8000{path}", Host="ml.example.org", **{"X-Forwarded-Proto": "https"}, **headers
    )


def until(what, seconds, sentence):
    """What ``what()`` gives once it gives something, within the time."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, sentence
        time.sleep(1)
    return found


def post(host, subject, text, to=LIST, sender="alice@example.com"):
    """Send a post to a list by LMTP, as Postfix does; returns its Message-ID."""
    message = EmailMessage(policy=email.policy.SMTP)
    message["From"], message["To"], message["Subject"] = sender, to, subject
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain="example.com")
    message["Authentication-Results"] = (
        "mx.example.org; dkim=pass header.d=example.com; dmarc=pass header.from=example.com"
    )
    message.set_content(text)
    run(host, LMTP, sender, to, stdin=message.as_bytes())
    return message["Message-ID"]


def copies(host, message_id, count=2, seconds=60):
    """The members' copies of a post, one for each member unless another number is wanted."""
    count = count or len(MEMBERS)

    def found():
        names = host.run("grep -rlF %s /var/mail/sink/new", message_id).stdout.split()
        if len(names) < count:
            return None
        raw = [base64.b64decode(host.run("base64 -w0 %s", name).stdout) for name in names]
        return [one for one in raw if b"\nTo: talk" in one or b"\nTo: board" in one]

    return until(found, seconds, f"{count} copies of {message_id} did not reach the sink")


def search(host, words):
    """Subjects' page of a search in the archive by a stranger."""
    from urllib.parse import quote

    status, page = web(host, f"/archives/search?q={quote(words)}")
    assert status == 200, page[:500]
    return page


@pytest.fixture(scope="module", autouse=True)
def lists(host):
    """A public and a private list with two members."""
    rest(host, "domains", "POST", mail_host="ml.example.org")
    for address, list_id, policy in ((LIST, LIST_ID, "public"), (PRIVATE, PRIVATE_ID, "private")):
        if rest(host, f"lists/{address}")[0] == 404:
            assert rest(host, "lists", "POST", fqdn_listname=address)[0] == 201
        for member in MEMBERS:
            rest(host, "members", "POST", list_id=list_id, subscriber=member, pre_verified=True, pre_confirmed=True,
                 pre_approved=True, send_welcome_message=False)  # fmt: skip
        settings = {"archive_policy": policy, "default_member_action": "accept", "dmarc_mitigate_action": "munge_from"}
        status, said = rest(host, f"lists/{list_id}/config", "PATCH", **settings)
        assert status == 204, said
    assert host.run("mailman-web mailman_sync").rc == 0


@pytest.mark.parametrize("unit", UNITS)
def test_unit_runs_and_starts_at_boot(host, unit):
    assert host.service(unit).is_running
    assert host.service(unit).is_enabled


def test_nothing_listens_beyond_loopback(host):
    listening = host.check_output("ss -Hltn")
    for port in (8000, 8001, 8024):
        assert f"127.0.0.1:{port}" in listening
        assert not re.search(rf"(0\.0\.0\.0|\*|\[::\]|198\.18\.25\.50):{port}\b", listening)


@pytest.mark.parametrize("password", ["", "restpass", PASSWORD[:-1]])
def test_rest_refuses_whoever_does_not_know_the_password(host, password):
    assert rest(host, "lists", password=password)[0] == 401


def test_rest_answers_with_the_password(host):
    status, said = rest(host, "system/configuration/mailman")
    assert status == 200
    assert json.loads(said)["default_language"] == "en"


def test_no_secret_in_command_lines_or_readable_by_the_other_half(host):
    lines = host.check_output("cat /proc/*/cmdline | tr '\\0' ' '")
    assert "mailman" in lines
    for secret in (PASSWORD, "secret-key-of-the-scenario", "archiver-key-of-the-scenario"):
        assert secret not in lines
    for user, path in (
        ("nobody", "mailman.cfg"),
        ("nobody", "settings.py"),
        ("nobody", "unsubscribe.key"),
        ("nobody", "arc.pem"),
        ("mailmanweb", "mailman.cfg"),
        ("mailmanweb", "mailman-hyperkitty.cfg"),
        ("mailmanweb", "arc.pem"),
        ("list", "settings.py"),
    ):
        assert host.run(f"runuser -u {user} -- cat /etc/mailman3/{path}").rc != 0, f"{user} reads {path}"
    for user in ("list", "mailmanweb"):
        assert host.run(f"runuser -u {user} -- cat /etc/mailman3/unsubscribe.key").rc == 0


def test_post_reaches_every_member_with_an_intact_seal(host):
    message_id = post(host, "A post to be sealed", "Hello\n")
    found = copies(host, message_id)
    assert len(found) == len(MEMBERS)
    for copy in found:
        assert run(host, VERIFY, stdin=copy).split() == ["pass", "1"]
        message = email.message_from_bytes(copy, policy=email.policy.default)
        assert "d=ml.example.org" in message["ARC-Seal"]
        # What the gateway found went into the seal.
        assert "dmarc=pass" in message["ARC-Authentication-Results"]
        # example.com says p=reject.
        assert message["From"].addresses[0].addr_spec == LIST
        assert message["List-Id"].endswith("<talk.ml.example.org>")
        assert message["Archived-At"].strip().startswith("<https://ml.example.org/archives/")


def test_seal_of_a_changed_copy_does_not_verify(host):
    copy = copies(host, post(host, "A post to be changed", "Hello\n"))[0]
    assert run(host, VERIFY, stdin=copy.replace(b"Hello", b"Hullo")).split()[0] == "fail"


@pytest.mark.parametrize(
    ("subject", "text", "questions"),
    [
        (
            "経路制御研究会のお知らせ",
            "来週の研究会では電子メールの送信者認証について議論します。ｶﾀｶﾅ表記も可。\n",
            ["研究会", "送信者認証", "電子メール", "カタカナ", "議"],
        ),
        (
            "Deliveries to large receivers",
            "Which of them reject mail at mx.example.com?\n",
            ["delivery", "mx.example.com"],
        ),
    ],
)
def test_post_is_found_in_the_archive_within_a_minute(host, subject, text, questions):
    post(host, subject, text)
    until(lambda: subject in search(host, questions[0]), 60, f"{questions[0]} does not find {subject}")
    for question in questions[1:]:
        assert subject in search(host, question), question
    assert subject not in search(host, "認証者送信")
    assert subject not in search(host, "nobodywrotethis")


@pytest.mark.parametrize("question", ['"', "((", "*", "a AND", "[", "subject:", "\\", "' OR", "~2"])
def test_search_answers_every_question(host, question):
    search(host, question)


def test_private_post_is_not_found_by_a_stranger(host):
    post(host, "機密事項 confidential", "取扱注意の文書\n", to=PRIVATE)
    post(host, "公開事項 for everybody", "取扱注意ではない文書\n")
    until(lambda: "公開事項" in search(host, "取扱注意"), 60, "the public post is not found")
    assert "機密事項" not in search(host, "取扱注意")
    assert web(host, f"/archives/list/{PRIVATE}/")[0] == 403


def test_interface_speaks_the_readers_language(host):
    assert "メーリングリスト" in web(host, "/mailman3/lists/", **{"Accept-Language": "ja"})[1]
    english = web(host, "/mailman3/lists/", **{"Accept-Language": "en"})[1]
    assert "Mailing Lists" in english
    assert "ml.example.org" in english
    assert "example.com" not in english
    # No picture of anybody is fetched from elsewhere.
    assert "gravatar.com" not in web(host, f"/archives/list/{LIST}/latest")[1]


def test_style_sheets_are_there(host):
    page = web(host, "/archives/")[1]
    sheets = re.findall(r'href="/static/(CACHE/css/[^"]+)"', page)
    assert sheets
    for sheet in sheets:
        assert host.file(f"/var/lib/mailman3/web/static/{sheet}").size > 100


def test_unknown_host_name_is_refused(host):
    assert http(host, "http://127.0.0.1:8000/mailman3/lists/", Host="evil.example.net")[0] == 400


def test_archive_takes_no_post_without_its_key(host):
    assert http(host, f"http://127.0.0.1:8000/archives/api/mailman/urls?mlist={LIST}")[0] in (401, 403)


def test_administrator_has_the_right_and_no_password(host):
    said = host.check_output(
        "mailman-web shell -c %s",
        "from django.contrib.auth.models import User; u = User.objects.get(username='olga');"
        "print(u.is_superuser, u.has_usable_password(), u.emailaddress_set.get().verified)",
    )
    assert said.splitlines()[-1] == "True False True"


def test_post_during_a_restart_of_the_web_interface_knows_its_place_in_the_archive(host):
    host.run("systemctl restart --no-block mailman-web.service")
    copy = copies(host, post(host, "Sent while the web restarts", "Hello\n"))[0]
    assert email.message_from_bytes(copy)["Archived-At"].strip().startswith("<https://ml.example.org/archives/")


def test_post_that_the_archive_could_not_take_comes_in_by_itself(host):
    subject = "Sent while the archive was down"
    try:
        assert host.run("systemctl stop mailman-web.socket mailman-web.service").rc == 0
        copies(host, post(host, subject, "Hello\n"))
        spool = "find /var/lib/mailman3/archives/hyperkitty/spool -name '*.pck'"
        until(lambda: host.run(spool).stdout, 60, "nothing waits for the archive")
    finally:
        assert host.run("systemctl start mailman-web.socket mailman-web.service").rc == 0
    until(lambda: subject in web(host, f"/archives/list/{LIST}/latest")[1], 120, "the post did not come in")
    until(lambda: not host.run(spool).stdout, 90, "posts still wait for the archive")


def test_shunted_post_raises_an_alert_until_it_is_gone(host):
    alert = host.file("/var/lib/mailman3/alerts/shunt")
    metrics = host.file("/var/lib/mailman3/metrics/mailman.prom")
    assert not alert.exists
    python = "/opt/mailman/core/bin/python" if host.file("/opt/mailman/core").exists else "/usr/bin/python3"
    run(host, WITHOUT_VOLUME, user="list", python=python)
    try:
        until(lambda: alert.exists, 60, "nothing tells of the shunted post")
        assert "1 posts ended in an exception" in alert.content_string
        assert 'mailman_queue_files{queue="shunt"} 1' in metrics.content_string
    finally:
        host.run("find /var/lib/mailman3/queue/shunt -type f -delete")
    until(lambda: not alert.exists, 60, "the alert stays")


def test_metrics_say_that_every_runner_runs(host):
    lines = host.file("/var/lib/mailman3/metrics/mailman.prom").content_string
    runners = dict(re.findall(r'mailman_runner_up\{runner="(\w+)"\} (\d)', lines))
    assert len(runners) == 12
    assert [name for name, up in runners.items() if up != "1"] == []


def test_held_post_survives_a_restart_and_is_there_at_once(host):
    message_id = post(host, "From somebody outside", "Hello\n", sender="stranger@example.net")
    held = f"lists/{LIST_ID}/held"
    until(lambda: message_id in rest(host, held)[1], 30, "the post is not held")
    assert host.run("systemctl restart mailman3").rc == 0
    # Started means that core answers.
    entry = next(one for one in json.loads(rest(host, held)[1])["entries"] if one["message_id"] == message_id)
    assert rest(host, f"{held}/{entry['request_id']}", "POST", action="accept")[0] == 204
    copies(host, message_id)


def test_runner_that_is_killed_comes_back(host):
    pid = host.check_output("pgrep -u list -f 'runner \\[out|runner=out' | head -1")
    host.run(f"kill -9 {pid}")
    copies(host, post(host, "Sent after a runner was killed", "Hello\n"))


@pytest.mark.drill
def test_runner_is_never_given_up(host):
    # Stock Mailman starts a runner ten times in the life of its master.
    ends = host.run(
        "for n in $(seq 12); do"
        " pid=$(timeout 20 sh -c 'until pgrep -u list -f \"runner .virgin|runner=virgin\"; do sleep 0.05; done');"
        " kill -9 $pid; while kill -0 $pid 2>/dev/null; do sleep 0.05; done; echo $pid; done"
    ).stdout.split()
    assert len(set(ends)) == 12
    until(lambda: host.run("pgrep -u list -f 'runner .virgin|runner=virgin'").stdout, 30, "the runner stays away")
    log = host.file("/var/log/mailman3/mailman.log").content_string
    assert "reached maximum restart limit" not in log


def test_postfix_finds_list_addresses_in_the_tables(host):
    tables = "/var/lib/mailman3/data"
    assert host.check_output(f"postmap -q {LIST} hash:{tables}/postfix_lmtp") == "lmtp:[127.0.0.1]:8024"
    assert host.check_output(f"postmap -q ml.example.org hash:{tables}/postfix_domains") == "ml.example.org"


@pytest.mark.parametrize("unit", [*UNITS, *(f"mailman-{job}" for job in JOBS)])
def test_unit_is_confined(host, unit):
    said = host.check_output(f"systemd-analyze security --no-pager {unit}.service")
    assert float(re.search(r"exposure level for \S+: ([\d.]+)", said)[1]) <= 3.0


def test_every_job_has_its_time_and_cron_has_none(host):
    timers = host.check_output("systemctl list-timers --no-pager --all")
    for job in JOBS:
        if job != "index":
            assert f"mailman-{job}.timer" in timers
    assert host.service("mailman-index.path").is_running
    assert not host.file("/etc/cron.d/mailman3").exists


@pytest.mark.parametrize("job", [job for job in JOBS if job != "index"])
def test_job_does_its_work(host, job):
    done = host.run(f"systemctl start mailman-{job}.service")
    assert done.rc == 0, host.run(f"journalctl --no-pager -n 30 -u mailman-{job}").stdout


def test_logs_are_turned_and_written_on(host):
    assert host.run("logrotate -f /etc/logrotate.d/mailman3").rc == 0
    post(host, "Sent after the logs were turned", "Hello\n")
    until(
        lambda: host.run("grep -q 'smtp to talk' /var/log/mailman3/smtp.log").rc == 0, 30, "nothing is logged any more"
    )


def test_nothing_in_the_journal_is_an_error(host):
    said = host.check_output("journalctl --no-pager -p err -u 'mailman*' --since -1h")
    lines = [line for line in said.splitlines() if "-- " not in line]
    assert lines == []


def test_web_interface_that_cannot_be_loaded_is_not_reported_as_started(host):
    """After the test of the journal, in which it leaves an error."""
    place = "/run/systemd/system/mailman-web.service.d"
    try:
        host.check_output(f"mkdir -p {place}")
        # What prepares the start would say it first.
        broken = r"[Service]\nExecStartPre=\nEnvironment=DJANGO_SETTINGS_MODULE=nowhere\n"
        host.check_output(f"printf '{broken}' > {place}/broken.conf && systemctl daemon-reload")
        assert host.run("systemctl restart mailman-web.service").rc == 1
    finally:
        host.check_output(f"rm -r {place} && systemctl daemon-reload && systemctl restart mailman-web.service")
    assert web(host, "/archives/")[0] == 200
