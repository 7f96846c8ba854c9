// The link to the report of the experiment that an index belongs to.

import { request } from "./api.js";
import { byId, element } from "./elements.js";
import { keyOf } from "./key.js";

/** Shows the link to an index's report, or hides it. A link takes no key with it: with one, the report is fetched and saved. */
export function reportLink(index) {
  const link = byId("report");
  link.hidden = index === null;
  if (index === null) return;
  link.href = `v1/reports/${encodeURIComponent(index)}`;
  link.onclick = keyOf() === null ? null : (event) => saved(event, link.href, index);
}

async function saved(event, path, index) {
  event.preventDefault();
  try {
    const address = URL.createObjectURL(await (await request(path)).blob());
    element("a", { href: address, download: `${index}-report.html` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000); // some browsers read it a little later
  } catch (error) {
    byId("status").textContent = error.message;
  }
}
