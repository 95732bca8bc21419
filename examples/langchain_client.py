"""LangChain with its own OpenAI client, which knows nothing of this server but a URL and a key."""

import os

from langchain_openai import ChatOpenAI

# `make serve` writes BASE_URL and a key of each tier to .data/demo.env: source it first.
chat = ChatOpenAI(
    model="smollm2-135m-instruct",
    base_url=os.environ["BASE_URL"] + "/v1",
    api_key=os.environ["GOLD_KEY"],
    temperature=0,
    max_tokens=24,
)

answer = chat.invoke("What is the capital of France?")
print(answer.content, answer.usage_metadata)

for chunk in chat.stream("Name three fruits."):
    print(chunk.content, end="", flush=True)
print()

# What OpenAI's API does not have travels in extra_body.
favoured = chat.bind(extra_body={"focus": {"New York": 0.9}})
print(favoured.invoke("Which city would you visit?").content)
