// Small helpers to build the page. Text from the server only ever becomes text nodes.

/** @param {string} id @returns {any} the element of index.html with this id */
export const byId = (id) => {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element ${id}`);
  return found;
};

/**
 * Make an element.
 * @param {string} name its tag, with classes after dots: `span.score`
 * @param {Record<string, any>} [given] attributes; `on…` are listeners, `text` is its text, true and false set or
 *   leave out an attribute
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any} the element
 */
export function make(name, given = {}, ...children) {
  const [tag, ...classes] = name.split('.');
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(' ');
  for (const [key, value] of Object.entries(given)) {
    if (key === 'text') made.textContent = value;
    else if (key.startsWith('on')) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, '');
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, String(value));
  }
  made.append(.../** @type {(Node | string)[]} */ (children.filter((child) => child)));
  return made;
}

/** @param {string} name of a symbol in icons.svg */
export function icon(name) {
  const space = 'http://www.w3.org/2000/svg';
  const made = document.createElementNS(space, 'svg');
  made.setAttribute('class', 'icon');
  made.setAttribute('aria-hidden', 'true');
  const use = document.createElementNS(space, 'use');
  use.setAttribute('href', `page/icons.svg#${name}`);
  made.append(use);
  return made;
}

/**
 * A button with an icon only.
 * @param {string} symbol @param {string} label for everybody: tooltip and screen reader
 * @param {(event: any) => void} act @param {Record<string, any>} [given]
 */
export const iconButton = (symbol, label, act, given = {}) =>
  make('button.quiet', { type: 'button', title: label, 'aria-label': label, onclick: act, ...given }, icon(symbol));

/** @param {number} count @param {string} one @param {string} [many] */
export const counted = (count, one, many = `${one}s`) => `${count.toLocaleString('en')} ${count === 1 ? one : many}`;

/** @param {number} share from 0 to 1 */
export const percent = (share) => `${(share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

/**
 * Call `act` when nobody has asked again for a while.
 * @param {() => void} act @param {number} milliseconds
 */
export function delayed(act, milliseconds) {
  let timer = 0;
  const cancel = () => clearTimeout(timer);
  const ask = () => {
    cancel();
    timer = window.setTimeout(act, milliseconds);
  };
  return { ask, cancel };
}

/** What the service says, as a sentence. @param {string} text */
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? '' : '.');

const foot = byId('toast');
let quiet = 0;

/**
 * A quiet confirmation at the foot of the page; inside an open dialog, because what is outside is out of reach.
 * @param {string} said
 */
export function toast(said) {
  const dialogs = document.querySelectorAll('dialog[open]');
  (dialogs[dialogs.length - 1] ?? document.body).append(foot);
  clearTimeout(quiet);
  quiet = window.setTimeout(() => {
    foot.textContent = said;
    foot.classList.add('shown');
    quiet = window.setTimeout(() => foot.classList.remove('shown'), 2500);
  }, 30);
}

/** What a result is called. @param {{id: string, uri?: string | null, tags?: Record<string, any>}} item */
export function nameOf(item) {
  const name = item.tags?.filename ?? item.tags?.title ?? item.id;
  return String(name).split('/').pop() || item.id;
}
