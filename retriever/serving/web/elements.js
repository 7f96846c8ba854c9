// Elements made of values. A text becomes a text node: nothing that a document says is read as HTML.

/** An element; attributes that are null or false are left out, those that begin with "on" are listeners. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** The element with an id of the page. */
export const byId = (id) => document.getElementById(id);

/** A text that only screen readers say. */
export const unseen = (text) => element("span", { class: "unseen" }, text);

/** A bar as long as a part, between 0 and 1, of its place; it says nothing that the number beside it does not. */
export function bar(part, tone = "") {
  const made = element("span", { class: `bar ${tone}`, "aria-hidden": "true" });
  made.style.setProperty("--part", Math.max(0, Math.min(1, part)).toFixed(3)); // the policy forbids style attributes, and not this
  return made;
}

/** The options of a select, [value, words] each; the chosen one stays chosen where it still is one. */
export function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, words]) => element("option", { value }, words)));
  select.value = options.some(([value]) => value === chosen) ? chosen : (options[0]?.[0] ?? "");
}

/** A count with its noun: 1 result, 2,000 results. */
export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

/** A number with a sign, as people write it. */
export const signed = (number, digits = 3) => `${number < 0 ? "\u2212" : "+"}${Math.abs(number).toFixed(digits)}`;
