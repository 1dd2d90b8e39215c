"""DNS records of the estate, each with the sentence that says why it is there.

A record is a dict ``{name, type, value, ttl, reason}``: ``name`` is fully qualified without the last dot, ``value`` is
in the presentation format of master files (RFC 1035 §5; names in it end in a dot, TXT strings are quoted).

Follows RFC 7505 (null MX), RFC 7208 (SPF), RFC 6376 (DKIM), RFC 9989 and RFC 9990 (DMARC, report authorisation),
RFC 8460 (TLS-RPT), RFC 8461 (MTA-STS), RFC 7672 (DANE), RFC 8659 (CAA), RFC 6186 and RFC 8314 (submission),
draft-brand-indicators-for-message-identification (BIMI).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict

from estate_keys import key_type
from estate_model import (
    DEFAULT_TTL,
    SMTP_PORT,
    Bimi,
    Dmarc,
    Domain,
    Estate,
    Host,
    mail_address,
    organisational_domain,
    published_keys,
)
from estate_mta_sts import VERSION, policy, policy_host

TXT_STRING_OCTETS = 255
MX_PREFERENCE = 10
SPF_ALL = {"fail": "-all", "softfail": "~all", "neutral": "?all"}
NOTHING_SENT = Dmarc(p="reject", sp="reject", np="reject", rua=(), testing=False)
IPV4_ZONE_PREFIX = 24
IPV6_ZONE_PREFIX = 64
#: Service name → port, for mail programs that set themselves up (RFC 6186, RFC 8314 §5.1).
SUBMISSION_PORTS = {"submissions": 465, "submission": 587}
#: Certificate usage, selector, matching type of a TLSA record: the SHA-256 of the key itself (RFC 7672 §3.1.1).
TLSA_PARAMETERS = "3 1 1"


class Record(TypedDict):
    """One resource record and its reason."""

    name: str
    type: str
    value: str
    ttl: int
    reason: str


Add = Callable[[str, str, str, str], None]  # name, type, value, reason


def txt(text: str) -> str:
    """A TXT value in presentation format: quoted, cut into strings of at most 255 octets (RFC 1035 §3.3.14)."""
    octets = [text[start : start + TXT_STRING_OCTETS] for start in range(0, len(text), TXT_STRING_OCTETS)] or [""]
    return " ".join('"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"' for part in octets)


def reverse_zone(address: str) -> str:
    """The reverse zone an address lies in: of its /24 for IPv4, of its /64 for IPv6, the usual delegations."""
    ip = ipaddress.ip_address(address)
    labels = ip.reverse_pointer.split(".")
    keep = IPV4_ZONE_PREFIX // 8 + 2 if ip.version == 4 else IPV6_ZONE_PREFIX // 4 + 2
    return ".".join(labels[-keep:])


def dmarc_value(policy: Dmarc) -> str:
    """The text of a DMARC record: v and p first (readers of RFC 7489 insist), no ``pct`` (RFC 9989 removed it)."""
    tags = ["v=DMARC1", f"p={policy.p}"]
    tags += [f"{tag}={value}" for tag, value in (("sp", policy.sp), ("np", policy.np)) if value]
    if policy.rua:
        tags.append("rua=" + ",".join(f"mailto:{_uri_escape(address)}" for address in policy.rua))
    if policy.testing:
        tags.append("t=y")
    return "; ".join(tags)


def _uri_escape(address: str) -> str:
    """``,`` ``!`` and ``;`` separate URIs and tags, so they are written in percent form (RFC 9989 §4.7)."""
    return "".join(f"%{ord(char):02X}" if char in ",!;%" else char for char in address)


def spf_value(domain: Domain, estate: Estate) -> str:
    """The text of a domain's SPF record: addresses instead of names, so that it costs the reader no look-up."""
    mechanisms: list[str] = []
    for name in domain.send_hosts:
        mechanisms += address_mechanisms(estate.hosts[name])
    for network in domain.send_networks:
        mechanisms.append(f"ip{ipaddress.ip_network(network).version}:{network}")
    mechanisms += [f"include:{other}" for other in domain.send_includes]
    unique = list(dict.fromkeys(mechanisms))
    return " ".join(["v=spf1", *unique, SPF_ALL[domain.spf_all] if domain.sends else "-all"])


def address_mechanisms(host: Host) -> list[str]:
    """The SPF mechanisms that name a host's addresses."""
    return [f"ip{ipaddress.ip_address(address).version}:{address}" for address in host.addresses]


def dkim_value(public: str) -> str:
    """The text of a DKIM key record (RFC 6376 §3.6.1); an empty key is a revoked one."""
    if not public:
        return "v=DKIM1; p="
    return f"v=DKIM1; k={key_type(public)}; p={public}"


def bimi_value(bimi: Bimi) -> str:
    """The text of a BIMI assertion record; without evidence the tag ``a`` stays away."""
    tags = ["v=BIMI1", f"l={_uri_escape(bimi.logo)}"]
    tags += [f"a={_uri_escape(bimi.evidence)}"] if bimi.evidence else []
    return "; ".join(tags)


def zones(estate: Estate, ttl: int | None = None) -> dict[str, list[Record]]:
    """All zones of the estate, forward and reverse, with their records in a stable order.

    A zone is the topmost of our domains with everything below it, but for delegated zones, of which only the
    delegation is here.  Hosts whose name lies outside our zones get no records: their owner publishes them.

    :param ttl: seconds that the records may be kept; by default what ``estate_dns`` says.
    """
    records: dict[tuple[str, str, str], Record] = {}
    ttl = estate.dns.ttl if ttl is None else ttl

    def add(name: str, rtype: str, value: str, reason: str) -> None:
        records.setdefault((name, rtype, value), Record(name=name, type=rtype, value=value, ttl=ttl, reason=reason))

    _host_records(estate, add)
    for domain in estate.domains.values():
        if domain.delegated:
            _delegation(domain, add)
        else:
            _domain_records(domain, estate, add)
    _srs_records(estate, add)
    _tlsa_records(estate, add)
    _submission_records(estate, add)
    _caa_records(estate, add)
    for name, public in published_keys(estate).items():
        reason = "Receivers verify our DKIM signatures and ARC seals with this key."
        if not public:
            reason = "This key is revoked (empty p=): nothing that it signs is ours any more."
        add(name, "TXT", txt(dkim_value(public)), reason)
    _report_authorisations(estate, add)

    found: dict[str, list[Record]] = {}
    for record in records.values():
        # A delegation and its glue stand in the zone above, all else where zone_of says.
        zone = reverse_zone_of(record["name"]) or organisational_domain(record["name"], estate.names)
        if zone is not None:
            found.setdefault(zone, []).append(record)
    return {zone: sorted(found[zone], key=_order) for zone in sorted(found)}


def reverse_zone_of(name: str) -> str | None:
    """The reverse zone of a PTR record's name, None for any other name."""
    labels = name.split(".")
    if name.endswith(".in-addr.arpa"):
        return ".".join(labels[-(IPV4_ZONE_PREFIX // 8 + 2) :])
    if name.endswith(".ip6.arpa"):
        return ".".join(labels[-(IPV6_ZONE_PREFIX // 4 + 2) :])
    return None


def _order(record: Record) -> tuple[list[str], str, str]:
    """Canonical DNS order of names (RFC 4034 §6.1), then type and value."""
    return (list(reversed(record["name"].split("."))), record["type"], record["value"])


def _host_records(estate: Estate, add: Add) -> None:
    for host in estate.hosts.values():
        if estate.zone_of(host.fqdn) is None:
            continue
        for address in host.addresses:
            ip = ipaddress.ip_address(address)
            add(host.fqdn, "A" if ip.version == 4 else "AAAA", str(ip), f"The IPv{ip.version} address of {host.name}.")
            add(
                ip.reverse_pointer,
                "PTR",
                f"{host.fqdn}.",
                f"Receivers want the address of {host.name} to lead back to its name, and the name to the address.",
            )
        if host.fqdn not in estate.domains and host.fqdn != estate.srs_domain:
            add(
                host.fqdn,
                "TXT",
                txt("v=spf1 a -all"),
                f"SPF for the HELO name and the bounces of {host.name}: only its own addresses may use it.",
            )


def _domain_records(domain: Domain, estate: Estate, add: Add) -> None:
    name = domain.name
    if domain.receives:
        _gateway_mx(name, estate, add)
    else:
        why = "carries no mail" if domain.closed else "receives no mail"
        add(name, "MX", "0 .", f"Null MX (RFC 7505): {name} {why}, so senders fail at once instead of trying for days.")

    if domain.sends:
        reason = f"Only these hosts send mail with an envelope sender in {name}."
    else:
        reason = f"Nobody sends mail from {name}: whatever claims to is forged."
    add(name, "TXT", txt(spf_value(domain, estate)), reason)

    if domain.closed:
        add(
            f"*._domainkey.{name}",
            "TXT",
            txt("v=DKIM1; p="),
            f"Every DKIM key of {name} is revoked (empty p=), because no signature in its name can be genuine.",
        )
    policy = domain.dmarc or (None if domain.sends else NOTHING_SENT)
    if policy is not None:
        add(f"_dmarc.{name}", "TXT", txt(dmarc_value(policy)), _dmarc_reason(domain, policy))
    if domain.tls_rpt:
        rua = ",".join(
            f"mailto:{mail_address(address)}" if "://" not in address else address for address in domain.tls_rpt
        )
        add(
            f"_smtp._tls.{name}",
            "TXT",
            txt(f"v=TLSRPTv1; rua={rua}"),
            f"Senders report here when TLS to the hosts of {name} fails (RFC 8460).",
        )
    if domain.mta_sts is not None:
        _mta_sts_records(domain, estate, add)
    if domain.bimi is not None:
        add(
            f"default._bimi.{name}",
            "TXT",
            txt(bimi_value(domain.bimi)),
            f"Receivers may show this logo beside mail from {name} that passes DMARC (BIMI).",
        )


def _mta_sts_records(domain: Domain, estate: Estate, add: Add) -> None:
    name, host = domain.name, policy_host(domain.name)
    _, policy_id = policy(domain, estate)
    meaning = {
        "enforce": "Senders give mail to the gateways over verified TLS or not at all",
        "testing": "Senders report when verified TLS to the gateways fails, and deliver all the same",
        "none": "Senders forget the earlier MTA-STS policy",
    }[str(domain.mta_sts)]
    add(
        f"_mta-sts.{name}",
        "TXT",
        txt(f"v={VERSION}; id={policy_id};"),
        f"{meaning}, by the policy of {name}; a new id makes them fetch it again (MTA-STS, RFC 8461).",
    )
    server = estate.hosts[estate.mta_sts.host if estate.mta_sts else ""]
    for address in server.addresses:
        add(
            host,
            "A" if ipaddress.ip_address(address).version == 4 else "AAAA",
            str(ipaddress.ip_address(address)),
            f"Senders fetch the MTA-STS policy of {name} from the web server of {server.name} under this name.",
        )
    add(host, "MX", "0 .", f"Null MX (RFC 7505): {host} is a web server's name, at which nobody takes mail.")
    add(host, "TXT", txt("v=spf1 -all"), f"Nobody sends mail from {host}, though the name has an address.")


def _delegation(domain: Domain, add: Add) -> None:
    name = domain.name
    for server in domain.delegated:
        add(name, "NS", f"{server.name}.", f"The owner of {name} publishes what is in it, on the servers named here.")
        if server.name.endswith(f".{name}"):
            for address in server.addresses:
                ip = ipaddress.ip_address(address)
                reason = f"Glue: the server of {name} has a name in it, which leads nowhere without it (RFC 9471)."
                add(server.name, "A" if ip.version == 4 else "AAAA", str(ip), reason)
    for digest in domain.ds:
        add(name, "DS", digest, f"The key that {name} is signed with, so that its answers validate (RFC 4034).")


def _tlsa_records(estate: Estate, add: Add) -> None:
    """DANE records of every host that others connect to by its MX or as users (RFC 7672 §3, §8.1)."""
    ports = {gateway: [SMTP_PORT] for gateway in estate.gateways}
    if estate.submission_host:
        ports.setdefault(estate.submission_host, []).extend(SUBMISSION_PORTS.values())
    for name, served in ports.items():
        fqdn = estate.hosts[name].fqdn
        if estate.zone_of(fqdn) is None:
            continue
        for port in sorted(served):
            digests = estate.tlsa.get(name, ())
            for position, digest in enumerate(digests):
                # One or two in use, for each algorithm one, and then as many that wait.
                if position < (len(digests) + 1) // 2:
                    reason = f"Clients that know DANE take only {name}'s own key on port {port} (RFC 7672)."
                else:
                    reason = f"The key that {name} takes next on port {port}, published before it is used."
                add(f"_{port}._tcp.{fqdn}", "TLSA", f"{TLSA_PARAMETERS} {digest}", reason)


def _submission_records(estate: Estate, add: Add) -> None:
    if not estate.submission_host:
        return
    host = estate.hosts[estate.submission_host]
    for service, port in SUBMISSION_PORTS.items():
        add(
            f"_{service}._tcp.{estate.domain}",
            "SRV",
            f"0 1 {port} {host.fqdn}.",
            f"Mail programs find the submission host of {estate.domain} by themselves"
            f" ({'TLS at once, RFC 8314' if port == 465 else 'STARTTLS, RFC 6186'}).",
        )


def _caa_records(estate: Estate, add: Add) -> None:
    """Who may issue certificates for any name of a zone (RFC 8659); none where the site names no issuer."""
    if not estate.caa:
        return
    for zone in sorted({organisational_domain(name, estate.names) or name for name in estate.names}):
        for issuer in estate.caa:
            who = issuer.partition(";")[0].strip()
            add(zone, "CAA", f'0 issue "{issuer}"', f"Only {who} and others named here issue certificates for {zone}.")
        add(zone, "CAA", '0 issuewild ";"', f"Nobody issues wildcard certificates for {zone}, since no host uses one.")
        add(
            zone,
            "CAA",
            f'0 iodef "mailto:{estate.postmaster}"',
            f"A CA that is asked for a certificate for {zone} against these rules tells us.",
        )


def _dmarc_reason(domain: Domain, policy: Dmarc) -> str:
    if not domain.sends:
        return f"Receivers may refuse every message from {domain.name} and from names below it: it sends nothing."
    wish = {
        "none": "receivers treat unauthenticated mail as usual, and we read the reports",
        "quarantine": "receivers put unauthenticated mail aside",
        "reject": "receivers may refuse unauthenticated mail",
    }[policy.p]
    return f"DMARC policy of {domain.name}: {wish}."


def _gateway_mx(name: str, estate: Estate, add: Add) -> None:
    for gateway in estate.gateways:
        add(
            name,
            "MX",
            f"{MX_PREFERENCE} {estate.hosts[gateway].fqdn}.",
            f"Mail for {name} is taken by {gateway}; all gateways have the same preference and share the load.",
        )


def _srs_records(estate: Estate, add: Add) -> None:
    name = estate.srs_domain
    if name is None:
        return
    _gateway_mx(name, estate, add)
    mechanisms: list[str] = []
    for gateway in estate.gateways:
        mechanisms += address_mechanisms(estate.hosts[gateway])
    add(
        name,
        "TXT",
        txt(" ".join(["v=spf1", *mechanisms, "-all"])),
        "Forwarded mail leaves the gateways with an envelope sender in this domain (SRS).",
    )
    add(
        f"_dmarc.{name}",
        "TXT",
        txt(dmarc_value(NOTHING_SENT)),
        "The SRS domain stands in envelopes only: a message whose author address lies in it is forged.",
    )


def _report_authorisations(estate: Estate, add: Add) -> None:
    for domain in estate.domains.values():
        home = estate.zone_of(domain.name)
        for address in domain.dmarc.rua if domain.dmarc else ():
            target = address.rpartition("@")[2]
            zone = estate.zone_of(target)
            if zone is not None and zone != home:
                _authorise(domain.name, target, add)
    for outside, target in estate.report_authorisations:
        _authorise(outside, target, add)


def _authorise(domain: str, target: str, add: Add) -> None:
    add(
        f"{domain}._report._dmarc.{target}",
        "TXT",
        txt("v=DMARC1"),
        f"DMARC reports about {domain} are welcome at {target}; without this record nobody sends them (RFC 9990).",
    )


def zone_file(
    records: Iterable[Record],
    zone: str,
    nameservers: Sequence[str] = (),
    hostmaster: str | None = None,
    serial: int = 1,
    ttl: int = DEFAULT_TTL,
) -> str:
    """Master-file text (RFC 1035 §5) of the records of one zone, every record under the reason for it.

    Without ``nameservers`` the text is a fragment for a zone that has its SOA and NS elsewhere; with them the zone is
    complete and can be served as it is.

    :param records: the zone's records as :func:`zones` gives them.
    :param zone: the zone's name without the last dot; becomes $ORIGIN.
    :param nameservers: names of the authoritative servers, the primary first.
    :param hostmaster: mail address for the SOA; ``hostmaster@zone`` by default.
    :param serial: the SOA's serial number.
    :param ttl: seconds for SOA, NS and records without their own.
    """
    lines = [f"$ORIGIN {zone}.", f"$TTL {ttl}"]
    if nameservers:
        local, _, domain = (hostmaster or f"hostmaster@{zone}").rpartition("@")
        mailbox = f"{local.replace('.', chr(92) + '.')}.{domain}."
        primary = f"{nameservers[0].rstrip('.')}."
        lines.append(f"@ IN SOA {primary} {mailbox} {serial} 3600 900 1209600 300")
        lines += [f"@ IN NS {server.rstrip('.')}." for server in nameservers]
    for record in records:
        lines += ["", f"; {record['reason']}"]
        lines.append(f"{_relative(record['name'], zone)} {record['ttl']} IN {record['type']} {record['value']}")
    return "\n".join(lines) + "\n"


def _relative(name: str, zone: str) -> str:
    if name == zone:
        return "@"
    return name[: -len(zone) - 1] if name.endswith("." + zone) else f"{name}."
