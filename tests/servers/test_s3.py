"""Backups in an S3-compatible store: moto's server, in an environment of its own."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from clipflow.backup.restore import found, restore
from clipflow.backup.take import keep, take
from clipflow.backup.target import Target
from clipflow.cli.main import main
from clipflow.errors import Forbidden, Internal, NotFound, Unauthorized, Unavailable
from clipflow.store import layout
from environments import environment
from service import free_port, until
from unit.backup.places import FINGERPRINT, everything, fill, listed, unnoticed

s3fs = pytest.importorskip('s3fs', reason="the extra 's3' is not installed")

SECRET = 'a-secret-that-nobody-may-see'
BUCKET = 'kept'
PREFIX = 'some/where'
MEGABYTE = 1 << 20
# Stops five megabytes before the end, and waits to be killed.
STOPS = """
import signal, sys
from pathlib import Path
from clipflow.backup.take import take
from clipflow.backup.target import Target

workspace, target, stopped = sys.argv[1:]

def begun(left):
    def moved(count):
        nonlocal left
        left -= count
        if left < 5 << 20:
            Path(stopped).touch()
            signal.pause()
    return moved

take(Path(workspace), Target(target), begun)
"""


@pytest.fixture(scope='module')
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server with an empty bucket."""
    python = environment('moto', Path(__file__).with_name('moto_requirements.txt'))
    port, log = free_port(), tmp_path_factory.mktemp('moto') / 'log'
    with log.open('w') as said:
        command = [str(python.with_name('moto_server')), '-H', '127.0.0.1', '-p', str(port)]
        server = subprocess.Popen(command, stdout=said, stderr=said)
    url = f'http://127.0.0.1:{port}'

    def answers() -> bool:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            return httpx.put(f'{url}/{BUCKET}', trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(answers, 120, 'moto answers')
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of the backups of this test, and the environment with what it needs."""
    for name in [name for name in os.environ if name.startswith('AWS_')]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('AWS_ENDPOINT_URL', endpoint)
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'somebody')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', SECRET)
    monkeypatch.setenv('AWS_DEFAULT_REGION', 'us-east-1')
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
    monkeypatch.setenv('AWS_SHARED_CREDENTIALS_FILE', str(tmp_path / 'none'))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    monkeypatch.setenv('TMPDIR', str(tmp_path / 'temporary'))
    (tmp_path / 'temporary').mkdir()
    s3fs.S3FileSystem.clear_instance_cache()
    yield f's3://{BUCKET}/{PREFIX}/{tmp_path.name}'
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """With two shards."""
    fill(tmp_path / 'workspace', 300, shards=2)
    return tmp_path / 'workspace'


@pytest.fixture
def large(workspace: Path) -> Path:
    """With a file that does not go in one piece."""
    with (workspace / layout.RANKER / 'large').open('wb') as file:
        for number in range(60):
            file.write(bytes([32 + number]) * MEGABYTE)
    return workspace


def test_a_backup_goes_there_and_comes_back(store: str, large: Path, tmp_path: Path) -> None:
    target = Target(store)
    assert target.names() == []
    taken = take(large, target, unnoticed)
    assert [backup.manifest for backup in listed(target)] == [taken.manifest]
    assert Target(store.replace('s3://', 'S3://')).names() == [taken.name]
    assert list((tmp_path / 'temporary').iterdir()) == []
    backup, told = found(store)
    restore(tmp_path / 'other', backup, told, FINGERPRINT, unnoticed)
    there, here = everything(tmp_path / 'other'), everything(large)
    assert there[0] == here[0]
    assert len(there[0]) == 600
    assert there[1] == {name: text for name, text in here[1].items() if name.startswith('ranker/')}
    for name in told.files:
        assert SECRET.encode() not in (target.at(taken.name).read(name) or b'')
    target.remove(f'{taken.name}/ranker/large')
    with pytest.raises(NotFound, match='no such bucket or file'):
        restore(tmp_path / 'third', backup, told, FINGERPRINT, unnoticed)


def test_damage_there_is_seen(store: str, workspace: Path, tmp_path: Path) -> None:
    target = Target(store)
    taken = take(workspace, target, unnoticed)
    name = f'{taken.name}/indexer/1/{layout.DOCUMENTS}'
    data = target.read(name)
    assert data is not None
    target.write(name, data[:-1] + b'!')
    backup, told = found(store)
    with pytest.raises(Internal, match=r'indexer/1/documents\.db is damaged'):
        restore(tmp_path / 'other', backup, told, FINGERPRINT, unnoticed)
    assert keep(target, taken, 1) == []
    target.remove(taken.name)
    assert target.names() == []


def test_a_backup_that_is_killed_is_none_and_the_next_one_cleans_up(store: str, large: Path, tmp_path: Path) -> None:
    stopped = tmp_path / 'stopped'
    with subprocess.Popen([sys.executable, '-c', STOPS, str(large), store, str(stopped)]) as killed:
        try:
            until(lambda: stopped.exists() or killed.poll() is not None, 120, 'most of it is there')
        finally:
            killed.kill()
    target = Target(store)
    assert len(target.names()) == 1
    assert listed(target) == []
    assert list((tmp_path / 'temporary').iterdir()) != []
    command = [sys.executable, '-m', 'clipflow.cli.main', 'backup', store, '--keep', '1', '--workspace', str(large)]
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert again.returncode == 0, again.stderr
    assert SECRET not in again.stdout + again.stderr
    (name,) = target.names()
    assert [backup.name for backup in listed(target)] == [name]
    assert f'{store}/{name}: 600 documents' in again.stdout
    assert list((tmp_path / 'temporary').iterdir()) == []


def test_what_is_wrong_with_the_store_is_said(
    store: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotFound, match='no such bucket'):
        take(workspace, Target('s3://nobodys/x'), unnoticed)
    with pytest.raises(NotFound, match='there is no complete backup'):
        found('s3://nobodys/x')
    monkeypatch.setenv('AWS_ENDPOINT_URL', f'http://127.0.0.1:{free_port()}')
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(Unavailable, match=r'cannot be reached .* check AWS_ENDPOINT_URL'):
        take(workspace, Target(store), unnoticed)
    monkeypatch.delenv('AWS_ACCESS_KEY_ID')
    monkeypatch.delenv('AWS_SECRET_ACCESS_KEY')
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(Unauthorized, match='no credentials that can be used'):
        take(workspace, Target(store), unnoticed)
    assert main(['backup', '--list', store]) == 1
    assert 'clipflow: unauthorized' in capsys.readouterr().err


def test_credentials_that_the_store_does_not_know(store: str, endpoint: str, workspace: Path) -> None:
    httpx.post(f'{endpoint}/moto-api/reset-auth', content='0', timeout=60, trust_env=False).raise_for_status()
    try:
        with pytest.raises(Forbidden, match='the credentials are wrong, or do not allow this'):
            take(workspace, Target(store), unnoticed)
    finally:
        httpx.post(f'{endpoint}/moto-api/reset-auth', content='inf', timeout=60, trust_env=False).raise_for_status()
