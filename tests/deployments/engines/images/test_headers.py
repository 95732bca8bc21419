"""A picture's size by its header: what Pillow reads, and nothing on anything else."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deployments.engines.images.headers import pixels

SIDES = st.integers(1, 300)
KINDS = {
    "JPEG": ("RGB", {}),
    "JPEG, progressive": ("L", {"progressive": True}),
    "JPEG, commented": ("RGB", {"comment": b"x" * 50_000, "exif": b"Exif\0\0" + b"y" * 9000}),
    "JPEG, CMYK": ("CMYK", {}),
    "PNG": ("RGBA", {}),
    "GIF": ("P", {}),
    "BMP": ("RGB", {}),
    "WEBP": ("RGB", {}),
    "WEBP, lossless": ("RGBA", {"lossless": True}),
    "WEBP, extended": ("RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
}


def file(kind: str, width: int, height: int) -> bytes:
    mode, options = KINDS[kind]
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, kind.partition(",")[0], **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(width=SIDES, height=SIDES)
def test_the_size_is_what_pillow_reads(kind: str, width: int, height: int) -> None:
    data = file(kind, width, height)
    with Image.open(io.BytesIO(data)) as image:
        assert pixels(data) == image.width * image.height == width * height


@settings(deadline=None)
@given(kind=st.sampled_from([*KINDS]), cut=st.integers(0, 200), at=st.integers(0, 60), put=st.binary(max_size=8))
def test_of_damaged_files_it_tells_something_and_never_fails(kind: str, cut: int, at: int, put: bytes) -> None:
    data = file(kind, 30, 20)
    assert pixels(data[:cut]) >= 0 and pixels(data[:at] + put + data[at + len(put) :]) >= 0


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8" + b"\xff\xe0\0\0" * 10**6, b"\xff" * 10**6, b"text" * 9]
)
def test_what_is_no_picture_has_no_size(data: bytes) -> None:
    assert pixels(data) == 0
