// What is wrong: records, levels, models, and whether the server is ready.

import { make } from "../api.js";
import { read, table } from "../admin.js";

export const title = () => "Health";

export async function render() {
  const [{ body }, ready] = await Promise.all([read("check"), fetch("readyz").then((answer) => answer.json())]);
  return [
    make("h2", {}, "Server"),
    table("Readiness", [["What", ([name]) => name], ["Is", ([, value]) => typeof value === "object" ? JSON.stringify(value) : String(value)]], Object.entries(ready)),
    make("h2", {}, "Records"),
    table("Problems", [["Record", (row) => row.key], ["Field", (row) => row.field], ["Problem", (row) => row.problem]], body.problems, "All records are sound."),
    make("h2", {}, "Levels"),
    table("Drift", [["Level", (row) => row]], body.drifted, "No level has drifted."),
  ];
}
