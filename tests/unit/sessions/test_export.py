"""Exported files that are damaged, or that a process left behind when it was killed, are made again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipflow.errors import InvalidParameter
from clipflow.sessions.base import Options
from clipflow.sessions.export import exported
from clipflow.sessions.registry import load
from clipflow.sessions.triton import Serving, write_repository
from clipflow.weights import ModelSpec, load_spec

pytest.importorskip('onnx', reason='the package onnx, which exports models, is not installed')


@pytest.fixture(scope='module')
def spec(checkpoint: Callable[[str], Path]) -> ModelSpec:
    return load_spec(str(checkpoint('clip')))


def sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.glob('*.onnx')}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def empty(path: Path) -> None:
    path.write_bytes(b'')


@pytest.mark.parametrize('damage', [cut, empty, Path.unlink])
@pytest.mark.parametrize('name', ['image.onnx', 'text.onnx'])
def test_a_damaged_file_is_made_again(
    spec: ModelSpec, tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    directory = exported(spec, tmp_path)
    before = sizes(directory)
    damage(directory / name)
    assert exported(spec, tmp_path) == directory
    assert sizes(directory) == before


@pytest.mark.parametrize('name', ['image-int8.onnx', 'text-int8.onnx'])
def test_a_damaged_file_of_8_bits_is_made_again_and_that_of_float32_is_left(
    spec: ModelSpec, tmp_path: Path, name: str
) -> None:
    pytest.importorskip('onnxruntime', reason="the extra 'onnx' is not installed")
    directory = exported(spec, tmp_path, 'int8')
    before, made = sizes(directory), (directory / 'image.onnx').stat().st_mtime_ns
    cut(directory / name)
    exported(spec, tmp_path, 'int8')
    assert sizes(directory) == before
    assert (directory / 'image.onnx').stat().st_mtime_ns == made
    exported(spec, tmp_path)
    assert (directory / 'image.onnx').stat().st_mtime_ns == made


@pytest.mark.parametrize('report', ['', '{', '[]', '{"files": 3}', '{"files": {"image.onnx": "a"}}'])
def test_a_report_that_cannot_be_read_counts_as_missing(spec: ModelSpec, tmp_path: Path, report: str) -> None:
    directory = exported(spec, tmp_path)
    (directory / 'export.json').write_text(report)
    empty(directory / 'image.onnx')
    exported(spec, tmp_path)
    assert json.loads((directory / 'export.json').read_text())['files'] == sizes(directory)


@pytest.mark.parametrize('report', ['', '{}', '{"image": {"worst": 1}}', '{"image": 1, "text": 1}'])
def test_a_damaged_comparison_of_8_bits_is_made_again(spec: ModelSpec, tmp_path: Path, report: str) -> None:
    pytest.importorskip('onnxruntime', reason="the extra 'onnx' is not installed")
    options = Options('cpu', 'int8', 1, False, tmp_path)
    load('onnx', spec, options)
    path = next(tmp_path.glob('exports/*/int8.json'))
    found = path.read_text()
    path.write_text(report)
    load('onnx', spec, options)
    assert path.read_text() == found


def test_what_a_killed_process_has_left_is_removed(spec: ModelSpec, tmp_path: Path) -> None:
    directory = exported(spec, tmp_path)
    (directory / 'image.onnx.4711.part').write_bytes(b'half')
    (directory / 'abc.part').mkdir()
    (directory / 'abc.part' / 'prepared.onnx').write_bytes(b'half')
    exported(spec, tmp_path)
    assert {path.name for path in directory.iterdir()} == {'image.onnx', 'text.onnx', 'export.json'}


def test_a_model_that_cannot_be_exported_is_said_in_a_sentence(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError('unsupported operator aten::foo\nand much more')

    monkeypatch.setattr(torch.onnx, 'export', fails)
    with pytest.raises(InvalidParameter, match=r'cannot be exported: unsupported operator aten::foo$'):
        exported(spec, tmp_path)


def test_a_new_version_for_triton_is_there_only_after_what_is_said_of_it(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The session asks for the fingerprint again when it sees another version.
    out, rename = tmp_path / 'out', Path.rename
    write_repository(spec, tmp_path, out, 24, Serving())
    seen = []

    def noted(self: Path, target: Path) -> Path:
        seen.append((self.parent / 'config.pbtxt').read_text().count('fedcba9876543210'))
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', noted)
    write_repository(replace(spec, fingerprint='fedcba9876543210'), tmp_path, out, 24, Serving())
    assert seen == [1, 1]
    assert np.all([(out / name / '2' / 'model.onnx').exists() for name in ('clip_image', 'clip_text')])
