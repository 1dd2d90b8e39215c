"""Bring a zone on its primary server to the records that we want, by dynamic update.

Follows RFC 2136 (update and its prerequisites), RFC 8945 (TSIG) and RFC 5936 (AXFR).  Only what is ours is touched:

* Of a name and type that we publish, all records are ours.  Of TXT at a name without an underscore only those of the
  same version tag are (``v=spf1``), because others put theirs beside them.
* Of a name and type that we published once, only the very records that we put there.

Every change says what it has seen (RFC 2136 §2.4.2), so that nobody's change in between is lost.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import re
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.tsig
import dns.tsigkeyring
import dns.update
import dns.xfr
import dns.zone

IN = dns.rdataclass.IN
TXT = dns.rdatatype.TXT
CNAME = dns.rdatatype.CNAME
#: A message has 65535 octets at most; this many are filled by estimate.
FILL = 40000
#: Octets around the data of a record, besides its name.
RECORD_OVERHEAD = 12
#: How often a zone is read anew when somebody else has changed it in between.
ROUNDS = 3
#: How long a transfer may take as a whole, as a multiple of the time to wait for an answer.
LIFETIMES = 10
SOMEBODY_WAS_FASTER = (dns.rcode.NXRRSET, dns.rcode.YXRRSET, dns.rcode.NXDOMAIN, dns.rcode.YXDOMAIN)
_VERSION = re.compile(rb"\s*(v=[A-Za-z0-9]+)")

Place = tuple[dns.name.Name, dns.rdatatype.RdataType]
Live = Mapping[Place, dns.rdataset.Rdataset]


class DnsError(Exception):
    """The server could not be asked, or refused; the message says what and what to do."""


class TransferRefusedError(DnsError):
    """The server gives no transfer of the zone."""


@dataclass(frozen=True)
class Wanted:
    """The records that one name and type shall have, with their time to live in seconds."""

    ttl: int
    rdatas: tuple[dns.rdata.Rdata, ...]


@dataclass(frozen=True)
class Change:
    """What is to be done at one name and type; ``before`` is all that is there now, others' records included."""

    name: dns.name.Name
    rdtype: dns.rdatatype.RdataType
    before: dns.rdataset.Rdataset
    remove: tuple[dns.rdata.Rdata, ...]
    add: tuple[dns.rdata.Rdata, ...]
    ttl: int

    def lines(self) -> tuple[list[str], list[str]]:
        """The records before and after, as lines of a zone file."""
        gone = {content(rdata) for rdata in self.remove}
        kept = [rdata for rdata in self.before if content(rdata) not in gone]
        ttl = self.ttl if self.add else self.before.ttl
        return (
            sorted(self._line(self.before.ttl, rdata) for rdata in self.before),
            sorted(self._line(ttl, rdata) for rdata in [*kept, *self.add]),
        )

    def _line(self, ttl: int, rdata: dns.rdata.Rdata) -> str:
        return f"{_text(self.name)} {ttl} IN {self.rdtype.name} {rdata.to_text()}"

    @property
    def octets(self) -> int:
        """About how much of a message the change fills."""
        around = len(self.name.to_wire() or b"") + RECORD_OVERHEAD
        return sum(len(rdata.to_wire() or b"") + around for rdata in (*self.before, *self.remove, *self.add)) + around


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True)


def content(rdata: dns.rdata.Rdata) -> bytes:
    """What makes two records the same: the text of a TXT record however it is cut, else the data itself."""
    return b"".join(rdata.strings) if rdata.rdtype == TXT else rdata.to_digestable()


def kind(name: dns.name.Name, rdata: dns.rdata.Rdata) -> bytes:
    """Which of the records at a name and type stand for the same thing: all of them, of plain TXT those of one tag."""
    if rdata.rdtype != TXT or any(label.startswith(b"_") for label in name.labels):
        return b""
    version = _VERSION.match(content(rdata))
    return version[1].lower() if version else b"?"


def parse_name(text: str) -> dns.name.Name:
    """A name without its last dot.

    :raises DnsError: when it is malformed.
    """
    try:
        return dns.name.from_text(text, dns.name.root)
    except dns.exception.DNSException as error:
        raise DnsError(f"{text!r} is no domain name: {error}") from error


def parse_records(records: Iterable[Mapping[str, Any]]) -> dict[Place, Wanted]:
    """Records as the filter ``estate_zones`` gives them, by name and type.

    :raises DnsError: when one is malformed.
    """
    found: dict[Place, list[dns.rdata.Rdata]] = {}
    ttls: dict[Place, int] = {}
    for record in records:
        try:
            rdtype = dns.rdatatype.from_text(record["type"])
            rdata = dns.rdata.from_text(IN, rdtype, record["value"], dns.name.root, relativize=False)
        except dns.exception.DNSException as error:
            raise DnsError(f"{record['name']} {record['type']} {record['value']}: {error}") from error
        place = (parse_name(record["name"]), rdtype)
        found.setdefault(place, []).append(rdata)
        ttls[place] = min(int(record["ttl"]), ttls.get(place, int(record["ttl"])))
    return {place: Wanted(ttls[place], tuple(rdatas)) for place, rdatas in found.items()}


def remember(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Records in the form in which they are remembered: a line each."""
    return sorted({f"{record['name']} {record['type']} {record['value']}" for record in records})


def recall(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Records from the lines of :func:`remember`; their time to live is forgotten."""
    split = (line.split(" ", 2) for line in lines)
    return [{"name": name, "type": rdtype, "value": value, "ttl": 0} for name, rdtype, value in split]


def changes(wanted: Mapping[Place, Wanted], earlier: Mapping[Place, Wanted], live: Live) -> list[Change]:
    """What is to be done so that the zone has what we want, and nothing more of what we once put there.

    :param earlier: what we put into the zone the last time.
    :param live: what is at all these names and types now.
    """
    found = []
    for place in sorted({*wanted, *earlier}):
        name, rdtype = place
        before = live.get(place) or dns.rdataset.Rdataset(IN, rdtype)
        want = wanted.get(place) or Wanted(0, ())
        wanted_contents = {content(rdata) for rdata in want.rdatas}
        kinds = {kind(name, rdata) for rdata in want.rdatas}
        once = {content(rdata) for rdata in earlier[place].rdatas} if place in earlier else set()
        ours = [rdata for rdata in before if kind(name, rdata) in kinds or content(rdata) in once]
        remove = [rdata for rdata in ours if content(rdata) not in wanted_contents]
        present = {content(rdata) for rdata in before}
        add = [rdata for rdata in want.rdatas if content(rdata) not in present]
        # A set of records has one time to live (RFC 2181 §5.2); where others have a part in it, theirs stays.
        ttl = before.ttl if len(ours) < len(before) else want.ttl
        if want.rdatas and ours and before.ttl != ttl:
            remove, add = ours, list(want.rdatas)
        if remove or add:
            found.append(Change(name, rdtype, before, tuple(remove), tuple(add), ttl))
    return found


class Server:
    """The primary server of our zones.

    :param address: IP address or name.
    :param key: name of the TSIG key, ``secret`` its value in base64, ``algorithm`` such as ``hmac-sha256``.
    :param timeout: seconds to wait for an answer.
    :raises DnsError: when the name has no address, or the secret is not base64.
    """

    def __init__(self, address: str, port: int, key: str, secret: str, algorithm: str, timeout: float) -> None:
        self.where, self.port, self.timeout = address, port, timeout
        self.key, self.algorithm = key, dns.name.from_text(algorithm)
        try:
            self.keyring = dns.tsigkeyring.from_text({key: secret})
        except (ValueError, dns.exception.DNSException):
            raise DnsError(f"the secret of the key {key} is not base64") from None
        try:
            self.address = str(socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][4][0])
        except OSError as error:
            raise DnsError(f"the name server {address} has no address: {error.strerror or error}") from error

    def read(self, zone: dns.name.Name, places: Iterable[Place]) -> dict[Place, dns.rdataset.Rdataset]:
        """What is at these names and types, and the aliases (CNAME) at these names: by transfer, else one by one.

        :raises DnsError: when the server gives neither.
        """
        wanted = {place for name, rdtype in places for place in ((name, rdtype), (name, CNAME))}
        try:
            content_of = self._transfer(zone)
        except TransferRefusedError:
            self._demand_authority(zone)
            content_of = {place: self._ask(zone, *place) for place in sorted(wanted)}
        return {place: content_of[place] for place in wanted if content_of.get(place)}

    def apply(self, zone: dns.name.Name, steps: Sequence[Change]) -> bool:
        """Have the changes made; False when somebody else has changed the zone since it was read.

        :raises DnsError: when the server refuses.
        """
        for message in self.messages(zone, steps):
            answer = self._exchange(message, zone)
            if answer.rcode() in SOMEBODY_WAS_FASTER:
                return False
            if answer.rcode() != dns.rcode.NOERROR:
                raise DnsError(self._refusal(zone, answer.rcode()))
        return True

    def messages(self, zone: dns.name.Name, steps: Sequence[Change]) -> Iterator[dns.update.UpdateMessage]:
        """The changes as updates, each taken by the server as a whole or not at all."""
        message, octets = self._new_message(zone), 0
        for step in steps:
            if octets and octets + step.octets > FILL:
                yield message
                message, octets = self._new_message(zone), 0
            octets += step.octets
            if step.before:
                message.present(step.name, *step.before)
            else:
                message.absent(step.name, step.rdtype)
            for rdata in step.remove:
                message.delete(step.name, rdata)
            for rdata in step.add:
                message.add(step.name, step.ttl, rdata)
        if octets:
            yield message

    def _new_message(self, zone: dns.name.Name) -> dns.update.UpdateMessage:
        return dns.update.UpdateMessage(
            zone, keyring=self.keyring, keyname=dns.name.from_text(self.key), keyalgorithm=self.algorithm
        )

    def _transfer(self, zone: dns.name.Name) -> dict[Place, dns.rdataset.Rdataset]:
        copy = dns.zone.Zone(zone, relativize=False)
        query, _ = dns.xfr.make_query(
            copy,
            serial=None,
            keyring=self.keyring,
            keyname=dns.name.from_text(self.key),
            keyalgorithm=self.algorithm,
        )
        try:
            with _plain_words(self, zone), dns.xfr.Inbound(copy, dns.rdatatype.AXFR) as inbound:
                for message in self._transferred(query):
                    if inbound.process_message(message):
                        if not message.had_tsig:
                            raise dns.exception.FormError("the transfer does not end in a signature")
                        break
        except dns.xfr.TransferError as error:
            raise TransferRefusedError(f"{_text(zone)}: {self.where} gives no transfer: {error}") from error
        return {(name, rdataset.rdtype): rdataset for name, rdataset in copy.iterate_rdatasets()}

    def _transferred(self, query: dns.message.QueryMessage) -> Iterator[dns.message.Message]:
        """The messages of a transfer.

        They are taken from the network while earlier ones are read: dnspython needs a second for a few thousand
        records, and a server hangs up on who is slow (Knot after half a second).
        """
        deadline, context = time.monotonic() + LIFETIMES * self.timeout, None
        with socket.create_connection((self.address, self.port), self.timeout) as connection:
            wire = query.to_wire()
            connection.sendall(struct.pack("!H", len(wire)) + wire)
            arrived: queue.Queue[bytes | Exception] = queue.Queue()
            threading.Thread(target=_drain, args=(connection, arrived), daemon=True).start()
            for number in itertools.count():
                try:
                    wire_or_error = arrived.get(timeout=max(0, min(self.timeout, deadline - time.monotonic())))
                except queue.Empty:
                    raise dns.exception.Timeout from None
                if isinstance(wire_or_error, Exception):
                    raise wire_or_error
                message = dns.message.from_wire(
                    wire_or_error,
                    keyring=query.keyring,
                    request_mac=query.mac,
                    xfr=True,
                    tsig_ctx=context,
                    multi=True,
                )
                if not query.is_response(message, xfr_continuation=number > 0):
                    raise dns.query.BadResponse
                context = message.tsig_ctx
                yield message

    def _demand_authority(self, zone: dns.name.Name) -> None:
        answer = self._exchange(self._question(zone, dns.rdatatype.SOA), zone)
        authoritative = answer.rcode() == dns.rcode.NOERROR and answer.flags & dns.flags.AA
        if not authoritative or not answer.get_rrset(answer.answer, zone, IN, dns.rdatatype.SOA):
            raise DnsError(
                f"{_text(zone)}: {self.where} does not serve this zone, or not to the key {self.key}"
                f" ({dns.rcode.to_text(answer.rcode())}); leave it out of estate_dns.update.zones"
            )

    def _ask(self, zone: dns.name.Name, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> Any:
        answer = self._exchange(self._question(name, rdtype), zone)
        if answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise DnsError(self._refusal(zone, answer.rcode()))
        # What a delegation consists of comes as a referral.
        sections = [answer.answer] if answer.flags & dns.flags.AA else [answer.authority, answer.additional]
        for section in sections:
            found = answer.get_rrset(section, name, IN, rdtype)
            if found:
                return found.to_rdataset()
        return None

    def _question(self, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> dns.message.QueryMessage:
        query = dns.message.make_query(name, rdtype, flags=0)
        query.use_tsig(self.keyring, dns.name.from_text(self.key), algorithm=self.algorithm)
        return query

    def _exchange(self, message: dns.message.Message, zone: dns.name.Name) -> dns.message.Message:
        with _plain_words(self, zone):
            return dns.query.tcp(message, self.address, timeout=self.timeout, port=self.port)

    def unsigned(self, zone: dns.name.Name) -> str:
        """Why the server answers without a signature, which dnspython does not look into: asked once more, by a query.

        Some servers (Knot) leave the signature out when they do not know the key, and say only NOTAUTH.
        """
        question = self._question(zone, dns.rdatatype.SOA)
        with socket.create_connection((self.address, self.port), self.timeout) as connection:
            expiration = time.time() + self.timeout
            dns.query.send_tcp(connection, question, expiration)
            answer, _ = dns.query.receive_tcp(connection, expiration, keyring=False)
        if answer.rcode() == dns.rcode.NOTAUTH:
            return f"{self.where} does not know the key {self.key}, or by another algorithm (BADKEY)"
        return f"{self.where} answers without a signature ({dns.rcode.to_text(answer.rcode())}), so nobody can trust it"

    def _refusal(self, zone: dns.name.Name, rcode: dns.rcode.Rcode) -> str:
        told = {
            dns.rcode.REFUSED: f"refuses the change; its configuration must allow it to the key {self.key}",
            dns.rcode.NOTAUTH: "is not the primary server of this zone; leave it out of estate_dns.update.zones",
            dns.rcode.NOTZONE: "says that a record lies outside this zone",
            dns.rcode.NOTIMP: "takes no dynamic updates",
            dns.rcode.SERVFAIL: "failed; its log says why",
        }
        answer = dns.rcode.to_text(rcode)
        return f"{_text(zone)}: {self.where} {told.get(rcode, 'did not make the change')} ({answer})"


def _drain(connection: socket.socket, arrived: queue.Queue[bytes | Exception]) -> None:
    """Put what comes over a connection into a queue, message by message, and in the end why nothing more comes."""
    try:
        with connection.makefile("rb") as stream:
            while len(prefix := stream.read(2)) == 2:
                length = int.from_bytes(prefix)
                if len(wire := stream.read(length)) < length:
                    break
                arrived.put(wire)
        arrived.put(EOFError("it hung up"))
    except (OSError, ValueError) as error:
        arrived.put(error)


@contextlib.contextmanager
def _plain_words(server: Server, zone: dns.name.Name) -> Iterator[None]:
    """Errors of dnspython and of the network as :class:`DnsError`; a refused transfer passes as it is."""
    try:
        yield
    except dns.xfr.TransferError:
        raise
    except (OSError, EOFError, dns.exception.DNSException) as error:
        why = error
        if "requires a TSIG" in str(error):
            try:
                raise DnsError(f"{_text(zone)}: {server.unsigned(zone)}") from error
            except (OSError, EOFError, dns.exception.DNSException) as another:
                why = another
        raise DnsError(f"{_text(zone)}: {_words(why, server)}") from error


def _words(error: BaseException, server: Server) -> str:
    where, key = server.where, server.key
    if isinstance(error, dns.tsig.PeerBadKey):
        return f"{where} does not know the key {key}, or by another algorithm (BADKEY)"
    if isinstance(error, dns.tsig.PeerBadSignature):
        return f"{where} has another secret for the key {key} (BADSIG); see vault_dns_update_key"
    if isinstance(error, dns.tsig.BadTime | dns.tsig.PeerBadTime):
        return f"the clocks here and at {where} differ by more than five minutes (BADTIME)"
    if isinstance(error, dns.tsig.BadSignature | dns.message.UnknownTSIGKey):
        return f"the answer of {where} is not signed by the key {key}"
    if isinstance(error, dns.exception.Timeout | TimeoutError):
        return f"{where} did not answer in {server.timeout:g} s"
    if isinstance(error, OSError | EOFError):
        return f"{where} cannot be asked: {getattr(error, 'strerror', None) or error or 'it hung up'}"
    return f"the answer of {where} makes no sense: {error or type(error).__name__}"
