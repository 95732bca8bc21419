// Streams of text, and what differs between two texts.

/** The pieces of a streamed chat answer. */
export async function* pieces(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event.choices?.[0]?.delta?.content ?? "";
    }
  }
}

const words = (text) => text.match(/\s+|[^\s]+/g) ?? [];

/** For each word of `text` whether it stands in `other` too, in the same order: their longest common subsequence. */
export function changes(text, other) {
  const a = words(text);
  const b = words(other);
  const best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
  const found = [];
  for (let i = 0, j = 0; i < a.length; i++) {
    while (j < b.length && a[i] !== b[j] && best[i][j] === best[i][j + 1]) j++;
    const same = j < b.length && a[i] === b[j];
    if (same) j++;
    found.push({ word: a[i], changed: !same && a[i].trim() !== "" });
  }
  return found;
}
