"""Untrusted bytes to RGB pictures and back to PNG masks: the only place where Pillow meets a client's file.

Decisions: EXIF orientation is applied, so an answer (and a mask's width and height) fits the picture as viewers show
it; transparency is laid over white; of an animation the first frame counts; 16-bit samples are scaled to 8 bits; colour
profiles are ignored, as in training. Metadata never costs a good picture, and a picture with a part missing is none.
"""

from __future__ import annotations

import colorsys
import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from PIL import Image, ImageOps

from deployments.engines.images.mending import two_ends, without_metadata
from policies.errors import InvalidRequest, PayloadTooLarge

MAX_SIDE = 16_384
"""Pixels. A mask of a long thin picture would be upsampled to gigabytes."""
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
MAX_PIXELS = 25_000_000
MOST_COLOURS = 256
"""Of a PNG's palette."""
_ACCEPTED = "a complete JPEG, PNG, GIF, WebP or BMP file"
_ORIENTATION_TAG = 0x0112
_TO_8_BITS = ((np.arange(65536, dtype=np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
_warning_filters = threading.Lock()


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one picture. Safe from any thread.

    Args:
        data: a whole JPEG, PNG, GIF, WebP or BMP file.
        max_pixels: width times height, checked from the header before any pixel is decoded.

    Returns:
        A loaded picture in mode RGB, upright as its EXIF orientation says.

    Raises:
        InvalidRequest: empty, truncated, or not one of these formats; code `invalid_image`, param `inputs`.
        PayloadTooLarge: more pixels than `max_pixels`; code `image_too_large`, param `inputs`.
    """
    if not data:
        raise _invalid("The image is empty")
    try:
        return _decoded(data, max_pixels)
    except PayloadTooLarge:
        raise
    except Exception:  # Pillow's plugins raise nearly anything on a damaged file
        mended = _mended(data, max_pixels)
    if mended is None:
        raise _invalid("The image is damaged or incomplete, or of no known format")
    return mended


def _decoded(data: bytes, max_pixels: int) -> Image.Image:
    with _open(data, max_pixels) as image:
        image.load()
        return _upright(_to_rgb(image), _orientation(image))


def _mended(data: bytes, max_pixels: int) -> Image.Image | None:
    """The picture of a file of which only metadata is damaged, or only bytes are missing that are no part of it."""
    for bare in without_metadata(data):
        try:
            return _decoded(bare, max_pixels)
        except PayloadTooLarge:
            raise
        except Exception:  # of what is damaged elsewhere
            continue
    if ends := two_ends(data):
        with suppress(Exception):
            one, other = (_decoded(whole, max_pixels) for whole in ends)
            return one if one.tobytes() == other.tobytes() else None
    return None


def encode_mask(mask: np.ndarray) -> bytes:
    """A boolean mask [height, width] as a PNG of mode L, 255 where it is true."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def encode_label_map(labels: np.ndarray, classes: int) -> bytes:
    """Class numbers [height, width] as a PNG of mode P, in colours told apart; of over 256 classes I;16."""
    if classes > MOST_COLOURS:
        image = Image.fromarray(labels.astype(np.uint16))
    else:
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(_colours(classes))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def _colours(classes: int) -> list[int]:
    """Red, green and blue of each class: hues a golden section apart, in three shades."""
    return [
        round(255 * part)
        for k in range(classes)
        for part in colorsys.hsv_to_rgb(k * 0.618034 % 1.0, 0.65, (0.95, 0.75, 0.55)[k % 3])
    ]


def shrink(image: Image.Image, height: int, width: int) -> Image.Image:
    """Box-reduce a picture that is many times larger than its target, to no less than twice the target.

    A 25-megapixel photograph would otherwise become 300 MB of float32 on its way to a few hundred pixels.
    """
    factor = min(image.height // (2 * height), image.width // (2 * width))
    return image.reduce(factor) if factor > 1 else image


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header alone."""
    try:
        with _quiet():
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_large("too many", max_pixels) from None
    width, height = image.size
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise _too_large(f"{width} x {height}", max_pixels)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale, which convert() would clip at 255
        samples = np.asarray(image).clip(0, 65535)
        grey = _TO_8_BITS[samples]
        if (clear := image.info.get("transparency")) is not None:
            grey[samples == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if not image.has_transparency_data or _all_clear(image):
        return image.convert("RGB")
    if (
        isinstance(clear := image.info.get("transparency"), tuple) and max(clear) > 255
    ):  # of 16 bits, as no pixel is now
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    layer = image.convert("RGBA")
    white = Image.new("RGB", layer.size, "white")
    white.paste(layer, mask=layer)
    return white


def _all_clear(image: Image.Image) -> bool:
    """Whether it is a BMP whose writer left the fourth byte at zero: viewers show its colours."""
    return image.format == "BMP" and image.mode == "RGBA" and image.getextrema()[-1] == (0, 0)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or it cannot be read: metadata never costs a good picture."""
    try:
        with _quiet():
            return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    image.info = {}  # the file's metadata, which may be damaged, and which would be read and written again
    image.getexif()[_ORIENTATION_TAG] = orientation
    return ImageOps.exif_transpose(image)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings on damaged headers and large pictures. Held only for parsing, since the filters are the process's."""
    with _warning_filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _invalid(what: str) -> InvalidRequest:
    return InvalidRequest(f"{what}; send {_ACCEPTED}.", param="inputs", code="invalid_image")


def _too_large(size: str, max_pixels: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The image has {size} pixels; the limit is {max_pixels} (width times height). Send a smaller one.",
        param="inputs",
        code="image_too_large",
    )
