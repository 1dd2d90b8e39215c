"""What the data claims of a list, and the comparison with what Mailman has."""

from __future__ import annotations

import base64
import os
import zlib
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest

import mailman as mailman_filters

REPOSITORY = Path(__file__).resolve().parents[2]
ansible.module_utils.__path__.append(str(REPOSITORY / "plugins/module_utils"))

import mailman_lists  # noqa: E402
import mailman_members  # noqa: E402
from ansible.module_utils.mailman_attributes import (  # noqa: E402
    ATTRIBUTES,
    READ_ONLY,
    Claims,
    claims,
    merge,
    seconds,
    setting_fault,
    template_texts,
)
from ansible.module_utils.mailman_csv import parse  # noqa: E402
from ansible.module_utils.mailman_rest import Client, RestError  # noqa: E402

BASE = {"one_click": True, "settings": {"emergency": False, "max_message_size": 10}, "templates": {"footer": "base"}}
PROFILES = {
    "discussion": {"settings": {"max_message_size": 20}, "initial": {"subject_prefix": "[{display_name}] "}},
    "announce": {"posters": ["owners", "^.*@press\\.example$"], "settings": {"default_member_action": "hold"}},
}


def dev(**fields: Any) -> Claims:
    return claims("dev@ml.example.org", {"profile": "discussion"} | fields, BASE, PROFILES)


# --- the merge --------------------------------------------------------------------------------------------------------


def test_list_wins_over_profile_and_profile_over_base():
    assert dev().settings["max_message_size"] == 20
    assert dev(settings={"max_message_size": 30}).settings["max_message_size"] == 30
    assert dev(settings={"max_message_size": 30}).settings["emergency"] is False


def test_lists_are_replaced_and_never_joined():
    merged = merge({"bans": ["a@example.org"]}, {"bans": ["b@example.org"]}, {"bans": ["c@example.org"]})
    assert merged["bans"] == ["c@example.org"]


def test_merge_leaves_the_layers_as_they_were():
    before = {"settings": {"emergency": False}}
    merge(before, {"settings": {"emergency": True}}, {"settings": {"info": "x"}})
    assert before == {"settings": {"emergency": False}}


def test_profile_setting_speaks_of_the_list_that_uses_it():
    assert dev(display_name="日本語").initial["subject_prefix"] == "[日本語] "
    assert dev().initial["subject_prefix"] == "[Dev] "


def test_one_click_needs_a_copy_for_each_member():
    assert dev().settings["personalize"] == "individual"
    assert dev(one_click=False).settings["personalize"] == "none"
    assert dev(settings={"personalize": "full"}).settings["personalize"] == "full"


def test_posters_are_the_owners_by_name_and_others_by_pattern():
    found = claims("news@ml.example.org", {"profile": "announce", "owners": ["olga@example.org"]}, BASE, PROFILES)
    assert found.posters == ["olga@example.org", "^.*@press\\.example$"]
    assert found.settings["accept_these_nonmembers"] == found.posters


def test_what_the_data_does_not_say_is_not_claimed():
    found = dev()
    assert (found.owners, found.moderators, found.bans, found.header_matches, found.members) == (None,) * 5
    assert found.member_domains is None
    assert "description" not in found.settings
    assert dev(bans=[]).bans == []


def test_unknown_profile_is_told():
    with pytest.raises(ValueError, match="did you mean"):
        claims("dev@ml.example.org", {"profile": "discusion"}, BASE, PROFILES)


def test_absent_list_claims_nothing_else():
    assert dev(state="absent") == Claims(address="dev@ml.example.org", absent=True)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "mailman"), [("36h", "1d43200.0s"), ("1w", "7d"), ("90d", "90d"), ("1d12h", "1d43200.0s")]
)
def test_length_of_time_equals_what_mailman_makes_of_it(given, mailman):
    attribute = ATTRIBUTES["bounce_info_stale_after"]
    assert attribute.normal(given) == attribute.normal(mailman)


@pytest.mark.parametrize("value", ["", "d", "7", "7x", "7d ", "d7", None, 7])
def test_what_is_no_length_of_time(value):
    assert seconds(value) is None


def test_order_of_a_list_of_texts_is_no_difference():
    attribute = ATTRIBUTES["accept_these_nonmembers"]
    assert attribute.normal(["b@example.org", "a@example.org"]) == attribute.normal(["a@example.org", "b@example.org"])


def test_values_are_sent_as_mailman_reads_them():
    assert ATTRIBUTES["advertised"].form(False) == "false"
    assert ATTRIBUTES["max_message_size"].form(40) == "40"
    assert ATTRIBUTES["pass_types"].form([]) == []


def test_every_attribute_of_mailman_is_either_settable_or_explained():
    # GET /3.1/lists/<list>/config of Mailman 3.3.10 has these 93 names.
    assert len({*ATTRIBUTES, *READ_ONLY, "moderator_password"}) == 93
    for name in (*READ_ONLY, "moderator_password"):
        assert setting_fault(name, "x")


def test_one_text_serves_every_language_that_mailman_would_ask_for():
    assert template_texts("x", "ja") == {"ja": "x", "en": "x"}
    assert template_texts({"ja": "脚", "en": "foot"}, "en") == {"ja": "脚", "en": "foot"}


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> mailman_lists.TemplateFiles:
    (tmp_path / "templates").mkdir()
    return mailman_lists.TemplateFiles(str(tmp_path / "templates"), "list")


def test_template_is_written_read_and_removed(files, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    files.write("dev.ml.example.org", "ja", "list:member:regular:footer", "脚\n")
    assert files.read("dev.ml.example.org") == {("ja", "list:member:regular:footer"): "脚\n"}
    path = Path(files.directory) / "lists/dev.ml.example.org/ja/list:member:regular:footer.txt"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    files.write("dev.ml.example.org", "ja", "list:member:regular:footer", None)
    assert files.read("dev.ml.example.org") == {}


def test_link_that_mailman_s_user_put_there_is_not_followed(files, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (Path(files.directory) / "lists").mkdir()
    (Path(files.directory) / "lists/dev.ml.example.org").symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        files.write("dev.ml.example.org", "en", "list:member:regular:footer", "x")
    assert list(elsewhere.iterdir()) == []


def test_list_without_files_has_none(files):
    assert files.read("dev.ml.example.org") == {}


# --- members ----------------------------------------------------------------------------------------------------------


def entry(email: str, role: str = "member", **fields: str) -> dict[str, Any]:
    return {"email": email, "role": role, "display_name": "", "delivery_mode": "regular"} | fields


def roster(csv: str, *entries: dict[str, Any], sync: bool = True) -> mailman_members.Roster:
    found = mailman_members.Roster(list(entries), parse(csv.encode()))
    found.compare(sync)
    return found


def test_only_what_differs_is_sent():
    found = roster(
        "address,name\na@example.org,A\nB@example.org,\nc@example.org,C\n",
        entry("a@example.org", display_name="A"),
        entry("b@example.org", display_name="Kept"),
        entry("c@example.org", display_name="Old"),
    )
    assert (found.add, found.remove) == ([], [])
    assert found.change == [{"email": "c@example.org", "role": "member", "display_name": "C"}]


def test_add_removes_nobody():
    assert roster("address\nnew@example.org\n", entry("old@example.org"), sync=False).remove == []


def test_sync_removes_members_and_leaves_owners_alone():
    found = roster("address\nnew@example.org\n", entry("old@example.org"), entry("olga@example.org", "owner"))
    assert [row["email"] for row in found.remove] == ["old@example.org"]


def test_sync_removes_owners_when_the_file_speaks_of_owners():
    found = roster("address,role\nnew@example.org,owner\n", entry("olga@example.org", "owner"))
    assert [row["email"] for row in found.remove] == ["olga@example.org"]


def test_sync_never_removes_who_stands_in_a_refused_row():
    found = roster("address,delivery\nA@example.org,digest\n", entry("a@example.org"), entry("b@example.org"))
    assert [row["email"] for row in found.remove] == ["b@example.org"]


def test_sync_stops_before_it_removes_too_many():
    entries = [entry(f"m{number}@example.org") for number in range(10)]
    keep = "address\n" + "".join(f"m{number}@example.org\n" for number in range(8))
    assert roster(keep, *entries).too_many(20) is None
    assert "would remove 3 of 10" in str(roster(keep.replace("m7@example.org\n", ""), *entries).too_many(20))
    assert "would remove 10 of 10" in str(roster("address\n", *entries).too_many(20))


def test_long_diff_says_how_much_more_there_is():
    csv = "address\n" + "".join(f"m{number}@example.org\n" for number in range(600))
    after = roster(csv).diff("dev@ml.example.org")["after"].splitlines()
    assert len(after) == mailman_members.DIFF_LINES + 1
    assert after[-1] == "… and 100 more"


def test_file_travels_as_its_bytes(tmp_path):
    content = b"\xff\xfea\0d\0" + bytes(range(256))
    (tmp_path / "m.csv").write_bytes(content)
    packed = mailman_filters.packed_file(str(tmp_path / "m.csv"))
    assert zlib.decompress(base64.b64decode(packed)) == content


# --- the way to Mailman -----------------------------------------------------------------------------------------------


def test_mailman_that_does_not_answer_is_told_in_plain_words():
    client = Client("http://127.0.0.1:9", "restadmin", "secret", timeout=2)
    with pytest.raises(RestError, match=r"does not answer .*is mailman3 running") as raised:
        client.get("lists")
    assert "secret" not in str(raised.value)


def test_interface_is_plain_http_on_loopback_only():
    with pytest.raises(RestError, match="must be http://host:port"):
        Client("https://ml.example.org", "restadmin", "secret")
