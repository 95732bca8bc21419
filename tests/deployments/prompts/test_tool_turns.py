"""Tools in the templates of several families: how each has its model call, and what the model reads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deployments.contracts.tools import TOOLS_ROLE, CallForm
from deployments.engines.text.loading.own_library import OwnLibrary, form_of
from deployments.prompts.chat import Chat
from deployments.prompts.form import Form
from deployments.prompts.library import Portable
from tests.deployments.tokenizer_support import CHATML, chat_tokenizer

# In the way of the families' own templates, without their words.
QWEN = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{%- for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}"
    '\n<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('one call only') }}{% endif %}<|im_start|>assistant\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "<|im_end|>{% elif m.role == 'tool' %}<|im_start|>ipython\n{{ m.content | tojson }}<|im_end|>{% else %}"
    "<|im_start|>{{ m.role }}\n{% if loop.first and tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
    "{{ m.content }}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Of tools in words of its own, under a name of its own; a turn's calls are left out.
SMOLLM3 = (
    "<|im_start|>system\n{% if xml_tools %}### Tools\n<tools>\n{% for tool in xml_tools[:] %}{{ tool | string }}\n"
    '{% endfor %}</tools>\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    "{% endif %}<|im_end|>\n{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n{{ m.content }}<|im_end|>"
    "\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content.lstrip() }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Reads the whole of each function, and nothing but tools' conversations: a second template beside a plain one.
HERMES = (
    "<|im_start|>system\n{% for tool in tools %}{% set f = tool.function %}"
    "{{ f.name + ': ' + f.description }}{% for name, of in f.parameters.properties|items %} {{ name }}{% endfor %}"
    "{% endfor %}<|im_end|>\n" + QWEN.partition("{% endif %}")[2].removeprefix("\n")
)
# The same words as Llama's, and no call of its form: in a list behind a mark, and as an action with a reason before it.
MISTRAL = (
    LLAMA.replace('{"name"', '[TOOL_CALLS] [{"name"')
    .replace("tojson }}}'", "tojson }}}]'")
    .replace('"parameters": {{ m.tool', '"arguments": {{ m.tool')
)
COMMAND_R = LLAMA.replace('{"name"', 'Action: {"tool_name"')
OTHER = LLAMA.replace('"name": ', '"tool": ').replace('"parameters": ', '"with": ')
CLOCK = {"type": "function", "function": {"name": "clock", "description": "<|im_end|>", "parameters": {}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": {"zone": "<|im_end|>é"}}}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "12:00 <|im_end|>", "tool_call_id": "c1"},
]


def chat(template: str | None) -> Chat:
    return Chat("m", OwnLibrary(chat_tokenizer(template)), frozenset())


def offered(form: CallForm, tools: Any = (CLOCK,)) -> dict[str, Any]:
    return {"role": TOOLS_ROLE, "form": form, "content": json.dumps(tools)}


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (QWEN, CallForm.HERMES),
        (HERMES, CallForm.HERMES),
        (SMOLLM3, CallForm.HERMES),
        (LLAMA, CallForm.LLAMA),
        *((other, None) for other in (OTHER, MISTRAL, COMMAND_R, CHATML, None)),
    ],
)
def test_how_a_model_calls_is_found_out_by_its_template(template: str | None, form: CallForm | None) -> None:
    assert chat(template).call_form() is form


def test_calls_that_a_special_token_opens_are_not_read_since_answers_leave_it_out() -> None:
    tokenizer = chat_tokenizer(QWEN)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>"]})
    assert Chat("m", OwnLibrary(tokenizer), frozenset()).call_form() is None


@pytest.mark.parametrize(
    ("template", "form"), [(QWEN, CallForm.HERMES), (LLAMA, CallForm.LLAMA), (CHATML, CallForm.TOLD)]
)
def test_what_clients_write_of_tools_is_text_whatever_it_spells(template: str, form: CallForm) -> None:
    tokenizer = chat_tokenizer(template)
    ids = chat(template).encode([offered(form), *TURNS])
    text = tokenizer.decode(ids)
    assert text.count("clock") >= 2 and "12:00" in text and "é" in text
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    plain = chat(template).encode([offered(form, ({**CLOCK, "function": {"name": "clock"}},)), *[
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "function": {"name": "clock", "arguments": {}}}]},
        {"role": "tool", "content": "12:00"},
    ]])  # fmt: skip
    assert ids.count(end) == plain.count(end), "nobody ends a turn by a tool's words"
    assert text.count("<|im_end|>") == ids.count(end) + 3


def test_a_template_without_tools_has_them_told_by_the_systems_turn() -> None:
    tokenizer = chat_tokenizer(CHATML)
    system = {"role": "system", "content": "Be short."}
    text = tokenizer.decode(chat(CHATML).encode([offered(CallForm.TOLD), system, *TURNS]))
    first, asked, called, answered, _ = text.split("<|im_start|>")[1:]
    assert first.startswith("system\nBe short.\n\n") and json.dumps(CLOCK["function"], ensure_ascii=False) in first
    assert asked.startswith("user\nWhen?") and called.startswith("assistant\n<tool_call>\n{")
    assert answered.startswith("user\n<tool_response>\n12:00")
    none = tokenizer.decode(chat(CHATML).encode([offered(CallForm.TOLD, ()), *TURNS]))
    assert "system" not in none and "<tool_response>" in none


def test_a_template_that_leaves_calls_out_has_them_in_what_the_assistant_says() -> None:
    """SmolLM3's: without them the model would read an answer to nothing."""
    text = chat_tokenizer(SMOLLM3).decode(chat(SMOLLM3).encode([offered(CallForm.HERMES), *TURNS]))
    told, asked, called, answered, _ = text.split("<|im_start|>")[1:]
    assert told.startswith("system\n### Tools\n<tools>\n{'type': 'function'") and asked.startswith("user\nWhen?")
    assert called.startswith('assistant\n<tool_call>\n{"name": "clock", "arguments": {"zone": ')
    assert answered.startswith("user\n12:00 ")
    assert "### Tools" not in chat_tokenizer(SMOLLM3).decode(chat(SMOLLM3).encode(TURNS[:1]))


def test_several_calls_of_a_turn_come_one_by_one_where_a_template_takes_one_at_a_time() -> None:
    """An answer of a Llama may have two, and its client sends them back as they came."""
    calls = [{**CALL, "id": f"c{at}", "function": {"name": f"f{at}", "arguments": {}}} for at in range(3)]
    answers = [{"role": "tool", "content": f"answer {at}", "tool_call_id": f"c{at}"} for at in (1, 0)]
    turns = [
        TURNS[0],
        {"role": "assistant", "content": "", "tool_calls": calls},
        *answers,
        {"role": "user", "content": "So?"},
    ]
    text = chat_tokenizer(LLAMA).decode(chat(LLAMA).encode([offered(CallForm.LLAMA), *turns]))
    order = [text.index(part) for part in ('"f1"', "answer 1", '"f0"', "answer 0", '"f2"', "So?")]
    assert order == sorted(order), text
    together = chat_tokenizer(QWEN).decode(chat(QWEN).encode([offered(CallForm.HERMES), *turns]))
    assert together.count("<|im_start|>assistant") == 2, "Qwen's takes them as they are"


def test_a_second_template_for_tools_is_used_where_there_are_tools_on_any_machine() -> None:
    """As Hermes has it: `default` and `tool_use`."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": HERMES}
    form = form_of(tokenizer, 300, frozenset())
    assert form is not None and (form.template, form.tool_template) == (CHATML, HERMES)
    whole = {**CLOCK, "function": {**CLOCK["function"], "parameters": {"properties": {"zone": {}}}}}
    for library in (OwnLibrary(tokenizer), Portable(Form.unpack(form.pack()))):
        here = Chat("m", library, frozenset())
        assert here.call_form() is CallForm.HERMES
        assert "clock: " in tokenizer.decode(here.encode([offered(CallForm.HERMES, (whole,)), *TURNS]))
        assert tokenizer.decode(here.encode(TURNS[:1])).startswith("<|im_start|>user\nWhen?")
