"""The filters of roles dovecot and fail2ban: which hashes, back ends and jails they refuse, and in which words."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROLES = Path(__file__).resolve().parents[2] / "roles"


def load(path: str) -> ModuleType:
    source = ROLES / path
    spec = importlib.util.spec_from_file_location(source.stem, source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


logins = load("dovecot/filter_plugins/dovecot_logins.py")
jails = load("fail2ban/filter_plugins/fail2ban_jails.py")
CONSTANTS = yaml.safe_load((ROLES / "dovecot/vars/main.yml").read_text(encoding="utf-8"))
LDAP, OAUTH2 = CONSTANTS["__dovecot_ldap_defaults"], CONSTANTS["__dovecot_oauth2_defaults"]

ARGON2ID = "$argon2id$v=19$m=65536,t=3,p=1$gQfeVo9cF6Q/ZMe7Hlswog$kxtsQ20tKygkBRcwtqnB3yWhND9YF4Tw9AElV+jlT6E"
BCRYPT = "$2y$10$je9GNgxsp7CUHa.or4FcwOyUb7dKNXCRiQoNlQFb.D8GUfnfOCxxK"
PBKDF2 = "$1$W57ucrrr5scDw0.d$5000$c98a89a457f1ebd82fbad7509a50ec5dd4e79412"
CRYPT = "$6$vWivaLMHFKOXeo21$3s5f10JcegJPFeXKR/oQvv/UdI7nFttt50QwbGvDero2UKVnq5hBhN0hJJn68kbeAHd7lJbiphZk7aeBIBQAS."
SSHA512 = "pxFCiCdPM+s1n6B9ivw7kAaS3LJqmyFYKP8f6jK7OyiXyFcbq7gFMeMVEcv5hEPBFGJBC2wBqjWqXtEI+xk3VJMsmdM="
DIRECTORY = {"uris": ["ldaps://ldap.example.org"], "base": "ou=people,dc=example,dc=org"}
KEY = {"algorithm": "ES256", "public_key": "-----BEGIN PUBLIC KEY-----\nM…\n-----END PUBLIC KEY-----\n"}
SIGN_ON = {"issuers": ["https://sso.example.org/"], "audience": "submission", "keys": [KEY]}


def problems(users=None, ldap=None, oauth2=None) -> str:
    return " ".join(logins.dovecot_problems(users or {}, ldap or {}, LDAP, oauth2 or {}, OAUTH2))


def user(password, login="alice@example.org") -> dict:
    return {login: {"password": password}}


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (f"{{ARGON2ID}}{ARGON2ID}", f"{{ARGON2ID}}{ARGON2ID}"),
        (ARGON2ID, f"{{ARGON2ID}}{ARGON2ID}"),
        (BCRYPT, f"{{BLF-CRYPT}}{BCRYPT}"),
        (f"{{blf-crypt}}{BCRYPT}\n", f"{{BLF-CRYPT}}{BCRYPT}"),
        (f"{{PBKDF2}}{PBKDF2}", f"{{PBKDF2}}{PBKDF2}"),
        (CRYPT, f"{{SHA512-CRYPT}}{CRYPT}"),
        (CRYPT.replace("$6$", "$6$rounds=200000$"), "{SHA512-CRYPT}" + CRYPT.replace("$6$", "$6$rounds=200000$")),
        (f"{{SSHA512}}{SSHA512}", f"{{SSHA512}}{SSHA512}"),
    ],
)
def test_strong_hash_is_accepted_and_written_with_its_scheme(given, written):
    assert problems(user(given)) == ""
    assert logins.dovecot_hash(given) == written


@pytest.mark.parametrize(
    ("password", "sentence"),
    [
        ("open-sesame", "is not hashed, or does not say how"),
        (SSHA512, "is not hashed, or does not say how"),
        ("", "is missing"),
        (None, "is missing"),
        ("{PLAIN}open-sesame", "is PLAIN, which is weak, unsalted or no hash at all"),
        ("{SHA512}aGFzaA==", "is SHA512, which is weak, unsalted"),
        ("{SSHA}aGFzaA==", "is SSHA, which is weak"),
        ("{CRAM-MD5}aGFzaA==", "is CRAM-MD5, which is weak"),
        ("{MD5-CRYPT}$1$abcdefgh$x", "is MD5-CRYPT, which is weak"),
        ("{SSHA512}aGFzaA==", "is no complete SSHA512 hash"),
        ("{SSHA512}not base64", "is no complete SSHA512 hash"),
        ("{SHA512-CRYPT}open-sesame", "is no complete SHA512-CRYPT hash"),
        (CRYPT[:-4], "is no complete SHA512-CRYPT hash"),
        (CRYPT.replace("$6$", "$6$rounds=1000$"), "has 1000 rounds; at least 5000 are required"),
        ("{ARGON2ID}open-sesame", "is no complete ARGON2ID hash"),
        (ARGON2ID.replace("65536", "1024"), "uses 1024 KiB of memory; at least 16384 are required"),
        (BCRYPT.replace("$10$", "$05$"), "has a cost of 5; at least 10 is required"),
        (BCRYPT + ":extra", "is no complete BLF-CRYPT hash"),
        (f"{{PBKDF2}}{PBKDF2}".replace("5000", "100"), "has 100 rounds; at least 5000 are required"),
        (f"{{PBKDF2}}{PBKDF2}\nroot:{{PLAIN}}x", "is no complete PBKDF2 hash"),
    ],
)
def test_weak_or_broken_hash_is_refused_without_being_quoted(password, sentence):
    said = problems(user(password))
    assert f"dovecot_users['alice@example.org'].password {sentence}" in said
    assert not password or str(password)[-8:] not in said


@pytest.mark.parametrize("login", ["Alice@example.org", "a b", "a:b", "a+b@example.org", "x)(uid=*", ""])
def test_login_that_could_never_sign_in_or_would_break_the_file_is_refused(login):
    assert "a login has lower-case letters" in problems(user(CRYPT, login))


def test_user_has_a_password_and_nothing_else():
    assert "must have the one field password" in problems({"a@example.org": {"password": CRYPT, "uid": 0}})
    assert "must have the one field password" in problems({"a@example.org": CRYPT})


def test_one_back_end_is_enough_and_none_is_not():
    assert problems(ldap=DIRECTORY) == problems(oauth2=SIGN_ON) == ""
    assert problems(DIRECTORY and user(CRYPT), DIRECTORY, SIGN_ON) == ""
    assert "nobody could sign in" in problems()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"uris": []}, "uris is empty"),
        ({"uris": ["ldapi:///"]}, "it must begin with ldaps:// or, for STARTTLS, with ldap://"),
        ({"uris": ["ldap://a", "ldaps://b"]}, "mixes ldaps:// and ldap://"),
        ({"base": ""}, "base is empty"),
        ({"filter": "(objectClass=person)"}, "everybody would be the same entry"),
        ({"bind_dn": "cn=x"}, "the directory takes us for anonymous"),
        ({"bind_dn": "cn=x", "bind_password": 'a"b'}, "quotation mark"),
        ({"bind_dn": "cn=x", "bind_password": "$ENV:HOME"}, "begins with $ or <"),
        ({"ca": "/etc/ca.pem"}, "ca must be a certificate in PEM"),
        ({"tls": False}, "dovecot_ldap.tls is unknown"),
    ],
)
def test_unsafe_directory_is_refused(change, sentence):
    assert sentence in problems(ldap=DIRECTORY | change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mode": "none"}, "allowed are local, auth, get and post"),
        ({"keys": []}, "no token could be verified"),
        ({"issuers": []}, "a token of any issuer would sign in here"),
        ({"audience": ""}, "a token for any other service would sign in here"),
        ({"mode": "post"}, "introspection_url is empty"),
        ({"mode": "post", "introspection_url": "http://sso.example.org/"}, "must begin with https://"),
        ({"keys": [KEY | {"algorithm": "HS256"}]}, "algorithm must be one of ES256"),
        ({"keys": [KEY | {"id": "../../shadow"}]}, "cannot be a file's name here"),
        ({"keys": [KEY | {"public_key": "-----BEGIN PRIVATE KEY-----"}]}, "public_key must be a public key in PEM"),
        ({"issuers": ["a b"]}, "a blank separates values"),
        ({"secret": "x"}, "dovecot_oauth2.secret is unknown"),
    ],
)
def test_token_that_is_not_meant_for_us_is_refused(change, sentence):
    assert sentence in problems(oauth2=SIGN_ON | change)


def test_keys_lie_where_dovecot_looks():
    files = logins.dovecot_key_files([KEY, KEY | {"client": "mail", "id": "k1"}], "/keys")
    assert [each["path"] for each in files] == ["/keys/default/ES256/default", "/keys/mail/ES256/k1"]


JAIL = {"journal": "_SYSTEMD_UNIT=dovecot.service", "failures": [r"auth\(\S+,<HOST>\) failed"], "ports": [587]}
ACCOUNT = {"journal": "_COMM=x", "failures": ["of <F-ID>[a-z]+</F-ID>"], "ban": "lock <fid>", "unban": "open <fid>"}


def test_right_jails_are_accepted():
    assert jails.fail2ban_problems({"submission": JAIL, "account": ACCOUNT}, ["192.0.2.0/24", "2001:db8::1"]) == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "nothing would be watched"),
        ({"a": JAIL | {"port": 25}}, '"port" is unknown'),
        ({"a": JAIL | {"journal": "dovecot"}}, "journal must name fields"),
        ({"a": JAIL | {"failures": []}}, "nothing would ever count"),
        ({"a": JAIL | {"failures": ["failed"]}}, "who would it be?"),
        ({"a": JAIL | {"failures": ["(<HOST>"]}}, "which is no regular expression"),
        ({"a": JAIL | {"ports": [0]}}, 'has "0"'),
        ({"a": JAIL | {"ports": []}}, "either ports, where an address is shut out, or a command"),
        ({"a": JAIL | {"ban": "x", "unban": "y"}}, "either ports, where an address is shut out, or a command"),
        ({"a": {key: value for key, value in ACCOUNT.items() if key != "unban"}}, "what is begun must end"),
        ({"a": JAIL | {"failures": ACCOUNT["failures"]}}, "must have <HOST> where ports are shut"),
        ({"a": JAIL | {"tries": 0}}, 'tries is "0"'),
        ({"A b": JAIL}, "lower-case letters, digits and hyphens"),
        ({"a": "x"}, "must have fields"),
    ],
)
def test_jail_that_would_watch_nothing_or_shut_out_the_wrong_ones_is_refused(given, sentence):
    assert sentence in " ".join(jails.fail2ban_problems(given, []))


@pytest.mark.parametrize(
    ("never", "sentence"), [("0.0.0.0/0", "nobody would ever be"), ("x", "is not an IPv4 or IPv6")]
)
def test_wrong_exception_is_refused(never, sentence):
    assert sentence in " ".join(jails.fail2ban_problems({"a": JAIL}, [never]))


def test_every_field_of_a_back_end_is_explained():
    text = (ROLES / "dovecot/defaults/main.yml").read_text(encoding="utf-8")
    missing = [field for field in [*LDAP, *OAUTH2] if not re.search(rf"#   .*\b{field}\b", text)]
    assert missing == []
