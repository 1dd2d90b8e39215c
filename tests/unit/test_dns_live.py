"""The comparison of DNS with the data model: what is a difference, what is said of it, and what it costs in SPF."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible.module_utils
import dns.flags
import dns.message
import dns.rrset
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ansible.module_utils.__path__.append(str(REPOSITORY / "plugins/module_utils"))

import dns_ask  # noqa: E402
from ansible.module_utils import dns_check, dns_live, dns_report  # noqa: E402
from ansible.module_utils.dns_compare import Difference, Findings, compare, key_bits, tags  # noqa: E402
from ansible.module_utils.dns_live import Answer  # noqa: E402
from ansible.module_utils.dns_spf import cost  # noqa: E402

DMARC = "v=DMARC1; p=quarantine; np=reject; rua=mailto:dmarc@example.org"


def answer(*records: str, **more: Any) -> Answer:
    return Answer("ok" if records else "nothing", tuple(sorted(records)), 60, **more)


@pytest.mark.parametrize(
    ("name", "rtype", "expected", "found", "kind", "advice"),
    [
        ("example.org", "MX", ["10 a.example.org."], [], "missing", "Publish the MX record"),
        (
            "example.org",
            "MX",
            ["10 a.example.org."],
            ["10 a.example.org.", "5 b.example.net."],
            "extra",
            "b.example.net.",
        ),
        ("example.org", "MX", ["10 a.example.org."], ["20 a.example.org."], "differs", "20 → 10"),
        ("example.org", "MX", ["0 ."], ["10 a.example.org."], "differs", "fail at once"),
        ("example.org", "TXT", ["v=spf1 -all"], ["v=spf1 -all", "v=spf1 ?all"], "doubled", "Leave only"),
        ("example.org", "TXT", ["v=spf1 ip4:192.0.2.1 -all"], ["v=spf1 -all"], "differs", "'ip4:192.0.2.1' is missing"),
        ("_dmarc.example.org", "TXT", [DMARC], [DMARC.replace(" np=reject;", "")], "differs", "np is missing"),
        ("_dmarc.example.org", "TXT", [DMARC], [DMARC.replace("quarantine", "none")], "differs", "'none' instead of"),
        ("_dmarc.example.org", "TXT", [DMARC], ["v=DMARC1; p=none; p=reject"], "differs", "twice"),
        ("s._domainkey.example.org", "TXT", ["v=DKIM1; k=rsa; p=QUJD"], ["v=DKIM1; p="], "differs", "revoked"),
        ("s._domainkey.example.org", "TXT", ["v=DKIM1; p="], ["v=DKIM1; p=QUJD"], "differs", "can still sign"),
        ("s._domainkey.example.org", "TXT", [], ["v=DKIM1; p=QUJD"], "extra", "Remove the DKIM key"),
        ("_mta-sts.example.org", "TXT", ["v=STSv1; id=b;"], ["v=STSv1; id=a;"], "differs", "until the id changes"),
        ("_25._tcp.a.example.org", "TLSA", ["3 1 1 aa"], ["3 1 1 aa", "3 1 1 bb"], "extra", "no host uses this key"),
    ],
)
def test_difference_is_named_with_its_kind_and_advice(name, rtype, expected, found, kind, advice):
    difference = compare(name, rtype, expected, answer(*found))
    assert difference is not None
    assert difference.kind == kind
    assert advice in difference.todo


@pytest.mark.parametrize(
    ("name", "expected", "found"),
    [
        ("example.org", ["v=spf1 ip4:192.0.2.1 ip4:192.0.2.2 -all"], ["v=spf1 ip4:192.0.2.2 ip4:192.0.2.1 -all"]),
        ("example.org", ["v=spf1 -all"], ["v=spf1 -all", "site-verification=1"]),
        ("_dmarc.example.org", [DMARC], ["v=DMARC1;p=Quarantine;  rua=mailto:dmarc@example.org ;np=reject;"]),
        ("s._domainkey.example.org", ["v=DKIM1; k=rsa; p=QUJD"], ["p=QU JD; n=a note"]),
        ("_mta-sts.example.org", ["v=STSv1; id=a;"], ["v=STSv1;id=a"]),
    ],
)
def test_what_means_the_same_agrees(name, expected, found):
    assert compare(name, "TXT", expected, answer(*found)) is None


def test_order_counts_in_spf_once_something_is_denied():
    assert compare("example.org", "TXT", ["v=spf1 -ip4:192.0.2.1 a -all"], answer("v=spf1 a -ip4:192.0.2.1 -all"))


def test_alias_is_one_difference_for_the_whole_name():
    findings = Findings()
    for rtype, record in (("A", "192.0.2.1"), ("AAAA", "2001:db8::1")):
        found = answer(record, alias="b.example.org.")
        findings.add(compare("a.example.org", rtype, [record], found), "controller")
    (difference,) = findings.all()
    assert (difference.type, difference.kind) == ("CNAME", "alias")
    assert not findings.sound(("a.example.org", "A"))
    assert findings.sound(("b.example.org", "A"))


def test_same_difference_seen_from_two_places_is_one_line():
    findings = Findings()
    for place in ("controller", "mail-gw1", "controller"):
        findings.add(compare("example.org", "A", ["192.0.2.1"], answer()), place)
    (difference,) = findings.all()
    assert difference.seen_from == ["controller", "mail-gw1"]


def test_doubled_tag_is_no_list_of_tags():
    assert tags("v=DMARC1; p=none; p=reject") is None
    assert tags("v=DMARC1; p=none;") == {"v": "DMARC1", "p": "none"}


def test_key_length_is_told():
    from conftest import PUBLIC_KEY

    assert key_bits(PUBLIC_KEY) == "RSA, 2048 bits"
    assert key_bits("A" * 43 + "=") == "Ed25519"
    assert key_bits("!") == "not even base64"


# --- SPF --------------------------------------------------------------------------------------------------------------

ZONE = {
    ("mail.example.org", "A"): ("192.0.2.1",),
    ("a.example.net", "TXT"): ("v=spf1 include:b.example.net ~all",),
    ("b.example.net", "TXT"): ("v=spf1 mx ip4:192.0.2.0/24 -all",),
    ("b.example.net", "MX"): ("10 mail.example.org.",),
    ("loop.example.net", "TXT"): ("v=spf1 include:loop2.example.net -all",),
    ("loop2.example.net", "TXT"): ("v=spf1 redirect=loop.example.net",),
    ("two.example.net", "TXT"): ("v=spf1 -all", "v=spf1 ~all"),
}


def spf(record: str) -> Any:
    return cost("example.org", record, lambda name, rtype: ZONE.get((name, rtype), ()))


def test_spf_counts_what_includes_cost():
    found = spf("v=spf1 include:a.example.net a:mail.example.org -all")
    assert (found.lookups, found.faults()) == (4, [])
    assert set(found.included) == {"a.example.net", "b.example.net"}


def test_spf_stops_being_counted_behind_all():
    assert spf("v=spf1 -all a:mail.example.org").lookups == 0


def test_redirect_counts_only_without_all():
    assert spf("v=spf1 redirect=a.example.net").lookups == 3
    assert spf("v=spf1 redirect=a.example.net -all").lookups == 0


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ("v=spf1 " + "a:mail.example.org " * 11 + "-all", "11 look-ups"),
        ("v=spf1 a:x.example.org a:y.example.org a:z.example.org -all", "3 names in it do not exist"),
        ("v=spf1 include:loop.example.net -all", "includes itself"),
        ("v=spf1 include:two.example.net -all", "two.example.net, which it includes, has 2 SPF records"),
        ("v=spf1 include:none.example.net -all", "has no SPF records"),
        ("v=spf1 ip4:192.0.2.300 -all", "no network"),
        ("v=spf1 ip4:2001:db8::1 -all", "no network"),
        ("v=spf1 ipv4:192.0.2.1 -all", "no SPF term"),
        ("v=spf1 ptr -all", "ptr"),
        ("v=spf1 all", "whole world"),
    ],
)
def test_spf_fault_is_named(record, fault):
    assert any(fault in one for one in spf(record).faults())


def test_ten_lookups_and_two_void_ones_are_allowed():
    assert spf("v=spf1 " + "a:mail.example.org " * 8 + "a:x.example.org a:y.example.org -all").faults() == []


# --- asking -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A resolver on loopback: ``long`` answers are cut off over UDP, ``bogus`` ones fail unless validation is off."""
    state: dict[str, Any] = {"port": 0, "asked": []}
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    port = state["port"] = udp.getsockname()[1]
    tcp = socket.create_server(("127.0.0.1", port))

    def reply(wire: bytes, whole: bool) -> bytes:
        query = dns.message.from_wire(wire)
        state["asked"].append(query)
        response, name = dns.message.make_response(query), query.question[0].name.to_text()
        if name.startswith("bogus.") and not query.flags & dns.flags.CD:
            response.set_rcode(2)
        elif name.startswith("long.") and not whole:
            response.flags |= dns.flags.TC
        elif name.startswith("none."):
            response.set_rcode(3)
        else:
            response.flags |= dns.flags.AD
            text = '"' + "x" * 200 + '" "y"'
            response.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", text))
        return response.to_wire()

    def serve_udp() -> None:
        while True:
            try:
                wire, where = udp.recvfrom(65535)
                udp.sendto(reply(wire, False), where)
            except OSError:
                return

    def serve_tcp() -> None:
        while True:
            try:
                channel, _ = tcp.accept()
            except OSError:
                return
            with channel:
                length = struct.unpack(">H", channel.recv(2))[0]
                wire = reply(channel.recv(length), True)
                channel.sendall(struct.pack(">H", len(wire)) + wire)

    for serve in (serve_udp, serve_tcp):
        threading.Thread(target=serve, daemon=True).start()
    monkeypatch.setattr(dns_live, "PORT", port)
    monkeypatch.setattr(dns_ask, "PORT", port)
    yield state
    udp.close()
    tcp.close()


@pytest.mark.parametrize("name", ["short.example.org", "long.example.org"])
def test_host_and_controller_read_the_same_answer(server, name):
    brought = dns_ask.ask("127.0.0.1", f"{name} TXT", 2)
    from_host = dns_check.host_answer(brought, name, "TXT")
    asker = dns_live.Asker(2)
    from_here = asker.ask("127.0.0.1", name, "TXT")
    asker.close()
    assert from_host == from_here
    assert from_here.records == ("x" * 200 + "y",)
    assert from_here.authentic


def test_what_fails_validation_is_bogus_from_both(server):
    brought = dns_ask.ask("127.0.0.1", "bogus.example.org TXT", 2)
    asker = dns_live.Asker(2)
    assert dns_check.host_answer(brought, "bogus.example.org", "TXT").state == "bogus"
    assert asker.ask("127.0.0.1", "bogus.example.org", "TXT").state == "bogus"
    asker.close()


def test_name_that_does_not_exist_is_an_answer(server):
    asker = dns_live.Asker(2)
    found = asker.ask("127.0.0.1", "none.example.org", "TXT")
    asker.close()
    assert (found.state, found.says) == ("no name", True)


def test_a_question_is_asked_once(server):
    asker = dns_live.Asker(2)
    for _ in range(3):
        asker.ask("127.0.0.1", "short.example.org", "TXT")
    asker.close()
    assert len(server["asked"]) == 1


def test_silent_server_is_told_within_the_time():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        dns_live.PORT, before = deaf.getsockname()[1], dns_live.PORT
        asker = dns_live.Asker(0.1)
        try:
            assert asker.ask("127.0.0.1", "example.org", "MX").state == "silent"
        finally:
            dns_live.PORT = before
            asker.close()


def test_public_half_of_a_key_leaves_the_host_and_nothing_else(tmp_path):
    pem = tmp_path / "s1._domainkey.example.org.pem"
    subprocess.run(["openssl", "genrsa", "-out", pem, "2048"], check=True, capture_output=True)
    (tmp_path / "notes.txt").write_text("no key")
    found = dns_ask.public_keys([str(tmp_path), str(tmp_path / "missing")])
    assert list(found) == ["s1._domainkey.example.org"]
    assert key_bits(found["s1._domainkey.example.org"]) == "RSA, 2048 bits"


# --- the whole, without a network -------------------------------------------------------------------------------------


def test_serials_wrap_around():
    assert dns_check._newest([1, 2**32 - 1]) == 1
    assert dns_check._newest([5, 7, 6]) == 7


def test_table_is_aligned_and_ends_with_a_summary():
    one = Difference("example.org", "MX", "missing", "10 a.", "nothing", "Publish it.", ["controller", "a", "b"])
    other = Difference("a.example.org", "A", "differs", "192.0.2.1", "192.0.2.2", "Change it.", ["controller"])
    heading, *rows = dns_report.table([one, other])
    assert {row.index("ublish it" if "ublish it" in row else "hange it") - 1 for row in rows} == {
        heading.index("what to do")
    }
    assert "controller and 2 more" in rows[0]
    assert dns_report.table([]) == []
    assert dns_report.summary([], 90, 8, 7) == "90 records of 8 domains agree, seen from 7 places."
    assert dns_report.summary([one], 90, 8, 7).startswith("1 difference in 90 records")


def test_document_is_json_with_every_field():
    one = Difference("example.org", "MX", "missing", "10 a.", "nothing", "Publish it.", ["controller"])
    document = json.loads(json.dumps(dns_report.document([one], ["a note"], ["controller"], {"records": 1}, {}, {})))
    assert document["version"] == dns_report.VERSION
    assert not document["agrees"]
    assert set(document["differences"][0]) == {"name", "type", "kind", "expected", "found", "seen_from", "todo"}


def test_removed_key_must_be_gone():
    keys = {f"{state}._domainkey.example.org": {"state": state} for state in ("removed", "signing")}
    task = dns_check.Task(zones={"example.org": []}, model={"dkim_keys": keys}, policies={}, resolvers=[], views={})
    asker = dns_live.Asker()
    check = dns_check.Verification(task, asker)
    asker.close()
    assert check.sets == {"example.org": {("removed._domainkey.example.org", "TXT"): []}}


def test_host_module_runs_on_an_older_python_without_packages():
    """What it imports beside Ansible's own is the standard library."""
    source = (REPOSITORY / "plugins/modules/dns_ask.py").read_text(encoding="utf-8")
    names = {
        line.split()[1].split(".")[0] for line in source.splitlines() if line.strip().startswith(("import ", "from "))
    }
    assert names - {"ansible", "__future__"} <= sys.stdlib_module_names
