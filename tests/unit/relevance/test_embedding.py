"""Vectors that are kept: an interrupted run goes on, and no vector is taken for that of something else."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from docarray import Document

from clipflow.bulk.encoding import LocalEncoder
from clipflow.errors import ReadOnly
from clipflow.relevance.captions import CaptionSet, read_captions
from clipflow.relevance.embedding import Embedded, Embedding
from clipflow.settings import EncoderSettings
from clipflow.weights import ModelSpec


@pytest.fixture
def chosen(album: Path) -> CaptionSet:
    return read_captions(album)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the Documents that went through the model."""
    ids = list[str]()
    encode = LocalEncoder.encode

    def noted(self: LocalEncoder, docs: Sequence[Document], templates: Sequence[str] = ()) -> None:
        ids.extend(doc.id for doc in docs)
        encode(self, docs, templates)

    monkeypatch.setattr(LocalEncoder, 'encode', noted)
    return ids


def ignored(count: int) -> None:
    """Progress that nobody looks at."""


def embed(spec: ModelSpec, chosen: CaptionSet) -> Embedded:
    with Embedding(spec, EncoderSettings.load()) as embedding:
        return embedding.pictures(chosen.pictures, ignored)


def test_a_damaged_picture_is_a_fault_and_the_others_have_their_vectors(mini: ModelSpec, chosen: CaptionSet) -> None:
    found = embed(mini, chosen)
    assert found.kept.tolist() == [number for number in range(80) if number != 78]
    assert [fault.name for fault in found.faults] == ['78.png']
    assert 'not a picture' in found.faults[0].reason
    docs = [Document(blob=chosen.pictures[number].read()) for number in (0, 79)]
    with LocalEncoder(mini) as encoder:
        encoder.encode(docs)
    assert np.array_equal(found.vectors[[0, -1]], np.stack([doc.embedding for doc in docs]))


def test_an_interrupted_run_goes_on_where_it_stopped(mini: ModelSpec, chosen: CaptionSet, encoded: list[str]) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Embedding(mini, EncoderSettings.load()) as embedding:
        embedding.pictures(chosen.pictures, interrupt)
    assert encoded == [str(number) for number in range(64)]
    del encoded[:]
    whole = embed(mini, chosen)
    assert encoded == [str(number) for number in range(64, 80)]
    del encoded[:]
    assert np.array_equal(embed(mini, chosen).vectors, whole.vectors)
    # What failed is tried again: the next version may read it.
    assert encoded == ['78']


def test_a_picture_that_changes_under_its_name_is_embedded_again(mini: ModelSpec, chosen: CaptionSet) -> None:
    before = embed(mini, chosen)
    first = chosen.pictures[0].source
    first.write_bytes((first.parent / '01.png').read_bytes())
    after = embed(mini, chosen)
    assert np.array_equal(after.vectors[0], before.vectors[1])
    assert not np.array_equal(after.vectors[0], before.vectors[0])


def test_templates_and_texts_have_vectors_of_their_own(mini: ModelSpec) -> None:
    with Embedding(mini, EncoderSettings.load()) as embedding:
        plain = embedding.texts(['a cat', 'a dog'], ['{}'], ignored).vectors
        put = embedding.texts(['cat', 'dog'], ['a {}'], ignored).vectors
        both = embedding.texts(['cat', 'dog'], ['a {}', 'the {}'], ignored).vectors
        the = embedding.texts(['the cat', 'the dog'], ['{}'], ignored).vectors
        again = embedding.texts(['cat', 'dog'], ['a {}'], ignored).vectors
    assert np.array_equal(plain, put)
    assert np.array_equal(again, put)
    mean = plain + the
    assert both == pytest.approx(mean / np.linalg.norm(mean, axis=1, keepdims=True), abs=1e-6)


def test_a_text_that_cannot_be_read_is_told_by_how_it_begins(mini: ModelSpec) -> None:
    text = 'word ' * 30_000
    with Embedding(mini, EncoderSettings.load()) as embedding:
        (fault,) = embedding.texts([text], (), ignored).faults
    assert text.startswith(fault.name.removesuffix('...'))
    assert 40 < len(fault.name) <= 100


def test_a_picture_is_never_taken_for_a_text(mini: ModelSpec, tmp_path: Path, chosen: CaptionSet) -> None:
    with Embedding(mini, EncoderSettings.load()) as embedding:
        keys = {
            *embedding.pictures(chosen.pictures, ignored).contents,
            *embedding.texts(['x'], ['{}'], ignored).contents,
        }
    assert {key.partition(' ')[0] for key in keys} == {'picture', 'text'}


def test_a_damaged_file_of_vectors_says_what_to_do(mini: ModelSpec, chosen: CaptionSet, cache: Path) -> None:
    embed(mini, chosen)
    file = next((cache / 'vectors').glob('*.db'))
    assert file.name == f'{mini.fingerprint}-fake-cpu-float32.db'
    for rest in cache.glob('vectors/*-*al'):
        rest.unlink()
    file.write_bytes(b'no database at all ' * 100)
    with pytest.raises(ReadOnly, match=r'delete it if it is damaged, or choose another CLIPFLOW_CACHE'):
        embed(mini, chosen)
