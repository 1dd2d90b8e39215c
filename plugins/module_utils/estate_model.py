"""The estate's data model as typed objects, and the mail routing that follows from it.

``estate_model`` (inventory/model.yml) is plain YAML.  :func:`parse` turns it into the classes below, which the DNS
generator and the routing functions read; docs/data-model.md explains every field.  Only a model that
:mod:`estate_checks` finds no fault with is meant to come here: a wrong one raises ``KeyError`` or ``TypeError``.

Terms are those of RFC 5598 (next hop, recipient), RFC 7208 (SPF results) and RFC 9989 (DMARC policies).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SMTP_PORT = 25
DEFAULT_TTL = 3600
MTA_STS_MAX_AGE = 604800
ROTATE_DAYS = 180
KEEP_DAYS = 8
#: What a key that a host made is used for, and the stations of its life in their order (docs/dkim-keys.md).
KEY_USES = ("dkim", "arc")
KEY_STATES = ("published", "signing", "retired", "removed")


@dataclass(frozen=True)
class Host:
    """A host of ours: ``name`` is its key in ``estate_hosts`` (and its inventory name where it is ours to manage)."""

    name: str
    fqdn: str
    ipv4: str | None
    ipv6: str | None

    @property
    def addresses(self) -> list[str]:
        """All addresses, IPv4 first."""
        return [address for address in (self.ipv4, self.ipv6) if address]


@dataclass(frozen=True)
class Dmarc:
    """The policy a domain publishes (RFC 9989 §4.7); None means that the tag is left out."""

    p: str
    sp: str | None
    np: str | None
    rua: tuple[str, ...]
    testing: bool


@dataclass(frozen=True)
class NameServer:
    """A server of a delegated zone; addresses are known only where the parent needs them as glue (RFC 9471)."""

    name: str
    ipv4: str | None
    ipv6: str | None

    @property
    def addresses(self) -> list[str]:
        """All addresses, IPv4 first."""
        return [address for address in (self.ipv4, self.ipv6) if address]


@dataclass(frozen=True)
class Bimi:
    """Where a domain's logo and the certificate for it lie (BIMI assertion record); both are https URLs."""

    logo: str
    evidence: str | None


@dataclass(frozen=True)
class MtaSts:
    """The host whose web server gives out the MTA-STS policies, and the seconds that senders may keep them."""

    host: str
    max_age: int


@dataclass(frozen=True)
class Dns:
    """Where the estate's zones are served: authoritative servers, the records' TTL in seconds.

    ``update_zones`` are those that the server for updates takes; None stands for all.
    """

    nameservers: tuple[str, ...]
    ttl: int
    update_zones: tuple[str, ...] | None


@dataclass(frozen=True)
class MadeKey:
    """A signing key that hosts made for themselves; its private half has never left them.

    ``record`` is ``<selector>._domainkey.<domain>``, ``dates`` says what happened when (ISO 8601, UTC), ``revoked``
    that the record in DNS holds an empty ``p=`` (RFC 6376 §3.6.1).
    """

    record: str
    use: str
    hosts: tuple[str, ...]
    state: str
    public_key: str
    dates: Mapping[str, str]
    revoked: bool

    @property
    def selector(self) -> str:
        """The selector, ``s=`` of its signatures."""
        return self.record.partition("._domainkey.")[0]

    @property
    def domain(self) -> str:
        """The domain, ``d=`` of its signatures."""
        return self.record.partition("._domainkey.")[2]


@dataclass(frozen=True)
class KeyLife:
    """How many days a key signs, stays in DNS afterwards, and is then shown as revoked."""

    rotate_days: int
    keep_days: int
    revoked_days: int


@dataclass(frozen=True)
class Arc:
    """The gateways' ARC seal; without a selector, or with ``rotate``, the gateways make its key."""

    enabled: bool
    domain: str
    selector: str | None
    rotate: bool


@dataclass(frozen=True)
class Domain:
    """A domain of ours.

    ``mta_sts`` is the mode of its MTA-STS policy, None when it has none.  A domain with name servers (``delegated``) is
    a zone of its own, whose owner publishes what it holds; ``ds`` are its DS records.

    ``selectors`` are those of keys in the vault. Without any, or with ``rotate``, the signer makes its own keys.

    ``recipients`` is ``"verify"`` (the next hop is asked), ``"any"``, or a tuple of local parts; it means nothing
    while ``next_hop`` is None (the domain receives no mail).
    """

    name: str
    closed: bool
    next_hop: str | None
    next_hop_port: int
    recipients: str | tuple[str, ...]
    sends: bool
    send_hosts: tuple[str, ...]
    send_networks: tuple[str, ...]
    send_includes: tuple[str, ...]
    spf_all: str
    signer: str | None
    selectors: tuple[str, ...]
    rotate: bool
    dmarc: Dmarc | None
    tls_rpt: tuple[str, ...]
    lists: bool
    mta_sts: str | None
    bimi: Bimi | None
    delegated: tuple[NameServer, ...]
    ds: tuple[str, ...]

    @property
    def makes_keys(self) -> bool:
        """Whether the signer makes and rotates keys of its own for this domain."""
        return self.signer is not None and (self.rotate or not self.selectors)

    @property
    def receives(self) -> bool:
        """Whether the gateways take mail for this domain."""
        return self.next_hop is not None


@dataclass(frozen=True)
class Estate:
    """The whole model."""

    domain: str
    postmaster: str
    authserv_id: str
    srs_domain: str | None
    hosts: dict[str, Host]
    gateways: tuple[str, ...]
    domains: dict[str, Domain]
    forwards: dict[str, tuple[str, ...]]
    dkim_public_keys: dict[str, str]
    report_authorisations: tuple[tuple[str, str], ...]
    mta_sts: MtaSts | None
    caa: tuple[str, ...]
    dns: Dns
    tlsa: dict[str, tuple[str, ...]]
    submission_host: str | None
    arc: Arc
    key_life: KeyLife
    made_keys: dict[str, MadeKey]

    def zone_of(self, name: str) -> str | None:
        """The zone of ours that holds ``name``: the shortest of our domains that it equals or ends in.

        None for a name outside, and for one in a delegated zone, whose owner publishes it.
        """
        if any(domain.delegated and is_below(name, domain.name) for domain in self.domains.values()):
            return None
        return organisational_domain(name, self.names)

    @property
    def names(self) -> list[str]:
        """Every domain name that the model claims as ours."""
        own = {self.domain, *self.domains}
        if self.srs_domain:
            own.add(self.srs_domain)
        return sorted(own)


def as_list(value: Any) -> list[Any]:
    """``None`` as no elements, a string as one, a list as it is (what a YAML author means by each)."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    return list(value)


def is_below(name: str, parent: str) -> bool:
    """Whether ``name`` is ``parent`` or a subdomain of it."""
    return name == parent or name.endswith("." + parent)


def organisational_domain(name: str, ours: Iterable[str]) -> str | None:
    """The shortest of ``ours`` that ``name`` equals or lies below; None for a name outside.

    This is what the DMARC tree walk of RFC 9989 §4.10 ends at for a name of ours, because the model's topmost
    domains publish a DMARC record and nothing above them is the same organisation.
    """
    above = [own for own in ours if is_below(name, own)]
    return min(above, key=len) if above else None


def mail_address(value: str) -> str:
    """A reporting address without its ``mailto:``."""
    return value[len("mailto:") :] if value.lower().startswith("mailto:") else value


def parse(model: Mapping[str, Any]) -> Estate:
    """The typed form of ``estate_model``."""
    hosts = {
        name: Host(name=name, fqdn=host["fqdn"], ipv4=host.get("ipv4") or None, ipv6=host.get("ipv6") or None)
        for name, host in sorted(model["hosts"].items())
    }
    domains = {name: _parse_domain(name, fields, hosts) for name, fields in sorted(model["domains"].items())}
    return Estate(
        domain=model["domain"],
        postmaster=model["postmaster"],
        authserv_id=model["authserv_id"],
        srs_domain=model.get("srs_domain") or None,
        hosts=hosts,
        gateways=tuple(model["gateways"]),
        domains=domains,
        forwards={source: tuple(as_list(target)) for source, target in sorted((model.get("forwards") or {}).items())},
        dkim_public_keys=dict(sorted((model.get("dkim_public_keys") or {}).items())),
        report_authorisations=tuple(
            sorted(
                (entry["domain"], entry.get("at") or model["domain"])
                for entry in model.get("report_authorisations") or []
            )
        ),
        mta_sts=_parse_mta_sts(model.get("mta_sts")),
        caa=tuple(as_list(model.get("caa"))),
        dns=_parse_dns(model.get("dns") or {}),
        tlsa={name: tuple(as_list(digests)) for name, digests in sorted((model.get("tlsa") or {}).items())},
        submission_host=model.get("submission_host") or None,
        arc=_parse_arc(model.get("arc") or {}),
        key_life=_parse_key_life(model.get("dkim") or {}),
        made_keys={name: _parse_key(name, key) for name, key in sorted((model.get("dkim_keys") or {}).items())},
    )


def _parse_arc(fields: Mapping[str, Any]) -> Arc:
    return Arc(
        enabled=bool(fields.get("enabled")),
        domain=fields.get("domain") or "",
        selector=fields.get("selector"),
        rotate=bool(fields.get("rotate")),
    )


def _parse_key_life(fields: Mapping[str, Any]) -> KeyLife:
    return KeyLife(
        rotate_days=int(fields.get("rotate_days", ROTATE_DAYS)),
        keep_days=int(fields.get("keep_days", KEEP_DAYS)),
        revoked_days=int(fields.get("revoked_days", 0)),
    )


def _parse_key(record: str, fields: Mapping[str, Any]) -> MadeKey:
    return MadeKey(
        record=record,
        use=fields["use"],
        hosts=tuple(fields["hosts"]),
        state=fields["state"],
        public_key=fields["public_key"],
        dates=dict(fields["dates"]),
        revoked=bool(fields.get("revoked")),
    )


def _parse_mta_sts(fields: Mapping[str, Any] | None) -> MtaSts | None:
    return MtaSts(host=fields["host"], max_age=int(fields.get("max_age") or MTA_STS_MAX_AGE)) if fields else None


def _parse_dns(fields: Mapping[str, Any]) -> Dns:
    zones = (fields.get("update") or {}).get("zones")
    return Dns(
        nameservers=tuple(as_list(fields.get("nameservers"))),
        ttl=int(fields.get("ttl") or DEFAULT_TTL),
        update_zones=None if zones is None else tuple(zones),
    )


def _parse_name_server(value: str | Mapping[str, Any], hosts: Mapping[str, Host]) -> NameServer:
    """A name server from its name, its addresses from ``estate_hosts`` where it is one of ours."""
    if not isinstance(value, str):
        return NameServer(name=value["name"], ipv4=value.get("ipv4") or None, ipv6=value.get("ipv6") or None)
    own = next((host for host in hosts.values() if host.fqdn == value), None)
    return NameServer(name=value, ipv4=own and own.ipv4, ipv6=own and own.ipv6)


def _parse_domain(name: str, fields: Mapping[str, Any], hosts: Mapping[str, Host]) -> Domain:
    receive = fields.get("receive") or {}
    send = fields.get("send")
    sign = fields.get("sign") or {}
    recipients = receive.get("recipients", "verify")
    next_hop, port = None, SMTP_PORT
    if receive:
        target = receive["next_hop"]
        if isinstance(target, Mapping):
            next_hop, port = str(target["host"]), int(target.get("port") or SMTP_PORT)
        else:
            next_hop = hosts[target].fqdn
    policy, bimi = fields.get("dmarc"), fields.get("bimi")
    return Domain(
        name=name,
        closed=bool(fields.get("closed", False)),
        next_hop=next_hop,
        next_hop_port=port,
        recipients=str(recipients) if isinstance(recipients, str) else tuple(sorted(map(str, recipients))),
        sends=send is not None,
        send_hosts=tuple(sorted((send or {}).get("hosts") or [])),
        send_networks=tuple((send or {}).get("networks") or []),
        send_includes=tuple(sorted((send or {}).get("includes") or [])),
        spf_all=(send or {}).get("spf_all") or "fail",
        signer=sign.get("signer"),
        selectors=tuple(map(str, sign.get("selectors") or [])),
        rotate=bool(sign.get("rotate", False)),
        dmarc=policy
        and Dmarc(
            p=policy["p"],
            sp=policy.get("sp"),
            np=policy.get("np"),
            rua=tuple(mail_address(address) for address in as_list(policy.get("rua"))),
            testing=bool(policy.get("testing", False)),
        ),
        tls_rpt=tuple(as_list(fields.get("tls_rpt"))),
        lists=bool(fields.get("lists", False)),
        mta_sts=fields.get("mta_sts"),
        bimi=bimi and Bimi(logo=bimi["logo"], evidence=bimi.get("evidence") or None),
        delegated=tuple(_parse_name_server(server, hosts) for server in fields.get("delegated") or []),
        ds=tuple(fields.get("ds") or []),
    )


def relay_domains(estate: Estate) -> list[str]:
    """The domains that the gateways take mail for.

    Closed domains and domains without ``receive`` are not among them (their mail is refused as relaying), nor is the
    SRS domain, whose addresses are virtual aliases of the original senders.
    """
    return sorted(domain.name for domain in estate.domains.values() if domain.receives)


def transport(estate: Estate) -> dict[str, str]:
    """Domain → Postfix transport ``smtp:[next hop]:port``; the brackets say that no MX record is looked up."""
    return {
        domain.name: f"smtp:[{_bracketed(domain.next_hop)}]:{domain.next_hop_port}"
        for domain in estate.domains.values()
        if domain.next_hop is not None
    }


def _bracketed(host: str) -> str:
    """A host for use between Postfix's brackets: IPv6 addresses need the prefix of RFC 5321 §4.1.3."""
    try:
        return f"ipv6:{host}" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host


def relay_recipients(estate: Estate) -> list[str]:
    """Keys of Postfix's ``relay_recipient_maps``.

    A domain with a list of recipients gives full addresses, the sources of its forwards among them; a domain whose
    recipients are not listed (``verify``, ``any``) gives ``@domain``.
    """
    keys: set[str] = set()
    for domain in estate.domains.values():
        if not domain.receives:
            continue
        if isinstance(domain.recipients, str):
            keys.add(f"@{domain.name}")
        else:
            keys.update(f"{local}@{domain.name}" for local in domain.recipients)
            keys.update(source for source in estate.forwards if source.rpartition("@")[2] == domain.name)
    return sorted(keys)


def verify_domains(estate: Estate) -> list[str]:
    """The domains whose recipients are verified by asking the next hop (Postfix ``reject_unverified_recipient``)."""
    return [name for name in relay_domains(estate) if estate.domains[name].recipients == "verify"]


def forward_transport(estate: Estate) -> dict[str, str]:
    """Forwarded address of ours → Postfix transport by its domain's MX.

    For hosts behind the gateways, which deliver the rest of the domain to its next hop: only the gateways know where
    a forward leads, and give it a sender of the SRS domain.
    """
    return {source: f"smtp:{source.rpartition('@')[2]}" for source in estate.forwards}


def addresses(estate: Estate, hosts: Iterable[str] | None = None) -> list[str]:
    """The addresses of ``hosts`` (keys of ``estate_hosts``; all of them when none are named), IPv4 first of each."""
    return [address for name in (estate.hosts if hosts is None else hosts) for address in estate.hosts[name].addresses]


def list_domains(estate: Estate, host: str) -> list[str]:
    """The domains whose mailing lists live on ``host`` (a key of ``estate_hosts``)."""
    fqdn = estate.hosts[host].fqdn
    return [domain.name for domain in estate.domains.values() if domain.lists and domain.next_hop == fqdn]


def published_keys(estate: Estate) -> dict[str, str]:
    """All keys that stand in DNS: ``<selector>._domainkey.<domain>`` → ``p=``, empty for a revoked one.

    Those that the site writes down itself (``estate_dkim_public_keys``) and those that hosts made.
    """
    made = {
        record: "" if key.revoked else key.public_key
        for record, key in estate.made_keys.items()
        if key.state != "removed"
    }
    return dict(sorted({**made, **estate.dkim_public_keys}.items()))


def made_seal(estate: Estate, host: str, domain: str) -> str:
    """The selector of the ARC key that ``host`` has made and seals with; empty while there is none."""
    return next(
        (
            key.selector
            for key in estate.made_keys.values()
            if (key.use, key.domain, key.state) == ("arc", domain, "signing") and host in key.hosts
        ),
        "",
    )


def bounce_signers(estate: Estate) -> dict[str, str]:
    """Name → gateway: what a gateway itself writes (bounces, notices) is signed in the name of the host.

    A gateway whose name is a domain of ours is left out: that domain says who signs.
    """
    names = {estate.hosts[gateway].fqdn: gateway for gateway in estate.gateways}
    return {name: host for name, host in names.items() if name not in estate.domains and estate.zone_of(name)}


def _made_entries(estate: Estate, domain: str, host: str) -> tuple[list[dict[str, Any]], bool]:
    """The keys that ``host`` made for ``domain``, the one that signs first, and whether there is such a one."""
    found: list[dict[str, Any]] = []
    signs = False
    for key in estate.made_keys.values():
        if key.use != "dkim" or key.domain != domain or host not in key.hosts or key.state == "removed":
            continue
        entry = {"domain": domain, "selector": key.selector, "public_key": key.public_key}
        if key.state == "signing":
            signs = True
            found.insert(0, entry)
        elif not key.revoked:
            found.append({**entry, "sign": []})
    return found, signs


def signing_keys(estate: Estate, host: str, private_keys: Mapping[str, str]) -> list[dict[str, Any]]:
    """The DKIM keys with which ``host`` signs, as the role opendkim takes them.

    A key that the host made signs once ``estate_dkim_keys`` says so; its entry has no private key, since that never
    leaves the host. Of the keys in the vault the first selector of a domain signs, unless a made one does; a further
    one waits, or its signatures are still under way. The first domain of lists also signs for authors elsewhere, whose
    posts a list passes on unchanged.

    :param private_keys: PEM by the name of the DNS record, ``<selector>._domainkey.<domain>``.
    :raises ValueError: when a key is not there.
    """
    keys: list[dict[str, Any]] = []
    everyone = False
    for domain in estate.domains.values():
        if domain.signer != host:
            continue
        found, signs = _made_entries(estate, domain.name, host)
        for selector in domain.selectors:
            record = f"{selector}._domainkey.{domain.name}"
            if not private_keys.get(record):
                raise ValueError(f"no private key for {record}: vault_dkim_private_keys has none of this name")
            entry = {
                "domain": domain.name,
                "selector": selector,
                "private_key": private_keys[record],
                "public_key": estate.dkim_public_keys[record],
            }
            if signs:
                found.append({**entry, "sign": []})
            else:
                signs = True
                found.insert(0, entry)
        if signs and domain.lists and not everyone:
            found[0]["sign"] = ["*"]
            everyone = True
        keys += found
    for name, gateway in bounce_signers(estate).items():
        if gateway == host:
            keys += _made_entries(estate, name, host)[0]
    return keys
