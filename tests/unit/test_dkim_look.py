"""What name servers show of a key: judged server by server, asked over real sockets."""

from __future__ import annotations

import socketserver
import threading

import dkim_look
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

NAME, KEY = "20261128a._domainkey.example.org", "MIIBkey"


def answer(*texts: str, rcode=dns.rcode.NOERROR, authoritative=True):
    query = dns.message.make_query(NAME, "TXT")
    message = dns.message.make_response(query)
    message.set_rcode(rcode)
    if authoritative:
        message.flags |= dns.flags.AA
    if texts:
        message.answer.append(dns.rrset.from_text(f"{NAME}.", 60, "IN", "TXT", *texts))
    return message


@pytest.mark.parametrize(
    ("message", "expected", "state", "why"),
    [
        (answer(f'"v=DKIM1; k=rsa; p={KEY}"'), KEY, "right", ""),
        (answer('"v=DKIM1; k=rsa; p=MIIB" "key"'), KEY, "right", ""),
        (answer('"v=DKIM1; p="'), "", "right", ""),
        (answer('"v=DKIM1; p="'), KEY, "wrong", "another key"),
        (answer(f'"v=DKIM1; p={KEY}"'), "", "wrong", "another key"),
        (answer('"v=DKIM1; p=MIIBother"'), KEY, "wrong", "another key"),
        (answer(f'"v=DKIM1; p={KEY}"', '"v=DKIM1; p=x"'), KEY, "wrong", "shows 2 records"),
        (answer(f'"v=DKIM1; p={KEY}"', authoritative=False), KEY, "wrong", "not authoritative"),
        (answer(), KEY, "absent", "does not show it"),
        (answer(rcode=dns.rcode.NXDOMAIN), KEY, "absent", "does not show it"),
        (answer(rcode=dns.rcode.SERVFAIL), KEY, "wrong", "answers SERVFAIL"),
        (None, KEY, "silent", "does not answer"),
    ],
)
def test_verdict_on_one_answer(message, expected, state, why):
    found = dkim_look.verdict(message, NAME, expected)
    assert found[0] == state
    assert why in found[1]


def test_absence_is_cached_for_the_lesser_of_ttl_and_last_field_of_the_soa():
    message = answer()
    message.answer.append(dns.rrset.from_text("example.org.", 900, "IN", "SOA", "ns. h. 1 3600 60 604800 300"))
    assert dkim_look.negative_seconds(message) == 300
    message.answer[-1].ttl = 60
    assert dkim_look.negative_seconds(message) == 60
    assert dkim_look.negative_seconds(None) is None


class Server(socketserver.UDPServer):
    """A name server that knows the zone example.org and some keys."""

    def __init__(self, keys: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.keys = keys


class Answer(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, socket = self.request
        query = dns.message.from_wire(data)
        question = query.question[0]
        message = dns.message.make_response(query)
        message.flags |= dns.flags.AA
        name = question.name.to_text().rstrip(".")
        if question.rdtype == dns.rdatatype.SOA:
            message.answer.append(dns.rrset.from_text("example.org.", 60, "IN", "SOA", "ns. h. 1 3600 60 604800 10"))
        elif question.rdtype == dns.rdatatype.NS:
            message.answer.append(dns.rrset.from_text("example.org.", 60, "IN", "NS", "127.0.0.1."))
        elif name in self.server.keys:
            message.answer.append(dns.rrset.from_text(question.name, 60, "IN", "TXT", self.server.keys[name]))
        else:
            message.set_rcode(dns.rcode.NXDOMAIN)
        socket.sendto(message.to_wire(), self.client_address)


def test_servers_are_asked_directly_and_one_that_is_silent_counts():
    with Server({NAME: f'"v=DKIM1; k=rsa; p={KEY}"'}) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ask = dkim_look.asker(server.server_address[1], 0.3)
        records = {
            NAME: {"zone": "example.org", "expected": KEY},
            f"x{NAME}": {"zone": "example.org", "expected": ""},
        }
        view, servers = dkim_look.look(records, ["127.0.0.1"], ["127.0.0.1"], ask, 0.3)
        assert servers == {"example.org": ["127.0.0.1"]}
        assert view[NAME] == {"right": True, "absent": False, "why": "", "wait": 10}
        assert (view[f"x{NAME}"]["right"], view[f"x{NAME}"]["absent"]) == (False, True)
        view, _ = dkim_look.look(records, ["127.0.0.1", "127.0.0.2"], ["127.0.0.1"], ask, 0.3)
        assert view[NAME]["right"] is False
        assert view[NAME]["why"] == "127.0.0.2 (127.0.0.2) does not answer"
        assert view[f"x{NAME}"]["absent"] is False
        server.shutdown()


def test_zone_without_a_known_server_is_never_right():
    view, _ = dkim_look.look({NAME: {"zone": "example.org", "expected": ""}}, [], [], lambda *_: None, 0.1)
    assert view[NAME]["right"] is False
    assert "no name server is known" in view[NAME]["why"]
