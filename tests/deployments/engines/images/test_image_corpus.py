"""Pictures of every kind against a reference decoder: what a browser shows is judged, half a picture never is."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from deployments.engines.images.decoding import decode_image
from policies.errors import InvalidRequest, PayloadTooLarge, ServiceError

SIZE = (41, 23)
"""Odd, so that rows are padded and blocks are cut."""


def scene(mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Colours, and half-clear places where the mode has them."""
    chance = np.random.default_rng(seed)
    smooth = Image.fromarray(chance.integers(0, 256, (5, 7, 4), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    if mode in ("RGBA", "LA", "PA"):
        return smooth.convert(mode)
    if mode == "I;16":
        return Image.fromarray(chance.integers(0, 65536, SIZE[::-1], dtype=np.uint16))
    return smooth.convert("RGB").convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ wrong)


def with_chunk(data: bytes, *more: bytes) -> bytes:
    """A PNG with more chunks after its header."""
    return data[:33] + b"".join(more) + data[33:]


def with_segment(data: bytes, marker: int, payload: bytes) -> bytes:
    """A JPEG with one more segment at its start."""
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload + data[2:]


def oriented(kind: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(scene(), kind, exif=exif, **options)


def bmp32(alpha: int) -> bytes:
    """A BMP of 32 bits with masks for all four channels."""
    pixels = np.dstack([np.asarray(scene())[::-1, :, ::-1], np.full(SIZE[::-1], alpha, np.uint8)])
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, *SIZE, 1, 32, 3, pixels.size, 0, 0, 0, 0) + masks + b"BGRs" + bytes(48)
    return struct.pack("<2sIHHI", b"BM", 122 + pixels.size, 0, 0, 122) + info + pixels.tobytes()


def frames() -> list[Image.Image]:
    return [scene(seed=k) for k in range(3)]


PNG, JPEG = encoded(scene(), "PNG"), encoded(scene(), "JPEG", quality=90)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
INTACT: dict[str, Callable[[], bytes]] = {
    **{f"PNG {mode}": lambda mode=mode: encoded(scene(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    "PNG I;16": lambda: encoded(scene("I;16"), "PNG"),
    "PNG P, a clear colour": lambda: encoded(scene("P"), "PNG", transparency=7),
    "PNG P, half clear": lambda: encoded(scene("P"), "PNG", transparency=bytes(range(256))),
    "PNG L, a clear grey": lambda: encoded(scene("L"), "PNG", transparency=int(np.asarray(scene("L"))[0, 0])),
    "PNG RGB, a clear colour": lambda: encoded(scene(), "PNG", transparency=scene().getpixel((0, 0))),
    **{f"JPEG {mode}": lambda mode=mode: encoded(scene(mode), "JPEG") for mode in ("L", "RGB", "CMYK")},
    "JPEG progressive": lambda: encoded(scene(), "JPEG", progressive=True),
    "JPEG of a thin quality": lambda: encoded(scene(), "JPEG", quality=1, subsampling=2),
    "JPEG with restarts": lambda: encoded(scene(), "JPEG", restart_marker_blocks=1),
    **{f"GIF {mode}": lambda mode=mode: encoded(scene(mode), "GIF") for mode in ("1", "L", "P", "RGBA")},
    **{f"WEBP {mode}": lambda mode=mode: encoded(scene(mode), "WEBP", lossless=True) for mode in ("RGB", "RGBA")},
    "WEBP lossy": lambda: encoded(scene("RGBA"), "WEBP", quality=60),
    **{f"BMP {mode}": lambda mode=mode: encoded(scene(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")},
    "BMP 32, opaque": lambda: bmp32(255),
    "BMP 32, half clear": lambda: bmp32(90),
    "MPO": lambda: encoded(frames()[0], "MPO", save_all=True, append_images=frames()[1:]),
    **{
        f"animated {kind}": lambda kind=kind: encoded(frames()[0], kind, save_all=True, append_images=frames()[1:])
        for kind in ("GIF", "PNG", "WEBP")
    },
    **{f"EXIF {k} {kind}": lambda k=k, kind=kind: oriented(kind, k)
       for k in range(10) for kind in ("JPEG", "PNG", "WEBP")},
    **{f"ICC {kind}": lambda kind=kind: encoded(scene(), kind, icc_profile=SRGB) for kind in ("JPEG", "PNG", "WEBP")},
}  # fmt: skip


def reference(data: bytes) -> np.ndarray:
    """What Pillow and the web's rules say, by other ways than the product's: [h, w, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I"):
            return np.round(np.asarray(image)[..., None] / 257).astype(np.uint8).repeat(3, 2)
        upright = ImageOps.exif_transpose(image)
        layer = np.asarray(upright.convert("RGBA")).astype(float)
    alpha = layer[..., 3:] / 255 if upright.has_transparency_data else 1.0
    return np.asarray(np.round(layer[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8))


@pytest.mark.parametrize("kind", INTACT)
def test_a_picture_is_what_the_reference_shows(kind: str) -> None:
    data = INTACT[kind]()
    image = decode_image(data)
    wanted = reference(data)
    assert (image.mode, image.size) == ("RGB", (wanted.shape[1], wanted.shape[0]))
    assert np.abs(np.asarray(image).astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("kind", INTACT)
def test_a_file_cut_short_is_the_whole_picture_or_none(kind: str) -> None:
    """At every tenth byte, and at each of the last 40; what is cut off may be of no pixel."""
    data = INTACT[kind]()
    whole = np.asarray(decode_image(data)).astype(int)
    shown = 0
    for end in sorted({*range(0, len(data), 10), *range(max(0, len(data) - 40), len(data))}):
        try:
            image = decode_image(data[:end])
        except ServiceError as error:
            assert error.code == "invalid_image", end
        else:
            shown += 1
            if not kind.startswith("JPEG progressive"):  # of which a cut may leave all blocks, some of them coarse
                assert np.array_equal(np.asarray(image), whole), f"{end} of {len(data)}"
    assert shown or not kind.startswith(("JPEG", "MPO", "PNG"))


METADATA: dict[str, tuple[bytes, bytes]] = {
    "zTXt of 3 MB": (with_chunk(PNG, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000)))), PNG),
    "zTXt behind the pixels": (PNG[:-12] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000))) + PNG[-12:], PNG),
    "iTXt of 3 MB": (with_chunk(PNG, chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(3_000_000)))), PNG),
    "profile of 3 MB": (with_chunk(PNG, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(3_000_000)))), PNG),
    "a profile that is none": (with_chunk(PNG, chunk(b"iCCP", b"k\0\7garbage")), PNG),
    "many texts": (with_chunk(PNG, *[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000)))] * 80), PNG),
    "a wrong checksum": (with_chunk(PNG, chunk(b"tEXt", b"k\0hello", wrong=1)), PNG),
    "a wrong checksum of a profile": (with_chunk(PNG, chunk(b"iCCP", b"k\0\0" + zlib.compress(b"p"), wrong=1)), PNG),
    "a wrong checksum of a time": (with_chunk(PNG, chunk(b"tIME", bytes(7), wrong=1)), PNG),
    "a wrong checksum behind": (PNG[:-12] + chunk(b"tEXt", b"k\0hello", wrong=1) + PNG[-12:], PNG),
    "short pHYs": (with_chunk(PNG, chunk(b"pHYs", b"\0")), PNG),
    "short gAMA": (with_chunk(PNG, chunk(b"gAMA", b"")), PNG),
    "short cHRM": (with_chunk(PNG, chunk(b"cHRM", b"\0\0")), PNG),
    "an animation of nothing": (with_chunk(PNG, chunk(b"acTL", b"\0")), PNG),
    "a PNG's EXIF that is none": (with_chunk(PNG, chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")), PNG),
    **{
        f"{name} that is none": (with_segment(JPEG, marker, payload), JPEG)
        for name, marker, payload in (
            ("JFIF", 0xE0, b"JFIF\0"),
            ("EXIF", 0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
            ("XMP", 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
            ("a profile", 0xE2, b"ICC_PROFILE\0"),
            ("a second picture", 0xE2, b"MPF\0MM\0*\xff\xff\xff\xff"),
            ("FlashPix", 0xE2, b"FPXR\0"),
            ("Photoshop", 0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0"),
            ("Photoshop's end", 0xED, b"Photoshop 3.0\x008BIM"),
            ("a comment", 0xFE, b""),
        )
    },
    "a JPEG's 3 MB": (JPEG[:2] + (b"\xff\xe1\xff\xff" + bytes(65533)) * 46 + JPEG[2:], JPEG),
    "a JPEG's last bytes": (JPEG[:-2], JPEG),
    "a JPEG's last byte": (JPEG[:-1], JPEG),
    "a progressive JPEG's last bytes": (encoded(scene(), "JPEG", progressive=True)[:-2],
                                        encoded(scene(), "JPEG", progressive=True)),
    "a PNG's last chunk": (PNG[:-12], PNG),
    "a GIF's last byte": (encoded(scene("P"), "GIF")[:-1], encoded(scene("P"), "GIF")),
    "a BMP's padding": (encoded(scene("L"), "BMP")[:-3], encoded(scene("L"), "BMP")),
    "bytes behind the end": (PNG + bytes(1000), PNG),
    "bytes behind a JPEG's end": (JPEG + b"trailer" * 100, JPEG),
}  # fmt: skip


@pytest.mark.parametrize("kind", METADATA)
def test_metadata_and_missing_ends_cost_no_good_picture(kind: str) -> None:
    data, plain = METADATA[kind]
    tracemalloc.start()
    try:
        image = decode_image(data)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data) + 80_000_000
    finally:
        tracemalloc.stop()
    assert np.array_equal(np.asarray(image), reference(plain))


def test_orientation_is_kept_where_other_metadata_is_damaged() -> None:
    wanted = reference(oriented("PNG", 6))
    damaged = with_chunk(oriented("PNG", 6), chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000))))
    assert np.array_equal(np.asarray(decode_image(damaged)), wanted)
    jpeg = with_segment(oriented("JPEG", 8), 0xEE, b"Adobe")
    assert decode_image(jpeg).size == SIZE[::-1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_orientation_is_read_from_exif_of_which_the_rest_is_damaged(kind: str) -> None:
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHII", 0x9286, 7, 5000, 0xFFFFFF)
    exif = b"MM\0*" + struct.pack(">IH", 8, 2) + entries + struct.pack(">I", 0xFFFFFF)
    if kind == "PNG":
        data = with_chunk(PNG, chunk(b"eXIf", exif))
    else:
        data = with_segment(JPEG, 0xE1, b"Exif\0\0" + exif)
    wanted = np.rot90(reference(PNG if kind == "PNG" else JPEG), -1)
    assert np.array_equal(np.asarray(decode_image(data)), wanted)


def test_a_large_picture_behind_damaged_metadata_is_too_large() -> None:
    with pytest.raises(PayloadTooLarge, match="41 x 23 pixels; the limit is 100"):
        decode_image(METADATA["zTXt of 3 MB"][0], max_pixels=100)


def test_a_bmp_whose_alpha_is_all_zero_shows_its_colours() -> None:
    assert np.array_equal(np.asarray(decode_image(bmp32(0))), np.asarray(scene()))


@pytest.mark.parametrize("colours", [0, 2])
def test_a_clear_colour_of_16_bits_is_white(colours: int) -> None:
    value = (0x1234,) if colours == 0 else (0x1234, 0x5678, 0x9ABC)
    row = b"\0" + struct.pack(f">{2 * len(value)}H", *value, *([0xFFFF] * len(value)))
    header = struct.pack(">IIBBBBB", 2, 1, 16, colours, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", struct.pack(f">{len(value)}H", *value))
    image = decode_image(data + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b""))
    assert np.asarray(image).tolist() == [[[255, 255, 255], [255, 255, 255]]]


def test_a_wrong_checksum_of_the_header_is_still_damage() -> None:
    data = bytearray(PNG)
    data[29] ^= 1
    with pytest.raises(InvalidRequest):
        decode_image(bytes(data))


@pytest.mark.parametrize(("kind", "mode"), [(kind, "RGB") for kind in ("TIFF", "ICO", "PPM", "TGA")] + [("TIFF", "F")])
def test_other_formats_are_refused(kind: str, mode: str) -> None:
    with pytest.raises(InvalidRequest, match="send a complete JPEG, PNG, GIF, WebP or BMP file"):
        decode_image(encoded(scene(mode), kind))


@pytest.mark.parametrize("kind", INTACT)
def test_a_damaged_file_is_a_picture_or_a_client_error(kind: str) -> None:
    source, chance = INTACT[kind](), random.Random(kind)
    for _ in range(40):
        data = bytearray(source)
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            assert decode_image(bytes(data), max_pixels=1_000_000).mode == "RGB"
        except ServiceError as error:
            assert error.code in ("invalid_image", "image_too_large")


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16"])
def test_a_large_picture_takes_a_few_bytes_a_pixel(mode: str) -> None:
    """Beyond the file; Pillow's own pixels are not seen by tracemalloc, numpy's are."""
    big = Image.new(mode, (2000, 1500), 40_000 if mode == "I;16" else None)
    data = encoded(big, "PNG")
    tracemalloc.start()
    try:
        decode_image(data)
        assert tracemalloc.get_traced_memory()[1] < 8 * 3_000_000
    finally:
        tracemalloc.stop()
