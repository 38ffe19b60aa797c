"""Images built from the shipped Dockerfiles, on a base of Debian packages and from wheels: no registry, no network.

What is slow is kept below .cache/: the base, the wheels, and podman's layers.
"""

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

from clipflow import ROOT, __version__

from .engine import FOLDER, Engine, EngineError, run

BASE = 'localhost/clipflow-base:bookworm'
ROOMS = {
    'gateway': 'gateway',
    'preprocessor': 'executors/preprocessor',
    'encoder': 'executors/encoder',
    'indexer': 'executors/indexer',
    'ranker': 'executors/ranker',
}
_PACKAGES = 'python3,python3-pip,python3-venv,ca-certificates'
_CONTEXT = ('requirements.txt', 'clipflow', 'models/clip-mini')
_DIGEST = 'clipflow.inputs'


def image(room: str) -> str:
    """The name of a room's image, as in the manifests."""
    return f'localhost/clipflow-{room}:{__version__}'


def prepare(engine: Engine) -> None:
    """Make the base and the wheels, and run a container.

    Raises:
        EngineError: one of them is impossible here.
    """
    if not engine.try_podman('image', 'exists', BASE):
        engine.podman('import', '-c', 'CMD ["python3"]', str(_base()), BASE)
    engine.podman('run', '--rm', '--network', 'none', BASE, 'true')
    _wheels()


def base_can_be_had() -> None:
    """Whether there is a base already, or what makes one.

    Raises:
        EngineError: neither.
    """
    if not (FOLDER / 'base.tar').exists() and not shutil.which('mmdebstrap'):
        raise EngineError('not installed: mmdebstrap')


def build_all(engine: Engine) -> None:
    """Build what is missing or of older sources.

    Raises:
        EngineError: a Dockerfile does not build.
    """
    wheels = _wheels()
    for room, folder in ROOMS.items():
        digest = _digest(ROOT / folder)
        if _label(engine, image(room)) == digest:
            continue
        options = ['--format', 'docker', '--network', 'none', '--layers', '-v', f'{wheels}:/wheels:ro']
        options += ['--build-arg', f'BASE={BASE}', '--build-arg', 'PIP_ARGUMENTS=--no-index --find-links /wheels']
        options += ['--label', f'{_DIGEST}={digest}', '-t', image(room), '-f', str(ROOT / folder / 'Dockerfile')]
        engine.podman('build', *options, str(ROOT))


def size(engine: Engine, name: str) -> int:
    """Bytes of an image, with its base."""
    return int(engine.podman('image', 'inspect', '--format', '{{.Size}}', name))


def _base() -> Path:
    """A Debian with Python, as a tar."""
    path = FOLDER / 'base.tar'
    if not path.exists():
        base_can_be_had()
        made = FOLDER / f'base-{os.getpid()}.tar'
        without = [f'--dpkgopt=path-exclude=/usr/share/{name}/*' for name in ('man', 'doc')]
        try:
            run(['mmdebstrap', '--variant=minbase', f'--include={_PACKAGES}', *without, 'bookworm', str(made)])
            made.rename(path)
        finally:
            made.unlink(missing_ok=True)
    return path


def _wheels() -> Path:
    """The pinned packages, for every room."""
    pins = re.sub(r'^-e.*\n', '', (ROOT / 'requirements.txt').read_text(encoding='utf-8'), flags=re.MULTILINE)
    folder = FOLDER / f'wheels-{hashlib.sha256(pins.encode()).hexdigest()[:12]}'
    if not folder.exists():
        made = FOLDER / f'wheels-{os.getpid()}'
        made.mkdir()
        try:
            (made / 'pins.txt').write_text(pins, encoding='utf-8')
            run([sys.executable, '-m', 'pip', 'wheel', '-q', '-w', str(made), '-r', str(made / 'pins.txt')])
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def _label(engine: Engine, name: str) -> str:
    if not engine.try_podman('image', 'exists', name):
        return ''
    return engine.podman('image', 'inspect', '--format', f'{{{{index .Labels "{_DIGEST}"}}}}', name).strip()


def _digest(folder: Path) -> str:
    """Of all files that go into an image."""
    found = hashlib.sha256()
    for start in (*(ROOT / name for name in _CONTEXT), folder):
        for path in [start, *sorted(start.rglob('*'))]:
            if path.is_file() and path.suffix != '.pyc':
                found.update(str(path.relative_to(ROOT)).encode() + b'\0' + path.read_bytes())
    return found.hexdigest()[:16]
