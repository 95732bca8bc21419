"""One text engine for all tests of it: loading and calibrating take most of their time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import torch

from deployments.engines.generator import Generator
from deployments.engines.text_calibration import BUNDLED
from policies.calibration import Calibration
from tests.deployments.text_support import SECRET, SPEC


@pytest.fixture(scope="session")
def calibration(loaded: Generator, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Solved on a part of the bundled text: fewer rows than are served with, by the same code."""
    path = tmp_path_factory.mktemp("text") / "few.txt"
    path.write_text("\n\n".join(BUNDLED.read_text().split("\n\n")[:20]))
    return loaded.fit(loaded.calibration_sample(path), SECRET)


@pytest.fixture(scope="session")
def loaded() -> Generator:
    return Generator.load(SPEC, torch.device("cpu"))


@pytest_asyncio.fixture(scope="session")
async def generator(loaded: Generator, calibration: Calibration) -> AsyncIterator[Generator]:
    loaded.install(calibration, SECRET)
    yield loaded
    loaded.close()
