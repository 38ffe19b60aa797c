"""The session `kserve` against a real Triton server, on the repository that `clipflow export triton` writes.

The server that can be installed has the python backend only: each model gets a twin with the same names, shapes and
types. It needs an environment of its own; without it the repository is read here, and test_ipu_worker.py asks another
server through the same session.
"""

import os
import queue
import shutil
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from docarray import Document

from clipflow import ROOT
from clipflow.cli.main import main
from clipflow.errors import ModelMismatch, Timeout, Unavailable
from clipflow.sessions.base import Options
from clipflow.sessions.parity import compare, probes
from clipflow.sessions.registry import load
from clipflow.weights import ModelSpec, load_spec
from environments import environment
from forms import long
from service import Service, free_port, png, until
from unit import checkpoints

pytest.importorskip('tritonclient', reason="the extra 'triton' is not installed")
onnx = pytest.importorskip('onnx', reason='the package onnx, which exports models, is not installed')

HERE = Path(__file__).parent
FAMILIES = ('clip', 'chinese_clip')


class Triton:
    """A server over one model repository."""

    def __init__(self, python: Path, repository: Path, work: Path, port: int | None = None) -> None:
        site = next((python.parent.parent / 'lib').glob('python*/site-packages'))
        server = site / 'pytriton' / 'tritonserver'
        backends = work / 'backends'
        shutil.copytree(server / 'backends', backends, dirs_exist_ok=True)
        version = f'{sysconfig.get_python_version()}'
        stub = server / 'python_backend_stubs' / version / 'triton_python_backend_stub'
        shutil.copy(stub, backends / 'python' / stub.name)
        libraries = [site / 'nvidia_pytriton.libs', sysconfig.get_config_var('LIBDIR')]
        self.port = port or free_port()
        ports = {'http': free_port(), 'grpc': self.port, 'metrics': free_port()}
        command = [str(server / 'bin' / 'tritonserver')]
        command += [f'--model-repository={repository}', f'--backend-directory={backends}']
        for name, number in ports.items():
            command += [f'--{name}-address=127.0.0.1', f'--{name}-port={number}']
        environ = {
            **os.environ,
            'LD_LIBRARY_PATH': os.pathsep.join(map(str, libraries)),
            'PYTHONPATH': str(site),
            'PATH': f'{python.parent}{os.pathsep}{os.environ["PATH"]}',
        }
        self._said: queue.Queue[str] = queue.Queue()
        self.process = subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=work
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(line)

    @property
    def url(self) -> str:
        return f'127.0.0.1:{self.port}'

    def wait_until_started(self) -> None:
        """It says so when all models are loaded and warm."""
        lines = []
        while 'Started GRPCInferenceService' not in (lines or [''])[-1]:
            lines.append(self._said.get(timeout=120))
            assert self.process.poll() is None, ''.join(lines[-20:])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


@pytest.fixture(scope='module')
def python() -> Path:
    return environment('triton', HERE / 'triton_requirements.txt')


@pytest.fixture(scope='module', params=FAMILIES)
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return load_spec(str(checkpoints.build(request.param, tmp_path_factory.mktemp('checkpoint') / request.param)))


def written(spec: ModelSpec, folder: Path) -> Path:
    """The repository of the command, with the twins of its models."""
    out = folder / 'repository'
    given = ['export', 'triton', '--model', str(spec.directory), '--cache', str(folder / 'cache'), '--out', str(out)]
    assert main(given) == 0
    for config in out.glob('*/config.pbtxt'):
        text = config.read_text()
        assert text.count('backend: "onnxruntime"') == 1
        config.write_text(text.replace('backend: "onnxruntime"', 'backend: "python"'))
        for version in config.parent.glob('[0-9]*'):
            shutil.copy(HERE / 'triton_model.py', version / 'model.py')
    return out


@pytest.fixture(scope='module')
def server(python: Path, spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    work = tmp_path_factory.mktemp('triton')
    running = Triton(python, written(spec, work), work)
    try:
        running.wait_until_started()
        yield running
    finally:
        running.stop()


def options(url: str, timeout: float = 30.0, precision: str = 'float32') -> Options:
    return Options('cpu', precision, 1, False, Path('nowhere'), url, 'clip', timeout)


@long
def test_the_vectors_are_those_of_torch(server: Triton, spec: ModelSpec) -> None:
    session, exact = load('kserve', spec, options(server.url)), load('torch', spec, options(''))
    found = compare(spec, session, exact)
    assert min(found['image'].worst, found['text'].worst) > 0.999999
    assert session.description['runtime'] == 'kserve'
    assert session.description['precision'] == 'float32'
    assert session.dimension == exact.dimension
    # More than the server takes at once.
    pixels, _, _ = probes(spec)
    many = np.concatenate([pixels] * 9)[:130]
    assert session.encode_images(many).shape == (130, session.dimension)
    session.close()
    exact.close()


@long
def test_what_takes_longer_than_allowed_is_a_timeout(server: Triton, spec: ModelSpec) -> None:
    session = load('kserve', spec, options(server.url, timeout=1.0))
    red = np.zeros((1, spec.picture.height, spec.picture.width, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    begun = time.monotonic()
    with pytest.raises(Timeout, match='within 1 s'):
        session.encode_images(red)
    assert time.monotonic() - begun < 8


@long
def test_another_model_is_refused(server: Triton, spec: ModelSpec) -> None:
    other = load_spec(str(ROOT / 'models' / 'clip-mini'))
    with pytest.raises(ModelMismatch, match=other.fingerprint):
        load('kserve', other, options(server.url))


@long
def test_a_server_that_is_away_is_unavailable_and_found_again(
    python: Path, tmp_path: Path, checkpoint_clip: ModelSpec
) -> None:
    repository = written(checkpoint_clip, tmp_path)
    first = Triton(python, repository, tmp_path)
    first.wait_until_started()
    session = load('kserve', checkpoint_clip, options(first.url, timeout=5.0))
    pixels, _, _ = probes(checkpoint_clip)
    before = session.encode_images(pixels)
    first.stop()
    with pytest.raises(Unavailable, match='cannot be reached'):
        session.encode_images(pixels)
    again = Triton(python, repository, tmp_path, first.port)
    try:
        again.wait_until_started()
        assert np.abs(session.encode_images(pixels) - before).max() < 1e-6
    finally:
        again.stop()


def test_the_repository_holds_what_the_command_has_exported(checkpoint_clip: ModelSpec, tmp_path: Path) -> None:
    repository = written(checkpoint_clip, tmp_path)
    dimension = load('torch', checkpoint_clip, options('')).dimension
    assert {path.name for path in repository.iterdir()} == {'clip_image', 'clip_text'}
    for name, tensor in (('clip_image', 'pixels'), ('clip_text', 'ids')):
        config = (repository / name / 'config.pbtxt').read_text()
        assert checkpoint_clip.fingerprint in config
        model = onnx.load(str(next((repository / name).glob('*/model.onnx'))))
        assert [one.name for one in model.graph.input] == [tensor]
        (output,) = model.graph.output
        assert f'dims: [ {dimension} ]' in config
        assert all(f'name: "{one}"' in config for one in (tensor, output.name))


@pytest.fixture(scope='module')
def checkpoint_clip(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return load_spec(str(checkpoints.build('clip', tmp_path_factory.mktemp('checkpoint') / 'clip')))


@long
def test_the_flow_is_ready_only_while_the_server_answers(
    python: Path, tmp_path: Path, checkpoint_clip: ModelSpec
) -> None:
    repository = written(checkpoint_clip, tmp_path)
    first = Triton(python, repository, tmp_path)
    first.wait_until_started()
    settings = {
        'RUNTIME': 'kserve',
        'KSERVE_URL': first.url,
        'KSERVE_TIMEOUT': '5',
        'MODEL': str(checkpoint_clip.directory),
    }
    with Service(tmp_path / 'workspace', settings) as service:
        service.post('/index', [Document(id='red', blob=png('red'))])
        assert service.matches(Document(blob=png('red')))[0].id == 'red'
        assert {doc.id: doc.tags for doc in service.post('/status')}['encoder']['runtime'] == 'kserve'
        assert httpx.get(f'{service.http}/readyz', timeout=60).status_code == 200
        first.stop()
        with pytest.raises(Unavailable, match='cannot be reached'):
            service.matches('something new')
        refused = until(
            lambda: (r := httpx.get(f'{service.http}/readyz', timeout=60)).status_code == 503 and r, 60, 'it says no'
        )
        assert 'encoder' in refused.json()['detail']
        again = Triton(python, repository, tmp_path, first.port)
        try:
            again.wait_until_started()
            until(lambda: httpx.get(f'{service.http}/readyz', timeout=60).status_code == 200, 60, 'it says yes')
            assert service.matches('something new')[0].id == 'red'
        finally:
            again.stop()
