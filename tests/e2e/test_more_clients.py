"""Clients that others wrote on top of OpenAI's API: agents, forms, JavaScript, and a page in a browser.

Their packages are the extra `clients` and tests/clients/package.json: `make clients`. What they answer is checked for
its form, not for its wit.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from deployments.config import REPOSITORY
from tests.e2e.conftest import CLASSIFIER, TEXT, Application

pytestmark = pytest.mark.filterwarnings("ignore")
CLIENTS = REPOSITORY / "tests" / "clients"
MISSING = "is missing: make clients"
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


class Name(StrEnum):
    PARIS = "Paris"
    ROME = "Rome"


class City(BaseModel):
    """A city."""

    name: Name
    capital: bool


def needs(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} {MISSING}")


def base(app: Application) -> dict[str, Any]:
    return {"base_url": f"{app.base_url}/v1", "api_key": app.key("gold")}


async def test_openai_parses_streams_and_loops(app: Application) -> None:
    asked: dict[str, Any] = {"model": TEXT, "messages": QUESTION, "temperature": 0, "max_tokens": 48}
    async with openai.AsyncOpenAI(**base(app), timeout=180) as client:
        parsed = await client.chat.completions.parse(**asked, response_format=City)
        async with client.chat.completions.stream(**asked, response_format=City) as stream:
            final = await stream.get_final_completion()
        city = parsed.choices[0].message.parsed
        assert isinstance(city, City) and final.choices[0].message.parsed == city
        # An agent's two steps: a call that is asked for, its answer, and words.
        look = openai.pydantic_function_tool(City, name="look")
        first = (
            await client.chat.completions.parse(
                **asked, tools=[look], tool_choice="required", parallel_tool_calls=False
            )
        ).choices[0]
        (call, *_) = first.message.tool_calls or []
        assert first.finish_reason == "tool_calls" and isinstance(call.function.parsed_arguments, City)
        turns = [*QUESTION, first.message, {"role": "tool", "tool_call_id": call.id, "content": "Paris."}]
        last = await client.chat.completions.create(**asked | {"messages": turns}, tools=[look], tool_choice="none")
        assert last.choices[0].message.content


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_langchain_forms_and_loops(app: Application, responses: bool) -> None:
    langchain, messages = needs("langchain_openai"), needs("langchain_core.messages")
    chat = langchain.ChatOpenAI(**base(app), model=TEXT, temperature=0, max_tokens=48, use_responses_api=responses)
    for method in ("json_schema", "function_calling"):
        assert isinstance(chat.with_structured_output(City, method=method).invoke("The capital of France?"), City)
    asked = [messages.HumanMessage("Look up the capital of France.")]
    called = chat.bind_tools([City], tool_choice="City").invoke(asked)
    (call,) = called.tool_calls
    assert call["name"] == "City" and City.model_validate(call["args"])
    answered = messages.ToolMessage("Paris.", tool_call_id=call["id"])
    assert "".join(piece.text for piece in chat.stream([*asked, called, answered]))


@pytest.mark.parametrize("kind", ["OpenAIChatModel", "OpenAIResponsesModel"])
def test_pydantic_ai_loops(app: Application, kind: str) -> None:
    ai, models = needs("pydantic_ai"), needs("pydantic_ai.models.openai")
    providers = needs("pydantic_ai.providers.openai")
    model = getattr(models, kind)(TEXT, provider=providers.OpenAIProvider(**base(app)))
    looked: list[Name] = []

    def look(city: Name) -> str:
        """Look up a city."""
        looked.append(city)
        return "It is a capital."

    async def once(_: Any, tool: Any) -> Any:
        return None if looked else tool

    settings = {"temperature": 0, "max_tokens": 48}
    agent = ai.Agent(model, tools=[ai.Tool(look, prepare=once)], output_type=City, model_settings=settings)
    done = agent.run_sync("Look up Paris, then say what it is.", usage_limits=ai.UsageLimits(request_limit=5))
    assert isinstance(done.output, City) and done.usage().requests >= 1


def test_litellm_calls_and_forms(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = needs("litellm")
    asked = {"model": f"openai/{TEXT}", **base(app), "messages": QUESTION, "temperature": 0, "max_tokens": 48}
    look = openai.pydantic_function_tool(City, name="look")
    (call, *_) = litellm.completion(**asked, tools=[look], tool_choice="required").choices[0].message.tool_calls
    assert City.model_validate_json(call.function.arguments)
    whole = litellm.completion(**asked, response_format=City).choices[0].message.content
    stream = litellm.completion(**asked, response_format=City, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert City.model_validate_json(whole) and "".join(pieces) == whole


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor_forms(app: Application, mode: str) -> None:
    instructor = needs("instructor")
    with openai.OpenAI(**base(app), timeout=180) as client:
        own = instructor.from_openai(client, mode=instructor.Mode[mode])
        answer = own.chat.completions.create(
            model=TEXT, messages=QUESTION, response_model=City, temperature=0, max_tokens=48, max_retries=1
        )
    assert isinstance(answer, City)


def test_llm_on_the_command_line(app: Application, tmp_path: Path) -> None:
    if not importlib.util.find_spec("llm"):
        pytest.skip(f"llm {MISSING}")
    model = f"- model_id: own\n  model_name: {TEXT}\n  api_base: {app.base_url}/v1\n  supports_schema: true\n"
    (tmp_path / "extra-openai-models.yaml").write_text(model)
    # The served model's package is a plugin of it, which without llama-cpp-python fails: none is loaded.
    env = os.environ | {"LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": "", "OPENAI_API_KEY": app.key("gold")}

    def said(*words: str) -> str:
        command = [sys.executable, "-m", "llm", "-m", "own", *words, "-o", "max_tokens", "32", "-o", "temperature", "0"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Paris" in said("What is the capital of France?")
    assert City.model_validate_json(said("The capital of France?", "--schema", json.dumps(City.model_json_schema())))


def test_clients_for_javascript(app: Application) -> None:
    if not shutil.which("node") or not (CLIENTS / "node_modules" / "@ai-sdk" / "openai-compatible").exists():
        pytest.skip(f"a client for JavaScript {MISSING}")
    words = ["node", str(CLIENTS / "chat.mjs"), app.base_url, app.key("gold"), TEXT]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for name in ("openai", "ai", "face"):
        assert len(told[name]) == 2 and told[name][0] == told[name][1] and told[name][0], told
    for calls in (told["tool"], told["aiTool"]):
        assert calls and all(name == "look" and given["city"] in ("Paris", "Rome") for name, given in calls)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def page_at(origin: str, folder: Path) -> Iterator[None]:
    """A web server of an origin, of the files in a folder."""
    port = int(origin.rpartition(":")[2])
    with ThreadingHTTPServer(("127.0.0.1", port), partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


async def test_a_page_of_another_origin_streams_a_chat_and_sends_a_picture(
    app: Application, ship: bytes, tmp_path: Path
) -> None:
    playwright, chromium = needs("playwright.async_api"), shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Debian's chromium: apt-get install chromium")
    (tmp_path / "index.html").write_text("<!doctype html><title>A page</title>")
    (tmp_path / "ship.jpg").write_bytes(ship)
    (tmp_path / "calls.js").write_bytes((CLIENTS / "page.js").read_bytes())
    asked = [app.base_url, app.key("gold"), TEXT, CLASSIFIER]
    with page_at(app.page, tmp_path):
        async with playwright.async_playwright() as driver:
            browser = await driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = await browser.new_page()
            await page.goto(f"{app.page}/")
            await page.add_script_tag(url="/calls.js")
            told = await page.evaluate("asked => chatAndPicture(...asked)", asked)
            # The same page under a name that is not among the origins is let through by nobody.
            await page.goto(f"{app.page.replace('127.0.0.1', 'localhost')}/")
            await page.add_script_tag(url="/calls.js")
            refused = await page.evaluate("asked => chatAndPicture(...asked).catch(String)", asked)
            await browser.close()
    chat, picture = told["chat"], told["picture"]
    assert chat["reads"] > 1 and chat["text"] and chat["receipt"] and float(chat["utility"]) == 1.0
    assert picture["labels"][0]["label"] == "ship" and picture["receipt"]
    assert "TypeError" in refused
