"""The postfix role's filters: what they write, read back by the rules of postconf(5), master(5) and postmap(1)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import postfix

ROLE = Path(__file__).resolve().parents[2] / "roles" / "postfix"
HEADER = "# Written by Ansible"
STOCK = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))["__postfix_services"]
MAPS: dict[str, Any] = {
    "recipients": {"type": "lmdb", "entries": {"alice@example.org": "OK"}},
    "clients": {"type": "cidr", "entries": ["192.0.2.0/24 REJECT"]},
    "closed": {"type": "inline", "entries": {"bob@example.org": "REJECT not here", "carol@example.org": ["DUNNO", 1]}},
}

# Values as an operator writes them: whatever shows on a line, without what separates the items of a list.
words = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=",#{}:"), min_size=1)
items = st.lists(words, min_size=1, max_size=4).map(" ".join)
folded = st.lists(words, min_size=1, max_size=4).map("\n".join)
scalars = st.one_of(st.booleans(), st.integers(), items, folded)
keys = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12)


def logical_lines(text: str) -> list[str]:
    """Lines as Postfix reads them: comments and blank lines dropped, one that begins with a blank continues."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0].isspace() and lines:
            lines[-1] += " " + line.strip()
        else:
            lines.append(line.rstrip())
    return lines


def plain(value: Any) -> str:
    """What Postfix shall see of a value, blanks folded."""
    return " ".join({True: "yes", False: "no"}[value].split() if isinstance(value, bool) else str(value).split())


def problems(**data: Any) -> list[str]:
    """Problems of arguments that are right but for what the test gives."""
    right = {"main": {}, "overrides": {}, "master": [], "maps": MAPS, "aliases": {}, "services": STOCK}
    right |= {"tls_chain": "", "tls_chain_files": []}
    return postfix.postfix_problems(right | data)


def service(merged: list[dict[str, Any]], name: str, kind: str) -> dict[str, Any]:
    """The one service of this name and type."""
    (found,) = [each for each in merged if (each["name"], each["type"]) == (name, kind)]
    return found


# --- main.cf --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, " yes"),
        (False, " no"),
        (0, " 0"),
        (52428800, " 52428800"),
        ("  loopback-only ", " loopback-only"),
        ("", ""),
        (None, ""),
        ([], ""),
        (["127.0.0.0/8", "[::1]/128"], " 127.0.0.0/8, [::1]/128"),
        ([">=TLSv1.2"], " >=TLSv1.2"),
        ("${stress?{1}:{10}}", " ${stress?{1}:{10}}"),
        ("permit_mynetworks,\n  reject\n", " permit_mynetworks,\n    reject"),
        ("map:recipients", " lmdb:/etc/postfix/maps.d/recipients"),
        ("check_client_access map:clients", " check_client_access cidr:/etc/postfix/maps.d/clients"),
        ("proxy:map:recipients", " proxy:lmdb:/etc/postfix/maps.d/recipients"),
        ("socketmap:unix:/run/x:name", " socketmap:unix:/run/x:name"),
        ("map:closed", " inline:{ { bob@example.org = REJECT not here }, { carol@example.org = DUNNO, 1 } }"),
    ],
)
def test_a_value_is_written_as_postconf_5_wants_it(value, text):
    assert postfix.postfix_value(value, MAPS) == text


def test_a_long_list_has_one_item_on_each_continuation_line():
    networks = [f"192.0.2.{number}/32" for number in range(10)]
    assert postfix.postfix_value(networks, {}) == "\n    " + ",\n    ".join(networks)
    assert postfix.postfix_value(networks, {}, single_line=True) == " " + ", ".join(networks)


@given(value=scalars | st.lists(scalars, max_size=12))
def test_any_value_is_one_parameter_and_reads_back_unchanged(value):
    (line,) = logical_lines(f"name ={postfix.postfix_value(value, {})}\n")
    expected = ", ".join(map(plain, value)) if isinstance(value, list) else plain(value)
    assert line == f"name = {expected}".strip()
    assert "\n" not in postfix.postfix_value(value, {}, single_line=True)


# --- master.cf ------------------------------------------------------------------------------------------------------


def test_without_arguments_master_cf_is_postfix_s_own_with_every_column_stated():
    merged = postfix.postfix_services(STOCK, [])
    assert [(each["name"], each["type"]) for each in merged] == [(each["name"], each["type"]) for each in STOCK]
    assert all(set(each) == set(postfix.ARGUMENT_KEYS) for each in merged)
    assert service(merged, "tlsmgr", "unix") == {
        "name": "tlsmgr",
        "type": "unix",
        "private": "-",
        "unprivileged": "-",
        "chroot": "y",
        "wakeup": "1000?",
        "process_limit": "1",
        "command": "tlsmgr",
        "args": {},
        "state": "present",
    }


def test_a_service_keeps_its_place_and_every_column_that_is_not_given():
    before = postfix.postfix_services(STOCK, [])
    # The argument specification fills in None for what the operator left out.
    given_columns = {"process_limit": "5", "wakeup": None, "command": None, "args": None}
    merged = postfix.postfix_services(STOCK, [{"name": "showq", "type": "unix", **given_columns}])
    assert [each["name"] for each in merged] == [each["name"] for each in before]
    assert service(merged, "showq", "unix") == service(before, "showq", "unix") | {"process_limit": "5"}


def test_name_and_type_together_tell_services_apart():
    merged = postfix.postfix_services(STOCK, [{"name": "smtp", "type": "inet", "command": "postscreen"}])
    assert service(merged, "smtp", "inet")["command"] == "postscreen"
    assert service(merged, "smtp", "unix")["command"] == "smtp"


def test_options_are_merged_by_name():
    changes = [{"name": "relay", "type": "unix", "args": {"smtp_helo_timeout": "5s"}}]
    assert service(postfix.postfix_services(STOCK, changes), "relay", "unix")["args"] == {
        "syslog_name": "postfix/$service_name",
        "smtp_helo_timeout": "5s",
    }


def test_a_service_can_be_switched_off_and_a_new_one_comes_last():
    new = {"name": "127.0.0.1:10025", "type": "inet", "chroot": "y", "command": "smtpd"}
    merged = postfix.postfix_services(STOCK, [new, {"name": "lmtp", "type": "unix", "state": "absent"}])
    assert "lmtp" not in [each["name"] for each in merged]
    assert merged[-1] == dict.fromkeys(postfix.COLUMNS, "-") | {"args": {}, "state": "present"} | new


changes = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["smtp", "relay", "lmtp", "10025"]),
            "type": st.sampled_from(["inet", "unix"]),
            "command": st.just("smtpd"),
        },
        optional={
            "process_limit": st.sampled_from(["1", "5", None]),
            "args": st.dictionaries(st.sampled_from(["a", "b"]), st.integers(), max_size=2) | st.none(),
            "state": st.sampled_from(["present", "absent", None]),
        },
    ),
    max_size=4,
)


@given(changes=changes)
def test_merging_leaves_its_input_alone_and_merging_twice_adds_nothing(changes):
    stock, copy = repr(STOCK), repr(changes)
    once = postfix.postfix_services(STOCK, changes)
    assert (repr(STOCK), repr(changes)) == (stock, copy)
    assert postfix.postfix_services(once, []) == once
    assert postfix.postfix_services(STOCK, [*changes, *changes]) == once
    names = [(each["name"], each["type"]) for each in once]
    assert len(names) == len(set(names))


def test_the_template_writes_one_line_of_eight_fields_and_options_that_stay_on_one_line():
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROLE / "templates"), trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= postfix.FilterModule().filters() | {"comment": "# {}".format}
    long = [f"check_recipient_access inline:{{ {{ {number}@example.org = OK }} }}" for number in range(9)]
    extra = {"name": "10025", "type": "inet", "command": "smtpd", "args": {"smtpd_recipient_restrictions": long}}
    text = environment.get_template("master.cf.j2").render(
        ansible_managed="managed", postfix_maps=MAPS, postfix_master=[extra], **{"__postfix_services": STOCK}
    )
    lines = logical_lines(text)
    assert len(lines) == len(STOCK) + 1
    assert lines[0].split() == ["smtp", "inet", "n", "-", "y", "-", "-", "smtpd"]
    option = "-o { smtpd_recipient_restrictions = " + ", ".join(long) + " }"
    assert lines[-1] == f"10025 inet - - - - - smtpd {option}"
    assert f"    {option}" in text.splitlines()


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*postfix.INDEXED_TYPES, *postfix.TEXT_TYPES])
def test_a_table_of_each_type_is_a_file_with_one_line_for_an_entry(kind):
    maps = {
        "table": {"type": kind, "entries": {"a@example.org": "OK", "b@example.org": ["c@example.net", "d@example.net"]}}
    }
    files = postfix.postfix_map_files(maps, HEADER + "\n")
    assert files == {
        "table": {
            "type": kind,
            "mode": "0644",
            "content": f"{HEADER}\n\na@example.org\tOK\nb@example.org\tc@example.net, d@example.net\n",
        }
    }
    assert postfix.postfix_secret_map_files(maps, HEADER) == {}
    assert postfix.postfix_value("map:table", maps) == f" {kind}:/etc/postfix/maps.d/table"


@pytest.mark.parametrize("kind", ["cidr", "regexp", "pcre"])
def test_lines_are_written_as_they_are_and_in_their_order(kind):
    lines = ["if /^Subject:/", "/^Subject: .*viagra/i REJECT", "endif", "/./ DUNNO"]
    files = postfix.postfix_map_files({"rules": {"type": kind, "entries": lines}}, HEADER)
    assert files["rules"]["content"].splitlines()[2:] == lines


def test_a_table_without_entries_is_an_empty_file_not_a_missing_one():
    files = postfix.postfix_map_files({"none": {"type": "lmdb", "entries": {}}}, HEADER)
    assert logical_lines(files["none"]["content"]) == []


def test_an_inline_table_is_no_file():
    assert set(postfix.postfix_map_files(MAPS, HEADER)) == {"recipients", "clients"}


@given(
    kind=st.sampled_from(postfix.INDEXED_TYPES),
    entries=st.dictionaries(keys, scalars | st.lists(items, max_size=3), max_size=6),
)
def test_what_is_not_refused_reads_back_as_the_same_table(kind, entries):
    maps = {"table": {"type": kind, "entries": entries}}
    if problems(maps=maps):
        return
    content = postfix.postfix_map_files(maps, HEADER)["table"]["content"]
    read = dict(line.split(None, 1) for line in logical_lines(content))
    wanted = {
        key: ", ".join(map(plain, value)) if isinstance(value, list) else plain(value) for key, value in entries.items()
    }
    assert read == wanted


# --- secrets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["0600", "0640", "600", "0660", "0400"])
def test_content_of_a_table_that_others_cannot_read_is_only_among_the_secrets(mode):
    maps = {"password": {"type": "lmdb", "mode": mode, "entries": {"mail.example.org": "user:hunter2"}}}
    public, secret = postfix.postfix_map_files(maps, HEADER), postfix.postfix_secret_map_files(maps, HEADER)
    assert public == {"password": {"type": "lmdb", "mode": mode, "content": None}}
    assert secret == {"password": f"{HEADER}\n\nmail.example.org\tuser:hunter2\n"}


def test_a_readable_table_is_no_secret():
    maps = {"plain": {"type": "lmdb", "mode": "0644", "entries": {"a": "b"}}}
    assert postfix.postfix_secret_map_files(maps, HEADER) == {}
    assert postfix.postfix_map_files(maps, HEADER)["plain"]["content"]


@pytest.mark.parametrize("mode", ["0600", "0640", "0644", "0660"])
def test_a_mode_without_quotes_is_refused_because_yaml_makes_another_number_of_it(mode):
    """0640 is 416 to YAML, which would be a table that everyone can read."""
    table = yaml.safe_load(f"{{type: lmdb, mode: {mode}, entries: {{a: b}}}}")
    (sentence,) = problems(maps={"password": table})
    assert sentence.startswith("postfix_maps.password.mode is ")
    assert "quoted" in sentence


def test_an_inline_table_cannot_be_secret_because_main_cf_is_not():
    table = {"type": "inline", "mode": "0600", "entries": {"mail.example.org": "user:hunter2"}}
    (sentence,) = problems(maps={"password": table})
    assert sentence.startswith("postfix_maps.password.mode ")
    assert "hunter2" not in sentence


@pytest.mark.parametrize(
    "password_table",
    [
        "mail.example.org user:hunter2",
        ["mail.example.org user:hunter2"],
        {"type": "lmdb", "mode": "0600", "entries": "mail.example.org user:hunter2"},
        {"type": "lmdb", "mode": "0600", "entries": ["mail.example.org user:hunter2\n"]},
        {"type": "lmdb", "mode": "0600", "entries": {"mail.example.org": "user:hunter2\n"}},
        {"type": "lmdb", "mode": 384, "entries": {"mail.example.org": "user:hunter2"}},
        {"type": "inline", "mode": "0600", "entries": ["mail.example.org user:hunter2"]},
        {"type": "lmdb", "mode": "0600", "entries": {"mail example.org": "user:hunter2"}},
    ],
)
def test_no_complaint_shows_what_a_table_holds(password_table):
    found = problems(maps={"password": password_table})
    assert "hunter2" not in "\n".join(found)


# --- what is refused, and in which words ------------------------------------------------------------------------------


def test_what_is_right_is_accepted():
    assert (
        problems(
            main={"relay_recipient_maps": "map:recipients", "relay_domains": [], "biff": False, "hopcount_limit": 50},
            overrides={"smtpd_client_restrictions": ["check_client_access map:clients", "permit"]},
            master=[
                {"name": "lmtp", "type": "unix", "state": "absent", "args": None},
                {"name": "10025", "type": "inet", "command": "smtpd", "args": {"virtual_alias_maps": "map:closed"}},
            ],
            aliases={"postmaster": ["root", "alice@example.org"]},
            tls_chain="-----BEGIN PRIVATE KEY-----\n-----BEGIN CERTIFICATE-----\n",
        )
        == []
    )


def table(**changed: Any) -> dict[str, Any]:
    """Arguments with one table, right but for what is given."""
    return {"maps": {"t": {"type": "lmdb", "entries": {"a": "b"}} | changed}}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"main": {"my-hostname": "x"}}, "postfix_main: 'my-hostname' cannot be a main.cf parameter."),
        ({"overrides": {"2fast": "x"}}, "postfix_main_overrides: '2fast' cannot be a main.cf parameter."),
        ({"main": {"mynetworks": {"a": 1}}}, "postfix_main.mynetworks must be a string, a number, a boolean or a list"),
        ({"main": {"mynetworks": ["a", ["b"]]}}, "postfix_main.mynetworks must be a string, a number, a boolean"),
        ({"main": {"transport_maps": "map:transprt"}}, "postfix_main.transport_maps refers to map:transprt, but"),
        ({"overrides": {"transport_maps": ["proxy:map:no"]}}, "postfix_main_overrides.transport_maps refers to map:no"),
        ({"aliases": {"abuse": []}}, "postfix_aliases.abuse needs an address or a list of addresses, not []."),
        ({"aliases": {"abuse": "a\nb: c"}}, "postfix_aliases.abuse needs an address"),
        ({"tls_chain": "-----BEGIN CERTIFICATE-----\n"}, "postfix_tls_chain must hold a private key followed by"),
        ({"tls_chain": "-----BEGIN EC PRIVATE KEY-----\n"}, "postfix_tls_chain must hold a private key followed by"),
        (
            {"tls_chain": "PRIVATE KEY-----, -----BEGIN CERTIFICATE-----", "tls_chain_files": ["/a"]},
            "postfix_tls_chain and postfix_tls_chain_files are both given; one of them must be empty.",
        ),
        (
            {"tls_chain_files": ["etc/a.pem"]},
            "postfix_tls_chain_files has 'etc/a.pem', which is no plain absolute path.",
        ),
        ({"maps": {"../x": {"type": "lmdb", "entries": {}}}}, "postfix_maps.../x: a table's name is a file name"),
        ({"maps": {"t": ["a b"]}}, "postfix_maps.t must be a dict with type and entries."),
        (table(content="a b"), "postfix_maps.t.content is unknown; allowed are type, entries and mode."),
        (table(type="ldap"), "postfix_maps.t.type is 'ldap'; allowed are lmdb, hash, btree, texthash, cidr,"),
        (table(type=None), "postfix_maps.t.type is None; allowed are"),
        (table(entries="a b"), "postfix_maps.t.entries must be a dict or a list of lines."),
        (
            table(entries={"a b": "c"}),
            "postfix_maps.t: the key 'a b' is empty or contains a blank, or begins with '#'.",
        ),
        (table(entries={"": "c"}), "postfix_maps.t: the key '' is empty or contains a blank, or begins with '#'."),
        (table(entries={"#a": "c"}), "postfix_maps.t: the key '#a' is empty or contains a blank, or begins with '#'."),
        (table(entries={"a": ""}), "postfix_maps.t: the entry 'a' has no result."),
        (table(entries={"a": None}), "postfix_maps.t: the entry 'a' has no result."),
        (table(entries={"a": "b\nc d"}), "postfix_maps.t: the entry 'a' contains a line break."),
        (table(entries=["a b", "c d\ne f"]), "postfix_maps.t: line 2 contains a line break."),
        (table(entries=["a b", ""]), "postfix_maps.t: line 2 is empty."),
        (table(type="inline", entries={}), "postfix_maps.t.entries must be a dict with at least one key, because its"),
        (table(type="inline", entries=["a b"]), "postfix_maps.t.entries must be a dict with at least one key, because"),
        (table(mode="0689"), "postfix_maps.t.mode is '0689'; write it as a quoted octal number such as '0640'."),
        (table(mode="u=rw"), "postfix_maps.t.mode is 'u=rw'; write it as a quoted octal number"),
    ],
)
def test_a_contradiction_is_said_with_the_name_of_the_argument(data, sentence):
    assert sentence in "\n".join(problems(**data))


@pytest.mark.parametrize(
    ("services", "sentence"),
    [
        (
            [{"name": "smtp", "type": "inet"}, {"name": "smtp", "type": "inet"}],
            "postfix_master: the service smtp/inet is given twice.",
        ),
        (
            [{"name": "smtp", "type": "inet", "cmd": "smtpd"}],
            "postfix_master: the service smtp/inet has unknown keys: cmd.",
        ),
        ([{"name": "10025", "type": "inet"}], "postfix_master: the service 10025/inet is not one of Postfix's own and"),
        (
            [{"name": "10025", "type": "inet", "state": "absent"}],
            "postfix_master: the service 10025/inet is to be absent, but Postfix has no such service of its own.",
        ),
        (
            [{"name": "smtp", "type": "inet", "args": {"transport_maps": "map:no"}}],
            "postfix_master: the service smtp/inet, args.transport_maps refers to map:no, but postfix_maps has no",
        ),
    ],
)
def test_a_wrong_service_is_named(services, sentence):
    assert sentence in "\n".join(problems(master=services))


def test_all_problems_are_said_at_once():
    found = problems(main={"my-hostname": "x"}, aliases={"abuse": ""}, tls_chain="x")
    assert [re.split(r"[.: ]", sentence)[0] for sentence in found] == [
        "postfix_main",
        "postfix_aliases",
        "postfix_tls_chain",
    ]
