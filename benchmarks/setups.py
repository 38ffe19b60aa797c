"""What benchmarks share: the local service, spread of repeated measurements, a no-op Flow to compare with."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'scripts'))

from local_service import LocalService, free_port

__all__ = ['LocalService', 'free_port', 'median_seconds', 'quantiles', 'spread', 'timed']


def timed(call: Callable[[], object], times: int) -> list[float]:
    """Seconds of each of `times` calls, after one that does not count."""
    call()
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return seconds


def median_seconds(call: Callable[[], object], enough: float) -> float:
    """Of one call, repeated for `enough` seconds and at least three times, after three that do not count."""
    for _ in range(3):
        call()
    taken: list[float] = []
    until = time.perf_counter() + enough
    while time.perf_counter() < until or len(taken) < 3:
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def quantiles(seconds: Sequence[float]) -> tuple[float, float]:
    """p50 and p95 in milliseconds."""
    ordered = sorted(seconds)
    return 1000 * statistics.median(ordered), 1000 * ordered[-(-len(ordered) * 95 // 100) - 1]


def spread(values: Sequence[float], shown: str = '.1f') -> str:
    """Median and range."""
    return f'{statistics.median(values):{shown}} ({min(values):{shown}} to {max(values):{shown}})'
