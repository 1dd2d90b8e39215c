"""Where everything is in the lab: the one place in this library that knows addresses and paths."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
STATE = REPOSITORY / ".lab"
MAILBOXES = STATE / "mailboxes"

AUTHSERV_ID = "mx.example.org"
GATEWAYS = ("mail-gw1", "mail-gw2")
ESTATE_HOSTS = (*GATEWAYS, "mail", "ml", "smtp", "analytics")
ESTATE_MAIL_DOMAINS = ("example.org", "sfc.example.org")  # delivered on the mailbox host

ADDRESSES = {
    "mail-gw1": ("198.18.25.11", "2001:db8:25::11"),
    "mail-gw2": ("198.18.25.12", "2001:db8:25::12"),
    "ml": ("198.18.25.13", "2001:db8:25::13"),
    "smtp": ("198.18.25.14", "2001:db8:25::14"),
    "analytics": ("198.18.25.15", "2001:db8:25::15"),
    "mail": ("198.18.25.20", "2001:db8:25::20"),
    "world": ("198.18.25.100", "2001:db8:25::100"),
}
OUTSIDE_MAIL_HOSTS = {
    "example.com": "mx.example.com",
    "example.net": "mx.example.net",
    "example.edu": "mx.example.edu",
    "example.jp": "mx.example.jp",
    "example.ac.jp": "lists.example.ac.jp",
    "example.co.jp": "mx.example.co.jp",
    "member.example.org": "mx.member.example.org",
}
OUTSIDE_ADDRESSES = {
    "example.com": ("198.18.25.101", "2001:db8:25::101"),
    "example.net": ("198.18.25.102", "2001:db8:25::102"),
    "example.edu": ("198.18.25.103", "2001:db8:25::103"),
    "example.jp": ("198.18.25.104", "2001:db8:25::104"),
    "example.ac.jp": ("198.18.25.105", "2001:db8:25::105"),
    "example.co.jp": ("198.18.25.106", "2001:db8:25::106"),
    "member.example.org": ("198.18.25.112", "2001:db8:25::112"),
}
ATTACKER = "198.18.25.107"  # no reverse name, belongs to nobody
BYSTANDER = "198.18.25.108"  # two more addresses without history, for what ruins a client's reputation
HARVESTER = "198.18.25.109"
NAME_SERVER = "198.18.25.100"
# Outside mail starts here; the envelope sender's domain chooses who sends it, the port which way (lab role world_mail).
INJECTION_HOST = "198.18.25.100"
INJECTED_BY = "controller.example.com"  # the name this machine greets with
INJECTION_PORT = 2525  # by MX, over IPv4 or IPv6
INJECTION_PORT_OF_FAMILY = {4: 2526, 6: 2527}
INJECTION_PORT_OF_GATEWAY = {"mail-gw1": 2531, "mail-gw2": 2532}
