"""Calibrating a text model: it answers paragraphs greedily, and every level is solved on the steps of its answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deployments.config import REPOSITORY
from deployments.engines.language_models import LanguageModel
from deployments.engines.loading import LoadError
from deployments.engines.sample import CalibrationSample
from deployments.engines.text_stream import Rows, write

BUNDLED = REPOSITORY / "models" / "smollm2-135m-instruct" / "calibration.txt"
MIN_PARAGRAPHS = 20
MAX_PROMPTS = 160
"""Reading the prompts is half of the work, so a longer text is thinned to so many; half as many left 0.02 of error."""
STEPS = 40
"""Tokens of each answer."""
MAX_ROWS = 2400
"""2,400 rows of 49,152 logits are 470 MB."""
TOLERANCE = 0.03
"""Agreement between points of the curve. It is smooth, so straight lines between them are off by less than 0.001."""
_BATCH = 38
_MAX_PROMPT = 256


def calibration_rows(
    model: LanguageModel, path: Path | None, progress: Callable[[str], None] = lambda _: None
) -> CalibrationSample:
    """The model's own decoding steps, answering the paragraphs of a text file at full quality.

    Levels solved on these hold on modulated answers to other prompts down to about 0.7 (benchmarks/RESULTS.md), so no
    second pass over modulated answers is made; below, modulated answers lead elsewhere.

    Args:
        path: paragraphs separated by blank lines; None: the text written for this project.
        progress: told how far it is.

    Returns:
        At most 2,400 rows.

    Raises:
        LoadError: no such file, or fewer than 20 paragraphs.
    """
    paragraphs = _paragraphs(path or BUNDLED)
    chosen = paragraphs[:: -(-len(paragraphs) // MAX_PROMPTS)]
    prompts = sorted((_prompt(model, paragraph) for paragraph in chosen), key=len)
    parts: list[Rows] = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        progress(f"answering calibration prompts {start + 1} to {start + len(batch)} of {len(prompts)}")
        rows = write(model, batch, STEPS)
        parts.append(rows.thinned(MAX_ROWS * len(batch) // len(prompts)))
    rows = Rows.join(parts)
    return CalibrationSample(rows.features, rows.logits)


def _paragraphs(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{path} cannot be read as a text file to calibrate on: {error}") from error
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]
    if len(paragraphs) < MIN_PARAGRAPHS:
        raise LoadError(
            f"{path} holds {len(paragraphs)} paragraphs; calibration needs at least {MIN_PARAGRAPHS}, with blank lines"
            " between them"
        )
    return paragraphs


def _prompt(model: LanguageModel, paragraph: str) -> list[int]:
    """A chat message, or for a model without a template the first half of the paragraph, to be continued."""
    tokenizer: Any = model.tokenizer
    if not tokenizer.chat_template:
        ids = list(tokenizer.encode(paragraph))
        return ids[: max(1, min(len(ids) // 2, _MAX_PROMPT))]
    # Cut as text: cutting the template would lose the start of the assistant's turn.
    words = " ".join(paragraph.split(" ")[: _MAX_PROMPT // 2])
    message = [{"role": "user", "content": words}]
    return list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))
