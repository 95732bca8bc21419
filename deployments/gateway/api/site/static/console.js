// The console: who is signed in, and which part is shown.

import { $, Refused, make, say } from "./api.js";
import { kept, read } from "./admin.js";
import * as audit from "./console/audit.js";
import * as health from "./console/health.js";
import * as models from "./console/models.js";
import * as tenants from "./console/tenants.js";
import * as tiers from "./console/tiers.js";

const PARTS = { tenants, tiers, models, audit, health };
let asked = 0;

async function show() {
  const [part, ...rest] = location.hash.slice(1).split("/").map(decodeURIComponent);
  const name = part in PARTS ? part : "tenants";
  for (const link of document.querySelectorAll("#parts a"))
    link.toggleAttribute("aria-current", link.hash === `#${name}`);
  const own = ++asked;
  say($("#said"), "");
  try {
    const content = await PARTS[name].render(rest, { again: show, tell: (text) => say($("#said"), text), failed });
    if (own !== asked) return;
    $("#part").replaceChildren(make("h1", {}, PARTS[name].title(rest)), ...content);
  } catch (error) {
    if (own === asked) failed(error);
  }
}

function failed(error) {
  if (error instanceof Refused && error.status === 401) return signOut();
  say($("#said"), error.status === 412 ? "Somebody else changed it meanwhile: look at it again." : error.message, true);
}

function signOut() {
  kept.forget();
  location.hash = "";
  location.reload();
}

async function signIn(key) {
  kept.set(key);
  try {
    const { body } = await read("me");
    $("#whose").textContent = `${body.name} · ${body.role}`;
  } catch (error) {
    kept.forget();
    const off = error.status === 404;
    return say($("#sign-in-said"), off ? "Administration over HTTP is off; set `admin_api: true` for the gateway." : error.message, true);
  }
  $("#sign-in").hidden = true;
  $("#parts").hidden = $("#sign-out").hidden = false;
  window.addEventListener("hashchange", show);
  await show();
}

$("#key-form").addEventListener("submit", (event) => { event.preventDefault(); signIn($("#key").value.trim()); });
$("#sign-out").addEventListener("click", signOut);
if (kept.get()) signIn(kept.get());
