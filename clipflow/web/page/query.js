// From what the page shows to what the service is asked.

import { base64Of } from './images.js';

/** @typedef {import('./state.js').State} State */
/** @typedef {import('./api.js').Value} Value */

/** @param {State} shown whether there is anything to search with */
export const hasQuery = (shown) => shown.parts.length > 0 || shown.text.trim() !== '';

/**
 * The content of a search: one content, or a composed `query`.
 * @param {State} shown @returns {Promise<Record<string, any>>}
 */
export async function contentOf(shown) {
  const words = shown.text.trim();
  const parts = await Promise.all(
    shown.parts.map(async ({ kind, value, weight }) => ({
      [kind]: kind === 'image' ? await base64Of(value) : value,
      weight,
    })),
  );
  if (words) parts.unshift({ text: words, weight: 1 });
  if (parts.length > 1 || parts[0].weight !== 1) return { query: parts };
  const { weight: _, ...content } = parts[0];
  return content;
}

/**
 * Several values of one tag are alternatives, several tags must all hold.
 * @param {Record<string, Value[]>} tags @returns {object | undefined}
 */
export function filterOf(tags) {
  const conditions = Object.entries(tags)
    .filter(([, values]) => values.length)
    .map(([tag, values]) => ({ [tag]: { $in: values } }));
  return conditions.length > 1 ? { $and: conditions } : conditions[0];
}

/** Whether both ask for the same results. @param {State} one @param {State} other */
export const sameResults = (one, other) => resultsKey(one) === resultsKey(other);

/** @param {State} shown */
const resultsKey = ({ text, parts, tags, relevance, diversity }) =>
  JSON.stringify([text.trim(), parts, tags, relevance, diversity]);

/**
 * The chosen values of a tag, which may be called like something that every object has.
 * @param {Record<string, Value[]>} tags @param {string} tag @returns {Value[]}
 */
export const chosenOf = (tags, tag) => (Object.hasOwn(tags, tag) ? tags[tag] : []);

/**
 * @param {Record<string, Value[]>} tags @param {string} tag @param {Value} value
 * @returns {Record<string, Value[]>} the tags with this value the other way round
 */
export function toggled(tags, tag, value) {
  const { [tag]: _, ...others } = tags;
  const values = chosenOf(tags, tag);
  const left = values.includes(value) ? values.filter((other) => other !== value) : [...values, value];
  return left.length ? { ...others, [tag]: left } : others;
}
