// The key of the server: asked for when it is wanted, kept in this tab's session and nowhere else.

import { byId } from "./elements.js";

const NAME = "retriever-key";
let asking = null;

/** The key, or null. */
export const keyOf = () => sessionStorage.getItem(NAME);

/** Asks for a key, once for all requests that want one; whether there is another one than was `tried`. */
export function askForKey(tried) {
  if (keyOf() !== tried) return Promise.resolve(keyOf() !== null);
  byId("key").hidden = false;
  asking ??= shown(tried === null ? "" : "The server does not know this key.").finally(() => (asking = null));
  return asking;
}

/** Has the button of the key ask for another one. */
export function prepareKey(changed) {
  byId("key").hidden = keyOf() === null;
  byId("key").addEventListener("click", async () => {
    if (await shown("Give another key, or none to forget this one.")) changed();
  });
}

function shown(why) {
  const dialog = byId("key-dialog");
  const input = byId("key-value");
  byId("key-why").textContent = why;
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    let given = false;
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      given = true;
      keep(input.value.trim());
      dialog.close();
    };
    byId("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => resolve(given);
  });
}

function keep(key) {
  if (key) sessionStorage.setItem(NAME, key);
  else sessionStorage.removeItem(NAME);
}
