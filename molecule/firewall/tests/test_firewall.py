"""Who gets through. Every port that is tried has a listener, so that silence is the firewall's doing.

The tests run on the controller, 198.18.25.1 and 2001:db8:25::1; the rules are molecule/firewall/vars/inputs.yml.
"""

import json
import os
import socket
import struct
import time

import pytest

PATIENCE = 2  # seconds; an answer on the lab network takes milliseconds


@pytest.fixture(scope="module", params=[4, 6])
def address(request, host):
    """The host's own global address of one IP version."""
    shown = json.loads(host.run("ip -json address show dev eth0 scope global").stdout)
    family = {4: "inet", 6: "inet6"}[request.param]
    found = next(each["local"] for each in shown[0]["addr_info"] if each["family"] == family)
    for _ in range(10):  # a rebuilt container has a new MAC address, which the controller has to find out first
        try:
            socket.create_connection((found, 22), timeout=PATIENCE).close()
            break
        except OSError:
            time.sleep(1)
    return found


def rules(host):
    """For the message of a failed assertion."""
    return host.run("nft list table inet estate; journalctl --no-pager -n 30 -u estate-firewall").stdout


def echo(connection, text=b"hello"):
    connection.sendall(text)
    return connection.recv(100)


def call(address, port):
    """Whether a new connection is answered; False only when nothing at all comes back."""
    try:
        with socket.create_connection((address, port), timeout=PATIENCE) as connection:
            return echo(connection) == b"hello"
    except TimeoutError:
        return False


@pytest.mark.parametrize("port", [22, 8001, 8002])
def test_an_allowed_port_answers(host, address, port):
    with socket.create_connection((address, port), timeout=PATIENCE) as connection:
        assert (port == 22 and connection.recv(4) == b"SSH-") or echo(connection) == b"hello", rules(host)


@pytest.mark.parametrize("port", [8003, 8004])
def test_what_is_not_allowed_or_allowed_only_to_others_is_dropped_in_silence(host, address, port):
    local = host.run(f"timeout 2 bash -c 'exec 3<>/dev/tcp/::1/{port} && echo hello >&3 && head -n 1 <&3'")
    assert local.stdout == "hello\n"  # it listens, and loopback is free
    assert not call(address, port), rules(host)


@pytest.mark.parametrize(("port", "answers"), [(8006, True), (8007, False)])
def test_datagrams_follow_their_own_rule(host, address, port, answers):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.settimeout(PATIENCE)
        sender.sendto(b"hello", (address, port))
        try:
            assert (sender.recv(100) == b"hello") is answers, rules(host)
        except TimeoutError:
            assert not answers, rules(host)


def test_neighbours_are_found_anew(host, address):
    host.run("ip neighbour flush dev eth0")
    assert call(address, 8001), rules(host)


def test_an_established_connection_outlives_a_reload_and_a_restart(host, address):
    with socket.create_connection((address, 8001), timeout=PATIENCE) as connection:
        assert echo(connection, b"before") == b"before"
        assert host.run("systemctl reload estate-firewall").rc == 0, rules(host)
        assert echo(connection, b"reloaded") == b"reloaded", rules(host)
        assert host.run("systemctl restart estate-firewall").rc == 0, rules(host)
        assert echo(connection, b"restarted") == b"restarted", rules(host)
    assert not call(address, 8004)


def test_the_sixth_connection_of_a_source_is_dropped_and_others_are_not_hurt(host, address):
    host.run("systemctl reload estate-firewall")  # forgets who came before
    assert [call(address, 8005) for _ in range(6)] == [True] * 5 + [False], rules(host)
    assert call(address, 8001)


def test_pings_are_answered_but_not_a_flood_of_them(host):
    address = host.run("ip -4 -o address show dev eth0 | sed 's/.* inet //; s,/.*,,'").stdout.strip()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as pinger:
        pinger.settimeout(0.5)
        identity, answers, began = os.getpid() & 0xFFFF, 0, time.monotonic()
        for number in range(100):
            checked = 0x0800 + identity + number
            checked = ~(checked + (checked >> 16)) & 0xFFFF
            pinger.sendto(struct.pack("!BBHHH", 8, 0, checked, identity, number), (address, 0))
        allowed = 10 + 10 * (time.monotonic() - began)  # ten a second, and a burst
        end = time.monotonic() + PATIENCE
        try:
            while time.monotonic() < end:
                packet = pinger.recv(200)
                kind, _, _, who, _ = struct.unpack("!BBHHH", packet[20:28])
                answers += (kind, who) == (0, identity)
        except TimeoutError:
            pass
    assert 1 <= answers <= allowed < 100, rules(host)


def test_the_table_of_somebody_else_is_untouched(host):
    assert "somebody else's rule" in host.run("nft list table inet neighbour").stdout


def test_the_rules_come_back_when_another_ruleset_is_loaded_over_them(host, address):
    """nftables.service begins with `flush ruleset`; at boot and at any restart ours must follow."""
    assert host.run("systemctl restart nftables.service").rc == 0
    wait = "for i in $(seq 30); do systemctl is-active --quiet estate-firewall && exit 0; sleep 0.1; done; exit 1"
    assert host.run(wait).rc == 0, rules(host)  # its restart was queued behind the other's
    assert not call(address, 8004), rules(host)
    assert call(address, 8001), rules(host)
    assert "somebody else's rule" in host.run("nft list table inet neighbour").stdout


def test_the_rules_are_loaded_at_boot_before_the_network(host):
    assert host.run("systemctl is-enabled estate-firewall").stdout.strip() == "enabled"
    assert "estate-firewall.service" in host.run("systemctl list-dependencies --plain sysinit.target").stdout
    assert "network-pre.target" in host.run("systemctl show -p Before --value estate-firewall").stdout


def test_nothing_has_failed(host):
    assert host.run("systemctl --failed --plain --no-legend").stdout.strip() == ""
