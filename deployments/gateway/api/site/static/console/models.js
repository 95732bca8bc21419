// Models: each level in use, sold against delivered.

import { make } from "../api.js";
import { read, send, table } from "../admin.js";
import { levelChart } from "../charts.js";

export const title = () => "Models";
const figure = (tally) => (tally ? `${tally.level} ± ${tally.error} of ${tally.inputs} inputs` : "");

export async function render(_, page) {
  const [{ body: models }, { body: tiers }] = await Promise.all([read("models"), read("tiers?limit=1000")]);
  const names = (model, level) => tiers.data
    .filter((tier) => Number(tier[`utility:${model}`] ?? tier.utility) === level).map((tier) => tier.tier);
  const found = Object.entries(models).flatMap(([model, levels]) => part(model, levels, names, page));
  return found.length ? found : [make("p", {}, "No model reports now.")];
}

function part(model, levels, names, page) {
  const points = levels.filter((own) => own.delivered)
    .map((own) => ({ ...own, delivered: own.delivered.level, error: own.delivered.error, tiers: names(model, own.level) }));
  const refit = make("button", { type: "button", className: "secondary outline", textContent: "Solve anew on live inputs" });
  refit.addEventListener("click", () =>
    confirm(`Solve the levels of ${model} anew on what tenants sent lately?`) &&
    send(`models/${encodeURIComponent(model)}/calibrate`, { source: "live" }).then(() => page.tell(`${model}: begun.`), page.failed));
  return [
    make("h2", {}, model),
    make("div", { className: "charts" }, points.length ? levelChart(model, points) : make("p", {}, "Nothing was measured yet."),
      table(`Levels of ${model}`, [
        ["Level", (own) => own.level.toFixed(2)], ["Tiers", (own) => names(model, own.level).join(", ")],
        ["State", (own) => own.state], ["Delivered", (own) => figure(own.delivered)],
        ["Expected on recent inputs", (own) => figure(own.expected)], ["Note", (own) => own.note],
      ], levels)),
    refit,
  ];
}
