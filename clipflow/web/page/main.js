// Puts the parts of the page together.

import * as api from './api.js';
import { Classification } from './classify.js';
import { composer } from './composer.js';
import { byId, counted, make, toast } from './dom.js';
import { dropping } from './dropping.js';
import { drawNothing } from './empty.js';
import { facets, refreshFacets } from './facets.js';
import { Grid } from './grid.js';
import { closeLightbox, lightbox, neighbours, openLightbox } from './lightbox.js';
import { hasQuery, sameResults } from './query.js';
import { relevance } from './relevance.js';
import { Search } from './search.js';
import { settings } from './settings.js';
import { close, go, onChange, state } from './state.js';
import { isCalibrated, refreshStatus, status, storedDocuments, whenBack } from './status.js';
import { Thumbs } from './thumbs.js';
import { openUpload, upload } from './upload.js';

/** @typedef {import('./api.js').Item} Item */

const count = byId('count');
const more = byId('more');
const failed = byId('error');

/** An error as a sentence; null takes it away. @param {any} error */
function say(error) {
  const text = error === null ? '' : error.message || String(error);
  failed.hidden = !text || document.querySelector('dialog[open]') !== null;
  failed.textContent = text;
  if (text && failed.hidden) toast(text);
  if (error?.status === 401) {
    failed.append(make('button.soft', { type: 'button', text: 'Enter a key', onclick: () => search.again() }));
  }
}

const actions = {
  open: (/** @type {Item} */ item) => go({ open: item.id }),
  similar: (/** @type {Item} */ item) => {
    go({ text: '', parts: [{ kind: 'id', value: item.id, weight: 1 }], open: null });
    window.scrollTo({ top: 0 });
  },
  judge: (/** @type {Item} */ item, /** @type {boolean} */ liked) => thumbs.judge(item, liked),
};
const grid = new Grid(actions);
const thumbs = new Thumbs(grid, say);
const classes = new Classification(grid, say);
const search = new Search({
  onBusy: (busy) => {
    byId('busy').hidden = !busy;
    grid.list.setAttribute('aria-busy', String(busy));
  },
  onFound: (found, added) => {
    say(null);
    const asked = found.content !== null;
    thumbs.results(found, added);
    if (added.length === found.items.length) {
      grid.reset(found.items, asked);
    } else {
      grid.append(added, asked);
    }
    describe();
    more.hidden = !found.more;
    classes.results(found.items, added);
    neighbours(found.items);
    watchEnd();
  },
  onError: (error, first) => {
    say(error);
    if (!first) return toast(error.message); // the line above the results is far away now
    grid.reset([], false);
    drawNothing(false, true, openUpload);
    more.hidden = true;
    count.textContent = '\u00a0';
  },
});

/** The name of the tab, for the browser's history. */
function entitle() {
  document.title = hasQuery(state()) ? `${state().text.trim() || 'Search'} – clipflow` : 'clipflow';
}

/** The line above the results, which screen readers say aloud. */
function describe() {
  const found = search.found;
  if (!found) return;
  const { items, content } = found;
  const stored = storedDocuments();
  const filtered = Object.keys(found.shown.tags).length > 0;
  const plain = !content && !filtered;
  // The status may be a little older than the results: it counts only what the results do not show.
  const total = plain && found.more && stored !== null ? Math.max(stored, items.length) : items.length;
  const first = found.more && !(plain && stored !== null);
  count.textContent = (first ? 'First ' : '') + counted(total, plain ? 'document' : 'result');
  if (found.partial) count.textContent += ', from a part of the collection';
  drawNothing(items.length === 0, !plain && stored !== 0, openUpload);
}

/** Open or close the large view as the address says. */
async function followOpen() {
  const { open } = state();
  if (open === null) {
    const last = closeLightbox();
    if (last !== null) grid.focus(last);
    return;
  }
  const items = search.found?.items ?? [];
  try {
    const item = items.find(({ id }) => id === open) ?? (await api.read(open));
    if (state().open !== open) return;
    openLightbox(item, items, {
      similar: actions.similar,
      judge: search.found?.content ? actions.judge : null,
      turnTo: ({ id }) => go({ open: id }, 'replace'),
      close,
    });
    thumbs.mark(open);
    if (items.indexOf(item) >= items.length - 3) search.more();
  } catch (error) {
    close();
    say(error);
  }
}

/** Ask for more when the end comes into view; asked anew after each page, in case it is still in view. */
const end = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && search.more(), {
  rootMargin: '600px',
});
function watchEnd() {
  end.unobserve(more);
  if (!more.hidden) end.observe(more);
}

/** @param {KeyboardEvent} event */
function shortcuts(event) {
  const target = /** @type {HTMLElement} */ (event.target);
  const writing = target.closest('input:not([type=range], [type=checkbox]), textarea, select');
  if (event.key !== '/' || writing || document.querySelector('dialog[open]')) return;
  event.preventDefault();
  byId('text').select();
}

async function start() {
  settings((size) => {
    search.pageSize = size;
    search.again();
  });
  composer(say);
  relevance();
  facets();
  lightbox(close);
  dropping(say);
  api.whenKeyGiven(() => Promise.all([refreshStatus(), refreshFacets()]).then(describe));
  whenBack(() => Promise.all([refreshFacets(), search.found ? null : search.again()]).then(describe));
  upload(() => {
    api.picturesChanged();
    return Promise.all([refreshStatus(), refreshFacets(), search.again()]).then(describe);
  });
  onChange((now, before) => {
    entitle();
    if (!sameResults(now, before)) search.start(now);
    if (now.open !== before.open) followOpen();
  });
  document.addEventListener('keydown', shortcuts);
  byId('home').addEventListener('click', (/** @type {MouseEvent} */ event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go({ text: '', parts: [], tags: {}, relevance: 0, diversity: 0, open: null });
  });
  more.addEventListener('click', () => search.more());
  status().then(async () => {
    describe();
    if (!isCalibrated() || !hasQuery(state())) return;
    await search.again();
    if (state().open !== null) followOpen();
  });
  entitle();
  refreshFacets();
  await search.start(state());
  if (state().open !== null) followOpen();
}

start();
