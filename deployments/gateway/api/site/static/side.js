// One of the two sides: its level, its focus, its key, and what it was answered.

import { $, make } from "./api.js";

const RECEIPT = {
  "x-utility": "level",
  "x-utility-reason": "why this level",
  "x-tenant-tier": "tier",
  "x-focus": "focus",
  "x-cost": "price",
  "x-policy-version": "policy",
  "x-ratelimit-remaining-requests": "requests left",
  "x-request-id": "request",
};

export class Side {
  constructor(name, changed) {
    this.root = $("#side").content.cloneNode(true).firstElementChild;
    this.name = name;
    this.changed = changed;
    $("h2", this.root).textContent = name;
    this.range = $(".utility-range", this.root);
    this.level = $(".level", this.root);
    this.answer = $(".answer", this.root);
    this.otherKey = $(".other-key", this.root);
    this.focus = new Map();
    this.range.setAttribute("aria-label", `Utility of ${name}`);
    this.range.addEventListener("input", () => this.showLevel());
    this.otherKey.addEventListener("change", () => changed());
    $(".add", this.root).addEventListener("click", () => this.addFocus($(".focus-name", this.root).value.trim()));
    $(".focus-name", this.root).addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      this.addFocus(event.target.value.trim());
    });
  }

  /** Take a model's terms: `card` of /v1/models and `terms` of /v1/entitlements. */
  setModel(card, terms, wanted) {
    this.card = card;
    this.most = terms.focus_max;
    const { utility: top, lowest_utility: low } = card;
    Object.assign(this.range, { min: low, max: top, disabled: low >= top });
    this.range.value = Math.min(top, Math.max(low, wanted ?? top));
    $(".why-fixed", this.root).textContent =
      low >= top ? "This tier does not let a request ask for a lower level; give this side another key." : "";
    $(".focus-none", this.root).hidden = this.most > 0;
    $(".focus-none", this.root).textContent = "This tier does not let a request set focus.";
    $(".focus-add", this.root).hidden = this.most <= 0;
    $(".focus-name", this.root).setAttribute("list", card.focus_classes ? "classes" : "");
    this.focus.clear();
    $(".focus-rows", this.root).replaceChildren();
    this.clear();
    this.showLevel();
  }

  showLevel() {
    this.level.value = Number(this.range.value).toFixed(2);
    this.changed();
  }

  addFocus(name) {
    const known = this.card.focus_classes;
    if (!name || this.focus.has(name) || (known && !known.includes(name))) return;
    const strength = Math.min(this.most, 0.9);
    const shown = make("output", {}, strength.toFixed(2));
    const range = make("input", {
      type: "range", min: -this.most, max: this.most, step: 0.05, value: strength,
      "aria-label": `Focus on ${name} of ${this.name}`,
    });
    const row = make("div", { className: "focus-row" }, make("span", {}, name), range, shown);
    row.append(make("button", {
      type: "button", className: "secondary outline", "aria-label": `Remove ${name}`, textContent: "×",
      onclick: () => { this.focus.delete(name); row.remove(); this.changed(); },
    }));
    range.addEventListener("input", () => {
      this.focus.set(name, Number(range.value));
      shown.value = Number(range.value).toFixed(2);
      this.changed();
    });
    this.focus.set(name, strength);
    $(".focus-rows", this.root).append(row);
    $(".focus-name", this.root).value = "";
    this.changed();
  }

  /** What this side asks for beyond its key's own terms. */
  terms() {
    const terms = {};
    if (!this.card) return terms;
    if (!this.range.disabled && Number(this.range.value) < this.card.utility) terms.utility = Number(this.range.value);
    const focus = [...this.focus].filter(([, strength]) => strength !== 0);
    if (focus.length) terms.focus = Object.fromEntries(focus);
    return terms;
  }

  clear() {
    this.answer.replaceChildren();
    this.answer.classList.remove("wrong");
    $(".receipt", this.root).replaceChildren();
    $(".signed", this.root).hidden = true;
  }

  refused(error) {
    this.clear();
    this.answer.classList.add("wrong");
    this.answer.textContent = error.message;
  }

  /** The receipt of an answer, as its headers say it. */
  showReceipt(headers) {
    const level = headers.get("x-utility");
    if (level) this.level.value = Number(level).toFixed(2);
    const rows = Object.entries(RECEIPT).flatMap(([header, words]) => {
      const value = headers.get(header);
      return value === null ? [] : [make("dt", {}, words), make("dd", {}, header === "x-focus" ? decodeURIComponent(value) : value)];
    });
    $(".receipt", this.root).replaceChildren(...rows);
    const signed = headers.get("x-receipt");
    $(".signed", this.root).hidden = !signed;
    $(".signed code", this.root).textContent = signed ?? "";
  }
}
