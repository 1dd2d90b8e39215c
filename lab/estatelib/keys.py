"""The DKIM keys of the outside mail systems, as ``lab/world.yml`` leaves them in the state directory."""

from __future__ import annotations

from .places import STATE

SELECTOR = "s1"
SIGNING_DOMAINS = ("example.com", "example.co.jp")  # their own Postfix signs; other keys serve ARC seals only


def signs(domain: str) -> bool:
    """Tell whether this domain signs its mail with DKIM."""
    return domain in SIGNING_DOMAINS


def signing_key(domain: str) -> tuple[str, bytes]:
    """Return the selector and the private key (PEM) of a domain that signs or seals."""
    return SELECTOR, (STATE / f"secrets/outside/{domain}.pem").read_bytes()
