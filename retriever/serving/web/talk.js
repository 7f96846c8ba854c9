// A conversation: what was said, what the student read of it, and what the history changed.

import { ask, ofDocument } from "./api.js";
import { bar, byId, count, element, signed } from "./elements.js";
import { shortened } from "./texts.js";
import { table } from "./why.js";

/** Documents that are named of those which an earlier turn brings in or keeps out. */
const NAMED = 3;

const SPEAKERS = { user: "You", agent: "Answer" };

/** Shows what was said. */
export function showSaid(shown) {
  byId("talk").hidden = !shown.talking;
  byId("conversation").setAttribute("aria-pressed", String(shown.talking));
  byId("undo").hidden = byId("anew").hidden = !shown.said.length;
  const turn = ({ speaker, text }) => element("li", { class: speaker }, element("b", {}, SPEAKERS[speaker]), element("span", {}, text));
  byId("said").replaceChildren(...(shown.talking ? shown.said.map(turn) : []));
  byId("said").scrollTop = byId("said").scrollHeight;
  byId("said").tabIndex = byId("said").scrollHeight > byId("said").clientHeight ? 0 : -1; // what scrolls can be reached by keyboard
  byId("query").placeholder = shown.talking ? (shown.said.length ? "What comes next?" : "Say something") : "Search";
}

/** Shows what the student read of the turns, and asks what the history changed. */
export async function showHistory(column, found, shown, signal) {
  const place = byId("history");
  place.hidden = !column.turns.length || !found.read;
  if (place.hidden) return place.replaceChildren();
  const changed = element("div", { "aria-busy": "true" }, element("p", { class: "note" }, "Looking at what the history changed\u2026"));
  place.replaceChildren(element("h2", {}, "What the student read"), readOf(found.read, column.query), changed);
  try {
    const body = { query: column.query, turns: column.turns, index: column.system.index, filter: shown.filter, k: Math.min(shown.depth, 10) };
    const { history } = await ask("v1/explain", { body, signal });
    const titles = new Map(found.results.map((result) => [result.id, result.title]));
    if (history.kind === "turns") await learnTitles(history.rows, titles, column.system.index, signal);
    changed.replaceChildren(...contributed(history, titles));
  } catch (error) {
    if (error.name === "AbortError") return;
    changed.replaceChildren(element("p", { class: "wrong" }, error.message));
  }
  changed.removeAttribute("aria-busy");
}

/** Takes in the titles of the documents that the history keeps out; what has none is called by its id. */
async function learnTitles(rows, titles, index, signal) {
  const unknown = new Set(rows.flatMap((row) => row.come.slice(0, NAMED)).filter((id) => !titles.has(id)));
  const learn = async (id) => titles.set(id, (await ask(ofDocument("documents", id, index), { signal })).title);
  await Promise.allSettled([...unknown].map(learn));
}

/** The text that was encoded, the last turn in bold; and what of the history had no room. */
function readOf(read, query) {
  const at = read.text.startsWith(query) ? 0 : read.text.lastIndexOf(query);
  const parts = at < 0 ? [read.text] : [read.text.slice(0, at), element("b", {}, query), read.text.slice(at + query.length)];
  const lost = [read.left_out ? `${count(read.left_out, "earlier turn")} had no room` : "", read.cut ? "one was cut" : ""].filter(Boolean).join("; ");
  return element("blockquote", {}, parts, lost ? element("p", { class: "note" }, `${lost}.`) : null);
}

function contributed({ kind, rows, whole }, titles) {
  if (!whole) return [element("p", { class: "note" }, UNREAD)];
  return [element("p", { class: "note" }, WHOLE[kind](whole)), ROWS[kind](rows, titles)];
}

const UNREAD = "The history changes nothing: this student reads the last turn alone. A server started with --reads all has it read everything.";

const moved = (whole) => `The history moves the query by ${whole.toFixed(3)} (1 \u2212 cosine).`;
const shared = (whole) => `The words of the history have ${(100 * whole).toFixed(0)} % of the best documents\u2019 scores.`;
const WHOLE = { turns: moved, terms: moved, words: shared };
const ROWS = { turns: ofTurns, terms: ofTerms, words: ofWords };

function ofTurns(rows, titles) {
  const most = Math.max(...rows.map((row) => row.moved), 1e-9);
  const name = (id) => element("li", {}, shortened(titles.get(id) || id, 60));
  const rest = (ids) => (ids.length > NAMED ? element("li", { class: "note" }, `and ${ids.length - NAMED} more`) : null);
  const named = (ids) => (ids.length ? element("ul", { role: "list" }, ids.slice(0, NAMED).map(name), rest(ids)) : "\u2013");
  const lines = rows.map((row) => [shortened(row.text, 120), row.moved.toFixed(3), bar(row.moved / most), named(row.gone), named(row.come)]);
  return table(["Earlier turn", "Moves", "", "Brings in", "Keeps out"], lines);
}

function ofTerms(rows) {
  const most = Math.max(...rows.map((row) => Math.abs(row.weight - row.alone)), 1e-9);
  const change = (row) => row.weight - row.alone;
  const barOf = (row) => bar(Math.abs(change(row)) / most, change(row) < 0 ? "loss" : "");
  const lines = rows.map((row) => [row.term, signed(change(row), 2), barOf(row), row.alone.toFixed(2), row.weight.toFixed(2)]);
  return table(["Term", "Change", "", "Alone", "With the history"], lines);
}

function ofWords(rows) {
  const most = Math.max(...rows.map((row) => row.share), 1e-9);
  return table(["Word of the history", "Share", ""], rows.map((row) => [row.word, `${(100 * row.share).toFixed(1)} %`, bar(row.share / most)]));
}
