// The page by keyboard alone.

import { byId, element } from "./elements.js";

const NAME = "retriever-letters";

const KEYS = [
  ["/", "to the query"],
  ["\u2193 or j", "next result"],
  ["\u2191 or k", "result before, or back to the query"],
  ["\u2190 \u2192 or h l", "the same document on the other side"],
  ["Enter", "open or close the document"],
  ["w", "why is it here?"],
  ["r, n", "relevant, not relevant"],
  ["a", "take as the answer"],
  ["f", "filter"],
  ["c", "conversation on or off"],
  ["i", "search with an image"],
  ["t", "theme: auto, light or dark"],
  ["Esc", "out of the query or a window"],
  ["?", "these keys"],
];

const titlesIn = (place) => [...document.querySelectorAll(`#columns ${place} .title`)].filter((one) => one.checkVisibility());
const titles = (side) => titlesIn(side === undefined ? "section" : `[data-side="${side}"]`);
const cardOf = (target) => target.closest?.("#columns .card");
const sideOf = (target) => target.closest("[data-side]").dataset.side;
const pressed = (selector) => (target) => cardOf(target)?.querySelector(selector)?.click();

const ACTIONS = {
  "/": () => byId("query").select(),
  "?": () => byId("help").click(),
  j: (target) => move(target, 1),
  k: (target) => move(target, -1),
  h: (target) => across(target, "0"),
  l: (target) => across(target, "1"),
  w: pressed(".ask-why"),
  r: pressed(".relevant"),
  n: pressed(".irrelevant"),
  a: pressed(".take"),
  f: () => byId("filters").click(),
  c: () => byId("conversation").click(),
  i: () => byId("image").click(),
  t: () => byId("theme").click(),
};
const ARROWS = { ArrowDown: "j", ArrowUp: "k", ArrowLeft: "h", ArrowRight: "l" };

/** Listens to keys, and shows them on demand. */
export function prepareKeys() {
  byId("key-list").replaceChildren(...KEYS.flatMap(([key, words]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, words)]));
  byId("help").addEventListener("click", () => byId("help-dialog").showModal());
  byId("letters").checked = kept() !== "off";
  byId("letters").addEventListener("change", () => keep(byId("letters").checked ? "on" : "off"));
  document.addEventListener("keydown", pressedKey);
}

function pressedKey(event) {
  const target = event.target;
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (target === byId("query")) return inQuery(event);
  if (target.matches?.("input, select, textarea")) return;
  const arrow = cardOf(target) && ARROWS[event.key];
  const action = arrow ? ACTIONS[arrow] : byId("letters").checked && Object.hasOwn(ACTIONS, event.key) ? ACTIONS[event.key] : null;
  if (!action) return;
  event.preventDefault();
  action(target);
}

function inQuery(event) {
  if (event.key === "ArrowDown" && titles().length) {
    event.preventDefault();
    titles()[0].focus();
  } else if (event.key === "Escape") {
    event.preventDefault();
    byId("query").blur();
  }
}

/** To the next result of this side; above the first one is the query. */
function move(target, by) {
  const card = cardOf(target);
  const own = card ? titles(sideOf(card)) : titles();
  const place = card ? own.indexOf(card.querySelector(".title")) + by : 0;
  if (place < 0) byId("query").focus();
  else focus(own[Math.min(place, own.length - 1)]);
}

/** To the same document on a side, or to what stands there at its rank. */
function across(target, side) {
  const card = cardOf(target);
  if (!card || sideOf(card) === side) return;
  const place = titles(sideOf(card)).indexOf(card.querySelector(".title"));
  byId("sides").children[side]?.click(); // a small screen shows one side at a time
  const there = titles(side);
  focus(there.find((title) => cardOf(title).dataset.id === card.dataset.id) ?? there[Math.min(place, there.length - 1)]);
}

function focus(title) {
  title?.focus({ preventScroll: true });
  title?.closest(".card").scrollIntoView({ block: "nearest" });
}

function kept() {
  try {
    return localStorage.getItem(NAME);
  } catch {
    return null;
  }
}

function keep(value) {
  try {
    localStorage.setItem(NAME, value);
  } catch {
    // then it holds for this page alone
  }
}
