"""Environments of their own for what cannot live beside Jina: made once, and kept below .cache/."""

import fcntl
import hashlib
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

import pytest

from clipflow import ROOT
from forms import LONG

SECONDS = None if LONG else 240
"""For an installation: less than pytest gives a test."""


def environment(name: str, requirements: Path) -> Path:
    """The interpreter of an environment with these requirements; the test is skipped where it cannot be installed."""

    def install(folder: Path) -> list[str]:
        venv.create(folder, with_pip=True, clear=True)
        return [str(folder / 'bin' / 'python'), '-m', 'pip', 'install', '-q', '-r', str(requirements)]

    return _made(name, requirements, install)


def beside(name: str, requirements: Path) -> Path:
    """As `environment`, but with everything that is installed here in it too, at the same versions."""

    def install(folder: Path) -> list[str]:
        venv.create(folder, with_pip=True, clear=True)
        here = sysconfig.get_path('purelib')
        packages = folder / 'lib' / f'python{sys.version_info[0]}.{sys.version_info[1]}' / 'site-packages'
        (packages / 'beside.pth').write_text(here)
        pins = {f'{one.name}=={one.version}' for one in distributions(path=[here])}
        constraints = folder / 'constraints.txt'
        constraints.write_text('\n'.join(sorted(pins)) + '\n')
        pip = [str(folder / 'bin' / 'python'), '-m', 'pip', 'install', '-q']
        return [*pip, '-c', str(constraints), '-r', str(requirements)]

    return _made(name, requirements, install)


def clip_retrieval() -> Path:
    """The interpreter of an environment with clip-retrieval: its client and its front end, which need no torch."""
    return _with_clip_retrieval('clip-retrieval', 'clip_retrieval_requirements.txt')


def clip_retrieval_bulk() -> Path:
    """The same with what its `back`, `index` and writer need, but for a model."""
    return _with_clip_retrieval('clip-retrieval-bulk', 'clip_retrieval_bulk_requirements.txt')


def _with_clip_retrieval(name: str, requirements: str) -> Path:
    folder = ROOT / 'tests' / 'clients'
    found = environment(name, folder / requirements)
    alone = str(folder / 'clip_retrieval_alone_requirements.txt')
    command = [str(found), '-m', 'pip', 'install', '-q', '--no-deps', '-r', alone]
    _run(name, command)
    return found


def img2dataset() -> Path:
    """The folder with the programs of an environment with img2dataset, for PATH."""
    return environment('img2dataset', ROOT / 'clipflow' / 'bulk' / 'fetch' / 'requirements.txt').parent


def milvus() -> Path:
    """The interpreter of the environment that executors/milvus_indexer/README.md describes, with what tests need."""
    room = ROOT / 'executors' / 'milvus_indexer' / 'requirements.txt'

    def install(folder: Path) -> list[str]:
        venv.create(folder, with_pip=True, clear=True)
        files = ('requirements.txt', 'requirements-dev.txt')
        pins = [pin for name in files for pin in (ROOT / name).read_text().splitlines()]
        constraints = folder / 'constraints.txt'
        constraints.write_text('\n'.join(pin for pin in pins if not pin.startswith(('-e', 'grpcio=='))))
        pip = [str(folder / 'bin' / 'python'), '-m', 'pip', 'install', '-q', '-c', str(constraints), '-r', str(room)]
        return [*pip, 'pytest', 'pytest-timeout', 'hypothesis']

    return _made('milvus', room, install)


def environment_by(name: str, script: Path) -> Path:
    """As `environment`, but a script makes it in the folder that it is given."""
    if not script.exists():
        pytest.skip(f'the environment {name!r} cannot be installed here: there is no {script}')
    return _made(name, script, lambda folder: [str(script), str(folder)])


def _made(name: str, source: Path, install: Callable[[Path], list[str]]) -> Path:
    digest = hashlib.sha256(source.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = ROOT / '.cache' / f'{name}-{digest}'
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix('.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be making it
        if not (folder / 'complete').exists():
            _run(name, install(folder))
            (folder / 'complete').touch()
    return folder / 'bin' / 'python'


def _run(name: str, command: list[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ['no reason given'])[-1]
        pytest.skip(f'the environment {name!r} cannot be installed here: {reason}')
    except subprocess.TimeoutExpired:
        pytest.skip(f'the environment {name!r} cannot be installed here within {SECONDS} s')
