// What the page shows, as one object, and the same as the query string of its address.

/** @typedef {import('./api.js').Value} Value */
/** @typedef {'text' | 'image' | 'uri' | 'id'} Kind */
/** @typedef {{kind: Kind, value: string, weight: number}} Part an image's value is its name in images.js */
/**
 * @typedef {object} State
 * @property {string} text what stands in the search box
 * @property {Part[]} parts
 * @property {Record<string, Value[]>} tags the chosen values of each tag
 * @property {number} relevance 0 is off
 * @property {number} diversity 0 is off
 * @property {string | null} open the id of the result that is shown large
 */
/** @typedef {(now: State, before: State) => void} Listener */

const KINDS = ['text', 'image', 'uri', 'id'];
const FILTER = 'f.';
export const AWAY = -0.5;

/** @type {Listener[]} */
const listeners = [];
let typing = false;
let closing = false;
let now = parse(location.search);

export const state = () => now;

/** @param {Listener} listener called after each change */
export const onChange = (listener) => listeners.push(listener);

/**
 * Change what is shown. Each change is one step back; changes while typing or pulling a slider are one step together.
 * @param {Partial<State>} change
 * @param {'step' | 'typing' | 'replace'} [how]
 */
export function go(change, how = 'step') {
  const next = { ...now, ...change };
  const query = format(next);
  const same = query === format(now);
  if (how === 'replace' || same || (how === 'typing' && typing)) {
    history.replaceState(history.state, '', query || './');
  } else {
    history.pushState({ opened: next.open !== null && now.open === null }, '', query || './');
  }
  if (how !== 'replace') typing = how === 'typing';
  become(next);
}

/** Close what is open: one step back if it was opened here. */
export function close() {
  if (now.open === null || closing) return;
  closing = Boolean(history.state?.opened);
  if (closing) history.back();
  else go({ open: null }, 'replace');
}

/** The next change of text is a step of its own. */
export const settled = () => {
  typing = false;
};

window.addEventListener('popstate', () => {
  typing = false;
  closing = false;
  become(parse(location.search));
});

/** @param {State} next */
function become(next) {
  const before = now;
  now = next;
  for (const listener of listeners) listener(now, before);
}

/** @param {string} query @returns {State} */
export function parse(query) {
  const given = new URLSearchParams(query);
  /** @type {Map<string, Value[]>} */
  const tags = new Map();
  for (const [name, value] of given) {
    if (!name.startsWith(FILTER) || name === FILTER) continue;
    const tag = name.slice(FILTER.length);
    tags.set(tag, [...(tags.get(tag) ?? []), valueOf(value)]);
  }
  const relevance = Number(given.get('relevance'));
  const diversity = Number(given.get('diversity'));
  return {
    text: given.get('q') ?? '',
    parts: given.getAll('part').flatMap(partOf),
    tags: Object.fromEntries(tags),
    relevance: relevance > 0 && relevance < 1 ? relevance : 0,
    diversity: diversity > 0 && diversity <= 1 ? diversity : 0,
    open: given.get('open'),
  };
}

/** @param {State} shown @returns {string} with a question mark; empty if there is nothing to say */
export function format(shown) {
  const out = new URLSearchParams();
  if (shown.text.trim()) out.set('q', shown.text);
  for (const part of shown.parts) out.append('part', `${part.kind}:${part.weight}:${part.value}`);
  for (const [tag, values] of Object.entries(shown.tags)) {
    for (const value of values) out.append(FILTER + tag, written(value));
  }
  if (shown.relevance) out.set('relevance', String(shown.relevance));
  if (shown.diversity) out.set('diversity', String(shown.diversity));
  if (shown.open !== null) out.set('open', shown.open);
  const text = String(out);
  return text && `?${text}`;
}

/** @param {string} text @returns {Part[]} none if it is not one */
function partOf(text) {
  const found = /^(\w+):([-\d.]+):(.+)$/s.exec(text);
  const weight = Number(found?.[2]);
  if (!found || !KINDS.includes(found[1]) || !weight) return [];
  return [{ kind: /** @type {Kind} */ (found[1]), value: found[3], weight }];
}

/** A text that could be read as something else stands in quotes. @param {Value} value */
const written = (value) => (typeof value === 'string' && valueOf(value) === value ? value : JSON.stringify(value));

/** @param {string} text @returns {Value} */
function valueOf(text) {
  try {
    const value = JSON.parse(text);
    return ['string', 'number', 'boolean'].includes(typeof value) ? value : text;
  } catch {
    return text;
  }
}
