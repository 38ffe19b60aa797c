// What stands in place of results when there are none.

import { byId, icon, make } from './dom.js';
import { hasQuery } from './query.js';
import { go, state } from './state.js';

const place = byId('nothing');

/**
 * @param {boolean} empty whether there are no results
 * @param {boolean} stored whether anything is stored at all
 * @param {() => void} add
 */
export function drawNothing(empty, stored, add) {
  place.hidden = !empty;
  document.body.classList.toggle('bare', empty && !stored);
  if (empty) place.replaceChildren(...(stored ? nothingFound() : nothingStored(add)));
}

/** @param {() => void} add */
function nothingStored(add) {
  return [
    make('div.emblem', {}, icon('picture')),
    make('h2', { text: 'Nothing is stored yet' }),
    make('p', { text: 'Add some pictures, then describe what you are looking for, or search with a picture.' }),
    make('div.actions', {}, make('button.solid', { type: 'button', text: 'Add pictures', onclick: add })),
    make(
      'p.hint',
      {},
      'Or drop a folder on this page, or from a terminal: ',
      make('code', { text: 'clipflow index FOLDER' }),
    ),
  ];
}

function nothingFound() {
  const shown = state();
  const ways = [
    Object.keys(shown.tags).length > 0 &&
      make('button.soft', { type: 'button', text: 'Clear the filters', onclick: () => go({ tags: {} }) }),
    shown.relevance > 0 &&
      make('button.soft', { type: 'button', text: 'Relevance off', onclick: () => go({ relevance: 0 }) }),
  ];
  return [
    make('div.emblem', {}, icon('search')),
    make('h2', { text: 'Nothing found' }),
    make('p', { text: hasQuery(shown) ? 'Nothing fits all of this.' : 'No document passes the filters.' }),
    make('div.actions', {}, ...ways),
  ];
}
