// How far documents move from one ranking to another.

import { count } from "./elements.js";

/** For both sides: id -> { kind, sign, words }; the second side says how far a document moved, the first where it went. */
export function movesOf(first, second) {
  const [before, after] = [first, second].map((results) => new Map(results.map((result) => [result.id, result.rank])));
  const left = new Map(first.map(({ id }) => [id, after.has(id) ? to(after.get(id), before.get(id)) : DROPPED]));
  const right = new Map(second.map(({ id }) => [id, before.has(id) ? from(before.get(id) - after.get(id)) : NEW]));
  return [left, right];
}

/** The moves in one line. */
export function movesInWords([left, right]) {
  const kinds = [...right.values()].map((move) => move.kind);
  const moved = kinds.filter((kind) => kind === "up" || kind === "down").length;
  const fresh = kinds.filter((kind) => kind === "new").length;
  const dropped = [...left.values()].filter((move) => move.kind === "dropped").length;
  const same = kinds.filter((kind) => kind === "same").length;
  return `${moved} moved, ${same} unmoved, ${fresh} new, ${dropped} dropped`;
}

const NEW = { kind: "new", sign: "new", words: "not among the results on the left" };
const DROPPED = { kind: "dropped", sign: "dropped", words: "not among the results on the right" };
const SAME = { kind: "same", sign: "=", words: "at the same rank on both sides" };

function from(by) {
  if (!by) return SAME;
  const kind = by > 0 ? "up" : "down";
  return { kind, sign: `${by > 0 ? "\u25b2" : "\u25bc"} ${Math.abs(by)}`, words: `${kind} ${count(Math.abs(by), "place")}` };
}

function to(rank, before) {
  return rank === before ? SAME : { kind: "to", sign: `\u2192 ${rank}`, words: `at rank ${rank} on the right` };
}
