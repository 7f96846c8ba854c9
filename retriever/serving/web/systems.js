// What can be searched, and what it is held against: indexes, the first stages of an experiment, and a conversation without its history.

/** Against a conversation: the same system, which sees the last turn alone. */
export const ALONE = "/alone";

/** The ways to search that the server offers: { key, label, index, stages, kind, fields, documents, version }. */
export function systemsOf(indexes) {
  return indexes.flatMap((index) => {
    const whole = { ...index, key: index.name, label: index.name, index: index.name, stages: null };
    const first = index.stages.slice(0, -1).map((_, place) => ({
      ...whole,
      key: `${index.name}/${place + 1}`,
      label: `${index.name} up to stage ${place + 1} (${index.stages[place]})`,
      stages: place + 1,
    }));
    return [whole, ...first];
  });
}

/** The system of a key; the first one where there is none. */
export const systemOf = (systems, key) => systems.find((one) => one.key === key) ?? systems[0];

/** What the one that is searched can be held against, as [key, label]. */
export function besides(systems, shown) {
  const own = systemOf(systems, shown.index);
  const others = systems.filter((one) => one !== own).map((one) => [one.key, one.label]);
  return [["", "nothing"], ...(shown.talking ? [[ALONE, "the last turn alone"]] : []), ...others];
}

/** One or two columns: { system, label, query, turns, image }. The last one is what is searched; before it stands what it is held against. */
export function columnsOf(systems, shown, limits) {
  const system = systemOf(systems, shown.index);
  const { query, turns } = asked(shown, limits);
  const own = { system, label: system.label, query, turns, image: shown.image };
  if (shown.beside === ALONE && shown.talking) return [{ ...own, label: "the last turn alone", turns: [] }, { ...own, label: "with the history" }];
  const other = systems.find((one) => one.key === shown.beside && one !== system);
  return other ? [{ ...own, system: other, label: other.label }, own] : [own];
}

/** The query with what was said before it, of which the oldest is left out where it is more than the server takes. */
export function asked(shown, limits) {
  if (!shown.talking) return { query: shown.query.trim(), turns: [] };
  const last = shown.said.findLastIndex((turn) => turn.speaker === "user");
  if (last < 0) return { query: "", turns: [] };
  const query = shown.said[last].text;
  const turns = shown.said.slice(0, last).slice(-limits.turns);
  const length = () => [...query].length + turns.reduce((sum, turn) => sum + [...turn.text].length, 0);
  while (turns.length && length() > limits.query_characters) turns.shift();
  return { query, turns };
}
