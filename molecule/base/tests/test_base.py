"""What every host relies on: look-ups that are validated, log-ins by key only, security updates, a journal with limits.

prepare.yml has put a signed DNS root on 127.0.0.100, with one zone that is bogus and one that is unsigned.
"""

import re
import socket

import pytest


def journal(host, unit):
    """The end of a unit's journal, for the message of a failed assertion."""
    return host.run(f"journalctl --no-pager -n 60 -u {unit}").stdout


class Answer:
    """What dig printed."""

    def __init__(self, text):
        self.text = text
        self.status = re.search(r"status: (\w+)", text).group(1) if "status:" in text else "none"
        self.flags = re.search(r"flags: ([a-z ]*);", text).group(1).split() if "flags:" in text else []
        self.server = re.search(r"SERVER: (\S+)#53", text).group(1) if "SERVER:" in text else ""


def dig(host, *arguments):
    return Answer(host.run("dig +tries=2 +timeout=5 " + " ".join(arguments)).stdout)


@pytest.mark.parametrize("server", ["127.0.0.1", "::1"])
def test_a_signed_name_is_validated(host, server):
    answer = dig(host, f"@{server}", "mail.signed", "TXT")
    assert answer.status == "NOERROR", journal(host, "unbound")
    assert "signed and validated" in answer.text
    assert "ad" in answer.flags, journal(host, "unbound")


def test_a_signed_denial_is_validated(host):
    answer = dig(host, "nobody.signed", "A")
    assert (answer.status, "ad" in answer.flags) == ("NXDOMAIN", True), answer.text


def test_a_bogus_name_is_refused(host):
    assert dig(host, "mail.bogus", "A").status == "SERVFAIL", journal(host, "unbound")
    assert "198.18.25.66" in dig(host, "+cd", "mail.bogus", "A").text  # it is there; only nobody may believe it


def test_an_unsigned_name_is_answered_but_not_called_authentic(host):
    answer = dig(host, "mail.unsigned", "A")
    assert "198.18.25.30" in answer.text
    assert "ad" not in answer.flags


def test_reverse_names_of_documentation_addresses_exist_where_the_site_says_so(host):
    answer = dig(host, "-x", "2001:db8:25::20")
    assert "mail.signed." in answer.text, answer.text


def test_every_program_asks_the_validating_resolver(host):
    assert dig(host, "mail.signed", "A").server == "127.0.0.1"
    assert host.run("getent ahostsv4 mail.signed").stdout.startswith("198.18.25.20")
    assert host.run("getent ahostsv4 mail.bogus").rc != 0


def test_programs_that_ask_for_dnssec_are_told_of_it(host):
    """Postfix does DANE only if the C library passes the AD flag on, which needs `trust-ad`."""
    script = (
        "import ctypes, socket; c = ctypes.CDLL('libc.so.6'); b = ctypes.create_string_buffer(4096); "
        "n = c.res_query(b'mail.signed', 1, 16, b, 4096); print(n > 12 and bool(b.raw[3] & 0x20))"
    )
    assert host.run(f'python3 -c "{script}"').stdout.strip() == "True"


def test_nobody_else_can_use_the_resolver(host):
    address = host.run("hostname -I").stdout.split()[0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, 53), timeout=2)


def test_a_password_does_not_open_the_door(host):
    """Although another file, as cloud-init writes it, allows passwords."""
    login = "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o PubkeyAuthentication=no clerk@127.0.0.1"
    done = host.run(f"sshpass -p correct-horse {login} id || echo refused")
    assert done.stdout == "refused\n"
    assert "Permission denied (publickey)" in done.stderr, done.stderr


@pytest.mark.parametrize("option", ["KexAlgorithms=ecdh-sha2-nistp256", "Ciphers=aes128-ctr"])
def test_old_algorithms_are_refused(host, option):
    done = host.run(f"ssh -o BatchMode=yes -o StrictHostKeyChecking=no -o {option} root@127.0.0.1 id || echo refused")
    assert done.stdout == "refused\n"
    assert "no matching" in done.stderr, done.stderr


def test_the_journal_is_on_disk_and_limited(host):
    host.run("logger -t base-test kept-on-disk; journalctl --sync")
    assert "kept-on-disk" in host.run("journalctl --no-pager -D /var/log/journal -t base-test -n 1").stdout
    said = host.run("journalctl --no-pager -t systemd-journald | grep 'System Journal'").stdout
    assert re.search(r"max 100(\.0)?M", said.splitlines()[-1]), said


def test_only_security_updates_install_themselves(host):
    done = host.run("unattended-upgrade --dry-run --verbose")
    said = done.stdout + done.stderr
    origins = re.search(r"Allowed origins are: (.*)", said).group(1)
    patterns = [part for part in origins.split("origin=") if part.strip(" ,")]
    assert patterns, said
    assert all("security" in part.lower() for part in patterns), origins


@pytest.mark.parametrize("timer", ["apt-daily.timer", "apt-daily-upgrade.timer"])
def test_updates_are_looked_for_every_day(host, timer):
    shown = host.run(f"systemctl show -p ActiveState -p UnitFileState -p NextElapseUSecRealtime {timer}").stdout
    assert "ActiveState=active" in shown
    assert "UnitFileState=enabled" in shown
    assert not re.search(r"NextElapseUSecRealtime=$", shown, re.MULTILINE), shown
    assert 'Unattended-Upgrade "1"' in host.run("apt-config dump APT::Periodic").stdout


def test_times_are_written_in_one_zone(host):
    assert host.run("date +%Z").stdout.strip() == "UTC"


def test_nothing_has_failed_and_unbound_does_not_warn(host):
    assert host.run("systemctl --failed --plain --no-legend").stdout.strip() == ""
    warnings = host.run("journalctl --no-pager -u unbound -p warning -o cat").stdout
    assert warnings == ""
    assert not re.search(r"(warning|error):", journal(host, "unbound")), journal(host, "unbound")
