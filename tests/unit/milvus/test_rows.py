"""Rows of the collection in Milvus: records go in and come out, and what does not fit is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from clipflow.errors import TooLarge
from clipflow.milvus.client import is_local, shown
from clipflow.milvus.rows import MOST_BYTES, among, check, fields, key_of, record_of, row_of
from clipflow.settings import MilvusSettings
from clipflow.store.reading import Record

RECORD = Record('a', 'text', 'uri', '{"a": 1.0, "b": {"c": "ä"}}', np.array([0.6, 0.8], np.float32), b'\0webp\xff')


def test_a_record_comes_out_as_it_went_in() -> None:
    row = row_of(RECORD, 'abc')
    assert set(fields(thumbnails=True, vectors=True)) <= set(row)
    found = record_of(row)
    assert found.vector is not None
    assert RECORD.vector is not None
    assert found.vector.tolist() == RECORD.vector.tolist()
    assert replace(found, vector=None, key=0) == replace(RECORD, vector=None)


def test_a_row_is_plain_json() -> None:
    assert json.loads(json.dumps(row_of(RECORD, 'abc'))) == row_of(RECORD, 'abc')


def test_the_number_of_a_document_is_its_own_and_fits_a_float() -> None:
    keys = {key_of(str(n)) for n in range(10_000)}
    assert len(keys) == 10_000
    assert all(0 <= key < 2**53 for key in keys)
    assert key_of('a') == key_of('a')


@pytest.mark.parametrize(
    'change',
    [
        {'text': 'ä' * (MOST_BYTES // 2 + 1)},
        {'uri': 'x' * (MOST_BYTES + 1)},
        {'tags': json.dumps({'a': 'x' * MOST_BYTES})},
        {'tags': json.dumps({f'{n}': n for n in range(2100)})},
        {'tags': json.dumps({'-' * 300: {f'{n}': n for n in range(100)}})},
        {'thumbnail': b'x' * 50_000},
    ],
    ids=['text', 'uri', 'tags', 'many tags', 'long names', 'thumbnail'],
)
def test_what_milvus_cannot_keep_is_refused_for_its_document(change: dict[str, str]) -> None:
    check(RECORD)
    with pytest.raises(TooLarge, match="'a'"):
        check(replace(RECORD, **change))


def test_ids_are_escaped_in_a_condition() -> None:
    assert among('id', ['a"b', 'c\\']) == r'id in ["a\"b", "c\\"]'
    assert among('key', [1, 2]) == 'key in [1, 2]'


def test_an_address_is_shown_without_its_secrets() -> None:
    assert shown('https://root:Milvus@milvus.example.com/db') == 'https://milvus.example.com:19530'
    assert shown('/data/milvus.db') == '/data/milvus.db'
    assert [is_local(uri) for uri in ('milvus.db', '/a/b', 'http://milvus:19530')] == [True, True, False]


def test_settings_show_neither_the_token_nor_the_address() -> None:
    settings = MilvusSettings.load(milvus_token='root:Milvus', milvus_uri='http://root:Milvus@milvus:19530')
    assert 'Milvus@' not in repr(settings)
    assert 'root' not in repr(settings)
