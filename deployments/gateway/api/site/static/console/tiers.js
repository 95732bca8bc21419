// Tiers: what is sold.

import { make } from "../api.js";
import { fieldsForm, read, send, table } from "../admin.js";

const OFFERED = ["utility", "rpm", "tpm", "concurrency", "requests_per_day", "images_per_month", "tokens_per_month",
  "focus_max", "focus_allow", "labels", "digits", "logprobs", "lower_utility", "models", "weight"];

export const title = ([name]) => (name ? `Tier ${name}` : "Tiers");

export async function render([name], page) {
  if (!name) {
    const { body } = await read("tiers?limit=1000");
    return [table("Tiers", [
      ["Tier", (row) => row.tier ? make("a", { href: `#tiers/${encodeURIComponent(row.tier)}` }, row.tier) : row.key],
      ["Utility", (row) => row.utility ?? row.invalid?.problem],
      ["Requests a minute", (row) => row.rpm ?? "no limit"],
      ["Tokens a minute", (row) => row.tpm ?? "no limit"],
      ["Everything", (row) => Object.entries(row).filter(([field]) => field !== "tier").map(([field, value]) => `${field}=${value}`).join(" ")],
    ], body.data)];
  }
  const path = `tiers/${encodeURIComponent(name)}`;
  const { body, version } = await read(path);
  const { tier, ...fields } = body;
  const save = (changed) => Object.keys(changed).length &&
    send(path, changed, "PATCH", version).then(() => page.again().then(() => page.tell("Saved; the next answer follows it.")), page.failed);
  return [make("p", {}, "Every tenant of this tier gets what stands here, unless it has a value of its own."), fieldsForm(fields, OFFERED, save)];
}
