"""Texts to ids, as the checkpoint's own tokenizer makes them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipflow.errors import InvalidParameter
from clipflow.tokens import Tokenizer
from clipflow.weights import ModelSpec, load_spec

from . import checkpoints

ODD = [
    '',
    ' ',
    '\n\t',
    '🙂',
    '👨‍👩‍👧‍👦',
    '一只猫的照片',
    'Ünïcödé',
    'a\0b',
    '<|endoftext|>',
    '[SEP] [PAD]',
    '\u200b',
    'x' * 3000,
]


@pytest.fixture(params=checkpoints.FAMILIES)
def spec(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> ModelSpec:
    return load_spec(str(checkpoint(request.param)))


def test_texts_are_padded_to_the_longest_or_to_the_context(spec: ModelSpec) -> None:
    tokens = Tokenizer(spec)(['cat', 'a cat and a dog'])
    lengths = tokens.mask.sum(axis=1)
    assert tokens.ids.shape == tokens.mask.shape
    assert tokens.ids.shape[1] == (spec.context if spec.padding == 'fixed' else lengths.max())
    assert 0 < lengths[0] < lengths[1]
    # The mask is ones, then noughts.
    assert (tokens.mask == (lengths[:, None] > range(tokens.ids.shape[1]))).all()


def test_a_text_gets_the_ids_that_transformers_gives_it(spec: ModelSpec) -> None:
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(str(spec.directory))
    tokens = Tokenizer(spec)(['cat', *ODD])
    for text, ids, mask in zip(['cat', *ODD], tokens.ids, tokens.mask, strict=True):
        expected = own(text, truncation=True, max_length=checkpoints.CONTEXT)['input_ids']
        assert ids[: mask.sum()].tolist() == expected


def test_a_text_longer_than_the_context_is_cut_and_flagged_and_keeps_its_end(spec: ModelSpec) -> None:
    tokenizer = Tokenizer(spec)
    tokens = tokenizer(['cat', 'dog ' * 100])
    assert tokens.truncated.tolist() == [False, True]
    assert tokens.ids.shape[1] == spec.context
    assert tokens.ids[1, -1] == tokenizer(['cat']).ids[0, tokenizer(['cat']).mask.sum() - 1]


def test_the_flag_says_whether_the_whole_text_has_more_tokens_than_the_context(spec: ModelSpec) -> None:
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(str(spec.directory))
    texts = ['dog ' * words + 'cat'[:letters] for words in range(20) for letters in range(4)]
    lengths = [len(own(text)['input_ids']) for text in texts]
    assert min(lengths) < spec.context < max(lengths)
    assert Tokenizer(spec)(texts).truncated.tolist() == [length > spec.context for length in lengths]


def test_no_text_is_too_odd(spec: ModelSpec) -> None:
    tokens = Tokenizer(spec)(ODD)
    assert len(tokens.ids) == len(ODD)
    assert tokens.ids.min() >= 0
    assert tokens.mask.sum(axis=1).max() <= spec.context


def test_no_texts_make_no_rows(spec: ModelSpec) -> None:
    assert len(Tokenizer(spec)([]).ids) == 0


def test_a_tokenizer_that_cannot_be_read_is_refused_by_name(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(checkpoint('clip'), tmp_path / 'broken')
    (tmp_path / 'broken' / 'tokenizer.json').write_text('{')
    with pytest.raises(InvalidParameter, match='broken'):
        Tokenizer(load_spec(str(tmp_path / 'broken')))


@pytest.mark.parametrize('family', ['clip', 'clip-legacy'])
def test_a_text_of_clip_is_padded_with_its_own_end_whatever_pads(
    checkpoint: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    directory = Path(shutil.copytree(checkpoint(family), tmp_path / 'copy'))
    end = Tokenizer(load_spec(str(directory)))(['cat']).ids[0, -1]
    tokens = Tokenizer(load_spec(str(checkpoints.pad_above_the_end(directory))))(['cat', 'a cat and a dog'])
    assert tokens.mask[0].sum() < len(tokens.ids[0])
    assert set(tokens.ids[0][tokens.mask[0] == 0]) == {end}


def with_text(directory: Path, **changes: Any) -> Path:
    """Change the text tower in config.json."""
    config = json.loads((directory / 'config.json').read_text())
    config['text_config'] |= changes
    (directory / 'config.json').write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize('end', [49407, 300])
def test_an_end_token_that_the_tokenizer_never_writes_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path, end: int
) -> None:
    directory = with_text(Path(shutil.copytree(checkpoint('clip'), tmp_path / 'copy')), eos_token_id=end)
    with pytest.raises(InvalidParameter, match=rf'config\.json: eos_token_id .*{end}.*ends one with 517'):
        Tokenizer(load_spec(str(directory)))


def test_an_end_token_that_is_not_the_largest_is_refused_where_the_largest_counts(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(checkpoint('clip-legacy'), tmp_path / 'copy'))
    tokenizer = (directory / 'tokenizer.json').read_text()
    # The ids of beginning and end change places.
    swapped = tokenizer.replace('517', 'other').replace('516', '517').replace('other', '516')
    assert swapped != tokenizer
    (directory / 'tokenizer.json').write_text(swapped)
    with pytest.raises(InvalidParameter, match=r'the largest id of a text, .*ends one with 516'):
        Tokenizer(load_spec(str(directory)))


def test_the_end_of_clip_counts_in_a_pair_of_towers_too(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(checkpoint('clip'), tmp_path / 'copy'))
    config = json.loads((directory / 'config.json').read_text()) | {'model_type': 'vision-text-dual-encoder'}
    config['text_config']['model_type'] = 'clip_text_model'
    (directory / 'config.json').write_text(json.dumps(config))
    assert load_spec(str(directory)).end == 517
    assert load_spec(str(checkpoint('altclip'))).end is None
    Tokenizer(load_spec(str(directory)))
    with pytest.raises(InvalidParameter, match='eos_token_id'):
        Tokenizer(load_spec(str(with_text(directory, eos_token_id=3))))
