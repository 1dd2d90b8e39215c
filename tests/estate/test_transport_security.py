"""DANE and MTA-STS on the way out, and our own policies on the web: in short and at rest.

What happens under attack, tests/bench/downgrade_drill.py proves.
"""

from __future__ import annotations

import time
import uuid

import pytest

SENDING_HOSTS = ("mail-gw1", "mail-gw2", "ml", "smtp", "analytics")


@pytest.mark.parametrize("name", SENDING_HOSTS)
def test_every_sending_host_asks_for_dane_first_then_for_the_policy(estate, name):
    host = estate.host(name)
    assert host.run("tls-policy", "example.ch").startswith("dane: NOTFOUND")
    assert host.run("tls-policy", "example.be").startswith("sts: OK secure match=mx.example.be ")
    assert host.run("tls-policy", "example.at").startswith("none: NOTFOUND")


@pytest.mark.parametrize("name", SENDING_HOSTS)
def test_every_sending_host_says_how_tls_went(estate, name):
    assert estate.host(name).run("systemctl", "is-active", "tlsrpt-collectd.service").strip() == "active"


@pytest.mark.parametrize(("domain", "log"), [("example.ch", "mx.example.ch"), ("example.be", "mx.example.be")])
def test_mail_to_a_domain_that_demands_it_leaves_over_verified_tls(estate, domain, log):
    begin, message_id = time.time(), f"<{uuid.uuid4()}@smtp.example.org>"
    smtp = estate.host("smtp")
    mail = f"From: postmaster@smtp.example.org\nTo: x@{domain}\nMessage-ID: {message_id}\nSubject: x\n\nx\n"
    smtp.run("sendmail", "-f", "postmaster@smtp.example.org", f"x@{domain}", stdin=mail)
    estate.mailbox(f"x@{domain}").wait_for(message_id)
    assert f"Verified TLS connection established to {log}" in smtp.journal(begin, "-t", "postfix/smtp", lines=200)


def test_our_policies_are_given_out_as_dns_says(estate):
    """RFC 8461 §3.3: status 200, text/plain, no redirection; the certificate's CA is the lab's Pebble."""
    address = "https://mta-sts.example.org/.well-known/mta-sts.txt"
    answer = estate.host("mail-gw1").run("curl", "--silent", "--include", "--insecure", "--http1.1", address)
    head, _blank, text = answer.replace("\r", "").partition("\n\n")
    assert head.startswith("HTTP/1.1 200"), head
    assert "content-type: text/plain" in head.lower()
    assert text.splitlines()[:2] == ["version: STSv1", "mode: enforce"]
    assert "mx: mail-gw1.example.org" in text.splitlines()
