// Filters: the values of the tags with their counts. Values of one tag are alternatives, several tags must all hold.

import * as api from './api.js';
import { byId, icon, make } from './dom.js';
import { chosenOf, filterOf, toggled } from './query.js';
import { go, onChange, state } from './state.js';

/** @typedef {import('./api.js').Facet} Facet */
/** @typedef {import('./api.js').Value} Value */
/** @typedef {Record<string, Value[]>} Tags */

const place = byId('facets');
const chosen = byId('chosen');
const shower = byId('show-facets');
let running = new AbortController();
/** @type {Map<string, boolean>} which tags somebody has opened or folded */
const unfolded = new Map();

/** Wire the filters. */
export function facets() {
  shower.addEventListener('click', () => {
    const open = place.classList.toggle('open');
    shower.setAttribute('aria-expanded', String(open));
  });
  onChange((now, before) => {
    if (JSON.stringify(now.tags) !== JSON.stringify(before.tags)) refreshFacets();
  });
}

/** Count again. A tag with chosen values is counted as if it had none, so that its other values can be added. */
export async function refreshFacets() {
  const { tags } = state();
  drawChosen(tags);
  running.abort();
  const mine = (running = new AbortController());
  try {
    const all = (await api.facets(filterOf(tags), mine.signal)).facets;
    const own = await Promise.all(Object.keys(tags).map((tag) => countsOf(tag, tags, all, mine.signal)));
    if (mine === running) draw([...own, ...all.filter(({ tag }) => !Object.hasOwn(tags, tag))], tags);
  } catch (error) {
    if (!api.isAbort(error) && mine === running) place.replaceChildren();
  }
}

/**
 * @param {string} tag @param {Tags} tags @param {Facet[]} all counted with all filters: only the chosen values of `tag`
 * @param {AbortSignal} signal @returns {Promise<Facet>}
 */
async function countsOf(tag, tags, all, signal) {
  const { [tag]: own, ...others } = tags;
  const found = (await api.facets(filterOf(others), signal)).facets.find((facet) => facet.tag === tag);
  const values = found?.values ?? [];
  const missing = own.filter((value) => !values.some((known) => known.value === value));
  const rare = all.find((facet) => facet.tag === tag)?.values ?? [];
  const count = (/** @type {Value} */ value) => rare.find((known) => known.value === value)?.count ?? 0;
  return { tag, values: [...values, ...missing.map((value) => ({ value, count: count(value) }))] };
}

/** Whether its values gather documents, rather than name each one. @param {Facet} facet */
const gathers = ({ values }) => values.length < 5 || values.some(({ count }) => count > 1);

/** @param {Facet[]} found @param {Tags} tags */
function draw(found, tags) {
  const focused = place.contains(document.activeElement) ? document.activeElement?.id : null;
  const sorted = [...found].sort((a, b) => Number(gathers(b)) - Number(gathers(a)) || a.tag.localeCompare(b.tag));
  place.replaceChildren(
    ...(sorted.length ? [make('h2', { text: 'Filter' })] : []),
    ...sorted.map((facet) => group(facet, chosenOf(tags, facet.tag))),
  );
  if (focused) document.getElementById(focused)?.focus();
}

/** @param {Facet} facet @param {Value[]} own */
function group(facet, own) {
  const open = unfolded.get(facet.tag) ?? (own.length > 0 || gathers(facet));
  const folder = make(
    'details',
    { open },
    make('summary', { text: titleOf(facet.tag) }),
    make('ul', { 'aria-label': titleOf(facet.tag) }, ...facet.values.map((value) => row(facet.tag, value, own))),
  );
  folder.addEventListener('toggle', () => unfolded.set(facet.tag, folder.open));
  return folder;
}

/** @param {string} tag @param {{value: Value, count: number}} counted @param {Value[]} own */
function row(tag, { value, count }, own) {
  const id = `facet ${tag} ${JSON.stringify(value)}`;
  const box = make('input', { type: 'checkbox', id, checked: own.includes(value), 'data-tag': tag });
  box.addEventListener('change', () => go({ tags: toggled(state().tags, tag, value), open: null }));
  const words = make('span.value', { text: String(value), title: String(value) });
  return make('li', {}, make('label', {}, box, words, make('span.count', { text: count.toLocaleString('en') })));
}

/** The chosen values above the results, where they can be taken away. @param {Tags} tags */
function drawChosen(tags) {
  const all = Object.entries(tags).flatMap(([tag, values]) => values.map((value) => ({ tag, value })));
  chosen.hidden = all.length === 0;
  shower.lastElementChild.textContent = all.length ? `Filters (${all.length})` : 'Filters';
  const buttons = all.map(({ tag, value }) =>
    make(
      'button.token',
      { type: 'button', 'aria-label': `Remove the filter ${titleOf(tag)} ${value}`, onclick: () => drop(tag, value) },
      make('span', { text: `${titleOf(tag)}: ${value}` }),
      icon('close'),
    ),
  );
  const clear = make('button.token.plain', { type: 'button', text: 'Clear all', onclick: () => go({ tags: {} }) });
  chosen.replaceChildren(...buttons, ...(all.length > 1 ? [clear] : []));
}

/** @param {string} tag @param {Value} value */
const drop = (tag, value) => go({ tags: toggled(state().tags, tag, value) });

/** @param {string} tag */
const titleOf = (tag) => tag.replaceAll('__', ' › ');
