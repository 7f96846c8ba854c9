// Texts of documents with the words of the query marked.

import { element } from "./elements.js";

const WORD = /[\p{L}\p{N}\p{M}_]+/gu;

/** The parts of a snippet. Its marks are counted in characters of Unicode, of which JavaScript counts some as two. */
export function marked({ text, marks }) {
  const characters = Array.from(text);
  const parts = [];
  let end = 0;
  for (const [from, to] of marks) {
    parts.push(characters.slice(end, from).join(""), element("mark", {}, characters.slice(from, to).join("")));
    end = to;
  }
  return [...parts, characters.slice(end).join("")].filter((part) => part !== "");
}

/** The parts of a whole text, in which the words are marked that are marked in its snippet. */
export function markedAlike(text, snippet) {
  const characters = Array.from(snippet.text);
  const words = new Set(snippet.marks.map(([from, to]) => characters.slice(from, to).join("").toLowerCase()));
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(WORD)) {
    if (!words.has(found[0].toLowerCase())) continue;
    parts.push(text.slice(end, found.index), element("mark", {}, found[0]));
    end = found.index + found[0].length;
  }
  return [...parts, text.slice(end)];
}

/** A text of at most so many characters. */
export function shortened(text, most) {
  const characters = Array.from(text);
  return characters.length <= most ? text : `${characters.slice(0, most - 1).join("").trimEnd()}\u2026`;
}
