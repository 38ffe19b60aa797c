"""`clipflow doctor`: what stands in the way of a service here, all of it at once, without starting one."""

import argparse
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

GIGABYTE = 1024**3
_SQLITE = (3, 35)
"""RETURNING."""


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
        description='Look at packages and their versions, settings, model, encoder, documents, disk and ports, and say '
        'all that is wrong, what to do, and what would be faster. Starts nothing and changes nothing, but loads the '
        'model, which takes as much memory as in a service; the exit code is 1 if there is a fault.',
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
        except ImportError as error:
            yield Finding('fault', subject, f'cannot be looked at: {error}; see what is said about packages')

    return checked


def _packages() -> Iterator[Finding]:
    from clipflow.cli import installation

    if fault := installation.python_fault():
        yield Finding('fault', 'packages', fault)
    pins = installation.pins()
    if pins is None:
        yield Finding('note', 'packages', 'clipflow is not installed as a package, so nobody knows what it needs here')
        return
    wrong = list(installation.wrong(pins))
    yield from (Finding('fault', 'packages', sentence) for sentence in wrong)
    if not wrong:
        yield Finding('ok', 'packages', 'all that a service needs, in the versions that go together')
    missing = []
    for extra, needed in installation.extras(pins).items():
        there = {pin.name: pin.there() for pin in needed}
        if None in there.values():
            missing.append(extra)
            continue
        for pin in needed:
            if not pin.is_met_by(there[pin.name]):
                sentence = f'{pin.name} is {there[pin.name]}, but {extra} was tried with {pin.version}'
                yield Finding('note', 'extras', f'{sentence}; pip install "clipflow[{extra}]"')
    if missing:
        yield Finding('ok', 'extras', f'not installed, and needed for what they are for only: {", ".join(missing)}')


def _versions() -> Iterator[Finding]:
    import platform
    import sqlite3

    from clipflow import __version__

    said = f'clipflow {__version__}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}'
    if sqlite3.sqlite_version_info < _SQLITE:
        least = '.'.join(map(str, _SQLITE))
        yield Finding('fault', 'versions', f'{said}: SQLite must be {least} or later; take a newer Python or system')
    else:
        yield Finding('ok', 'versions', f'{said}, {platform.system()} {platform.release()} on {platform.machine()}')


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
    from clipflow.sessions.registry import ELSEWHERE
    from clipflow.settings import EncoderSettings
    from clipflow.weights import CLIP_SERVER, load_spec

    settings = EncoderSettings.load()
    spec = load_spec(settings.model)
    if spec.family != CLIP_SERVER:  # which has no files here
        from clipflow.tokens import Tokenizer

        # As the encoder does it at its start, which refuses some models only then.
        Tokenizer(spec)
        if settings.runtime not in ELSEWHERE:
            from clipflow.sessions.towers import load_towers

            load_towers(spec)
    yield Finding('ok', 'model', f'{spec.name} ({spec.family}, fingerprint {spec.fingerprint})')


def _encoder() -> Iterator[Finding]:
    from clipflow.sessions.machine import this_machine
    from clipflow.sessions.registry import candidates, faster, imported
    from clipflow.settings import EncoderSettings

    settings, machine = EncoderSettings.load(), this_machine()
    first = candidates(settings, machine)[0]
    where = f'on {first.device} in {first.precision}'
    if settings.runtime != 'auto':  # which takes none that is not there
        module = imported(first.runtime)
        if first.runtime == 'kserve':
            module.check_url(settings.kserve_url)
            where = f'on the server at {settings.kserve_url}'
    yield Finding('ok', 'encoder', f'{first.runtime} {where}: {first.why}')
    yield from (Finding('note', 'encoder', sentence) for sentence in faster(settings, first, machine))


def _index() -> Iterator[Finding]:
    from clipflow.index.approximate import Approximate
    from clipflow.index.trial import check_kind
    from clipflow.settings import IndexerSettings
    from clipflow.weights import load_spec

    settings = IndexerSettings.load()
    check_kind(settings.index_kind, load_spec(settings.model).dimension)
    if settings.index_trained is not None:
        Approximate.read(settings.index_trained, 0)
    yield Finding('ok', 'index', settings.index_kind)


def _calibration() -> Iterator[Finding]:
    from clipflow.rank.calibration import Calibration
    from clipflow.settings import RankerSettings
    from clipflow.weights import load_spec

    settings = RankerSettings.load()
    if settings.calibration is not None:
        Calibration.read(settings.calibration).check(load_spec(settings.model).fingerprint)
        yield Finding('ok', 'calibration', str(settings.calibration))


def _access() -> Iterator[Finding]:
    from clipflow.access import Access, check_certificate
    from clipflow.settings import GatewaySettings

    settings = GatewaySettings.load()
    Access.of(settings.api_keys, settings.api_keys_file)
    if settings.tls_certificate is not None and settings.tls_key is not None:
        check_certificate(settings.tls_certificate, settings.tls_key)
    keys = settings.api_keys or settings.api_keys_file
    yield Finding('ok', 'access', 'an API key is needed' if keys else 'no API key is needed')


def _disk() -> Iterator[Finding]:
    from clipflow.settings import EncoderSettings, IndexerSettings

    places = {
        'workspace': ('CLIPFLOW_WORKSPACE', IndexerSettings.load().workspace),
        'cache': ('CLIPFLOW_CACHE', EncoderSettings.load().cache.expanduser()),
    }
    for subject, (variable, place) in places.items():
        there = _existing(place)
        if not there.is_dir() or not os.access(there, os.W_OK):
            if subject == 'cache' and not _writes_to_cache():
                yield Finding('ok', subject, f'{place} cannot be written, and need not be')
                continue
            yield Finding('fault', subject, f'{place} cannot be written; change its owner, or set {variable}')
            continue
        free = shutil.disk_usage(there).free / GIGABYTE
        state: Literal['ok', 'note'] = 'ok' if free >= 1 else 'note'
        yield Finding(state, subject, f'{place}, {free:.1f} GB free')


def _writes_to_cache() -> bool:
    """Whether the encoder has something to write there at its next start."""
    from clipflow.sessions.export import are_there
    from clipflow.sessions.machine import this_machine
    from clipflow.sessions.registry import candidates, imported
    from clipflow.settings import EncoderSettings
    from clipflow.weights import load_spec

    settings = EncoderSettings.load()
    first = candidates(settings, this_machine())[0]
    if first.runtime == 'tensorrt':
        return not imported('tensorrt').are_there(load_spec(settings.model), settings.cache, first.precision)
    if first.runtime not in ('onnx', 'openvino'):
        return False
    precision = first.precision if first.runtime == 'onnx' else 'float32'
    return not are_there(load_spec(settings.model), settings.cache, precision)


def _documents() -> Iterator[Finding]:
    from contextlib import closing

    from clipflow.settings import IndexerSettings
    from clipflow.store import generations, layout
    from clipflow.store.connection import connect, translated
    from clipflow.store.migrations import STEPS
    from clipflow.weights import load_spec

    settings = IndexerSettings.load()
    if os.path.exists(settings.workspace) and not os.path.isdir(settings.workspace):
        return  # said of the disk
    if os.path.isdir(settings.workspace / layout.RESTORED):
        yield Finding('note', 'documents', 'a restore was interrupted; the next start brings it to its end')
        return
    shards = layout.shards(generations.current(settings.workspace))
    if not shards:
        yield Finding('ok', 'documents', 'there are none yet')
        return
    total, models = 0, {}
    for directory in shards.values():
        with translated(), closing(connect(directory / layout.DOCUMENTS)) as db:
            version = db.execute('PRAGMA user_version').fetchone()[0]
            if version > len(STEPS):
                sentence = f'{directory} has schema {version}, written by a newer clipflow; install that version'
                yield Finding('fault', 'documents', sentence)
                return
            meta = dict(db.execute('SELECT name, value FROM meta'))
            count = db.execute('SELECT count(*) FROM documents').fetchone()[0]
        total += count
        if count:
            models[meta['fingerprint']] = meta['model']
    spec = load_spec(settings.model)
    for name in (name for fingerprint, name in models.items() if fingerprint != spec.fingerprint):
        sentence = (
            f'they are of the model {name!r}, not of {spec.name!r}; set CLIPFLOW_MODEL, or call `clipflow reindex`'
        )
        yield Finding('fault', 'documents', sentence)
    if not models.keys() - {spec.fingerprint}:
        yield Finding('ok', 'documents', f'{total:,} in {len(shards)} shard{"s" if len(shards) > 1 else ""}')


def _existing(place: Path) -> Path:
    """The place itself, or the nearest folder above it that is there."""
    return next(path for path in (place, *place.parents) if os.path.exists(path))


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
    _packages,
    _versions,
    _tried('settings', _settings),
    _tried('model', _model),
    _tried('encoder', _encoder),
    _tried('index', _index),
    _tried('calibration', _calibration),
    _tried('access', _access),
    _tried('documents', _documents),
    _tried('disk', _disk),
    _tried('port', _ports),
)
