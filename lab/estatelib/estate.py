"""The front door of the library: everything in the lab by its name."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from .hosts import Host
from .lists import MailingList
from .mail_program import User
from .mailboxes import Mailbox
from .messages import message_id_of
from .places import ADDRESSES, ATTACKER, GATEWAYS, STATE
from .smtp import Session
from .world import Post, World


class Estate:
    """The running lab."""

    gateways = GATEWAYS
    state = STATE

    def world(self, domain: str) -> World:
        """Return an outside mail system."""
        return World(domain)

    def mailbox(self, address: str) -> Mailbox:
        """Return a mailbox, ours or an outside one."""
        return Mailbox(address)

    def user(self, login: str) -> User:
        """Return one of our people, who sends through the submission host."""
        return User(login)

    def list(self, address: str) -> MailingList:
        """Return a mailing list."""
        return MailingList(address)

    def host(self, name: str) -> Host:
        """Return a host of the lab, also ``world``."""
        return Host(name)

    def gateway(self, name: str = "mail-gw1") -> Host:
        """Return a gateway."""
        assert name in GATEWAYS, name
        return Host(name)

    def smtp_session(
        self,
        gateway: str = "mail-gw1",
        *,
        source: str = ATTACKER,
        port: int = 25,
        wait: bool = True,
        timeout: float = 30,
    ) -> Session:
        """Open an SMTP session from an address of lab-world to a host; an IPv6 source reaches it by IPv6."""
        return Session(ADDRESSES[gateway][1 if ":" in source else 0], source, port=port, wait=wait, timeout=timeout)

    def forge(
        self,
        raw: bytes,
        *,
        envelope: str,
        to: str = "alice@example.org",
        gateway: str = "mail-gw1",
        source: str = ATTACKER,
    ) -> Post:
        """Hand over a message from an address that has no right to send it; the post holds the gateway's reply."""
        with self.smtp_session(gateway, source=source) as session:
            reply = session.transaction("relay.example.com", envelope, [to], raw)
        return Post(envelope, to, message_id_of(raw), raw, reply)

    @contextmanager
    def stranger(self) -> Iterator[str]:
        """Lend lab-world an IPv6 address that no host of the estate has ever heard of."""
        address = f"2001:db8:25:0:{secrets.randbelow(0xFFFF) + 1:x}:{secrets.randbelow(0xFFFF) + 1:x}:0:1"
        self.host("world").run("ip", "address", "add", f"{address}/64", "dev", "eth0", "nodad")
        try:
            yield address
        finally:
            self.host("world").run("ip", "address", "del", f"{address}/64", "dev", "eth0")
