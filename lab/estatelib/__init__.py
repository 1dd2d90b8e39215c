"""Send real mail through the lab and look at what becomes of it.

Shared by the estate tests (``tests/estate``) and by ``lab/demo.py``::

    estate = Estate()
    post = estate.world("example.com").send(to="alice@example.org")
    copy = estate.mailbox("alice@example.org").wait_for(post.message_id)
    assert auth_results(copy).dmarc == "pass"
"""

from .estate import Estate
from .hosts import Host, Service
from .mailboxes import Delivery, Mailbox
from .messages import compose, dkim_sign, message_id_of, new_message_id
from .smtp import Reply, Session
from .verify import arc_verify, auth_results, dkim_verify, lookup
from .world import Post, World

__all__ = [
    "Delivery",
    "Estate",
    "Host",
    "Mailbox",
    "Post",
    "Reply",
    "Service",
    "Session",
    "World",
    "arc_verify",
    "auth_results",
    "compose",
    "dkim_sign",
    "dkim_verify",
    "lookup",
    "message_id_of",
    "new_message_id",
]
