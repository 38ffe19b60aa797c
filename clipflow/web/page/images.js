// Pictures that somebody searches with. They are kept in the tab, so that back, forward and reload find them again.

const PREFIX = 'clipflow.image.';
const LARGEST_BYTES = 1_000_000;
const LONGEST_SIDE = 1024;
const KEPT = 4;

/** @type {Map<string, string>} names to data: URIs */
const memory = new Map();

/** @param {Blob} file @returns {Promise<string>} the name under which the picture is kept */
export async function keep(file) {
  const data = await asDataUri(await smaller(file));
  const name = Array.from(crypto.getRandomValues(new Uint8Array(6)), (x) => x.toString(16).padStart(2, '0')).join('');
  memory.set(name, data);
  try {
    const kept = Object.keys(sessionStorage).filter((key) => key.startsWith(PREFIX));
    for (const old of kept.slice(0, Math.max(0, kept.length - KEPT + 1))) sessionStorage.removeItem(old);
    sessionStorage.setItem(PREFIX + name, data);
  } catch {
    // No room: a reload will not find this picture.
  }
  return name;
}

/** @param {string} name @returns {string | null} the picture as a data: URI */
export function dataOf(name) {
  const found = memory.get(name);
  if (found) return found;
  try {
    return sessionStorage.getItem(PREFIX + name);
  } catch {
    return null;
  }
}

/** @param {string} name @returns {Promise<string>} */
export async function base64Of(name) {
  const data = dataOf(name);
  if (!data) throw new Error('The picture of this search is not kept in this tab. Choose it again.');
  return data.slice(data.indexOf(',') + 1);
}

/**
 * A large picture is sent smaller; what the browser cannot read, or what is small enough, as it is.
 * @param {Blob} file @returns {Promise<Blob>}
 */
async function smaller(file) {
  if (file.size <= LARGEST_BYTES) return file;
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement('canvas');
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d'));
    pen.fillStyle = 'white';
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.imageSmoothingQuality = 'high';
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    return await new Promise((done) => canvas.toBlob((blob) => done(blob ?? file), 'image/jpeg', 0.92));
  } catch {
    return file;
  }
}

/** @param {Blob} blob @returns {Promise<string>} */
const asDataUri = (blob) =>
  new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(String(reader.result));
    reader.onerror = () => fail(new Error('This file cannot be read.'));
    reader.readAsDataURL(blob);
  });
