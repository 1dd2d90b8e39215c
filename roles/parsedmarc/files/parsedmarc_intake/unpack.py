"""Unpack an attachment with a limit: gzip, zip or neither; never more in memory than the limit and a little.

Only what parsedmarc would unpack is unpacked: all of a gzip stream, the first file of a zip archive.
"""

from __future__ import annotations

import io
import zipfile
import zlib

GZIP = b"\x1f\x8b"
ZIP = b"PK\x03\x04"
STEP = 1 << 16
#: A report's archive holds one file (RFC 9990, section 3.5.1); a little lenience is harmless.
MAX_FILES = 10


class TooLarge(Exception):
    """More comes out than is allowed."""


class Unreadable(Exception):
    """Not an archive after all, or a broken, encrypted or unusual one."""


def unpack(data: bytes, limit: int) -> bytes:
    """The content of an attachment.

    Raises TooLarge when more than ``limit`` bytes come out, Unreadable when nothing sensible does.
    """
    if data.startswith(GZIP):
        return _gunzip(data, limit)
    if data.startswith(ZIP):
        return _unzip(data, limit)
    if len(data) > limit:
        raise TooLarge(f"The report is larger than {limit} bytes.")
    return data


def _gunzip(data: bytes, limit: int) -> bytes:
    content = bytearray()
    rest = memoryview(data)
    try:
        while rest[:2] == GZIP:
            stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
            packed: bytes | memoryview = rest
            while packed and not stream.eof:
                content += stream.decompress(packed, min(STEP, limit + 1 - len(content)))
                if len(content) > limit:
                    raise TooLarge(f"More than {limit} bytes come out of {len(data)} bytes of gzip.")
                packed = stream.unconsumed_tail
            if not stream.eof:
                raise Unreadable("The gzip stream is cut off.")
            rest = rest[len(rest) - len(stream.unused_data) :]
    except zlib.error as error:
        raise Unreadable(f"The gzip stream is broken: {error}") from error
    return bytes(content)


def _unzip(data: bytes, limit: int) -> bytes:
    content = bytearray()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = archive.infolist()
            if not files or len(files) > MAX_FILES:
                raise Unreadable(f"The zip archive holds {len(files)} files; a report is one.")
            first = files[0]
            if first.flag_bits & 1:
                raise Unreadable("The zip archive is encrypted.")
            if first.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Unreadable("The zip archive is packed in an unusual way.")
            with archive.open(first) as file:
                while chunk := file.read(STEP):
                    content += chunk
                    if len(content) > limit:
                        raise TooLarge(f"More than {limit} bytes come out of {len(data)} bytes of zip.")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise Unreadable(f"The zip archive is broken: {error}") from error
    return bytes(content)
