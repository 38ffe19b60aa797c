"""`clipflow finetune` from the command to the model: it learns, it goes on after a kill, it tells what it forgot."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clipflow import ROOT
from clipflow.cli.main import main
from clipflow.weights import load_spec

FAST = ('--set', 'precision=float32', '--set', 'device=cpu', '--set', 'augment=false', '--quiet')
KILLED = -9
KILLING = """
import os, sys
from clipflow.tuning import {module}
real = {module}.{name}
calls = 0
def dying(*values, **named):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), 9)
    return real(*values, **named)
{module}.{name} = dying
from clipflow.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def arguments(model: Path, captions: Path, out: Path, *more: str) -> list[str]:
    command = ['finetune', '--model', str(model), '--captions', str(captions), '--splits', 'train,val,test']
    return [*command, '--out', str(out), *FAST, *more]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, 'PYTHONPATH': f'{ROOT}:{ROOT / "client"}', 'OMP_NUM_THREADS': '1', **more}


def killed(command: Sequence[str], module: str, name: str, call: int) -> None:
    """Run a command in a process that kills itself when it calls a function for the n-th time."""
    code = KILLING.format(module=module, name=name, call=call)
    done = subprocess.run(
        [sys.executable, '-c', code, *command], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == KILLED, done.stderr


def rows(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()]
    return [{name: value for name, value in row.items() if name != 'time'} for row in found]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / 'model' / 'model.safetensors')


@pytest.fixture(scope='module')
def learned(shapes: Path, checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has time to learn."""
    out = tmp_path_factory.mktemp('learned') / 'run'
    options = ('--learning-rate', '2e-3', '--epochs', '25', '--set', 'patience=25', '--set', 'layer_decay=1')
    assert main(arguments(checkpoint('clip'), shapes, out, *options, '--old-task', str(shapes))) == 0
    return out


def test_recall_rises_on_pairs_that_were_not_learned(learned: Path) -> None:
    report = json.loads((learned / 'report.json').read_text(encoding='utf-8'))
    before, after, mixed = (report['reported']['test'][name] for name in ('before', 'after', 'mixed'))
    # By chance 5 of 24, and twice the standard deviation more.
    assert before['image R@5'] < 0.4
    assert mixed['image R@5'] > 0.7
    assert mixed['text R@5'] > 0.7
    assert after.keys() == mixed.keys()


def test_the_result_is_a_model_that_loads_by_its_path_and_carries_its_card(learned: Path, tiny: Path) -> None:
    from clipflow.sessions.base import Options
    from clipflow.sessions.torch import load
    from clipflow.tokens import Tokenizer

    spec, start = load_spec(str(learned / 'model')), load_spec(str(tiny))
    assert spec.fingerprint != start.fingerprint
    assert {file.stat().st_mode & 0o044 for file in (learned / 'model').iterdir()} == {0o044}
    assert (spec.picture, spec.context, spec.family) == (start.picture, start.context, start.family)
    tokens = Tokenizer(spec)(['a red disc'])
    cpu = Options('cpu', 'float32', 1, False, learned)
    one, other = (load(model, cpu).encode_texts(tokens.ids, tokens.mask) for model in (spec, start))
    assert float(one[0] @ other[0]) < 0.999
    card = (learned / 'model' / 'README.md').read_text(encoding='utf-8')
    assert '| test | image R@5 |' in card
    assert '| old task | image R@5 |' in card
    assert (learned / 'curves.png').stat().st_size > 5_000
    assert list((learned / 'tensorboard').iterdir())
    assert not list(learned.glob('*.safetensors'))


def test_the_mix_is_chosen_on_validation_and_the_old_task(learned: Path) -> None:
    report = json.loads((learned / 'report.json').read_text(encoding='utf-8'))
    assert set(report['tried']) == {'0', '0.25', '0.5', '0.75', '1'}
    means = {float(alpha): scores['mean'] for alpha, scores in report['tried'].items()}
    assert means[report['alpha']] == max(means.values())
    assert set(report['reported']) == {'test', 'old task'}


def test_a_finished_run_is_not_trained_again_and_another_is_refused(
    learned: Path, tiny: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = json.loads(json.dumps(arguments(tiny, shapes, learned, '--epochs', '3')))
    assert main(given) == 1
    assert 'epochs' in capsys.readouterr().err


@pytest.mark.parametrize(
    'death',
    [('trainer', 'learn', 4), ('state', 'sync', 5)],
    ids=['in a step of the second epoch', 'while a checkpoint is written'],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    tiny: Path, shapes: Path, tmp_path: Path, death: tuple[str, str, int]
) -> None:
    more = ('--learning-rate', '1e-3', '--epochs', '3', '--batch', '48', '--set', 'save_every=1')
    more += ('--set', 'augment=true', '--set', 'hard_negatives=1', '--set', 'alphas=[1.0]')
    assert main(arguments(tiny, shapes, tmp_path / 'whole', *more)) == 0
    killed(arguments(tiny, shapes, tmp_path / 'broken', *more), *death)
    assert not (tmp_path / 'broken' / 'model').exists()
    assert (tmp_path / 'broken' / 'state.safetensors').exists()
    assert main(arguments(tiny, shapes, tmp_path / 'broken', *more)) == 0
    assert rows(tmp_path / 'broken') == rows(tmp_path / 'whole')
    whole = weights(tmp_path / 'whole')
    assert all(torch.equal(tensor, whole[key]) for key, tensor in weights(tmp_path / 'broken').items())
