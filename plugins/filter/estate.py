"""Filters that derive everything about mail from the one data model: ``{{ estate_model | estate_transport }}``.

The work is done by the modules in plugins/module_utils, which know nothing of Ansible; this file only gives them to
templates.  A value that cannot be worked on ends the run with a sentence that says why.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from jinja2 import pass_context
from jinja2.runtime import Context

sys.path.append(str(Path(__file__).resolve().parents[1] / "module_utils"))

import estate_checks
import estate_dns
import estate_keys
import estate_model
import estate_mta_sts
import estate_plays
import estate_secrets
import estate_spf
import estate_submission


def _in_plain_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """Errors as Ansible shows them, with a hint to the validation that would have caught them."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            raise AnsibleFilterError(f"{function.__name__}: {error}") from error
        except (AttributeError, KeyError, TypeError) as error:
            raise AnsibleFilterError(
                f"{function.__name__}: the estate's data model is not valid ({type(error).__name__}: {error});"
                " playbooks/validate.yml says what is wrong"
            ) from error

    return wrapped


def estate_problems(model: Any) -> list[str]:
    """Everything that is wrong with the data model, in plain sentences; empty when it is valid."""
    return estate_checks.problems(model)


def estate_variable_problems(names: Sequence[str]) -> list[str]:
    """Missing, renamed and unknown variables among the names that a site defines."""
    return estate_checks.variable_problems(names)


def estate_secret_problems(values: Mapping[str, Any], needed: Sequence[str]) -> list[str]:
    """Missing and unusable ones among the secrets ``needed``; never shows a value."""
    return estate_secrets.problems(values, list(needed))


def play_roles(groups: Sequence[str], playbooks: str) -> list[str]:
    """Roles that site.yml in the directory ``playbooks`` applies to a host: ``group_names | play_roles(…)``."""
    return estate_plays.roles_of(groups, playbooks)


@pass_context
def role_problems(context: Context, roles: Sequence[str], names: Sequence[str], directory: str) -> list[str]:
    """What is wrong with a host's variables for each of ``roles``: ``… | role_problems(names, directory)``.

    ``names`` are all variables of the host, ``directory`` is that of the roles.
    """
    return [
        problem
        for role in roles
        for problem in estate_plays.role_problems(role, directory, names, context.resolve_or_missing)
    ]


def estate_relay_domains(model: Mapping[str, Any]) -> list[str]:
    """Domains the gateways take mail for (Postfix relay_domains)."""
    return estate_model.relay_domains(estate_model.parse(model))


def estate_transport(model: Mapping[str, Any]) -> dict[str, str]:
    """Domain → ``smtp:[next hop]:port`` (Postfix transport_maps)."""
    return estate_model.transport(estate_model.parse(model))


def estate_forward_transport(model: Mapping[str, Any]) -> dict[str, str]:
    """Forwarded address → transport by MX, for hosts behind the gateways."""
    return estate_model.forward_transport(estate_model.parse(model))


def estate_addresses(model: Mapping[str, Any], hosts: Sequence[str] | None = None) -> list[str]:
    """Addresses of hosts, of all of ours when none are named: ``estate_model | estate_addresses(estate_gateways)``."""
    return estate_model.addresses(estate_model.parse(model), hosts)


def estate_list_domains(model: Mapping[str, Any], host: str) -> list[str]:
    """Domains whose lists live on a host: ``estate_model | estate_list_domains(inventory_hostname)``."""
    return estate_model.list_domains(estate_model.parse(model), host)


def estate_signing_keys(model: Mapping[str, Any], host: str, private_keys: Mapping[str, str]) -> list[dict[str, Any]]:
    """Keys with which a host signs (``opendkim_keys``); ``private_keys`` by ``<selector>._domainkey.<domain>``."""
    return estate_model.signing_keys(estate_model.parse(model), host, private_keys)


def estate_relay_recipients(model: Mapping[str, Any]) -> list[str]:
    """Keys of relay_recipient_maps: addresses, or ``@domain`` where recipients are not listed."""
    return estate_model.relay_recipients(estate_model.parse(model))


def estate_verify_domains(model: Mapping[str, Any]) -> list[str]:
    """Domains whose recipients are verified at the next hop."""
    return estate_model.verify_domains(estate_model.parse(model))


def estate_zones(model: Mapping[str, Any], ttl: int | None = None) -> dict[str, list[dict[str, Any]]]:
    """All DNS records of the estate: ``{zone: [{name, type, value, ttl, reason}, …]}``; the TTL is the model's."""
    return {
        zone: [dict(record) for record in records]
        for zone, records in estate_dns.zones(estate_model.parse(model), ttl).items()
    }


def estate_zone_file(
    records: Sequence[Any],
    zone: str,
    nameservers: Sequence[str] = (),
    hostmaster: str | None = None,
    serial: int = 1,
    ttl: int = estate_dns.DEFAULT_TTL,
) -> str:
    """Master-file text of a zone: ``(estate_model | estate_zones)[zone] | estate_zone_file(zone, ['ns.example.com'])``.

    Without nameservers it is a fragment without SOA and NS.
    """
    return estate_dns.zone_file(records, zone, nameservers, hostmaster, serial, ttl)


def estate_spf_changes(model: Mapping[str, Any], lists: Mapping[str, Any]) -> list[str]:
    """SPF work lists and the proposed change to the model, as lines: ``… | estate_spf_changes(lists)``.

    ``lists`` is what ``dmarc-analysis lists`` prints.
    """
    return estate_spf.report(estate_model.parse(model), lists)


def estate_sender_logins(users: Mapping[str, Any]) -> dict[str, list[str]]:
    """Address → logins that may use it (Postfix smtpd_sender_login_maps): ``estate_submission_users | …``."""
    return estate_submission.sender_logins(users)


def estate_relay_certificates(relays: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprint → relay (Postfix relay_clientcerts): ``estate_submission_relays | …``."""
    return estate_submission.relay_certificates(relays)


def estate_submission_problems(users: Any, relays: Any, model: Any, passwords: Any) -> list[str]:
    """What is wrong with the data of submission: ``users | estate_submission_problems(relays, model, passwords)``."""
    return estate_submission.problems(users, relays, model, passwords)


def estate_mta_sts_policies(model: Mapping[str, Any]) -> dict[str, str]:
    """Domain → text of its MTA-STS policy (lines end in CRLF), for the web server that gives them out."""
    return estate_mta_sts.policies(estate_model.parse(model))


def dkim_public_key(pem: str) -> str:
    """The base64 ``p=`` value for a private key in PEM."""
    return estate_keys.public_key(pem)


def tls_key_digests(pem: str) -> list[str]:
    """The data of TLSA records 3 1 1 for the private keys in PEM."""
    return estate_keys.tls_key_digests(pem)


class FilterModule:
    """What Ansible asks for the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by the name under which templates call them."""
        functions = (
            dkim_public_key,
            estate_addresses,
            estate_forward_transport,
            estate_list_domains,
            estate_mta_sts_policies,
            estate_problems,
            estate_relay_certificates,
            estate_relay_domains,
            estate_relay_recipients,
            estate_secret_problems,
            estate_sender_logins,
            estate_signing_keys,
            estate_spf_changes,
            estate_submission_problems,
            estate_transport,
            estate_variable_problems,
            estate_verify_domains,
            estate_zone_file,
            estate_zones,
            play_roles,
            role_problems,
            tls_key_digests,
        )
        return {function.__name__: _in_plain_words(function) for function in functions}
