"""What is installed here, beside what this distribution asks for: read from metadata, nothing is imported."""

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata

DISTRIBUTION = 'clipflow'
ROOMS = ('preprocessor', 'encoder', 'indexer', 'ranker', 'gateway')
"""Extras that a service needs; the others are optional."""
_FOR_WORK = ('dev', 'plot')
_PIN = re.compile(r"""(?P<name>[\w.-]+)\s*==\s*(?P<version>[^\s;]+)(?:\s*;\s*extra == ["'](?P<extra>[\w-]+)["'])?""")
_BOUND = re.compile(r'(>=|<)(\d+)\.(\d+)')


@dataclass(frozen=True)
class Pin:
    """A package, its version, and the extra that asks for it; without one it is needed in any case."""

    name: str
    version: str
    extra: str

    def there(self) -> str | None:
        """The version that is installed."""
        for name in (self.name, f'{self.name}-gpu'):  # onnxruntime-gpu stands in place of onnxruntime
            with contextlib.suppress(metadata.PackageNotFoundError):
                return metadata.version(name)
        return None

    def is_met_by(self, version: str | None) -> bool:
        """Builds of one version, such as 2.13.0+cpu, are alike."""
        return version is not None and version.partition('+')[0] == self.version.partition('+')[0]


def pins() -> list[Pin] | None:
    """All that this distribution asks for; None if it is not installed as one."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    found = (_PIN.fullmatch(line.strip()) for line in lines)
    return [Pin(match['name'], match['version'], match['extra'] or '') for match in found if match]


def wrong(some: Iterable[Pin]) -> Iterator[str]:
    """A sentence about each package that a service needs and that is missing or of another version."""
    seen = set()
    for pin in some:
        if pin.name in seen or pin.extra not in ('', *ROOMS):
            continue
        seen.add(pin.name)
        there = pin.there()
        if there is None:
            whose = f'the {pin.extra}' if pin.extra else 'everything'
            yield f'{pin.name}, which {whose} needs, is not installed; pip install "{pin.name}=={pin.version}"'
        elif not pin.is_met_by(there):
            yield (
                f'{pin.name} is {there}, but {pin.version} goes with the other packages; '
                f'pip install "{pin.name}=={pin.version}"'
            )


def extras(some: Iterable[Pin]) -> dict[str, list[Pin]]:
    """Pins of each optional extra."""
    found: dict[str, list[Pin]] = {}
    for pin in some:
        if pin.extra not in ('', *ROOMS, *_FOR_WORK):
            found.setdefault(pin.extra, []).append(pin)
    return found


def python_fault() -> str | None:
    """Whether this is a Python that the distribution does not take."""
    try:
        bounds = _BOUND.findall(metadata.metadata(DISTRIBUTION)['Requires-Python'] or '')
    except metadata.PackageNotFoundError:
        return None
    here = sys.version_info[:2]
    for sign, major, minor in bounds:
        if (here >= (int(major), int(minor))) != (sign == '>='):
            wanted = ', '.join(f'{sign} {major}.{minor}' for sign, major, minor in bounds)
            return f'this is Python {here[0]}.{here[1]}, but clipflow takes {wanted}; make another environment'
    return None
