"""Untrusted bytes to RGB pictures and back to PNG masks: the only place where Pillow meets a client's file.

Decisions: EXIF orientation is applied, so an answer (and a mask's width and height) fits the picture as viewers show
it; transparency is laid over white; of an animation the first frame counts; 16-bit samples are scaled to 8 bits.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from policies.errors import InvalidRequest, PayloadTooLarge, ServiceError

MAX_SIDE = 16_384
"""Pixels. A mask of a long thin picture would be upsampled to gigabytes."""
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
MAX_PIXELS = 25_000_000
_ACCEPTED = "a complete JPEG, PNG, GIF, WebP or BMP file"
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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
        with _open(data, max_pixels) as image:
            image.load()
            return _upright(_to_rgb(image), _orientation(image))
    except ServiceError:
        raise
    except Exception:  # Pillow's plugins raise nearly anything on a damaged file
        raise _invalid("The image is damaged or incomplete") from None


def encode_mask(mask: np.ndarray) -> bytes:
    """A boolean mask [height, width] as a PNG of mode L, 255 where it is true."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


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
    except Exception:
        raise _invalid("The body is not an image of a known format, or its header is damaged") from None
    width, height = image.size
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise _too_large(f"{width} x {height}", max_pixels)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale, which convert() would clip at 255
        samples = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((samples * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or it cannot be read: metadata never costs a good picture."""
    try:
        with _quiet():
            return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    transpose = _ORIENTATIONS.get(orientation)
    return image if transpose is None else image.transpose(transpose)


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
