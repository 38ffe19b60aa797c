// Sorts the results that are shown into labels of one's own: a bar for each label, and a label on each tile.

import * as api from './api.js';
import { byId, make, percent } from './dom.js';

/** @typedef {import('./api.js').Item} Item */
/** @typedef {import('./api.js').Classified} Classified */
/** @typedef {{label: string, share: number}} Verdict */

const AT_ONCE = 1000;
const KEPT = 'clipflow.labels';
const place = byId('classes');
const shower = byId('show-classes');

export class Classification {
  /** @param {import('./grid.js').Grid} grid @param {(error: any) => void} onError null for none */
  constructor(grid, onError) {
    this.grid = grid;
    this.onError = onError;
    /** @type {Map<string, Verdict>} by the ids of results */
    this.verdicts = new Map();
    /** @type {string[]} none while nothing is classified */
    this.labels = [];
    /** @type {Item[]} */
    this.items = [];
    /** @type {string | null} */
    this.bright = null;
    this.running = new AbortController();
    this.build();
  }

  build() {
    const kept = readKept();
    this.field = make('input', {
      id: 'labels',
      value: kept.labels,
      placeholder: 'beach, city, people',
      required: true,
    });
    this.template = make('input', {
      id: 'template',
      value: kept.template,
      required: true,
      pattern: '[^\\{\\}]*\\{\\}[^\\{\\}]*',
    });
    this.template.title = 'A sentence with one {}, where the label is put in';
    this.bars = make('ul.bars', { 'aria-label': 'Results for each label', 'aria-live': 'polite' });
    const form = make(
      'form',
      {},
      make('div.field.wide', {}, make('label', { for: 'labels', text: 'Labels, with commas between' }), this.field),
      make('div.field', {}, make('label', { for: 'template', text: 'Sentence' }), this.template),
      make('button.solid', { type: 'submit', text: 'Sort the results' }),
    );
    form.addEventListener('submit', (/** @type {Event} */ event) => {
      event.preventDefault();
      this.begin();
    });
    place.replaceChildren(form, this.bars);
    shower.addEventListener('click', () => this.toggle(place.hidden));
  }

  /** @param {boolean} open */
  toggle(open) {
    place.hidden = !open;
    shower.setAttribute('aria-expanded', String(open));
    if (open) this.field.focus();
    else this.clear();
  }

  begin() {
    this.clear();
    /** @type {string[]} */
    const given = this.field.value.split(',');
    const labels = [...new Set(given.map((label) => label.trim()).filter(Boolean))];
    if (labels.length < 2) {
      return this.onError(new Error('Give at least two labels, with a comma between them.'));
    }
    this.onError(null);
    this.labels = labels;
    try {
      localStorage.setItem(KEPT, JSON.stringify({ labels: this.field.value, template: this.template.value }));
    } catch {
      // They are typed again next time.
    }
    return this.run();
  }

  clear() {
    this.running.abort();
    for (const id of this.verdicts.keys()) this.grid.classify(id, null);
    this.labels = [];
    this.verdicts.clear();
    this.bright = null;
    this.grid.highlight(null);
    this.bars.replaceChildren();
  }

  /** Results have come. @param {Item[]} items all of them @param {Item[]} added the new ones */
  results(items, added) {
    this.items = items;
    if (added.length === items.length) {
      this.verdicts.clear();
      this.bright = null;
    }
    this.run();
  }

  async run() {
    if (!this.labels.length) return;
    this.running.abort();
    const mine = (this.running = new AbortController());
    const wanted = this.items.filter(({ id }) => !this.verdicts.has(id));
    place.setAttribute('aria-busy', 'true');
    try {
      for (let from = 0; from < wanted.length; from += AT_ONCE) {
        const batch = wanted.slice(from, from + AT_ONCE);
        const inputs = batch.map(({ id }) => ({ id }));
        const body = { inputs, labels: this.labels, templates: [this.template.value] };
        const found = (await api.classify(body, mine.signal)).items;
        if (mine !== this.running) return;
        batch.forEach(({ id }, at) => this.take(id, found[at]));
      }
      this.draw();
    } catch (error) {
      if (!api.isAbort(error)) this.onError(error);
    } finally {
      if (mine === this.running) place.removeAttribute('aria-busy');
    }
  }

  /** @param {string} id @param {Classified | undefined} found */
  take(id, found) {
    if (!found || found.error) return;
    const verdict = { label: found.label, share: found.probabilities[found.label] ?? 0 };
    this.verdicts.set(id, verdict);
    this.grid.classify(id, verdict.label, verdict.share);
  }

  draw() {
    const total = this.verdicts.size || 1;
    const counts = this.labels.map((label) => ({ label, count: this.idsOf(label).size }));
    this.bars.replaceChildren(...counts.sort((a, b) => b.count - a.count).map((row) => this.bar(row, total)));
  }

  /** @param {{label: string, count: number}} row @param {number} total */
  bar({ label, count }, total) {
    const filled = make('span.filled');
    filled.style.width = `${(100 * count) / total}%`;
    const act = () => {
      this.bright = this.bright === label ? null : label;
      this.grid.highlight(this.bright === null ? null : this.idsOf(label));
      for (const other of this.bars.querySelectorAll('button')) {
        other.setAttribute('aria-pressed', String(other === button && this.bright !== null));
      }
    };
    const button = make(
      'button',
      { type: 'button', 'aria-pressed': String(this.bright === label), title: 'Show only these bright', onclick: act },
      make('span.label', { text: label }),
      make('span.track', {}, filled),
      make('span.count', { text: String(count) }),
      make('span.share', { text: percent(count / total) }),
    );
    return make('li', { 'data-label': label }, button);
  }

  /** @param {string} label */
  idsOf(label) {
    return new Set([...this.verdicts].filter(([, verdict]) => verdict.label === label).map(([id]) => id));
  }
}

function readKept() {
  const usual = { labels: '', template: 'a photo of {}' };
  try {
    return { ...usual, ...JSON.parse(localStorage.getItem(KEPT) ?? '{}') };
  } catch {
    return usual;
  }
}
