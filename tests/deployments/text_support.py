"""What the tests of the text engine share: the model that is served by default, in a small engine."""

from __future__ import annotations

import yaml

from deployments.config import REPOSITORY, AppArgs

SECRET = b"a secret for the tests"
_SERVED = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())["applications"][0]["args"]
_BY_ID = {model.id: model for model in AppArgs.model_validate(_SERVED).models}
SPEC = _BY_ID["smollm2-135m-instruct"].model_copy(update={"max_context": 512, "max_queue_per_tenant": 32})
