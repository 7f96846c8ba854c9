// Requests to this server, with the key where one was given; what is refused is one line.

import { askForKey, keyOf } from "./key.js";

/** An answer that is none of what was asked for. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The answer to a request, asked again with a key when the server wants one. */
export async function request(path, { body, signal } = {}) {
  for (;;) {
    const key = keyOf();
    const answer = await sent(path, { body, signal, key });
    if (answer.ok) return answer;
    const message = await lineOf(answer);
    if (answer.status !== 401 || !(await askForKey(key))) throw new Refused(answer.status, message);
  }
}

/** The JSON of an answer. */
export const ask = async (path, options) => (await request(path, options)).json();

/** The path of a document's own route, on an index. */
export const ofDocument = (route, id, index, more = {}) => `v1/${route}/${encodeURIComponent(id)}?${new URLSearchParams({ index, ...more })}`;

async function sent(path, { body, signal, key }) {
  const headers = { ...(body ? { "Content-Type": "application/json" } : {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  try {
    return await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "the server does not answer; is it still running?");
  }
}

async function lineOf(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answered ${answer.status}`;
  }
}
