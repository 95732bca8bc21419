// Tenants, and one of them: its fields, keys and usage.

import { make } from "../api.js";
import { fieldsForm, read, readAll, send, table } from "../admin.js";
import { sparkline } from "../charts.js";

const OFFERED = ["tier", "name", "status", "utility", "rpm", "tpm", "concurrency", "requests_per_day", "images_per_month",
  "tokens_per_month", "weight", "focus_locked", "labels", "digits", "logprobs"];
const DAYS = 14;

export const title = ([name]) => name ?? "Tenants";
const address = (name) => `#tenants/${encodeURIComponent(name)}`;
const day = (period) => Object.values(period.total).length && (period.total.requests ?? 0);

export function render([name], page) {
  return name ? one(name, page) : all(page);
}

async function all(page) {
  const [rows, { body: tiers }] = await Promise.all([readAll("tenants"), read("tiers?limit=1000")]);
  const id = make("input", { required: true, placeholder: "id", "aria-label": "Id of a new tenant", pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*" });
  const tier = make("select", { "aria-label": "Tier of a new tenant" }, ...tiers.data.map((one) => make("option", {}, one.tier ?? "")));
  const form = make("form", {}, make("fieldset", { role: "group" }, id, tier, make("button", { type: "submit" }, "Create")));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    await send("tenants", { id: id.value.trim(), tier: tier.value }).then(() => (location.hash = address(id.value.trim())), page.failed);
  });
  return [form, table("Tenants", [
    ["Tenant", (row) => make("a", { href: address(row.id ?? row.key.split(":").at(-1)) }, row.name || row.id || row.key)],
    ["Tier", (row) => row.tier ?? (row.invalid ? `broken: ${row.invalid.field} ${row.invalid.problem}` : "")],
    ["Status", (row) => row.status ?? "active"],
    ["Utility of its own", (row) => row.utility ?? ""],
  ], rows, "No tenant yet.")];
}

async function one(name, page) {
  const path = `tenants/${encodeURIComponent(name)}`;
  const [tenant, keys, usage] = await Promise.all([read(path), read(`${path}/keys`), read(`${path}/usage?days=${DAYS}`)]);
  const save = (changed) =>
    Object.keys(changed).length &&
    send(path, changed, "PATCH", tenant.version).then(() => page.again().then(() => page.tell("Saved; the next answer follows it.")), page.failed);
  const { id, ...fields } = tenant.body;
  return [
    fieldsForm(fields, OFFERED, save),
    make("h2", {}, "Keys"), ...keyTable(path, keys.body.data, page),
    make("h2", {}, `Usage of ${DAYS} days`), ...usageTable(usage.body),
  ];
}

function keyTable(path, rows, page) {
  const label = make("input", { placeholder: "label", "aria-label": "Label of a new key" });
  const form = make("form", {}, make("fieldset", { role: "group" }, label, make("button", { type: "submit" }, "Create a key")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(`${path}/keys`, { label: label.value }).then(async (made) => {
      await page.again();
      const once = make("p", { className: "once", role: "status" }, "Shown once: ", make("code", {}, made.key ?? made.secret));
      document.querySelector("#part h1").after(once);
    }, page.failed);
  });
  const revoke = (row) => row.status !== "active" ? "" : make("button", {
    type: "button", className: "secondary outline", "aria-label": `Revoke ${row.prefix}`, textContent: "Revoke",
    onclick: () => confirm(`Revoke ${row.prefix}? Its calls are refused from now on.`) &&
      send(`keys/${row.id}/revoke`, {}).then(page.again, page.failed),
  });
  return [table("Keys", [
    ["Key", (row) => row.prefix ?? row.id], ["Label", (row) => row.label], ["Status", (row) => row.status],
    ["Last used", (row) => row.last_used ?? "never"], ["Change", revoke],
  ], rows, "No key yet."), form];
}

function usageTable(periods) {
  const rising = [...periods].sort((a, b) => a.period.localeCompare(b.period));
  const counters = [...new Set(periods.flatMap((one) => Object.keys(one.total)))]
    .filter((name) => periods.some((one) => one.total[name]));
  const line = sparkline(rising.map(day), `Requests by day, ${rising.map(day).join(", ")}`);
  return [line, table("Usage by day", [
    ["Day", (row) => row.period],
    ...counters.map((name) => [name.replaceAll("_", " "), (row) => (row.total[name] ?? 0).toLocaleString()]),
  ], periods.filter((one) => Object.values(one.total).some(Boolean)), "Nothing was used.")];
}
