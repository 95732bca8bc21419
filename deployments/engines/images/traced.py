"""Pictures and answers that somebody gave to them, as what can be traced to a level."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deployments.engines.errors import LoadError, first_line
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.decoding import decode_image
from deployments.engines.images.engine import VisionEngine
from deployments.engines.images.segmenter import ImageSegmenter, logits_at
from policies.errors import ServiceError
from policies.head.blocks import block_means
from policies.provenance.answers import Answers

MOST_SQUARES = 2**16
"""Of all pictures together; more would say no more."""
_UNKNOWN = 255


def traced_picture(engine: VisionEngine, picture: Path, answer: Any, pictures: int = 1) -> Answers:
    """One picture's answer: a row of a label, or of a mask one for each square that shares its noise.

    Args:
        answer: a label; for masks the path of a PNG of class indices at the picture's size (255: not known), or of a
            JSON file with what the API answered. What the API answered may stand here itself, in both cases.
        pictures: how many there are in all.

    Raises:
        LoadError: a file that cannot be read, an unknown class, or a mask of another size.
    """
    try:
        image = decode_image(picture.read_bytes())
    except (ServiceError, OSError) as error:
        reason = error.message if isinstance(error, ServiceError) else error.strerror
        raise LoadError(f"{picture}: {reason}") from error
    if isinstance(engine, ImageSegmenter):
        return _traced_mask(engine, image, _class_map(engine, answer), max(1, MOST_SQUARES // pictures))
    assert isinstance(engine, ImageClassifier)
    label = answer[0].get("label") if isinstance(answer, list) and answer and isinstance(answer[0], dict) else answer
    features = engine.final_input(engine.preprocess(image)[None])
    given = torch.tensor([_class(engine, label)])
    return Answers.of(features, engine.clean_logits(features), given.to(features.device)).to("cpu")


def _traced_mask(engine: ImageSegmenter, image: Image.Image, given: np.ndarray, most: int) -> Answers:
    """A pixel in the middle of each square, where only that square's noise is interpolated."""
    if given.shape != (image.height, image.width):
        shapes = [f"{side[1]} x {side[0]}" for side in (given.shape, (image.height, image.width))]
        raise LoadError(f"the mask is {shapes[0]} pixels, the picture {shapes[1]}")
    features, logits = engine.clean_answer(engine.preprocess(image)[None])
    block, size = engine.scheme.block, (image.height, image.width)
    lines, columns = (
        _middles(cells, block, side, features.device) for cells, side in zip(features.shape[2:], size, strict=True)
    )
    seen = block_means(features, block)[0].flatten(1).T.cpu()
    clean = logits_at(logits[0], size, lines, columns).flatten(1).T.cpu()
    own = torch.from_numpy(given[lines.cpu().numpy()][:, columns.cpu().numpy()].astype(np.int64)).flatten()
    known = (own != _UNKNOWN).nonzero()[:, 0]
    some = known[:: max(1, -(-len(known) // most))]
    return Answers.of(seen[some], clean[some], own[some])


def _middles(cells: int, block: int, side: int, device: torch.device) -> Tensor:
    """The pixel of a side nearest to the middle of each square of so many cells."""
    first = torch.arange(0, cells, block, device=device)
    middle = (first + (first + block).clamp(max=cells)) / 2
    return (middle * (side / cells) - 0.5).round().long().clamp(0, side - 1)


def _class(engine: VisionEngine, label: Any) -> int:
    if label not in engine.classes:
        raise LoadError(f"{engine.model_id} has no class {str(label)[:80]!r}")
    return engine.classes.index(label)


def _class_map(engine: VisionEngine, answer: Any) -> np.ndarray:
    """Class indices [height, width] of a mask, 255 where none is known."""
    try:
        if isinstance(answer, str) and answer.endswith(".json"):
            answer = json.loads(Path(answer).read_text(encoding="utf-8"))
        if isinstance(answer, list):
            return _of_segments(engine, answer)
        with Image.open(answer, formats=["PNG"]) as image:
            if image.mode not in ("L", "P"):
                raise LoadError(f"{answer} is a PNG of mode {image.mode}; a mask is of class indices, mode L or P")
            indices = np.asarray(image)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LoadError(f"{str(answer)[:80]} cannot be read as a mask: {first_line(error)}") from None
    if wrong := sorted({int(k) for k in np.unique(indices)} - {*range(len(engine.classes)), _UNKNOWN}):
        raise LoadError(
            f"{answer} has the class index {wrong[0]}; {engine.model_id} has 0 to {len(engine.classes) - 1}"
        )
    return indices


def _of_segments(engine: VisionEngine, segments: Sequence[Any]) -> np.ndarray:
    """The API's answer: a mask for each class."""
    masks = []
    for segment in segments:
        with Image.open(io.BytesIO(base64.b64decode(segment["mask"])), formats=["PNG"]) as image:
            masks.append((_class(engine, segment["label"]), np.asarray(image.convert("L")) > 127))
    if not masks or len({mask.shape for _, mask in masks}) != 1:
        raise ValueError("its masks must be some, of one size")
    indices = np.full(masks[0][1].shape, _UNKNOWN, dtype=np.uint8)
    for index, mask in masks:
        indices[mask] = index
    return indices
