"""Untrusted image bytes: what is accepted looks right, everything else is refused with words, and nothing leaks."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from deployments.engines.images.decoding import decode_image, encode_mask, shrink
from policies.errors import InvalidRequest, PayloadTooLarge


def picture(width: int = 40, height: int = 24, mode: str = "RGB") -> Image.Image:
    """A red left half and a blue right half, with a green bar on top."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = (255, 0, 0)
    pixels[:, width // 2 :] = (0, 0, 255)
    pixels[: height // 4] = (0, 255, 0)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that announces many pixels in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_every_format_decodes_to_the_same_colours(kind: str) -> None:
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    image = decode_image(encoded(picture(), kind, **options))
    assert (image.mode, image.size) == ("RGB", (40, 24))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(picture())).max() <= 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_png_mode_becomes_rgb(mode: str) -> None:
    source = picture(mode=mode)
    image = decode_image(encoded(source, "PNG"))
    assert (image.mode, image.size) == ("RGB", (40, 24))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(source.convert("RGB"))).max() <= 1


def test_cmyk_jpeg_becomes_rgb() -> None:
    assert decode_image(encoded(picture(mode="CMYK"), "JPEG")).mode == "RGB"


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, axis=0)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(ramp), "PNG")))
    assert np.array_equal(decoded[0, :, 0], np.arange(256))


def test_16_bit_rgb_is_scaled_not_clipped() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = b"\0" + struct.pack(">6H", 0, 32768, 65535, 65535, 16384, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    decoded = np.asarray(decode_image(data + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")))
    assert decoded.tolist() == [[[0, 128, 255], [255, 64, 0]]]


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert decode_image(encoded(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_palette_with_byte_transparency_does_not_warn() -> None:
    source = picture(mode="P")
    source.info["transparency"] = bytes(range(256))
    assert decode_image(encoded(source, "PNG", transparency=bytes(range(256)))).mode == "RGB"


def test_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "size", "corner"), [(1, (40, 24), (0, 0)), (6, (24, 40), (23, 0)), (3, (40, 24), (39, 23))]
)
def test_exif_orientation_is_applied(
    kind: str, orientation: int, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encoded(picture(), kind, exif=exif))
    assert image.size == size
    red, green, blue = np.asarray(image)[corner[1], corner[0]].astype(int)
    assert green > 150 > max(red, blue)  # the stored picture's first corner


def test_damaged_exif_does_not_cost_the_picture() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert decode_image(data).size == (40, 24)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"this is text, not a picture",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        encoded(picture(), "JPEG")[:300],
        encoded(picture(400, 300), "PNG")[:200],
        encoded(picture(), "BMP")[:500],
        encoded(picture(), "WEBP")[:40],
        encoded(picture(), "TIFF"),
    ],
    ids=[
        "empty",
        "text",
        "svg",
        "pdf",
        "jpeg-start",
        "png-start",
        "jpeg-cut",
        "png-cut",
        "bmp-cut",
        "webp-cut",
        "tiff",
    ],
)
def test_what_is_no_image_is_refused_and_told_what_to_send(data: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_image(data)
    assert (refused.value.code, refused.value.param) == ("invalid_image", "inputs")
    assert "JPEG, PNG, GIF, WebP or BMP" in refused.value.message


@pytest.mark.parametrize("side", [5001, 10_000, 14_000, 60_000])
def test_decompression_bomb_is_refused_from_its_header(side: int) -> None:
    with pytest.raises(PayloadTooLarge) as refused:
        decode_image(bomb(side, side))
    assert "25000000" in refused.value.message
    assert refused.value.param == "inputs"


def test_the_limit_is_the_callers() -> None:
    data = encoded(picture(), "PNG")
    assert decode_image(data, max_pixels=40 * 24).size == (40, 24)
    with pytest.raises(PayloadTooLarge, match="40 x 24 pixels; the limit is 959"):
        decode_image(data, max_pixels=959)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_damaged_files_give_a_picture_or_our_error(kind: str) -> None:
    source, chance = encoded(picture(), kind), random.Random(kind)
    for _ in range(200):
        data = bytearray(source)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            assert decode_image(bytes(data[: chance.randint(1, len(data))]), max_pixels=1_000_000).mode == "RGB"
        except (InvalidRequest, PayloadTooLarge):
            pass


def test_a_mask_is_a_grey_png_of_0_and_255() -> None:
    mask = np.zeros((5, 7), bool)
    mask[2, 3] = True
    image = Image.open(io.BytesIO(encode_mask(mask)))
    assert (image.format, image.mode, image.size) == ("PNG", "L", (7, 5))
    assert np.array_equal(np.asarray(image), mask * np.uint8(255))


def test_shrink_leaves_small_pictures_and_keeps_twice_the_target() -> None:
    small, large = Image.new("RGB", (200, 100)), Image.new("RGB", (4000, 3000))
    assert shrink(small, 64, 64) is small
    assert shrink(large, 240, 320).size == (667, 500)
