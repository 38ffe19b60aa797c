"""Make what an older version leaves behind: a workspace, and on demand its programs, packed as `COMMIT.tar.gz` here.

    .venv/bin/python tests/upgrade/make.py c441889 --programs
    .venv/bin/python tests/upgrade/make.py c92e377

The commit is checked out beside this one for a while and its service started on an empty workspace, with this
environment's packages, the runtime `fake` and the bundled model. Its own client stores the documents, deletes one and,
where there are such things, asks for a snapshot and sends feedback.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAMS = ('clipflow', 'client/clipflow_client', 'executors', 'gateway')
_STORE = """
import sys
from docarray import DocumentArray
from clipflow_client import Client
sys.path.insert(0, sys.argv[2])
from documents import documents
with Client(sys.argv[1]) as client:
    assert all(outcome.error is None for outcome in client.index(documents()))
    client.delete(['text 9'])
    if hasattr(client, 'feedback'):
        client.post('/snapshot', DocumentArray())
        client.feedback('text 3', ['text 3', 'text 4'], clicked=['text 4'])
"""


def make(commit: str, programs: bool) -> Path:
    """See the module."""
    with tempfile.TemporaryDirectory() as folder:
        old, workspace = Path(folder, 'old'), Path(folder, 'workspace')
        subprocess.run(['git', 'worktree', 'add', '--detach', str(old), commit], cwd=ROOT, check=True)
        try:
            _serve(old, workspace)
            packed = HERE / f'{commit}.tar.gz'
            with tarfile.open(packed, 'w:gz', compresslevel=9) as archive:
                archive.add(workspace, 'workspace', filter=_plain)
                for name in PROGRAMS if programs else ():
                    archive.add(old / name, f'programs/{name}', filter=_plain)
        finally:
            subprocess.run(['git', 'worktree', 'remove', '--force', str(old)], cwd=ROOT, check=True)
    return packed


def _serve(old: Path, workspace: Path) -> None:
    # Before everything that this checkout has installed.
    os.environ['PYTHONPATH'] = os.pathsep.join([str(old), str(old / 'client')])
    os.chdir(old)
    sys.path.insert(0, str(ROOT / 'scripts'))
    from local_service import LocalService

    with LocalService(workspace, {'RUNTIME': 'fake'}, echo=True) as service:
        subprocess.run([sys.executable, '-c', _STORE, service.grpc, str(HERE)], check=True, timeout=60)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if '__pycache__' in entry.name or not (entry.isfile() or entry.isdir()):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ''
    return entry


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('commit')
    parser.add_argument('--programs', action='store_true', help='pack its client and its stages too')
    given = parser.parse_args()
    path = make(given.commit, given.programs)
    print(f'{path}: {path.stat().st_size / 1000:.0f} kB')
