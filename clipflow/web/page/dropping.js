// Dropping on the page: one picture, an address or a result searches with it; several files or a folder are added.

import { addPart, addPicture } from './composer.js';
import { byId } from './dom.js';
import { fromDrop, isPicture } from './files.js';
import { DRAGGED } from './grid.js';
import { sendDropped } from './upload.js';

/** Wire the page. @param {(error: any) => void} onError */
export function dropping(onError) {
  const veil = byId('drop');
  let depth = 0;
  const enough = () => {
    depth = 0;
    veil.hidden = true;
  };
  document.addEventListener('dragenter', (event) => {
    if (!wanted(event)) return;
    depth += 1;
    veil.hidden = false;
  });
  document.addEventListener('dragleave', (event) => {
    if (wanted(event) && --depth <= 0) enough();
  });
  document.addEventListener('dragover', (event) => wanted(event) && event.preventDefault());
  document.addEventListener('drop', (event) => {
    enough();
    if (!wanted(event)) return;
    event.preventDefault();
    take(/** @type {DataTransfer} */ (event.dataTransfer)).catch(onError);
  });
}

/** @param {DragEvent} event */
const wanted = (event) =>
  !document.querySelector('dialog[open]') &&
  ['Files', 'text/uri-list', DRAGGED].some((kind) => event.dataTransfer?.types.includes(kind));

/** @param {DataTransfer} dropped */
async function take(dropped) {
  const id = dropped.getData(DRAGGED);
  const address = dropped.getData('text/uri-list').split('\n')[0].trim();
  if (id) return addPart({ kind: 'id', value: id, weight: 1 });
  const chosen = await fromDrop(dropped);
  if (chosen.length > 1) return sendDropped(chosen);
  if (chosen.length === 1 && isPicture(chosen[0].file)) return addPicture(chosen[0].file);
  if (chosen.length === 1) throw new Error('This file is no picture.');
  if (/^https?:/.test(address)) return addPart({ kind: 'uri', value: address, weight: 1 });
  throw new Error('There is nothing here to search with.');
}
