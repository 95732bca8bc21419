"""Segments a picture as gold, as free and turned towards pedestrians, and draws the masks side by side.

Usage: set -a; . .data/demo.env; set +a; python examples/show_masks.py [PICTURE] [OUT.png]
"""

import base64
import io
import os
import sys

import httpx
from PIL import Image

COLOURS = {
    "sky": "#808080", "building": "#800000", "pole": "#c0c080", "road": "#804080", "pavement": "#3c28de",
    "tree": "#808000", "sign": "#c08080", "fence": "#404080", "car": "#400080", "pedestrian": "#ffe600",
    "bicyclist": "#0080c0",
}  # fmt: skip
path, out = [*sys.argv[1:], *["examples/street.jpg", "masks.png"][len(sys.argv) - 1 :]][:2]
picture = Image.open(path).convert("RGB")
strip = Image.new("RGB", (picture.width * 4, picture.height))
strip.paste(picture)
for column, (key, query) in enumerate([("GOLD", ""), ("FREE", ""), ("GOLD", "?focus=pedestrian=0.9")], start=1):
    answer = httpx.post(
        f"{os.environ['BASE_URL']}/models/segformer-b0-camvid{query}",
        content=open(path, "rb").read(),
        headers={"Authorization": f"Bearer {os.environ[key + '_KEY']}"},
        timeout=60,
    )
    answer.raise_for_status()
    for part in answer.json():
        mask = Image.open(io.BytesIO(base64.b64decode(part["mask"])))
        strip.paste(COLOURS[part["label"]], (picture.width * column, 0), mask)
strip.save(out)
print(f"{out}: the picture, gold, free, gold with focus on pedestrians")
