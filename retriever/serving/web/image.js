// The image that is searched with: chosen as a file, pasted or dropped, shown beside the query, and taken away.

import { byId, element } from "./elements.js";
import { shrunk } from "./shrink.js";
import { shortened } from "./texts.js";

let latest = null;

/** Has images be chosen where they are `offered()`; `use` is given { name, data, address }, or null when it is taken away, and `fail` an error. */
export function prepareImages(offered, limits, use, fail) {
  const take = async (files) => {
    const file = (latest = files.find((one) => one.type.startsWith("image/")) ?? files[0]);
    try {
      const image = await imageOf(file, limits());
      if (file === latest && offered()) use(image); // else another one was chosen meanwhile, or nothing here reads it any more
    } catch (error) {
      if (file === latest) fail(error);
    }
  };
  prepareChoosing(offered, take);
  preparePasting(offered, take);
  prepareDropping(offered, take);
  byId("take-away").addEventListener("click", () => use(null));
}

/** Shows the button where images are offered, and the one that is searched with. */
export function showImage(image, offered) {
  byId("image").hidden = !offered;
  byId("chosen").hidden = image === null;
  byId("chosen-picture").replaceChildren(...(image ? [element("img", { src: image.address, alt: `Searched with: ${image.name}` })] : []));
  byId("take-away").setAttribute("aria-label", image ? `Take away the image ${image.name}` : "Take away the image");
}

async function imageOf(file, limits) {
  const small = await shrunk(file, limits);
  return { name: shortened(file.name, 60), data: await asAddress(small), address: URL.createObjectURL(small) };
}

function asAddress(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

function prepareChoosing(offered, take) {
  const input = byId("image-file");
  byId("image").addEventListener("click", () => offered() && input.click()); // a key presses the button where it is hidden too
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = ""; // so that the same file can be chosen again
    if (files.length) take(files);
  });
}

function preparePasting(offered, take) {
  byId("query").addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length || event.clipboardData.getData("text/plain") || !offered()) return; // some programs copy a text as a picture as well
    event.preventDefault();
    take(files);
  });
}

/** A file that is dropped where none is taken would be opened in the place of the page. */
function prepareDropping(offered, take) {
  const carries = (event) => event.dataTransfer.types.includes("Files");
  const mark = (on) => document.body.toggleAttribute("data-dropping", on);
  document.addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = offered() ? "copy" : "none";
    mark(offered());
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && mark(false));
  document.addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    mark(false);
    if (offered() && event.dataTransfer.files.length) take([...event.dataTransfer.files]);
  });
}
