"""A gateway on a port, with administration, the shipped picture models in process, and a text model on a script."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvicorn
from safetensors import safe_open
from safetensors.torch import save_file

from deployments.config import REPOSITORY, AppArgs, GatewayArgs, StoreArgs, Task
from deployments.contracts.catalog import ModelInfo, TextDelta
from deployments.contracts.spending import Meter, Spent
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.pipeline import Pipeline
from deployments.engines.images.segmenter import ImageSegmenter
from deployments.serving.ingress import TenantGateway
from policies.audit import LevelReport, Tally
from policies.terms import Modulation
from tenants.admin import installation
from tenants.admin.admin import TenantAdmin
from tenants.admin.operators import Operators, Role
from tenants.changes.audit import AuditLog
from tenants.reports.replicas import ReplicaReport, ServedModels
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore
from tests.deployments.gateway_support import opened
from tests.deployments.vision_support import SECRET, shipped

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TEXT = "smollm2-135m-instruct"
SAYS = {
    1.0: "The sky is blue because air scatters blue light most.",
    0.7: "The sky is green because air likes blue light.",
}

LONG = "Straßenverkehrsgenossenschaft 株式会社道路交通安全協会"
"""Names that a table must bear."""
DELIVERED = sum((Tally.of(100, 70 + number % 3) for number in range(50)), Tally())


class Pictures:
    """A picture model, as a replica answers for it."""

    def __init__(self, engine: ImageClassifier | ImageSegmenter) -> None:
        self.engine, self.pipeline = engine, Pipeline(engine, 1)

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        data, top_k, form, most, modulation, share, _ = args
        await asyncio.gather(*map(asyncio.wrap_future, self.engine.prepare(modulation)))
        size, item = await self.pipeline.read(data, most, modulation, share, Meter(), top_k)
        if isinstance(self.engine, ImageClassifier):
            return [label.to_json() for label in item]
        if form == "labelmap":
            return self.engine.label_map(item, modulation, size).to_json()
        return [part.to_json() for part in self.engine.answer(item, modulation, size)]


class Script:
    """A text model that says one thing at level 1.0 and another below."""

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        assert method == "encode"
        return [[1] * 8]

    async def stream(self, method: str, *args: Any, deadline: float) -> AsyncGenerator[Any]:
        modulation = next(one for one in args if isinstance(one, Modulation))
        words = SAYS[1.0 if modulation.utility == 1.0 else 0.7].split(" ")
        for at, word in enumerate(words):
            await asyncio.sleep(0.01)
            last = at == len(words) - 1
            yield TextDelta(word + ("" if last else " "), 1, "stop" if last else None, 8, at + 1)

    async def spent(self, call: str) -> Spent | None:
        return None


class Models:
    """In the place of a gateway's fleet."""

    def __init__(self, engines: dict[str, tuple[ModelInfo, Any]]) -> None:
        self.infos = {name: info for name, (info, _) in engines.items()}
        self._models = {name: model for name, (_, model) in engines.items()}

    def known(self) -> Collection[str]:
        return self.infos

    def starting(self, *, own: bool) -> list[str]:
        return []

    def model(self, model_id: str) -> Any:
        return self._models[model_id]


@dataclass
class Site:
    """Where the pages are, and keys for them."""

    url: str
    key: str
    owner: str
    viewer: str
    admin: TenantAdmin
    store: TenantStore

    async def report(self) -> None:
        """A replica says what its model delivers; nobody remembers it for longer than some seconds."""
        levels = (LevelReport(0.7, DELIVERED, DELIVERED),)
        await ServedModels(self.store).publish(ReplicaReport(TEXT, "r1", "c", 1, 500, levels))


async def filled(page: Any, selector: str) -> str:
    """What an element says, once it says something."""
    await page.locator(selector, has_text=re.compile(r"\S")).first.wait_for()
    text: str = await page.locator(selector).first.text_content()
    return text


async def violations(page: Any) -> list[str]:
    """What axe-core finds wrong."""
    axe = pytest.importorskip("axe_playwright_python.async_playwright", reason="pip install axe-playwright-python")
    found = await axe.Axe().run(page)
    return [f"{rule['id']}: {rule['nodes'][0]['html']}" for rule in found.response["violations"]]


@pytest_asyncio.fixture
async def page(site: Site) -> AsyncIterator[Any]:
    """A page of a real browser, whose scripts must not fail."""
    playwright = pytest.importorskip("playwright.async_api", reason="a browser's driver: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no browser: apt-get install chromium")
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await browser.new_page()
        playwright.expect.set_options(timeout=60_000)
        page.set_default_timeout(60_000)
        failures: list[str] = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("console", lambda said: failures.append(said.text) if "Content Security" in said.text else None)
        yield page
        await browser.close()
        assert not failures


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ModelInfo, Any]]:
    """The shipped models, their levels solved on a part of their samples."""
    found = {}
    for kind, name, task, rows in (
        (ImageSegmenter, "segformer-b0-camvid", Task.SEGMENTATION, 30),
        (ImageClassifier, "resnet18-cifar10", Task.CLASSIFICATION, 1000),
    ):
        engine = kind.load(shipped(name, task))
        part = tmp_path_factory.mktemp("sample") / "calibration.safetensors"
        with safe_open(REPOSITORY / "models" / name / "calibration.safetensors", "pt") as whole:
            tensors = {key: whole.get_tensor(key) for key in whole.keys()}
            save_file({**tensors, "features": tensors["features"][:rows].clone()}, part, whole.metadata())
        engine.install(engine.fit(engine.calibration_sample(part), SECRET), SECRET)
        info = ModelInfo(id=name, task=task, classes=tuple(engine.classes), floor=engine.floor, created=1)
        found[name] = (info, engine)
    return found


@pytest_asyncio.fixture
async def site(
    engines: dict[str, tuple[ModelInfo, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    monkeypatch.delenv("REDIS_URL", raising=False)
    with EmbeddedValkey(tmp_path / "store") as valkey:
        monkeypatch.setenv("AIM_ADMIN_REDIS_URL", valkey.url_of("admin"))
        spec = {"id": "m", "task": "image-classification", "source": "nowhere"}
        store_args = StoreArgs(redis_url=valkey.url, data_dir=str(tmp_path))
        args = AppArgs(models=(spec,), store=store_args, gateway=GatewayArgs(admin_api=True))  # type: ignore[arg-type]
        async with await TenantStore.connect(valkey.url, timeout_s=5.0) as store:
            await installation.create_secrets(store)
            admin = TenantAdmin(store, who="tester", unchecked=True)
            granted = {"utility": "1.0", "lower_utility": "yes", "focus_max": "0.9", "digits": "2", "rpm": "600"}
            await admin.create_tier("gold", granted)
            await admin.create_tenant("acme", tier="gold", name=LONG)
            people = Operators(store, AuditLog(store, "tester", "test"))
            owner, viewer = [(await people.create(role.value, role))[0] for role in (Role.OWNER, Role.VIEWER)]
            gateway = await opened(args)
            text = ModelInfo(id=TEXT, task=Task.TEXT, classes=None, floor=0.3, created=1, context=2048)
            pictures = {name: (info, Pictures(engine)) for name, (info, engine) in engines.items()}
            gateway.service.models = Models({**pictures, TEXT: (text, Script())})  # type: ignore[assignment]
            app = gateway.__serve_build_asgi_app__()
            server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
            serving = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            key = (await admin.create_key("acme"))[0]
            yield Site(f"http://127.0.0.1:{port}", key, owner, viewer, admin, store)
            server.should_exit = True
            await serving
            await TenantGateway.__del__(gateway)
            for _, (_, model) in pictures.items():
                await model.pipeline.aclose()
