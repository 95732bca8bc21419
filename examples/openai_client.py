"""A streamed chat with the stock openai package, at the key's own level and turned towards a word.

Usage: set -a; . .data/demo.env; set +a; python examples/openai_client.py
"""

import os

from openai import OpenAI

client = OpenAI(base_url=f"{os.environ['BASE_URL']}/v1", api_key=os.environ["SILVER_KEY"])

for focus in ({}, {"ocean": 0.9}, {"ocean": -0.9}):
    stream = client.chat.completions.create(
        model="smollm2-135m-instruct",
        messages=[{"role": "user", "content": "Where would you go on a holiday, and why?"}],
        temperature=0,
        max_tokens=40,
        stream=True,
        extra_body={"focus": focus},
    )
    print(f"\nfocus {focus or 'none'}:")
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
