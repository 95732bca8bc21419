// What every page needs: keys that stay in this tab, and calls that fail in words.

/** What a server refused, as its error object says it. */
export class Refused extends Error {
  constructor(status, error) {
    super(error?.message ?? `The server answered ${status}.`);
    this.status = status;
    this.code = error?.code ?? null;
    this.param = error?.param ?? null;
  }
}

/** A key in this tab's session storage: gone with the tab, never in an address. */
export function keptKey(name) {
  return {
    get: () => sessionStorage.getItem(name) ?? "",
    set: (value) => sessionStorage.setItem(name, value),
    forget: () => sessionStorage.removeItem(name),
  };
}

/** Call the API; the response, or Refused. */
export async function call(path, key, options = {}) {
  let response;
  try {
    response = await fetch(path, {
      ...options,
      headers: { ...options.headers, authorization: `Bearer ${key}` },
      cache: "no-store",
    });
  } catch {
    throw new Refused(0, { message: "The server cannot be reached." });
  }
  if (response.ok) return response;
  let said = null;
  try {
    said = (await response.json()).error;
  } catch {
    // A proxy's own page: the status must do.
  }
  throw new Refused(response.status, said);
}

export const asJson = (body, method = "POST") => ({
  method,
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
});

/** An element with properties, attributes (by name with a dash or `role`) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && !name.includes("-")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Say something in a live region. */
export function say(element, text, wrong = false) {
  element.textContent = text;
  element.classList.toggle("wrong", wrong);
}

export const $ = (selector, within = document) => within.querySelector(selector);
