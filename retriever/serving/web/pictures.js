// Images of documents, as the server draws them.

import { ofDocument, request } from "./api.js";
import { element } from "./elements.js";
import { keyOf } from "./key.js";

/** The image of a result, in a place that keeps its size while it loads. */
export function pictureOf(result, column, size) {
  const more = { size, ...(column.version ? { version: column.version } : {}) }; // a browser keeps what it has of this version
  const path = ofDocument("images", result.id, column.system.index, more);
  const picture = element("img", { class: "picture", alt: `Image: ${result.title || result.snippet.text || result.id}`, loading: "lazy" });
  picture.addEventListener("error", () => picture.replaceWith(element("span", { class: "picture note" }, "no picture")));
  if (keyOf() === null) picture.src = path;
  else fetched(picture, path);
  return picture;
}

/** An image takes no key with it, so its bytes are asked for. */
async function fetched(picture, path) {
  try {
    const address = URL.createObjectURL(await (await request(path)).blob());
    picture.addEventListener("load", () => URL.revokeObjectURL(address));
    picture.src = address;
  } catch {
    picture.dispatchEvent(new Event("error"));
  }
}
