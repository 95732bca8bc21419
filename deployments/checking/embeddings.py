"""Checks of models that make embeddings: loaded as a replica loads them, and asked for some."""

from __future__ import annotations

import time

import numpy as np
import torch

from deployments.checking.report import Report, took
from deployments.config import ModelSpec
from deployments.engines.errors import LoadError
from deployments.engines.text.embedder import Embedder

TEXTS = ("The tide comes in.", "The sea rises at the coast twice a day.", "A recipe for bread.")
CLOSE = 1e-3


def check_embeddings(spec: ModelSpec, report: Report, device: torch.device) -> None:
    """Fill a report.

    Raises:
        LoadError: it cannot be loaded, or embeds a text otherwise beside others than alone.
    """
    began = time.perf_counter()
    embedder = Embedder.load(spec, device)
    report.facts["embeddings"] = f"{embedder.dimensions} dimensions, {embedder.pooling} of a text's hidden states"
    report.facts["context"] = f"{embedder.context:,} tokens"
    report.facts["levels"] = "none: served to tenants at level 1.0 alone"
    report.facts["loaded in"] = took(time.perf_counter() - began)
    prompts = [embedder.encoder.text(text) for text in TEXTS]
    together = [np.frombuffer(made, np.float32) for made in embedder.embed(prompts)]
    alone = [np.frombuffer(embedder.embed([prompt])[0], np.float32) for prompt in prompts]
    if any(np.abs(one - other).max() > CLOSE for one, other in zip(together, alone, strict=True)):
        raise LoadError(f"{spec.id}: a text's embedding depends on what else is in its batch; name another model")
    near, far = together[0] @ together[1], together[0] @ together[2]
    report.facts["similarity"] = f"{near:.2f} of two texts on one subject, {far:.2f} of two on different ones"
