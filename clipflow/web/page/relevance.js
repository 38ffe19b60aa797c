// The sliders that decide which results are shown: what fits badly is left out, what is alike is spread.

import { byId, delayed } from './dom.js';
import { hasQuery } from './query.js';
import { go, onChange, state } from './state.js';

/**
 * @typedef {object} Knob
 * @property {'relevance' | 'diversity'} name of its elements, and in the state
 * @property {number[]} steps
 * @property {string} help
 * @property {(value: number) => string} said
 */

/** @type {Knob[]} */
const KNOBS = [
  {
    name: 'relevance',
    steps: [0, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999], // shares of the collection
    help: 'Leave out what fits no better than most of the collection',
    said: (share) => `Best ${Number(((1 - share) * 100).toPrecision(3))} %`,
  },
  {
    name: 'diversity',
    steps: [0, 0.05, 0.1, 0.2, 0.3, 0.5],
    help: 'Show different results before those that are alike',
    said: String,
  },
];

/** Wire the sliders. */
export function relevance() {
  for (const knob of KNOBS) wire(knob);
}

/** @param {Knob} knob */
function wire({ name, steps, help, said }) {
  const slider = byId(name);
  const shown = byId(`${name}-text`);
  const say = (/** @type {number} */ value) => {
    const text = value ? said(value) : 'Off';
    shown.textContent = text;
    slider.setAttribute('aria-valuetext', text);
  };
  const pulled = delayed(() => go({ [name]: steps[Number(slider.value)], open: null }, 'typing'), 150);
  slider.addEventListener('input', () => {
    say(steps[Number(slider.value)]);
    pulled.ask();
  });
  const draw = () => {
    const value = state()[name];
    const nearest = steps.reduce((best, step) => (Math.abs(step - value) < Math.abs(best - value) ? step : best));
    slider.value = String(steps.indexOf(nearest));
    slider.disabled = !hasQuery(state());
    byId(`${name}-knob`).title = slider.disabled ? 'Search first' : help;
    say(value);
  };
  onChange(draw);
  draw();
}
