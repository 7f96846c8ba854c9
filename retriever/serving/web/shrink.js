// An image made small: no student sees more of it, and no request becomes too large.

/** Pixels of the longest side that are sent. */
const SIDE = 640;

/** Below this nothing would be seen any more. */
const LEAST_SIDE = 16;

/** Of a file that is read at all: all of it is decoded in this tab. */
const MOST_MIB = 64;

/** The image of a file as a PNG or JPEG within the server's limits, upright, without the file's other data; an error is one line. */
export async function shrunk(file, limits) {
  if (file.size > MOST_MIB * 2 ** 20) throw new Error(`${file.name} is too large: it has ${mib(file.size)} MiB, and ${MOST_MIB} are read.`);
  const bitmap = await decoded(file);
  try {
    return await written(bitmap, file, limits);
  } finally {
    bitmap.close();
  }
}

const mib = (bytes) => Math.ceil(bytes / 2 ** 20).toLocaleString("en");

async function decoded(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is no image that this browser reads, or too large a one. PNG, JPEG, WebP, GIF and BMP are read.`);
  }
}

/** Half of a body is the image's: base64 makes two thirds of it, and the rest is for the filter. */
async function written(bitmap, file, limits) {
  const types = file.type === "image/jpeg" ? ["image/jpeg"] : ["image/png", "image/jpeg"];
  for (let side = SIDE; side >= LEAST_SIDE; side /= 2) {
    const canvas = drawn(bitmap, side, limits.image_pixels);
    for (const type of types) {
      const blob = await new Promise((resolve) => canvas.toBlob(resolve, type, 0.92));
      if (blob && blob.size <= limits.body_bytes / 2) return blob;
    }
  }
  throw new Error(`${file.name} is too large for this server, however small it is made.`);
}

function drawn(bitmap, side, pixels) {
  const { width, height } = bitmap;
  const scale = Math.min(1, side / Math.max(width, height), Math.sqrt(pixels / (width * height)));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height].map((length) => Math.max(1, Math.floor(length * scale)));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#ffffff"; // where the image lets something through, the server sees white too
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}
