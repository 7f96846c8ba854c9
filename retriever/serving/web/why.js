// Why a document has its score: sentences, words with both weights, or pairs of tokens, by the kind of the student; and what stages gave it.

import { ask } from "./api.js";
import { bar, element, signed } from "./elements.js";

/** The rows of an explanation, asked for now. */
export async function whyOf(result, column) {
  const body = { query: column.query, id: result.id, index: column.system.index, turns: column.turns };
  const { explanation, stages } = await ask("v1/explain", { body });
  return element("div", {}, stages.length ? ofStages(stages) : null, explanation ? ofStudent(explanation, stages.length > 0) : null);
}

function ofStudent(explanation, staged) {
  const alone = staged ? " The student alone is explained here." : "";
  return [
    element("p", { class: "note" }, `${WORDS[explanation.kind]} The student\u2019s score of the whole document: ${explanation.score.toFixed(3)}.${alone}`),
    explanation.rows.length ? TABLES[explanation.kind](explanation.rows) : element("p", {}, "There is nothing in common that could be shown."),
  ];
}

function ofStages(stages) {
  const rankOf = ({ rank, candidates, kept }) => (rank === null ? "\u2013" : `${rank} of ${candidates}${kept ? "" : ", not kept"}`);
  const barOf = ({ rank, candidates }) => bar(rank === null ? 0 : (candidates - rank + 1) / candidates);
  const number = (score) => (score === null ? "\u2013" : score.toFixed(3));
  const partsOf = ({ parts }) => parts.map(({ ranker, score }) => `${ranker} ${number(score)}`).join(", ") || "\u2013";
  const lines = stages.map((stage) => [stage.name, rankOf(stage), barOf(stage), number(stage.score), partsOf(stage)]);
  const note = "What each stage gave the document: its rank among those that the stage ranked, the score by which it has this rank, and what that is made of.";
  return [element("p", { class: "note" }, note), table(["Stage", "Rank", "", "Score", "Made of"], lines)];
}

const WORDS = {
  sentences: "Lost is what the score loses without a sentence (below zero, it stands in the way), alone is the score of the sentence by itself.",
  words: "The words that query and document share; the products add up to the score.",
  tokens: "Each token of the query with the one of the document that is most like it; the similarities add up to the score.",
};

const TABLES = { sentences: ofSentences, words: ofWords, tokens: ofTokens };

function ofSentences(rows) {
  const most = Math.max(...rows.map((row) => Math.abs(row.lost)), 1e-9);
  const lines = rows.map((row) => [row.text, signed(row.lost), bar(Math.abs(row.lost) / most, row.lost < 0 ? "loss" : ""), row.alone.toFixed(3)]);
  return table(["Sentence", "Lost", "", "Alone"], lines);
}

function ofWords(rows) {
  const most = Math.max(...rows.map((row) => row.product), 1e-9);
  const lines = rows.map((row) => [row.word, row.product.toFixed(3), bar(row.product / most), row.query.toFixed(2), row.document.toFixed(2)]);
  return table(["Word", "Product", "", "In the query", "In the document"], lines);
}

function ofTokens(rows) {
  const most = Math.max(...rows.map((row) => row.similarity), 1e-9);
  const name = (token) => token || element("i", {}, "special");
  return table(
    ["In the query", "Similarity", "", "In the document"],
    rows.map((row) => [name(row.query), row.similarity.toFixed(3), bar(row.similarity / most), name(row.document)]),
  );
}

/** A table, whose first column is text, the second a number and the third its bar. */
export function table(headings, lines) {
  const head = headings.map((words) => (words ? element("th", { scope: "col" }, words) : element("td", {})));
  const cell = (value, place) => element("td", { "data-label": headings[place + 1] || null }, value);
  const body = lines.map(([first, ...rest]) => element("tr", {}, element("th", { scope: "row" }, first), rest.map(cell)));
  return element("table", {}, element("thead", {}, element("tr", {}, head)), element("tbody", {}, body));
}
