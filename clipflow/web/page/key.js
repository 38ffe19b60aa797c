// Asks for an API key, once for all requests that wait for one.

import { byId, make } from './dom.js';

/** @type {Promise<string | null> | null} */
let asking = null;

/**
 * @param {boolean} again whether a key was given and refused
 * @returns {Promise<string | null>} the key; null if the person does not give one
 */
export function askForKey(again) {
  asking ??= ask(again).finally(() => {
    asking = null;
  });
  return asking;
}

/** @param {boolean} again @returns {Promise<string | null>} */
function ask(again) {
  const dialog = byId('ask-key');
  const field = make('input', {
    type: 'password',
    id: 'key',
    required: true,
    autocomplete: 'off',
    pattern: '[ -~]*', // what the header of a request can hold; a browser sends no other
    title: 'A key has no other characters than letters without accents, digits and signs',
  });
  const form = make(
    'form',
    { method: 'dialog' },
    make('h2', { id: 'key-title', text: again ? 'This key was not accepted' : 'This service needs an API key' }),
    make('p', { text: 'Whoever runs the service can give you one.' }),
    make('label', { for: 'key', text: 'API key' }),
    field,
    make('p.hint', { text: 'It stays in this tab, until you close it.' }),
    make(
      'div.actions',
      {},
      make('button.soft', { type: 'button', text: 'Not now', onclick: () => dialog.close('') }),
      make('button.solid', { type: 'submit', text: 'Use this key', value: 'key' }),
    ),
  );
  dialog.replaceChildren(form);
  dialog.returnValue = '';
  dialog.showModal();
  return new Promise((answer) => {
    const closed = () => answer(dialog.returnValue === 'key' ? field.value.trim() || null : null);
    dialog.addEventListener('close', closed, { once: true });
  });
}
