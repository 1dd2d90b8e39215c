"""How the export hides addresses and names: Crypto-PAn, keyed pseudonyms, rounding, k-anonymous groups.

Addresses keep their prefixes (Xu, Fan, Ammar, Moon: "Prefix-Preserving IP Address Anonymization", ICNP 2002): two that
share their first n bits share exactly n afterwards. Names become HMACs (RFC 2104) cut to 64 bits; nothing of a name is
left, neither its length nor its top-level domain.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Hashable, Iterable, Sequence

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES = 32
OUTSIDE = "out-"
NUMBERS_KEPT = 2
"""A count keeps this many significant digits."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class CryptoPan:
    """Crypto-PAn with AES-128: 16 octets of key, 16 from which the padding is made.

    As published, two prefixes of one address give the same block wherever the address agrees with the padding, so that
    flips repeat and about 1 in 20,000 addresses is its own mask. Unless ``published``, the padding is XORed to the
    prefix and a 1 that marks its end instead: each prefix has a block of its own, and addresses keep to themselves.
    """

    def __init__(self, key: bytes, *, published: bool = False) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"Crypto-PAn takes {KEY_BYTES} octets of key")
        # each block is encrypted alone: ECB is what the scheme asks for
        self._encrypt = Cipher(algorithms.AES(key[:16]), modes.ECB()).encryptor()
        self._padding = int.from_bytes(self._encrypt.update(key[16:]), "big")
        masks = [(1 << (128 - bits)) - 1 for bits in range(128)]
        ends = [self._padding & mask if published else ((mask + 1) >> 1) ^ self._padding for mask in masks]
        self._masks = [(~mask, end) for mask, end in zip(masks, ends, strict=True)]

    def number(self, value: int, bits: int) -> int:
        """Anonymise an address of 32 or 128 bits, given and returned as a number."""
        address = value << (128 - bits)
        blocks = b"".join(((address & mask) ^ end).to_bytes(16, "big") for mask, end in self._masks[:bits])
        flips = int("".join("1" if octet & 0x80 else "0" for octet in self._encrypt.update(blocks)[::16]), 2)
        return value ^ flips

    def address(self, text: str) -> str:
        """Anonymise an IPv4 or IPv6 address, given and returned as text."""
        address = ipaddress.ip_address(text)
        return str(type(address)(self.number(int(address), address.max_prefixlen)))


def round_count(number: int, small: int) -> int | None:
    """Round a count to two significant digits, half up; None below ``small``."""
    if number < small:
        return None
    step = 10 ** max(0, len(str(number)) - NUMBERS_KEPT)
    return (2 * number + step) // (2 * step) * step


def round_time(seconds: int, hours: int) -> int:
    """Round a moment (seconds, UTC) down to the beginning of ``hours`` hours of its day."""
    return seconds - seconds % (3600 * hours)


def plain_name(text: str) -> str:
    """Bring a domain name into the form in which all spellings are one."""
    return text.strip().rstrip(".").lower()


class Groups:
    """Which values (countries, networks) are shared by at least ``k`` sources; counts no further than that."""

    def __init__(self, k: int) -> None:
        self.k = k
        self._members: dict[Hashable, set[Hashable]] = {}

    def add(self, group: Hashable, member: Hashable) -> None:
        """Count one source in a group, once."""
        members = self._members.setdefault(group, set())
        if len(members) < self.k:
            members.add(member)

    def large(self) -> set[Hashable]:
        """The groups with at least ``k`` sources."""
        return {group for group, members in self._members.items() if len(members) >= self.k}


class Mask:
    """Everything that is replaced, and what it was replaced by: memory grows with distinct values, not with rows."""

    def __init__(self, key: bytes, own_domains: Iterable[str], senders: Iterable[tuple[str, str]]) -> None:
        """Take a key of 32 octets, the own domains, and the postmaster's decisions: network → kind."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key has {KEY_BYTES} octets")
        self._key = key
        self._pan = {
            (version, own): CryptoPan(self._derive(f"crypto-pan {version} {own}"))
            for version in (4, 6)
            for own in (False, True)
        }
        self._hmac = hmac.new(self._derive("names"), digestmod=hashlib.sha256)
        names = sorted({plain_name(name) for name in own_domains} - {""}, key=lambda name: self._token("own", name))
        self._own = {name: f"own-{number}" for number, name in enumerate(names, 1)}
        networks = [(ipaddress.ip_network(network, strict=False), kind) for network, kind in senders]
        self._senders: Sequence[tuple[Network, str]] = sorted(networks, key=lambda item: -item[0].prefixlen)
        self.addresses: dict[str, tuple[str, str]] = {}
        """Address → its replacement and the kind of its sender."""
        self.names: dict[str, str] = {}
        """Domain or HELO name → its replacement."""
        self.words: dict[tuple[str, str], str] = {}
        """Reporter, gateway or selector → its replacement."""

    @property
    def fingerprint(self) -> str:
        """What two exports have in common if they join: key and own domains; says nothing about either."""
        return self._token("fingerprint", "\n".join(sorted(self._own)))

    def _derive(self, purpose: str) -> bytes:
        return hmac.digest(self._key, purpose.encode(), "sha256")

    def _token(self, purpose: str, text: str) -> str:
        work = self._hmac.copy()
        work.update(purpose.encode() + b"\0" + text.encode("utf-8", "surrogatepass"))
        return work.hexdigest()[:16]

    def address(self, text: str) -> tuple[str, str]:
        """Replace an address; also say whose it is: own, provider, forwarder, spoof, or empty."""
        found = self.addresses.get(text)
        if found is None:
            address = ipaddress.ip_address(text)
            if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
                address = address.ipv4_mapped
            inside = (
                kind for network, kind in self._senders if network.version == address.version and address in network
            )
            kind = next(inside, "")
            pan = self._pan[address.version, kind == "own"]
            replaced = str(type(address)(pan.number(int(address), address.max_prefixlen)))
            found = self.addresses[text] = replaced, kind
        return found

    def name(self, text: str) -> str:
        """Replace a domain or HELO name: ``own-1``, ``own-1-…`` below an own domain, ``out-…``; empty stays empty."""
        found = self.names.get(text)
        if found is None:
            found = self.names[text] = self._name(plain_name(text))
        return found

    def _name(self, name: str) -> str:
        if not name:
            return ""
        above = name
        while above:
            if above in self._own:
                return self._own[above] if above == name else f"{self._own[above]}-{self._token('name', name)}"
            above = above.partition(".")[2]
        return OUTSIDE + self._token("name", name)

    def selector(self, domain: str, selector: str) -> str:
        """Replace a selector, for each domain differently: the popular ones could be told by their number."""
        return self._word("sel-", f"{plain_name(domain)}\0{selector.lower()}", selector)

    def reporter(self, text: str) -> str:
        """Replace the name of the organisation that sent a report."""
        return self._word("rep-", text.strip().lower(), text)

    def gateway(self, text: str) -> str:
        """Replace the name of a gateway."""
        return self._word("gw-", plain_name(text), text)

    def _word(self, kind: str, text: str, original: str) -> str:
        if not original.strip():
            return ""
        found = self.words.get((kind, text))
        if found is None:
            found = self.words[kind, text] = kind + self._token(kind, text)
        return found

    def originals(self) -> set[str]:
        """Everything that must not be in the export, as written and in plain form."""
        words = {text.rpartition("\0")[2] for _, text in self.words}
        given = set(self.addresses) | set(self.names) | words
        return (given | {plain_name(text) for text in self.names}) - {""}
