"""The session `kserve` against the IPU worker, a real process with the double in the place of PopTorch."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipflow.errors import ModelMismatch, Timeout
from clipflow.sessions.base import Options
from clipflow.sessions.parity import compare
from clipflow.sessions.registry import load
from clipflow.weights import ModelSpec, load_spec
from ipu.process import Gate, Worker
from unit import checkpoints

FLAGS = ('--batch=2', '--device-iterations=2', '--largest=12')


@pytest.fixture(scope='module')
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return load_spec(str(checkpoints.build('clip', tmp_path_factory.mktemp('checkpoint') / 'clip')))


def test_the_encoder_gets_the_vectors_of_torch_from_the_worker(spec: ModelSpec, tmp_path: Path) -> None:
    with Worker(spec.directory, tmp_path, *FLAGS, f'--fingerprint={spec.fingerprint}') as worker:
        url = worker.said('listening on ').rpartition(' ')[2]
        session = load('kserve', spec, Options('cpu', 'float32', 1, False, Path('nowhere'), url, 'clip'))
        exact = load('torch', spec, Options('cpu', 'float32', 1, False, Path('nowhere')))
        found = compare(spec, session, exact)
        assert min(found['image'].worst, found['text'].worst) > 0.999
        # More than the worker takes at once.
        many = np.zeros((31, spec.picture.height, spec.picture.width, 3), np.uint8)
        assert session.encode_images(many).shape == (31, exact.dimension)


def test_a_worker_with_another_model_is_refused(spec: ModelSpec, tmp_path: Path) -> None:
    with Worker(spec.directory, tmp_path, *FLAGS, '--fingerprint=another') as worker:
        url = worker.said('listening on ').rpartition(' ')[2]
        with pytest.raises(ModelMismatch, match='another'):
            load('kserve', spec, Options('cpu', 'float32', 1, False, Path('nowhere'), url, 'clip'))


@pytest.mark.parametrize(
    ('better', 'flags'),
    [
        ({'mean': (0.5, 0.25, 0.125)}, ('--mean', '0.5', '0.25', '0.125')),
        ({'std': (0.5, 0.25, 0.125)}, ('--std', '0.5', '0.25', '0.125')),
        ({'activation': 'gelu'}, ('--activation', 'gelu')),
    ],
)
def test_a_worker_that_lacks_a_flag_which_the_model_needs_is_refused(
    spec: ModelSpec, tmp_path: Path, better: dict[str, Any], flags: tuple[str, ...]
) -> None:
    # As of a model that is known by its name, whose files say otherwise.
    pixels = {name: value for name, value in better.items() if name != 'activation'}
    known = replace(spec, picture=replace(spec.picture, **pixels), activation=better.get('activation', ''))
    for given in ((), flags):
        with Worker(spec.directory, tmp_path, *FLAGS, f'--fingerprint={spec.fingerprint}', *given) as worker:
            url = worker.said('listening on ').rpartition(' ')[2]
            options = Options('cpu', 'float32', 1, False, Path('nowhere'), url, 'clip')
            if given:
                load('kserve', known, options).close()
            else:
                with pytest.raises(ModelMismatch, match=' '.join(flags)):
                    load('kserve', known, options)


def test_what_takes_longer_than_allowed_is_a_timeout(spec: ModelSpec, tmp_path: Path) -> None:
    with Worker(spec.directory, tmp_path, *FLAGS, f'--fingerprint={spec.fingerprint}') as worker:
        url = worker.said('listening on ').rpartition(' ')[2]
        session = load('kserve', spec, Options('cpu', 'float32', 1, False, Path('nowhere'), url, 'clip', 3.0))
        gate = Gate(tmp_path, 'call')
        begun = time.monotonic()
        with pytest.raises(Timeout, match='within 3 s'):
            session.encode_images(np.zeros((1, spec.picture.height, spec.picture.width, 3), np.uint8))
        assert time.monotonic() - begun < 20
        gate.entered()
        gate.open()
