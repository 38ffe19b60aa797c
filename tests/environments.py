"""Environments of their own for what cannot live beside Jina: made once, and kept below .cache/."""

import fcntl
import hashlib
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from clipflow import ROOT


def environment(name: str, requirements: Path) -> Path:
    """The interpreter of an environment with these requirements; the test is skipped where it cannot be installed."""

    def install(folder: Path) -> list[str]:
        venv.create(folder, with_pip=True, clear=True)
        return [str(folder / 'bin' / 'python'), '-m', 'pip', 'install', '-q', '-r', str(requirements)]

    return _made(name, requirements, install)


def clip_retrieval() -> Path:
    """The interpreter of an environment with clip-retrieval: its client and its front end, which need no torch."""
    folder = ROOT / 'tests' / 'clients'
    found = environment('clip-retrieval', folder / 'clip_retrieval_requirements.txt')
    alone = str(folder / 'clip_retrieval_alone_requirements.txt')
    command = [str(found), '-m', 'pip', 'install', '-q', '--no-deps', '-r', alone]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f'clip-retrieval cannot be installed here: {made.stderr.strip().splitlines()[-1]}')
    return found


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
            made = subprocess.run(install(folder), capture_output=True, text=True, check=False)
            if made.returncode:
                reason = (made.stderr.strip().splitlines() or ['no reason given'])[-1]
                pytest.skip(f'the environment {name!r} cannot be installed here: {reason}')
            (folder / 'complete').touch()
    return folder / 'bin' / 'python'
