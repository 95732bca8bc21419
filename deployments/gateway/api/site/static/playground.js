// The playground: one input, two sides, the answers beside each other.

import { $, Refused, asJson, call, keptKey, make, say } from "./api.js";
import { drawOver, readMap, sameShare } from "./picture.js";
import { Side } from "./side.js";
import { snippets } from "./snippets.js";
import { changes, pieces } from "./text.js";

const SAMPLES = ["street.jpg", "ship.jpg"];
const kept = keptKey("playground-key");
const state = { models: [], terms: [], file: null, bitmap: null, maps: [] };
const sides = ["Side A", "Side B"].map((name) => new Side(name, () => showCode()));
const model = () => state.models.find((card) => card.id === $("#model").value);
const isText = () => model()?.task === "text-generation";

async function open(key) {
  const [entitled, listed] = await Promise.all([call("v1/entitlements", key), call("v1/models", key)]);
  const [own, cards] = [await entitled.json(), (await listed.json()).data];
  kept.set(key);
  state.models = cards.filter((card) => card.id === card.root);
  state.terms = own.models;
  $("#whose").textContent = `${own.name || own.tenant} · ${own.tier}`;
  $("#model").replaceChildren(...state.models.map((card) => make("option", { value: card.id }, `${card.id} (${card.task})`)));
  $("#sign-in").hidden = true;
  $("#work").hidden = $("#sign-out").hidden = false;
  if (!state.models.length) say($("#said"), "No model is ready for this key yet.", true);
  else choose();
}

function choose() {
  const card = model();
  const terms = state.terms.find((one) => one.id === card.id);
  $("#text-input").hidden = !isText();
  $("#picture-input").hidden = isText();
  $("#prompt").required = isText();
  $("#classes")?.remove();
  if (card.focus_classes)
    document.body.append(make("datalist", { id: "classes" }, ...card.focus_classes.map((value) => make("option", { value }))));
  sides[0].setModel(card, terms, card.utility);
  sides[1].setModel(card, terms, Math.min(0.7, card.utility));
  forgetAnswers();
}

function forgetAnswers() {
  state.maps = [];
  sides.forEach((side) => side.clear());
  say($("#difference"), "");
  $("#legend").hidden = $("#opacity-row").hidden = true;
  showCode();
}

async function takePicture(file) {
  try {
    state.bitmap = await createImageBitmap(file);
  } catch {
    return say($("#said"), `${file.name || "That"} is no picture that this browser can read.`, true);
  }
  state.file = file;
  const shown = $("#chosen");
  URL.revokeObjectURL(shown.src);
  Object.assign(shown, { src: URL.createObjectURL(file), alt: `Chosen picture: ${file.name || "picture"}`, hidden: false });
  $("#drop-words").textContent = file.name || "A picture";
  say($("#said"), "");
  forgetAnswers();
}

async function askBoth(event) {
  event.preventDefault();
  if (!isText() && !state.file) return say($("#said"), "Choose a picture first.", true);
  forgetAnswers();
  say($("#said"), "Asking …");
  $("#go").setAttribute("aria-busy", "true");
  const outcomes = await Promise.all(sides.map((side) => ask(side).catch((error) => side.refused(error) ?? null)));
  $("#go").removeAttribute("aria-busy");
  say($("#said"), "");
  if (outcomes.every(Boolean)) compare(outcomes);
}

async function ask(side) {
  const key = side.otherKey.value.trim() || kept.get();
  if (isText()) return askText(side, key);
  return model().task === "image-segmentation" ? askMap(side, key) : askLabels(side, key);
}

async function askText(side, key) {
  const body = {
    model: model().id, stream: true, max_tokens: Number($("#tokens").value) || 60, temperature: 0,
    messages: [{ role: "user", content: $("#prompt").value }], ...side.terms(),
  };
  const response = await call("v1/chat/completions", key, asJson(body));
  side.showReceipt(response.headers);
  const shown = make("div", { className: "text" });
  side.answer.replaceChildren(shown);
  let text = "";
  for await (const piece of pieces(response)) shown.textContent = text += piece;
  return { text, shown };
}

async function askPicture(side, key, parameters) {
  const bytes = new Uint8Array(await state.file.arrayBuffer());
  const inputs = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  const response = await call(`models/${model().id}`, key, asJson({ inputs, parameters: { ...parameters, ...side.terms() } }));
  side.showReceipt(response.headers);
  return { answer: await response.json(), scores: response.headers.get("x-scores") !== "undisclosed" };
}

async function askLabels(side, key) {
  const { answer, scores } = await askPicture(side, key, {});
  const rows = answer.map(({ label, score }) => make("tr", {}, make("th", { scope: "row" }, label),
    make("td", {}, scores ? make("meter", { value: score, "aria-label": label }) : "not disclosed"),
    make("td", {}, scores ? String(score) : "")));
  side.answer.replaceChildren(make("table", {}, make("tbody", {}, ...rows)));
  return { labels: answer };
}

async function askMap(side, key) {
  const { answer } = await askPicture(side, key, { format: "labelmap" });
  const map = await readMap(answer);
  const canvas = make("canvas", { role: "img", "aria-label": `Classes found: ${map.classes.map((one) => one.name).join(", ")}` });
  side.answer.replaceChildren(canvas);
  state.maps.push({ map, canvas });
  redraw();
  return { map };
}

function redraw() {
  const opacity = Number($("#opacity").value);
  for (const { map, canvas } of state.maps) drawOver(canvas, state.bitmap, map, opacity);
}

function compare([a, b]) {
  if (a.map) {
    const share = sameShare(a.map, b.map);
    if (share !== null) say($("#difference"), `${(100 * share).toFixed(1)} % of the pixels have the same class on both sides.`);
    const classes = new Map([...a.map.classes, ...b.map.classes].map((one) => [one.name, one.colour]));
    $("#legend").replaceChildren(...[...classes].map(([name, colour]) => {
      const swatch = make("span", { className: "swatch", "aria-hidden": "true" });
      swatch.style.backgroundColor = colour;
      return make("li", {}, swatch, name);
    }));
    $("#legend").hidden = $("#opacity-row").hidden = false;
  } else if (a.labels) {
    const same = a.labels[0].label === b.labels[0].label;
    say($("#difference"), same ? "Both sides give the same first label." : "The sides give different first labels.");
  } else {
    const words = changes(b.text, a.text);
    b.shown.replaceChildren(...words.map(({ word, changed }) => (changed ? make("mark", {}, word) : word)));
    const count = words.filter((word) => word.changed).length;
    say($("#difference"), count ? `${count} of side B's words differ from side A; they are marked.` : "Both sides say the same.");
  }
}

function showCode() {
  if (!model()) return;
  const code = snippets(model(), $("#prompt").value, sides[1].terms());
  $("#code").replaceChildren(...Object.entries(code).map(([language, text]) =>
    make("div", {}, make("h3", {}, language), make("pre", { tabIndex: 0, "aria-label": `${language} code` }, make("code", {}, text)))));
}

function signOut() {
  kept.forget();
  sides.forEach((side) => (side.otherKey.value = ""));
  location.reload();
}

async function signIn(key) {
  say($("#sign-in-said"), "");
  try {
    await open(key);
  } catch (error) {
    if (error instanceof Refused && error.status === 401) kept.forget();
    say($("#sign-in-said"), error.message, true);
  }
}

function listen() {
  $("#sides").append(...sides.map((side) => side.root));
  $("#key-form").addEventListener("submit", (event) => { event.preventDefault(); signIn($("#key").value.trim()); });
  $("#ask").addEventListener("submit", askBoth);
  $("#model").addEventListener("change", choose);
  $("#prompt").addEventListener("input", showCode);
  $("#sign-out").addEventListener("click", signOut);
  $("#opacity").addEventListener("input", redraw);
  $("#file").addEventListener("change", (event) => event.target.files[0] && takePicture(event.target.files[0]));
  const drop = $("#drop");
  for (const name of ["dragover", "dragleave", "drop"])
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.toggle("over", name === "dragover"); });
  drop.addEventListener("drop", (event) => event.dataTransfer.files[0] && takePicture(event.dataTransfer.files[0]));
  $("#samples").append(...SAMPLES.map((name) => {
    const button = make("button", { type: "button" }, make("img", { src: `pages/samples/${name}`, alt: `Try ${name.split(".")[0]}` }));
    button.addEventListener("click", async () => {
      const blob = await (await fetch(`pages/samples/${name}`)).blob();
      takePicture(new File([blob], name, { type: blob.type }));
    });
    return button;
  }));
}

listen();
if (kept.get()) signIn(kept.get());
