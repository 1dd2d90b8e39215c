"""Public keys from private ones, and the checks of a site's secrets."""

from __future__ import annotations

import base64
import datetime
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
)

import estate_keys
import estate_secrets


def pem(key, encryption=None, form=PrivateFormat.PKCS8):
    return key.private_bytes(Encoding.PEM, form, encryption or NoEncryption()).decode()


def certificate(key, name="mail-gw1.example.org"):
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    built = x509.CertificateBuilder(
        subject, subject, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1)
    )
    return built.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@pytest.fixture(scope="module")
def rsa_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def tls_key():
    return ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_rsa_public_key_belongs_to_the_private_key(rsa_key, form):
    public = estate_keys.public_key(pem(rsa_key, form=form))
    assert load_der_public_key(base64.b64decode(public)).public_numbers() == rsa_key.public_key().public_numbers()
    assert estate_keys.key_type(public) == "rsa"


def test_ed25519_public_key_is_its_32_octets():
    key = ed25519.Ed25519PrivateKey.generate()
    public = estate_keys.public_key("\n" + pem(key) + "\n\n")
    assert base64.b64decode(public) == key.public_key().public_bytes_raw()
    assert estate_keys.key_type(public) == "ed25519"


def test_text_that_is_no_key_is_told_without_quoting_it(rsa_key):
    broken = pem(rsa_key)[:500]
    with pytest.raises(ValueError, match="no private key in PEM") as caught:
        estate_keys.public_key(broken)
    assert broken[40:60] not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "(put the key here)", "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----"]
)
def test_placeholder_is_no_key(text):
    with pytest.raises(ValueError, match="no private key in PEM"):
        estate_keys.public_key(text)


def test_key_with_passphrase_is_told(rsa_key):
    with pytest.raises(ValueError, match="passphrase"):
        estate_keys.public_key(pem(rsa_key, BestAvailableEncryption(b"x")))


def test_short_rsa_key_is_told_with_its_length():
    with pytest.raises(ValueError, match="has 1024 bits; at least 2048"):
        estate_keys.public_key(pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)))


def test_elliptic_curve_key_is_no_dkim_key(tls_key):
    with pytest.raises(ValueError, match="RSA and Ed25519"):
        estate_keys.public_key(pem(tls_key))


@pytest.mark.parametrize("public", ["", "x", "not base64!", "c2hvcnQ="])
def test_text_that_is_no_public_key(public):
    with pytest.raises(ValueError, match=r"not base64|neither an RSA key"):
        estate_keys.key_type(public)


def secrets(rsa_key, tls_key):
    return {
        "vault_arc_private_key": pem(rsa_key),
        "vault_srs_secret": "0123456789abcdef",
        "vault_tls_chain": pem(tls_key) + certificate(tls_key),
    }


def test_usable_secrets_pass(rsa_key, tls_key):
    values = secrets(rsa_key, tls_key)
    assert estate_secrets.problems(values, list(values)) == []


@pytest.mark.parametrize("name", ["vault_arc_private_key", "vault_srs_secret", "vault_tls_chain"])
@pytest.mark.parametrize("absent", [None, "", " \n"])
def test_missing_secret_is_named(rsa_key, tls_key, name, absent):
    values = secrets(rsa_key, tls_key) | {name: absent}
    (found,) = estate_secrets.problems(values, list(values))
    assert found.startswith(f"{name} is not set: ")
    assert "vault.yml" in found


def test_secret_that_is_not_text_is_named(rsa_key, tls_key):
    values = secrets(rsa_key, tls_key) | {"vault_srs_secret": 1234567890123456}
    (found,) = estate_secrets.problems(values, list(values))
    assert found.startswith("vault_srs_secret is no text but of type int")


def test_secret_that_is_being_rotated_is_a_list(rsa_key, tls_key):
    values = secrets(rsa_key, tls_key) | {"vault_srs_secret": ["fedcba9876543210", "0123456789abcdef"]}
    assert estate_secrets.problems(values, list(values)) == []
    values["vault_srs_secret"].append("")
    (found,) = estate_secrets.problems(values, list(values))
    assert found.startswith("vault_srs_secret is not set: ")


def test_unusable_secrets_are_told_with_the_remedy_and_never_shown(rsa_key, tls_key):
    other = ec.generate_private_key(ec.SECP256R1())
    chain = pem(tls_key) + certificate(tls_key)
    for name, value, says in [
        ("vault_srs_secret", "hunter2", "shorter than 16 characters"),
        ("vault_arc_private_key", "(put the key here)", "no private key in PEM"),
        ("vault_tls_chain", certificate(tls_key), "private key in PEM"),
        ("vault_tls_chain", pem(tls_key), "no certificate in PEM"),
        ("vault_tls_chain", certificate(tls_key) + pem(tls_key), "private key must come first"),
        ("vault_tls_chain", pem(other) + certificate(tls_key), "does not belong to its private key"),
        ("vault_tls_chain", pem(tls_key, BestAvailableEncryption(b"x")) + certificate(tls_key), "unencrypted"),
    ]:
        values = secrets(rsa_key, tls_key) | {name: value}
        (found,) = estate_secrets.problems(values, list(values))
        assert found.startswith(f"{name} cannot be used: ")
        assert says in found
        assert value not in found
        assert chain[60:90] not in found


def test_private_keys_by_name_are_each_looked_at(rsa_key):
    values = {"vault_dkim_private_keys": {"a._domainkey.example.org": pem(rsa_key)}}
    assert estate_secrets.problems(values, list(values)) == []
    values["vault_dkim_private_keys"] |= {"b._domainkey.example.org": "", "c._domainkey.example.org": "no key"}
    empty, wrong = estate_secrets.problems(values, list(values))
    assert empty.startswith("vault_dkim_private_keys['b._domainkey.example.org'] is not set: ")
    assert wrong.startswith("vault_dkim_private_keys['c._domainkey.example.org'] cannot be used: ")
    (missing,) = estate_secrets.problems({"vault_dkim_private_keys": {}}, list(values))
    assert missing.startswith("vault_dkim_private_keys ")


def test_thorough_look_finds_numbers_that_do_not_fit_together(rsa_key):
    numbers = rsa_key.private_numbers()
    odd = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, numbers.d + 2, numbers.dmp1, numbers.dmq1, numbers.iqmp, numbers.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    assert estate_keys.public_key(pem(odd)) == estate_keys.public_key(pem(rsa_key))
    with pytest.raises(ValueError, match="no private key in PEM"):
        estate_keys.public_key(pem(odd), thorough=True)


def test_digest_of_a_tls_key_is_what_openssl_says(tls_key, rsa_key):
    text = pem(tls_key) + certificate(tls_key) + pem(rsa_key)
    shown = [
        subprocess.run(
            "openssl pkey -pubout -outform DER | sha256sum", shell=True, input=pem(key), capture_output=True, text=True
        ).stdout.split()[0]
        for key in (tls_key, rsa_key)
    ]
    assert estate_keys.tls_key_digests(text) == shown


def test_text_without_a_usable_tls_key_is_told_without_quoting_it(tls_key):
    with pytest.raises(ValueError, match="no unencrypted private key"):
        estate_keys.tls_key_digests(certificate(tls_key))
    with pytest.raises(ValueError, match="incomplete") as caught:
        estate_keys.tls_key_digests(pem(tls_key).replace("M", "!", 1))
    assert pem(tls_key)[40:60] not in str(caught.value)
