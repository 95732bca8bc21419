"""The text engine: many tenants' sequences on one model, each step modulated to each tenant's terms."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deployments.config import ModelSpec
from deployments.contracts.catalog import TextDelta
from deployments.contracts.spending import Meter
from deployments.contracts.text_rules import check_context, check_text_disclosure
from deployments.contracts.tools import CallForm
from deployments.engines.calibrated import CalibratedEngine, Progress, untold
from deployments.engines.errors import first_line
from deployments.engines.live import Kept
from deployments.engines.memory import free_share
from deployments.engines.text.admission import SEATS_PER_ROW
from deployments.engines.text.calibration import calibration_steps
from deployments.engines.text.echo import Echo
from deployments.engines.text.ending import Ending
from deployments.engines.text.engine import TextEngine
from deployments.engines.text.grammars.grammars import Grammars
from deployments.engines.text.grammars.matcher import Matcher
from deployments.engines.text.loading.language_models import LanguageModel, load_language_model
from deployments.engines.text.sampling import SamplingParams
from deployments.engines.text.smoke import check_serves
from deployments.engines.text.transcript import Transcript
from policies.calibration.answering import CANDIDATES
from policies.calibration.candidates import Candidates
from policies.calibration.sample import CalibrationSample
from policies.calibration.schemes import TEXT
from policies.errors import InvalidRequest
from policies.field.identity import field_digest
from policies.head.head import Head
from policies.head.slots import Setting
from policies.head.words import targets
from policies.terms import Modulation, Share

__all__ = ["Generator", "SamplingParams", "TextDelta"]


class Generator(CalibratedEngine):
    """A causal language model whose every sequence is answered at its tenant's terms.

    `load`, then `generate` from one asyncio loop: level 1.0 at once, the others after `install`.

    Attributes:
        fingerprint: 16 hex digits over weights and dtype; the same in every process.
        features: H, width of the final layer's input.
        vocabulary: V.
        final: the model's own final layer, tied to the embeddings where the model ties them.
        context: most tokens of prompt and answer together.
        tools: how the model calls tools; None where it cannot.
    """

    live_judged = 1024
    scheme = TEXT
    least_live = 40

    def __init__(self, spec: ModelSpec, language_model: LanguageModel, share: float = 0.0) -> None:
        super().__init__(spec)
        self.model_id = spec.id
        self.language_model = language_model
        self.tokenizer: Any = language_model.tokenizer
        self.fingerprint, self.final = language_model.fingerprint, language_model.final
        self.field = spec.field or field_digest(self.final)
        self.features, self.vocabulary = self.final.in_features, self.final.out_features
        self.context = min(language_model.context, spec.max_context or language_model.context)
        self.tools = language_model.encoder.chat.call_form() or (CallForm.TOLD if spec.tools == "told" else None)
        self.depth = spec.depth or TEXT.depth
        self.device = next(self.final.parameters()).device
        self.slots = spec.max_batch_size * SEATS_PER_ROW
        ends = language_model.end_tokens
        self.grammars = Grammars(spec.id, self.tokenizer, self.vocabulary, ends)
        room = free_share(self.device, share)
        self.engine = TextEngine(language_model, spec, self.context, self.live, self.counts, room)

    @classmethod
    def load(
        cls, spec: ModelSpec, device: torch.device, share: float = 0.0, say: Callable[[str], None] = lambda _: None
    ) -> Generator:
        """Load the model that `spec` names, and have its engine answer a first request.

        Args:
            share: of the card that is this process's; 0 is all of it.
            say: told what memory it takes.

        Raises:
            LoadError: it cannot be loaded or modulated, or the engine answers otherwise than the model alone; the
                message names the source and says what to change.
        """
        generator = cls(spec, load_language_model(spec, device, say), share)
        try:
            engine = generator.engine
            check_serves(generator.language_model, engine.greedy, context=generator.context, fault=engine.fault)
        except BaseException:
            generator.close()
            raise
        return generator

    def calibration_sample(
        self, path: Path | None = None, progress: Progress = untold, *, refit: bool = False
    ) -> CalibrationSample:
        """Decoding steps to calibrate on, of answers that this engine gives; it must serve nobody else meanwhile.

        Args:
            path: a text file of paragraphs to answer; None for the one written for this project.
            progress: told how far it is.
            refit: makes no difference.

        Raises:
            LoadError: no such file, or too little text.
        """
        return calibration_steps(self, path, progress)

    def _between(self, call: Callable[[], None]) -> None:
        self.engine.seats.between(call)

    def _put(self, head: Head | None) -> None:
        self.engine.seats.put(head)
        if head is not None:
            self.engine.draw_secret = head.ladder.secret_for("draws")
        self._head = head

    @torch.inference_mode()
    def clean_logits(self, features: Tensor) -> Tensor:
        """The final layer's own answers [N, V] float32 to features [N, H], whether it has a head or not."""
        logits: Tensor = self.final.forward(features.to(self.device, self.language_model.model.dtype))
        return logits.float()

    @torch.inference_mode()
    def sample_of(self, kept: Kept) -> tuple[CalibrationSample, Tensor]:
        """Live decoding steps as a sample, and the group of each."""
        features = kept.rows.float().to(self.device)
        highest = Candidates.of_features(features, self.clean_logits, CANDIDATES)
        return CalibrationSample(features, highest, at=kept.gathered().to(self.device)), kept.groups

    def audit(self) -> dict[float, tuple[int, int]]:
        """Since start, by level: decoding steps, and those whose token after utility, before focus, is the clean."""
        return self.engine.seats.audit()

    def encode(self, text: str | list[int]) -> list[int]:
        """A plain prompt's tokens, from its text or as they are.

        Raises:
            InvalidRequest: an id that is no token, or a text with one that the model was not made for.
        """
        return self.language_model.encoder.text(text)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """A conversation's tokens in the model's own chat template, ready for the assistant's answer.

        Raises:
            InvalidRequest: as `Encoder.conversation`.
        """
        return self.language_model.encoder.conversation(messages)

    def check(self, prompt: Sequence[int], params: SamplingParams, modulation: Modulation, *, param: str) -> None:
        """Refuse what cannot be answered, or not at these terms.

        Raises:
            InvalidRequest: an empty prompt, one too long for the context, or a bias or a stop on what is no token.
            NotEntitled: log-probabilities, or what measures logits, beyond the disclosure.
        """
        check_text_disclosure(modulation.disclosure, logprobs=params.logprobs, probes=params.probes)
        check_context(self.context, len(prompt), params.drawn, param=param)
        if params.reads and modulation.focus:
            raise InvalidRequest(
                "echo with logprobs tells of a prompt at its level, without focus; leave one of the three out."
                f" In force are: {', '.join(modulation.focus)}.",
                param="echo",
                code="invalid_value",
            )
        self.language_model.encoder.checked([token for token, _ in params.logit_bias], "logit_bias")
        self.language_model.encoder.checked(list(params.stop_token_ids), "stop_token_ids")
        for field, asked in (("ignore_eos", params.ignore_eos), ("min_tokens", params.min_tokens > 0)):
            if asked and params.grammar is not None:
                raise InvalidRequest(
                    f"{field} does not go with {params.grammar.param}, which says where the answer ends.",
                    param=field,
                    code="invalid_value",
                )

    def setting(self, modulation: Modulation) -> Setting:
        """A request's terms by token.

        Raises:
            InvalidRequest: a focus on what has no tokens, or too many.
            Unavailable: the model is not calibrated yet, and the terms are not those of level 1.0.
        """
        self.check_served(modulation)
        return Setting(modulation.utility, dict(targets(self.tokenizer, modulation.focus, self.model_id).items()))

    async def generate(
        self,
        prompt: list[int],
        params: SamplingParams,
        modulation: Modulation,
        share: Share,
        *,
        param: str = "messages",
        choice: int = 0,
        meter: Meter | None = None,
    ) -> AsyncGenerator[TextDelta]:
        """Answer one prompt, piece by piece; the last piece has the finish reason. Closing the generator cancels.

        Before the first token come pieces without any: they tell how much of the prompt has been read.

        Args:
            prompt: token ids from `encode` or `encode_chat`.
            param: the field that a refusal of the prompt names.
            choice: which of several answers of one seed this is.
            meter: told what is used.

        Raises:
            InvalidRequest: as `check` and `setting`; a grammar that is none, or cannot be followed to its end.
            NotEntitled: as `check`.
            Unavailable: as `setting`; too many of this flow are waiting, or the engine has stopped.
        """
        self.check(prompt, params, modulation, param=param)
        setting = await asyncio.to_thread(self.setting, modulation)
        grammar = params.grammar
        matcher = None if grammar is None else await self.grammars.matcher(grammar, share)
        most, rounded = params.logprobs or 0, _rounding(modulation.disclosure.digits)
        echo = Echo(self.tokenizer.backend_tokenizer, prompt, self.encode("")) if params.echo else None
        text = self._transcript(prompt, params, rounded, len(echo.text) if echo else 0)
        seen, ending = 0, Ending(params, self.language_model.end_tokens)
        run = self.engine.run(prompt, params, setting, share, choice, matcher=matcher, meter=meter)
        async with aclosing(run) as steps:
            async for step in steps:
                if matcher is not None and matcher.fault is not None:
                    raise _unfollowed(matcher)
                if echo is not None and (step.tokens or step.last):
                    of_prompt = echo.logprobs(step.echoed, most, rounded) if params.reads else ()
                    reason = None if params.max_tokens else "length"
                    yield TextDelta(echo.text, 0, reason, step.read, 0, logprobs=of_prompt, cached_tokens=step.cached)
                    if reason is not None:
                        return
                    echo = None
                told, taken, stopped = ending.take(step.tokens)
                seen += taken
                piece = text.push(told, step.records[: len(told)], most)
                piece += text.flush() if step.last or stopped else ""
                reason = "stop" if stopped or text.stopped else ending.reason(step.tokens) if step.last else None
                logprobs = text.logprobs(reason is not None)
                yield TextDelta(piece, taken, reason, step.read, seen, logprobs=logprobs, cached_tokens=step.cached)
                if reason is not None:
                    return

    def _transcript(
        self, prompt: list[int], params: SamplingParams, rounded: Callable[[float], float], before: int
    ) -> Transcript:
        return Transcript(
            self.tokenizer.backend_tokenizer,
            prompt,
            params.stop,
            self.language_model.end_tokens,
            rounded,
            params.min_tokens,
            before=before,
        )

    def healthy(self, most_s: float = math.inf) -> None:
        """Check that the engine's loop runs, and has come by within so many seconds.

        Raises:
            Unavailable: it does not; only a new replica helps.
        """
        self.engine.healthy(most_s)

    def close(self) -> None:
        """Stop the engine for good; what is running or waiting fails as unavailable."""
        self.engine.close()
        self.grammars.close()


def _rounding(digits: int | None) -> Callable[[float], float]:
    return lambda logprob: logprob if digits is None else round(logprob, digits)


def _unfollowed(matcher: Matcher) -> InvalidRequest:
    said = first_line(ValueError(matcher.fault))
    return InvalidRequest(
        f"The answer could not be kept to {matcher.param} to its end ({said}); make it simpler.",
        param=matcher.param,
        code="invalid_value",
    )
