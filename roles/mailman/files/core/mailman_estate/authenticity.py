"""What Mailman believes of the gateway's Authentication-Results (RFC 8601) before it seals.

The gateway says what it found when the message came to it, ``arc=none`` for most, and adds the first ARC set after
that. Mailman verifies the chain as it is now and puts its own ``arc=`` result behind the gateway's. Its sealer takes
the first of the two for the chain's state, which would end a good chain by ``cv=fail`` (RFC 8617 section 5.1.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from email.message import Message

from authres import AuthenticationResultsHeader
from mailman.handlers import validate_authenticity


def without_arc(header: str | None) -> str | None:
    """The header field without the results of method ``arc``; None stays None.

    :param header: the whole field, with its name.
    """
    if header is None:
        return None
    parsed = AuthenticationResultsHeader.parse(header)
    parsed.results = [result for result in parsed.results if result.method != "arc"]
    return str(parsed)


def install(settings: Mapping[str, str]) -> None:
    """Put this in the place of Mailman's own look at the header. A further call does no harm."""
    stock = validate_authenticity.trusted_auth_res
    if hasattr(stock, "stock"):
        return

    def trusted_auth_res(msg: Message) -> str | None:
        """See ``mailman.handlers.validate_authenticity``."""
        return without_arc(stock(msg))

    trusted_auth_res.stock = stock  # type: ignore[attr-defined]
    validate_authenticity.trusted_auth_res = trusted_auth_res
