"""A head as a matrix and as a file."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from clipflow.errors import ClipflowError, DimensionMismatch, InvalidParameter, ModelMismatch, NotFound
from clipflow.rank.head import FORMAT, Head

D, R = 8, 3
MODEL = 'f' * 64


def units(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, D))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def head(blend: float = 1.0, scale: float = 1.0, **more: object) -> Head:
    rng = np.random.default_rng(1)
    down = rng.normal(size=(R, D)).astype(np.float32)
    up = (scale * rng.normal(size=(D, R))).astype(np.float32)
    return Head(down, up, MODEL, blend, **more)  # type: ignore[arg-type]


def test_scores_are_cosines_with_the_moved_query() -> None:
    made, queries, rows = head(0.25), units(4), units(6, 1)
    for q, query in enumerate(queries):
        moved = query.astype(np.float64) + made.up.astype(np.float64) @ (made.down.astype(np.float64) @ query)
        for n, row in enumerate(rows):
            cosine = moved @ row / np.linalg.norm(moved)
            assert made.scores(queries, rows)[q, n] == pytest.approx(
                0.25 * cosine + 0.75 * float(query @ row), abs=1e-6
            )


def test_it_begins_as_the_identity_and_without_blend_stays_one() -> None:
    cosines = units(4) @ units(6, 1).T
    for made in (head(scale=0), head(blend=0)):
        assert np.abs(made.scores(units(4), units(6, 1)) - cosines).max() < 1e-6
    assert np.abs(head().scores(units(4), units(6, 1)) - cosines).max() > 0.1


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    made = head(0.5, made='2026-01-31', source='log', figures={'nDCG': {'head': {'value': 0.5}}}, passed=True)
    made.write(tmp_path / 'new' / 'head.safetensors')
    read = Head.read(tmp_path / 'new' / 'head.safetensors')
    read.check(MODEL)
    assert (read.made, read.source, read.figures, read.passed) == (made.made, made.source, made.figures, True)
    assert read.version == made.version
    assert np.array_equal(read.scores(units(4), units(5)), made.scores(units(4), units(5)))


def test_the_version_changes_with_whatever_changes_scores() -> None:
    versions = {made.version for made in (head(), head(0.5), head(scale=0.5), Head(head().down, head().up, 'other'))}
    assert len(versions) == 4
    assert head().version == head(made='later', passed=True).version


def test_another_model_is_refused() -> None:
    with pytest.raises(ModelMismatch, match='another model'):
        head().check('e' * 64)


def test_vectors_of_another_length_are_refused() -> None:
    with pytest.raises(DimensionMismatch, match='8 dimensions, and here they have 9'):
        head().scores(np.ones((1, 9), np.float32), np.ones((2, 9), np.float32))


def metadata(**changes: str) -> dict[str, str]:
    known = {'format': FORMAT, 'version': head().version, 'model': MODEL, 'dimension': str(D), 'blend': '1.0'}
    return known | changes


def test_what_is_no_head_is_refused_with_its_reason(tmp_path: Path) -> None:
    good = head().content()
    down, up = head().down, head().up
    bad: list[tuple[bytes, type[ClipflowError], str]] = [
        (b'', InvalidParameter, 'damaged'),
        (b'\xff' * 100, InvalidParameter, 'damaged'),
        ((100_000).to_bytes(8, 'little') + b'[' * 100_000, InvalidParameter, 'damaged'),
        (good[:-20], InvalidParameter, 'damaged'),
        (good[:-1] + bytes([good[-1] ^ 1]), InvalidParameter, 'damaged'),
        (save({'down': down, 'up': up}), InvalidParameter, 'no head'),
        (save({'down': down}, metadata()), InvalidParameter, 'no head'),
        (save({'down': down, 'up': up}, metadata(format='x')), InvalidParameter, "form 'x'"),
        (save({'down': down, 'up': up}, metadata(blend='2')), InvalidParameter, 'damaged'),
        (save({'down': down, 'up': up}, metadata(dimension='9')), DimensionMismatch, 'do not fit'),
        (save({'down': down, 'up': down}, metadata()), DimensionMismatch, 'do not fit'),
        (save({'down': down, 'up': up * np.float32('nan')}, metadata()), InvalidParameter, 'not finite'),
        (save({'down': down.astype(np.float64), 'up': up}, metadata()), InvalidParameter, 'float32'),
    ]
    for number, (content, error, reason) in enumerate(bad):
        file = tmp_path / f'{number}.safetensors'
        file.write_bytes(content)
        with pytest.raises(error, match=reason):
            Head.read(file)
    with pytest.raises(NotFound, match='no head'):
        Head.read(tmp_path / 'none.safetensors')
