"""`clipflow doctor`: what stands in the way of a service here, all of it at once, without starting one."""

import argparse
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

GIGABYTE = 1024**3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    state: Literal['ok', 'note', 'fault']
    subject: str
    sentence: str


def add_commands(commands: Any) -> None:
    """Add `doctor`."""
    command = commands.add_parser(
        'doctor',
        help='check the installation',
        description='Look at settings, model, encoder, disk and ports, and say what is wrong and what would be faster. '
        'Starts nothing and changes nothing; the exit code is 1 if a service could not start.',
    )
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print all findings."""
    # A setting that is not valid stands in the way of several checks, and is said once.
    found: dict[str, Finding] = {}
    for check in _CHECKS:
        for finding in check():
            found.setdefault(finding.sentence, finding)
    for finding in found.values():
        print(f'{finding.state:5}  {finding.subject}: {finding.sentence}')
    faults = sum(finding.state == 'fault' for finding in found.values())
    print(f'{faults} fault{"s" if faults != 1 else ""}' if faults else 'a service can start')
    return 1 if faults else 0


def _tried(subject: str, check: Callable[[], Iterator[Finding]]) -> Callable[[], Iterator[Finding]]:
    """A check whose own error is a fault with its sentence."""

    def checked() -> Iterator[Finding]:
        from clipflow.errors import ClipflowError

        try:
            yield from check()
        except ClipflowError as error:
            yield Finding('fault', subject, error.message)

    return checked


def _settings() -> Iterator[Finding]:
    from clipflow.errors import ClipflowError
    from clipflow.settings import ALL, unknown_variables

    wrong = set()
    for settings in ALL:
        try:
            settings.load()
        except ClipflowError as error:
            wrong |= set(error.message.split('; '))
    yield from (Finding('fault', 'settings', sentence) for sentence in sorted(wrong))
    yield from (Finding('note', 'settings', sentence) for sentence in unknown_variables())
    if not wrong:
        yield Finding('ok', 'settings', 'are valid')


def _model() -> Iterator[Finding]:
    from clipflow.settings import RoomSettings
    from clipflow.weights import load_spec

    spec = load_spec(RoomSettings.load().model)
    yield Finding('ok', 'model', f'{spec.name} ({spec.family}, fingerprint {spec.fingerprint})')


def _encoder() -> Iterator[Finding]:
    from clipflow.sessions.registry import candidates, faster, this_machine
    from clipflow.settings import EncoderSettings

    settings, machine = EncoderSettings.load(), this_machine()
    first = candidates(settings, machine)[0]
    yield Finding('ok', 'encoder', f'{first.runtime} on {first.device} in {first.precision}: {first.why}')
    yield from (Finding('note', 'encoder', sentence) for sentence in faster(settings, first, machine))


def _disk() -> Iterator[Finding]:
    from clipflow.settings import EncoderSettings, IndexerSettings

    places = {
        'workspace': ('CLIPFLOW_WORKSPACE', IndexerSettings.load().workspace),
        'cache': ('CLIPFLOW_CACHE', EncoderSettings.load().cache.expanduser()),
    }
    for subject, (variable, place) in places.items():
        there = _existing(place)
        if not there.is_dir() or not os.access(there, os.W_OK):
            yield Finding('fault', subject, f'{place} cannot be written; change its owner, or set {variable}')
            continue
        free = shutil.disk_usage(there).free / GIGABYTE
        state: Literal['ok', 'note'] = 'ok' if free >= 1 else 'note'
        yield Finding(state, subject, f'{place}, {free:.1f} GB free')


def _existing(place: Path) -> Path:
    """The place itself, or the nearest folder above it that is there."""
    return next(path for path in (place, *place.parents) if path.exists())


def _ports() -> Iterator[Finding]:
    from clipflow.border.launcher import check_port
    from clipflow.errors import ClipflowError
    from clipflow.settings import GatewaySettings

    settings = GatewaySettings.load()
    for name, port in (('gRPC', settings.grpc_port), ('HTTP', settings.http_port)):
        try:
            check_port(settings.host, port)
            yield Finding('ok', 'port', f'{settings.host}:{port} for {name} is free')
        except ClipflowError as error:
            yield Finding('fault', 'port', error.message)


_CHECKS = (
    _settings,
    _tried('model', _model),
    _tried('encoder', _encoder),
    _tried('disk', _disk),
    _tried('port', _ports),
)
