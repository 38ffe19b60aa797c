// The dialog that adds pictures: choose or drop them, watch, cancel. It may be closed while it sends.

import { byId, counted, icon, iconButton, make, sentence, toast } from './dom.js';
import { fromDrop, fromPicker } from './files.js';
import { Sending } from './sending.js';

/** @typedef {import('./files.js').Chosen} Chosen */

const SHOWN_FAILURES = 200;
const dialog = byId('upload');
const word = byId('add-text');
/** @type {Sending | null} */
let sending = null;
/** @type {() => void} */
let onStored = () => {};

/** Wire the dialog. @param {() => void} stored called when the collection has grown */
export function upload(stored) {
  onStored = stored;
  byId('add').addEventListener('click', openUpload);
  dialog.addEventListener('click', (/** @type {Event} */ event) => event.target === dialog && dialog.close());
  dialog.addEventListener('dragover', (/** @type {Event} */ event) => event.preventDefault());
  dialog.addEventListener('drop', async (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    event.stopPropagation();
    if (event.dataTransfer) take(await fromDrop(event.dataTransfer));
  });
  window.addEventListener('beforeunload', (event) => sending?.stage === 'sending' && event.preventDefault());
}

/** Show the dialog: what is being sent, or the choice. */
export function openUpload() {
  if (sending?.stage === 'sending') drawProgress(sending);
  else drawChoice();
  if (!dialog.open) dialog.showModal();
}

/** Files were dropped on the page. @param {Chosen[]} chosen */
export function sendDropped(chosen) {
  openUpload();
  take(chosen);
}

/** @param {Chosen[]} chosen */
function take(chosen) {
  if (sending?.stage === 'sending') toast('Others are being sent. Drop these again when they are through.');
  else begin(chosen);
}

const head = () =>
  make(
    'div.head',
    {},
    make('h2', { id: 'upload-title', text: 'Add pictures' }),
    iconButton('close', 'Close', () => dialog.close()),
  );

function drawChoice() {
  const picker = (/** @type {string} */ id, /** @type {string} */ label, /** @type {object} */ given) => {
    const field = make('input', { type: 'file', id, multiple: true, hidden: true, 'aria-label': label, ...given });
    field.addEventListener('change', () => field.files.length && begin(fromPicker(field.files)));
    return field;
  };
  const files = picker('files', 'Pictures', { accept: 'image/*' });
  const folder = picker('folder', 'A folder of pictures', { webkitdirectory: true });
  dialog.replaceChildren(
    head(),
    make(
      'div.zone',
      {},
      icon('upload'),
      make('p', { text: 'Drop pictures or a folder here' }),
      make(
        'div.actions',
        {},
        make('button.solid', { type: 'button', text: 'Choose pictures', onclick: () => files.click() }),
        make('button.soft', { type: 'button', text: 'Choose a folder', onclick: () => folder.click() }),
      ),
      files,
      folder,
    ),
    make(
      'fieldset.tagging',
      {},
      make('legend', { text: 'A tag for all of them, if you like' }),
      make('input', { id: 'tag-name', placeholder: 'album', 'aria-label': 'Name of the tag' }),
      make('input', { id: 'tag-value', placeholder: '2024', 'aria-label': 'Value of the tag' }),
    ),
    make('p.hint', { text: 'A picture with the same name as a stored one replaces it.' }),
  );
}

/** @param {Chosen[]} chosen */
async function begin(chosen) {
  const name = dialog.querySelector('#tag-name')?.value.trim();
  const value = dialog.querySelector('#tag-value')?.value.trim();
  await go(new Sending(chosen, name && value ? { [name]: value } : {}, drawProgress));
}

/** Start it, or go on with what is left of it. @param {Sending} now */
async function go(now) {
  sending = now;
  await now.run();
  if (now.stored) onStored();
  if (!dialog.open) toast(`${counted(now.stored, 'picture')} stored, ${counted(now.failures.length, 'failure')}.`);
}

/** @param {Sending} now */
function drawProgress(now) {
  const running = now.stage === 'sending';
  word.textContent = running ? `${Math.floor((100 * now.done) / now.total)} %` : 'Add pictures';
  if (!dialog.querySelector('.progress')) drawFrame();
  const put = (/** @type {string} */ part, /** @type {string} */ text) => {
    dialog.querySelector(part).textContent = text;
  };
  const bar = dialog.querySelector('progress');
  [bar.max, bar.value] = [now.total || 1, now.done];
  put('.figures', `${now.done.toLocaleString('en')} of ${now.total.toLocaleString('en')}`);
  put('.pace', running ? pace(now) : '');
  put('.outcome', outcome(now));
  dialog.querySelector('.cancel').hidden = !running;
  dialog.querySelector('.onward').hidden = running || now.waiting.length === 0;
  dialog.querySelector('.again').hidden = running;
  dialog.querySelector('.failed').hidden = now.failures.length === 0;
  put('.failed summary', counted(now.failures.length, 'file was not stored', 'files were not stored'));
  const list = dialog.querySelector('.failed ul');
  for (const { id, reason } of now.failures.slice(list.children.length, SHOWN_FAILURES)) {
    list.append(make('li', {}, make('b', { text: id }), make('span', { text: sentence(reason) })));
  }
}

function drawFrame() {
  dialog.replaceChildren(
    head(),
    make(
      'div.progress',
      {},
      make('div.numbers', {}, make('span.figures'), make('span.pace')),
      make('progress', { 'aria-label': 'Pictures sent' }),
      make('p.outcome', { role: 'status' }),
    ),
    make('details.failed', { open: true, hidden: true }, make('summary'), make('ul', { tabindex: '0' })),
    make(
      'div.actions',
      {},
      make('button.soft.cancel', { type: 'button', text: 'Cancel', onclick: () => sending?.cancel() }),
      make('button.soft.onward', { type: 'button', text: 'Go on', onclick: () => sending && go(sending) }),
      make('button.soft.again', { type: 'button', text: 'Add more', onclick: drawChoice }),
      make('button.solid', { type: 'button', text: 'Close', onclick: () => dialog.close() }),
    ),
  );
}

/** @param {Sending} now */
function pace(now) {
  if (now.remaining === null) return 'Sending …';
  const seconds = Math.max(1, Math.round(now.remaining));
  const left = seconds < 90 ? counted(seconds, 'second') : counted(Math.round(seconds / 60), 'minute');
  return `${now.rate.toFixed(now.rate < 10 ? 1 : 0)} a second, ${left} left`;
}

/** @param {Sending} now */
function outcome(now) {
  if (now.stage === 'sending') return '';
  const stored = `${counted(now.stored, 'picture')} stored`;
  if (now.stage === 'cancelled') return `Cancelled. ${stored}; what was on its way may be stored too.`;
  if (now.stage === 'stopped') return `Stopped. ${sentence(now.reason)} ${stored}.`;
  return `${stored} in ${counted(Math.max(1, Math.round(now.seconds)), 'second')}.`;
}
