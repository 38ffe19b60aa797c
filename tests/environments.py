"""Environments of their own for what cannot live beside Jina: made once, and kept below .cache/."""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from clipflow import ROOT


def environment(name: str, requirements: Path) -> Path:
    """The interpreter of an environment with these requirements; the test is skipped where it cannot be installed."""
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = ROOT / '.cache' / f'{name}-{digest}'
    interpreter = folder / 'bin' / 'python'
    if not (folder / 'complete').exists():
        venv.create(folder, with_pip=True, clear=True)
        command = [str(interpreter), '-m', 'pip', 'install', '-q', '-r', str(requirements)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f'the environment {name!r} cannot be installed here: {made.stderr.strip().splitlines()[-1]}')
        (folder / 'complete').touch()
    return interpreter
