"""LiteLLM, as one provider beside others: `openai/` in front of the model's id, a URL and a key."""

import os

import litellm

# `make serve` writes BASE_URL and a key of each tier to .data/demo.env: source it first.
server = {"api_base": os.environ["BASE_URL"] + "/v1", "api_key": os.environ["GOLD_KEY"]}
model = "openai/smollm2-135m-instruct"
question = [{"role": "user", "content": "What is the capital of France?"}]

answer = litellm.completion(model=model, messages=question, temperature=0, max_tokens=24, **server)
print(answer.choices[0].message.content, answer.usage.total_tokens)

for chunk in litellm.completion(model=model, messages=question, temperature=0, max_tokens=24, stream=True, **server):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
