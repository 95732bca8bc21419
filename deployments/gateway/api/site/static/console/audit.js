// The audit trail.

import { make } from "../api.js";
import { read, table } from "../admin.js";

export const title = () => "Audit";

export async function render() {
  const [{ body }, { body: whole }] = await Promise.all([read("audit?count=200"), read("audit/verify")]);
  const sound = whole.broken.length ? `Broken at entries ${whole.broken.join(", ")}.` : `Whole: ${whole.entries} entries, each over the hash of the one before.`;
  return [
    make("p", { className: whole.broken.length ? "wrong" : "" }, sound),
    table("Changes", [["When", (row) => row.time], ["Who", (row) => row.who], ["By", (row) => row.via],
      ["What", (row) => row.action], ["Of", (row) => row.subject], ["From → to", changes]], body.data, "No change yet."),
  ];
}

function changes(row) {
  const lines = Object.entries(row.changes ?? {}).map(([field, [from, to]]) => `${field}: ${from ?? "none"} → ${to ?? "none"}`);
  return make("div", {}, ...lines.flatMap((line) => [line, document.createElement("br")]), row.detail ?? "");
}
