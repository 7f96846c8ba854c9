// One column of results, or two side by side.

import { card } from "./card.js";
import { byId, element } from "./elements.js";
import { movesOf } from "./moves.js";

/** Draws what was found in each column ({ results } or { error }), and gives the moves between two. */
export function draw(columns, found, page) {
  const moves = found.length === 2 && found.every((one) => one.results) ? movesOf(found[0].results, found[1].results) : null;
  const focused = document.activeElement?.closest("#columns .card")?.dataset.id;
  byId("columns").replaceChildren(...columns.map((column, side) => sectionOf(column, side, found[side], moves?.[side], page)));
  byId("columns").dataset.count = String(columns.length);
  showSides(columns);
  if (focused !== undefined) (titleOf(focused) ?? document.querySelector("#columns .title") ?? byId("query")).focus();
  return moves;
}

function sectionOf(column, side, found, moves, page) {
  const heading = element("h2", { id: `side-${side}` }, column.label);
  const own = { ...column, version: found.version };
  const cards = () => element("ol", { role: "list" }, found.results.map((result) => card(result, own, moves?.get(result.id), page)));
  const body = found.error ? element("p", { class: "wrong", role: "alert" }, found.error.message) : found.results.length ? cards() : nothing(page);
  return element("section", { "aria-labelledby": heading.id, "data-side": side }, heading, body);
}

function nothing(page) {
  const clear = page.filtered ? element("button", { type: "button", onclick: page.clear }, "Search without filters") : null;
  return element("p", { class: "row" }, page.filtered ? "Nothing meets these filters." : "Nothing was found.", clear);
}

/** On a small screen one side is shown at a time. */
function showSides(columns) {
  const place = byId("sides");
  place.hidden = columns.length < 2;
  if (place.hidden) return place.replaceChildren(); // no side is chosen by a page that has none
  const shown = (byId("columns").dataset.shown ??= "1");
  const choose = (side) => {
    byId("columns").dataset.shown = String(side);
    for (const [own, button] of [...place.children].entries()) button.setAttribute("aria-pressed", String(own === side));
  };
  const attributes = (side) => ({ type: "button", "aria-pressed": String(shown === String(side)), onclick: () => choose(side) });
  const button = (column, side) => element("button", attributes(side), column.label);
  place.replaceChildren(...columns.map(button));
}

/** Shows on the other side the document that is looked at on this one. */
export function prepareTwins() {
  const mark = (event) => {
    const own = event.target.closest?.(".card");
    for (const one of document.querySelectorAll('#columns[data-count="2"] .card')) {
      one.classList.toggle("twin", own !== null && one !== own && one.dataset.id === own?.dataset.id);
    }
  };
  byId("columns").addEventListener("pointerover", mark);
  byId("columns").addEventListener("focusin", mark);
}

const titleOf = (id) => [...document.querySelectorAll("#columns .card")].find((one) => one.dataset.id === id)?.querySelector(".title");
