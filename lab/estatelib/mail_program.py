"""Send as one of our people does: a mail program anywhere, signed in at the submission host (RFC 6409)."""

from __future__ import annotations

import base64

from .messages import compose, message_id_of, new_message_id
from .places import ADDRESSES, BYSTANDER, STATE
from .smtp import Reply, Session
from .world import Post

HELO = "laptop.home.invalid"
SUBMISSION, SUBMISSIONS = 587, 465


class User:
    """One of ``estate_submission_users``, by login."""

    def __init__(self, login: str) -> None:
        self.login = login
        self.password = (STATE / f"secrets/submission-{login.partition('@')[0]}").read_text(encoding="utf-8").strip()

    def session(self, *, port: int = SUBMISSION, source: str = BYSTANDER, sign_in: bool = True) -> Session:
        """Open a session over TLS from an address outside; signed in unless ``sign_in=False``."""
        session = Session(ADDRESSES["smtp"][1 if ":" in source else 0], source, port=port, wait=port == SUBMISSION)
        if port == SUBMISSIONS:
            session.handshake()
            session.greeting = session.reply()
            session.command(f"EHLO {HELO}")
        else:
            session.command(f"EHLO {HELO}")
            session.starttls()
            session.command(f"EHLO {HELO}")
        if sign_in:
            reply = self.sign_in(session)
            assert reply.code == 235, f"{reply}: {session.transcript}"
        return session

    def sign_in(self, session: Session, password: str | None = None) -> Reply:
        """AUTH PLAIN (RFC 4954), with another password where one is given."""
        text = f"\0{self.login}\0{self.password if password is None else password}"
        return session.command(f"AUTH PLAIN {base64.b64encode(text.encode()).decode()}")

    def send(
        self, to: str, *, author: str = "", envelope: str | None = None, raw: bytes = b"", port: int = SUBMISSION,
        source: str = BYSTANDER,
    ) -> Post:  # fmt: skip
        """Hand over one message and return it with the reply; by default an honest one of this user."""
        raw = raw or compose(author or self.login, to, message_id=new_message_id(self.login.partition("@")[2]))
        sender = self.login if envelope is None else envelope
        with self.session(port=port, source=source) as session:
            reply = session.command(f"MAIL FROM:<{sender}>")
            if reply.code == 250:
                reply = session.command(f"RCPT TO:<{to}>")
            if reply.code == 250:
                reply = session.data(raw)
        return Post(sender, to, message_id_of(raw), raw, reply)
