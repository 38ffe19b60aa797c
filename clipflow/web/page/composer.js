// The search box: words, and chips for kept words, pictures and stored documents, each towards or away.

import { thumbnailPath } from './api.js';
import { byId, delayed, icon, iconButton, make } from './dom.js';
import { dataOf, keep } from './images.js';
import { show } from './pictures.js';
import { AWAY, go, onChange, settled, state } from './state.js';

/** @typedef {import('./state.js').Part} Part */

const PAUSE_MILLISECONDS = 220;
const text = byId('text');

/**
 * Add a part to the search, and the words that are just being typed.
 * @param {Part} part @param {Partial<import('./state.js').State>} [change]
 */
export const addPart = (part, change = {}) =>
  go({ parts: [...state().parts, part], text: text.value, open: null, ...change });

/** Search with a picture, beside what is there. @param {Blob} file */
export async function addPicture(file) {
  addPart({ kind: 'image', value: await keep(file), weight: 1 });
}

/** Wire the box. @param {(error: any) => void} onError */
export function composer(onError) {
  const typed = delayed(() => go({ text: text.value, open: null }, 'typing'), PAUSE_MILLISECONDS);
  const flush = () => {
    typed.cancel();
    if (text.value.trim() !== state().text.trim()) go({ text: text.value, open: null }, 'typing');
    settled();
  };
  const keepWords = (/** @type {number} */ weight) => {
    const words = text.value.trim();
    typed.cancel();
    if (words) addPart({ kind: 'text', value: words, weight }, { text: '' });
    text.focus();
  };
  text.addEventListener('input', () => {
    byId('keep').hidden = !text.value.trim();
    typed.ask();
  });
  text.addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => {
    const lastPart = state().parts.length - 1;
    if (event.key === 'Enter' && (event.shiftKey || event.altKey)) {
      event.preventDefault();
      keepWords(event.altKey ? AWAY : 1);
    } else if (event.key === 'Backspace' && !text.value && lastPart >= 0) {
      remove(lastPart);
    }
  });
  byId('composer').addEventListener('submit', (/** @type {Event} */ event) => {
    event.preventDefault();
    flush();
  });
  byId('keep-more').addEventListener('click', () => keepWords(1));
  byId('keep-less').addEventListener('click', () => keepWords(AWAY));
  const file = byId('pick-file');
  byId('pick').addEventListener('click', () => file.click());
  file.addEventListener('change', () => {
    if (file.files[0]) addPicture(file.files[0]).catch(onError);
    file.value = '';
  });
  document.addEventListener('paste', (event) => {
    const { files = [], types = [] } = event.clipboardData ?? {};
    const picture = [...files].find((found) => found.type.startsWith('image/'));
    // Office programs copy words with a picture of them; the words are meant.
    const words = ['text/plain', 'text/html'].every((kind) => types.includes(kind));
    if (!picture || words || document.querySelector('dialog[open]')) return;
    event.preventDefault();
    addPicture(picture).catch(onError);
  });
  onChange(draw);
  draw();
}

/** @param {number} position */
function remove(position) {
  const byKeys = document.activeElement?.matches(':focus-visible');
  go({ parts: state().parts.filter((_, at) => at !== position) });
  if (byKeys) text.focus();
}

/** @param {number} position */
function turn(position) {
  const turned = (/** @type {Part} */ part) => ({ ...part, weight: part.weight > 0 ? AWAY : 1 });
  go({ parts: state().parts.map((part, at) => (at === position ? turned(part) : part)) });
  byId('parts').children[position]?.querySelector('.sign')?.focus();
}

let drawn = '';

function draw() {
  const now = state();
  if (text.value.trim() !== now.text.trim()) text.value = now.text;
  byId('keep').hidden = !text.value.trim();
  const key = JSON.stringify(now.parts);
  if (key === drawn) return;
  drawn = key;
  byId('parts').replaceChildren(...now.parts.map(chip));
  text.placeholder = now.parts.length ? 'and …' : 'Describe what you are looking for';
}

/** @param {Part} part @param {number} position */
function chip(part, position) {
  const away = part.weight < 0;
  const called = { text: `“${part.value}”`, image: 'your picture', uri: part.value, id: part.value }[part.kind];
  const sign = make(
    'button.sign',
    {
      type: 'button',
      'aria-label': `${away ? 'Away from' : 'Towards'} ${called}; turn round`,
      title: `${away ? 'Away from' : 'Towards'} this (weight ${part.weight}). Click to turn round.`,
      onclick: () => turn(position),
    },
    icon(away ? 'minus' : 'plus'),
  );
  const shown = { text: part.value, image: 'Picture', uri: 'Picture', id: part.value.split('/').pop() }[part.kind];
  return make(
    away ? 'li.part.away' : 'li.part',
    { 'data-kind': part.kind },
    sign,
    part.kind !== 'text' && thumbnail(part),
    make('span.said', { text: shown, title: part.value }),
    iconButton('close', `Remove ${called}`, () => remove(position)),
  );
}

/** @param {Part} part */
function thumbnail(part) {
  const image = make('img', { alt: '' });
  image.addEventListener('error', () => image.remove());
  if (part.kind === 'id') show(image, thumbnailPath(part.value));
  else if (part.kind === 'uri') image.src = part.value;
  else image.src = dataOf(part.value) ?? 'data:,';
  return image;
}
