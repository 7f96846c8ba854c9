// What the page shows, as a value that the address holds behind #: it can be shared and gone back to, and no server or proxy logs it.

/** A page without a query. */
export const START = Object.freeze({ query: "", index: "", beside: "", depth: 10, filter: {}, talking: false, said: [], image: null });

/** Images that are remembered, so that the way back to them is open. */
const MOST_IMAGES = 20;

/** By what history.state says of an entry: an image stands in no address, and a page that is opened anew has none. */
const images = new Map();

let current = START;
let drafting = false;
let told = () => {};

/** What is shown now. */
export const state = () => current;

/** Begins with what the address says; `show` is called whenever something else is to be shown, and told whether the reader went there through the history. */
export function begin(show) {
  told = show;
  addEventListener("popstate", () => {
    drafting = false;
    current = shownThere();
    told(current, true);
  });
  current = shownThere();
}

/** Changes what is shown. A draft (a query that is being typed) takes the place of the draft before it, so that "back" passes over them. */
export function change(part, draft = false) {
  const next = asOne({ ...current, ...part });
  const address = location.pathname + location.search + toAddress(next);
  if (toAddress(next) !== toAddress(current) || next.image !== current.image) {
    const mark = next.image && keep(next.image);
    if (drafting) history.replaceState(mark, "", address);
    else history.pushState(mark, "", address);
  }
  drafting = draft;
  current = next;
  told(current);
}

const shownThere = () => asOne({ ...fromAddress(location.hash), image: images.get(history.state) ?? null });

/** A text takes the place of an image, and so does a conversation. */
const asOne = (shown) => (shown.query || shown.talking ? { ...shown, image: null } : shown);

/** Remembers an image, and gives what names it; the oldest one is forgotten where there are too many. */
function keep(image) {
  image.mark ??= Math.random(); // a number that counted would mean another image after a reload
  images.set(image.mark, image);
  if (images.size > MOST_IMAGES) {
    const [mark, { address }] = images.entries().next().value;
    images.delete(mark);
    URL.revokeObjectURL(address);
  }
  return image.mark;
}

/** The part of the address behind #, "#" with nothing behind it for the start. */
export function toAddress(shown) {
  const parts = new URLSearchParams();
  if (shown.query && !shown.talking) parts.set("q", shown.query);
  if (shown.index) parts.set("in", shown.index);
  if (shown.beside) parts.set("beside", shown.beside);
  if (shown.depth !== START.depth) parts.set("k", shown.depth);
  if (Object.keys(shown.filter).length) parts.set("filter", JSON.stringify(shown.filter));
  if (shown.talking) parts.set("talk", "1");
  for (const turn of shown.talking ? shown.said : []) parts.append(turn.speaker, turn.text);
  return `#${parts}`;
}

/** What an address says; what cannot be read of it is passed over. */
export function fromAddress(hash) {
  const parts = new URLSearchParams(hash.slice(1));
  const said = [...parts].filter(([speaker, text]) => ["user", "agent"].includes(speaker) && text.trim()).map(([speaker, text]) => ({ speaker, text }));
  return {
    query: parts.get("q") ?? "",
    index: parts.get("in") ?? "",
    beside: parts.get("beside") ?? "",
    depth: Math.max(1, Math.trunc(Number(parts.get("k"))) || START.depth),
    filter: filterOf(parts.get("filter")),
    talking: parts.has("talk"),
    said,
    image: null,
  };
}

function filterOf(text) {
  try {
    const found = JSON.parse(text ?? "{}");
    const conditions = Object.entries(found).filter(([, compared]) => compared && typeof compared === "object" && !Array.isArray(compared));
    return Object.fromEntries(conditions);
  } catch {
    return {};
  }
}
