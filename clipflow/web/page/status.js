// The service in the corner: how many documents, which model, ready or what is wrong. Asked while the page is seen.

import * as api from './api.js';
import { byId, counted, icon, make, sentence } from './dom.js';

const CALM_MILLISECONDS = 20_000;
const WORRIED_MILLISECONDS = 5_000;
const place = byId('status');
const banner = byId('warnings');
let timer = 0;
let drawn = '';
/** @type {number | null} */
let documents = null;

/** How many documents are stored; null while nobody knows. */
export const storedDocuments = () => documents;

let reached = true;
/** @type {() => void} */
let onBack = () => {};

/** @param {() => void} listener called when the service answers that did not before */
export const whenBack = (listener) => {
  onBack = listener;
};

let calibrated = false;

/** Whether the service can say how probable it is that a result is what was asked for. */
export const isCalibrated = () => calibrated;

/** Start asking. */
export function status() {
  document.addEventListener('visibilitychange', () => {
    clearTimeout(timer);
    if (document.visibilityState === 'visible') refreshStatus();
  });
  return refreshStatus();
}

/** Ask now, and again after a while. */
export async function refreshStatus() {
  clearTimeout(timer);
  let pause = CALM_MILLISECONDS;
  try {
    const found = await api.status();
    documents = indexers(found.stages).reduce((sum, told) => sum + Number(told.documents ?? 0), 0);
    calibrated = Boolean(found.stages.ranker?.calibration);
    const broken = Object.keys(found.stages).filter((name) => found.stages[name].ready === false);
    if (broken.length) pause = WORRIED_MILLISECONDS;
    draw(found, broken.length ? `Not ready: ${broken.join(', ')}` : '');
    if (!reached) onBack();
    reached = true;
  } catch (error) {
    pause = WORRIED_MILLISECONDS;
    const unknown = error instanceof api.Problem && error.status === 401;
    reached = unknown;
    draw(null, error instanceof Error ? error.message : String(error), unknown);
  }
  if (document.visibilityState === 'visible') timer = window.setTimeout(refreshStatus, pause);
}

/** What the indexer says, or each of its shards. @param {Record<string, any>} stages @returns {any[]} */
const indexers = (stages) =>
  Object.entries(stages).flatMap(([name, told]) => (/^indexer(_\d+)?$/.test(name) ? [told] : []));

/**
 * @param {{version: string, stages: Record<string, any>} | null} found @param {string} wrong empty if all is well
 * @param {boolean} [needsKey] whether only a key is missing: the page says that elsewhere
 */
function draw(found, wrong, needsKey = false) {
  const stages = found?.stages ?? {};
  const warnings = Object.values(stages)
    .flatMap((stage) => stage.warnings ?? [])
    .map(String);
  const model = stages.encoder?.model ?? '';
  const line = wrong || [counted(documents ?? 0, 'document'), model].filter(Boolean).join(' · ');
  const key = JSON.stringify([line, warnings, stages.encoder, found?.version]);
  if (key === drawn) return;
  drawn = key;
  const open = place.querySelector('details')?.open ?? false;
  const mood = wrong ? 'wrong' : warnings.length ? 'warned' : 'well';
  place.replaceChildren(
    make(
      'details',
      { open },
      make('summary', {}, make(`span.dot.${mood}`), make('span.line', { text: line })),
      make(
        'dl',
        {},
        ...facts(found).flatMap(([name, value]) => [make('dt', { text: name }), make('dd', { text: value })]),
      ),
    ),
  );
  drawWarnings(wrong && !needsKey ? [wrong, ...warnings] : warnings);
}

/** @param {{version: string, stages: Record<string, any>} | null} found @returns {[string, string][]} */
function facts(found) {
  const { encoder = {} } = found?.stages ?? {};
  const [indexer] = indexers(found?.stages ?? {});
  /** @type {[string, any][]} */
  const all = [
    ['Service', found ? `clipflow ${found.version}` : 'no answer'],
    ['Model', encoder.model],
    ['Runs on', [encoder.runtime, encoder.precision].filter(Boolean).join(', ')],
    ['Because', encoder.why],
    ['Index', indexer?.kind],
    ['Documents', indexer && documents?.toLocaleString('en')],
  ];
  return all.filter(([, value]) => value);
}

/** @param {string[]} sentences */
function drawWarnings(sentences) {
  banner.hidden = sentences.length === 0;
  banner.replaceChildren(
    ...sentences.map((text) => make('p', {}, icon('warning'), make('span', { text: sentence(text) }))),
  );
}
