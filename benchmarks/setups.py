"""What benchmarks share: the local service, spread of repeated measurements, a no-op Flow to compare with."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'scripts'))

from local_service import LocalService, free_port

__all__ = ['LocalService', 'free_port', 'quantiles', 'spread', 'timed']


def timed(call: Callable[[], object], times: int) -> list[float]:
    """Seconds of each of `times` calls, after one that does not count."""
    call()
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return seconds


def quantiles(seconds: Sequence[float]) -> tuple[float, float]:
    """p50 and p95 in milliseconds."""
    ordered = sorted(seconds)
    return 1000 * statistics.median(ordered), 1000 * ordered[-(-len(ordered) * 95 // 100) - 1]


def spread(values: Sequence[float], shown: str = '.1f') -> str:
    """Median and range."""
    return f'{statistics.median(values):{shown}} ({min(values):{shown}} to {max(values):{shown}})'
