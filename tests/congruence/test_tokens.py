"""The bundled model's tokens against transformers' own tokenizer: captions, other scripts, odd texts of any length."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from clipflow import ROOT
from clipflow.tokens import Tokenizer
from clipflow.weights import ModelSpec, load_spec

DATA = Path(os.environ.get('CLIPFLOW_TEST_DATA', ROOT.parent / 'shared' / 'data')) / 'flickr8k'
CAPTIONS = 5000
PHOTOGRAPHS = 1000
MINIBATCH = 32

LONG = 100_000
ODD = {
    'empty': '',
    'blanks': ' ' * 300,
    'other blanks': '\t\n\r\u00a0\u2003\u3000\u2028',
    'emoji': '🙂 a 🐈 in the ❄️',
    'joined emoji': '👨‍👩‍👧‍👦👍🏽🏳️‍🌈🇩🇪',
    'emoji alone, many': '🐕' * 200,
    'chinese': '雪地里的一只猫',
    'chinese, longer than the context': '一只黑色的狗在雪地里奔跑。' * 20,
    'chinese beyond the basic plane': '𠀀𠮷 a cat',
    'japanese and korean': '雪の中のネコ 눈 속의 고양이',
    'arabic': 'قطة في الثلج',
    'arabic with vowels, longer than the context': 'قِطَّةٌ سَوْدَاءُ ' * 30,
    'hebrew and thai': 'חתול בשלג แมวในหิมะ',
    'accents': 'Ünïcödé café naïve Ångström',
    'combining accents': 'U\u0308ni\u0308co\u0308de\u0301 cafe\u0301 A\u030angstro\u0308m',
    'a letter with a thousand accents': 'a' + '\u0301' * 1000 + ' cat',
    'accents without a letter': '\u0301\u0308\u030a',
    'nul': '\0',
    'nul inside': 'a\0cat \0 dog\0',
    'control characters': 'a\x01\x07\x1b[31mcat\x7f\x85',
    'invisible characters': '\ufeffa\u200bcat\u200d\u202edog\u2066',
    'not a character': '\ufffd\ufffe\uffff\U0010ffff',
    'special tokens': '[CLS] a [MASK] cat [SEP] [PAD] [UNK]',
    'long, of words': ('a cat and a dog in the snow. ' * LONG)[:LONG],
    'long, one word': 'x' * LONG,
    'long, of signs': '.,' * (LONG // 2),
    'long, of blanks': ' ' * LONG,
    'long, of emoji': '🐈' * LONG,
    'long, chinese': '猫' * LONG,
    'long, of accents': '\u0301' * LONG,
    'long, of nul': '\0' * LONG,
}


@pytest.fixture(scope='module')
def spec() -> ModelSpec:
    return load_spec(str(ROOT / 'models' / 'clip-mini'))


@pytest.fixture(scope='module')
def tokenizer(spec: ModelSpec) -> Tokenizer:
    return Tokenizer(spec)


@pytest.fixture(scope='module')
def own(spec: ModelSpec) -> Any:
    """Transformers' tokenizer, loaded by itself: ours and this one share no state."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(spec.directory))


@pytest.fixture(scope='module')
def photographs() -> list[list[str]]:
    """Five captions of each photograph."""
    if not DATA.exists():
        pytest.skip(f'{DATA} is not there; CLIPFLOW_TEST_DATA names the directory of the test data')
    lines = (DATA / 'captions.jsonl').read_text(encoding='utf-8').splitlines()
    return [json.loads(line)['captions'] for line in lines]


def compare(texts: list[str], tokenizer: Tokenizer, own: Any, spec: ModelSpec) -> list[int]:
    """Assert that each row has the ids of its text alone, cut and flagged where it has to be; the lengths uncut."""
    lengths = []
    for start in range(0, len(texts), MINIBATCH):
        some = texts[start : start + MINIBATCH]
        tokens = tokenizer(some)
        for text, ids, mask, cut in zip(some, tokens.ids, tokens.mask, tokens.truncated, strict=True):
            expected = own(text, truncation=True, max_length=spec.context)['input_ids']
            length = len(own(text, truncation=False, verbose=False)['input_ids'])
            assert ids[mask == 1].tolist() == expected, text[:200]
            assert bool(cut) is (length > spec.context), (length, text[:200])
            lengths.append(length)
    return lengths


def test_5000_captions_get_the_ids_that_transformers_gives_them(
    photographs: list[list[str]], tokenizer: Tokenizer, own: Any, spec: ModelSpec
) -> None:
    different = list(dict.fromkeys(caption for captions in photographs for caption in captions))[:CAPTIONS]
    assert len(different) == CAPTIONS
    compare(different, tokenizer, own, spec)


def test_texts_about_as_long_as_the_context_are_cut_and_flagged_where_they_exceed_it(
    photographs: list[list[str]], tokenizer: Tokenizer, own: Any, spec: ModelSpec
) -> None:
    # All captions of a photograph in one text have about 64 tokens, some more and some fewer.
    texts = [' '.join(captions) for captions in photographs[:PHOTOGRAPHS]]
    lengths = compare(texts, tokenizer, own, spec)
    assert {spec.context - 1, spec.context, spec.context + 1} <= set(lengths)


@pytest.mark.parametrize('name', ODD)
def test_an_odd_text_gets_the_ids_that_transformers_gives_it(
    name: str, tokenizer: Tokenizer, own: Any, spec: ModelSpec
) -> None:
    compare([ODD[name]], tokenizer, own, spec)


def test_odd_texts_do_not_change_their_neighbours(tokenizer: Tokenizer, own: Any, spec: ModelSpec) -> None:
    lengths = compare([text for odd in ODD.values() for text in ('a cat', odd)], tokenizer, own, spec)
    assert max(lengths) > 1000 * spec.context
