"""The one table of fields that clients send and nothing here serves: which of their values ask for nothing.

What is served are the fields of the request models; `docs/clients.md` shows both, and a test walks OpenAI's own types
against them. A field of neither is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deployments.gateway.api.tolerance import Unserved

Table = dict[str, Unserved]

WHATEVER = Unserved()
"""Labels, hints and switches of other servers, of which no answer depends."""
ALWAYS = Unserved(in_strict=True)
_NO_TOOLS = "Use tools, and tool_choice."
_NO_FORMAT = "Use response_format, or structured_outputs with json, regex or choice."
_PENALTY = "Use repetition_penalty, frequency_penalty or presence_penalty."
_SAMPLER = "Use temperature, top_p, top_k or min_p."
_MAX_TOKENS = "Use max_tokens."


def only(*values: Any, instead: str = "Leave it out.") -> Unserved:
    """A field that asks for nothing by these values."""
    return Unserved(values, instead)


def never(instead: str = "Leave it out.") -> Unserved:
    """A field that asks for something whatever its value."""
    return Unserved((), instead)


def _each(names: str, treatment: Unserved) -> Table:
    return dict.fromkeys(names.split(), treatment)


def _by_choice(name: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda fields: bool(fields.get(name) == "none")


def _as_many_as_n(fields: Mapping[str, Any]) -> bool:
    return bool(fields.get("best_of") == fields.get("n", 1))


_OPENAI: Table = {"user": ALWAYS}
_VLLM: Table = {
    **_each("skip_special_tokens detokenize", only(True)),
    **_each("use_beam_search include_stop_str_in_output return_tokens_as_token_ids return_token_ids", only(False)),
    **_each("spaces_between_special_tokens request_id rid cache_salt length_penalty early_stopping", WHATEVER),
    **_each("priority", only(0)),
    **_each("kv_transfer_params vllm_xargs mm_processor_kwargs media_io_kwargs", only({})),
    **_each("logits_processors bad_words allowed_token_ids", only([])),
    **_each("guided_grammar", never(_NO_FORMAT)),
    **_each("guided_decoding_backend guided_whitespace_pattern", WHATEVER),
    **_each("truncate_prompt_tokens prompt_logprobs", never()),
}
_LLAMA_CPP: Table = {
    **_each("cache_prompt id_slot slot_id penalize_nl repeat_last_n min_keep", WHATEVER),
    **_each("repeat_penalty", only(1.0, instead=_PENALTY)),
    **_each("typical_p tfs_z", only(1.0, instead=_SAMPLER)),
    **_each("mirostat dynatemp_range xtc_probability top_a", only(0, instead=_SAMPLER)),
    **_each("dry_multiplier", only(0, instead=_PENALTY)),
    **_each("mirostat_tau mirostat_eta dynatemp_exponent xtc_threshold", WHATEVER),
    **_each("dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers", WHATEVER),
    **_each("top_n_sigma", only(-1, 0, instead=_SAMPLER)),
    **_each("samplers", never(_SAMPLER)),
    **_each("grammar", only("", instead=_NO_FORMAT)),
    **_each("json_schema", never(_NO_FORMAT)),
    **_each("n_predict", never(_MAX_TOKENS)),
    **_each("n_probs n_keep t_max_predict_ms", only(0)),
    **_each("timings_per_token return_progress post_sampling_probs return_tokens", only(False)),
    **_each("lora", only([])),
}
_SGLANG: Table = {
    **_each("regex ebnf structural_tag", never(_NO_FORMAT)),
    **_each("no_stop_trim return_hidden_states return_cached_tokens_details", only(False)),
    **_each("stop_regex", only([], "", instead="Use stop.")),
    **_each("separate_reasoning stream_reasoning", WHATEVER),
    **_each("lora_path session_params custom_logit_processor custom_params", never()),
}
_TGI: Table = {
    **_each("watermark details return_full_text decoder_input_details", only(False)),
    **_each("do_sample", never("Use temperature; 0 is greedy.")),
    **_each("max_new_tokens", never(_MAX_TOKENS)),
    **_each("truncate adapter_id generation_config", never()),
}
_OTHERS: Table = {
    **_each("no_repeat_ngram_size penalty_alpha smoothing_factor epsilon_cutoff eta_cutoff", only(0)),
    **_each("encoder_repetition_penalty guidance_scale num_beams", only(1)),
    **_each("typical tfs", only(1.0, instead=_SAMPLER)),
    **_each("ban_eos_token", only(False, instead="Use ignore_eos.")),
    **_each("add_bos_token temperature_last", WHATEVER),
    **_each("dynamic_temperature safe_prompt raw", only(False)),
    **_each("negative_prompt system", only("")),
    **_each("random_seed", never("Use seed.")),
    **_each("keep_alive ttl", WHATEVER),
    **_each("options data_sources", only({}, [])),
    **_each("models transforms plugins", only([])),
    **_each("usage provider", WHATEVER),
}
_SHARED: Table = {**_OPENAI, **_VLLM, **_LLAMA_CPP, **_SGLANG, **_TGI, **_OTHERS}

CHAT: Table = {
    **_SHARED,
    **_each("store metadata prompt_cache_key prompt_cache_options prompt_cache_retention", WHATEVER),
    **_each("safety_identifier prediction reasoning_effort verbosity", WHATEVER),
    **_each("include_reasoning reasoning_format parse_tool_calls thinking_forced_open", WHATEVER),
    "service_tier": only("auto", "default", instead="There is one; quality is `utility`."),
    "modalities": only(["text"], [], instead="Only text is answered."),
    "audio": never("Only text is answered."),
    "moderation": never(),
    "web_search_options": never(),
    "functions": Unserved(([],), _NO_TOOLS, _by_choice("function_call"), 'beside function_call "none"'),
    "function_call": only("none", "auto", instead=_NO_TOOLS),
    **_each("echo add_special_tokens continue_final_message", only(False)),
    **_each("add_generation_prompt", only(True)),
    **_each("chat_template", never()),
    **_each("chat_template_kwargs", only({})),
    **_each("documents", only([])),
    **_each("reasoning thinking", only({}, {"enabled": False}, {"type": "disabled"}, {"exclude": True})),
    "think": only(False),
    "format": only("", instead=_NO_FORMAT),
}
CHAT["best_of"] = Unserved((1,), "Use n.", _as_many_as_n, "as many as n")

COMPLETION: Table = {
    **_SHARED,
    **_each("store metadata prompt_cache_key safety_identifier", WHATEVER),
    "service_tier": CHAT["service_tier"],
    "best_of": CHAT["best_of"],
    "suffix": only("", instead="Nothing is served that fills in a middle."),
    "add_special_tokens": only(True),
}

_STORED = "Nothing is stored: send the whole conversation in input."
_TEXT_FORMAT = "Use text.format."
RESPONSE: Table = {
    **_SHARED,
    **_each("store max_tool_calls prompt_cache_key prompt_cache_options prompt_cache_retention", WHATEVER),
    **_each("safety_identifier reasoning image background_options", WHATEVER),
    "service_tier": CHAT["service_tier"],
    "background": only(False, instead="Nothing is stored that could be fetched later."),
    "truncation": only("disabled", instead="Leave out what the context has no room for."),
    "context_management": only([], instead="Leave out what the context has no room for."),
    "access_programs": only({}),
    "moderation": never(),
    "previous_response_id": never(_STORED),
    "conversation": never(_STORED),
    "prompt": never("No prompts are stored: send instructions and input."),
    "messages": never("Use input."),
    "n": only(1, instead="Send the request as often as you want answers."),
    **_each("max_tokens max_completion_tokens", never("Use max_output_tokens.")),
    "logprobs": only(False, instead="Use include with message.output_text.logprobs, and top_logprobs."),
    **_each("response_format guided_json guided_regex guided_choice structured_outputs", never(_TEXT_FORMAT)),
    **_each("reasoning_effort verbosity", WHATEVER),
}
for _name in ("json_schema", "regex", "ebnf", "structural_tag", "guided_grammar"):
    RESPONSE[_name] = never(_TEXT_FORMAT)
RESPONSE["grammar"] = only("", instead=_TEXT_FORMAT)

RESPONSE_TEXT: Table = {"verbosity": WHATEVER}
RESPONSE_STREAM_OPTIONS: Table = _each("include_obfuscation include_usage", WHATEVER)
_DIRECT = only({"type": "direct"})
FUNCTION_TOOL: Table = {
    "allowed_callers": only(["direct"], []),
    **_each("defer_loading async", only(False)),
    "output_schema": WHATEVER,
    "function": never("A response's tools have name and parameters beside their type."),
}
ITEM_TEXT: Table = _each("annotations logprobs cache_control prompt_cache_breakpoint", WHATEVER)
ITEM_MESSAGE: Table = {
    **_each("id status phase", WHATEVER),
    "tool_calls": only([], instead="Send function_call items."),
}
ITEM_CALL: Table = {
    **_each("id status parsed_arguments", WHATEVER),
    **_each("namespace", only("")),
    "async": only(False),
    "caller": _DIRECT,
}
ITEM_OUTPUT: Table = {**_each("id status name", WHATEVER), "namespace": only(""), "caller": _DIRECT}
ITEM_REASONING: Table = _each("id summary content encrypted_content status", WHATEVER)

EMBEDDING: Table = {
    **_OPENAI,
    **_each("priority", only(0)),
    **_each("request_id rid keep_alive cache_salt", WHATEVER),
    **_each("truncate_prompt_tokens input_type prompt_name task", never()),
    **_each("truncate", only("NONE", False)),
    **_each("add_special_tokens normalize", only(True)),
    **_each("embedding_types output_dtype", only("float", ["float"], instead="Use encoding_format.")),
    "utility": only(1, instead="An embedding has no level: it is served at 1.0 alone."),
    "focus": only({}, instead="An embedding has no focus."),
}

STREAM_OPTIONS: Table = {"include_obfuscation": WHATEVER}

MESSAGE: Table = {
    "name": ALWAYS,
    "type": only("message"),
    **_each("id status reasoning_content reasoning reasoning_details thinking thinking_blocks", WHATEVER),
    **_each("provider_specific_fields cache_control parsed", WHATEVER),
    **_each("annotations images", only([])),
    **_each("prefix partial", only(False)),
    "refusal": only("", instead="Put it into content."),
    "function_call": never("Use tool_calls."),
    "audio": never("Only text is read."),
}

CALLED_TOOL: Table = _each("index provider_specific_fields", WHATEVER)

# OpenAI's client has them on what it parsed, and sends them back with the conversation.
CALLED_FUNCTION: Table = _each("parsed_arguments provider_specific_fields", WHATEVER)

TEXT_PART: Table = {
    **_each("cache_control prompt_cache_breakpoint", WHATEVER),
    "annotations": only([]),
}

IMAGE_PARAMETERS: Table = {
    "function_to_apply": only("softmax", instead="Scores are the softmax's."),
    "subtask": only("semantic", instead="Masks are semantic: one class for each pixel."),
    **_each("threshold mask_threshold overlap_mask_area_threshold", WHATEVER),
}

IMAGE_REQUEST: Table = {"options": WHATEVER}
