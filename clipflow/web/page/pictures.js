// Shows thumbnails. An `img` cannot send a key, so where one is needed they are fetched when they come into view.

import { hasKey, address, request } from './api.js';

const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      fetchInto(/** @type {HTMLImageElement} */ (entry.target));
    }
  },
  { rootMargin: '400px' },
);

/**
 * Fill an `img` from a route of the service.
 * @param {HTMLImageElement} image @param {string} path
 */
export function show(image, path) {
  if (!hasKey()) {
    image.src = address(path);
    return;
  }
  image.dataset.path = path;
  watcher.observe(image);
}

/** @param {HTMLImageElement} image */
async function fetchInto(image) {
  try {
    const answer = await request(/** @type {string} */ (image.dataset.path), {}, true);
    await fill(image, await answer.blob());
  } catch {
    image.dispatchEvent(new Event('error'));
  }
}

/** @param {HTMLImageElement} image @param {Blob} blob */
export async function fill(image, blob) {
  const source = URL.createObjectURL(blob);
  image.src = source;
  await image.decode().finally(() => URL.revokeObjectURL(source));
}
