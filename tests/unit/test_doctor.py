"""`clipflow doctor`: all that is wrong is said at once, and nothing is changed."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from clipflow.border.launcher import check_port
from clipflow.bulk.encoding import LocalEncoder
from clipflow.cli.main import main
from clipflow.errors import Conflict, InvalidParameter
from clipflow.settings import EncoderSettings
from clipflow.store import generations, layout
from clipflow.store.sqlite import Store
from clipflow.weights import load_spec
from service import free_port
from unit.backup.places import fill


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
    subjects = [line.split()[1].rstrip(':') for line in lines if line.startswith('ok')]
    assert [subject for subject in subjects if subject != 'extras'] == [
        'packages',
        'versions',
        'settings',
        'model',
        'encoder',
        'index',
        'access',
        'documents',
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


@pytest.mark.parametrize(
    ('host', 'port', 'setting'),
    [
        ('192.0.2.1', 0, 'CLIPFLOW_HOST'),
        ('::1', 0, 'CLIPFLOW_HOST'),
        ('127.0.0.1', 70_000, 'CLIPFLOW_GRPC_PORT'),
    ],
)
def test_the_setting_that_is_wrong_is_named(host: str, port: int, setting: str) -> None:
    with pytest.raises(Conflict, match=f'; set {setting}'):
        check_port(host, port)


def test_whatever_would_stop_a_stage_is_said_by_its_own_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / 'calibration').write_text('{}')
    (tmp_path / 'key').write_text('no key')
    for name, value in {
        'API_KEYS': 'without-a-scope',
        'INDEX_KIND': 'nonsense',
        'CALIBRATION': str(tmp_path / 'calibration'),
    }.items():
        monkeypatch.setenv(f'CLIPFLOW_{name}', value)
    assert main(['doctor']) == 1
    out = capsys.readouterr().out
    for said in (
        'fault  access: API key number 1 is not of the form KEY:read or KEY:write',
        "fault  index: 'nonsense' is not a kind of index",
        f'fault  calibration: {tmp_path / "calibration"} is no calibration',
    ):
        assert said in out
    assert out.splitlines()[-1] == '3 faults'
    for name, value in {
        'API_KEYS': 'long-enough:read',
        'INDEX_KIND': 'auto',
        'INDEX_TRAINED': str(tmp_path / 'none'),
        'CALIBRATION': str(tmp_path / 'none'),
        'TLS_CERTIFICATE': str(tmp_path / 'none'),
        'TLS_KEY': str(tmp_path / 'key'),
    }.items():
        monkeypatch.setenv(f'CLIPFLOW_{name}', value)
    assert main(['doctor']) == 1
    out = capsys.readouterr().out
    for said in (
        f"fault  access: CLIPFLOW_TLS_CERTIFICATE='{tmp_path / 'none'}' and CLIPFLOW_TLS_KEY=",
        f'fault  index: {tmp_path / "none"} is no trained index',
        f'fault  calibration: there is no calibration {tmp_path / "none"}',
    ):
        assert said in out
    assert out.splitlines()[-1] == '3 faults'


@pytest.fixture
def model(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the tiny CLIP, to be spoilt, as the model of the settings."""
    monkeypatch.setenv('CLIPFLOW_MODEL', str(tmp_path / 'model'))
    return Path(shutil.copytree(checkpoint('clip'), tmp_path / 'model'))


def _without_a_weight(model: Path) -> None:
    weights = load_file(model / 'model.safetensors')
    del weights['visual_projection.weight']
    save_file(weights, model / 'model.safetensors', metadata={'format': 'pt'})


def _with_an_end_that_no_text_has(model: Path) -> None:
    config = json.loads((model / 'config.json').read_text())
    config['text_config']['eos_token_id'] = 7
    (model / 'config.json').write_text(json.dumps(config))


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [(_without_a_weight, 'lack visual_projection.weight'), (_with_an_end_that_no_text_has, 'eos_token_id makes')],
)
def test_a_model_that_the_encoder_refuses_is_a_fault_with_the_same_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
    spoil: Callable[[Path], None],
    said: str,
) -> None:
    spoil(model)
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'torch')
    with pytest.raises(InvalidParameter, match=said) as refused:
        LocalEncoder(load_spec(str(model)), EncoderSettings.load())
    assert main(['doctor']) == 1
    assert f'fault  model: {refused.value}\n' in capsys.readouterr().out


def test_weights_that_a_server_has_need_not_be_whole_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    _without_a_weight(model)
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'fake')
    assert main(['doctor']) == 0
    assert 'ok     model: model (clip, ' in capsys.readouterr().out


def test_a_model_of_clip_as_service_has_no_files_to_look_at(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('CLIPFLOW_MODEL', 'clip-server::ViT-B-32::openai')
    assert main(['doctor']) == 0
    assert 'ok     model: ViT-B-32::openai (clip-server, ' in capsys.readouterr().out


def test_a_setting_that_is_not_valid_is_one_fault(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('CLIPFLOW_PRECISION', 'int9')
    assert main(['doctor']) == 1
    out = capsys.readouterr().out
    assert out.count('int9') == 1
    assert 'fault  settings: CLIPFLOW_PRECISION' in out


def test_a_faster_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('clipflow.sessions.machine._import_fault', lambda _: '')
    assert main(['doctor']) == 0
    assert 'note   encoder: the extra "openvino" is faster on this CPU' in capsys.readouterr().out


def test_a_package_that_breaks_as_it_is_imported_counts_as_missing_and_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / 'site' / 'openvino').mkdir(parents=True)
    (tmp_path / 'site' / 'openvino' / '__init__.py').write_text('import numpy\nnumpy.no_such_thing\n')
    monkeypatch.syspath_prepend(tmp_path / 'site')
    for name in [name for name in sys.modules if name.split('.')[0] == 'openvino']:
        monkeypatch.delitem(sys.modules, name)
    assert main(['doctor']) == 0
    out = capsys.readouterr().out
    assert 'note   encoder: the package openvino is installed, but cannot be imported: module' in out
    assert 'ok     encoder: openvino' not in out


@pytest.mark.parametrize('runtime', ['onnx', 'openvino', 'kserve'])
def test_a_runtime_that_is_asked_for_and_not_installed_is_a_fault(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    monkeypatch.setenv('CLIPFLOW_RUNTIME', runtime)
    for name in ('onnxruntime', 'openvino', 'tritonclient', 'tritonclient.grpc'):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f'clipflow.sessions.{runtime}', raising=False)  # imported before, perhaps
    assert main(['doctor']) == 1
    extra = {'kserve': 'triton'}.get(runtime, runtime)
    said = capsys.readouterr().out
    assert f"fault  encoder: the runtime '{runtime}' is not installed" in said
    assert f'pip install "clipflow[{extra}]"' in said


def test_the_address_of_a_server_is_looked_at(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip('tritonclient', reason="the extra 'triton' is not installed")
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'kserve')
    monkeypatch.setenv('CLIPFLOW_KSERVE_URL', 'http://models:8001')
    assert main(['doctor']) == 1
    said = "fault  encoder: CLIPFLOW_KSERVE_URL is 'http://models:8001'; give host and port of gRPC without a scheme"
    assert said in capsys.readouterr().out
    monkeypatch.setenv('CLIPFLOW_KSERVE_URL', 'models:8001')
    assert main(['doctor']) == 0
    assert 'ok     encoder: kserve on the server at models:8001: asked for' in capsys.readouterr().out


def test_a_cache_that_cannot_be_written_is_a_fault_only_while_something_is_to_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for package in ('onnx', 'onnxruntime'):
        pytest.importorskip(package, reason="the extra 'onnx' is not installed")
    from clipflow.sessions.export import exported
    from clipflow.weights import load_spec

    from .checkpoints import build

    model, cache, allowed = build('clip', tmp_path / 'model'), tmp_path / 'cache', os.access
    cache.mkdir()
    monkeypatch.setenv('CLIPFLOW_MODEL', str(model))
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'onnx')
    monkeypatch.setattr(os, 'access', lambda path, mode: path != cache and allowed(path, mode))
    assert main(['doctor']) == 1
    assert 'cache cannot be written; change its owner, or set CLIPFLOW_CACHE' in capsys.readouterr().out
    exported(load_spec(str(model)), cache)
    assert main(['doctor']) == 0
    assert f'ok     cache: {cache} cannot be written, and need not be' in capsys.readouterr().out
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'torch')
    monkeypatch.setenv('CLIPFLOW_CACHE', str(cache / 'other'))
    assert main(['doctor']) == 0


def installed(place: Path, monkeypatch: pytest.MonkeyPatch, *requirements: str, python: str = '<3.12,>=3.11') -> None:
    """As if this distribution of clipflow asked for these packages."""
    folder = place / 'site' / 'clipflow-9.9.dist-info'
    folder.mkdir(parents=True)
    lines = ['Metadata-Version: 2.4', 'Name: clipflow', 'Version: 9.9', f'Requires-Python: {python}']
    lines += [f'Requires-Dist: {requirement}' for requirement in requirements]
    (folder / 'METADATA').write_text('\n'.join(lines) + '\n')
    monkeypatch.setattr(sys, 'path', [str(folder.parent), *sys.path])


def test_every_package_that_is_missing_or_of_another_version_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    numpy, pillow = __import__('numpy').__version__, __import__('PIL').__version__
    needed = ['nowhere-to-be-found==1.2', f'numpy=={numpy}', 'pydantic==0.1; extra == "indexer"']
    needed += ['pydantic==0.1; extra == "ranker"', 'also-missing==3; extra == "encoder"']
    needed += [
        'not-there==1; extra == "tensorrt"',
        f'pillow=={pillow}+gpu; extra == "bulk"',
        'rich==0.2; extra == "s3"',
    ]
    installed(tmp_path, monkeypatch, *needed, 'pytest==1; extra == "dev"', python='>=3.20')
    assert main(['doctor']) == 1
    lines = capsys.readouterr().out.splitlines()
    here = f'{sys.version_info.major}.{sys.version_info.minor}'
    pydantic = __import__('pydantic').VERSION
    assert [line for line in lines if line.split()[1] in ('packages:', 'extras:')] == [
        f'fault  packages: this is Python {here}, but clipflow takes >= 3.20; make another environment',
        'fault  packages: nowhere-to-be-found, which everything needs, is not installed; '
        'pip install "nowhere-to-be-found==1.2"',
        f'fault  packages: pydantic is {pydantic}, but 0.1 goes with the other packages; pip install "pydantic==0.1"',
        'fault  packages: also-missing, which the encoder needs, is not installed; pip install "also-missing==3"',
        'note   extras: rich is 15.0.0, but s3 was tried with 0.2; pip install "clipflow[s3]"',
        'ok     extras: not installed, and needed for what they are for only: tensorrt',
    ]
    assert lines[-1] == '4 faults'


def test_a_build_for_gpus_stands_in_place_of_the_package(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed(tmp_path, monkeypatch, 'somewhere==1.2; extra == "onnx"', 'nowhere==1.2; extra == "openvino"')
    folder = tmp_path / 'site' / 'somewhere_gpu-1.2.dist-info'
    folder.mkdir()
    (folder / 'METADATA').write_text('Metadata-Version: 2.4\nName: somewhere-gpu\nVersion: 1.2\n')
    main(['doctor'])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.split()[1] == 'extras:']
    assert lines == ['ok     extras: not installed, and needed for what they are for only: openvino']


def test_a_package_that_cannot_be_imported_hides_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ('clipflow.settings', 'clipflow.weights'):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(['doctor']) == 1
    lines = capsys.readouterr().out.splitlines()
    (said,) = [line for line in lines if 'cannot be looked at' in line]  # several checks have the same to say
    assert said.startswith('fault  settings: cannot be looked at: import of clipflow.settings halted')
    assert any(line.startswith('ok     versions: clipflow ') for line in lines)


def test_documents_of_another_model_or_of_a_newer_version_are_faults(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fill(tmp_path / 'workspace', 3)
    assert main(['doctor']) == 1
    assert "fault  documents: they are of the model 'm', not of 'clip-mini'" in capsys.readouterr().out
    path = generations.current(tmp_path / 'workspace') / '0' / layout.DOCUMENTS
    with sqlite3.connect(path) as db:
        db.execute('PRAGMA user_version = 77')
    db.close()
    assert main(['doctor']) == 1
    assert 'has schema 77, written by a newer clipflow; install that version' in capsys.readouterr().out
    path.write_bytes(b'nothing' * 1000)
    assert main(['doctor']) == 1
    assert 'fault  documents: the file documents.db in the workspace is not a database' in capsys.readouterr().out


def test_documents_that_fit_are_counted_and_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from clipflow.settings import RoomSettings
    from clipflow.weights import load_spec

    fill(tmp_path / 'workspace', 3, shards=2, fingerprint=load_spec(RoomSettings.load().model).fingerprint)
    before = sorted(path for path in tmp_path.rglob('*'))
    store = Store(
        generations.current(tmp_path / 'workspace') / '0', load_spec(RoomSettings.load().model).fingerprint, 'm', (), 2
    )
    assert main(['doctor']) == 0  # while it is served
    store.close()
    assert main(['doctor']) == 0
    assert capsys.readouterr().out.count('ok     documents: 6 in 2 shards') == 2
    assert sorted(path for path in tmp_path.rglob('*')) == before


def test_documents_of_somebody_else_are_not_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fill(tmp_path / 'workspace', 3)
    closed, allowed = generations.current(tmp_path / 'workspace'), os.access
    monkeypatch.setattr(os, 'access', lambda path, mode: path != closed and allowed(path, mode))
    assert main(['doctor']) == 1
    assert f'fault  documents: {closed} cannot be read; change its owner' in capsys.readouterr().out
    for command in (['backup', str(tmp_path / 'backups')], ['dump', str(tmp_path / 'dump')]):
        assert main(command) == 1
        assert f'clipflow: read-only: {closed} cannot be read; change its owner' in capsys.readouterr().err


@pytest.mark.skipif(shutil.which('setpriv') is None, reason='setpriv, which gives up the rights of root, is not there')
def test_a_place_that_nobody_here_may_enter_is_said_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / 'closed' / 'workspace').mkdir(parents=True)
    (tmp_path / 'closed').chmod(0)
    rights = ['setpriv', '--bounding-set=-all', '--inh-caps=-all'] if os.geteuid() == 0 else []
    try:
        for command in ('doctor', 'serve'):
            done = subprocess.run(
                [*rights, sys.executable, '-m', 'clipflow.cli.main', command],
                env={**os.environ, 'CLIPFLOW_WORKSPACE': str(tmp_path / 'closed' / 'workspace')},
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert (done.returncode, 'Traceback' in done.stderr) == (1, False), done.stderr
            assert 'workspace cannot be read; change its owner' in done.stdout + done.stderr
    finally:
        (tmp_path / 'closed').chmod(0o700)


def test_a_pointer_that_is_damaged_and_a_restore_that_is_not_done(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / 'workspace').mkdir()
    (tmp_path / 'workspace' / layout.GENERATION).write_text('../elsewhere')
    assert main(['doctor']) == 1
    assert 'generation is damaged; it should hold the name' in capsys.readouterr().out
    (tmp_path / 'workspace' / layout.RESTORED).mkdir()
    main(['doctor'])
    assert 'note   documents: a restore was interrupted; the next start brings it to its end' in capsys.readouterr().out
    assert (tmp_path / 'workspace' / layout.RESTORED).is_dir()
