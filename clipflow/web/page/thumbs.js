// Thumbs up and down: the service learns what was searched, what was shown, and which of it was good.

import * as api from './api.js';
import { byId, toast } from './dom.js';

/** @typedef {import('./api.js').Item} Item */
/** @typedef {import('./search.js').Found} Found */

const MOST_SHOWN = 200;

export class Thumbs {
  /** @param {import('./grid.js').Grid} grid @param {(error: any) => void} onError */
  constructor(grid, onError) {
    this.grid = grid;
    this.onError = onError;
    /** @type {Found | null} */
    this.found = null;
    /** @type {Map<string, boolean>} which of the results were liked or not, by their ids */
    this.judged = new Map();
  }

  /** Results have come. @param {Found} found @param {Item[]} added the new ones */
  results(found, added) {
    if (added.length === found.items.length) this.judged.clear();
    this.found = found;
  }

  /** @param {Item} item @param {boolean} liked */
  async judge(item, liked) {
    const before = this.judged.get(item.id);
    if (!this.found?.content || before === liked) return;
    const { content, items } = this.found;
    const list = items.slice(0, MOST_SHOWN);
    if (!list.includes(item)) list.push(item);
    const shown = list.map(({ id }) => id);
    const scores = list.every(({ score }) => typeof score === 'number') ? list.map(({ score }) => score) : [];
    const clicked = liked ? [item.id] : [];
    const disliked = liked ? [] : [item.id];
    this.judged.set(item.id, liked); // at once: a second click says nothing new
    try {
      await api.feedback({ query: content, shown, scores, clicked, disliked });
      this.mark(item.id);
      toast('Noted, thank you.');
    } catch (error) {
      if (before === undefined) this.judged.delete(item.id);
      else this.judged.set(item.id, before);
      this.onError(error);
    }
  }

  /** Press the right thumb of a result, in its tile and in the large view. @param {string} id */
  mark(id) {
    const liked = this.judged.get(id);
    if (liked === undefined) return;
    const large = byId('lightbox');
    press(this.grid.tiles.get(id), liked);
    if (large.dataset.id === id) press(large, liked);
  }
}

/** @param {Element | undefined} place @param {boolean} liked */
function press(place, liked) {
  for (const button of place?.querySelectorAll('[data-judge]') ?? []) {
    const pressed = /** @type {HTMLElement} */ (button).dataset.judge === (liked ? 'up' : 'down');
    button.setAttribute('aria-pressed', String(pressed));
  }
}
