// Gets results for what the page shows: a search, or what is stored in the order of storing. One page after the other.

import * as api from './api.js';
import { contentOf, filterOf, hasQuery, sameResults } from './query.js';
import { isCalibrated } from './status.js';

/** @typedef {import('./api.js').Item} Item */
/** @typedef {import('./state.js').State} State */
/**
 * @typedef {object} Found what is known so far
 * @property {State} shown what was asked
 * @property {Item[]} items
 * @property {number} next where the next page begins
 * @property {boolean} more whether there may be more
 * @property {boolean} partial whether a part of the collection did not answer
 * @property {object | null} content what was searched with; null while browsing
 */
/**
 * @typedef {object} Listener
 * @property {(busy: boolean) => void} onBusy
 * @property {(found: Found, added: Item[]) => void} onFound `added` are all of them, or those of one more page
 * @property {(error: any, first: boolean) => void} onError `first` if there is nothing to show
 */

export class Search {
  /** @param {Listener} listener */
  constructor(listener) {
    this.listener = listener;
    this.pageSize = 48;
    /** @type {Found | null} */
    this.found = null;
    /** @type {State | null} */
    this.asked = null;
    this.running = new AbortController();
    this.runningMore = false;
  }

  /** Ask anew. An earlier question that is still open is given up. @param {State} shown */
  async start(shown) {
    this.asked = shown;
    this.runningMore = false;
    await this.ask(async (signal) => {
      const content = hasQuery(shown) ? await contentOf(shown) : null;
      const first = await this.page(shown, content, 0, signal);
      return { found: { shown, content, ...first }, added: first.items };
    });
  }

  /** The same again, after the collection or the page size has changed. */
  again() {
    return this.asked ? this.start(this.asked) : Promise.resolve();
  }

  /** One more page of the same. */
  async more() {
    const found = this.found;
    if (!found?.more || this.runningMore || !this.asked || !sameResults(found.shown, this.asked)) return;
    this.runningMore = true;
    await this.ask(async (signal) => {
      const { shown, content, items } = found;
      const page = await this.page(shown, content, found.next, signal);
      const partial = found.partial || page.partial;
      // What was stored meanwhile moves the others on, so that some come again.
      const known = new Set(items.map(({ id }) => id));
      const added = page.items.filter(({ id }) => !known.has(id));
      return { found: { ...page, shown, content, partial, items: [...items, ...added] }, added };
    });
  }

  /**
   * Run one question, and pass on its answer unless another was asked meanwhile.
   * @param {(signal: AbortSignal) => Promise<{found: Found, added: Item[]}>} question
   */
  async ask(question) {
    this.running.abort();
    const mine = (this.running = new AbortController());
    this.listener.onBusy(true);
    try {
      const { found, added } = await question(mine.signal);
      if (mine !== this.running) return;
      this.found = found;
      this.listener.onFound(found, added);
    } catch (error) {
      if (mine !== this.running || api.isAbort(error)) return;
      if (!this.runningMore) this.found = null;
      this.listener.onError(error, !this.runningMore);
    } finally {
      if (mine === this.running) {
        this.runningMore = false;
        this.listener.onBusy(false);
      }
    }
  }

  /**
   * @param {State} shown @param {object | null} content @param {number} offset @param {AbortSignal} signal
   * @returns {Promise<{items: Item[], next: number, more: boolean, partial: boolean}>}
   */
  async page(shown, content, offset, signal) {
    const asked = { limit: this.pageSize, offset, filter: filterOf(shown.tags) };
    if (!content) {
      const { documents } = await api.browse(asked, signal);
      return { ...pageOf(documents, asked), partial: false };
    }
    const relevance = shown.relevance || undefined;
    const diversity = shown.diversity || undefined;
    const include = isCalibrated() ? ['tags', 'uri', 'probability'] : undefined;
    const { matches, partial } = await api.search({ ...content, ...asked, relevance, diversity, include }, signal);
    return { ...pageOf(matches, asked), partial };
  }
}

/** @param {Item[]} items @param {{limit: number, offset: number}} asked */
const pageOf = (items, { limit, offset }) => ({ items, next: offset + items.length, more: items.length === limit });
