// What a page calls with a key: a chat, streamed, and a picture; and the receipts that it may read of them.
async function chatAndPicture(base, key, text, classifier) {
  const headers = { authorization: `Bearer ${key}` };
  const body = { model: text, messages: [{ role: "user", content: "The capital of France?" }], max_tokens: 8, stream: true };
  const chat = await fetch(`${base}/v1/chat/completions`, {
    method: "POST", headers: { ...headers, "content-type": "application/json" }, body: JSON.stringify(body),
  });
  const told = { text: "", reads: 0, receipt: chat.headers.get("x-receipt"), utility: chat.headers.get("x-utility") };
  const reader = chat.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    told.reads += 1;
    told.text += read.value;
  }
  if (!told.text.trimEnd().endsWith("data: [DONE]")) throw new Error(told.text);
  const file = await (await fetch("/ship.jpg")).blob();
  const picture = await fetch(`${base}/models/${classifier}`, { method: "POST", headers, body: file });
  return { chat: told, picture: { labels: await picture.json(), receipt: picture.headers.get("x-receipt") } };
}
