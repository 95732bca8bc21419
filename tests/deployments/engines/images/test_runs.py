"""Run-length encoded masks, against COCO's own code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from deployments.engines.images.runs import run_lengths

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.floats(0.0, 1.0), st.integers(0, 2**32 - 1))
def test_coco_writes_and_reads_the_same(height: int, width: int, share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    counts = run_lengths(mask)
    assert counts == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert np.array_equal(coco.decode({"size": [height, width], "counts": counts}), mask)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3000, 2000)])
@pytest.mark.parametrize("which", ["none", "all", "first", "last", "corner"])
def test_long_runs(shape: tuple[int, int], which: str) -> None:
    mask = np.full(shape, which == "all")
    mask.flat[0] |= which == "first"
    mask.flat[-1] |= which == "last"
    mask[: shape[0] // 2, : shape[1] // 2] |= which == "corner"
    assert run_lengths(mask) == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
