"""Character sets that a message may name and nobody can decode."""

from __future__ import annotations

import pytest

from mailman_estate.charsets import decodes


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "us-ascii", "iso-2022-jp", "shift_jis", "iso-8859-15", "cp932"])
def test_real_character_sets_stay(charset):
    assert decodes(charset)


@pytest.mark.parametrize("charset", ["no-such", "", "base64", "rot13", "undefined", "idna", "a\0b", "x" * 10_000])
def test_what_is_no_character_set_of_text_is_told(charset):
    assert not decodes(charset)
