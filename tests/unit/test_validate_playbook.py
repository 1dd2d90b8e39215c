"""playbooks/validate.yml as an operator meets it, on the production example.

The hosts of that inventory have documentation addresses, which nobody can connect to: what passes has touched none.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

REPOSITORY = Path(__file__).resolve().parents[2]


def pem(key) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def rsa_key() -> str:
    return pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))


def tls_chain(name: str) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = x509.CertificateBuilder(
        subject, subject, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1)
    ).sign(key, hashes.SHA256())
    return pem(key) + certificate.public_bytes(Encoding.PEM).decode()


@pytest.fixture(scope="module")
def secrets() -> dict[str, object]:
    return {
        "vault_arc_private_key": rsa_key(),
        "vault_srs_secret": "only for this test run",
        "vault_dkim_private_keys": {f"2026a._domainkey.{domain}.wide.ad.jp": rsa_key() for domain in ("ml", "rua")},
        "vault_list_arc_private_key": rsa_key(),
        "vault_list_rest_password": "only for this test run",
        "vault_list_archiver_key": "only for this test run",
        "vault_list_web_secret": "only for this test run",
        "vault_list_unsubscribe_secret": "only for this test run",
        "vault_list_oidc_secret": "only for this test run",
        "vault_dmarc_events_password": "only for this test run",
        "vault_dmarc_reports_key": "only for this test run, only for this test run",
        "vault_grafana_database_password": "only for this test run",
        "vault_grafana_password": "only for this test run",
        "vault_grafana_secret_key": "only for this test run, only for this test run",
        "vault_submission_passwords": {"postmaster@wide.ad.jp": "{SHA512-CRYPT}$6$only$forthistestrun"},
        "vault_tls_chains": {
            name: tls_chain(f"{name}.wide.ad.jp") for name in ("mail-gw1", "mail-gw2", "ml", "smtp", "analytics")
        },
    }


@pytest.fixture
def site(tmp_path, secrets):
    """The production example with secrets made for the test; returns a function that runs a playbook on it."""
    inventory = shutil.copytree(REPOSITORY / "inventory/wide", tmp_path / "wide")
    vault = inventory / "group_vars/all/vault.yml"
    vault.write_text(yaml.safe_dump(secrets), encoding="utf-8")

    def run(playbook: str, **variables: object) -> subprocess.CompletedProcess[str]:
        command = Path(sys.executable).with_name("ansible-playbook")
        return subprocess.run(
            [command, "-i", inventory, "-e", json.dumps(variables), REPOSITORY / "playbooks" / playbook],
            env=os.environ
            | {
                "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
                "ANSIBLE_STRATEGY": "linear",
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_CALLBACK_FORMAT_PRETTY": "0",
                "COLUMNS": "1000",
            },
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    run.vault = vault
    return run


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The output of a run that validation stopped, on one line and without what wraps it."""
    assert result.returncode != 0, result.stdout
    assert "PLAY [Mail gateways]" not in result.stdout, "a host was about to be touched"
    return " ".join((result.stdout + result.stderr).split())


def test_production_example_passes_without_touching_a_host(site):
    result = site("validate.yml")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "unreachable=0" in result.stdout


def test_contradiction_in_the_model_stops_site_before_any_host(site):
    text = refused(site("site.yml", estate_gateways=["mail-gw1", "mail-gw9"]))
    assert 'estate_gateways is "mail-gw9": no such host in estate_hosts; did you mean "mail-gw2"?' in text


def test_missing_secret_is_named(site, secrets):
    site.vault.write_text(yaml.safe_dump(secrets | {"vault_srs_secret": ""}), encoding="utf-8")
    assert "vault_srs_secret is not set: keep it in the inventory" in refused(site("site.yml"))


def test_fresh_copy_without_vault_names_every_secret(site):
    site.vault.unlink()
    text = refused(site("site.yml"))
    for name in ("vault_arc_private_key", "vault_srs_secret", "vault_tls_chain"):
        assert f"{name} is not set: keep it in the inventory" in text


def test_renamed_variable_is_told_with_its_new_name(site):
    text = refused(site("site.yml", estate_mx_hosts=["mail-gw1"]))
    assert "estate_mx_hosts has been renamed: write estate_gateways instead" in text


def test_role_variable_of_the_wrong_kind_is_told_with_value_and_what_is_allowed(site):
    text = refused(site("site.yml", base_unattended_upgrades="perhaps", base_journal_rate_limit_burst="many"))
    assert "role base: " in text
    assert "base_unattended_upgrades" in text
    assert "perhaps" in text
    assert "bool" in text
    assert "base_journal_rate_limit_burst" in text


def test_role_variable_that_cannot_be_computed_is_named(site):
    settings = site.vault.with_name("base.yml")
    settings.write_text('base_timezone: "{{ nowhere }}"\n', encoding="utf-8")
    assert "role base: base_timezone cannot be computed: 'nowhere' is undefined" in refused(site("site.yml"))


def test_mistyped_role_variable_is_told_with_the_likely_name(site):
    text = refused(site("site.yml", base_unattended_upgrade=True))
    assert "base_unattended_upgrade is no argument of it; did you mean base_unattended_upgrades?" in text


def test_dns_writes_a_fragment_for_each_zone_with_the_reasons(site, tmp_path):
    result = site("dns.yml", dns_output_dir=str(tmp_path / "dns"))
    assert result.returncode == 0, result.stdout + result.stderr
    fragments = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "dns").iterdir()}
    assert "wide.ad.jp.zone" in fragments
    assert "2.0.192.in-addr.arpa.zone" in fragments
    lines = fragments["wide.ad.jp.zone"].splitlines()
    records = [number for number, line in enumerate(lines) if " IN " in line and not line.startswith(";")]
    assert len(records) > 50
    assert all(lines[number - 1].startswith("; ") for number in records)


def test_records_are_published_only_where_a_server_takes_changes(site, tmp_path):
    text = refused(site("dns.yml", dns_output_dir=str(tmp_path), dns_apply=True))
    assert "dns_apply needs a name server that takes dynamic updates: estate_dns.update names none" in text


def test_secret_for_changes_of_dns_is_asked_for_where_it_is_needed(site, tmp_path):
    server = {"nameservers": ["ns.wide.ad.jp"], "update": {"server": "192.0.2.53", "key": "estate"}}
    text = refused(site("dns.yml", dns_output_dir=str(tmp_path), dns_apply=True, estate_dns=server))
    assert "vault_dns_update_key is not set: keep it in the inventory" in text
