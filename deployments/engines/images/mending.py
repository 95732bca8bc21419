"""Files that browsers show and Pillow refuses: metadata it does not take, and a last byte or two that are missing."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_SHOWN = (b"tRNS", b"eXIf")
"""Of a PNG's ancillary chunks those that change what is seen: transparency and orientation."""
_ADOBE, _EXIF = b"Adobe", b"Exif\0\0"
_LEAST = {_ADOBE: 14, _EXIF: 10}
"""Bytes of such a segment, its length included; a shorter one says nothing."""
_END_OF_JPEG = b"\xff\xd9"
_OTHER_BITS = b"".join(b"\x55\xaa" * 8 + bytes([0xFF, 0xD0 + k]) for k in range(8))
"""Pixels, and all markers that may be waited for between them."""


def without_metadata(data: bytes) -> Iterator[bytes]:
    """A PNG or JPEG file without what does not change its pixels, then also without its orientation; nothing else."""
    if data.startswith(_PNG):
        yield _PNG + b"".join(chunk for name, chunk in _chunks(data) if not _ancillary(name) or name in _SHOWN)
        yield _PNG + b"".join(chunk for name, chunk in _chunks(data) if not _ancillary(name) or name == b"tRNS")
    elif data.startswith(b"\xff\xd8"):
        yield b"\xff\xd8" + b"".join(_segments(data, (_ADOBE, _EXIF)))
        yield b"\xff\xd8" + b"".join(_segments(data, (_ADOBE,)))


def two_ends(data: bytes) -> tuple[bytes, bytes] | None:
    """A JPEG file with two ends put to it: where both give one picture, what is missing was no part of it."""
    if not data.startswith(b"\xff\xd8"):
        return None
    # Of missing bits libjpeg makes zeros, which the first end leaves to it.
    bits = data.removesuffix(b"\xff")  # half a marker
    return bits + _END_OF_JPEG, bits + _OTHER_BITS + _END_OF_JPEG


def _ancillary(name: bytes) -> bool:
    return bool(name[:1].islower())


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """A PNG's chunks by name, ancillary ones with a wrong checksum left out."""
    at = len(_PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name, end = data[at + 4 : at + 8], at + 12 + length
        if not _ancillary(name) or zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big"):
            yield name, data[at:end]
        at = end
    yield b"", data[at:]


def _segments(data: bytes, kept: tuple[bytes, ...]) -> Iterator[bytes]:
    """A JPEG's segments after its first marker: of those of applications, and comments, only some kinds."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # any number of these may stand before a marker
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        of_an_application = 0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE
        kind = next((name for name in kept if data[at + 4 : at + 12].startswith(name)), b"")
        if not of_an_application or (kind and end - at - 2 >= _LEAST[kind]):
            yield data[at:end]
        at = end
    yield data[at:]
