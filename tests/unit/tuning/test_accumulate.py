"""A batch in parts, and in two processes, has the gradient of the whole."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from clipflow import ROOT
from clipflow.cli.main import main
from clipflow.tuning import losses
from clipflow.tuning.accumulate import Encoder, learn
from clipflow.tuning.config import TuneConfig
from clipflow.tuning.measuring import Runner
from clipflow.tuning.parallel import Group
from clipflow.tuning.strategies import checkpoint_blocks, choose
from clipflow.tuning.towers import TwoTowers
from clipflow.weights import load_spec

COUNT = 7


def gradients(
    directory: Path, loss: str, part: int, checkpointing: bool = False
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch of random pictures, two of which are equal."""
    spec = load_spec(str(directory))
    model = TwoTowers(spec)
    config = TuneConfig(captions=Path('captions.jsonl'), loss=loss)  # type: ignore[arg-type]
    learning = choose(model, config)
    if checkpointing:
        checkpoint_blocks(model.image)
        checkpoint_blocks(model.text)
    device, group = torch.device('cpu'), Group()
    runner = Runner(model, spec, device, calculation=nullcontext, part=part, group=group)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (COUNT + 2, 32, 32, 3), generator=generator, dtype=torch.uint8).numpy()
    kinds = torch.tensor([0, 1, 2, 0, 4, 5, 6, 7, 8])
    ids, mask = runner.tokens(['a', 'a cat', 'dog', 'a dog with a cat', 'x', 'yy', 'z'])
    negatives = losses.negatives_of(kinds, torch.arange(COUNT))

    def of(texts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        cosines = texts @ images.T
        if loss == 'siglip':
            return losses.siglip(cosines, negatives, model.scale, model.bias)
        return losses.clip(cosines, negatives, model.scale)

    value = learn(
        (
            Encoder(lambda rows: model.text(ids[rows], mask[rows]), COUNT),
            Encoder(lambda rows: runner.images(pixels[rows]), COUNT + 2),
        ),
        of,
        parameters=list(learning.towers.values()),
        shared=list(learning.shared.values()),
        part=part,
        group=group,
        calculation=nullcontext,
    )
    found = {name: parameter.grad for name, parameter in learning.named.items() if parameter.grad is not None}
    return value, found


@pytest.mark.parametrize('loss', ['clip', 'siglip'])
def test_parts_of_any_size_have_the_gradient_of_the_whole(tiny: Path, loss: str) -> None:
    value, whole = gradients(tiny, loss, 100)
    assert {'scale', 'bias'} & set(whole) == ({'scale', 'bias'} if loss == 'siglip' else {'scale'})
    assert all(tensor.abs().max() > 0 for tensor in whole.values())
    for part, checkpointing in ((1, False), (3, False), (3, True), (100, True)):
        again, parts = gradients(tiny, loss, part, checkpointing)
        assert again == pytest.approx(value, rel=1e-6)
        assert parts.keys() == whole.keys()
        for name, tensor in whole.items():
            torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_two_processes_learn_what_one_learns(tiny: Path, shapes: Path, tmp_path: Path) -> None:
    def command(out: str) -> list[str]:
        given = ['finetune', '--model', str(tiny), '--captions', str(shapes), '--splits', 'train,val', '--quiet']
        given += ['--batch', '33', '--epochs', '2', '--learning-rate', '1e-4', '--out', str(tmp_path / out)]
        return [*given, '--set', 'device=cpu', '--set', 'precision=float32', '--set', 'part=4', '--set', 'alphas=[1.0]']

    assert main(command('one')) == 0
    environment = {**os.environ, 'PYTHONPATH': f'{ROOT}:{ROOT / "client"}', 'OMP_NUM_THREADS': '1'}
    # By address: looking for this machine's name takes ten minutes where nothing knows it.
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2']
    launcher += ['--standalone', '--local-addr', '127.0.0.1']
    done = subprocess.run(
        [*launcher, '-m', 'clipflow.cli.main', *command('two')],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('the model is in') == 1

    def losses_of(out: str) -> list[float]:
        lines = (tmp_path / out / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
        return [row['loss'] for row in map(json.loads, lines) if 'loss' in row]

    assert len(losses_of('one')) == 6
    assert losses_of('two') == pytest.approx(losses_of('one'), rel=1e-4)
    one, two = (TwoTowers(load_spec(str(tmp_path / out / 'model'))).weights() for out in ('one', 'two'))
    for name, tensor in one.items():
        # Six steps of at most 1e-4 each: a wrong gradient is off by more.
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=3e-5, msg=name)
