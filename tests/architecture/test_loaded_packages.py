"""Importing one part loads no other part's heavy packages; `clipflow --help` loads none and is quick."""

import json
import os
import resource
import subprocess
import sys

import pytest

from .code import ROOT

HEAVY = ('torch', 'transformers', 'faiss', 'fastapi', 'jina', 'docarray')
CLIENT = ROOT / 'client' / 'clipflow_client' / '__init__.py'

LOAD_FILE = 'import importlib.util as u; s = u.spec_from_file_location({stem!r}, {path!r}); m = u.module_from_spec(s)'


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter that finds this checkout."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(('CLIPFLOW_', 'PYTEST_'))}
    environment |= {'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "client"}', 'PYTHONWARNINGS': 'ignore'}
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd='/')


def loaded_by(code: str) -> set[str]:
    """Which heavy packages are in memory after `code`."""
    report = f'\nimport json, sys; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))'
    done = python('-c', code + report)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ('name', 'unwanted'),
    [
        ('clipflow.store.sqlite, clipflow.index.live', {'torch', 'transformers', 'fastapi', 'jina'}),
        ('clipflow.pictures, clipflow.sources', {'torch', 'transformers', 'faiss', 'fastapi', 'jina', 'docarray'}),
        ('clipflow.sessions.registry, clipflow.batching', {'torch', 'transformers', 'faiss', 'fastapi', 'jina'}),
        ('clipflow.wire, clipflow.rank.scores', {'torch', 'transformers', 'faiss', 'fastapi', 'jina'}),
        # The launcher sets how Jina starts processes, and that it sends no telemetry, before Jina is imported.
        ('clipflow.border.launcher', set(HEAVY)),
    ],
)
def test_a_part_loads_only_what_it_needs(name: str, unwanted: set[str]) -> None:
    assert loaded_by(f'import {name}') & unwanted == set()


@pytest.mark.parametrize(
    ('path', 'unwanted'),
    [
        ('executors/preprocessor/input_preprocessor.py', {'torch', 'transformers', 'faiss', 'fastapi'}),
        ('executors/encoder/clip_encoder.py', {'faiss', 'fastapi'}),
        ('executors/indexer/vector_indexer.py', {'torch', 'transformers', 'fastapi'}),
        ('executors/milvus_indexer/milvus_indexer.py', {'torch', 'transformers', 'faiss', 'fastapi'}),
        ('executors/ranker/result_ranker.py', {'torch', 'transformers', 'faiss', 'fastapi'}),
        ('gateway/clipflow_gateway.py', {'torch', 'transformers', 'faiss'}),
    ],
)
def test_a_room_loaded_by_path_loads_no_other_room_s_packages(path: str, unwanted: set[str]) -> None:
    file = ROOT / path
    code = LOAD_FILE.format(stem=file.stem, path=str(file)) + '; s.loader.exec_module(m)'
    assert loaded_by(code) & unwanted == set()


@pytest.mark.skipif(not CLIENT.exists(), reason='client/clipflow_client is not written yet')
def test_the_client_loads_neither_models_nor_an_index_nor_a_web_framework() -> None:
    assert loaded_by('import clipflow_client') & {'torch', 'transformers', 'faiss', 'fastapi'} == set()


def test_help_loads_no_heavy_package() -> None:
    done = python('-X', 'importtime', '-m', 'clipflow.cli.main', '--help')
    assert done.returncode == 0
    assert 'usage' in done.stdout
    names = {line.rpartition('|')[2].strip() for line in done.stderr.splitlines() if line.startswith('import time:')}
    assert 'clipflow.errors' in names
    assert names & set(HEAVY) == set()


@pytest.mark.alone
def test_help_costs_less_than_three_tenths_of_a_second() -> None:
    # The least of five, in time of the processor: what it costs, not what else the machine does.
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python('-m', 'clipflow.cli.main', '--help').returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert 0 < min(times) < 0.3
