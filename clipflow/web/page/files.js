// Files from a picker, a folder or a drop, and the batches in which they are sent.

/** @typedef {{file: File, id: string}} Chosen a file, and the id under which it will be stored */

const BATCH_FILES = 16;
const BATCH_BYTES = 24_000_000;
// Those of telephones, too: the service does not read them, and says what it reads.
const PICTURE = /\.(jpe?g|png|webp|gif|tiff?|bmp|avif|jp2|j2k|ppm|ico|hei[cf])$/i;

/** @param {File} file */
export const isPicture = (file) => file.type.startsWith('image/') || PICTURE.test(file.name);

/**
 * Of a folder the ids are the paths inside it, so that equal names in two folders are two documents.
 * @param {Iterable<File>} files @returns {Chosen[]}
 */
export const fromPicker = (files) => Array.from(files, (file) => ({ file, id: file.webkitRelativePath || file.name }));

/**
 * Everything that was dropped, folders too.
 * @param {DataTransfer} dropped @returns {Promise<Chosen[]>}
 */
export async function fromDrop(dropped) {
  const entries = [...dropped.items].map((item) => item.webkitGetAsEntry?.() ?? null).filter((entry) => entry !== null);
  if (!entries.length) return fromPicker(dropped.files);
  return (await Promise.all(entries.map(walk))).flat();
}

/**
 * What cannot be read, such as a folder of the system on a card, stands for itself: it is named as a failure, and the
 * others are taken.
 * @param {any} entry @returns {Promise<Chosen[]>}
 */
const walk = (entry) => inside(entry).catch(() => [{ file: new File([], entry.name), id: idOf(entry) }]);

/** @param {any} entry */
const idOf = (entry) => entry.fullPath.replace(/^\//, '');

/** @param {any} entry @returns {Promise<Chosen[]>} */
async function inside(entry) {
  if (entry.isFile) {
    /** @type {File} */
    const file = await new Promise((done, fail) => entry.file(done, fail));
    return [{ file, id: idOf(entry) }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    // A reader gives at most a hundred entries at once.
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) break;
    found.push(...some);
  }
  return (await Promise.all(found.map(walk))).flat();
}

/** @param {Chosen[]} chosen @returns {Chosen[][]} */
export function batchesOf(chosen) {
  /** @type {Chosen[][]} */
  const batches = [];
  let bytes = 0;
  for (const one of chosen) {
    const last = batches.at(-1);
    bytes += one.file.size;
    if (last && last.length < BATCH_FILES && bytes <= BATCH_BYTES) {
      last.push(one);
    } else {
      batches.push([one]);
      bytes = one.file.size;
    }
  }
  return batches;
}
