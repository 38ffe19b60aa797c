"""Which kind of index serves a collection: from its size, the memory that may be used, and the wish of the settings."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

NAMED = ('auto', 'flat', 'hnsw', 'ivf', 'ivfpq')
"""Kinds; any other is a factory string of FAISS."""
MOST_FLAT = 50_000
"""Up to here an exact search takes some milliseconds and has no recall to lose."""
LEAST = 1_000
"""Below this no kind is better than flat, and clusters cannot be learnt."""
TABLE_BYTES = 40
"""Of a vector beside its numbers: keys, the map from keys to slots, FAISS's own identifiers."""
_BESIDE = 160 << 20
"""Bytes of an indexer that are no vectors: its program, its libraries, the caches of SQLite."""
_GROWTH = 4
_BITS = {'float32': 32, 'float16': 16, 'int8': 8}
_CODES = {'float32': 'Flat', 'float16': 'SQfp16', 'int8': 'SQ8'}


@dataclass(frozen=True)
class Wanted:
    """What the settings ask for.

    Attributes:
        kind: auto, flat, hnsw, ivf, ivfpq, or a factory string of FAISS.
        vectors: number format of vectors in memory: auto, float32, float16 or int8.
        memory: bytes that vectors may take in memory.
        recall: share of the true ten best that a search is to find.
        trained: an index without vectors, whose clusters and codes are used instead of learning own ones.
        learnt: the checksum of that file, so that another one is noticed.
    """

    kind: str = 'auto'
    vectors: str = 'auto'
    memory: int = 1 << 32
    recall: float = 0.98
    trained: Path | None = None
    learnt: str = ''


@dataclass(frozen=True)
class Choice:
    """A kind, FAISS's factory string for it (empty for flat), the bytes it will take, and a sentence for `/status`.

    Of kind "trained" the factory is the path of the file, and `learnt` its checksum.
    """

    kind: str
    factory: str
    memory: int
    why: str
    learnt: str = ''

    def makes(self, other: 'Choice') -> bool:
        """Whether both lead to the same index."""
        return (self.factory, self.learnt) == (other.factory, other.learnt)


def choose(wanted: Wanted, count: int, dimension: int, current: Choice | None = None) -> Choice:
    """The kind for `count` vectors of `dimension`.

    `current` gives way only when the collection has clearly outgrown it, so that a size near a bound does not make the
    index change back and forth.
    """
    flat = Choice('flat', '', count * (4 * dimension + TABLE_BYTES), '')
    if wanted.kind == 'flat':
        return _because(flat, 'asked for')
    if wanted.trained is not None:
        # All shards have to be of the one kind that was trained for them, also small ones.
        return Choice('trained', str(wanted.trained), flat.memory, 'CLIPFLOW_INDEX_TRAINED', wanted.learnt)
    if count < LEAST:
        return _because(flat, f'exact; other kinds begin at {LEAST:,} documents')
    if wanted.kind == 'auto':
        bound = MOST_FLAT if current is None or current.kind == 'flat' else MOST_FLAT // 2
        if count <= bound and flat.memory <= wanted.memory:
            return _because(flat, f'exact, and fast enough up to {bound:,} documents')
        found = _fitting(wanted, count, dimension)
    elif wanted.kind in ('hnsw', 'ivf', 'ivfpq'):
        vectors = 'float32' if wanted.vectors == 'auto' else wanted.vectors
        found = _because(_named(wanted.kind, vectors, count, dimension), 'asked for')
    else:
        lists = re.search(r'IVF(\d+)', wanted.kind)
        if lists is not None and count < int(lists[1]):
            return _because(flat, f'exact; {wanted.kind} begins at {int(lists[1]):,} documents')
        found = Choice('factory', wanted.kind, count * (4 * dimension + TABLE_BYTES), 'asked for')
    return _kept(current, found)


def _fitting(wanted: Wanted, count: int, dimension: int) -> Choice:
    """Inverted lists with the widest number format that fits; product quantisation as the last resort."""
    formats = list(_CODES) if wanted.vectors == 'auto' else [wanted.vectors]
    tried = [_named('ivf', name, count, dimension) for name in formats]
    tried += [_named('ivfpq', '', count, dimension)] if wanted.vectors == 'auto' else []
    for choice in tried:
        if choice.memory <= wanted.memory:
            return _because(choice, f'for {count:,} documents in {_mb(wanted.memory)}')
    return _because(tried[-1], f'the smallest that there is; {count:,} documents need more than {_mb(wanted.memory)}')


def _named(kind: str, vectors: str, count: int, dimension: int) -> Choice:
    lists = lists_for(count)
    width = next(m for m in range(max(1, dimension // 4), 0, -1) if dimension % m == 0)
    if kind == 'ivfpq':
        codebook = 256 * dimension * 4
        return Choice(kind, f'IVF{lists},PQ{width}', count * (width + TABLE_BYTES) + codebook, '')
    size = count * (dimension * _BITS[vectors] // 8 + TABLE_BYTES)
    if kind == 'hnsw':
        # 32 neighbours a vector above, 64 in the lowest layer, four bytes each.
        suffix = '' if vectors == 'float32' else f'_{_CODES[vectors]}'
        return Choice(kind, f'HNSW32{suffix}', size + count * 4 * 66, '')
    return Choice(kind, f'IVF{lists},{_CODES[vectors]}', size + lists * dimension * 4, '')


def lists_for(count: int) -> int:
    """Inverted lists for `count` vectors: a power of two near twice the square root, 39 vectors a list at least."""
    most = max(1, count // 39)
    return int(min(2 ** round((4 * count).bit_length() / 2), 2 ** (most.bit_length() - 1)))


def _kept(current: Choice | None, found: Choice) -> Choice:
    """`current`, unless it is of another kind or format, or made for a collection of another order of size."""
    if current is None or current.kind != found.kind:
        return found
    if found.kind == 'factory':  # as many lists as are asked for
        return current if current.factory == found.factory else found
    (old, old_rest), (new, new_rest) = _split(current.factory), _split(found.factory)
    same = old_rest == new_rest and new < old * _GROWTH and old < new * _GROWTH
    return current if same else found


def _split(factory: str) -> tuple[int, str]:
    """The number of lists, 1 where there are none, and all else."""
    head, _, rest = factory.partition(',')
    return (int(head[3:]), rest) if head[:3] == 'IVF' and head[3:].isdigit() else (1, factory)


def _because(choice: Choice, why: str) -> Choice:
    return replace(choice, why=why)


def _mb(size: int) -> str:
    return f'{size / 2**20:,.0f} MB'


def memory_for_vectors(budget: int = 0) -> int:
    """Bytes that vectors may take in a process that may take `budget` bytes.

    Without a budget, half of the memory that this process may have: of the machine, or of its control group.
    """
    if budget:
        return budget - min(_BESIDE, budget // 2)
    limits = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
    for path in ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(limits) // 2
