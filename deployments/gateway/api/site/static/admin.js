// The administration API, as the signed-in person.

import { asJson, call, keptKey, make } from "./api.js";

export const kept = keptKey("console-key");
const BASE = "admin/v1/";

export async function read(path) {
  const response = await call(BASE + path, kept.get());
  return { body: await response.json(), version: response.headers.get("etag") };
}

/** Every page of a list. */
export async function readAll(path) {
  const rows = [];
  for (let after = ""; ; ) {
    const { body } = await read(`${path}?limit=1000&after=${encodeURIComponent(after)}`);
    rows.push(...body.data);
    const last = rows.at(-1);
    if (!body.left || !last) return rows;
    after = last.id ?? last.tier ?? last.key.split(":").at(-1);
  }
}

export async function send(path, body, method = "POST", version = null) {
  const options = asJson(body, method);
  if (version) options.headers["if-match"] = version;
  return (await call(BASE + path, kept.get(), options)).json();
}

/** A table: `columns` are [heading, row => text or element]. */
export function table(caption, columns, rows, empty = "None.") {
  if (!rows.length) return make("p", {}, empty);
  const head = make("tr", {}, ...columns.map(([name]) => make("th", { scope: "col" }, name)));
  const body = rows.map((row) => make("tr", {}, ...columns.map(([, value]) => make("td", {}, value(row) ?? ""))));
  const scroll = { className: "overflow-auto", role: "region", tabIndex: 0, "aria-label": caption };
  return make("div", scroll, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

/** A form of a record's fields; `save` gets what differs: field to new text, or null where it was emptied. */
export function fieldsForm(record, offered, save) {
  const rows = make("div", { className: "fields" });
  const inputs = new Map();
  const add = (name, value) => {
    if (inputs.has(name)) return inputs.get(name).focus();
    const input = make("input", { value, autocomplete: "off", name });
    inputs.set(name, input);
    rows.append(make("label", {}, name, input));
  };
  for (const [name, value] of Object.entries(record)) add(name, String(value));
  const chosen = make("select", { "aria-label": "Another field" }, make("option", { value: "" }, "another field …"),
    ...offered.filter((name) => !(name in record)).map((name) => make("option", { value: name }, name)));
  chosen.addEventListener("change", () => { if (chosen.value) add(chosen.value, ""); chosen.value = ""; });
  const form = make("form", {}, rows, make("div", { className: "actions" }, chosen, make("button", { type: "submit" }, "Save")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const changed = {};
    for (const [name, input] of inputs) {
      const before = name in record ? String(record[name]) : "";
      if (input.value.trim() !== before) changed[name] = input.value.trim() === "" ? null : input.value.trim();
    }
    save(changed);
  });
  return form;
}
