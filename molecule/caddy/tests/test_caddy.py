"""What a visitor of Caddy's sites meets, with and without a client certificate.

Sites, routes and policies are in vars/inputs.yml; the back end (files/backend.py) answers with what it was asked.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

import pytest

LISTS = "https://lists.example.org"
REFUSAL = "This page is for members: a valid client certificate is needed."
SUBJECT = r"CN=taro.example.org,O=WIDE\, Members"
ROOT = "/var/lib/caddy/storage/pki/authorities/local/root.crt"


@dataclass
class Answer:
    """What curl got."""

    code: int
    version: str
    headers: list[tuple[str, str]]
    body: str

    def header(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for known, value in self.headers if known == name.lower()]

    def seen(self) -> dict[str, Any]:
        """What the back end saw; fails if this is no answer of it."""
        assert self.code == 200, self
        return json.loads(self.body)

    def seen_header(self, name: str) -> list[str]:
        """All values of a header as the back end saw it, with - and _ alike, as WSGI has it."""
        return [v for n, v in self.seen()["headers"] if n.lower().replace("_", "-") == name.lower()]


class Browser:
    """curl on the host under test."""

    def __init__(self, host) -> None:
        self.host = host

    def run(self, url: str, *arguments: str, certificate: str | None = None):
        """The result of curl itself."""
        words = ["curl", "-sS", "--insecure", "--path-as-is", "--max-time", "20", "-D", "-", *arguments, url]
        if certificate:
            words += ["--cert", f"/root/certificates/{certificate}.pem"]
        return self.host.run(" ".join(["%s"] * len(words)), *words)

    def get(self, url: str, *arguments: str, certificate: str | None = None) -> Answer:
        """The answer to a request that must get one."""
        result = self.run(url, *arguments, certificate=certificate)
        assert result.rc == 0, result.stderr
        head, _, body = result.stdout.replace("\r\n", "\n").partition("\n\n")
        first, *lines = head.splitlines()
        version, code = first.split()[:2]
        pairs = [line.partition(":") for line in lines]
        return Answer(int(code), version, [(n.lower(), v.strip()) for n, _, v in pairs], body)


@pytest.fixture
def browser(host, request: pytest.FixtureRequest):
    """A client; a test that failed ends with the last words of Caddy."""
    failed = request.session.testsfailed
    yield Browser(host)
    if request.session.testsfailed > failed:
        print(host.run("journalctl -u caddy -n 40 --no-pager").stdout)


def test_path_for_members_is_refused_in_plain_words_without_certificate(browser):
    for path in ("/members", "/members/", "/members/x", "/members/files/css/style.css"):
        answer = browser.get(LISTS + path)
        assert (answer.code, answer.body) == (403, REFUSAL), path


def test_member_reaches_the_back_end_which_learns_the_subject(browser):
    answer = browser.get(LISTS + "/members/x?a=b", certificate="valid")
    assert answer.seen()["path"] == "/members/x?a=b"
    assert answer.seen_header("X-Client-Subject") == [SUBJECT]


def test_every_ca_of_the_bundle_is_accepted(browser):
    answer = browser.get(LISTS + "/members", certificate="second")
    assert answer.seen_header("X-Client-Subject") == [r"CN=jiro.example.org,O=WIDE\, Members"]


def test_member_reads_files_for_members(browser):
    assert browser.get(LISTS + "/members/files/css/style.css", certificate="valid").body == "css/style.css\n"


@pytest.mark.parametrize("certificate", ["expired", "other"])
def test_certificate_that_is_expired_or_of_another_ca_opens_nothing(browser, certificate):
    result = browser.run(LISTS + "/members", certificate=certificate)
    assert result.rc in (35, 55, 56), result
    assert "HTTP/" not in result.stdout
    # The reason may be cut off by the end of the connection, so the same without this certificate must be answered.
    assert browser.get(LISTS + "/members").code == 403


def test_only_a_site_with_such_a_path_asks_for_certificates(host):
    connect = "openssl s_client -connect 127.0.0.1:443 -servername %s </dev/null 2>/dev/null"
    assert "No client certificate CA names sent" not in host.run(connect, "lists.example.org").stdout
    assert "No client certificate CA names sent" in host.run(connect, "given.example.org").stdout


def test_longer_path_decides_for_itself(browser):
    assert browser.get(LISTS + "/members/open/x").seen_header("X-Client-Subject") == []
    assert browser.get(LISTS + "/members/opener").code == 403


def test_requested_certificate_is_told_and_not_needed(browser):
    assert browser.get(LISTS + "/lists").seen_header("X-Client-Subject") == []
    assert browser.get(LISTS + "/lists", certificate="valid").seen_header("X-Client-Subject") == [SUBJECT]


def test_path_without_policy_tells_the_back_end_nothing(browser):
    assert browser.get(LISTS + "/open", certificate="valid").seen_header("X-Client-Subject") == []


@pytest.mark.parametrize(
    "name", ["X-Client-Subject", "x-client-subject", "X_Client_Subject", "X-Client_Subject", "x_client-SUBJECT"]
)
@pytest.mark.parametrize("path", ["/lists", "/open", "/members/open"])
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_forged_subject_never_reaches_the_back_end(browser, name, path, version):
    answer = browser.get(LISTS + path, version, "-H", f"{name}: CN=root", "-H", "X-Kept: yes")
    assert answer.seen_header("X-Client-Subject") == []
    assert answer.seen_header("X-Kept") == ["yes"]


def test_forged_subject_does_not_stand_beside_the_true_one(browser):
    forged = ("-H", "X-Client-Subject: CN=root", "-H", "X_Client_Subject: CN=root")
    assert browser.get(LISTS + "/members", *forged, certificate="valid").seen_header("X-Client-Subject") == [SUBJECT]


def test_forged_forwarding_headers_are_replaced(browser):
    forged = [f"{name}: 192.0.2.1" for name in ("X-Forwarded-For", "X_Forwarded_For", "X_Forwarded_Proto")]
    answer = browser.get(LISTS + "/open", *(word for line in forged for word in ("-H", line)))
    assert answer.seen_header("X-Forwarded-For") == ["127.0.0.1"]
    assert answer.seen_header("X-Forwarded-Proto") == ["https"]
    assert answer.seen_header("Host") == ["lists.example.org"]


def test_connection_of_another_site_opens_no_path_for_members(browser):
    answer = browser.get(
        "https://given.example.org/members", "-H", "Host: lists.example.org", "--http1.1", certificate="valid"
    )
    assert answer.code == 421


@pytest.mark.parametrize(
    "path",
    [
        *("/admin", "/admin/", "/admin/x", "/ADMIN/x", "//admin/x", "/%61dmin/x", "/open/../admin/x", "/./admin"),
        *("/static/..%2fadmin/x", "/admin%2fx", "/api/rest", "/api/rest/3.1/users", "/api//rest/x", "/admin?x=/open"),
    ],
)
def test_hidden_path_is_not_there_for_anybody(browser, path):
    for certificate in (None, "valid"):
        answer = browser.get(LISTS + path, certificate=certificate)
        assert (answer.code, answer.body) == (404, "")


@pytest.mark.parametrize(
    "path", ["/MEMBERS/x", "//members/x", "/%6dembers/x", "/open/../members/x", "/open/..%2fmembers", "/members%2fx"]
)
def test_path_for_members_has_no_other_spelling(browser, path):
    assert browser.get(LISTS + path).code == 403


def test_only_whole_words_of_a_path_count(browser):
    assert browser.get(LISTS + "/administrator").seen()["path"] == "/administrator"
    assert browser.get(LISTS + "/api").seen()["path"] == "/api"


def test_exact_path_is_redirected_alone(browser):
    answer = browser.get(LISTS + "/")
    assert (answer.code, answer.header("Location")) == (302, ["/lists"])
    assert browser.get(LISTS + "/x").seen()["path"] == "/x"


def test_files_are_served_but_neither_hidden_ones_nor_others(browser):
    assert browser.get(LISTS + "/static/css/style.css").body == "css/style.css\n"
    for path in ("/static/.secret", "/static/css/", "/static/../etc/passwd", "/static/..%2f..%2fetc/passwd"):
        answer = browser.get(LISTS + path)
        assert "root:" not in answer.body
        assert answer.code in (400, 404) or answer.seen()["path"] == path, (path, answer)


def test_headers_stand_once_on_every_kind_of_answer(browser):
    for path in ("/open", "/static/css/style.css", "/members", "/admin", "/static/nothing", "/robots.txt", "/gone"):
        answer = browser.get(LISTS + path)
        assert answer.header("Strict-Transport-Security") == ["max-age=31536000"], path
        assert answer.header("X-Content-Type-Options") == ["nosniff"], path
        assert answer.header("X-Frame-Options") == ["SAMEORIGIN"], path
        assert answer.header("Referrer-Policy") == ["strict-origin-when-cross-origin"], path
        assert answer.header("Server") == [], path


def test_site_has_its_own_headers(browser):
    answer = browser.get("https://given.example.org/")
    assert answer.header("X-Frame-Options") == ["DENY"]
    assert answer.header("Referrer-Policy") == []


def test_back_end_may_be_stricter_where_the_site_only_has_a_default(browser):
    answer = browser.get("https://given.example.org/")
    assert answer.header("X-Own") == ["back end"]
    assert answer.header("Content-Security-Policy") == ["default-src 'self'"]


def test_plain_http_is_sent_to_https(browser):
    answer = browser.get("http://lists.example.org/members?a=b")
    assert (answer.code, answer.header("Location")) == (308, ["https://lists.example.org/members?a=b"])


def test_challenge_of_another_program_is_answered_in_plain_http_and_nothing_else_is(browser):
    challenge = "http://acme.example.org/.well-known/acme-challenge/"
    answer = browser.get(challenge + "token")
    assert (answer.code, answer.body) == (200, "token\n")
    assert browser.get(challenge + "unknown").code == 404
    assert browser.get(challenge + ".secret").code == 404
    assert "root:" not in browser.get(challenge + "../../etc/passwd").body
    answer = browser.get("http://acme.example.org/a?b=c")
    assert (answer.code, answer.header("Location")) == (308, ["https://acme.example.org/a?b=c"])


def test_http2_is_spoken(browser):
    assert browser.get(LISTS + "/open", "--http2").version == "HTTP/2"
    assert browser.get(LISTS + "/open", "--http1.1").version == "HTTP/1.1"


def speaks_http3(host) -> bool:
    """Whether this release is to speak HTTP/3: 2.6.2 is not."""
    return host.run("systemctl show -P ExecStart caddy | grep -q path=/usr/bin/caddy").rc != 0


def test_http3_is_offered_on_an_open_port_or_not_at_all(browser):
    if not speaks_http3(browser.host):
        assert browser.get(LISTS + "/open").header("Alt-Svc") == []
        assert browser.host.run("ss -Hlun 'sport = :443'").stdout == ""
        return
    assert browser.get(LISTS + "/open").header("Alt-Svc")[0].startswith('h3=":443"')
    assert browser.host.run("ss -Hlun 'sport = :443'").stdout.strip()


def test_http3_obeys_the_same_policy(browser):
    if not speaks_http3(browser.host) or "HTTP3" not in browser.host.check_output("curl --version"):
        pytest.skip("this Caddy, or curl of this distribution, does not speak HTTP/3")
    assert browser.get(LISTS + "/open", "--http3-only").version == "HTTP/3"
    assert browser.get(LISTS + "/members", "--http3-only").code == 403
    answer = browser.get(LISTS + "/members", "--http3-only", certificate="valid")
    assert answer.seen_header("X-Client-Subject") == [SUBJECT]


def test_robots_are_told_what_to_leave_alone(browser):
    answer = browser.get(LISTS + "/robots.txt")
    assert answer.header("Content-Type") == ["text/plain; charset=utf-8"]
    assert answer.body == (
        "User-agent: GreedyBot\nUser-agent: HungryBot\nDisallow: /\n\n"
        "User-agent: *\nDisallow: /members\nAllow: /members/welcome\n"
    )
    assert browser.get("https://given.example.org/robots.txt").seen()["path"] == "/robots.txt"


def test_crawler_without_manners_is_refused(browser):
    assert browser.get(LISTS + "/open", "-A", "Mozilla/5.0 (RudeBot/2)").code == 403


def journal(host, since: str) -> list[dict[str, Any]]:
    """What Caddy wrote to the journal since then; fails if a line is no JSON."""
    host.check_output("journalctl --sync")
    text = host.check_output("journalctl -u caddy _COMM=caddy --since=%s -o cat", since)
    return [json.loads(line) for line in text.splitlines()]


def test_request_is_logged_as_json_without_what_opens_something(browser):
    since = browser.host.check_output("date '+%F %T.%6N'")
    secret = "c2VjcmV0.tOKen-7_x"
    # From the back end, as an error (nothing listens there), redirected to https, and as the page before.
    assert browser.get(f"{LISTS}/open/unsubscribe/{secret}?a=b").code == 200
    assert browser.get(f"{LISTS}//OPEN/Unsubscribe/{secret}/x").code == 200
    assert browser.get(f"{LISTS}/gone/key/{secret}").code == 502
    assert browser.get(f"http://lists.example.org/gone/key/{secret}").code == 308
    assert browser.get(f"{LISTS}/open/style", "-e", f"{LISTS}/open/unsubscribe/{secret}").code == 200
    assert browser.get(f"{LISTS}/open/callback?a=b&code={secret}&State={secret}&c=d").code == 200
    lines = journal(browser.host, since)
    assert secret not in json.dumps(lines)
    asked = {line["request"]["uri"] for line in lines if line.get("logger", "").startswith("http.log.access")}
    assert {"/open/unsubscribe/***?a=b", "//OPEN/Unsubscribe/***", "/gone/key/***", "/open/style"} <= asked
    assert "/open/callback?a=b&code=***&State=***&c=d" in asked
    # What the operator wants to know of it.
    reasons = {line["msg"] for line in lines if line.get("logger", "").startswith("http.log.error")}
    assert any("127.0.0.1:9: connect: connection refused" in reason for reason in reasons)


def served(host, name: str, authority: str) -> str:
    """Serial number of the certificate, verified up to the CA in that file; empty when it does not verify."""
    connect = f"openssl s_client -connect 127.0.0.1:443 -servername {name} -CAfile {authority} -verify_return_error"
    result = host.run(f"{connect} -verify_hostname {name} </dev/null 2>/dev/null | openssl x509 -noout -serial")
    return result.stdout.strip() if result.rc == 0 else ""


def test_given_and_internal_certificates_are_served(host):
    assert served(host, "given.example.org", "/root/certificates/servers.pem")
    assert served(host, "lists.example.org", ROOT)
    assert not served(host, "given.example.org", ROOT)


@pytest.fixture
def acme_root(host) -> str:
    """File with the root of the ACME server, which has a new one after each of its starts."""
    host.check_output("curl -sSfk https://localhost:15000/roots/0 -o /root/pebble-root.pem")
    return "/root/pebble-root.pem"


def wait_until_served(host, authority: str, other_than: str = "") -> str:
    """Serial number of the ACME site's certificate, once there is one and it is another."""
    for _ in range(60):
        serial = served(host, "acme.example.org", authority)
        if serial not in ("", other_than):
            return serial
        time.sleep(1)
    pytest.fail("no new certificate from the ACME server within 60 s")


def accounts(host) -> str:
    """What the ACME server says each time it gets a new account, in one text."""
    host.check_output("journalctl --sync")
    return host.check_output("journalctl -u test-pebble -o cat | grep 'accounts in memory'")


def test_names_that_ask_at_the_same_time_have_one_account(host, acme_root):
    wait_until_served(host, acme_root)
    assert re.findall(r"There are now (\d+) accounts", accounts(host)) == ["1"]


def test_acme_certificate_is_fetched_and_kept_over_a_restart(host, acme_root):
    first = wait_until_served(host, acme_root)
    host.check_output("systemctl restart caddy")
    assert served(host, "acme.example.org", acme_root) == first


def test_rebuilt_host_goes_on_with_restored_account_key_and_certificate(host, acme_root):
    first, known = wait_until_served(host, acme_root), accounts(host)
    host.check_output(
        "systemctl stop caddy && tar -C /var/lib/caddy -cf /root/storage.tar storage && rm -r /var/lib/caddy/* && "
        "tar -C /var/lib/caddy -xf /root/storage.tar && systemctl start caddy"
    )
    assert served(host, "acme.example.org", acme_root) == first
    assert accounts(host) == known


def test_new_certificate_is_asked_for_with_the_same_account(host, acme_root):
    first, known = wait_until_served(host, acme_root), accounts(host)
    host.check_output("rm -r /var/lib/caddy/storage/certificates/*14000*/acme.example.org && systemctl restart caddy")
    wait_until_served(host, acme_root, other_than=first)
    assert accounts(host) == known


def test_reload_lets_an_open_request_end(host):
    before = host.check_output("systemctl show -P MainPID caddy")
    result = host.run(
        "curl -sSk --max-time 20 https://lists.example.org/slow & sleep 1; "
        "systemctl reload caddy || exit 9; kill -0 $! || exit 8; wait $!"
    )
    assert result.rc == 0, result
    assert json.loads(result.stdout)["path"] == "/slow"
    assert host.check_output("systemctl show -P MainPID caddy") == before


def test_admin_endpoint_is_for_root_and_caddy_only(host):
    ask = "curl -sS --max-time 5 -H 'Host;' --unix-socket /run/caddy/admin.sock http://127.0.0.1/config/"
    assert '"apps"' in host.check_output(ask)
    assert host.run(f"runuser -u nobody -- {ask}").rc == 7
    assert host.run("curl -sS --max-time 5 http://127.0.0.1:2019/config/").rc == 7


def test_metrics_are_read_on_loopback_alone(browser):
    browser.get(LISTS + "/open")
    assert "caddy_http_requests_total{" in browser.get("http://127.0.0.1:9180/metrics").body
    assert browser.run("http://role-caddy.example.org:9180/metrics").rc == 7
    assert "caddy_http" not in browser.run(LISTS + "/metrics").stdout


def test_key_is_read_by_caddy_alone(host):
    key = host.file("/etc/caddy/tls/given.example.org.pem")
    assert (key.user, key.mode) == ("caddy", 0o400)


def test_configuration_is_as_caddy_writes_it(host):
    program = host.check_output("xargs -0 -n 1 </proc/$(systemctl show -P MainPID caddy)/cmdline | head -n 1")
    # fmt ends with 1 when there is something to format.
    assert host.run(f"{program} fmt /etc/caddy/Caddyfile").stdout == host.file("/etc/caddy/Caddyfile").content_string


def test_service_has_few_rights(host):
    line = host.check_output("systemd-analyze security caddy.service --no-pager | tail -n 1")
    assert float(line.split(":")[1].split()[0]) <= 3.0
    assert host.check_output("ps -o user= -p $(systemctl show -P MainPID caddy)") == "caddy"
