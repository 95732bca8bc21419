"""Draws the two example pictures, so that a first call needs no data set: a ship to classify, a street to segment.

Usage: python examples/draw_pictures.py [FOLDER]
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]


def gradient(size: tuple[int, int], top: Colour, bottom: Colour) -> Image.Image:
    """A vertical gradient."""
    column = Image.new("RGB", (1, 2))
    column.putdata([top, bottom])
    return column.resize(size, Image.Resampling.BILINEAR)


def ship() -> Image.Image:
    """A cargo ship on the sea, 256 by 256."""
    picture = gradient((256, 256), (150, 190, 225), (215, 228, 236))
    picture.paste(gradient((256, 96), (70, 110, 140), (30, 62, 92)), (0, 160))
    draw = ImageDraw.Draw(picture)
    draw.polygon([(22, 150), (234, 150), (214, 186), (48, 186)], fill=(120, 36, 34))
    draw.polygon([(22, 150), (234, 150), (230, 158), (26, 158)], fill=(40, 44, 52))
    draw.rectangle((168, 102, 212, 150), fill=(232, 232, 228))
    draw.rectangle((176, 110, 206, 118), fill=(60, 80, 96))
    draw.rectangle((184, 84, 200, 102), fill=(190, 70, 50))
    for index, colour in enumerate([(60, 110, 160), (190, 120, 50), (90, 140, 90), (160, 60, 60), (200, 190, 90)]):
        draw.rectangle((48 + 23 * index, 128, 68 + 23 * index, 150), fill=colour)
    rng = random.Random(0)
    for _ in range(160):
        x, y = rng.randrange(256), rng.randrange(188, 256)
        draw.line((x, y, x + rng.randrange(6, 20), y), fill=(96, 136, 164))
    return picture.filter(ImageFilter.GaussianBlur(1.2))


def street() -> Image.Image:
    """A road between buildings and trees with cars and walkers, 480 by 360."""
    picture = gradient((480, 360), (196, 206, 220), (226, 228, 230))
    draw = ImageDraw.Draw(picture)
    draw.polygon([(0, 20), (150, 110), (150, 215), (0, 262)], fill=(116, 92, 76))
    draw.polygon([(480, 0), (330, 105), (330, 215), (480, 268)], fill=(136, 120, 104))
    rng = random.Random(1)
    for column in range(4):
        for row in range(3):
            x, y = 12 + 36 * column, 70 + 14 * column + 46 * row
            draw.rectangle((x, y, x + 16, y + 24 - 3 * column), fill=(56, 60, 68))
            draw.rectangle((462 - x, y - 6, 478 - x, y + 18 - 3 * column), fill=(58, 62, 72))
    for x, y, r in ((172, 150, 34), (204, 162, 26), (300, 152, 30)):
        for _ in range(90):
            a, b, s = rng.gauss(x, r / 2), rng.gauss(y, r / 2), rng.randrange(4, 11)
            draw.ellipse((a - s, b - s, a + s, b + s), fill=(34 + rng.randrange(30), 62 + rng.randrange(40), 34))
        draw.rectangle((x - 3, y + 10, x + 3, y + 62), fill=(64, 52, 44))
    draw.polygon([(0, 262), (210, 210), (270, 210), (480, 268), (480, 360), (0, 360)], fill=(150, 138, 132))
    draw.polygon([(70, 360), (226, 210), (256, 210), (420, 360)], fill=(88, 86, 92))
    for step in range(6):
        y = 226 + step * step * 5
        draw.polygon([(240, y), (243, y), (245, y + 8 + 2 * step), (239, y + 8 + 2 * step)], fill=(220, 220, 214))
    for x, y, w, colour in ((116, 226, 62, (150, 32, 36)), (276, 218, 44, (40, 52, 84))):
        draw.rounded_rectangle((x, y, x + w, y + w // 2), 6, fill=colour)
        draw.rounded_rectangle((x + w // 6, y - w // 4, x + w - w // 6, y + 6), 6, fill=(50, 56, 64))
        for wheel in (x + w // 5, x + 4 * w // 5):
            draw.ellipse((wheel - 6, y + w // 2 - 6, wheel + 6, y + w // 2 + 6), fill=(20, 20, 22))
    for x, y, h in ((396, 214, 92), (430, 220, 100), (60, 232, 84)):
        draw.ellipse((x - h // 14, y, x + h // 14, y + h // 6), fill=(176, 132, 108))
        draw.rounded_rectangle((x - h // 8, y + h // 6, x + h // 8, y + 3 * h // 5), 5, fill=(48, 44, 66))
        draw.polygon(
            [(x - h // 9, y + 3 * h // 5), (x + h // 9, y + 3 * h // 5), (x + h // 12, y + h)], fill=(30, 30, 40)
        )
        draw.polygon(
            [(x - h // 9, y + 3 * h // 5), (x + h // 9, y + 3 * h // 5), (x - h // 10, y + h)], fill=(30, 30, 40)
        )
    return picture.filter(ImageFilter.GaussianBlur(1.0))


def main() -> None:
    """Write ship.jpg and street.jpg."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    ship().save(folder / "ship.jpg", quality=90)
    street().save(folder / "street.jpg", quality=90)


if __name__ == "__main__":
    main()
