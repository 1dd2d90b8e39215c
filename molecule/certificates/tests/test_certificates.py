"""Certificates as senders with DANE and as the operator meet them: the key stays until DNS has had the next one.

The CA and two name servers of example.org are on the host; Postfix shows what the role keeps. Time passes by faketime,
for one program, or by certificates that live for days.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import smtplib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

PROJECT = Path(__file__).resolve().parents[3]
OWNER = "_25._tcp.mail.example.org"
LIVE = "/var/lib/certificates/live"
LIFETIME = 7776000
ALGORITHMS = ("ecdsa", "rsa")
# Enough for a busy machine; a renewal of both takes some seconds on an idle one.
PATIENCE = 240


@pytest.fixture(autouse=True)
def journal(host):
    """What the daemons wrote during a test is shown when the test fails."""
    begin = host.run("date +%s").stdout.strip()
    yield
    print(
        host.run("journalctl --no-pager -u certificates -u test-pebble -u postfix --since @%s | tail -60", begin).stdout
    )


@pytest.fixture(scope="module")
def address(host) -> str:
    """The host's address as others see it."""
    shown = host.run("ip -4 -json address show scope global").stdout
    return json.loads(shown)[0]["addr_info"][0]["local"]


def converge(*options: str, **variables) -> subprocess.CompletedProcess:
    """Run the scenario's playbook again, with other variables."""
    program = shutil.which("ansible-playbook") or str(Path(sys.executable).with_name("ansible-playbook"))
    inventory = ["--inventory", "molecule/inventory/"]
    return subprocess.run(
        [program, *inventory, "--extra-vars", json.dumps(variables), *options, "molecule/certificates/converge.yml"],
        cwd=PROJECT,
        env=os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )


def program(host, arguments: str, shift: str = ""):
    """Run the program; with ``shift`` its clock goes wrong by that much, as '+61d' says."""
    return host.run(f"timeout {PATIENCE} {f'faketime -f {shift} ' if shift else ''}certificates {arguments}")


def done(host, arguments: str, shift: str = "") -> str:
    """Run the program and be sure that it did what it should; what it said."""
    run = program(host, arguments, shift)
    assert run.rc == 0, run.stderr
    return run.stderr


def keys(host) -> dict[str, dict[str, str]]:
    """Algorithm -> its digests, current and next."""
    state = json.loads(program(host, "status --json").stdout)
    return {name: {which: one[which] for which in ("current", "next")} for name, one in state["certificates"].items()}


def shown(host, address: str, algorithm: str, digests: list[str]) -> x509.Certificate:
    """The certificate that Postfix shows to a sender with DANE, which takes it by one of these digests."""
    records = " ".join(f'-dane_tlsa_rrdata "3 1 1 {digest}"' for digest in digests)
    cipher = {"ecdsa": "ECDHE-ECDSA-AES256-GCM-SHA384", "rsa": "ECDHE-RSA-AES256-GCM-SHA384"}[algorithm]
    run = host.run(
        f"openssl s_client -starttls smtp -connect {address}:25 -tls1_2 -cipher {cipher} -verify_return_error "
        f"-dane_tlsa_domain mail.example.org {records} </dev/null 2>&1"
    )
    assert "DANE TLSA 3 1 1" in run.stdout, run.stdout
    assert "matched the EE certificate" in run.stdout.replace("matched EE", "matched the EE"), run.stdout
    pem = re.search(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", run.stdout, re.DOTALL)
    assert pem, run.stdout
    return x509.load_pem_x509_certificate(pem[0].encode())


def metric(host, name: str) -> float:
    """The value of the first metric that begins like this."""
    lines = host.file("/var/lib/certificates/metrics.prom").content_string.splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[-1])


def publish(host, digests: list[str], *servers: str, ttl: int = 3) -> None:
    """Have TLSA records, and no others, at the name servers."""
    for server in servers or ("ns1", "ns2"):
        records = "\\n".join(f"_25._tcp.mail {ttl} TLSA 3 1 1 {digest}" for digest in digests)
        zone = f"/etc/knot/{server}.zone"
        write = f"""sed -i -e '/TLSA/d' -e "s/hostmaster [0-9]*/hostmaster $(date +%s%N | cut -c6-14)/" {zone}"""
        assert host.run(f"{write} && printf '{records}\\n' >> {zone} && systemctl reload test-{server}").rc == 0
        end = time.monotonic() + 30
        while sorted(digests) != sorted(asked(host, server)):
            assert time.monotonic() < end, f"{server} has not taken up its zone"
            time.sleep(0.2)


def asked(host, server: str) -> list[str]:
    """The digests that a name server has."""
    code = (
        "import dns.message, dns.query, sys; "
        f"m = dns.query.udp(dns.message.make_query('{OWNER}', 'TLSA'), '127.0.0.{server[-1]}', timeout=5); "
        "print(' '.join(r.cert.hex() for a in m.answer for r in a))"
    )
    return host.run(f'python3 -c "{code}"').stdout.split()


def publish_all(host) -> None:
    """Have the records of all keys in DNS, and known for longer than their TTL."""
    publish(host, [digest for one in keys(host).values() for digest in one.values()])
    done(host, "renew")
    time.sleep(4)


@contextlib.contextmanager
def no_ca(host) -> Iterator[None]:
    """While the CA is away."""
    assert host.run("systemctl stop test-pebble").rc == 0
    try:
        yield
    finally:
        start_ca(host)


def start_ca(host, **settings: str) -> None:
    """Start the CA, which then has a new root and knows nobody, and wait until it answers."""
    environment = " ".join(f"{name}={value}" for name, value in settings.items())
    assert host.run("mkdir -p /run/systemd/system/test-pebble.service.d").rc == 0
    host.run(
        "printf '[Service]\\nEnvironment=%s\\n' > /run/systemd/system/test-pebble.service.d/test.conf; "
        "systemctl daemon-reload" % (environment or "X=1")
    )
    assert host.run("systemctl restart test-pebble").rc == 0
    end = time.monotonic() + 60
    while host.run("curl -sk https://127.0.0.1:14000/dir").rc:
        assert time.monotonic() < end, "the CA does not start"
        time.sleep(0.5)


@contextlib.contextmanager
def lifetime(host, seconds: int) -> Iterator[None]:
    """While the CA gives certificates that live for so long."""
    change = "sed -i 's/\\(certificateValidityPeriod\": \\)[0-9]*/\\1%d/' /etc/pebble-test.json"
    assert host.run(change % seconds).rc == 0
    start_ca(host)
    try:
        yield
    finally:
        assert host.run(change % LIFETIME).rc == 0
        start_ca(host)


def pebble_in_issuer(certificate: x509.Certificate) -> bool:
    """Whether the CA has signed it."""
    return "Pebble Intermediate" in certificate.issuer.rfc4514_string()


def test_sender_with_dane_verifies_either_key_and_others_find_the_ca(host, address):
    known = keys(host)
    for algorithm in ALGORITHMS:
        certificate = shown(host, address, algorithm, [known[algorithm]["current"]])
        assert pebble_in_issuer(certificate)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["mail.example.org"]
    printed = json.loads(program(host, "digests").stdout)
    assert printed == [known[name][which] for which in ("current", "next") for name in ALGORITHMS]
    assert len(set(printed)) == 4


def test_key_of_somebody_else_is_not_taken(host, address):
    # The proof that the checks of this file can fail.
    with pytest.raises(AssertionError):
        shown(host, address, "rsa", ["00" * 32])


def test_nobody_but_root_reads_a_key_and_the_one_who_talks_to_the_ca_least_of_all(host):
    run = host.run(f"runuser -u certificates -- find {LIVE} /var/lib/certificates/next -name '*.pem'")
    assert run.stdout == ""
    assert host.run("find /var/lib/certificates -name '*.pem' -perm /077").stdout == ""
    assert host.run("grep -rl 'PRIVATE KEY' /var/lib/certificates/requests /etc/certificates").stdout == ""


def test_renewal_comes_a_month_before_the_end_with_the_same_key_and_no_session_ends(host, address):
    before = keys(host)
    old = {algorithm: shown(host, address, algorithm, [before[algorithm]["current"]]) for algorithm in ALGORITHMS}
    assert done(host, "renew", "+59d") == ""
    with smtplib.SMTP(address, 25, local_hostname="client.example.com", timeout=60) as session:
        session.starttls()
        session.ehlo()
        assert "until" in done(host, "renew", "+61d")
        session.sendmail("user@example.com", ["a@mail.example.org"], b"Subject: x\r\n\r\nx\r\n")
    assert keys(host) == before
    for algorithm in ALGORITHMS:
        new = shown(host, address, algorithm, [before[algorithm]["current"]])
        assert new.serial_number != old[algorithm].serial_number
        assert new.public_key() == old[algorithm].public_key()


def test_certificate_that_lives_six_days_is_renewed_with_two_left_also_by_a_ca_that_forgot_us(host, address):
    before = keys(host)
    with lifetime(host, 6 * 86400):
        said = done(host, "renew --force")
        assert "the CA knows our account no longer" in said
        old = shown(host, address, "ecdsa", [before["ecdsa"]["current"]])
        assert done(host, "renew", "+93h") == ""
        assert "until" in done(host, "renew", "+97h")
        new = shown(host, address, "ecdsa", [before["ecdsa"]["current"]])
        assert new.serial_number != old.serial_number
    assert keys(host) == before
    done(host, "renew --force")


def test_ca_that_is_away_changes_nothing_and_is_seen(host, address):
    known = keys(host)
    old = shown(host, address, "rsa", [known["rsa"]["current"]])
    success = metric(host, "certificates_last_success_seconds")
    names = "/etc/certificates/config.json"
    assert (
        host.run(f'cp -a {names} {names}.saved && sed -i \'s/"mail.example.org"/&, "also.example.org"/\' {names}').rc
        == 0
    )
    try:
        with no_ca(host):
            assert host.run("systemctl start certificates.service").rc != 0
            assert host.run("systemctl is-failed certificates.service").stdout.strip() == "failed"
            said = host.run("journalctl --no-pager -u certificates -n 20 -o cat").stdout
            assert "rsa: no new certificate: Problem connecting to server" in said
            assert metric(host, "certificates_troubles") == 2
            assert metric(host, "certificates_last_success_seconds") == success
            assert shown(host, address, "rsa", [known["rsa"]["current"]]) == old
        # The next run of the timer finds the CA again. It runs as confined as the one that failed.
        assert host.run("systemctl start certificates.service").rc == 0
        new = shown(host, address, "rsa", [known["rsa"]["current"]])
        names_now = new.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert set(names_now.get_values_for_type(x509.DNSName)) == {"mail.example.org", "also.example.org"}
        assert metric(host, "certificates_troubles") == 0
    finally:
        host.run(f"mv {names}.saved {names}")
    done(host, "renew")
    assert keys(host) == known


def test_rollover_waits_for_every_name_server_and_for_the_ttl(host, address):
    before = keys(host)
    current = [one["current"] for one in before.values()]
    every = [digest for one in before.values() for digest in one.values()]
    publish(host, current)
    run = program(host, "roll")
    assert run.rc == 3
    assert f"not every name server of {OWNER} has 3 1 1 {before['rsa']['next']}" in run.stderr
    publish(host, every, "ns1")
    assert program(host, "roll").rc == 3
    publish(host, every, "ns2", ttl=20)
    run = program(host, "roll")
    assert run.rc == 3
    assert "resolvers may still know" in run.stderr
    assert keys(host) == before
    assert metric(host, f'certificates_tlsa_published{{algorithm="rsa",owner="{OWNER}",key="next"}}') == 1
    time.sleep(21)
    done(host, "roll")
    after = keys(host)
    for algorithm in ALGORITHMS:
        assert after[algorithm]["current"] == before[algorithm]["next"]
        assert after[algorithm]["next"] not in every
        # A sender that knows the records of before verifies.
        assert pebble_in_issuer(shown(host, address, algorithm, [before[algorithm][key] for key in before[algorithm]]))
    # The keys that wait now are in nobody's DNS.
    assert program(host, "roll").rc == 3
    assert keys(host) == after


def test_one_algorithm_rolls_alone_and_at_once_where_a_key_is_in_wrong_hands(host, address):
    before = keys(host)
    done(host, "roll --algorithm ecdsa --at-once")
    after = keys(host)
    assert after["ecdsa"]["current"] == before["ecdsa"]["next"]
    assert after["rsa"] == before["rsa"]
    # Nobody had published it: mail of senders with DANE waits, and everybody who looks is told.
    assert f"{OWNER} has TLSA records, but not 3 1 1 {after['ecdsa']['current']}" in done(host, "renew")
    published = f'certificates_tlsa_published{{algorithm="ecdsa",owner="{OWNER}",key="current"}}'
    assert metric(host, published) == 0
    publish(host, [one["current"] for one in after.values()])
    assert done(host, "renew") == ""
    assert metric(host, published) == 1


def test_name_servers_that_are_away_stop_a_rollover_and_no_renewal(host):
    publish_all(host)
    before = keys(host)
    assert host.run("systemctl stop test-ns2").rc == 0
    try:
        run = program(host, "roll")
        assert run.rc == 3
        assert "DNS cannot be asked" in run.stderr
        done(host, "renew")
    finally:
        assert host.run("systemctl start test-ns2").rc == 0
    assert keys(host) == before


@pytest.mark.drill
def test_run_that_is_killed_anywhere_is_finished_by_the_next(host, address):
    publish_all(host)
    begin = time.monotonic()
    done(host, "roll")
    whole = time.monotonic() - begin
    # tests/unit/test_certificates.py stops a run at every single write; here all its processes end at once.
    for share in (0.3, 0.6, 0.9):
        publish_all(host)
        before = keys(host)
        every = [digest for one in before.values() for digest in one.values()]
        assert host.run("systemd-run --unit=killed --collect certificates roll").rc == 0
        time.sleep(share * whole)
        host.run("systemctl kill --signal=KILL killed.service; systemctl stop killed.service")
        for algorithm in ALGORITHMS:
            shown(host, address, algorithm, every)
        done(host, "renew")
        state = json.loads(program(host, "status --json").stdout)
        assert state["in_use"], state
        after = keys(host)
        for algorithm in ALGORITHMS:
            assert after[algorithm]["current"] in before[algorithm].values()
            assert after[algorithm]["next"] != after[algorithm]["current"]
            certificate = shown(host, address, algorithm, [after[algorithm]["current"]])
            assert pebble_in_issuer(certificate)
            stored = host.file(f"{LIVE}/{algorithm}.pem").content_string
            assert x509.load_pem_x509_certificates(stored.encode())[0] == certificate
    left = host.run("find /var/lib/certificates -name '.new-*' -o -path '*/requests/*' -o -path '*/challenges/*'")
    assert left.stdout == ""


def test_account_that_was_written_by_half_is_made_anew(host):
    assert host.run("truncate -s 100 /var/lib/certificates/acme/accounts/*/account_key.pem").rc == 0
    done(host, "renew --force")


def test_command_that_fails_is_run_again_by_the_next_run(host):
    config = "/etc/certificates/config.json"
    command = '"deploy": ["test -e /var/lib/certificates/requests/ready \\&\\& touch /var/lib/certificates/deployed"]'
    assert host.run(f"cp -a {config} {config}.saved && sed -i 's|\"deploy\": \\[\\]|{command}|' {config}").rc == 0
    try:
        run = program(host, "renew --force")
        assert run.rc == 1
        assert "the new certificate is not in use yet: '/bin/sh -c test -e" in run.stderr
        host.run(f"sed -i 's|requests/ready|live|' {config}")
        done(host, "renew")
        assert host.file("/var/lib/certificates/deployed").exists
        host.run("rm /var/lib/certificates/deployed")
        done(host, "renew")
        assert not host.file("/var/lib/certificates/deployed").exists
    finally:
        host.run(f"mv {config}.saved {config}; rm -f /var/lib/certificates/deployed")


def get(address: str, path: str) -> tuple[int, bytes]:
    """Status and body of an answer on port 80."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def test_port_80_is_open_only_while_a_challenge_is_and_shows_nothing_else(host, address):
    def closed() -> bool:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((address, 80), timeout=10):
            return False
        return True

    assert closed()
    start_ca(host, PEBBLE_VA_NOSLEEP="0", PEBBLE_VA_SLEEPTIME="6")
    try:
        assert host.run("systemd-run --unit=open --collect certificates renew --force").rc == 0
        end = time.monotonic() + PATIENCE
        while closed():
            assert time.monotonic() < end, "nobody listens"
            time.sleep(0.1)
        name = "x" * 43
        host.run(f"runuser -u certificates -- sh -c 'echo hello > /var/lib/certificates/challenges/{name}'")
        place = "/.well-known/acme-challenge/"
        assert get(address, place + name) == (200, b"hello\n")
        paths = [
            "/",
            place,
            place + "../metrics.prom",
            place + "..%2fmetrics.prom",
            place + "/etc/passwd",
            place + "y" * 43,
        ]
        assert {get(address, path)[0] for path in paths} == {404}
        users = host.run("ps -eo user:20,args | grep '[c]ertificates answer' | cut -d' ' -f1 | sort -u").stdout.split()
        assert users == ["certificates"]
        while host.run("systemctl is-active open.service").rc == 0:
            assert time.monotonic() < end, "the run does not end"
            time.sleep(0.5)
        assert closed()
    finally:
        host.run("systemctl stop open.service")
        start_ca(host)
    done(host, "renew --force")


def test_web_server_of_the_host_answers_where_there_is_one_and_nobody_else_may(host):
    root = "/run/web/.well-known"
    assert host.run(f"mkdir -p {root} && ln -sfn /var/lib/certificates/challenges {root}/acme-challenge").rc == 0
    web = "systemd-run --unit=web --collect python3 -m http.server --directory /run/web 80"
    config = "/etc/certificates/config.json"
    assert host.run(web).rc == 0
    end = time.monotonic() + 60
    while not host.socket("tcp://0.0.0.0:80").is_listening:
        assert time.monotonic() < end, "the web server does not start"
        time.sleep(0.2)
    try:
        run = program(host, "renew --force")
        assert run.rc == 1
        assert "port 80 cannot be used for the CA's challenge: Address already in use" in run.stderr
        host.run(f"cp -a {config} {config}.saved; sed -i s/standalone/webroot/ {config}")
        done(host, "renew --force")
        assert "GET /.well-known/acme-challenge/" in host.run("journalctl --no-pager -u web -o cat").stdout
        # While it is away, the role does it.
        host.run("systemctl stop web")
        done(host, "renew --force")
    finally:
        host.run(f"systemctl stop web; test ! -e {config}.saved || mv {config}.saved {config}")


def test_new_host_without_a_ca_has_tls_and_the_key_that_stays(host, address):
    assert host.run("systemctl stop certificates.timer; mv /var/lib/certificates /var/lib/certificates.saved").rc == 0
    try:
        with no_ca(host):
            run = converge()
            assert run.returncode == 0, run.stdout
            assert "no new certificate: Problem connecting to server" in run.stdout
            known = keys(host)
            own = shown(host, address, "rsa", [known["rsa"]["current"]])
            assert own.issuer == own.subject
            assert metric(host, "certificates_from_ca") == 0
            again = converge()
            assert re.search(r"changed=0 ", again.stdout), again.stdout
        done(host, "renew")
        certificate = shown(host, address, "rsa", [known["rsa"]["current"]])
        assert pebble_in_issuer(certificate)
        assert metric(host, "certificates_from_ca") == 1
        # Should the file in use be lost, the key is taken that others know.
        known = keys(host)
        host.run(f"rm {LIVE}/ecdsa.pem")
        done(host, "renew")
        assert keys(host)["ecdsa"]["current"] == known["ecdsa"]["next"]
        assert pebble_in_issuer(shown(host, address, "ecdsa", [known["ecdsa"]["next"]]))
    finally:
        host.run("rm -rf /var/lib/certificates && mv /var/lib/certificates.saved /var/lib/certificates")
        done(host, "renew")
        assert host.run("systemctl reload postfix").rc == 0


def test_arguments_that_cannot_be_right_stop_the_run(host):
    run = converge(certificates_names=["Mail"], certificates_tlsa=["mail.example.org"], certificates_acme_email='a"b')
    assert run.returncode != 0
    said = re.sub(r"\s+", " ", run.stdout)
    for sentence in (
        'certificates_names has "Mail"; it must be a full name',
        'certificates_tlsa has "mail.example.org"; write',
        "certificates_acme_email, certificates_acme_profile and certificates_acme_eab must be plain words.",
    ):
        assert sentence in said.replace('\\"', '"'), said


def test_check_mode_changes_nothing_and_switched_off_it_rests(host):
    run = converge("--check", "--diff")
    assert run.returncode == 0, run.stdout
    assert re.search(r"changed=0 ", run.stdout), run.stdout
    before = keys(host)
    off = converge(certificates_enabled=False)
    assert off.returncode == 0, off.stdout
    assert not host.service("certificates.timer").is_running
    assert not host.service("certificates.timer").is_enabled
    assert keys(host) == before
    assert converge().returncode == 0
    assert host.service("certificates.timer").is_running
