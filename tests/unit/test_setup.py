"""scripts/setup with a Python that only notes what it is asked to do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from clipflow import ROOT

# Of a system it makes an environment, whose Python is this file again; there it has pip if the file `pip` is beside it.
_PYTHON = """#!/bin/sh
echo "$@" >> "$NOTES"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/bin/pip" ;;
  "-m pip "*) [ -f "$(dirname "$0")/pip" ] ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / 'a checkout'
    for name in (
        'scripts/setup',
        'requirements.txt',
        'requirements-dev.txt',
        'pyproject.toml',
        'client/requirements.txt',
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (tmp_path / 'python').write_text(_PYTHON)
    (tmp_path / 'python').chmod(0o755)
    return folder


def done(checkout: Path) -> list[str]:
    """Run it; what Python was asked to do: `venv`, `install`."""
    notes = checkout.parent / 'notes'
    notes.write_text('')
    environment = {**os.environ, 'PYTHON': str(checkout.parent / 'python'), 'NOTES': str(notes)}
    environment.pop('VENV', None)
    subprocess.run([checkout / 'scripts' / 'setup'], env=environment, check=True, capture_output=True, timeout=60)
    return [word for line in notes.read_text().splitlines() for word in ('venv', 'install') if f' {word} ' in line]


def test_it_installs_once(checkout: Path) -> None:
    assert done(checkout) == ['venv', 'install']
    assert done(checkout) == []
    (checkout / 'requirements.txt').write_text('another')
    assert done(checkout) == ['install']


def test_an_environment_that_was_interrupted_before_it_had_pip_is_made_again(checkout: Path) -> None:
    (checkout / '.venv' / 'bin').mkdir(parents=True)
    shutil.copy(checkout.parent / 'python', checkout / '.venv' / 'bin' / 'python')
    assert done(checkout) == ['venv', 'install']


def test_a_checkout_that_was_moved_is_installed_where_it_is(checkout: Path) -> None:
    done(checkout)
    moved = checkout.rename(checkout.with_name('elsewhere'))
    assert done(moved) == ['install']
