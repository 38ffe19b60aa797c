// The slider that leaves out what fits badly. Its steps are shares of the collection.

import { byId, delayed } from './dom.js';
import { hasQuery } from './query.js';
import { go, onChange, state } from './state.js';

const STEPS = [0, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999];
const slider = byId('relevance');
const shown = byId('relevance-text');

/** Wire the slider. */
export function relevance() {
  const pulled = delayed(() => go({ relevance: STEPS[Number(slider.value)], open: null }, 'typing'), 150);
  slider.addEventListener('input', () => {
    say(STEPS[Number(slider.value)]);
    pulled.ask();
  });
  onChange(draw);
  draw();
}

function draw() {
  const { relevance: share } = state();
  const nearest = STEPS.reduce((best, step) => (Math.abs(step - share) < Math.abs(best - share) ? step : best));
  slider.value = String(STEPS.indexOf(nearest));
  slider.disabled = !hasQuery(state());
  byId('relevance-knob').title = slider.disabled
    ? 'Search first'
    : 'Leave out what fits no better than most of the collection';
  say(share);
}

/** @param {number} share */
function say(share) {
  const text = share ? `Best ${Number(((1 - share) * 100).toPrecision(3))} %` : 'Off';
  shown.textContent = text;
  slider.setAttribute('aria-valuetext', text);
}
