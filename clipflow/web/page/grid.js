// The results as tiles: pictures, or cards of text.

import { thumbnailPath } from './api.js';
import { byId, icon, iconButton, make, nameOf, percent } from './dom.js';
import { show } from './pictures.js';

/** @typedef {import('./api.js').Item} Item */
/**
 * @typedef {object} Actions what a tile can do
 * @property {(item: Item) => void} open
 * @property {(item: Item) => void} similar
 * @property {(item: Item, liked: boolean) => void} judge
 */

const CHANCE = 'How probable it is that this is what was asked for';
export const DRAGGED = 'application/x-clipflow-id';

export class Grid {
  /** @param {Actions} actions */
  constructor(actions) {
    this.actions = actions;
    this.list = byId('results');
    /** @type {Map<string, HTMLElement>} */
    this.tiles = new Map();
    this.list.addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => this.move(event));
  }

  /** Show these instead of others. @param {Item[]} items @param {boolean} judged whether they answer a query */
  reset(items, judged) {
    const focused = this.list.contains(document.activeElement);
    this.tiles.clear();
    this.list.replaceChildren();
    this.append(items, judged);
    if (focused) this.list.focus({ preventScroll: true });
  }

  /** @param {Item[]} items @param {boolean} judged */
  append(items, judged) {
    const fresh = items.filter((item) => !this.tiles.has(item.id));
    for (const item of fresh) this.tiles.set(item.id, this.tile(item, judged));
    this.list.append(...fresh.map((item) => /** @type {HTMLElement} */ (this.tiles.get(item.id))));
  }

  /** @param {string} id */
  focus(id) {
    this.tiles.get(id)?.querySelector('button')?.focus({ preventScroll: false });
  }

  /** @param {Item} item @param {boolean} judged */
  tile(item, judged) {
    const { open, similar, judge } = this.actions;
    const name = nameOf(item);
    const thumbs = judged && [
      iconButton('up', 'Good result', () => judge(item, true), { 'aria-pressed': 'false', 'data-judge': 'up' }),
      iconButton('down', 'Bad result', () => judge(item, false), { 'aria-pressed': 'false', 'data-judge': 'down' }),
    ];
    const view = item.text === null ? picture(item, name) : make('span.words', { text: item.text });
    const tile = make(
      'li.tile',
      { 'data-id': item.id, draggable: 'true' },
      make('button.view', { type: 'button', 'aria-label': label(item, name), onclick: () => open(item) }, view),
      make(
        'div.deeds',
        {},
        iconButton('similar', 'More like this', () => similar(item)),
        ...(thumbs || []),
      ),
      make(
        'div.caption',
        {},
        make('span.name', { title: item.id, text: item.text === null ? name : 'Text' }),
        item.probability !== undefined &&
          make('span.chance', { title: CHANCE, text: percent(item.probability) }),
        item.score !== undefined && make('span.score', { title: 'Similarity, -1 to 1', text: item.score.toFixed(3) }),
      ),
    );
    tile.addEventListener('dragstart', (/** @type {DragEvent} */ event) => {
      event.dataTransfer?.setData(DRAGGED, item.id);
    });
    return tile;
  }

  /**
   * Write a label on a tile; null takes it away.
   * @param {string} id @param {string | null} name @param {number} share
   */
  classify(id, name, share = 0) {
    const tile = this.tiles.get(id);
    tile?.querySelector('.class')?.remove();
    if (!tile || name === null) return;
    tile.append(make('span.class', {}, make('span', { text: name }), make('b', { text: percent(share) })));
  }

  /** Only these stay bright; null for all. @param {Set<string> | null} ids */
  highlight(ids) {
    for (const [id, tile] of this.tiles) tile.classList.toggle('dim', ids !== null && !ids.has(id));
  }

  /** Arrow keys go from tile to tile. @param {KeyboardEvent} event */
  move(event) {
    const tiles = [...this.tiles.values()];
    const at = tiles.findIndex((tile) => tile.contains(document.activeElement));
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const columns = tiles.filter((tile) => tile.offsetTop === tiles[0].offsetTop).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const next = step && tiles[at + step];
    if (!next) return;
    event.preventDefault();
    next.querySelector('button')?.focus();
  }
}

/** @param {Item} item @param {string} name */
const label = (item, name) =>
  [item.text?.slice(0, 80) ?? name, item.score !== undefined && `similarity ${item.score.toFixed(3)}`]
    .filter(Boolean)
    .join(', ');

/** @param {Item} item @param {string} name */
function picture(item, name) {
  const image = make('img', { alt: name, loading: 'lazy', decoding: 'async', draggable: 'false' });
  image.addEventListener('load', () => image.classList.add('loaded'), { once: true });
  image.addEventListener('error', () => image.replaceWith(make('span.blank', {}, icon('picture'))), { once: true });
  show(image, thumbnailPath(item.id));
  return image;
}
