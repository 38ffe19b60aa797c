// One result large, with what is known of it. A modal dialog: the browser keeps the focus inside and Escape closes it.

import * as api from './api.js';
import { byId, iconButton, make, nameOf, percent, toast } from './dom.js';
import { fill, show } from './pictures.js';

/** @typedef {import('./api.js').Item} Item */
/**
 * @typedef {object} Actions
 * @property {(item: Item) => void} similar
 * @property {((item: Item, liked: boolean) => void) | null} judge null where nothing was searched
 * @property {(item: Item) => void} turnTo
 * @property {() => void} close
 */

const dialog = byId('lightbox');
/** @type {Item[]} */
let items = [];
/** @type {Item | null} */
let item = null;
/** @type {Actions} */
let actions;
let loading = new AbortController();

/** Wire the dialog. @param {() => void} close what closes it, seen from outside */
export function lightbox(close) {
  dialog.addEventListener('cancel', (/** @type {Event} */ event) => {
    event.preventDefault();
    close();
  });
  // The browser may close it by itself. It says so later, when another may be open already.
  dialog.addEventListener('close', () => dialog.open || close());
  dialog.addEventListener('click', (/** @type {Event} */ event) => event.target === dialog && close());
  dialog.addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === 'ArrowLeft') step(-1);
    if (event.key === 'ArrowRight') step(1);
  });
}

/** @param {Item} wanted @param {Item[]} among its neighbours @param {Actions} deeds */
export function openLightbox(wanted, among, deeds) {
  [item, items, actions] = [wanted, among, deeds];
  const used = dialog.open && dialog.contains(document.activeElement) && document.activeElement?.ariaLabel;
  draw(wanted);
  if (!dialog.open) dialog.showModal();
  const buttons = [...dialog.querySelectorAll('button:not(:disabled)')];
  const same = buttons.find((button) => used && button.ariaLabel === used); // so that Next may be pressed again
  (same ?? dialog.querySelector('.close')).focus({ preventScroll: true });
}

/** @returns {string | null} the id that was open, also if the browser has closed it */
export function closeLightbox() {
  const last = item?.id ?? null;
  item = null;
  loading.abort();
  if (dialog.open) dialog.close();
  return last;
}

/** More results have come: there may be a next one now. @param {Item[]} among */
export function neighbours(among) {
  items = among;
  if (dialog.open) steps();
}

const position = () => items.findIndex(({ id }) => id === item?.id);

/** @param {number} by */
function step(by) {
  const next = position() < 0 ? undefined : items[position() + by];
  if (next) actions.turnTo(next);
}

function steps() {
  const at = position();
  dialog.querySelector('.previous').disabled = at <= 0;
  dialog.querySelector('.next').disabled = at < 0 || at >= items.length - 1;
}

/** @param {Item} shown */
function draw(shown) {
  const { similar, judge, close } = actions;
  const thumbs = judge && [
    iconButton('up', 'Good result', () => judge(shown, true), { 'aria-pressed': 'false', 'data-judge': 'up' }),
    iconButton('down', 'Bad result', () => judge(shown, false), { 'aria-pressed': 'false', 'data-judge': 'down' }),
  ];
  dialog.dataset.id = shown.id;
  dialog.replaceChildren(
    make(
      'div.middle',
      {},
      make('div.stage', {}, shown.text === null ? picture(shown) : make('p.words', { text: shown.text })),
      iconButton('left', 'Previous', () => step(-1), { class: 'quiet step previous' }),
      iconButton('right', 'Next', () => step(1), { class: 'quiet step next' }),
    ),
    make(
      'div.about',
      {},
      make(
        'div.head',
        {},
        make('h2', { text: shown.text === null ? nameOf(shown) : 'Text' }),
        iconButton('close', 'Close', close, { class: 'quiet close' }),
      ),
      make(
        'div.deeds',
        {},
        make('button.soft', { type: 'button', text: 'More like this', onclick: () => similar(shown) }),
        iconButton('link', 'Copy a link to this', copyLink),
        ...(thumbs || []),
      ),
      table(shown),
    ),
  );
  steps();
}

/** The thumbnail at once, and the original when it is there. @param {Item} shown */
function picture(shown) {
  const image = make('img', { alt: nameOf(shown) });
  show(image, api.thumbnailPath(shown.id));
  loading.abort();
  const mine = (loading = new AbortController());
  const original = async () => {
    const answer = await api.request(api.originalPath(shown.id), { signal: mine.signal }, true);
    const large = make('img.original', { alt: nameOf(shown) });
    await fill(large, await answer.blob());
    if (mine === loading) image.replaceWith(large);
  };
  original().catch(() => {}); // the thumbnail stays
  return image;
}

/** @param {Item} shown */
function table(shown) {
  const rows = [
    ['Id', shown.id],
    ...(shown.score === undefined ? [] : [['Similarity', shown.score.toFixed(6)]]),
    ...(shown.probability === undefined ? [] : [['Probability', percent(shown.probability)]]),
    ...(shown.uri ? [['Address', shown.uri]] : []),
    ...Object.entries(shown.tags ?? {}).map(([name, value]) => [name, readable(name, value)]),
  ];
  const cell = (/** @type {any} */ value) => {
    if (/^https?:\/\//.test(value)) {
      return make('td', {}, make('a', { href: value, rel: 'noreferrer', target: '_blank', text: value }));
    }
    return make('td', { text: typeof value === 'object' ? JSON.stringify(value) : String(value) });
  };
  const row = (/** @type {any[]} */ [name, value]) =>
    make('tr', {}, make('th', { scope: 'row', text: name }), cell(value));
  return make('table', { 'aria-label': 'What is known of it' }, make('tbody', {}, ...rows.map(row)));
}

/** What `clipflow index` says of a file, for people. @param {string} name @param {any} value */
function readable(name, value) {
  if (!item?.uri?.startsWith('file:') || typeof value !== 'number') return value;
  if (name === 'modified') return new Date(1000 * value).toLocaleString();
  if (name === 'size') return value < 1e6 ? `${(value / 1e3).toFixed(1)} kB` : `${(value / 1e6).toFixed(1)} MB`;
  return value;
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    toast('The link is copied.');
  } catch {
    toast('The browser does not let the page copy; take the link from the address bar.');
  }
}
