"""Whether a kind of index can serve: a small one is made, filled and asked, before a service relies on it.

That is done in a process of its own, because FAISS ends its process for some factory strings.
"""

import logging
import re
import subprocess
import sys
from functools import cache

import numpy as np

from clipflow.errors import InvalidParameter
from clipflow.index.approximate import EVERYTHING, Approximate, cause_of
from clipflow.index.choice import NAMED

_log = logging.getLogger('clipflow.indexer')

_VECTORS = 2000
_LISTS = 16
"""At most, in place of those that are asked for: more would take long to learn."""
_SECONDS = 120
_REFUSED = 3
_TOO_FEW = 'Number of training points'
"""What FAISS says of a code that is learnt from more vectors than the trial has."""


def check_kind(kind: str, dimension: int) -> None:
    """Raises InvalidParameter for a kind that is neither named nor one of FAISS that can serve here.

    Without vectors their dimension may be unknown (0), and is taken to be 768, which most codes divide.
    """
    if kind not in NAMED:
        _try(kind, dimension or 768)


@cache
def _try(kind: str, dimension: int) -> None:
    command = [sys.executable, '-m', 'clipflow.index.trial', kind, str(dimension)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        _log.warning('whether %r can serve was not known after %d seconds; it is used', kind, _SECONDS)
        return
    if done.returncode == _REFUSED:
        raise InvalidParameter(done.stdout.strip())
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1].partition(' failed in ')[0]
        raise InvalidParameter(f'{kind!r} cannot serve: FAISS fails with it ({said[:200]}); choose another kind')


def _serve(kind: str, dimension: int) -> None:
    """Raises InvalidParameter if an index of the kind cannot do what `layered` and `build` ask of it."""
    main = Approximate.create(re.sub(r'IVF(\d{2,})', f'IVF{_LISTS}', kind), dimension)
    rows = np.random.default_rng(0).normal(size=(_VECTORS, dimension)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    half = np.arange(0, _VECTORS, 2)
    try:
        main.train(rows)
        main.fill(rows[: _VECTORS // 2])
        main.add(rows[_VECTORS // 2 :])
        for effort in (1, EVERYTHING):
            for only, there in ((None, _VECTORS), (half, len(half))):
                for count in (10, _VECTORS):
                    _, slots, _ = main.search(rows[:2], count, effort, only)
                    found = [set(row[row >= 0].tolist()) for row in slots]
                    enough = effort == 1 or all(len(row) == min(count, there) for row in found)
                    if not enough or (only is not None and not all(row <= set(half.tolist()) for row in found)):
                        raise InvalidParameter(f'{kind!r} cannot serve: it does not find what there is')
        if main.exact:
            main.rows(half)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InvalidParameter(f'{kind!r} cannot serve: {_reason(error)}; choose another kind') from None


def _reason(error: Exception) -> str:
    said = cause_of(error)
    filters = ('params not supported', 'invalid search params', 'selector not supported')
    return 'FAISS has no filters for it' if any(map(said.__contains__, filters)) else f'FAISS says {said[:200]!r}'


def main() -> int:
    """The process."""
    kind, dimension = sys.argv[1:]
    try:
        _serve(kind, int(dimension))
    except InvalidParameter as error:
        if _TOO_FEW in error.message:
            return 0  # to be seen when there are as many
        print(error.message)
        return _REFUSED
    return 0


if __name__ == '__main__':
    sys.exit(main())
