// A result as a card: it opens, says why it is there, and is judged.

import { ask, ofDocument } from "./api.js";
import { element, unseen } from "./elements.js";
import { judging } from "./judging.js";
import { pictureOf } from "./pictures.js";
import { marked, markedAlike, shortened } from "./texts.js";
import { whyOf } from "./why.js";

/** A card in a column; `page` has what the server can do, and what is to be done with a field's value and with an answer. */
export function card(result, column, move, page) {
  const title = element("button", { type: "button", class: "title", "aria-expanded": "false" }, result.title || element("code", {}, result.id));
  const text = element("p", { class: "text" }, marked(result.snippet));
  const picture = result.image ? pictureOf(result, column, 320) : null;
  const wrong = element("p", { class: "wrong", role: "alert" });
  const why = element("div", { class: "why" });
  const fail = (error) => (wrong.textContent = error.message);

  title.addEventListener("click", () => toggled(title, text, result, column, fail));
  const whyButton = element("button", { type: "button", class: "quiet ask-why", "aria-expanded": "false" }, "Why?");
  whyButton.addEventListener("click", () => explained(whyButton, why, result, column, fail));

  return element(
    "li",
    { class: `card ${move?.kind ?? ""}`, "data-id": result.id },
    element("span", { class: "rank", "aria-hidden": "true" }, String(result.rank)),
    picture,
    element(
      "article",
      {},
      element("h3", {}, element("span", { class: "number unseen" }, `${result.rank}. `), title, move ? moveOf(move) : null, scoreOf(result)),
      text,
      fieldsOf(result, page.byField),
      element(
        "div",
        { class: "row" },
        column.image ? null : whyButton, // explanations and judgements are of texts alone
        page.feedback && !column.image ? judging(result, column, fail) : null,
        page.take ? element("button", { type: "button", class: "quiet take", onclick: () => page.take(result) }, "Take as the answer") : null,
      ),
      wrong,
      why,
    ),
  );
}

/** Opens the whole document in the place of its snippet, or closes it. */
async function toggled(title, text, result, column, fail) {
  if (title.ariaExpanded === "true") {
    title.ariaExpanded = "false";
    text.classList.remove("whole");
    text.replaceChildren(...marked(result.snippet));
    return;
  }
  title.ariaExpanded = "true";
  try {
    const whole = result.text ?? (await ask(ofDocument("documents", result.id, column.system.index))).text;
    if (title.ariaExpanded !== "true") return;
    text.classList.add("whole");
    text.replaceChildren(...markedAlike(whole, result.snippet));
    if (!whole && !result.image) text.replaceChildren("This document has no text.");
  } catch (error) {
    title.ariaExpanded = "false";
    fail(error);
  }
}

async function explained(button, place, result, column, fail) {
  if (button.ariaExpanded === "true") {
    button.ariaExpanded = "false";
    place.replaceChildren();
    return;
  }
  button.ariaExpanded = "true";
  place.replaceChildren(element("p", { class: "note" }, "Looking for reasons\u2026"));
  try {
    const reasons = await whyOf(result, column);
    if (button.ariaExpanded === "true") place.replaceChildren(reasons);
  } catch (error) {
    button.ariaExpanded = "false";
    place.replaceChildren();
    fail(error);
  }
}

function moveOf({ kind, sign, words }) {
  return element("span", { class: `move ${kind}`, title: words }, element("span", { "aria-hidden": "true" }, sign), unseen(` ${words}`));
}

const scoreOf = (result) => element("span", { class: "score", title: "Score" }, unseen("score "), result.score.toFixed(3));

/** The fields; a press on a value that is no list filters by it. */
function fieldsOf(result, byField) {
  const fields = Object.entries(result.fields).flatMap(([field, value]) => (Array.isArray(value) ? value.map((one) => [field, one]) : [[field, value]]));
  if (!fields.length) return null;
  const shown = ([field, value]) => {
    const attributes = { type: "button", class: "field", title: "Only documents with this", onclick: () => byField(field, value) };
    return element("li", {}, element("button", attributes, `${field} `, element("b", {}, shortened(String(value), 40))));
  };
  return element("ul", { class: "fields", "aria-label": "Fields" }, fields.map(shown));
}
