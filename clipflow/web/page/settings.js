// What a person has set for this browser: colours, size of the tiles, results at a time.

import { byId, icon } from './dom.js';

/** @param {string} name @param {string} usual @returns {string} */
function kept(name, usual) {
  try {
    return localStorage.getItem(`clipflow.${name}`) ?? usual;
  } catch {
    return usual;
  }
}

/** @param {string} name @param {string} value */
function keep(name, value) {
  try {
    localStorage.setItem(`clipflow.${name}`, value);
  } catch {
    // It holds until the page is left.
  }
}

/** Wire the settings. @param {(size: number) => void} onPageSize called at once, and on each change */
export function settings(onPageSize) {
  theme();
  const tile = byId('tile-size');
  const size = () => document.documentElement.style.setProperty('--tile', `${tile.value}px`);
  tile.value = kept('tile', window.innerWidth < 600 ? '140' : '200');
  tile.addEventListener('input', () => {
    keep('tile', tile.value);
    size();
  });
  size();
  const page = byId('page-size');
  page.value = kept('page', '48');
  if (!page.value) page.value = '48';
  page.addEventListener('change', () => {
    keep('page', page.value);
    onPageSize(Number(page.value));
  });
  onPageSize(Number(page.value));
}

function theme() {
  const button = byId('theme');
  const root = document.documentElement;
  const system = matchMedia('(prefers-color-scheme: dark)');
  const dark = () => (root.dataset.theme ? root.dataset.theme === 'dark' : system.matches);
  const draw = () => {
    button.setAttribute('aria-pressed', String(dark()));
    button.replaceChildren(icon(dark() ? 'sun' : 'moon'));
  };
  button.addEventListener('click', () => {
    root.dataset.theme = dark() ? 'light' : 'dark';
    keep('theme', root.dataset.theme);
    draw();
  });
  system.addEventListener('change', draw);
  draw();
}
