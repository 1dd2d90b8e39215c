"""Cross-checks of the estate's data model: a list of plain sentences, empty when the model is valid.

Each sentence names the variable, its value and what is allowed, for example::

    estate_domains['example.org'].receive.next_hop is "mial": no such host in estate_hosts; did you mean "mail"?

Input is whatever YAML an operator typed.  No input raises: a part of the wrong type is reported and not looked into.
Rules come from RFC 5321 (addresses, postmaster), RFC 7208 (SPF), RFC 6376 (selectors), RFC 8601 (authserv-id),
RFC 9989 and RFC 9990 (DMARC), RFC 8461 (MTA-STS), RFC 8659 (CAA); docs/data-model.md explains the fields.
"""

from __future__ import annotations

import difflib
import ipaddress
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from estate_keys import key_type
from estate_model import KEY_STATES, KEY_USES, SMTP_PORT, as_list, is_below, mail_address, organisational_domain
from estate_names import address_fault, domain_name_fault, is_ip, is_local_part, is_network, selector_fault

#: The mailing lists stand beside the model; estate_lists looks into them.
LIST_VARIABLES = ("estate_lists", "estate_list_base", "estate_list_profiles")
#: So does what the web servers need: the CA that gives certificates by ACME, and the CAs of the members' certificates.
WEB_VARIABLES = ("estate_acme", "estate_certificates", "estate_members_ca")
#: And who may send through the submission host: estate_submission looks into them.
SUBMISSION_VARIABLES = ("estate_submission_users", "estate_submission_relays")
#: Where playbooks keep what hosts have made, which is in the model itself (inventory/keys.yml).
KEY_VARIABLES = ("estate_key_directory",)
MANDATORY_VARIABLES = (
    "estate_name",
    "estate_domain",
    "estate_postmaster",
    "estate_authserv_id",
    "estate_srs_domain",
    "estate_arc",
    "estate_hosts",
    "estate_gateways",
    "estate_domains",
    "estate_dkim_public_keys",
    "estate_strict_domains",
    "estate_spam",
    "estate_forwards",
    "estate_limit_exceptions",
    "estate_management_networks",
    "estate_report_authorisations",
    "estate_report_receivers",
    "estate_mta_sts",
    "estate_caa",
    "estate_dns",
    "estate_submission_host",
    "estate_dkim",
    "estate_dkim_keys",
    "estate_tlsa",
    *LIST_VARIABLES,
    *WEB_VARIABLES,
    *SUBMISSION_VARIABLES,
    *KEY_VARIABLES,
)
RENAMED_VARIABLES = {
    "estate_mx": "estate_gateways",
    "estate_mx_hosts": "estate_gateways",
    "estate_relay_domains": "estate_domains",
    "estate_trusted_sealers": "estate_arc.trusted_sealers",
    "estate_spam_thresholds": "estate_spam",
    "estate_report_authorizations": "estate_report_authorisations",
}

BESIDE_THE_MODEL = LIST_VARIABLES + WEB_VARIABLES + SUBMISSION_VARIABLES + KEY_VARIABLES
MODEL_FIELDS = tuple(name.removeprefix("estate_") for name in MANDATORY_VARIABLES if name not in BESIDE_THE_MODEL)
HOST_FIELDS = ("fqdn", "ipv4", "ipv6")
DOMAIN_FIELDS = (
    "receive",
    "send",
    "sign",
    "dmarc",
    "strict",
    "lists",
    "mta_sts",
    "tls_rpt",
    "bimi",
    "closed",
    "delegated",
    "ds",
)
#: What a domain may have whose zone is its owner's: our gateways may still take its mail.
DELEGATED_FIELDS = ("delegated", "ds", "receive", "closed")
BIMI_FIELDS = ("logo", "evidence")
NAME_SERVER_FIELDS = ("name", "ipv4", "ipv6")
MTA_STS_FIELDS = ("host", "max_age")
DNS_FIELDS = ("nameservers", "ttl", "update")
DNS_UPDATE_FIELDS = ("server", "port", "key", "algorithm", "zones")
RECEIVE_FIELDS = ("next_hop", "recipients")
NEXT_HOP_FIELDS = ("host", "port")
SEND_FIELDS = ("hosts", "networks", "includes", "spf_all")
SIGN_FIELDS = ("signer", "selectors", "rotate")
DMARC_FIELDS = ("p", "sp", "np", "rua", "testing")
ARC_FIELDS = ("enabled", "domain", "selector", "rotate", "trusted_sealers")
DKIM_FIELDS = ("rotate_days", "keep_days", "revoked_days")
#: Days: least, most. A key that is kept too short fails mail that waited; one that signs for years is worth stealing.
DKIM_DAYS = {"rotate_days": (1, 730), "keep_days": (5, 60), "revoked_days": (0, 365)}
DKIM_KEY_FIELDS = ("use", "hosts", "state", "dates", "public_key", "revoked")
SPAM_SCORES = ("greylist", "add_header", "reject")
SPAM_FIELDS = (*SPAM_SCORES, "outside_lists")
AUTHORISATION_FIELDS = ("domain", "at")

POLICIES = ("none", "quarantine", "reject")
SPF_ALL = ("fail", "softfail", "neutral")
MTA_STS_MODES = ("none", "testing", "enforce")
#: Seconds, of a policy that senders can rely on and of the longest that RFC 8461 §3.2 allows.
MTA_STS_MAX_AGES = (86400, 31557600)
#: Seconds: below, resolvers ask all the time; above, a mistake stays for more than a day.
TTLS = (30, 86400)
TSIG_ALGORITHMS = ("hmac-sha256", "hmac-sha384", "hmac-sha512")
#: DS digest type → hexadecimal digits (RFC 8624 §3.3: SHA-256 and SHA-384).
DS_DIGITS = {2: 64, 4: 96}
SPF_LOOKUP_LIMIT = 10
WIDEST_IPV4_PREFIX = 16
WIDEST_IPV6_PREFIX = 32


def variable_problems(names: Iterable[Any]) -> list[str]:
    """What is wrong with the names of the variables a site defines: missing, renamed, unknown ones."""
    defined = sorted({str(name) for name in names})
    found = [
        f"{old} has been renamed: write {RENAMED_VARIABLES[old]} instead (docs/data-model.md)."
        for old in defined
        if old in RENAMED_VARIABLES
    ]
    known = {*MANDATORY_VARIABLES, "estate_model"}
    for name in defined:
        if name.startswith("estate_") and name not in known and name not in RENAMED_VARIABLES:
            found.append(f"{name} is no variable of the data model{_suggestion(name, known)}; see docs/data-model.md.")
    found += [
        f"{name} is not set: define it in the inventory's group_vars/all/ (docs/data-model.md)."
        for name in MANDATORY_VARIABLES
        if name not in defined
    ]
    return found


def problems(model: Any) -> list[str]:
    """Everything that is wrong with ``estate_model``, in the order of the model."""
    return _Checker(_plain(model)).run()


def _plain(value: Any) -> Any:
    """Ansible's tagged and lazy values as what YAML means by them."""
    if isinstance(value, Mapping):
        return {str(key) if isinstance(key, str) else key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str(value)
    return value


def _show(value: Any) -> str:
    """A value as the operator typed it, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        text = f"of type {type(value).__name__}"
    return text if len(text) <= 100 else text[:99] + "…"


def _suggestion(value: Any, allowed: Iterable[Any]) -> str:
    close = difflib.get_close_matches(str(value), sorted(str(name) for name in allowed), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def _names(names: Iterable[Any]) -> str:
    return ", ".join(sorted(str(name) for name in names)) or "nothing is defined"


def _one_or_more(value: Any) -> list[Any]:
    """A list or one name; nothing where it is neither, which is told elsewhere."""
    return as_list(value) if value is None or isinstance(value, str | list) else []


class _Checker:
    """One pass over one model; collects sentences."""

    def __init__(self, model: Any) -> None:
        self.model: dict[Any, Any] = model if isinstance(model, dict) else {}
        self.is_mapping = isinstance(model, dict)
        self.found: list[str] = []
        self.hosts = self._dict_of("hosts")
        self.domains = self._dict_of("domains")
        self.forwards = self._dict_of("forwards")
        self.keys = self._dict_of("dkim_public_keys")
        self.gateways = [name for name in self._list_of("gateways") if isinstance(name, str)]
        self.fqdns = [host.get("fqdn") for host in self.hosts.values() if isinstance(host, dict)]
        self.delegated = [
            name
            for name, fields in self.domains.items()
            if isinstance(fields, dict) and fields.get("delegated") and domain_name_fault(name) is None
        ]
        own = [self.model.get("domain"), self.model.get("srs_domain"), *self.domains]
        self.own = sorted({name for name in own if domain_name_fault(name) is None})

    # -- what is reported ---------------------------------------------------------------------------------------

    def say(self, path: str, value: Any, text: str) -> None:
        """One problem: where, what is there, what should be."""
        self.found.append(f"{path} is {_show(value)}: {text}")

    def _dict_of(self, field: str) -> dict[Any, Any]:
        value = self.model.get(field)
        return value if isinstance(value, dict) else {}

    def _list_of(self, field: str) -> list[Any]:
        value = self.model.get(field)
        return value if isinstance(value, list) else []

    def mapping(self, path: str, value: Any, fields: Iterable[str]) -> dict[str, Any]:
        """The mapping at ``path``; reports another type and unknown fields."""
        allowed = tuple(fields)
        if not isinstance(value, dict):
            self.say(path, value, f"must be a mapping with the fields {', '.join(allowed)}")
            return {}
        for key in value:
            if key not in allowed:
                self.say(
                    f"{path}.{key}",
                    value[key],
                    f"there is no such field{_suggestion(key, allowed)}; allowed: {', '.join(allowed)}",
                )
        return value

    def sequence(self, path: str, value: Any) -> list[Any]:
        """The list at ``path``; reports another type and repeated elements."""
        if value is None:
            return []
        if not isinstance(value, list):
            self.say(path, value, "must be a list")
            return []
        seen: list[Any] = []
        for item in value:
            if item in seen:
                self.say(path, value, f"names {_show(item)} twice")
                break
            seen.append(item)
        return value

    def choice(self, path: str, value: Any, allowed: tuple[str, ...]) -> bool:
        """Whether the value is one of ``allowed``; reports any other."""
        if isinstance(value, str) and value in allowed:
            return True
        self.say(path, value, f"allowed: {', '.join(allowed)}{_suggestion(value, allowed)}")
        return False

    def boolean(self, path: str, value: Any) -> bool:
        """The value of a switch; reports anything but true and false."""
        if not isinstance(value, bool):
            self.say(path, value, "must be true or false")
            return False
        return value

    def number(self, path: str, value: Any, least: int, most: int, what: str) -> None:
        """A whole number; reports anything outside ``least`` to ``most``."""
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.say(path, value, f"must be {what}, {least} to {most}")

    def host(self, path: str, value: Any) -> bool:
        """Whether the value is a key of estate_hosts; reports any other."""
        if isinstance(value, str) and value in self.hosts:
            return True
        self.say(
            path,
            value,
            f"no such host in estate_hosts{_suggestion(value, self.hosts)}; known hosts: {_names(self.hosts)}",
        )
        return False

    def domain_name(self, path: str, value: Any) -> bool:
        """Whether the value is a well-formed domain name; reports any other."""
        fault = domain_name_fault(value)
        if fault:
            self.say(path, value, fault)
        return fault is None

    def ours(self, name: str) -> str | None:
        """The topmost domain of ours above ``name``."""
        return organisational_domain(name, self.own)

    def receives(self, domain: str) -> bool:
        """Whether mail to this domain of ours is delivered."""
        fields = self.domains.get(domain)
        return isinstance(fields, dict) and bool(fields.get("receive"))

    # -- the parts ----------------------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """All checks, in the order of the model."""
        if not self.is_mapping:
            return ["estate_model must be a mapping of the estate_ variables (inventory/model.yml)."]
        self.mapping("estate_model", self.model, MODEL_FIELDS)
        self._check_identity()
        self._check_hosts()
        self._check_gateways()
        self._check_domains()
        self._check_arc()
        self._check_keys()
        self._check_key_life()
        self._check_made_keys()
        self._check_forwards()
        self._check_policy()
        self._check_reports()
        self._check_mta_sts()
        self._check_caa()
        self._check_dns()
        self._check_submission_host()
        self._check_tlsa()
        return list(dict.fromkeys(self.found))

    def _check_identity(self) -> None:
        name = self.model.get("name")
        if not isinstance(name, str) or not name.strip():
            self.say("estate_name", name, "must be the organisation's name")
        domain = self.model.get("domain")
        if self.domain_name("estate_domain", domain) and domain not in self.domains:
            self.say("estate_domain", domain, f"must be one of estate_domains: {_names(self.domains)}")
        self.domain_name("estate_authserv_id", self.model.get("authserv_id"))
        self._check_own_mailbox("estate_postmaster", self.model.get("postmaster"))

    def _check_own_mailbox(self, path: str, address: Any) -> None:
        fault = address_fault(address)
        if fault:
            self.say(path, address, fault)
            return
        domain = address.rpartition("@")[2]
        if self.ours(domain) is None:
            self.say(path, address, f"must be an address in a domain of ours: {_names(self.domains)}")
        else:
            self._check_recipient(path, address)

    def _check_recipient(self, path: str, address: str) -> None:
        """An address in our domains must be one that the gateways accept."""
        local, _, domain = address.rpartition("@")
        if not self.receives(domain):
            self.say(path, address, f"the gateways refuse it, because {domain} receives no mail in estate_domains")
            return
        receive = self.domains[domain]["receive"]
        recipients = receive.get("recipients") if isinstance(receive, dict) else None
        if isinstance(recipients, list) and local not in recipients and address not in self.forwards:
            self.say(
                path,
                address,
                f"no such recipient: add {local} to estate_domains['{domain}'].receive.recipients or forward it",
            )

    def _check_hosts(self) -> None:
        hosts = self.model.get("hosts")
        if not isinstance(hosts, dict) or not hosts:
            self.say("estate_hosts", hosts, f"must be a mapping: host name to {', '.join(HOST_FIELDS)}")
            return
        owners: dict[Any, str] = {}
        for name, value in hosts.items():
            path = f"estate_hosts['{name}']"
            fields = self.mapping(path, value, HOST_FIELDS)
            if not isinstance(value, dict):
                continue
            fqdn = fields.get("fqdn")
            if fqdn is None:
                self.say(f"{path}.fqdn", fqdn, "every host needs its full name, which MX, PTR and HELO carry")
            elif self.domain_name(f"{path}.fqdn", fqdn):
                if fqdn in owners:
                    self.say(f"{path}.fqdn", fqdn, f"{owners[fqdn]} has the same name")
                owners.setdefault(fqdn, str(name))
                self._check_host_name(path, str(name), fqdn)
            if not fields.get("ipv4") and not fields.get("ipv6"):
                self.say(path, value, "needs an ipv4 or an ipv6 address")
            for version in (4, 6):
                self._check_address(f"{path}.ipv{version}", fields.get(f"ipv{version}"), version, str(name), owners)

    def _check_host_name(self, path: str, name: str, fqdn: str) -> None:
        fields = self.domains.get(fqdn)
        if isinstance(fields, dict):
            if fields.get("closed") is True:
                self.say(f"{path}.fqdn", fqdn, "is a closed domain; its SPF record would refuse the host's own HELO")
            elif isinstance(send := fields.get("send"), dict) and name not in _one_or_more(send.get("hosts")):
                self.say(
                    f"{path}.fqdn",
                    fqdn,
                    f"is a mail domain too; add {name} to estate_domains['{fqdn}'].send.hosts, or its HELO fails SPF",
                )
        elif fqdn == self.model.get("srs_domain"):
            self.say(f"{path}.fqdn", fqdn, "is estate_srs_domain; a host needs a name of its own")

    def _check_address(self, path: str, value: Any, version: int, name: str, owners: dict[Any, str]) -> None:
        if value is None:
            return
        try:
            ip = ipaddress.ip_address(value) if isinstance(value, str) else None
        except ValueError:
            ip = None
        if ip is None:
            self.say(path, value, f"must be an IPv{version} address")
        elif ip.version != version:
            self.say(path, value, f"is an IPv{ip.version} address; it belongs into the field ipv{ip.version}")
        elif ip.is_loopback or ip.is_multicast or ip.is_unspecified or ip.is_link_local or "%" in value:
            self.say(path, value, "other hosts cannot reach this address; give the one that the internet sees")
        elif ip in owners:
            self.say(path, value, f"{owners[ip]} has the same address")
        else:
            owners[ip] = name

    def _check_gateways(self) -> None:
        gateways = self.model.get("gateways")
        if not self.sequence("estate_gateways", gateways) and not isinstance(gateways, dict | str):
            self.say("estate_gateways", gateways, "name at least one host of estate_hosts; they become the MX")
        for name in self._list_of("gateways"):
            if self.host("estate_gateways", name):
                host = self.hosts[name]
                if isinstance(host, dict) and not host.get("ipv4"):
                    self.say(
                        f"estate_hosts['{name}'].ipv4", None, "a gateway needs IPv4 too, to be reached by everyone"
                    )

    def _check_domains(self) -> None:
        domains = self.model.get("domains")
        if not isinstance(domains, dict) or not domains:
            self.say("estate_domains", domains, "must be a mapping: domain name to its fields")
            return
        for name, value in domains.items():
            path = f"estate_domains['{name}']"
            fault = domain_name_fault(name)
            if fault:
                self.say("estate_domains", name, fault)
                continue
            fields = self.mapping(path, value, DOMAIN_FIELDS)
            if not isinstance(value, dict):
                continue
            self._check_zone(name, path, fields)
            if self.boolean(f"{path}.closed", fields.get("closed", False)):
                self._check_closed(path, fields)
                continue
            if fields.get("delegated") is not None:
                continue
            if fields.get("receive") is None and fields.get("send") is None:
                self.say(path, value, "needs receive (with a next_hop) or send; a domain without mail is closed: true")
            if fields.get("receive") is not None:
                self._check_receive(f"{path}.receive", fields["receive"])
            if fields.get("send") is not None:
                self._check_send(f"{path}.send", fields["send"])
            if fields.get("sign") is not None:
                self._check_sign(name, f"{path}.sign", fields["sign"])
            self._check_dmarc(name, path, fields)
            self._check_switches(name, path, fields)

    def _check_closed(self, path: str, fields: dict[str, Any]) -> None:
        for field in DOMAIN_FIELDS:
            if field != "closed" and fields.get(field):
                self.say(f"{path}.{field}", fields[field], "not allowed beside closed: true; remove one of the two")

    def _check_zone(self, name: str, path: str, fields: dict[str, Any]) -> None:
        """Whether the domain is a zone of its own, and then what the parent must hold of it."""
        owner = next((above for above in self.delegated if name.endswith(f".{above}")), None)
        if owner is not None:
            self.say("estate_domains", name, f"lies in the delegated zone {owner}, whose owner publishes it; remove it")
        if fields.get("delegated") is None:
            if fields.get("ds"):
                self.say(f"{path}.ds", fields["ds"], "only a delegated zone has DS records; name its servers, too")
            return
        for field in DOMAIN_FIELDS:
            if field not in DELEGATED_FIELDS and fields.get(field):
                self.say(f"{path}.{field}", fields[field], "not allowed beside delegated: the zone's owner decides it")
        if self.ours(name) == name:
            self.say(f"{path}.delegated", fields["delegated"], f"no domain of ours lies above {name} to delegate it")
        if fields.get("receive") is not None:
            self._check_receive(f"{path}.receive", fields["receive"])
        servers = self.sequence(f"{path}.delegated", fields["delegated"])
        if not servers and isinstance(fields["delegated"], list):
            self.say(f"{path}.delegated", [], "name the zone's servers, two or more")
        for server in servers:
            self._check_name_server(name, f"{path}.delegated", server)
        for value in self.sequence(f"{path}.ds", fields.get("ds")):
            if not _is_ds(value):
                self.say(
                    f"{path}.ds",
                    value,
                    "must be key tag, algorithm, digest type (2 or 4) and the digest in hexadecimal digits, as the"
                    " zone's owner gives it",
                )

    def _check_name_server(self, zone: str, path: str, value: Any) -> None:
        fields = self.mapping(path, value, NAME_SERVER_FIELDS) if isinstance(value, dict) else {"name": value}
        name = fields.get("name")
        if not self.domain_name(path if not isinstance(value, dict) else f"{path}.name", name):
            return
        addresses = [field for field in ("ipv4", "ipv6") if fields.get(field)]
        for field in addresses:
            self._check_address(f"{path}.{field}", fields[field], int(field[-1]), name, {})
        inside = name.endswith(f".{zone}")
        known = any(isinstance(host, dict) and host.get("fqdn") == name for host in self.hosts.values())
        if inside and not addresses and not known:
            self.say(path, value, "has a name in the zone itself; give its address: {name: …, ipv4: …, ipv6: …}")
        elif addresses and not inside:
            self.say(path, value, f"needs no address here, because its name lies outside {zone}; write the name only")

    def _check_switches(self, name: str, path: str, fields: dict[str, Any]) -> None:
        policy = fields.get("dmarc")
        p = policy.get("p") if isinstance(policy, dict) else None
        strict = self.boolean(f"{path}.strict", fields.get("strict", False))
        if strict and p != "reject":
            self.say(
                f"{path}.strict",
                True,
                f"gateways refuse only what fails p=reject, but dmarc.p is {_show(p)}; allowed with p: reject only",
            )
        self.boolean(f"{path}.lists", fields.get("lists", False))
        if fields.get("lists") is True and fields.get("receive") is None:
            self.say(f"{path}.lists", True, "lists receive mail; give the domain a receive.next_hop")
        mode = fields.get("mta_sts")
        if mode is not None and self.choice(f"{path}.mta_sts", mode, MTA_STS_MODES):
            if mode != "none" and fields.get("receive") is None:
                self.say(f"{path}.mta_sts", mode, "the domain receives no mail; allowed: none")
            if not self.model.get("mta_sts"):
                self.say(f"{path}.mta_sts", mode, "estate_mta_sts must name the host that serves the policies")
            if f"mta-sts.{name}" in (*self.domains, *self.fqdns):
                self.say(f"{path}.mta_sts", mode, f"mta-sts.{name} is the policy's name and cannot be anything else")
        for address in self.sequence(f"{path}.tls_rpt", fields.get("tls_rpt")):
            if isinstance(address, str) and address.startswith("https://"):
                continue
            mailbox = mail_address(address) if isinstance(address, str) else address
            fault = address_fault(mailbox)
            if fault:
                self.say(f"{path}.tls_rpt", address, f"{fault}; allowed: a mail address or an https URL")
            elif self.ours(mailbox.rpartition("@")[2]) is not None:
                self._check_recipient(f"{path}.tls_rpt", mailbox)
        if fields.get("bimi") is not None:
            self._check_bimi(name, f"{path}.bimi", fields["bimi"])

    def _check_bimi(self, name: str, path: str, value: Any) -> None:
        bimi = self.mapping(path, value, BIMI_FIELDS)
        if not isinstance(value, dict):
            return
        for field in BIMI_FIELDS:
            url = bimi.get(field)
            if (field == "logo" or url is not None) and not _is_https_url(url):
                self.say(f"{path}.{field}", url, "must be an https URL" + (" or null" if field == "evidence" else ""))
        # Receivers look at the author's domain and at the organisation's: a forger must not get by with a subdomain.
        for domain in dict.fromkeys((name, self.ours(name))):
            fields = self.domains.get(domain)
            policy = fields.get("dmarc") if isinstance(fields, dict) else None
            policy = policy if isinstance(policy, dict) else {}
            if policy.get("p") not in ("quarantine", "reject"):
                self.say(path, value, f"BIMI is honoured only with dmarc.p quarantine or reject in {domain}, too")
            elif policy.get("sp") == "none":
                self.say(path, value, f"BIMI is not honoured with dmarc.sp: none in {domain}")

    def _check_receive(self, path: str, value: Any) -> None:
        receive = self.mapping(path, value, RECEIVE_FIELDS)
        if not isinstance(value, dict):
            return
        next_hop = receive.get("next_hop")
        if next_hop is None:
            self.say(
                f"{path}.next_hop",
                next_hop,
                f"mail for this domain has nowhere to go; name a host of estate_hosts ({_names(self.hosts)})"
                " or {host: fqdn, port: n}",
            )
        elif isinstance(next_hop, dict):
            self._check_outside_hop(f"{path}.next_hop", next_hop)
        elif self.host(f"{path}.next_hop", next_hop) and next_hop in self.gateways:
            self.say(f"{path}.next_hop", next_hop, "is a gateway itself; the mail would run in a loop")
        self._check_recipients(f"{path}.recipients", receive.get("recipients"))

    def _check_outside_hop(self, path: str, next_hop: dict[Any, Any]) -> None:
        self.mapping(path, next_hop, NEXT_HOP_FIELDS)
        host, port = next_hop.get("host"), next_hop.get("port", SMTP_PORT)
        if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
            self.say(f"{path}.port", port, "must be a port number, 1 to 65535")
        if not is_ip(host) and not self.domain_name(f"{path}.host", host):
            return
        taken: dict[str, str] = {}
        for name in self.gateways:
            gateway = self.hosts.get(name)
            if isinstance(gateway, dict):
                taken.update({_normal_host(gateway.get(field)): name for field in HOST_FIELDS if gateway.get(field)})
        if _normal_host(host) in taken:
            self.say(f"{path}.host", host, f"is our gateway {taken[_normal_host(host)]}; the mail would run in a loop")

    def _check_recipients(self, path: str, recipients: Any) -> None:
        allowed = "allowed: verify, any, or a list of local parts"
        if recipients in ("verify", "any"):
            return
        if not isinstance(recipients, list):
            self.say(path, recipients, f"{allowed}{_suggestion(recipients, ('verify', 'any'))}")
            return
        self.sequence(path, recipients)
        for local in recipients:
            if not is_local_part(local):
                hint = "; write only the part before @" if isinstance(local, str) and "@" in local else ""
                self.say(path, local, f"{allowed}, in lower case and without quotes{hint}")
        if "postmaster" not in recipients:
            self.say(path, recipients, "every domain must accept postmaster (RFC 5321 §4.5.1); add it to the list")

    def _check_send(self, path: str, value: Any) -> None:
        send = self.mapping(path, value, SEND_FIELDS)
        if not isinstance(value, dict):
            return
        for name in self.sequence(f"{path}.hosts", send.get("hosts")):
            self.host(f"{path}.hosts", name)
        for network in self.sequence(f"{path}.networks", send.get("networks")):
            self._check_network(f"{path}.networks", network)
        includes = self.sequence(f"{path}.includes", send.get("includes"))
        for other in includes:
            self.domain_name(f"{path}.includes", other.lstrip("_") if isinstance(other, str) else other)
        if len(includes) > SPF_LOOKUP_LIMIT:
            self.say(
                f"{path}.includes",
                includes,
                f"{len(includes)} look-ups; SPF allows {SPF_LOOKUP_LIMIT}, then it is a permerror (RFC 7208 §4.6.4)",
            )
        self.choice(f"{path}.spf_all", send.get("spf_all", "fail"), SPF_ALL)
        if not any(send.get(field) for field in ("hosts", "networks", "includes")):
            self.say(path, value, "names nobody who may send; leave send out for a domain that sends nothing")

    def _check_network(self, path: str, network: Any) -> None:
        try:
            parsed = ipaddress.ip_network(network) if isinstance(network, str) else None
        except ValueError as error:
            self.say(path, network, f"must be a network such as 192.0.2.0/24 ({error})")
            return
        if parsed is None:
            self.say(path, network, "must be a network such as 192.0.2.0/24")
            return
        widest = WIDEST_IPV4_PREFIX if parsed.version == 4 else WIDEST_IPV6_PREFIX
        if parsed.prefixlen < widest:
            self.say(path, network, f"lets too many addresses send in our name; /{widest} is the widest allowed")

    def _check_sign(self, name: str, path: str, value: Any) -> None:
        sign = self.mapping(path, value, SIGN_FIELDS)
        if not isinstance(value, dict):
            return
        signer = sign.get("signer")
        if signer is None:
            self.say(f"{path}.signer", signer, f"unknown signer; name a host of estate_hosts: {_names(self.hosts)}")
        else:
            self.host(f"{path}.signer", signer)
        selectors = self.sequence(f"{path}.selectors", sign.get("selectors"))
        self.boolean(f"{path}.rotate", sign.get("rotate", False))
        for selector in selectors:
            fault = selector_fault(selector)
            if fault:
                self.say(f"{path}.selectors", selector, fault)
            elif f"{selector}._domainkey.{name}" not in self.keys:
                self.say(
                    f"{path}.selectors",
                    selector,
                    f"estate_dkim_public_keys has no '{selector}._domainkey.{name}', so no receiver could verify",
                )

    def _check_dmarc(self, name: str, path: str, fields: dict[str, Any]) -> None:
        sends = fields.get("send") is not None
        value = fields.get("dmarc")
        path = f"{path}.dmarc"
        if value is None:
            if sends:
                self.say(path, value, "a domain that sends needs a policy: p (none, quarantine, reject), np, rua")
            return
        policy = self.mapping(path, value, DMARC_FIELDS)
        if not isinstance(value, dict):
            return
        p, sp, np = policy.get("p"), policy.get("sp"), policy.get("np")
        p_valid = self.choice(f"{path}.p", p, POLICIES)
        sp_valid = sp is not None and self.choice(f"{path}.sp", sp, POLICIES)
        if p_valid and sp_valid and POLICIES.index(sp) < POLICIES.index(p):
            self.say(f"{path}.sp", sp, f"is weaker than p={p}: forgers would use a subdomain; allowed: {p} or stricter")
        if np is None:
            self.say(
                f"{path}.np",
                np,
                "what happens to mail from subdomains that do not exist? allowed: none, quarantine, reject (usual)",
            )
        elif self.choice(f"{path}.np", np, POLICIES):
            floor = sp if sp_valid else p if p_valid else "none"
            if POLICIES.index(np) < POLICIES.index(floor):
                self.say(
                    f"{path}.np", np, f"is weaker than the {floor} of existing subdomains; allowed: {floor} or stricter"
                )
        if p == "reject" and sends and not fields.get("sign"):
            self.say(f"{path}.p", p, "a p=reject domain must DKIM-sign, not rely on SPF alone (RFC 9989); add sign")
        self.boolean(f"{path}.testing", policy.get("testing", False))
        rua = policy.get("rua")
        for address in self.sequence(f"{path}.rua", rua):
            self._check_rua(name, f"{path}.rua", address)

    def _check_rua(self, name: str, path: str, value: Any) -> None:
        address = mail_address(value) if isinstance(value, str) else value
        fault = address_fault(address)
        if fault:
            self.say(path, value, f"{fault}; allowed: an address or mailto:address")
            return
        domain = address.rpartition("@")[2]
        if self.ours(domain) is not None:
            self._check_recipient(path, address)
        elif domain not in self._list_of("report_receivers"):
            self.say(
                path,
                value,
                f"lies outside our domains; its owner must publish '{name}._report._dmarc.{domain} TXT \"v=DMARC1\"',"
                f" then name {domain} in estate_report_receivers",
            )

    def _check_arc(self) -> None:
        arc = self.mapping("estate_arc", self.model.get("arc"), ARC_FIELDS)
        if not arc:
            return
        enabled = self.boolean("estate_arc.enabled", arc.get("enabled"))
        for sealer in self.sequence("estate_arc.trusted_sealers", arc.get("trusted_sealers")):
            self.domain_name("estate_arc.trusted_sealers", sealer)
        if not enabled:
            return
        domain, selector = arc.get("domain"), arc.get("selector")
        self.boolean("estate_arc.rotate", arc.get("rotate", False))
        domain_valid = self.domain_name("estate_arc.domain", domain)
        if domain_valid and self.ours(domain) is None:
            self.say("estate_arc.domain", domain, f"we can publish keys only in our own domains: {_names(self.own)}")
            return
        if selector is None:
            sealed = [
                name
                for name, key in self._dict_of("dkim_keys").items()
                if isinstance(key, dict) and key.get("use") == "arc" and key.get("state") == "signing"
            ]
            if not any(str(name).endswith(f"._domainkey.{domain}") for name in sealed):
                self.say(
                    "estate_arc.selector",
                    selector,
                    "no key that the gateways have made seals yet: name the key of the vault, and say rotate: true",
                )
            return
        fault = selector_fault(selector)
        if fault:
            self.say("estate_arc.selector", selector, fault)
        elif domain_valid and f"{selector}._domainkey.{domain}" not in self.keys:
            self.say(
                "estate_arc.selector",
                selector,
                f"estate_dkim_public_keys has no '{selector}._domainkey.{domain}', so nobody could verify our seals",
            )

    def _check_keys(self) -> None:
        keys = self.model.get("dkim_public_keys")
        if keys is not None and not isinstance(keys, dict):
            self.say("estate_dkim_public_keys", keys, "must be a mapping: <selector>._domainkey.<domain> to p= value")
        for name, public in self.keys.items():
            path = f"estate_dkim_public_keys['{name}']"
            selector, found, domain = name.partition("._domainkey.") if isinstance(name, str) else (name, "", "")
            if not found or selector_fault(selector) or domain_name_fault(domain):
                self.say("estate_dkim_public_keys", name, "must be <selector>._domainkey.<domain>, in lower case")
            elif self.ours(domain) is None:
                self.say("estate_dkim_public_keys", name, f"lies in none of our domains: {_names(self.own)}")
            elif any(is_below(domain, zone) for zone in self.delegated):
                self.say("estate_dkim_public_keys", name, "lies in a delegated zone, whose owner publishes its keys")
            try:
                key_type(public if isinstance(public, str) else "")
            except ValueError as error:
                self.say(path, public, f"is {error}; derive it from the private key by the filter dkim_public_key")

    def _check_key_life(self) -> None:
        """How long keys live, which must not be shorter than mail is under way."""
        policy = self.mapping("estate_dkim", self.model.get("dkim"), DKIM_FIELDS)
        if policy:
            for field, (least, most) in DKIM_DAYS.items():
                self.number(f"estate_dkim.{field}", policy.get(field), least, most, "a number of days")

    def _check_made_keys(self) -> None:
        """The keys that hosts made, as dkim_rotate.yml wrote them down; a damaged file must not reach a host."""
        keys = self.model.get("dkim_keys")
        if not isinstance(keys, dict):
            self.say("estate_dkim_keys", keys, "must be a mapping, which playbooks/dkim_rotate.yml writes")
            return
        signing: dict[Any, str] = {}
        for name, value in keys.items():
            path = f"estate_dkim_keys['{name}']"
            selector, found, domain = name.partition("._domainkey.") if isinstance(name, str) else (name, "", "")
            if not found or selector_fault(selector) or domain_name_fault(domain):
                self.say("estate_dkim_keys", name, "must be <selector>._domainkey.<domain>, in lower case")
            if name in self.keys:
                self.say("estate_dkim_keys", name, "stands in estate_dkim_public_keys, too; a selector names one key")
            key = self.mapping(path, value, DKIM_KEY_FIELDS)
            if not isinstance(value, dict):
                continue
            used = self.choice(f"{path}.use", key.get("use"), KEY_USES)
            known = self.choice(f"{path}.state", key.get("state"), KEY_STATES)
            if not isinstance(key.get("dates"), dict):
                self.say(f"{path}.dates", key.get("dates"), "must be a mapping: what happened to when")
            hosts = self.sequence(f"{path}.hosts", key.get("hosts"))
            if used and known and key["state"] == "signing":
                place = (key["use"], domain, *hosts)
                if place in signing:
                    self.say(path, "signing", f"{signing[place]} signs for the same domain on the same host")
                signing.setdefault(place, name)
            public = key.get("public_key")
            try:
                key_type(public if isinstance(public, str) else "")
            except ValueError as error:
                self.say(f"{path}.public_key", public, f"is {error}")

    def _check_forwards(self) -> None:
        forwards, srs = self.model.get("forwards"), self.model.get("srs_domain")
        if forwards is not None and not isinstance(forwards, dict):
            self.say("estate_forwards", forwards, "must be a mapping: address of ours to address outside")
        if srs is None:
            if self.forwards:
                self.say("estate_srs_domain", srs, "forwards need an SRS domain for their envelope senders")
        elif self.domain_name("estate_srs_domain", srs) and srs in self.domains:
            self.say(
                "estate_srs_domain", srs, "must not be in estate_domains; its addresses are rewritten, not relayed"
            )
        for source, value in self.forwards.items():
            path = f"estate_forwards['{source}']"
            fault = address_fault(source)
            if fault:
                self.say("estate_forwards", source, f"the address to forward is malformed: {fault}")
                continue
            domain = source.rpartition("@")[2]
            if not self.receives(domain):
                self.say(
                    "estate_forwards",
                    source,
                    f"{domain} is no domain that we receive mail for; allowed: "
                    + _names(name for name in self.domains if self.receives(name)),
                )
            targets = as_list(value) if value is None or isinstance(value, str | list) else [value]
            if not targets:
                self.say(path, value, "needs an address to forward to")
            for target in targets:
                self._check_forward_target(path, target)
            if self._comes_back(source):
                self.say(path, value, f"the mail would come back to {source}; a forward must not run in a loop")

    def _check_forward_target(self, path: str, target: Any) -> None:
        fault = address_fault(target.lower() if isinstance(target, str) and target.isascii() else target)
        if fault:
            self.say(path, target, f"the address to forward to is malformed: {fault}")
            return
        domain = target.lower().rpartition("@")[2]
        if domain == self.model.get("srs_domain"):
            self.say(path, target, "is in the SRS domain, whose addresses are only rewritten bounces")
        elif self.ours(domain) is not None and (domain in self.domains):
            self._check_recipient(path, target.lower())

    def _comes_back(self, source: str) -> bool:
        """Whether following the forwards from ``source`` leads to it again."""
        waiting, seen = [source], set()
        while waiting:
            value = self.forwards.get(waiting.pop())
            for target in _one_or_more(value):
                if not isinstance(target, str):
                    continue
                if target.lower() == source:
                    return True
                if target.lower() not in seen:
                    seen.add(target.lower())
                    waiting.append(target.lower())
        return False

    def _check_policy(self) -> None:
        for name in self.sequence("estate_strict_domains", self.model.get("strict_domains")):
            if self.domain_name("estate_strict_domains", name) and self.ours(name) is not None:
                self.say("estate_strict_domains", name, f"is ours; set estate_domains['{name}'].strict: true")
        for client in self.sequence("estate_limit_exceptions", self.model.get("limit_exceptions")):
            if not is_ip(client) and not is_network(client):
                self.say("estate_limit_exceptions", client, "must be an IP address or a network such as 192.0.2.0/24")
        networks = self.model.get("management_networks")
        if not self.sequence("estate_management_networks", networks) and not isinstance(networks, dict | str):
            self.say(
                "estate_management_networks",
                networks,
                "name the networks that may reach SSH, the controller's among them, or the firewall shuts you out",
            )
        for network in self._list_of("management_networks"):
            if not is_ip(network) and not is_network(network):
                self.say(
                    "estate_management_networks", network, "must be an IP address or a network such as 192.0.2.0/24"
                )
        spam = self.mapping("estate_spam", self.model.get("spam"), SPAM_FIELDS)
        self.boolean("estate_spam.outside_lists", spam.get("outside_lists", True))
        ordered: list[tuple[str, float]] = []
        for field in SPAM_SCORES if spam else ():
            score = spam.get(field)
            if score is None and field == "greylist":
                continue
            if isinstance(score, bool) or not isinstance(score, int | float) or not 0 < score < 1000:
                self.say(f"estate_spam.{field}", score, "must be a score above 0 and below 1000")
                continue
            ordered.append((field, score))
        for (lower, low), (higher, high) in itertools.pairwise(ordered):
            if low >= high:
                self.say(f"estate_spam.{lower}", low, f"must be below {higher}, which is {_show(high)}")

    def _check_reports(self) -> None:
        entries = self.sequence("estate_report_authorisations", self.model.get("report_authorisations"))
        for index, value in enumerate(entries):
            path = f"estate_report_authorisations[{index}]"
            entry = self.mapping(path, value, AUTHORISATION_FIELDS)
            if not isinstance(value, dict):
                continue
            outside, target = entry.get("domain"), entry.get("at", self.model.get("domain"))
            if self.domain_name(f"{path}.domain", outside) and self.ours(outside) is not None:
                self.say(f"{path}.domain", outside, "is ours and gets its record where needed; remove the entry")
            if self.domain_name(f"{path}.at", target) and not self.receives(target):
                self.say(f"{path}.at", target, "reports would not arrive; name a domain that we receive mail for")
        for name in self.sequence("estate_report_receivers", self.model.get("report_receivers")):
            if self.domain_name("estate_report_receivers", name) and self.ours(name) is not None:
                self.say("estate_report_receivers", name, "is ours; only outside domains belong here")

    def _check_mta_sts(self) -> None:
        value = self.model.get("mta_sts")
        if value is None:
            return
        fields = self.mapping("estate_mta_sts", value, MTA_STS_FIELDS)
        if not isinstance(value, dict):
            return
        self.host("estate_mta_sts.host", fields.get("host"))
        shortest, longest = MTA_STS_MAX_AGES
        self.number("estate_mta_sts.max_age", fields.get("max_age", shortest), shortest, longest, "seconds")

    def _check_caa(self) -> None:
        for issuer in self.sequence("estate_caa", self.model.get("caa")):
            name, *parameters = issuer.split(";") if isinstance(issuer, str) else [None]
            fault = domain_name_fault(name.strip() if name is not None else None)
            if fault or not all(_CAA_PARAMETER.fullmatch(parameter.strip()) for parameter in parameters):
                self.say(
                    "estate_caa",
                    issuer,
                    "must be the name that a CA states for CAA, such as letsencrypt.org, and parameters such as"
                    f" '; accounturi=https://…' (RFC 8659, RFC 8657){'; ' + fault if fault else ''}",
                )

    def _check_dns(self) -> None:
        fields = self.mapping("estate_dns", self.model.get("dns"), DNS_FIELDS)
        for server in self.sequence("estate_dns.nameservers", fields.get("nameservers")):
            self.domain_name("estate_dns.nameservers", server)
        self.number("estate_dns.ttl", fields.get("ttl", TTLS[1]), *TTLS, "seconds")
        value = fields.get("update")
        if value is None:
            return
        update, path = self.mapping("estate_dns.update", value, DNS_UPDATE_FIELDS), "estate_dns.update"
        if not isinstance(value, dict):
            return
        if not is_ip(update.get("server")):
            self.domain_name(f"{path}.server", update.get("server"))
        self.number(f"{path}.port", update.get("port", 53), 1, 65535, "a port")
        key = update.get("key")
        if not isinstance(key, str) or not _KEY_NAME.fullmatch(key):
            self.say(f"{path}.key", key, "must be the name of the TSIG key, as the name server has it")
        self.choice(f"{path}.algorithm", update.get("algorithm", TSIG_ALGORITHMS[0]), TSIG_ALGORITHMS)
        for zone in self.sequence(f"{path}.zones", update.get("zones")):
            if self.domain_name(f"{path}.zones", zone) and not zone.endswith(".arpa") and self.ours(zone) != zone:
                self.say(f"{path}.zones", zone, f"is no zone of ours; known: {_names({*map(self.ours, self.own)})}")

    def _check_submission_host(self) -> None:
        value = self.model.get("submission_host")
        if value is not None:
            self.host("estate_submission_host", value)

    def _check_tlsa(self) -> None:
        value = self.model.get("tlsa")
        if value is None:
            return
        if not isinstance(value, dict):
            self.say("estate_tlsa", value, "must be a mapping: host of estate_hosts to digests of its keys")
            return
        for host, digests in value.items():
            self.host("estate_tlsa", host)
            for digest in self.sequence(f"estate_tlsa['{host}']", digests):
                if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                    self.say(f"estate_tlsa['{host}']", digest, "must be a SHA-256 digest: 64 hexadecimal digits")


_CAA_PARAMETER = re.compile(r"[a-z0-9-]+=[!-:<-~]*", re.IGNORECASE)
_KEY_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DS = re.compile(r"(\d{1,5}) (\d{1,3}) ([24]) ([0-9a-fA-F]+)")


def _is_ds(value: Any) -> bool:
    match = _DS.fullmatch(value) if isinstance(value, str) else None
    return bool(match) and int(match[1]) < 65536 and len(match[4]) == DS_DIGITS[int(match[3])]


def _is_https_url(value: Any) -> bool:
    if not isinstance(value, str) or not value.isascii() or any(char.isspace() or char in '"\\' for char in value):
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme == "https" and domain_name_fault(parts.hostname) is None and len(parts.path) > 1


def _normal_host(value: Any) -> str:
    """A host name or address in the form in which two of them compare."""
    return str(ipaddress.ip_address(value)) if is_ip(value) else str(value)
