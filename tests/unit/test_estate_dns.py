"""The generated DNS records: parsed by dnspython, read by a receiver's rules."""

from __future__ import annotations

import ipaddress
import re

import dns.name
import dns.rdatatype
import dns.zone
import pytest

import estate_dns
import estate_model
import estate_mta_sts

NAMESERVERS = ["ns.example.com", "ns.example.net"]


def parsed(model, zone):
    """The complete zone as a name server would load it."""
    records = estate_dns.zones(estate_model.parse(model))[zone]
    return dns.zone.from_text(estate_dns.zone_file(records, zone, NAMESERVERS), origin=zone, relativize=False)


def values(zone, name, rtype):
    """All values of a name and type, TXT strings joined as a receiver joins them."""
    found = zone.get_rdataset(dns.name.from_text(name), rtype)
    if found is None:
        return []
    if rtype == "TXT":
        return sorted(b"".join(rdata.strings).decode() for rdata in found)
    return sorted(rdata.to_text() for rdata in found)


def spf_result(zone, domain, address):
    """What an SPF checker says to a client address (the mechanisms that we generate only), and its look-ups."""
    (record,) = [text for text in values(zone, domain, "TXT") if text.startswith("v=spf1")]
    ip, lookups = ipaddress.ip_address(address), 0
    for term in record.split()[1:]:
        if term.startswith(("ip4:", "ip6:")):
            network = ipaddress.ip_network(term[4:])
            if ip.version == network.version and ip in network:
                return "pass", lookups
        elif term == "a":
            lookups += 1
            if str(ip) in values(zone, domain, "A" if ip.version == 4 else "AAAA"):
                return "pass", lookups
        elif term.startswith("include:"):
            lookups += 1
        else:
            return {"-all": "fail", "~all": "softfail", "?all": "neutral"}[term], lookups
    raise AssertionError(f"SPF record without all: {record}")


@pytest.fixture
def zone(model):
    return parsed(model, "example.org")


def test_zones_are_the_topmost_domains_and_the_reverse_zones(model):
    assert list(estate_dns.zones(estate_model.parse(model))) == [
        "0.0.0.0.5.2.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
        "25.18.198.in-addr.arpa",
        "example.org",
    ]


@pytest.mark.parametrize("site", ["lab", "wide"])
def test_every_zone_is_a_valid_master_file(models, site):
    zones = estate_dns.zones(estate_model.parse(models[site]))
    for name, records in zones.items():
        loaded = dns.zone.from_text(estate_dns.zone_file(records, name, NAMESERVERS), origin=name)
        loaded.check_origin()
        served = sum(len(rdataset) for _, rdataset in loaded.iterate_rdatasets())
        assert served == len(records) + 1 + len(NAMESERVERS), "no record is lost or merged"


def test_every_record_has_a_sentence_that_says_why(model):
    for records in estate_dns.zones(estate_model.parse(model)).values():
        for record in records:
            assert record["reason"][0].isupper(), record
            assert record["reason"].endswith("."), record
            assert "\n" not in record["reason"], record


def test_order_of_the_model_does_not_change_the_records(model):
    shuffled = {key: model[key] for key in reversed(model)}
    shuffled["domains"] = {key: model["domains"][key] for key in reversed(model["domains"])}
    shuffled["hosts"] = {key: model["hosts"][key] for key in reversed(model["hosts"])}
    assert estate_dns.zones(estate_model.parse(shuffled)) == estate_dns.zones(estate_model.parse(model))


def test_fragment_has_no_soa_and_no_ns(model):
    records = estate_dns.zones(estate_model.parse(model))["example.org"]
    text = estate_dns.zone_file(records, "example.org")
    assert " SOA " not in text
    assert "\n@ 60 IN NS " not in text
    assert "\ninstitute 60 IN NS ns.example.com." in text, "a delegation is no matter of the name server's"
    dns.zone.from_text(text, origin="example.org", check_origin=False)


def test_hostmaster_with_a_dot_is_escaped_in_the_soa():
    text = estate_dns.zone_file([], "example.org", NAMESERVERS, "dns.master@example.com", serial=7)
    assert r"@ IN SOA ns.example.com. dns\.master.example.com. 7 " in text


@pytest.mark.parametrize(
    "domain", ["example.org", "sfc.example.org", "member.example.org", "load.example.org", "srs.example.org"]
)
def test_all_gateways_are_mx_with_equal_preference(zone, domain):
    assert values(zone, domain, "MX") == ["10 mail-gw1.example.org.", "10 mail-gw2.example.org."]


def test_more_gateways_need_only_the_inventory(model):
    model["hosts"]["mail-gw3"] = {"fqdn": "mail-gw3.example.org", "ipv4": "198.18.25.17"}
    model["gateways"].append("mail-gw3")
    zone = parsed(model, "example.org")
    assert "10 mail-gw3.example.org." in values(zone, "example.org", "MX")
    assert spf_result(zone, "srs.example.org", "198.18.25.17") == ("pass", 0)


def test_domain_that_only_sends_has_a_null_mx(model):
    model["domains"]["news.example.org"] = {"send": {"hosts": ["smtp"]}, "dmarc": {"p": "quarantine", "np": "reject"}}
    zone = parsed(model, "example.org")
    assert values(zone, "news.example.org", "MX") == ["0 ."]
    assert spf_result(zone, "news.example.org", "198.18.25.14") == ("pass", 0)


def test_closed_domain_says_no_mail_in_every_way(zone):
    assert values(zone, "closed.example.org", "MX") == ["0 ."]
    assert values(zone, "closed.example.org", "TXT") == ["v=spf1 -all"]
    assert values(zone, "_dmarc.closed.example.org", "TXT") == ["v=DMARC1; p=reject; sp=reject; np=reject"]
    assert values(zone, "*._domainkey.closed.example.org", "TXT") == ["v=DKIM1; p="]


@pytest.mark.parametrize("site", ["lab", "wide"])
def test_every_host_has_addresses_that_lead_to_its_name_and_back(models, site):
    model = models[site]
    zones = {name: parsed(model, name) for name in estate_dns.zones(estate_model.parse(model))}
    for host in model["hosts"].values():
        forward = zones[model["domain"]]
        for field, rtype in (("ipv4", "A"), ("ipv6", "AAAA")):
            address = ipaddress.ip_address(host[field])
            assert values(forward, host["fqdn"], rtype) == [str(address)]
            assert values(zones[estate_dns.reverse_zone(str(address))], address.reverse_pointer, "PTR") == [
                f"{host['fqdn']}."
            ]


def test_host_outside_our_domains_gets_no_records(model):
    model["hosts"]["partner"] = {"fqdn": "mx.example.com", "ipv4": "192.0.2.9"}
    zones = estate_dns.zones(estate_model.parse(model))
    assert not [record for records in zones.values() for record in records if "partner" in record["reason"]]


def test_host_that_is_a_mail_domain_too_has_one_spf_record(model):
    model["domains"]["ml.example.org"] = {
        "receive": {"next_hop": "ml"}, "send": {"hosts": ["ml"]}, "dmarc": {"p": "none", "np": "reject"}
    }  # fmt: skip
    zone = parsed(model, "example.org")
    assert values(zone, "ml.example.org", "TXT") == ["v=spf1 ip4:198.18.25.13 ip6:2001:db8:25::13 -all"]
    assert values(zone, "ml.example.org", "A") == ["198.18.25.13"]


@pytest.mark.parametrize("site", ["lab", "wide"])
def test_no_name_has_two_spf_or_two_dmarc_records(models, site):
    zones = estate_dns.zones(estate_model.parse(models[site]))
    for records in zones.values():
        for begin in ('"v=spf1', '"v=DMARC1', '"v=TLSRPTv1', '"v=STSv1', '"v=BIMI1'):
            names = [record["name"] for record in records if record["value"].startswith(begin)]
            assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("domain", "address", "expected"),
    [
        ("example.org", "198.18.25.14", "pass"),
        ("example.org", "2001:db8:25::13", "pass"),
        ("example.org", "198.18.25.106", "softfail"),
        ("sfc.example.org", "198.18.25.14", "pass"),
        ("sfc.example.org", "198.18.25.107", "fail"),
        ("member.example.org", "198.18.25.112", "pass"),
        ("member.example.org", "198.18.25.14", "softfail"),
        ("srs.example.org", "198.18.25.11", "pass"),
        ("srs.example.org", "2001:db8:25::12", "pass"),
        ("srs.example.org", "198.18.25.20", "fail"),
        ("load.example.org", "198.18.25.11", "fail"),
        ("closed.example.org", "198.18.25.11", "fail"),
        ("mail-gw1.example.org", "198.18.25.11", "pass"),
        ("mail-gw1.example.org", "198.18.25.12", "fail"),
        ("mail.example.org", "2001:db8:25::20", "pass"),
    ],
)
def test_spf_says_to_a_client(zone, domain, address, expected):
    result, lookups = spf_result(zone, domain, address)
    assert result == expected
    assert lookups <= 1


def test_spf_of_many_hosts_and_networks_is_cut_into_strings_and_needs_no_look_up(model):
    for number in range(1, 41):
        model["hosts"][f"out{number}"] = {"fqdn": f"out{number}.example.org", "ipv4": f"192.0.2.{number}"}
        model["domains"]["example.org"]["send"]["hosts"].append(f"out{number}")
    model["domains"]["example.org"]["send"] |= {"networks": ["203.0.113.0/24"], "spf_all": "neutral"}
    zone = parsed(model, "example.org")
    (rdata,) = zone.get_rdataset(dns.name.from_text("example.org"), "TXT")
    assert len(rdata.strings) > 1
    assert all(len(part) <= 255 for part in rdata.strings)
    assert spf_result(zone, "example.org", "192.0.2.40") == ("pass", 0)
    assert spf_result(zone, "example.org", "203.0.113.77") == ("pass", 0)
    assert spf_result(zone, "example.org", "203.0.114.1") == ("neutral", 0)


def test_spf_includes_of_other_domains_cost_one_look_up_each(model):
    model["domains"]["example.org"]["send"]["includes"] = ["_spf.example.com", "_spf.example.net"]
    assert spf_result(parsed(model, "example.org"), "example.org", "192.0.2.1") == ("softfail", 2)


def test_dmarc_records_begin_with_version_and_policy_and_have_no_pct(zone):
    assert values(zone, "_dmarc.example.org", "TXT") == [
        "v=DMARC1; p=none; sp=none; np=reject; rua=mailto:dmarc@rua.example.org"
    ]
    assert values(zone, "_dmarc.sfc.example.org", "TXT") == [
        "v=DMARC1; p=quarantine; sp=quarantine; np=reject; rua=mailto:dmarc@rua.example.org"
    ]
    assert values(zone, "_dmarc.srs.example.org", "TXT") == ["v=DMARC1; p=reject; sp=reject; np=reject"]
    assert values(zone, "_dmarc.load.example.org", "TXT") == ["v=DMARC1; p=reject; sp=reject; np=reject"]


def test_dmarc_test_mode_and_several_report_addresses():
    policy = estate_model.Dmarc("reject", None, "reject", ("a@example.org", "b!c,d@example.org"), True)
    assert estate_dns.dmarc_value(policy) == (
        "v=DMARC1; p=reject; np=reject; rua=mailto:a@example.org,mailto:b%21c%2Cd@example.org; t=y"
    )


def test_dkim_key_is_cut_into_strings_and_is_whole_again(model, zone):
    (rdata,) = zone.get_rdataset(dns.name.from_text("arc2026._domainkey.example.org"), "TXT")
    assert all(len(part) <= 255 for part in rdata.strings)
    public = model["dkim_public_keys"]["arc2026._domainkey.example.org"]
    assert values(zone, "arc2026._domainkey.example.org", "TXT") == [f"v=DKIM1; k=rsa; p={public}"]


def test_ed25519_key_is_published_as_such():
    public = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="  # RFC 8463, appendix A.2
    assert estate_dns.dkim_value(public) == f"v=DKIM1; k=ed25519; p={public}"


def test_reports_to_another_organisational_domain_of_ours_are_authorised_there(model):
    model["domains"]["example.info"] = {
        "send": {"hosts": ["smtp"]},
        "dmarc": {"p": "none", "np": "reject", "rua": ["dmarc-reports@example.org"]},
    }
    zone = parsed(model, "example.org")
    assert values(zone, "example.info._report._dmarc.example.org", "TXT") == ["v=DMARC1"]
    assert values(zone, "sfc.example.org._report._dmarc.example.org", "TXT") == [], "the same organisation needs none"
    assert values(parsed(model, "example.info"), "_dmarc.example.info", "TXT")


def test_outside_domains_may_be_allowed_to_send_reports_here(model):
    model["report_authorisations"] = [{"domain": "example.net"}, {"domain": "example.com", "at": "sfc.example.org"}]
    zone = parsed(model, "example.org")
    assert values(zone, "example.net._report._dmarc.example.org", "TXT") == ["v=DMARC1"]
    assert values(zone, "example.com._report._dmarc.sfc.example.org", "TXT") == ["v=DMARC1"]


def test_tls_reports_are_asked_for_where_the_data_names_an_address(model, zone):
    assert values(zone, "_smtp._tls.load.example.org", "TXT") == []
    assert values(zone, "_smtp._tls.example.org", "TXT") == ["v=TLSRPTv1; rua=mailto:tlsrpt@rua.example.org"]
    model["domains"]["example.org"]["tls_rpt"] = ["tlsrpt@example.org", "https://example.org/tlsrpt"]
    assert values(parsed(model, "example.org"), "_smtp._tls.example.org", "TXT") == [
        "v=TLSRPTv1; rua=mailto:tlsrpt@example.org,https://example.org/tlsrpt"
    ]


@pytest.mark.parametrize(("domain", "mode"), [("example.org", "enforce"), ("sfc.example.org", "testing")])
def test_mta_sts_policy_names_all_gateways_and_its_id_follows_the_text(model, domain, mode):
    text, policy_id = estate_mta_sts.policy(domain, estate_model.parse(model))
    assert text == (
        f"version: STSv1\r\nmode: {mode}\r\nmx: mail-gw1.example.org\r\nmx: mail-gw2.example.org\r\nmax_age: 604800\r\n"
    )
    zone = parsed(model, "example.org")
    assert values(zone, f"_mta-sts.{domain}", "TXT") == [f"v=STSv1; id={policy_id};"]
    assert re.fullmatch(r"[a-zA-Z0-9]{1,32}", policy_id), "RFC 8461 §3.1"
    assert values(zone, f"mta-sts.{domain}", "A") == ["198.18.25.13"]
    assert values(zone, f"mta-sts.{domain}", "AAAA") == ["2001:db8:25::13"]
    model["gateways"].pop()
    assert estate_mta_sts.policy(domain, estate_model.parse(model))[1] != policy_id


def test_withdrawn_mta_sts_policy_names_no_gateway_and_is_soon_forgotten(model):
    text, _ = estate_mta_sts.policy("member.example.org", estate_model.parse(model))
    assert text == "version: STSv1\r\nmode: none\r\nmax_age: 86400\r\n"


def test_policies_are_those_of_the_domains_that_have_a_mode(model):
    assert sorted(estate_mta_sts.policies(estate_model.parse(model))) == [
        "example.org", "member.example.org", "ml.example.org", "sfc.example.org"
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"load\.example\.org has no MTA-STS policy"):
        estate_mta_sts.policy("load.example.org", estate_model.parse(model))


def test_web_server_of_the_policies_sends_and_takes_no_mail(zone):
    assert values(zone, "mta-sts.sfc.example.org", "MX") == ["0 ."]
    assert values(zone, "mta-sts.sfc.example.org", "TXT") == ["v=spf1 -all"]


def test_domain_without_a_mode_has_nothing_of_mta_sts(model, zone):
    for name in ("_mta-sts.load.example.org", "mta-sts.load.example.org"):
        assert zone.get_node(dns.name.from_text(name)) is None


def test_tlsa_records_stand_for_the_current_and_the_next_key_of_every_mx_and_of_the_submission_host(model):
    current, following, other = "ab" * 32, "cd" * 32, "ef" * 32
    model["tlsa"] = {"mail-gw1": [current, following], "smtp": [other], "analytics": [other]}
    zone = parsed(model, "example.org")
    assert values(zone, "_25._tcp.mail-gw1.example.org", "TLSA") == [f"3 1 1 {current}", f"3 1 1 {following}"]
    assert values(zone, "_25._tcp.mail-gw2.example.org", "TLSA") == [], "none is better than a wrong one"
    assert values(zone, "_465._tcp.smtp.example.org", "TLSA") == [f"3 1 1 {other}"]
    assert values(zone, "_587._tcp.smtp.example.org", "TLSA") == [f"3 1 1 {other}"]
    for name in ("_25._tcp.smtp", "_25._tcp.analytics"):
        assert values(zone, f"{name}.example.org", "TLSA") == [], "nobody outside connects there"


def test_mail_programs_find_the_submission_host(model, zone):
    assert values(zone, "_submissions._tcp.example.org", "SRV") == ["0 1 465 smtp.example.org."]
    assert values(zone, "_submission._tcp.example.org", "SRV") == ["0 1 587 smtp.example.org."]
    model["submission_host"] = None
    assert values(parsed(model, "example.org"), "_submissions._tcp.example.org", "SRV") == []


def test_only_the_named_authorities_may_issue_certificates(model, zone):
    assert values(zone, "example.org", "CAA") == [
        '0 iodef "mailto:postmaster@example.org"', '0 issue "acme.example.net"', '0 issuewild ";"'
    ]  # fmt: skip
    assert values(zone, "sfc.example.org", "CAA") == [], "that of the zone holds below it"
    model["caa"] = ["example.net; accounturi=https://example.net/acme/7"]
    model["domains"]["example.info"] = {"closed": True}
    assert '0 issue "example.net; accounturi=https://example.net/acme/7"' in values(
        parsed(model, "example.info"), "example.info", "CAA"
    )
    model["caa"] = []
    assert values(parsed(model, "example.org"), "example.org", "CAA") == []


def test_logo_is_published_with_its_certificate_where_there_is_one(model):
    model["domains"]["example.org"]["bimi"] = {"logo": "https://www.example.org/a;b.svg"}
    model["domains"]["sfc.example.org"]["bimi"] = {
        "logo": "https://example.org/l.svg",
        "evidence": "https://example.org/l.pem",
    }
    zone = parsed(model, "example.org")
    assert values(zone, "default._bimi.example.org", "TXT") == ["v=BIMI1; l=https://www.example.org/a%3Bb.svg"]
    assert values(zone, "default._bimi.sfc.example.org", "TXT") == [
        "v=BIMI1; l=https://example.org/l.svg; a=https://example.org/l.pem"
    ]


def test_delegated_zone_has_its_servers_in_ours_and_nothing_else(model):
    digest = "0A" * 32
    model["domains"]["institute.example.org"] = {
        "delegated": [{"name": "ns.institute.example.org", "ipv4": "192.0.2.53"}, "ns.example.com"],
        "ds": [f"12345 13 2 {digest}"],
        "receive": {"next_hop": "mail"},
    }
    # The owner's host, which we know of.
    model["hosts"]["institute"] = {"fqdn": "mx.institute.example.org", "ipv4": "192.0.2.54"}
    records = [
        (record["name"], record["type"], record["value"])
        for record in estate_dns.zones(estate_model.parse(model))["example.org"]
        if record["name"].endswith("institute.example.org")
    ]
    assert records == [
        ("institute.example.org", "DS", f"12345 13 2 {digest}"),
        ("institute.example.org", "NS", "ns.example.com."),
        ("institute.example.org", "NS", "ns.institute.example.org."),
        ("ns.institute.example.org", "A", "192.0.2.53"),
    ]
    parsed(model, "example.org")


def test_glue_of_a_host_of_ours_is_its_address(model):
    model["hosts"]["institute"] = {"fqdn": "ns.institute.example.org", "ipv4": "192.0.2.53", "ipv6": "2001:db8::53"}
    model["domains"]["institute.example.org"] = {"delegated": ["ns.institute.example.org"]}
    zone = parsed(model, "example.org")
    assert values(zone, "ns.institute.example.org", "A") == ["192.0.2.53"]
    assert values(zone, "ns.institute.example.org", "AAAA") == ["2001:db8::53"]


def test_ttl_is_the_models_or_what_the_caller_wants(model):
    def ttls(*args):
        zones = estate_dns.zones(estate_model.parse(model), *args)
        return {record["ttl"] for records in zones.values() for record in records}

    assert ttls() == {60}
    assert ttls(300) == {300}
    del model["dns"]["ttl"]
    assert ttls() == {3600}


def test_quotes_and_backslashes_survive_in_txt():
    text = 'a "quoted" \\ word; ' + "x" * 300
    zone = dns.zone.from_text(f"@ 60 IN TXT {estate_dns.txt(text)}\n", origin="example.org", check_origin=False)
    (rdata,) = zone.find_rdataset("@", dns.rdatatype.TXT)
    assert b"".join(rdata.strings).decode() == text


@pytest.mark.parametrize(
    ("address", "zone"),
    [
        ("192.0.2.1", "2.0.192.in-addr.arpa"),
        ("2001:db8:25::11", "0.0.0.0.5.2.0.0.8.b.d.0.1.0.0.2.ip6.arpa"),
        ("2001:db8:1:2:3:4:5:6", "2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"),
    ],
)
def test_reverse_zones_are_cut_at_24_and_64_bits(address, zone):
    assert estate_dns.reverse_zone(address) == zone
