"""From the start of a worker to its end: when it is ready, how it stops, and what it does when the IPU fails."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clipflow.sessions.base import Options
from clipflow.sessions.torch import TorchSession, load
from clipflow.weights import load_spec
from unit import checkpoints

from .process import FOLDER, SECONDS, Gate, Worker, environment, pb, request

TEXT = np.array([[0, 3, 5, 517]])
"""The last is the end token of the checkpoint."""


def test_it_is_ready_when_both_towers_are_compiled_and_stops_when_told(checkpoint: Path, tmp_path: Path) -> None:
    gate = Gate(tmp_path, 'compile')
    with Worker(checkpoint, tmp_path, '--cache', str(tmp_path / 'cache')) as worker:
        gate.entered()
        assert worker.stub.ServerLive(pb.ServerLiveRequest()).live
        assert not worker.is_ready()
        assert worker.refusal(request('clip_text', ids=TEXT))[0] == 'UNAVAILABLE'
        gate.open()
        worker.ready()
        assert worker.is_ready()
        assert worker.end() == 0
        assert worker.events().count('destroy') == worker.events().count('detach') == 2
        assert 'leak' not in worker.events()
    (tmp_path / 'events').unlink()
    with Worker(checkpoint, tmp_path, '--cache', str(tmp_path / 'cache')) as worker:
        worker.ready()
        assert worker.events().count('cached') == 2


def test_it_stops_in_the_middle_of_a_compilation(checkpoint: Path, tmp_path: Path) -> None:
    gate = Gate(tmp_path, 'compile')
    with Worker(checkpoint, tmp_path, '--grace', '0.1') as worker:
        gate.entered()
        assert worker.end() == 0
        assert not any('ready' in line for line in worker.lines)


def test_what_runs_when_the_end_comes_is_answered(checkpoint: Path, tmp_path: Path) -> None:
    with Worker(checkpoint, tmp_path) as worker:
        worker.ready()
        gate = Gate(tmp_path, 'call')
        running = worker.stub.ModelInfer.future(request('clip_text', ids=TEXT), timeout=SECONDS)
        gate.entered()
        worker.process.terminate()
        gate.open()
        assert running.result().outputs
        assert worker.process.wait(SECONDS) == 0


def test_after_a_recoverable_error_it_starts_the_tower_again_and_answers(
    checkpoint: Path, tmp_path: Path, reference: TorchSession
) -> None:
    # Calls 1 and 2 are of the start.
    with Worker(checkpoint, tmp_path, POPTORCH_DOUBLE_FAIL='call:3:recoverable:IPU_RESET') as worker:
        worker.ready()
        found = worker.infer('clip_text', ids=TEXT)
        assert (found * reference.encode_texts(TEXT, np.ones_like(TEXT))).sum() >= 0.999
        assert worker.is_ready()
        assert worker.events().count('compile') == 3
        assert worker.said('recoverable')
        assert worker.end() == 0


@pytest.mark.parametrize(
    ('faults', 'said'),
    [
        ('call:3:unrecoverable', 'cannot be recovered'),
        ('call:3:recoverable:PARTITION_RESET', 'needs a PARTITION_RESET from outside'),
        ('call:3:recoverable:IPU_RESET,call:5:recoverable:IPU_RESET', 'failed again after a new start'),
    ],
)
def test_what_cannot_be_recovered_ends_it_with_a_status(
    checkpoint: Path, tmp_path: Path, faults: str, said: str
) -> None:
    with Worker(checkpoint, tmp_path, POPTORCH_DOUBLE_FAIL=faults) as worker:
        worker.ready()
        assert worker.refusal(request('clip_text', ids=TEXT))[0] == 'UNAVAILABLE'
        assert worker.process.wait(SECONDS) == 1
        assert worker.said(said)
        assert 'leak' not in worker.events()


def test_another_error_fails_one_request_only(checkpoint: Path, tmp_path: Path) -> None:
    with Worker(checkpoint, tmp_path, POPTORCH_DOUBLE_FAIL='call:3:error') as worker:
        worker.ready()
        assert worker.refusal(request('clip_text', ids=TEXT))[0] == 'INTERNAL'
        assert len(worker.infer('clip_text', ids=TEXT)) == 1


def test_too_few_ipus_end_it_at_the_start(checkpoint: Path, tmp_path: Path) -> None:
    with Worker(checkpoint, tmp_path, POPTORCH_DOUBLE_IPUS='1') as worker:
        assert worker.process.wait(SECONDS) == 1
        assert worker.said('ended: ').endswith(
            'No device found on the system with 1 IPUs; both towers together take twice NUM_AVAILABLE_IPU, which is 1'
        )
        assert 'leak' not in worker.events()


def test_without_the_sdk_it_says_what_to_do(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / 'ipu_worker.py'), '--model', str(checkpoint), '--port', '0']
    without = environment(tmp_path)
    del without['POPLAR_SDK_ENABLED']
    ended = subprocess.run(command, env=without, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith('ipu_worker: poptorch cannot be imported (')
    assert ended.stderr.count('\n') == 1


@pytest.fixture
def towers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the worker does."""
    monkeypatch.syspath_prepend(FOLDER)
    import ipu_towers

    return ipu_towers


def test_other_families_and_damaged_files_are_refused(towers: Any, tmp_path: Path, checkpoint: Path) -> None:
    def refusal(directory: Path) -> str:
        with pytest.raises(towers.BadModel) as caught:
            towers.load_towers(directory)
        return str(caught.value)

    assert "'siglip'; the IPU worker serves the family clip only" in refusal(
        checkpoints.build('siglip', tmp_path / 'siglip')
    )
    assert 'cannot be read' in refusal(tmp_path)
    copy = tmp_path / 'copy'
    copy.mkdir()
    os.link(checkpoint / 'config.json', copy / 'config.json')
    assert 'holds no model.safetensors' in refusal(copy)
    (copy / 'model.safetensors').write_bytes((checkpoint / 'model.safetensors').read_bytes()[:-9])
    assert 'damaged' in refusal(copy)


@pytest.mark.parametrize(
    'case',
    [
        ('config.json', {'text_config': [1]}, 'text_config'),
        ('config.json', {'text_config': {'eos_token_id': None}}, 'eos_token_id'),
        ('config.json', {'vision_config': {'num_attention_heads': None}}, 'num_attention_heads'),
        ('config.json', {'vision_config': {'hidden_act': [1]}}, 'activation'),
        ('config.json', {'vision_config': {'num_hidden_layers': 1}}, 'num_hidden_layers is 1, and there are 2'),
        ('config.json', {'text_config': {'num_hidden_layers': 3}}, 'num_hidden_layers is 3, and there are 2'),
        ('config.json', {'text_config': {'num_hidden_layers': None}}, 'num_hidden_layers is None'),
        ('preprocessor_config.json', {'image_mean': None}, 'image_mean'),
        ('preprocessor_config.json', {'image_mean': [0.5, 0.5]}, 'image_mean'),
        ('preprocessor_config.json', {'image_std': [1, 'x', 1]}, 'image_std'),
        ('preprocessor_config.json', {'image_std': [1, 0, 1]}, 'image_std'),
        ('preprocessor_config.json', {'do_rescale': False}, 'do_rescale'),
        ('preprocessor_config.json', {'rescale_factor': 1}, 'rescale_factor'),
    ],
    ids=str,
)
def test_what_the_files_say_in_another_way_is_refused_in_a_sentence(
    towers: Any, tmp_path: Path, checkpoint: Path, case: tuple[str, dict[str, Any], str]
) -> None:
    file, changes, said = case
    copy = Path(shutil.copytree(checkpoint, tmp_path / 'copy'))
    content = json.loads((copy / file).read_text())
    for name, value in changes.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    (copy / file).write_text(json.dumps(content))
    with pytest.raises(towers.BadModel, match=said):
        towers.load_towers(copy)


def test_pixels_that_are_not_normalised_stay_between_0_and_1(towers: Any, tmp_path: Path, checkpoint: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / 'copy'))
    content = json.loads((copy / 'preprocessor_config.json').read_text())
    (copy / 'preprocessor_config.json').write_text(json.dumps(content | {'do_normalize': False}))
    pixels = towers.load_towers(copy).image.pixels(torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3))
    assert pixels.flatten().tolist() == pytest.approx([0, 0.2, 1], rel=1e-3)


def processor(directory: Path, *left_out: str, **changes: Any) -> Path:
    """Change what the processor's file says."""
    content = json.loads((directory / 'preprocessor_config.json').read_text()) | changes
    kept = {name: value for name, value in content.items() if name not in left_out}
    (directory / 'preprocessor_config.json').write_text(json.dumps(kept))
    return directory


def test_a_mean_that_is_left_out_is_that_of_the_processor_or_refused(
    towers: Any, tmp_path: Path, checkpoint: Path
) -> None:
    copy = processor(Path(shutil.copytree(checkpoint, tmp_path / 'copy')), 'image_mean', 'image_std')
    picture = load_spec(str(copy)).picture
    pixels = towers.load_towers(copy).image.pixels(torch.full((1, 1, 1, 3), 102, dtype=torch.uint8)).flatten()
    assert pixels.tolist() == pytest.approx(((0.4 - np.array(picture.mean)) / picture.std).tolist(), abs=2e-3)
    processor(copy, image_processor_type='ViTImageProcessor')
    with pytest.raises(towers.BadModel, match='image_mean of the processor is missing'):
        towers.load_towers(copy)


def test_mean_and_deviation_may_be_told_where_the_files_are_wrong(checkpoint: Path, tmp_path: Path) -> None:
    # As clipflow does for a model that it knows by name.
    picture = replace(load_spec(str(checkpoint)).picture, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))
    spec = replace(load_spec(str(checkpoint)), picture=picture)
    pixels = np.random.default_rng(0).integers(0, 256, (4, checkpoints.SIDE, checkpoints.SIDE, 3), dtype=np.uint8)
    expected = load(spec, Options('cpu', 'float32', 1, True, Path())).encode_images(pixels)
    flags = ('--mean', '0.5', '0.4', '0.3', '--std', '0.5', '0.6', '0.7')
    with Worker(checkpoint, tmp_path, *flags) as worker:
        found = worker.ready().infer('clip_image', pixels=pixels)
    assert (found * expected).sum(axis=1).min() >= 0.999


def test_weights_are_those_that_transformers_loads(towers: Any, tmp_path: Path, checkpoint: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / 'copy'))
    weights = load_file(copy / 'model.safetensors')
    expected = weights['visual_projection.weight']
    save_file({'visual_projection.weight': -expected}, copy / 'model_old.safetensors')
    assert torch.equal(towers.load_towers(copy).image.projection, expected.half())
    (copy / 'model.safetensors').rename(copy / 'model-1.safetensors')
    index = {'weight_map': dict.fromkeys(weights, 'model-1.safetensors')}
    (copy / 'model.safetensors.index.json').write_text(json.dumps(index))
    assert torch.equal(towers.load_towers(copy).image.projection, expected.half())
    (copy / 'model-1.safetensors').unlink()
    with pytest.raises(towers.BadModel, match=r'model-1\.safetensors cannot be read'):
        towers.load_towers(copy)


def test_old_checkpoints_end_a_text_at_the_largest_id(towers: Any, tmp_path: Path) -> None:
    assert towers.load_towers(checkpoints.build('clip-legacy', tmp_path / 'old')).end is None
