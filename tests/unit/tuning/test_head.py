"""A head from captions and clicks: what belongs to what, and what cannot be learned from."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docarray import Document
from PIL import Image

from clipflow.cli import head as command
from clipflow.cli.main import main
from clipflow.clicks import Feedback
from clipflow.errors import DimensionMismatch, InvalidParameter
from clipflow.rank.head import Head
from clipflow.tuning.head import LEAST, Recipe, from_feedback, from_pairs, train

D = 8


def units(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def documents(count: int, dimension: int = D) -> dict[str, np.ndarray]:
    return {f'd{n}': row for n, row in enumerate(units(np.random.default_rng(0).normal(size=(count, dimension))))}


def clicks(count: int, dimension: int = D, **more: Any) -> list[Feedback]:
    """Of ten results each somebody clicks the first."""
    rng = np.random.default_rng(1)
    found = []
    for number, query in enumerate(units(rng.normal(size=(count, dimension)))):
        shown = tuple(f'd{n}' for n in rng.permutation(100)[:10])
        found.append(Feedback(f'q{number}', query, 'm', shown, shown[:1], (), **more))
    return found


def trained(lists: Any, **recipe: Any) -> Head:
    return train(lists, 'm', 'test', Recipe(rank=2, **recipe), lambda *_: None)[0]


def test_what_somebody_clicked_one_by_one_are_right_results_of_one_list() -> None:
    entries = []
    for one in clicks(LEAST):
        entries += [Feedback(one.text, one.vector, 'm', one.shown, (name,), ()) for name in one.shown[:2]]
    lists = from_feedback(entries, documents(100), 'm')
    assert len(lists) == LEAST
    assert (lists.gains[:, :2] > 0).all()
    assert (lists.gains[:, 2:] == 0).all()


def test_a_rank_above_the_dimension_counts_as_the_dimension() -> None:
    lists = from_feedback(clicks(LEAST), documents(100), 'm')
    head, _ = train(lists, 'm', 'test', Recipe(rank=10**12), lambda *_: None)
    assert head.down.shape == (D, D)


def test_propensities_come_from_what_no_head_has_ordered() -> None:
    """Somebody clicks the first of ten equal results; only without a head that says that it is looked at most."""
    scores = (0.3,) * 10
    gain = {}
    for head in ('', 'a1b2c3'):
        entries = [one for seed in range(20) for one in clicks(LEAST, scores=scores, head=head, time=seed * 1e6)]
        entries += [
            Feedback(f'last {n}', one.vector, 'm', one.shown, one.shown[1:2], (), scores)
            for n, one in enumerate(clicks(LEAST))
        ]
        gain[head] = from_feedback(entries, documents(100), 'm').gains.max()
    assert gain[''] > 10
    assert gain['a1b2c3'] < 3


@pytest.mark.parametrize('entries', [clicks(LEAST, 6), clicks(LEAST) + clicks(1, 6)])
def test_vectors_of_other_lengths_are_refused(entries: list[Feedback]) -> None:
    with pytest.raises(DimensionMismatch, match='6 and 8 dimensions'):
        from_feedback(entries, documents(100), 'm')
    with pytest.raises(DimensionMismatch, match='6 and 8 dimensions'):
        from_pairs(np.ones((1, 6), np.float32), ['d0'], documents(100))


@pytest.mark.parametrize('share', [0.98, 0.995])
def test_a_check_that_leaves_nothing_to_learn_from_is_refused(share: float) -> None:
    with pytest.raises(InvalidParameter, match='another --held-out'):
        trained(from_feedback(clicks(60), documents(100), 'm'), held_out=share)


def test_captions_far_from_their_pictures_teach_nothing_and_count_in_the_check() -> None:
    rows = documents(300)
    matrix = np.stack(list(rows.values()))
    queries = units(np.random.default_rng(2).normal(size=(200, D)))
    order = np.argsort(-(queries @ matrix.T), axis=1)
    farthest, nearest = ([f'd{n}' for n in order[:, place]] for place in (-1, 0))
    with pytest.raises(InvalidParameter, match='there are 0 different queries'):
        from_pairs(queries, farthest, rows)
    # Enough of them are near, yet in some of these splits nothing that training stops by would be.
    lists = from_pairs(queries, [*nearest[: 2 * LEAST], *farthest[2 * LEAST :]], rows)
    heads = [trained(lists, held_out=0.95, seed=seed) for seed in range(4)]
    assert all(head.figures['Recall@5']['cosine']['value'] < 0.6 for head in heads)


class Service:
    """Documents `a/00.png` to `b/59.png`, and a caption for each vector."""

    def __init__(self, ids: list[str]) -> None:
        self.rows = dict(zip(ids, units(np.random.default_rng(0).normal(size=(len(ids), D))), strict=True))

    def status(self) -> dict[str, Any]:
        return {'ranker': {'fingerprint': 'm'}}

    def get(self, ids: list[str], include: list[str]) -> dict[str, Document]:
        return {name: Document(id=name, embedding=self.rows[name]) for name in ids}

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.stack([self.rows[text] for text in texts])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Sixty pictures, each with its name as its caption."""
    rows = []
    (tmp_path / 'images' / 'a').mkdir(parents=True)
    for number in range(60):
        name = f'a/{number:02}.png'
        Image.new('RGB', (4, 4), (number, 0, 0)).save(tmp_path / 'images' / name)
        rows.append(json.dumps({'file': name, 'caption': name}))
    (tmp_path / 'captions.jsonl').write_text('\n'.join(rows), encoding='utf-8')
    return tmp_path / 'captions.jsonl'


def train_pairs(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, ids: list[str]
) -> tuple[int, list[tuple[str, list[str]]]]:
    """The exit code of `head train --pairs`, and of each call of `from_pairs` what it was given."""
    service, calls = Service(ids), []

    @contextmanager
    def opened(given: Any) -> Iterator[Service]:
        yield service

    def spy(queries: np.ndarray, right: list[str], rows: dict[str, np.ndarray]) -> Any:
        texts = {row.tobytes(): name for name, row in service.rows.items()}
        calls.extend((texts[query.tobytes()], name) for query, name in zip(queries, right, strict=True))
        assert rows.keys() == service.rows.keys()
        return from_pairs(queries, right, rows)

    monkeypatch.setattr(command, 'opened', opened)
    monkeypatch.setattr(command, 'stored_ids', lambda client: iter(ids))
    monkeypatch.setattr('clipflow.tuning.head.from_pairs', spy)
    out = pictures.with_name('head.safetensors')
    return main(['head', 'train', '--pairs', str(pictures), '--rank', '2', '--out', str(out)]), calls


def test_captions_go_to_the_document_with_the_name_of_their_picture(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [f'a/{number:02}.png' for number in range(60)]
    others = ['b/00.png', 'b/01.png', 'b/x.png']
    code, pairs = train_pairs(monkeypatch, pictures, [*ids, *others])
    said = capsys.readouterr().err
    assert code == 0, said
    assert pairs == [(name, name) for name in ids[2:]]
    assert 'a/00.png: 2 documents have this name' in said
    assert '2 faults in all' in said


def test_captions_of_which_no_document_is_certain_are_an_error(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, pairs = train_pairs(
        monkeypatch, pictures, [f'{folder}/{number:02}.png' for folder in 'ab' for number in range(60)]
    )
    assert (code, pairs) == (1, [])
    said = capsys.readouterr().err
    assert 'a/04.png: 2 documents have this name' in said
    assert 'none of the pictures' in said


@pytest.mark.parametrize('wrong', [['--seed', '-1'], ['--held-out', '1'], ['--rank', '0'], ['--blend', '2']])
def test_numbers_out_of_range_are_refused(wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ['--out', str(tmp_path / 'head')]
    assert main(['head', 'train', '--feedback', str(tmp_path / 'log.jsonl'), *out, *wrong]) == 1
    assert wrong[0] in capsys.readouterr().err
