// Filters made of the fields that an index has: equality, ranges and sets.

import { byId, element, fill } from "./elements.js";

const OF_NUMBERS = [[">=", "at least"], ["<=", "at most"], ["=", "is"], ["!=", "is not"], [">", "above"], ["<", "below"], ["in", "is one of"]];
const OF_TEXTS = [["=", "is"], ["in", "is one of"], ["!=", "is not"], [">=", "from"], ["<=", "up to"]];
const COMPARISONS = { number: OF_NUMBERS, truth: [["=", "is"]], text: OF_TEXTS, texts: [["=", "has"], ["in", "has one of"], ["!=", "has not"]] };
const ofKind = (kind) => COMPARISONS[kind] ?? OF_TEXTS;

/** A filter with one more condition, or with another value of one. */
export const added = (filter, field, comparison, value) => ({ ...filter, [field]: { ...filter[field], [comparison]: value } });

/** A filter without a condition. */
export function removed(filter, field, comparison) {
  const { [comparison]: _, ...rest } = filter[field];
  const { [field]: __, ...others } = filter;
  return Object.keys(rest).length ? { ...others, [field]: rest } : others;
}

/** The value that a field of a kind is compared with, from what was typed. */
export function valueOf(kind, comparison, typed) {
  if (comparison === "in") {
    const parts = typed.split(",").map((part) => part.trim()).filter(Boolean);
    if (!parts.length) throw new Error("Name some values, with commas between them.");
    return parts.map((part) => valueOf(kind, "=", part));
  }
  if (!typed.trim()) throw new Error("Give a value.");
  if (kind === "truth") return typed === "true";
  if (kind !== "number") return typed.trim();
  if (!Number.isFinite(Number(typed))) throw new Error(`The field holds numbers, and \u201c${typed}\u201d is none.`);
  return Number(typed);
}

/** Has the form add conditions; `add` is given field, comparison and value. */
export function prepareFilters(fields, add) {
  const kindOf = () => fields()[byId("field").value] ?? "text";
  byId("filters").addEventListener("click", () => {
    const open = byId("filter").hidden;
    byId("filter").hidden = !open;
    byId("filters").setAttribute("aria-expanded", String(open));
    if (open) byId("field").focus();
  });
  byId("field").addEventListener("change", () => ofField(kindOf()));
  const take = () => {
    const [field, comparison, input] = [byId("field").value, byId("comparison").value, byId("value")];
    try {
      byId("filter-wrong").textContent = "";
      const value = valueOf(kindOf(), comparison, input.value);
      if (input.localName === "input") input.value = "";
      add(field, comparison, value);
      input.focus();
    } catch (error) {
      byId("filter-wrong").textContent = error.message;
    }
  };
  byId("add-filter").addEventListener("click", take);
  byId("filter").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.target.id !== "value") return;
    event.preventDefault();
    take();
  });
}

/** Shows the fields of an index; without any there is nothing to filter by. */
export function showFields(fields) {
  const names = Object.keys(fields).sort();
  byId("filters").hidden = !names.length;
  if (!names.length) byId("filter").hidden = true;
  const before = byId("field").value;
  fill(byId("field"), names.map((name) => [name, name]), before);
  if (!byId("value") || before !== byId("field").value) ofField(fields[byId("field").value] ?? "text");
}

/** Shows the conditions as chips that can be taken away. */
export function showConditions(filter, fields, remove) {
  const all = Object.entries(filter).flatMap(([field, compared]) => Object.entries(compared).map(([comparison, value]) => ({ field, comparison, value })));
  const chip = ({ field, comparison, value }) => {
    const words = `${field} ${new Map(ofKind(fields[field])).get(comparison) ?? comparison} ${Array.isArray(value) ? value.join(", ") : value}`;
    const press = () => {
      remove(field, comparison);
      (document.querySelector("#conditions button") ?? byId("query")).focus(); // what had the focus is gone
    };
    const attributes = { type: "button", class: "chip", "aria-label": `Remove the filter: ${words}`, onclick: press };
    return element("li", {}, element("button", attributes, words, element("span", { "aria-hidden": "true" }, " \u00d7")));
  };
  byId("conditions").replaceChildren(...all.map(chip));
}

/** Offers the values that the results have. */
export function offerValues(results) {
  const field = byId("field").value;
  const values = new Set(results.flatMap((result) => result.fields[field] ?? []).map(String));
  byId("values").replaceChildren(...[...values].sort().slice(0, 50).map((value) => element("option", { value })));
}

function ofField(kind) {
  fill(byId("comparison"), ofKind(kind));
  const input =
    kind === "truth"
      ? element("select", { id: "value" }, element("option", { value: "true" }, "true"), element("option", { value: "false" }, "false"))
      : element("input", { id: "value", type: "text", list: "values", autocomplete: "off", inputmode: kind === "number" ? "decimal" : null });
  byId("value-place").replaceChildren(input);
  byId("values").replaceChildren();
}
