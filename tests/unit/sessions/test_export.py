"""Exported files that are damaged, or that a process left behind when it was killed, are made again; what is whole is
used as it is."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clipflow.cli.main import main
from clipflow.errors import ClipflowError, Conflict, InvalidParameter, ReadOnly, StorageFull, Unavailable
from clipflow.sessions.base import Options
from clipflow.sessions.export import exported
from clipflow.sessions.parity import probes
from clipflow.sessions.registry import load
from clipflow.sessions.triton import Serving, write_repository
from clipflow.weights import ModelSpec, load_spec

onnx: Any = pytest.importorskip('onnx', reason='the package onnx, which exports models, is not installed')


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


@pytest.mark.parametrize('name', ['image.onnx', 'text-int8.onnx'])
def test_what_was_measured_of_8_bits_is_measured_again_for_files_that_are_made_again(
    spec: ModelSpec, tmp_path: Path, name: str
) -> None:
    pytest.importorskip('onnxruntime', reason="the extra 'onnx' is not installed")
    options = Options('cpu', 'int8', 1, False, tmp_path)
    fresh = load('onnx', spec, options).description
    directory = exported(spec, tmp_path, 'int8')
    stale = {'image': {'worst': 0.1, 'mean': 0.1}, 'text': {'worst': 0.1, 'mean': 0.1}}
    (directory / 'int8.json').write_text(json.dumps(stale))
    assert load('onnx', spec, options).description['float32_towers'] == 'image, text'
    empty(directory / name)
    assert load('onnx', spec, options).description == fresh


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


def test_a_tower_that_8_bits_take_too_far_goes_to_triton_in_float32(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip('onnxruntime', reason="the extra 'onnx' is not installed")
    given = ['export', 'triton', '--model', str(spec.directory), '--cache', str(tmp_path), '--precision', 'int8']
    out = tmp_path / 'out'
    assert main([*given, '--out', str(out)]) == 0
    directory = exported(spec, tmp_path, 'int8')
    stale = {'image': {'worst': 1.0, 'mean': 1.0}, 'text': {'worst': 0.97, 'mean': 0.99}}
    (directory / 'int8.json').write_text(json.dumps(stale))
    assert main([*given, '--out', str(out)]) == 0
    assert 'the text tower stays in float32' in capsys.readouterr().out
    for tower, names in {'image': ['image-int8.onnx'] * 2, 'text': ['text-int8.onnx', 'text.onnx']}.items():
        for version, name in enumerate(names, 1):
            model = out / f'clip_{tower}' / str(version) / 'model.onnx'
            assert model.read_bytes() == (directory / name).read_bytes(), (tower, version)
        # What is made of it must not be mixed with vectors of float, whichever tower they are of.
        assert 'key: "precision" value { string_value: "int8" }' in (model.parent.parent / 'config.pbtxt').read_text()


def test_8_bits_on_gpus_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, cache = tmp_path / 'out', tmp_path / 'cache'
    given = ['export', 'triton', '--gpu', '--precision', 'int8', '--cache', str(cache), '--out', str(out)]
    assert main(given) == 1
    assert 'with --gpu take --precision float16' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# -- towers that are too large for one file ---------------------------------------------------------------------------

LARGE = {'image.onnx', 'image.onnx.data', 'text.onnx', 'text.onnx.data'}


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if protobuf took no more than this."""
    monkeypatch.setattr('clipflow.sessions.export._MOST_BYTES', 1000)


def loosely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PyTorch's exporter do with any weights what it does with more than 2 GB: a file for each tensor."""
    export = torch.onnx.export

    def loose(tower: Any, example: Any, path: str, **options: Any) -> None:
        export(tower, example, path, **options)
        onnx.save(onnx.load(path), path, save_as_external_data=True, all_tensors_to_one_file=False)

    monkeypatch.setattr(torch.onnx, 'export', loose)


def vectors(runtime: str, precision: str, spec: ModelSpec, cache: Path) -> NDArray[np.float32]:
    pixels, ids, mask = probes(spec)
    session = load(runtime, spec, Options('cpu', precision, 1, False, cache))
    return np.concatenate([session.encode_images(pixels), session.encode_texts(ids, mask)])


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {'export.json', 'int8.json'}


@pytest.fixture(params=['inside', 'loose'])
def divided(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What makes weights be written apart: they are large for us, or for PyTorch."""
    if request.param == 'loose':
        return lambda: loosely(monkeypatch)
    return lambda: monkeypatch.setattr('clipflow.sessions.export._MOST_BYTES', 1000)


@pytest.mark.parametrize(('runtime', 'precision'), [('onnx', 'float32'), ('onnx', 'int8'), ('openvino', 'float32')])
def test_weights_that_are_too_large_lie_in_one_file_beside_their_graph(
    spec: ModelSpec, tmp_path: Path, divided: Callable[[], None], runtime: str, precision: str
) -> None:
    package = {'onnx': 'onnxruntime'}.get(runtime, runtime)
    pytest.importorskip(package, reason=f'the extra {runtime!r} is not installed')
    expected = vectors(runtime, precision, spec, tmp_path / 'usual')
    divided()
    cache = tmp_path / 'large'
    found = vectors(runtime, precision, spec, cache)
    assert np.abs(found - expected).max() < 1e-6
    directory = exported(spec, cache, precision)
    of_int8 = {f'{tower}-int8.onnx{end}' for tower in ('image', 'text') for end in ('', '.data')}
    assert names(directory) == LARGE | (of_int8 if precision == 'int8' else set())
    told = json.loads((directory / 'export.json').read_text())['files']
    assert told == {name: (directory / name).stat().st_size for name in names(directory)}
    assert told['image.onnx.data'] > 50_000
    assert len({path.stat().st_mode for path in directory.glob('image.onnx*')}) == 1


@pytest.mark.usefixtures('large')
@pytest.mark.parametrize(
    ('damage', 'name'), [(cut, 'image.onnx.data'), (Path.unlink, 'text.onnx.data'), (empty, 'text-float16.onnx.data')]
)
def test_damaged_weights_beside_a_graph_are_made_again(
    spec: ModelSpec, tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    directory = exported(spec, tmp_path, 'float16')
    before = {path: path.read_bytes() for path in directory.glob('*.data')}
    assert len(before) == 4
    damage(directory / name)
    exported(spec, tmp_path, 'float16')
    assert {path: path.read_bytes() for path in directory.glob('*.data')} == before


def test_weights_in_loose_files_of_an_older_version_are_written_again(spec: ModelSpec, tmp_path: Path) -> None:
    directory = exported(spec, tmp_path)
    (directory / 'onnx__MatMul_1370').write_bytes(b'weights')
    (directory / '_model.bias').write_bytes(b'weights')
    made = (directory / 'image.onnx').stat().st_mtime_ns
    exported(spec, tmp_path)
    assert names(directory) == {'image.onnx', 'text.onnx'}
    assert (directory / 'image.onnx').stat().st_mtime_ns > made


@pytest.mark.usefixtures('large')
def test_a_repository_for_triton_has_the_weights_too(spec: ModelSpec, tmp_path: Path) -> None:
    runtime = pytest.importorskip('onnxruntime', reason="the extra 'onnx' is not installed")
    write_repository(spec, tmp_path, tmp_path / 'out', 24, Serving())
    for tower in ('image', 'text'):
        version = tmp_path / 'out' / f'clip_{tower}' / '1'
        assert {path.name for path in version.iterdir()} == {'model.onnx', f'{tower}.onnx.data'}
        runtime.InferenceSession(str(version / 'model.onnx'), providers=['CPUExecutionProvider'])


# -- where nothing can be written -------------------------------------------------------------------------------------


def closed(directory: Path) -> None:
    """The lock cannot be opened any more, not even by root."""
    lock = directory.with_name(f'{directory.name}.lock')
    lock.unlink()
    lock.mkdir()


def test_files_that_are_whole_need_no_lock(spec: ModelSpec, tmp_path: Path) -> None:
    directory = exported(spec, tmp_path, 'float16')
    closed(directory)
    assert exported(spec, tmp_path, 'float16') == directory
    assert exported(spec, tmp_path) == directory
    with pytest.raises(Unavailable, match='set CLIPFLOW_CACHE'):
        exported(spec, tmp_path, 'int8')
    empty(directory / 'text-float16.onnx')
    with pytest.raises(Unavailable, match='set CLIPFLOW_CACHE'):
        exported(spec, tmp_path, 'float16')


def test_what_others_are_writing_is_no_matter_to_those_who_only_read(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = exported(spec, tmp_path)
    (directory / 'abc.part').mkdir()
    closed(directory)
    monkeypatch.setattr(os, 'access', lambda *_: False)
    assert exported(spec, tmp_path) == directory


def test_the_lock_is_for_all_whom_the_umask_lets(spec: ModelSpec, tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        directory = exported(spec, tmp_path)
    finally:
        os.umask(before)
    assert directory.with_name(f'{directory.name}.lock').stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize('full', ['cache', 'temporary'])
def test_8_bits_for_which_there_is_no_room_are_said_as_such(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    pytest.importorskip('onnxruntime', reason="the extra 'onnx' is not installed")
    directory = exported(spec, tmp_path)
    usage = shutil.disk_usage

    def little(path: Path) -> Any:
        return usage(path)._replace(free=1000) if (path == directory) == (full == 'cache') else usage(path)

    monkeypatch.setattr(shutil, 'disk_usage', little)
    with pytest.raises(StorageFull, match='1,000 are left in'):
        exported(spec, tmp_path, 'int8')
    assert names(directory) == {'image.onnx', 'text.onnx'}


def test_a_model_that_cannot_be_brought_to_8_bits_is_said_in_a_sentence(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantization = pytest.importorskip('onnxruntime.quantization', reason="the extra 'onnx' is not installed")

    def fails(*_: Any, **__: Any) -> None:
        raise ValueError('no such operator\nand much more')

    monkeypatch.setattr(quantization, 'quantize_dynamic', fails)
    with pytest.raises(InvalidParameter, match=r'image tower cannot be written in 8 bits: no such operator$'):
        exported(spec, tmp_path, 'int8')


def test_a_file_in_the_way_of_a_repository_for_triton_is_named(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'clip_image').touch()
    for out, named in ((tmp_path / 'out', 'clip_image'), (tmp_path / 'out' / 'clip_image', 'clip_image')):
        with pytest.raises(Conflict, match=f'{named}.* is in the way'):
            write_repository(spec, tmp_path, out, 24, Serving())


@pytest.mark.parametrize(('number', 'kind'), [(errno.ENOSPC, StorageFull), (errno.EROFS, ReadOnly)])
def test_a_repository_for_triton_that_cannot_be_written_is_an_error_of_ours(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[ClipflowError]
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil, 'copyfile', fails)
    with pytest.raises(kind, match=f'cannot be written: {os.strerror(number)}'):
        write_repository(spec, tmp_path, tmp_path / 'out', 24, Serving())


@pytest.mark.parametrize('given', ['0', '-3', 'two'])
def test_instances_are_counted_from_one(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(['export', 'triton', f'--instances={given}'])
    assert caught.value.code == 2
    assert '--instances' in capsys.readouterr().err
