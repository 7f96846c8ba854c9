// Judgements of results, where the server keeps them.

import { ask } from "./api.js";
import { element } from "./elements.js";

const given = new Map();

/** Two buttons, of which the one that was pressed last holds. */
export function judging(result, column, fail) {
  const name = JSON.stringify([column.system.index, column.query, column.turns, result.id]);
  const buttons = [button(1, "Relevant", "relevant"), button(0, "Not relevant", "irrelevant")];

  function button(grade, words, kind) {
    return element("button", { type: "button", class: `quiet ${kind}`, "aria-pressed": String(given.get(name) === grade), onclick: () => judge(grade) }, words);
  }

  async function judge(grade) {
    const event = { query: column.query, turns: column.turns, id: result.id, index: column.system.index, rank: result.rank, grade };
    try {
      await ask("v1/feedback", { body: { events: [event] } });
      given.set(name, grade);
      buttons.forEach((one, place) => one.setAttribute("aria-pressed", String(place === 1 - grade)));
    } catch (error) {
      fail(error);
    }
  }

  return buttons;
}
