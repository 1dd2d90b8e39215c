"""What leaves Mailman, octet by octet: dots, line ends, a member's own lines, a server's refusals, who is served."""

from __future__ import annotations

import hashlib
import os
import re
import smtplib
import socket
import threading
import time
from email import message_from_bytes
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailman_estate import progress, settings, submission, wire

OWN = wire.one_click("https://ml.example.org/unsubscribe/AAAA", "dev-leave@ml.example.org")
HEAD = b"From: a@example.org\r\nSubject: x\r\n"


def received(copy: wire.Copy) -> bytes:
    """What an SMTP server makes of it (RFC 5321 §4.5.2), read line by line up to the final dot."""
    lines = b"".join(copy.pieces()).split(b"\r\n")
    assert lines.index(b".") == len(lines) - 2, "the message ends early"
    assert lines[-1] == b""
    return b"".join(line.removeprefix(b".") + b"\r\n" for line in lines[:-2])


# --- octets -----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300) | st.text("\r\n. \x00ab", max_size=60).map(str.encode))
def test_every_body_arrives_as_it_was_written(body):
    message = wire.mended(HEAD + b"\r\n" + body)
    whole = message if message.endswith(b"\r\n") else message + b"\r\n"
    assert received(wire.as_copy(message)) == whole
    assert wire.as_copy(message).octets() == whole
    assert not wire.has_stray_line_ends(whole)


@given(st.lists(st.sampled_from([b"x", b".", b"..", b"", b"\x00\xff", b"From me"]), max_size=8))
def test_own_lines_are_header_fields_and_the_body_stays(lines):
    body = b"\r\n".join(lines)
    plain = wire.as_copy(HEAD + b"\r\n" + body)
    got = received(plain.with_own(OWN))
    head, _, rest = got.partition(b"\r\n\r\n")
    assert head + b"\r\n" == HEAD + OWN
    assert rest == received(plain).partition(b"\r\n\r\n")[2]
    assert len(plain.with_own(OWN)) == len(got)


@pytest.mark.parametrize("message", [HEAD + b"\r\n", HEAD, b"\r\nbody only\r\n", b"\r\n"])
def test_a_message_without_body_or_header_is_one_still(message):
    own = message_from_bytes(received(wire.as_copy(message).with_own(OWN)))
    assert own["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert own.get_payload() in ("", "body only\r\n")


def test_a_large_body_is_not_copied_for_each_member():
    plain = wire.as_copy(HEAD + b"\r\n" + b".line\r\n" * 300_000)
    pieces = list(plain.with_own(OWN).pieces())
    assert pieces[1] is plain.rest
    assert received(plain).count(b"\r\n.line") == 300_000


def test_one_click_is_as_rfc_8058_wants_it():
    fields = message_from_bytes(OWN)
    uris = re.sub(r"\s+", " ", fields["List-Unsubscribe"])
    assert uris == "<https://ml.example.org/unsubscribe/AAAA>, <mailto:dev-leave@ml.example.org>"
    assert fields.keys() == ["List-Unsubscribe", "List-Unsubscribe-Post"]


@pytest.mark.parametrize("url", ["https://x/\r\nBcc: a", "https://x/>", "https://x/ä", "https://x/ y"])
def test_nothing_else_gets_into_the_header_by_a_uri(url):
    with pytest.raises(ValueError, match="cannot stand in List-Unsubscribe"):
        wire.one_click(url, "dev-leave@ml.example.org")


@pytest.mark.parametrize(
    "source",
    [
        b"From: a@example.org\nBcc: secret@example.org\nResent-Bcc: b@example.org\n\nbody\n",
        b"From: a@example.org\nSubject: \xe6\x97\xa5 raw 8 bit\n\n\xff\x00 NUL and 8 bit\n",
        b"From: a@example.org\nContent-Type: text/plain; charset=iso-2022-jp\n\n\x1b$BF|K\\\x1b(B \x1b$B\n",
        b"From: a@example.org\nContent-Type: text/plain; charset=no-such\nContent-Transfer-Encoding: 8bit\n\n\xe6\n",
        b'From: a@example.org\nContent-Type: multipart/mixed; boundary="x"\n\nno part at all\n',
        b"From: a@example.org\nSubject: " + b"long " * 400 + b"\n\n" + b"x" * 5000 + b"\n",
    ],
    ids=["bcc", "8bit", "iso-2022-jp", "charset", "mime", "long"],
)
def test_a_message_is_written_as_smtplib_writes_it(source, monkeypatch):
    sent = []
    server = smtplib.SMTP()
    server.ehlo_resp = b"ok"
    monkeypatch.setattr(server, "sendmail", lambda sender, to, octets, *_: sent.append(octets))
    server.send_message(message_from_bytes(source), "a@example.org", ["b@example.org"])
    assert wire.written(message_from_bytes(source)) == sent[0]


def test_a_lone_cr_or_lf_becomes_a_line_end():
    assert wire.mended(b"a\rb\nc\r\nd\r\r\n\n") == b"a\r\nb\r\nc\r\nd\r\n\r\n\r\n"
    assert wire.has_stray_line_ends(b"a\r\n.\rb")
    assert wire.has_stray_line_ends(b"a\n")
    assert not wire.has_stray_line_ends(b"a\r\n")


# --- a server that has its own mind -----------------------------------------------------------------------------------


class Server:
    """Speaks SMTP on a real socket; answers by the first rule whose pattern fits, ``None`` hangs up."""

    def __init__(self, rules: dict[str, str | None], pipelining: bool = True) -> None:
        self.rules, self.pipelining = rules, pipelining
        self.commands: list[str] = []
        self.messages: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    def client(self) -> smtplib.SMTP:
        smtp = smtplib.SMTP(*self._listener.getsockname(), timeout=10)
        smtp.ehlo()
        return smtp

    def _answer(self, command: str, usual: str) -> str | None:
        self.commands.append(command)
        return next((answer for rule, answer in self.rules.items() if re.match(rule, command)), usual)

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as lines:
            connection.sendall(b"220 here\r\n")
            for line in lines:
                command = line.decode().strip()
                verb = command.split(" ")[0].split(":")[0].upper()
                usual = {"DATA": "354 go", "EHLO": "250-here\r\n250-SIZE 9999\r\n250 8BITMIME"}.get(verb, "250 ok")
                if verb == "EHLO" and self.pipelining:
                    usual = usual.replace("250 8", "250-PIPELINING\r\n250 8")
                answer = self._answer(command, usual)
                if answer is not None:
                    connection.sendall(f"{answer}\r\n".encode())
                if answer is None or answer.startswith("421"):
                    return
                if answer.startswith("354"):
                    message = b""
                    while (part := lines.readline()) not in (b".\r\n", b""):
                        message += part
                    self.messages.append(message)
                    answer = self._answer("<end>", "250 kept")
                    if answer is None:
                        return
                    connection.sendall(f"{answer}\r\n".encode())


COPY = wire.as_copy(HEAD + b"\r\nhello\r\n").with_own(OWN)
TO = ["a@example.net", "b@example.net", "c@example.net"]


@pytest.mark.parametrize("pipelining", [True, False])
def test_refused_recipients_are_named_and_the_others_are_served(pipelining):
    server = Server({"RCPT TO:<b@": "450 later", "RCPT TO:<c@": "550 never"}, pipelining)
    refused = submission.submit(server.client(), "s@example.org", TO, COPY)
    assert refused == {"b@example.net": (450, b"later"), "c@example.net": (550, b"never")}
    assert server.messages == [COPY.octets()]
    assert server.commands[1] == f"MAIL FROM:<s@example.org> SIZE={len(COPY)}"


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ({"MAIL": "451 busy", "RCPT": "503 no", "DATA": "503 no"}, 451),
        ({"RCPT": "550 no", "DATA": "554 no valid recipients"}, 550),
        ({"DATA": "451 not now"}, 451),
        ({"<end>": "554 spam"}, 554),
        ({"<end>": "452 disk"}, 452),
        ({"<end>": "250-odd\r\n552 too large"}, 552),
    ],
)
def test_a_refused_message_is_refused_for_all_and_the_connection_goes_on(rules, code):
    server = Server(rules)
    smtp = server.client()
    refused = submission.submit(smtp, "s@example.org", TO, COPY)
    assert {recipient: reply[0] for recipient, reply in refused.items()} == dict.fromkeys(TO, code)
    server.rules = {}
    assert submission.submit(smtp, "s@example.org", TO[:1], COPY) == {}


def test_data_allowed_without_recipients_sends_nothing():
    server = Server({"RCPT": "550 no"})
    assert set(submission.submit(server.client(), "s@example.org", TO, COPY)) == set(TO)
    assert server.messages == [b""]


@pytest.mark.parametrize("rule", ["MAIL", "RCPT TO:<b@", "DATA", "<end>"])
def test_after_421_nobody_counts_as_served_and_the_connection_is_closed(rule):
    server = Server({rule: "421 shutting down"})
    smtp = server.client()
    refused = submission.submit(smtp, "s@example.org", TO, COPY)
    assert set(refused) == set(TO)
    assert all(reply[0] == 421 for reply in refused.values())
    assert smtp.sock is None


@pytest.mark.parametrize(("rule", "tried"), [("MAIL", False), ("DATA", False), ("<end>", True)])
def test_a_lost_connection_tells_whether_the_message_may_have_been_taken(rule, tried):
    with pytest.raises(submission.ConnectionLost) as lost:
        submission.submit(Server({rule: None}).client(), "s@example.org", TO, COPY)
    assert lost.value.tried is tried


def test_a_thousand_recipients_do_not_block_each_other():
    server = Server({"RCPT TO:<m999@": "550 no"})
    many = [f"m{number}@example.net" for number in range(1000)]
    assert set(submission.submit(server.client(), "s@example.org", many, COPY)) == {"m999@example.net"}
    assert len(server.messages) == 1


@pytest.mark.parametrize("address", ["a@example.net>\r\nRCPT TO:<b@example.net", "ä@example.net"])
def test_an_address_that_is_no_command_is_not_sent(address):
    server = Server({})
    with pytest.raises(ValueError, match="is no SMTP command"):
        submission.submit(server.client(), "s@example.org", [address], COPY)
    assert not [command for command in server.commands if command.startswith(("MAIL", "RCPT"))]


# --- who has been served ----------------------------------------------------------------------------------------------


def test_a_killed_runner_knows_whom_it_has_served(tmp_path):
    path = progress.record_of(tmp_path, "1764000000.5+abc")
    child = os.fork()
    if child == 0:
        record = progress.Progress(path)
        record.add(["a@example.net"])
        record.add(["b@example.net", "c@example.net"])
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert progress.Progress(path).accepted == {"a@example.net", "b@example.net", "c@example.net"}


def test_a_torn_line_serves_nobody(tmp_path):
    path = progress.record_of(tmp_path, "1+a")
    path.write_bytes(b"a@example.net\nb@exam")
    assert progress.Progress(path).accepted == {"a@example.net"}
    record = progress.Progress(path)
    record.add(["c@example.net"])
    record.close()
    assert "c@example.net" in progress.Progress(path).accepted, "the line after a torn one counts"


def test_threads_write_whole_lines(tmp_path):
    path = progress.record_of(tmp_path, "1+a")
    record = progress.Progress(path)
    names = [[f"m{thread}-{number}@example.net" for number in range(200)] for thread in range(8)]
    threads = [threading.Thread(target=lambda some=some: [record.add([one]) for one in some]) for some in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.Progress(path).accepted == {one for some in names for one in some}


def test_a_delivery_without_a_queue_file_keeps_its_record_in_memory(tmp_path):
    record = progress.Progress(None)
    record.add(["a@example.net"])
    assert record.accepted == {"a@example.net"}


def test_records_go_with_their_queue_files(tmp_path):
    for name in ("1.5+kept.bak", "1.5+kept.sent", "2.5+also.pck", "2.5+also.sent", "3.5+gone.sent", "4.5+new.sent"):
        (tmp_path / name).touch()
    for name in ("1.5+kept.sent", "2.5+also.sent", "3.5+gone.sent"):
        os.utime(tmp_path / name, (time.time() - 90000,) * 2)
    progress.sweep(tmp_path)
    assert {path.name for path in tmp_path.glob("*.sent")} == {"1.5+kept.sent", "2.5+also.sent", "4.5+new.sent"}


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_are_read_and_bad_ones_named(tmp_path, caplog):
    path = tmp_path / "estate.cfg"
    path.write_text("[estate]\nweb_base = https://ml.example.org\nsmtp_connections = many\nother = 100%\n")
    values = settings.load(path)
    assert values["web_base"] == "https://ml.example.org"
    assert values["other"] == "100%"
    assert settings.number(values, "smtp_connections", 4, 1, 20) == 4
    assert "smtp_connections = many is no whole number from 1 to 20" in caplog.text
    assert settings.number({"smtp_connections": "8"}, "smtp_connections", 4, 1, 20) == 8


@pytest.mark.parametrize("text", [None, "", "no section\n", "[other]\n", b"\xff\xfe"])
def test_settings_that_cannot_be_read_are_none(tmp_path, text, caplog):
    path: Path = tmp_path / "estate.cfg"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert settings.load(path) == {}
    assert str(path) in caplog.text


def test_the_same_body_has_the_same_hash_in_every_copy():
    """One ARC seal fits all copies only while the body is one."""
    plain = wire.as_copy(HEAD + b"\r\n.dot\r\nbody\r\n")
    copies = [plain.with_own(OWN.replace(b"AAAA", token)) for token in (b"BBBB", b"CCCC")]
    bodies = [received(copy).partition(b"\r\n\r\n")[2] for copy in (plain, *copies)]
    assert len({hashlib.sha256(body).hexdigest() for body in bodies}) == 1
