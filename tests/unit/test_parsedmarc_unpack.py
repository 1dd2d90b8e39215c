"""What comes out of an attachment is bounded, whatever is in it."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsedmarc_intake.unpack import TooLarge, Unreadable, unpack


def zipped(*files: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", compression) as writer:
        for name, content in files:
            writer.writestr(name, content)
    return archive.getvalue()


@given(st.binary(max_size=3000))
def test_content_comes_out_as_it_went_in(content):
    assert unpack(gzip.compress(content), 3000) == content
    assert unpack(zipped(("report.xml", content)), 3000) == content


def test_all_members_of_a_gzip_file_count():
    two = gzip.compress(b"a" * 100) + gzip.compress(b"b" * 100)
    assert unpack(two, 200) == b"a" * 100 + b"b" * 100
    with pytest.raises(TooLarge):
        unpack(two, 199)


@pytest.mark.parametrize("pack", [gzip.compress, lambda content: zipped(("r", content)), lambda content: content])
def test_limit_is_the_last_size_that_is_allowed(pack):
    assert len(unpack(pack(b"x" * 1000), 1000)) == 1000
    with pytest.raises(TooLarge):
        unpack(pack(b"x" * 1001), 1000)


def test_bomb_is_not_unpacked_further_than_the_limit():
    with pytest.raises(TooLarge):
        unpack(gzip.compress(b"\0" * (200 << 20), 1), 1 << 20)


def test_size_that_the_archive_claims_is_not_believed():
    archive = bytearray(zipped(("r", b"x" * 5000)))
    place = archive.rfind(b"PK\x01\x02")
    struct.pack_into("<I", archive, place + 24, 10)
    with pytest.raises((TooLarge, Unreadable)):
        unpack(bytes(archive), 1000)


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(b"report")[:-9],
        gzip.compress(b"report" * 1000)[:12] + b"\xff" * 30,
        zipped(("r", b"report"))[:-20],
        zipped(),
        zipped(*((str(number), b"") for number in range(11))),
        zipped(("r", b"report"), compression=zipfile.ZIP_LZMA),
        zipped(("r", b"report"), compression=zipfile.ZIP_BZIP2),
    ],
)
def test_broken_and_unusual_archives_are_told_apart_from_large_ones(data):
    if not data.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        assert unpack(data, 1000) == data
    else:
        with pytest.raises(Unreadable):
            unpack(data, 1000)


def test_encrypted_archive_is_unreadable():
    archive = bytearray(zipped(("r", b"report")))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        archive[archive.find(mark) + offset] |= 1
    with pytest.raises(Unreadable, match="encrypted"):
        unpack(bytes(archive), 1000)


@given(st.sampled_from([b"\x1f\x8b", b"PK\x03\x04"]), st.binary(max_size=200))
def test_nothing_but_the_two_errors_comes_of_rubbish(start, rest):
    with suppress(TooLarge, Unreadable):
        unpack(start + rest, 1000)
