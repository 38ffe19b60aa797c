"""`clipflow doctor`: all that is wrong is said at once, and nothing is changed."""

import os
import socket
from pathlib import Path

import pytest

from clipflow.cli.main import main
from service import free_port


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith('CLIPFLOW_')]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('CLIPFLOW_WORKSPACE', str(tmp_path / 'workspace'))
    monkeypatch.setenv('CLIPFLOW_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('CLIPFLOW_GRPC_PORT', str(free_port()))
    monkeypatch.setenv('CLIPFLOW_HTTP_PORT', str(free_port()))


def test_a_sound_installation(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(['doctor']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == 'a service can start'
    assert [line.split()[1].rstrip(':') for line in lines if line.startswith('ok')] == [
        'settings',
        'model',
        'encoder',
        'workspace',
        'cache',
        'port',
        'port',
    ]
    assert list(tmp_path.iterdir()) == []


def test_all_faults_are_said_at_once_each_with_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / 'file').touch()
    monkeypatch.setenv('CLIPFLOW_MODEL', str(tmp_path / 'none'))
    monkeypatch.setenv('CLIPFLOW_DEVICE', 'mps')
    monkeypatch.setenv('CLIPFLOW_WORKSPACE', str(tmp_path / 'file'))
    monkeypatch.setenv('CLIPFLOW_GRPC_PROT', '1')
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        monkeypatch.setenv('CLIPFLOW_HTTP_PORT', str(taken.getsockname()[1]))
        assert main(['doctor']) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == '4 faults'
    for said in (
        'fault  model: there is no model directory',
        'fault  encoder: CLIPFLOW_DEVICE is mps, but PyTorch finds no such device',
        'cannot be written; change its owner, or set CLIPFLOW_WORKSPACE',
        'fault  port: cannot listen on 127.0.0.1:',
        'note   settings: the environment variable CLIPFLOW_GRPC_PROT is not known to clipflow; did you mean',
    ):
        assert said in out


def test_a_setting_that_is_not_valid_is_one_fault(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('CLIPFLOW_PRECISION', 'int9')
    assert main(['doctor']) == 1
    out = capsys.readouterr().out
    assert out.count('int9') == 1
    assert 'fault  settings: CLIPFLOW_PRECISION' in out


def test_a_faster_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('clipflow.sessions.registry._importable', lambda _: False)
    assert main(['doctor']) == 0
    assert 'note   encoder: the extra "openvino" is faster on this CPU' in capsys.readouterr().out
