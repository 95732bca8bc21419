"""The text engine: many tenants' sequences on one model, each step modulated to each tenant's terms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from torch import Tensor

from deployments.catalog import TextDelta
from deployments.config import ModelSpec
from deployments.engines.calibrated import CalibratedEngine
from deployments.engines.language_models import LanguageModel, load_language_model
from deployments.engines.live import Kept
from deployments.engines.sample import CalibrationSample
from deployments.engines.sampling import SamplingParams
from deployments.engines.text_calibration import TOLERANCE, calibration_rows
from deployments.engines.text_engine import TextEngine
from deployments.engines.text_modulation import TextTerms
from deployments.engines.text_stream import CANDIDATES
from deployments.engines.transcript import Transcript
from deployments.engines.words import focus_entries
from deployments.text_rules import check_context, check_text_disclosure
from policies.candidates import Candidates
from policies.errors import InvalidRequest, Unavailable
from policies.layer import ModulatedLayer
from policies.terms import Modulation, Share

__all__ = ["Generator", "SamplingParams", "TextDelta"]

DEFAULT_DEPTH = 32
_ROLES = ("system", "user", "assistant")


class Generator(CalibratedEngine):
    """A causal language model whose every sequence is answered at its tenant's terms.

    `load`, then `install` a calibration (from `fit` or the store), then `generate` from one asyncio loop.

    Attributes:
        fingerprint: 16 hex digits over weights and dtype; the same in every process.
        features: H, width of the final layer's input.
        vocabulary: V.
        final: the model's own final layer, tied to the embeddings where the model ties them.
        context: most tokens of prompt and answer together.
    """

    tolerance = TOLERANCE
    contention = 50
    length_scale = 0.8
    live_judged = 1024
    least_live = 40

    def __init__(self, spec: ModelSpec, language_model: LanguageModel) -> None:
        super().__init__()
        self.spec, self.model_id = spec, spec.id
        self.language_model = language_model
        self.tokenizer: Any = language_model.tokenizer
        self.fingerprint, self.final = language_model.fingerprint, language_model.final
        self.features, self.vocabulary = self.final.in_features, self.final.out_features
        self.context = min(language_model.context, spec.max_context or language_model.context)
        self.depth = spec.depth or DEFAULT_DEPTH
        self.device = next(self.final.parameters()).device
        self._engine: TextEngine | None = None

    @classmethod
    def load(cls, spec: ModelSpec, device: torch.device) -> Generator:
        """Load the model that `spec` names.

        Raises:
            LoadError: it cannot be loaded or modulated; the message names the source and says what to change.
        """
        return cls(spec, load_language_model(spec, device))

    def calibration_sample(
        self, path: Path | None = None, progress: Callable[[str], None] = lambda _: None
    ) -> CalibrationSample:
        """Decoding steps to calibrate on.

        Must not run beside `generate`, since it uses the model itself.

        Args:
            path: a text file of paragraphs to answer; None for the one written for this project.
            progress: told how far it is.

        Raises:
            LoadError: no such file, or too little text.
        """
        return calibration_rows(self.language_model, path, progress)

    def refit_sample(self, path: Path, progress: Callable[[str, float], None]) -> CalibrationSample:
        """Decoding steps of a text file's paragraphs; in a process that serves nobody.

        Raises:
            LoadError: as `calibration_sample`.
        """
        return self.calibration_sample(path, lambda step: progress(step, 0.0))

    def _put(self, layer: ModulatedLayer) -> None:
        self.close()
        self._engine = TextEngine(self.language_model, layer, self.spec, self.context)
        self.counts, self.live = self._engine.rows.counts, self._engine.rows.live

    def _adopt(self, adopt: Callable[[], None]) -> None:
        self.engine.rows.adopt(adopt)

    @torch.inference_mode()
    def _sample_of(self, kept: Kept) -> tuple[CalibrationSample, Tensor]:
        weight, bias = self.final.weight.data, self.final.bias
        features = kept.rows.to(self.device)
        # Not by calling the layer: the running engine listens to what goes into it.
        logits = (F.linear(part.to(weight.dtype), weight, bias) for part in features.split(256))
        highest = Candidates.join([Candidates.of(part, CANDIDATES) for part in logits])
        return CalibrationSample(features.float(), highest, at=kept.gathered().to(self.device)), kept.groups

    @property
    def engine(self) -> TextEngine:
        """The running engine.

        Raises:
            RuntimeError: `install` has not been called: a model without it would sell every level at full quality.
        """
        if self._engine is None:
            raise RuntimeError(f"{self.model_id} is not calibrated: call install() first")
        return self._engine

    def audit(self) -> dict[float, tuple[int, int]]:
        """Since start, by level: decoding steps, and those whose token after utility, before focus, is the clean."""
        return self.engine.rows.audit()

    def encode(self, text: str | list[int]) -> list[int]:
        """A plain prompt's tokens, from its text or as they are.

        Raises:
            InvalidRequest: an id that is no token.
        """
        if isinstance(text, str):
            return list(self.tokenizer.encode(text))
        self._check_tokens(text, "prompt")
        return text

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """A conversation's tokens in the model's own chat template, ready for the assistant's answer.

        Raises:
            InvalidRequest: no messages, an unknown role, or a model without a chat template.
        """
        if not messages:
            raise InvalidRequest("messages must hold at least one message.", param="messages", code="invalid_value")
        for index, message in enumerate(messages):
            if message.get("role") not in _ROLES:
                raise InvalidRequest(
                    f"The role '{message.get('role')}' is unknown; use one of {', '.join(_ROLES)}.",
                    param=f"messages[{index}].role",
                    code="unknown_role",
                )
        if not self.tokenizer.chat_template:
            raise InvalidRequest(
                f"{self.model_id} has no chat template; use /v1/completions.", param="messages", code="no_chat_template"
            )
        try:
            return list(
                self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
            )
        except TemplateError as error:
            raise InvalidRequest(
                f"The chat template of {self.model_id} refuses this conversation: {error}",
                param="messages",
                code="invalid_value",
            ) from None

    def check(self, prompt: Sequence[int], params: SamplingParams, modulation: Modulation, *, param: str) -> None:
        """Refuse what cannot be answered, or not at these terms.

        Raises:
            InvalidRequest: an empty prompt, one too long for the context, or a bias on what is no token.
            NotEntitled: log-probabilities or a bias beyond the disclosure.
        """
        biased = bool(params.logit_bias)
        check_text_disclosure(modulation.disclosure, logprobs=params.logprobs, biased=biased)
        check_context(self.model_id, self.context, len(prompt), params.max_tokens, param=param)
        self._check_tokens([token for token, _ in params.logit_bias], "logit_bias")

    def text_terms(self, modulation: Modulation) -> TextTerms:
        """A request's terms by token.

        Raises:
            InvalidRequest: a focus on what has no tokens, or too many.
        """
        entries = focus_entries(self.tokenizer, modulation.focus, self.model_id)
        return TextTerms(max(modulation.utility, self.floor), entries)

    async def generate(
        self,
        prompt: list[int],
        params: SamplingParams,
        modulation: Modulation,
        share: Share,
        *,
        param: str = "messages",
        choice: int = 0,
    ) -> AsyncGenerator[TextDelta]:
        """Answer one prompt, piece by piece; the last piece has the finish reason. Closing the generator cancels.

        Before the first token come pieces without any: they tell how much of the prompt has been read.

        Args:
            prompt: token ids from `encode` or `encode_chat`.
            param: the field that a refusal of the prompt names.
            choice: which of several answers of one seed this is.

        Raises:
            InvalidRequest: as `check` and `text_terms`.
            NotEntitled: as `check`.
            Unavailable: too many of this flow are waiting, or the engine has stopped.
        """
        self.check(prompt, params, modulation, param=param)
        terms = await asyncio.to_thread(self.text_terms, modulation)
        digits = modulation.disclosure.digits
        text = Transcript(
            self._decode,
            prompt,
            params.stop,
            self.language_model.end_tokens,
            lambda logprob: logprob if digits is None else round(logprob, digits),
        )
        seen, most = 0, params.logprobs or 0
        async with aclosing(self.engine.run(prompt, params, terms, share, choice)) as steps:
            async for step in steps:
                new, records = step.tokens[seen:], step.records[seen : len(step.tokens)]
                seen = len(step.tokens)
                piece = text.push(new, records, most) + (text.flush() if step.last else "")
                reason = self._finish_reason(step.tokens, step.last, text.stopped)
                logprobs = text.logprobs(reason is not None)
                yield TextDelta(piece, len(new), reason, step.read, seen, logprobs=logprobs)
                if reason is not None:
                    return

    def healthy(self) -> None:
        """Check that the engine's loop runs.

        Raises:
            Unavailable: it does not; only a new replica helps.
        """
        if self._engine is None:
            raise Unavailable(f"{self.model_id} is not ready yet.", retry_after=5, code="starting")
        self._engine.healthy()

    def close(self) -> None:
        """Stop the engine; what is running or waiting fails as unavailable."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _check_tokens(self, ids: Sequence[int], param: str) -> None:
        if wrong := [token for token in ids if not 0 <= token < self.vocabulary]:
            raise InvalidRequest(
                f"{wrong[0]} is no token of {self.model_id}; its ids are 0 to {self.vocabulary - 1}.",
                param=param,
                code="invalid_value",
            )

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _finish_reason(self, tokens: list[int], last: bool, stopped: bool) -> str | None:
        if stopped:
            return "stop"
        if not last:
            return None
        return "stop" if tokens and tokens[-1] in self.language_model.end_tokens else "length"
