"""Records go to the lab's name server by dynamic update, and nobody else's are touched (RFC 2136, RFC 8945)."""

from __future__ import annotations

import base64
import json
import socket
import sys
import time

import ansible.module_utils
import dns.query
import dns.tsigkeyring
import dns.update
import pytest
from ansible.module_utils.testing import patch_module_args

from estatelib import lookup
from estatelib.places import NAME_SERVER, REPOSITORY, STATE

ansible.module_utils.__path__.append(str(REPOSITORY / "plugins/module_utils"))
sys.path.append(str(REPOSITORY / "plugins/modules"))

import dns_update  # noqa: E402
from ansible.module_utils import dns_changes  # noqa: E402

ZONE = "example.org"
NAME = "dns-update.example.org"
UNDERSCORE = "_dns-update.example.org"
SPF = '"v=spf1 a -all"'
KEY = "lab-update"


def record(name, rdtype, value, ttl=60):
    return {"name": name, "type": rdtype, "value": value, "ttl": ttl}


def secret() -> str:
    return base64.b64encode((STATE / "secrets/dns-update").read_text().strip().encode()).decode()


def somebody_else(*commands):
    """What another holder of the key does to our names: ('add', name, ttl, type, value) or ('delete', name)."""
    message = dns.update.UpdateMessage(ZONE, keyring=dns.tsigkeyring.from_text({KEY: secret()}), keyname=KEY)
    for command, name, *rest in commands:
        getattr(message, command)(name.removesuffix(f".{ZONE}"), *rest)
    assert dns.query.tcp(message, NAME_SERVER, timeout=10).rcode() == 0


@pytest.fixture
def publish(tmp_path, capsys):
    """Runs the module as Ansible would; the names of these tests are empty before and after."""
    state = tmp_path / "keys/dns-applied.json"

    def run(*records, check=False, zone=ZONE, **options):
        arguments = {
            "zones": {zone: list(records)}, "server": NAME_SERVER, "key": KEY, "secret": secret(),
            "state_file": str(state), "timeout": 10, "_ansible_check_mode": check, **options,
        }  # fmt: skip
        with patch_module_args(arguments), pytest.raises(SystemExit):
            dns_update.main()
        result = json.loads(capsys.readouterr().out)
        result.pop("invocation", None)
        return result

    somebody_else(("delete", NAME), ("delete", UNDERSCORE))
    yield run
    somebody_else(("delete", NAME), ("delete", UNDERSCORE))


def test_record_comes_stays_and_goes_again(publish, tmp_path):
    ours = record(NAME, "MX", "10 mail-gw1.example.org.")
    dry = publish(ours, check=True)
    assert dry["changed"]
    assert dry["changes"] == {ZONE: [f"+ {NAME} 60 IN MX 10 mail-gw1.example.org."]}
    assert lookup(NAME, "MX") == []
    assert not (tmp_path / "keys").exists()

    assert publish(ours)["changes"] == dry["changes"]
    assert lookup(NAME, "MX") == ["10 mail-gw1.example.org"]
    again = publish(ours)
    assert not again["changed"]
    assert again["diff"] == []

    assert publish(record(NAME, "MX", "0 ."))["changes"] == {
        ZONE: [f"- {NAME} 60 IN MX 10 mail-gw1.example.org.", f"+ {NAME} 60 IN MX 0 ."]
    }
    assert publish()["changes"] == {ZONE: [f"- {NAME} 60 IN MX 0 ."]}
    assert lookup(NAME, "MX") == []
    assert not publish()["changed"]


@pytest.mark.parametrize("transfer", [True, False])
def test_text_of_others_stays_and_an_older_spf_record_goes(publish, monkeypatch, transfer):
    if not transfer:  # a server that gives none is asked name by name

        def refuse(self, zone):
            raise dns_changes.TransferRefusedError("no transfer")

        monkeypatch.setattr(dns_changes.Server, "_transfer", refuse)
    somebody_else(
        ("add", NAME, 300, "TXT", '"site-verification=1"'),
        ("add", NAME, 300, "TXT", '"v=spf1 mx -all"'),
        ("add", NAME, 300, "A", "192.0.2.1"),
    )
    ours = [record(NAME, "TXT", SPF), record(UNDERSCORE, "TXT", '"v=X1"')]
    publish(*ours)
    assert sorted(lookup(NAME, "TXT")) == ["site-verification=1", "v=spf1 a -all"]
    assert lookup(UNDERSCORE, "TXT") == ["v=X1"]
    assert not publish(*ours)["changed"]
    publish()
    assert lookup(NAME, "TXT") == ["site-verification=1"]
    assert lookup(UNDERSCORE, "TXT") == []
    assert lookup(NAME, "A") == ["192.0.2.1"], "never ours"


def test_change_by_somebody_else_in_between_is_seen(publish, monkeypatch):
    read, rounds = dns_changes.Server.read, []

    def read_and_be_overtaken(self, zone, places):
        found = read(self, zone, places)
        if not rounds:
            somebody_else(("add", NAME, 60, "TXT", '"site-verification=2"'))
        rounds.append(found)
        return found

    monkeypatch.setattr(dns_changes.Server, "read", read_and_be_overtaken)
    publish(record(NAME, "TXT", SPF))
    assert len(rounds) == 3  # overtaken, done, looked at
    assert sorted(lookup(NAME, "TXT")) == ["site-verification=2", "v=spf1 a -all"]


def test_endless_changes_by_somebody_else_end_the_run(publish, monkeypatch):
    read, rounds = dns_changes.Server.read, []

    def read_and_be_overtaken(self, zone, places):
        found = read(self, zone, places)
        rounds.append(found)
        somebody_else(("add", NAME, 60, "TXT", f'"site-verification={len(rounds)}"'))
        return found

    monkeypatch.setattr(dns_changes.Server, "read", read_and_be_overtaken)
    result = publish(record(NAME, "TXT", SPF))
    assert result["failed"]
    assert "somebody else changes the same records" in result["msg"]
    assert len(rounds) == dns_changes.ROUNDS


def test_alias_in_the_way_is_told(publish):
    somebody_else(("add", NAME, 60, "CNAME", "mail-gw1.example.org."))
    result = publish(record(NAME, "MX", "0 ."))
    assert result["failed"]
    assert f"aliases (CNAME) stand where records of ours belong: {NAME}" in result["msg"]


def test_hundreds_of_records_come_in_several_messages_and_go_again(publish):
    long = f'"v=DKIM1; p={"x" * 200}" "{"y" * 200}"'
    keys = [record(f"s{number}._domainkey.{NAME}", "TXT", long) for number in range(400)]
    try:
        assert len(publish(*keys)["changes"][ZONE]) == 400
        # A transfer this long is more than a network's buffers hold; Knot hangs up on a slow reader.
        assert not publish(*keys)["changed"]
    finally:
        assert len(publish()["changes"][ZONE]) == 400
    assert lookup(f"s7._domainkey.{NAME}", "TXT") == []


def test_zone_that_fails_does_not_keep_another_from_its_change(publish):
    result = publish(
        zones={ZONE: [record(NAME, "MX", "0 .")], "example.invalid": [record("example.invalid", "MX", "0 .")]}
    )
    assert result["failed"]
    assert lookup(NAME, "MX") == ["0 "]
    assert list(result["changes"]) == [ZONE]
    assert "example.invalid: " in result["msg"]
    assert not publish(record(NAME, "MX", "0 ."))["changed"], "what was done is remembered"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"secret": base64.b64encode(b"another secret").decode()},
            "has another secret for the key lab-update (BADSIG)",
        ),
        ({"key": "nobody"}, "does not know the key nobody, or by another algorithm (BADKEY)"),
        ({"algorithm": "hmac-sha512"}, "by another algorithm (BADKEY)"),
        ({"port": 54}, "cannot be asked: Connection refused"),
        ({"zone": "example.invalid"}, "does not serve this zone, or not to the key lab-update"),
    ],
)
def test_what_the_server_refuses_is_told_in_plain_words(publish, options, says):
    result = publish(record(f"a.{options.get('zone', ZONE)}", "MX", "0 ."), **options)
    assert result["failed"]
    assert says in result["msg"]
    assert not result["changed"]


def test_wrong_clock_is_told(publish, monkeypatch):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    result = publish(record(NAME, "MX", "0 ."))
    assert "the clocks here and at 198.18.25.100 differ by more than five minutes (BADTIME)" in result["msg"]


def test_server_that_says_nothing_is_not_waited_for(publish):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        result = publish(record(NAME, "MX", "0 ."), server="127.0.0.1", port=silent.getsockname()[1], timeout=1)
        assert time.monotonic() - started < 10
    assert "127.0.0.1 did not answer in 1 s" in result["msg"]


def test_zones_that_the_server_does_not_take_are_left_out(publish):
    assert not publish(record("a.example.invalid", "MX", "0 ."), zone="example.invalid", only=[ZONE])["changed"]


def test_damaged_memory_stops_before_any_change(publish, tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/dns-applied.json").write_text("{", encoding="utf-8")
    result = publish(record(NAME, "MX", "0 ."))
    assert result["failed"]
    assert "dns-applied.json cannot be read" in result["msg"]
    assert lookup(NAME, "MX") == []
