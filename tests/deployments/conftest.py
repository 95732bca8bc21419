"""What many tests share: one text engine, which takes long to load and calibrate, and OpenAI's client on a script."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator

import httpx
import openai
import pytest
import pytest_asyncio
import torch

from deployments.engines.text.calibration import BUNDLED
from deployments.engines.text.generator import Generator
from policies.calibration.calibration import Calibration
from tests.deployments.openai_support import Script
from tests.deployments.text_support import SECRET, SPEC

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from deployments.http.api import build_api


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


@pytest.fixture
def script() -> Script:
    return Script()


@pytest_asyncio.fixture
async def client(script: Script) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx.ASGITransport(build_api(script))  # type: ignore[arg-type]
    async with openai.AsyncOpenAI(
        base_url="http://gateway/v1", api_key="k", max_retries=0, http_client=httpx.AsyncClient(transport=transport)
    ) as made:
        yield made
