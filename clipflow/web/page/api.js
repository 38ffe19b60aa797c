// Everything that the page asks the service. Addresses are relative to the page's own, so a proxy may add a prefix.

/** @typedef {string | number | boolean} Value */
/**
 * @typedef {{id: string, score?: number, probability?: number, uri: string | null, text: string | null,
 *   tags: Record<string, any>}} Item
 */
/** @typedef {{code: string, detail: string}} Fault */
/** @typedef {{tag: string, values: {value: Value, count: number}[]}} Facet */
/** @typedef {{label: string, probabilities: Record<string, number>, error: Fault | null}} Classified */

import { sentence } from './dom.js';
import { askForKey } from './key.js';

const KEPT_KEY = 'clipflow.key';
let key = readKey();
let declined = false;
/** @type {() => void} */
let onKey = () => {};

/** @param {() => void} listener called when a key is there that was missing before */
export const whenKeyGiven = (listener) => {
  onKey = listener;
};

/** An answer that is an error: a sentence for people, and the service's code. */
export class Problem extends Error {
  /**
   * @param {string} detail @param {string} code @param {number} status
   * @param {number} retryAfter seconds, 0 for never
   */
  constructor(detail, code, status, retryAfter = 0) {
    super(detail);
    this.code = code;
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** @param {string} path @returns {string} the address of a route */
export const address = (path) => new URL(path, document.baseURI).href;

/** Whether pictures must be fetched with a key, which an `img` cannot send. */
export const hasKey = () => key !== '';

let edition = '';

/** Pictures may have been replaced: those that the browser keeps are not to be shown any more. */
export const picturesChanged = () => {
  edition = `?${Date.now()}`;
};

/** @param {string} id */
export const thumbnailPath = (id) => `v1/thumbnails/${encodeURIComponent(id)}${edition}`;

/** @param {string} id */
export const originalPath = (id) => `v1/originals/${encodeURIComponent(id)}${edition}`;

/** @param {unknown} error */
export const isAbort = (error) => error instanceof DOMException && error.name === 'AbortError';

/**
 * One request. Asks for an API key when the service wants one, and tries again with it.
 * @param {string} path @param {RequestInit} [options]
 * @param {boolean} [background] nobody waits for it: it does not ask again for a key that somebody did not want to give
 * @returns {Promise<Response>}
 */
export async function request(path, options = {}, background = false) {
  for (;;) {
    const used = key;
    const headers = { ...options.headers, ...(used && { Authorization: `Bearer ${used}` }) };
    const answer = await reach(path, { ...options, headers });
    if (answer.ok) return answer;
    const problem = await problemOf(answer);
    if (problem.status !== 401 || (background && declined)) throw problem;
    if (used === key) keepKey(await askForKey(used !== ''), problem);
  }
}

/** @param {string} path @param {RequestInit} options */
async function reach(path, options) {
  try {
    return await fetch(address(path), options);
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new Problem('The service cannot be reached.', 'unreachable', 0, 2);
  }
}

/** @param {Response} answer */
async function problemOf(answer) {
  const body = await answer.json().catch(() => ({}));
  const said = typeof body.detail === 'string' ? sentence(body.detail) : `The service answered ${answer.status}.`;
  const detail = answer.status === 401 ? 'This service needs an API key.' : said;
  return new Problem(detail, body.code ?? 'internal', answer.status, Number(answer.headers.get('Retry-After')) || 0);
}

/** @param {string | null} given @param {Problem} problem thrown if there is no key */
function keepKey(given, problem) {
  const late = declined;
  declined = !given;
  if (!given) throw problem;
  key = given;
  if (late) setTimeout(onKey);
  try {
    sessionStorage.setItem(KEPT_KEY, given);
  } catch {
    // Without storage the key lives as long as the page.
  }
}

function readKey() {
  try {
    return sessionStorage.getItem(KEPT_KEY) ?? '';
  } catch {
    return '';
  }
}

/** @param {string} path @param {unknown} body @param {AbortSignal} [signal] */
const post = async (path, body, signal) =>
  (
    await request(path, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(body),
      signal,
    })
  ).json();

/**
 * @param {string} path @param {Record<string, any>} parameters @param {AbortSignal} [signal]
 * @param {boolean} [background]
 */
async function get(path, parameters, signal, background) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined) query.set(name, typeof value === 'object' ? JSON.stringify(value) : String(value));
  }
  return (await request(`${path}?${query}`, { signal }, background)).json();
}

/** @param {object} body @param {AbortSignal} [signal] @returns {Promise<{matches: Item[], partial: boolean}>} */
export const search = (body, signal) => post('v1/search', body, signal);

/**
 * @param {{limit: number, offset: number, filter?: object}} page @param {AbortSignal} [signal]
 * @returns {Promise<{documents: Item[]}>}
 */
export const browse = (page, signal) => get('v1/documents', page, signal);

/** @param {string} id @param {AbortSignal} [signal] @returns {Promise<Item>} */
export const read = async (id, signal) => (await request(`v1/documents/${encodeURIComponent(id)}`, { signal })).json();

/**
 * @param {object | undefined} filter @param {AbortSignal} [signal]
 * @returns {Promise<{facets: Facet[], sampled: boolean}>}
 */
export const facets = (filter, signal) => get('v1/facets', { filter, limit: 20 }, signal, true);

/**
 * @param {{inputs: object[], labels: string[], templates: string[]}} body @param {AbortSignal} [signal]
 * @returns {Promise<{items: Classified[]}>}
 */
export const classify = (body, signal) => post('v1/classify', body, signal);

/** @param {object} body @returns {Promise<{stored: number}>} */
export const feedback = (body) => post('v1/feedback', body);

/** @returns {Promise<{version: string, stages: Record<string, any>}>} */
export const status = async () => (await request('v1/status', {}, true)).json();

/**
 * @param {FormData} form @param {AbortSignal} signal
 * @returns {Promise<{stored: number, documents: {id: string, error: Fault | null}[]}>}
 */
export const store = async (form, signal) =>
  (await request('v1/documents', { method: 'POST', body: form, signal })).json();
