// The call that is on the screen, for a shell, Python and JavaScript; the key is never in it.

const quoted = (text) => JSON.stringify(text);

function chat(base, model, prompt, terms) {
  const body = { model, messages: [{ role: "user", content: prompt }], ...terms };
  const extra = Object.keys(terms).length ? `,\n    extra_body=${python(terms)}` : "";
  return {
    curl: `curl ${base}/v1/chat/completions -H "Authorization: Bearer $API_KEY" \\\n  -H 'Content-Type: application/json' -d ${shell(JSON.stringify(body))}`,
    Python: `from openai import OpenAI\n\nclient = OpenAI(base_url=${quoted(`${base}/v1`)}, api_key=os.environ["API_KEY"])\nanswer = client.chat.completions.create(\n    model=${quoted(model)},\n    messages=[{"role": "user", "content": ${quoted(prompt)}}]${extra},\n)\nprint(answer.choices[0].message.content)`.replace(/^/, "import os\n"),
    JavaScript: `const response = await fetch(${quoted(`${base}/v1/chat/completions`)}, {\n  method: "POST",\n  headers: { authorization: \`Bearer \${key}\`, "content-type": "application/json" },\n  body: JSON.stringify(${JSON.stringify(body)}),\n});\nconsole.log((await response.json()).choices[0].message.content);`,
  };
}

function picture(base, model, terms) {
  const query = new URLSearchParams();
  if (terms.utility !== undefined) query.set("utility", terms.utility);
  const focus = Object.entries(terms.focus ?? {}).map(([name, strength]) => `${name}=${strength}`);
  if (focus.length) query.set("focus", focus.join(","));
  const address = `${base}/models/${model}${query.size ? `?${query}` : ""}`;
  return {
    curl: `curl ${shell(address)} -H "Authorization: Bearer $API_KEY" --data-binary @picture.jpg`,
    Python: `import os\nimport httpx\n\nanswer = httpx.post(\n    ${quoted(address)},\n    headers={"Authorization": f"Bearer {os.environ['API_KEY']}"},\n    content=open("picture.jpg", "rb").read(),\n)\nprint([found["label"] for found in answer.json()])`,
    JavaScript: `const response = await fetch(${quoted(address)}, {\n  method: "POST",\n  headers: { authorization: \`Bearer \${key}\` },\n  body: file,\n});\nconsole.log(await response.json());`,
  };
}

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const python = (value) => JSON.stringify(value);

/** Code by language. */
export function snippets(model, prompt, terms) {
  const base = new URL(".", location.href).href.replace(/\/$/, "");
  return model.task === "text-generation" ? chat(base, model.id, prompt, terms) : picture(base, model.id, terms);
}
