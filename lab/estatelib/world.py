"""The outside mail systems: send as one of them, through its real Postfix or straight to a chosen gateway."""

from __future__ import annotations

import smtplib
from collections.abc import Iterable
from dataclasses import dataclass

from . import keys
from .mailboxes import Mailbox
from .messages import arc_seal, compose, dkim_sign, message_id_of, new_message_id
from .places import (
    ADDRESSES,
    INJECTED_BY,
    INJECTION_HOST,
    INJECTION_PORT,
    INJECTION_PORT_OF_FAMILY,
    INJECTION_PORT_OF_GATEWAY,
    OUTSIDE_ADDRESSES,
    OUTSIDE_MAIL_HOSTS,
)
from .smtp import Reply, Session


@dataclass(frozen=True)
class Post:
    """A message on its way."""

    sender: str
    to: str
    message_id: str
    raw: bytes
    reply: Reply | None = None  # the gateway's last word, when the message was handed over directly


@dataclass(frozen=True)
class World:
    """One outside mail system, by its domain."""

    domain: str

    @property
    def mail_host(self) -> str:
        """Return the name its server greets with."""
        return OUTSIDE_MAIL_HOSTS[self.domain]

    def address(self, family: int = 4) -> str:
        """Return the address its mail comes from."""
        return OUTSIDE_ADDRESSES[self.domain][0 if family == 4 else 1]

    def mailbox(self, user: str) -> Mailbox:
        """Return a mailbox of this domain."""
        return Mailbox(f"{user}@{self.domain}")

    def compose(self, to: str, *, user: str = "user", message_id: str = "", **parts) -> bytes:
        """Return an unsigned message written by a user here."""
        identity = message_id or new_message_id(self.domain)
        return compose(f"{user.capitalize()} <{user}@{self.domain}>", to, message_id=identity, **parts)

    def sign(self, message: bytes, **options) -> bytes:
        """Sign as this domain, with the key it publishes."""
        selector, key = keys.signing_key(self.domain)
        return dkim_sign(message, self.domain, selector, key, **options)

    def seal(self, message: bytes, results: str) -> bytes:
        """Add an ARC set of this domain that claims ``results``."""
        selector, key = keys.signing_key(self.domain)
        return arc_seal(message, self.domain, selector, key, results)

    def send(
        self,
        to: str,
        *,
        gateway: str | None = None,
        family: int | None = None,
        user: str = "user",
        envelope: str | None = None,
        **parts,
    ) -> Post:
        """Send through this domain's own Postfix, which signs, and retries as any server would.

        It goes to the MX unless ``gateway`` names one, by whichever ``family`` answers unless 4 or 6 is asked for.
        """
        port = INJECTION_PORT
        if gateway:
            port = INJECTION_PORT_OF_GATEWAY[gateway]
        elif family:
            port = INJECTION_PORT_OF_FAMILY[family]
        sender = f"{user}@{self.domain}" if envelope is None else envelope
        raw = self.compose(to, user=user, **parts)
        with smtplib.SMTP(INJECTION_HOST, port, local_hostname=INJECTED_BY, timeout=30) as smtp:
            smtp.sendmail(sender, [to], raw)
        return Post(sender, to, message_id_of(raw), raw)

    def hand_over(
        self,
        to: str | Iterable[str],
        *,
        gateway: str = "mail-gw1",
        family: int = 4,
        user: str = "user",
        envelope: str | None = None,
        raw: bytes | None = None,
        signed: bool | None = None,
        **parts,
    ) -> Post:
        """Give a message straight to one gateway, from this domain's address, and keep the gateway's reply.

        ``raw`` replaces the composed message; ``signed`` overrides the domain's own habit of DKIM-signing or not.
        """
        recipients = [to] if isinstance(to, str) else list(to)
        sender = f"{user}@{self.domain}" if envelope is None else envelope
        message = raw or self.compose(recipients[0], user=user, **parts)
        if raw is None and (keys.signs(self.domain) if signed is None else signed):
            message = self.sign(message)
        host = ADDRESSES[gateway][0 if family == 4 else 1]
        with Session(host, self.address(family)) as session:
            reply = session.transaction(self.mail_host, sender, recipients, message)
        return Post(sender, recipients[0], message_id_of(message), message, reply)
