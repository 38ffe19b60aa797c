"""From an older version to this one: its workspace, its stages and its clients."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipflow import ROOT
from clipflow.index.live import LiveIndex
from clipflow.store.feedback import FeedbackLog
from clipflow.store.sqlite import Store
from clipflow.weights import load_spec
from forms import LONG
from kubernetes.conftest import Objects
from kubernetes.processes import Processes, Searches
from service import until

from .documents import COLOURS, documents

HERE = Path(__file__).parent
FIRST, LATER = 'c441889', 'c92e377'
"""The first version there is, with schema 1; and one with snapshots and feedback."""
ORDER = ('indexer', 'ranker', 'encoder', 'preprocessor', 'gateway')
"""In which stages are brought to another version: docs/operations.md."""
STORED = {doc.id for doc in documents()} - {'text 9'}
Left = Callable[[str], Path]


def by_old_programs(programs: Path, *command: str) -> 'subprocess.CompletedProcess[str]':
    """A Python command with the packages of an older version before all others."""
    path = os.pathsep.join(map(str, [programs, programs / 'client', HERE]))
    return subprocess.run(
        [sys.executable, '-W', 'ignore', *command],
        cwd=programs,
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def called(programs: Path, address: str, new: str) -> dict[str, Any]:
    """What an old client gets."""
    done = by_old_programs(programs, str(HERE / 'old_client.py'), address, new)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_stage_after_stage_gets_this_version_while_old_clients_go_on(
    left_by: Left, built: Callable[[str], Objects], tmp_path: Path
) -> None:
    left = left_by(FIRST)
    programs = left / 'programs'
    shutil.copytree(left / 'workspace', tmp_path / 'data')
    begin = 0 if LONG else 4  # the gateway alone is old
    running = Processes(built('dev'), tmp_path, programs, ORDER[begin:])
    address = f'127.0.0.1:{running.ports["gateway"][51000]}'
    try:
        with Searches(address, retries=100) as searches:
            until(lambda: '' in searches.codes, 200, 'a search is answered')
            for step, room in enumerate(('', *ORDER[begin:])):
                if room:
                    running.old.discard(room)
                    running.stop(room)
                    running.start(room)
                told = called(programs, address, f'new {step}')
                assert told['errors'] == []
                assert all(query == name for query, name in told['found'].items())
                assert told['tags'] == {
                    'text 0': {'number': 0, 'even': True, 'seen': f'new {step}'},
                    f'new {step}': {'number': 100},
                }
                assert told['filtered'] == [f'text {n}' for n in range(0, 10, 2)]
                assert (told['dimension'], told['deleted']) == (32, 0)
                assert set(told['stages']) == set(ORDER) - {'gateway'}
        assert set(searches.codes) == {''}
    except BaseException:
        print('\n'.join(path.read_text(errors='replace')[-2000:] for path in tmp_path.glob('*.log')))
        raise
    finally:
        running.end()
    # There is no way back but a backup.
    opening = (
        'import sys; from pathlib import Path; from clipflow.store.sqlite import Store; '
        'Store(Path(sys.argv[1]), sys.argv[2], "clip-mini")'
    )
    spec = load_spec(str(ROOT / 'models' / 'clip-mini'))
    refused = by_old_programs(programs, '-c', opening, str(tmp_path / 'data' / 'indexer' / '0'), spec.fingerprint)
    assert 'written by a newer clipflow' in refused.stderr


def test_snapshots_and_feedback_of_an_older_version_are_used(left_by: Left) -> None:
    workspace = left_by(LATER) / 'workspace'
    spec = load_spec(str(ROOT / 'models' / 'clip-mini'))
    index = LiveIndex(Store(workspace / 'indexer' / '0', spec.fingerprint, spec.name))
    try:
        assert index.status()['start'].startswith(f'{len(STORED)} documents from a snapshot')
        assert {record.id for record in index.store.by_ids(sorted(STORED)).values()} == STORED
        assert set(COLOURS) <= STORED
    finally:
        index.close()
    log = FeedbackLog(workspace, 0)
    try:
        (entry,) = log.page(0, 10)
        assert (entry.text, entry.shown, entry.clicked) == ('text 3', ('text 3', 'text 4'), ('text 4',))
    finally:
        log.close()
