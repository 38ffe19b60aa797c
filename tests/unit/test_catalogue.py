"""Names of models that people write, and the repositories behind them."""

import csv
from pathlib import Path

import pytest

from clipflow import catalogue
from clipflow.catalogue import find
from clipflow.errors import NotFound

with Path(catalogue.__file__).with_name('catalogue.csv').open(encoding='utf-8', newline='') as table:
    ROWS = list(csv.DictReader(table))


@pytest.mark.parametrize(
    ('name', 'repository'),
    [
        ('ViT-B/32', 'openai/clip-vit-base-patch32'),
        ('ViT-B-32', 'openai/clip-vit-base-patch32'),
        ('ViT-B-32::openai', 'openai/clip-vit-base-patch32'),
        ('vit_b_32::openai', 'openai/clip-vit-base-patch32'),
        (' ViT-B/32 ', 'openai/clip-vit-base-patch32'),
        ('ViT-B/16', 'openai/clip-vit-base-patch16'),
        ('ViT-L/14', 'openai/clip-vit-large-patch14'),
        ('ViT-L/14@336px', 'openai/clip-vit-large-patch14-336'),
        ('ViT-L-14-336::openai', 'openai/clip-vit-large-patch14-336'),
        ('ViT-L-14@336px', 'openai/clip-vit-large-patch14-336'),
        ('ViT-B-32::laion2b_s34b_b79k', 'laion/CLIP-ViT-B-32-laion2B-s34B-b79K'),
        ('ViT-B-32::laion2b-s34b-b79k', 'laion/CLIP-ViT-B-32-laion2B-s34B-b79K'),
        ('ViT-H-14::laion2b-s32b-b79k', 'laion/CLIP-ViT-H-14-laion2B-s32B-b79K'),
        ('CN-CLIP/ViT-B-16', 'OFA-Sys/chinese-clip-vit-base-patch16'),
        ('CN-CLIP/ViT-L-14-336', 'OFA-Sys/chinese-clip-vit-large-patch14-336px'),
    ],
)
def test_every_spelling_leads_to_its_repository(name: str, repository: str) -> None:
    entry = find(name)
    assert entry is not None
    assert entry.repository == repository


@pytest.mark.parametrize(
    'name',
    ['openai/clip-vit-base-patch32', 'laion/CLIP-ViT-B-32-laion2B-s34B-b79K', 'google/siglip-base-patch16-224', ''],
)
def test_a_hub_name_is_no_name_of_the_catalogue(name: str) -> None:
    assert find(name) is None


@pytest.mark.parametrize('row', [row for row in ROWS if row['loadable'] == 'no'], ids=lambda row: row['name'])
def test_what_only_open_clip_can_load_is_refused_with_a_model_to_take_instead(row: dict[str, str]) -> None:
    with pytest.raises(NotFound, match='open_clip') as caught:
        find(row['name'])
    assert row['repository'] in caught.value.message
    instead = find(row['instead'])
    assert row['instead'] in caught.value.message
    assert instead is None or instead.loadable


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row['name'])
def test_a_row_is_complete_and_sensible(row: dict[str, str]) -> None:
    assert row['loadable'] in ('yes', 'no')
    assert row['activation'] in ('', 'gelu', 'quick_gelu', 'gelu_pytorch_tanh')
    assert bool(row['instead']) == (row['loadable'] == 'no')
    for name in ('mean', 'std'):
        values = [float(value) for value in row[name].split()]
        assert len(values) == 3
        assert all(0 <= value <= 1 for value in values)
    assert 224 <= int(row['pixels']) <= 512
    assert int(row['dimension']) > 0
    assert int(row['context']) > 0


def test_no_two_names_mean_the_same_row() -> None:
    assert len({catalogue.key(row['name']) for row in ROWS}) == len(ROWS)
