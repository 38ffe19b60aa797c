// Sends chosen files in batches and counts what became of them. One bad file never stops the others.

import * as api from './api.js';
import { batchesOf, isPicture } from './files.js';

/** @typedef {import('./files.js').Chosen} Chosen */
/** @typedef {{id: string, reason: string}} Failure */
/** @typedef {'sending' | 'done' | 'cancelled' | 'stopped'} Stage */

const ATTEMPTS = 4;

export class Sending {
  /**
   * @param {Chosen[]} chosen @param {Record<string, any>} tags for all
   * @param {(sending: Sending) => void} onProgress
   */
  constructor(chosen, tags, onProgress) {
    const pictures = chosen.filter(({ file }) => isPicture(file));
    /** @type {Chosen[][]} the batches that are not through; the first is on its way */
    this.waiting = batchesOf(pictures);
    this.tags = tags;
    this.onProgress = onProgress;
    this.total = chosen.length;
    this.sendable = pictures.length;
    this.stored = 0;
    /** @type {Failure[]} */
    this.failures = chosen
      .filter(({ file }) => !isPicture(file))
      .map(({ id }) => ({ id, reason: 'This is no picture; it was not sent.' }));
    /** @type {Stage} */
    this.stage = 'sending';
    this.reason = '';
    this.control = new AbortController();
    this.began = 0;
    this.seconds = 0;
  }

  /** How many files are through, well or badly. */
  get done() {
    return this.stored + this.failures.length;
  }

  /** Files a second so far. */
  get rate() {
    return this.seconds > 0 ? (this.done - (this.total - this.sendable)) / this.seconds : 0;
  }

  /** Seconds until all is done, as far as one can tell; null while nobody knows. */
  get remaining() {
    return this.rate > 0 ? (this.total - this.done) / this.rate : null;
  }

  cancel() {
    this.control.abort();
  }

  /** Send everything, or what is left after it was cancelled or stopped. */
  async run() {
    this.stage = 'sending';
    this.control = new AbortController();
    this.began = performance.now() - 1000 * this.seconds;
    this.progress();
    try {
      while (this.waiting.length) {
        await this.send(await this.readable());
        this.progress();
      }
      this.stage = 'done';
    } catch (error) {
      this.stage = api.isAbort(error) ? 'cancelled' : 'stopped';
      this.reason = error instanceof Error ? error.message : String(error);
    }
    this.progress();
  }

  /**
   * The first batch, without the files that have gone since they were chosen: the browser calls a request with one of
   * them a failure of the network.
   * @returns {Promise<Chosen[]>}
   */
  async readable() {
    const able = [];
    for (const one of this.waiting[0]) {
      try {
        await one.file.slice(0, 1).arrayBuffer();
        able.push(one);
      } catch {
        this.failures.push({ id: one.id, reason: 'This file can no longer be read.' });
      }
    }
    return (this.waiting[0] = able);
  }

  /**
   * A batch that fails as a whole is sent file by file, so that one reason stands for one file.
   * @param {Chosen[]} batch
   */
  async send(batch) {
    try {
      const { documents } = batch.length ? await this.attempt(batch) : { documents: [] };
      for (const { id, error } of documents) {
        if (error) this.failures.push({ id, reason: unnamed(id, error.detail) });
        else this.stored += 1;
      }
    } catch (error) {
      if (!(error instanceof api.Problem) || endsAll(error)) throw error;
      if (batch.length > 1) {
        this.waiting.splice(0, 1, ...batch.map((one) => [one]));
        return;
      }
      const [{ id }] = batch;
      this.failures.push({ id, reason: unnamed(id, error.message) });
    }
    this.waiting.shift();
  }

  /** @param {Chosen[]} batch */
  async attempt(batch) {
    for (let left = ATTEMPTS - 1; ; left -= 1) {
      try {
        return await api.store(formOf(batch, this.tags), this.control.signal);
      } catch (error) {
        if (!(error instanceof api.Problem) || !error.retryAfter || left === 0) throw error;
        await pause(error.retryAfter * 1000 * (ATTEMPTS - left), this.control.signal);
      }
    }
  }

  progress() {
    this.seconds = (performance.now() - this.began) / 1000;
    this.onProgress(this);
  }
}

/** What was said about a file, without its name. @param {string} id @param {string} said */
const unnamed = (id, said) => said.replace(`'${id}': `, '');

/** Whether the next file would fare no better. @param {api.Problem} error */
const endsAll = (error) =>
  error.retryAfter > 0 ||
  ['unauthorized', 'forbidden', 'read-only', 'storage-full', 'unreachable'].includes(error.code);

/** @param {Chosen[]} batch @param {Record<string, any>} tags */
function formOf(batch, tags) {
  const form = new FormData();
  for (const { file, id } of batch) {
    form.append('files', file, file.name);
    form.append('ids', id);
  }
  form.append('tags', JSON.stringify(tags));
  return form;
}

/** @param {number} milliseconds @param {AbortSignal} signal @returns {Promise<void>} */
const pause = (milliseconds, signal) =>
  new Promise((done, fail) => {
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener('abort', () => {
      clearTimeout(timer);
      fail(new DOMException('', 'AbortError'));
    });
  });
