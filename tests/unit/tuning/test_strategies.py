"""Each strategy changes what it says, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clipflow.errors import InvalidParameter
from clipflow.tuning.config import TuneConfig
from clipflow.tuning.strategies import blocks_of, check, choose, merge_lora
from clipflow.tuning.towers import TwoTowers, save
from clipflow.weights import load_spec

FAMILIES = ('clip', 'siglip', 'siglip2', 'chinese_clip', 'altclip', 'vision-text-dual-encoder')
Build = Callable[[str], Path]


def options(**given: Any) -> TuneConfig:
    return TuneConfig(captions=Path('captions.jsonl'), learning_rate=0.1, weight_decay=0.0, **given)


def pixels(model: TwoTowers) -> torch.Tensor:
    return torch.randint(0, 256, (3, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def ids() -> torch.Tensor:
    return torch.tensor([[5, 9, 2, 7], [8, 3, 1, 6], [4, 4, 6, 1]])


def changed(directory: Path, config: TuneConfig) -> tuple[set[str], TwoTowers]:
    """Names of the weights that a step of learning has changed."""
    model = TwoTowers(load_spec(str(directory)))
    before = {name: tensor.detach().clone() for name, tensor in model.weights().items()}
    learning = choose(model, config)
    optimiser = torch.optim.SGD([{**group, 'lr': group['rate']} for group in learning.groups])
    for _ in range(2):  # LoRA's first step moves only one of its two matrices
        mask = torch.ones_like(ids())
        cosines = model.text(ids(), mask) @ model.image(pixels(model)).T
        loss = torch.nn.functional.cross_entropy(model.scale * cosines, torch.arange(3))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    if config.strategy == 'lora':
        merge_lora(model)
    after = model.weights()
    assert after.keys() == before.keys()
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}, model


def silent(names: set[str]) -> set[str]:
    """Biases of keys shift all scores of a row alike, so that they have no gradient but rounding."""
    return {name for name in names if not name.endswith(('k_proj.bias', 'key.bias'))}


def test_full_changes_every_weight(tiny: Path) -> None:
    names, model = changed(tiny, options(strategy='full'))
    assert silent(set(model.weights())) - names == set()


def test_only_the_last_blocks_and_what_follows_them_change(tiny: Path) -> None:
    names, _ = changed(tiny, options(strategy='last-n-layers', layers=1, learn_scale=False))
    assert not [name for name in names if 'layers.0.' in name or 'embeddings' in name or 'pre_layrnorm' in name]
    assert {'visual_projection.weight', 'text_projection.weight', 'text_model.final_layer_norm.weight'} <= names
    assert {'vision_model.encoder.layers.1.mlp.fc1.weight', 'text_model.encoder.layers.1.mlp.fc1.weight'} <= names


@pytest.mark.parametrize('towers', ['both', 'text', 'image'])
def test_projection_changes_the_projections_of_the_chosen_towers(tiny: Path, towers: str) -> None:
    names, _ = changed(tiny, options(strategy='projection', towers=towers))
    wanted = {'both': {'visual_projection.weight', 'text_projection.weight'}}
    wanted |= {'text': {'text_projection.weight'}, 'image': {'visual_projection.weight'}}
    assert names == wanted[towers] | {'logit_scale'}


def test_lora_changes_matrices_alone(tiny: Path) -> None:
    names, _ = changed(tiny, options(strategy='lora', learn_scale=False))
    assert len(names) == 2 * (2 * 6 + 1)
    assert all(name.endswith(('proj.weight', 'fc1.weight', 'fc2.weight', 'projection.weight')) for name in names)


@pytest.mark.parametrize('family', FAMILIES)
def test_merged_and_saved_and_loaded_again_the_model_is_the_same(
    checkpoint: Build, tmp_path: Path, family: str
) -> None:
    spec = load_spec(str(checkpoint(family)))
    model = TwoTowers(spec)
    learning = choose(model, options(strategy='lora'))
    with torch.no_grad():
        for number, parameter in enumerate(learning.towers.values()):
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(number))
        plain = TwoTowers(spec).image(pixels(model))
        apart = model.image(pixels(model)), model.text(ids(), torch.ones_like(ids()))
        assert not torch.allclose(apart[0], plain, atol=1e-3)
        merge_lora(model)
        save(spec, model.weights(), tmp_path / 'model', torch.float32)
        again = TwoTowers(load_spec(str(tmp_path / 'model')))
        for one in (model, again):
            torch.testing.assert_close(one.image(pixels(model)), apart[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(one.text(ids(), torch.ones_like(ids())), apart[1], rtol=0, atol=1e-5)


def test_earlier_layers_learn_more_slowly(tiny: Path) -> None:
    model = TwoTowers(load_spec(str(tiny)))
    learning = choose(model, options(strategy='full', layer_decay=0.5))
    rates = {id(one): group['rate'] for group in learning.groups for one in group['params']}
    named = {name: rates[id(parameter)] for name, parameter in learning.named.items()}
    assert named['text.text_projection.weight'] == named['scale'] == 0.1
    assert named['text.text_model.encoder.layers.1.mlp.fc1.weight'] == 0.05
    assert named['text.text_model.encoder.layers.0.mlp.fc1.weight'] == 0.025
    assert named['text.text_model.embeddings.token_embedding.weight'] == 0.0125


def test_a_strategy_that_does_not_fit_the_model_is_refused(tiny: Path) -> None:
    model = TwoTowers(load_spec(str(tiny)))
    assert blocks_of(model.image)[1] == 2
    with pytest.raises(InvalidParameter, match='has 2 blocks, so layers=3'):
        check(model, options(strategy='last-n-layers', layers=3))


@pytest.mark.parametrize(
    'given', [{'do_normalize': False}, {'rescale_factor': 1 / 127.5}, {'do_rescale': False}], ids=str
)
def test_a_saved_model_prepares_pictures_as_its_start_did(
    checkpoint: Build, tmp_path: Path, given: dict[str, Any]
) -> None:
    start = Path(shutil.copytree(checkpoint('clip'), tmp_path / 'start'))
    file = start / 'preprocessor_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | given))
    spec = load_spec(str(start))
    save(spec, TwoTowers(spec).weights(), tmp_path / 'model', torch.float32)
    assert load_spec(str(tmp_path / 'model')).picture == spec.picture
