"""Ready-to-paste first calls for the configured models, with the demo keys where there are any."""

from __future__ import annotations

from pathlib import Path

from deployments.config import AppArgs, ModelSpec, Task
from deployments.environment import store_url
from tenants.admin.seed import ENV_FILE, read_env

CHAT = """\
curl {base}/v1/chat/completions -H "Authorization: Bearer $GOLD_KEY" -H 'content-type: application/json' -d '{{
  "model": "{model}", "temperature": 0, "max_tokens": 40,
  "messages": [{{"role": "user", "content": "What is the sea?"}}]}}'"""
EMBEDDING = """\
curl {base}/v1/embeddings -H "Authorization: Bearer $GOLD_KEY" -H 'content-type: application/json' -d '{{
  "model": "{model}", "input": ["the sea", "the tide"]}}' | cut -c -300"""
IMAGE = """\
curl {base}/models/{model} -H "Authorization: Bearer ${key}" --data-binary @{picture}{rest}"""


def first_calls(args: AppArgs, base_url: str) -> str:
    """What to paste into a shell."""
    env_file = args.store.folder / ENV_FILE
    keys = {name: value for name, value in read_env(env_file).items() if name.endswith("_KEY")}
    if store_url(args.store) != "embedded" or not keys:
        return (
            f"Serving at {base_url} (docs: {base_url}/docs). No demo tenants in this store: make one with\n"
            "  tenants create acme --tier <tier> && tenants key create acme"
        )
    lines = [f"Serving at {base_url} (docs: {base_url}/docs). Demo keys, also in {env_file}:", ""]
    lines += [f"  {name}={value}" for name, value in keys.items()]
    lines += ["", f"First calls (in another shell, after `. .venv/bin/activate; set -a; . {env_file}; set +a`):", ""]
    for spec in args.models:
        lines += [_call(spec, base_url), ""]
    return "\n".join(lines).rstrip()


def _call(spec: ModelSpec, base_url: str) -> str:
    if spec.task is Task.TEXT:
        return CHAT.format(base=base_url, model=spec.id)
    if spec.task is Task.EMBEDDING:
        return EMBEDDING.format(base=base_url, model=spec.id)
    folder = Path("examples")
    if spec.task is Task.CLASSIFICATION:
        picture, rest, key = folder / "ship.jpg", "", "FREE_KEY"
    else:
        picture, rest, key = folder / "street.jpg", " | cut -c -300", "SILVER_KEY"
    return IMAGE.format(base=base_url, model=spec.id, picture=picture, rest=rest, key=key)
