// The page: what the address says is asked for and drawn, and whatever is pressed or typed changes the address.

import { ask } from "./api.js";
import { draw, prepareTwins } from "./columns.js";
import { byId, count, fill } from "./elements.js";
import { added, offerValues, prepareFilters, removed, showConditions, showFields } from "./filters.js";
import { prepareImages, showImage } from "./image.js";
import { prepareKey } from "./key.js";
import { prepareKeys } from "./keyboard.js";
import { movesInWords } from "./moves.js";
import { reportLink } from "./report.js";
import { begin, change, state } from "./state.js";
import { ALONE, asked, besides, columnsOf, systemOf, systemsOf } from "./systems.js";
import { showHistory, showSaid } from "./talk.js";

/** After the last letter, until it is searched for. */
const WAIT_MS = 150;

/** Where answers take longer, they are not asked for at every letter. */
const QUICK_MS = 500;

let systems = [];
let abilities = { feedback: false, reports: [], images: [], limits: { k: 10, turns: 1, query_characters: 1000 } };
let running = null;
let waiting = 0;
let lastMs = 0;

async function start() {
  prepareKeys();
  prepareTwins();
  prepareKey(() => location.reload());
  prepareControls();
  try {
    const [listed, can] = await Promise.all([ask("v1/indexes"), ask("v1/abilities")]);
    systems = systemsOf(listed.indexes);
    abilities = can;
    delete document.body.dataset.loading;
  } catch (error) {
    tell(error.message, true);
    return;
  }
  begin(show);
  byId("query").value = state().talking ? "" : state().query;
  byId("query").focus();
  show(state());
}

function show(shown, gone = false) {
  const system = systemOf(systems, shown.index);
  fill(byId("index"), systems.map(({ key, label }) => [key, label]), system.key);
  const others = besides(systems, shown);
  fill(byId("beside"), others, shown.beside);
  byId("beside-label").hidden = others.length < 2;
  fill(byId("depth"), depths(shown.depth), String(shown.depth));
  showFields(system.fields);
  showConditions(shown.filter, system.fields, (field, comparison) => set({ filter: removed(state().filter, field, comparison) }));
  showSaid(shown);
  showImage(shown.image, takesImages(shown));
  reportLink(abilities.reports.includes(system.index) ? system.index : null);
  if (gone) byId("query").value = shown.talking ? "" : shown.query;
  document.title = [asked(shown, abilities.limits).query || shown.image?.name, "retriever"].filter(Boolean).join(" \u2013 ");
  search(shown);
}

async function search(shown) {
  clearTimeout(waiting);
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const columns = columnsOf(systems, shown, abilities.limits);
  if (!columns[0].query && !shown.image) {
    nothingAsked(shown, columns.at(-1).system);
    return;
  }
  byId("columns").setAttribute("aria-busy", "true");
  const found = await Promise.all(columns.map((column) => searched(column, shown, signal)));
  if (signal.aborted) return;
  byId("columns").removeAttribute("aria-busy");
  const moves = draw(columns, found, page(shown));
  tellFound(found, moves, shown.image);
  const lists = found.map((one) => one.results ?? []);
  byId("more").hidden = shown.depth >= abilities.limits.k || lists.every((list) => list.length < shown.depth);
  offerValues(lists.flat());
  lastMs = Math.max(...found.map((one) => one.timings_ms?.total ?? 0));
  await showHistory(columns.at(-1), found.at(-1), shown, signal);
}

/** What one column found, or why it found nothing. */
async function searched({ system, query, turns, image }, shown, signal) {
  const body = { ...(image ? { image: image.data } : { query, turns }), index: system.index, k: shown.depth, filter: shown.filter, text: system.kind === "engine" };
  try {
    return await ask("v1/search", { body: system.stages ? { ...body, stages: system.stages } : body, signal });
  } catch (error) {
    return { error };
  }
}

const page = (shown) => ({
  feedback: abilities.feedback,
  filtered: Object.keys(shown.filter).length > 0,
  clear: () => changeAndAsk({ filter: {} }),
  byField: (field, value) => set({ filter: added(state().filter, field, "=", value) }),
  take: shown.talking ? take : null,
});

function take(result) {
  changeAndAsk({ said: [...state().said, { speaker: "agent", text: result.snippet.text || result.title || result.id }] });
}

/** Whether one of the columns can be searched with an image; a conversation cannot. */
const takesImages = (shown) => !shown.talking && columnsOf(systems, shown, abilities.limits).some(({ system }) => abilities.images.includes(system.index));

/** Searches with an image in the place of a text, or takes it away. */
function useImage(image) {
  if (!image) return changeAndAsk({ image });
  byId("query").value = "";
  set({ image });
}

/** Where what was pressed may be gone afterwards: the focus goes to the query. */
function changeAndAsk(part) {
  set(part);
  byId("query").focus();
}

/** Changes what is shown, and takes what is typed along. */
function set(part) {
  change(state().talking ? part : { query: byId("query").value.trim(), ...part });
}

function nothingAsked(shown, system) {
  draw([], [], page(shown));
  byId("columns").removeAttribute("aria-busy");
  byId("history").hidden = true;
  byId("more").hidden = true;
  const version = system.version === null ? "" : `, version ${system.version}`;
  const next = shown.talking ? "Say something: it is searched with, and so is what comes next." : "Type to search; ? shows the keys.";
  tell(`${count(system.documents, "document")} in ${system.label}${version}. ${next}`);
}

function tellFound(found, moves, image) {
  const whose = image ? ` for the image ${image.name}` : "";
  if (moves) return tell(`${movesInWords(moves)}${whose}; ${found.map((answer) => ms(answer)).join(" and ")}`);
  const one = found.findLast((answer) => answer.results);
  if (!one) return tell("No results.");
  const version = one.version === null ? "" : `, version ${one.version}`;
  tell(`${count(one.results.length, "result")}${whose} in ${ms(one)}${version}`);
}

const ms = ({ timings_ms: { total } }) => `${total.toFixed(total < 10 ? 1 : 0)} ms`;

function tell(words, wrong = false) {
  byId("status").textContent = words;
  byId("status").classList.toggle("wrong", wrong);
}

function depths(own) {
  const allowed = [...new Set([10, 20, 50, own])].filter((depth) => depth <= abilities.limits.k || depth === own);
  return allowed.sort((a, b) => a - b).map((depth) => [String(depth), String(depth)]);
}

// Controls

function prepareControls() {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    submitted(byId("query").value.trim());
  });
  byId("query").addEventListener("input", typed);
  byId("index").addEventListener("change", () => {
    const index = byId("index").value;
    set({ index, beside: state().beside === index ? "" : state().beside });
  });
  byId("beside").addEventListener("change", () => set({ beside: byId("beside").value }));
  byId("depth").addEventListener("change", () => set({ depth: Number(byId("depth").value) }));
  byId("more").addEventListener("click", () => set({ depth: Math.min(state().depth + 10, abilities.limits.k) }));
  byId("conversation").addEventListener("click", toggled);
  byId("undo").addEventListener("click", () => changeAndAsk({ said: state().said.slice(0, -1) }));
  byId("anew").addEventListener("click", () => changeAndAsk({ said: [] }));
  prepareImages(
    () => systems.length > 0 && takesImages(state()),
    () => abilities.limits,
    useImage,
    (error) => tell(error.message, true),
  );
  prepareFilters(
    () => systemOf(systems, state().index).fields,
    (field, comparison, value) => set({ filter: added(state().filter, field, comparison, value) }),
  );
}

function submitted(text) {
  if (!state().talking) {
    change({ query: text });
  } else if (text) {
    byId("query").value = "";
    change({ said: [...state().said, { speaker: "user", text }] });
  }
}

/** Searches while a query is typed, where answers come quickly; a turn of a conversation is said by Enter. */
function typed() {
  clearTimeout(waiting);
  const slow = lastMs > QUICK_MS || systemOf(systems, state().index).kind === "stages";
  if (state().talking || (slow && byId("query").value)) return;
  waiting = setTimeout(() => change({ query: byId("query").value.trim() }, true), WAIT_MS);
}

/** Into a conversation the query goes as its first turn, and out of it the last turn as the query. */
function toggled() {
  const { talking, said } = state();
  const query = byId("query").value.trim();
  const last = said.findLast((turn) => turn.speaker === "user")?.text ?? "";
  byId("query").value = talking ? last : "";
  if (talking) change({ talking: false, query: last, beside: state().beside === ALONE ? "" : state().beside });
  else change({ talking: true, said: query ? [{ speaker: "user", text: query }] : [] });
  byId("query").focus();
}

start();
