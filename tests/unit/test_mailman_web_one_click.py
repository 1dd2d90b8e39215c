"""The token of a one-click unsubscription: what it names comes back, and nothing that was changed does."""

from __future__ import annotations

import importlib.util
import string
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

SOURCE = Path(__file__).resolve().parents[2] / "roles/mailman/files/core/mailman_estate/one_click.py"
_spec = importlib.util.spec_from_file_location("mailman_estate_one_click", SOURCE)
one_click = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(one_click)

KEY, OLD_KEY = "k" * 43, "o" * 43
LIST, MEMBER = "dev.ml.example.org", uuid.UUID("c0ffee00c0ffee00c0ffee00c0ffee00")
LIST_IDS = st.text(alphabet="abcxyz0189-_.+=!$*{}~", min_size=1, max_size=200)


@given(LIST_IDS, st.uuids())
def test_what_was_written_is_read_back(list_id, member_id):
    token = one_click.make_token(KEY, list_id, member_id)
    assert one_click.read_token(KEY, token) == (list_id, member_id.hex)
    assert set(token) <= set(string.ascii_letters + string.digits + "-_"), "it must pass through every URL parser"


def test_the_three_spellings_of_a_member_id_are_one():
    tokens = {one_click.make_token(KEY, LIST, spelling) for spelling in (MEMBER, MEMBER.hex, str(MEMBER), MEMBER.int)}
    assert len(tokens) == 1


def test_a_header_line_with_the_token_is_short_enough_for_every_relay():
    token = one_click.make_token(KEY, LIST, MEMBER)
    assert len(f"List-Unsubscribe: <https://ml.example.org/unsubscribe/{token}>") < 200
    assert b"alice" not in one_click.base64.urlsafe_b64decode(token + "==")


@given(st.data())
def test_a_token_with_one_changed_character_is_refused(data):
    token = one_click.make_token(KEY, LIST, MEMBER)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from(string.ascii_letters + string.digits + "-_").filter(lambda c: c != token[place]))
    with pytest.raises(ValueError, match="token"):
        one_click.read_token(KEY, token[:place] + other + token[place + 1 :])


@pytest.mark.parametrize(
    "mangle",
    [
        str.lower,
        str.upper,
        lambda t: t[:-1],
        lambda t: t + "A",
        lambda t: t + "=",
        lambda t: t + "\n",
        lambda t: " " + t,
        lambda t: t[:50],
        lambda t: t * 9,
        lambda t: "",
        lambda t: "é" * 60,
        lambda t: t + "%0a",
        lambda t: t + "/",
    ],
)
def test_a_mangled_token_is_refused(mangle):
    with pytest.raises(ValueError, match="token"):
        one_click.read_token(KEY, mangle(one_click.make_token(KEY, LIST, MEMBER)))


@given(st.text(max_size=500))
def test_noise_is_refused_with_a_plain_error(noise):
    with pytest.raises(ValueError, match="token"):
        one_click.read_token(KEY, noise)


def test_another_site_s_token_is_refused():
    with pytest.raises(ValueError, match="not signed by this site"):
        one_click.read_token("x" * 43, one_click.make_token(KEY, LIST, MEMBER))


def test_a_retired_key_still_verifies_and_no_longer_signs():
    old = one_click.make_token(OLD_KEY, LIST, MEMBER)
    assert one_click.read_token([KEY, OLD_KEY], old) == (LIST, MEMBER.hex)
    assert one_click.make_token([KEY, OLD_KEY], LIST, MEMBER) == one_click.make_token(KEY, LIST, MEMBER)
    with pytest.raises(ValueError, match="not signed by this site"):
        one_click.read_token([KEY], old)


@pytest.mark.parametrize(
    ("list_id", "member_id"),
    [
        ("", MEMBER),
        ("a b", MEMBER),
        ("a\nb", MEMBER),
        ("x" * 256, MEMBER),
        ("a@b", MEMBER),
        ("名簿", MEMBER),
        (LIST, "nobody"),
        (LIST, -1),
        (LIST, 1 << 128),
        (LIST, None),
    ],
)
def test_what_names_no_membership_gets_no_token(list_id, member_id):
    with pytest.raises(ValueError, match=r"is no (list|member) id"):
        one_click.make_token(KEY, list_id, member_id)


def test_keys_come_from_a_file_the_signing_one_first(tmp_path):
    path = tmp_path / "unsubscribe.key"
    path.write_text(f"# 2026\n{KEY}\n\n# 2025\n{OLD_KEY}\n")
    assert one_click.load_keys(path) == (KEY.encode(), OLD_KEY.encode())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "there is no key"),
        ("# nothing\n", "there is no key"),
        ("short\n", "fewer than 32"),
        (f"{KEY}\nshort\n", "fewer than 32"),
    ],
)
def test_a_key_file_that_protects_nothing_is_refused_without_quoting_it(tmp_path, content, sentence):
    path = tmp_path / "unsubscribe.key"
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence) as error:
        one_click.load_keys(path)
    assert "short" not in str(error.value)
