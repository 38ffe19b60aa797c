"""Which document is in which slot, and until when: one writer, and readers that never wait.

A vector is never overwritten. A new version takes a new slot and the old slot dies, both in one step for readers: they
look at the index as of a version number (multi-version concurrency control). Slots of the dead come back when the index
is built anew.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.int64]

_NEVER = np.iinfo(np.int64).max
_PAGE = 1 << 16


@dataclass(frozen=True, slots=True)
class View:
    """The table as of one version. Slots from `count` on did not exist yet."""

    count: int
    dead: int
    version: int
    keys: NDArray[np.int64]
    died: NDArray[np.int64]

    def alive(self, slots: Slots) -> NDArray[np.bool_]:
        """Which of [N] slots hold a document."""
        known = slots < self.count
        if known.all():
            alive: NDArray[np.bool_] = self.died[slots] > self.version
            return alive
        known[known] = self.died[slots[known]] > self.version
        return known

    def alive_between(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """The same for a range of slots; None where all of them are alive for want of any dead."""
        return None if not self.dead else self.died[start:stop] > self.version

    def all_alive(self) -> Slots:
        """All slots that hold a document, ascending."""
        return np.flatnonzero(self.died[: self.count] > self.version)


class SlotTable:
    """Keys of documents by slot, and slots by key. Only one thread may write at a time."""

    def __init__(self) -> None:
        self._keys = np.zeros(0, dtype=np.int64)
        self._died = np.zeros(0, dtype=np.int64)
        # Keys only grow, so a page of neighbours is dense; a page without documents costs nothing.
        self._pages: dict[int, NDArray[np.int64]] = {}
        self.view = View(0, 0, 0, self._keys, self._died)

    def __len__(self) -> int:
        return self.view.count - self.view.dead

    def append(self, keys: NDArray[np.int64]) -> None:
        """Give [N] different keys the next N slots; slots that they had die. Their vectors are in place already."""
        view = self.view
        count = view.count + len(keys)
        if count > len(self._keys):
            spare = max(count, len(self._keys) * 3 // 2, 1024) - view.count
            self._keys = np.concatenate([view.keys[: view.count], np.zeros(spare, dtype=np.int64)])
            self._died = np.concatenate([view.died[: view.count], np.full(spare, _NEVER)])
        old = self.slots(keys)
        old = old[old >= 0]
        self._keys[view.count : count] = keys
        self._died[view.count : count] = _NEVER
        self._died[old] = view.version + 1
        self._set(keys, np.arange(view.count, count))
        self.view = View(count, view.dead + len(old), view.version + 1, self._keys, self._died)

    def remove(self, keys: NDArray[np.int64]) -> None:
        """Let the slots of keys die; unknown ones are ignored."""
        view = self.view
        slots = np.unique(self.slots(keys))
        slots = slots[slots >= 0]
        if len(slots):
            self._died[slots] = view.version + 1
            self._set(view.keys[slots], np.full(len(slots), -1))
            self.view = View(view.count, view.dead + len(slots), view.version + 1, self._keys, self._died)

    def restore(self, keys: NDArray[np.int64]) -> None:
        """Take over the keys of [N] slots, 0 for a dead one, in a table without any."""
        alive = np.flatnonzero(keys)
        self._keys, self._died = keys.copy(), np.where(keys == 0, 0, _NEVER)
        self._set(keys[alive], alive)
        self.view = View(len(keys), len(keys) - len(alive), 0, self._keys, self._died)

    def slots(self, keys: NDArray[np.int64]) -> Slots:
        """Slots of [N] keys; -1 for a key without a document. Readers check what they get with their view."""
        found = np.full(len(keys), -1, dtype=np.int64)
        pages = keys // _PAGE
        for number in np.unique(pages).tolist():
            page = self._pages.get(number)
            if page is not None:
                here = pages == number
                found[here] = page[keys[here] % _PAGE]
        return found

    def slots_in(self, view: View, keys: NDArray[np.int64]) -> Slots:
        """The slots in which a view shows documents of [N] different keys, ascending."""
        slots = self.slots(keys)
        late = keys[slots >= view.count]  # written anew since; the view still shows their old slots
        if len(late):
            slots = np.concatenate([slots, np.flatnonzero(np.isin(view.keys[: view.count], late))])
        slots = np.sort(slots[slots >= 0])
        return slots[view.alive(slots)]

    def _set(self, keys: NDArray[np.int64], slots: Slots) -> None:
        pages = keys // _PAGE
        for number in np.unique(pages).tolist():
            here = pages == number
            page = self._pages.setdefault(number, np.full(_PAGE, -1, dtype=np.int64))
            page[keys[here] % _PAGE] = slots[here]
