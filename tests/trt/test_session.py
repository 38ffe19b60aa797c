"""The session on the double: its vectors, its sizes, its plans, and what it says when something is wrong."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from clipflow.cli.main import main
from clipflow.errors import Internal, InvalidParameter, Unavailable
from clipflow.sessions import machine as machines
from clipflow.sessions import registry
from clipflow.sessions.base import IMAGE, TEXT, Options, OutOfMemory
from clipflow.sessions.machine import Machine
from clipflow.sessions.parity import compare
from clipflow.sessions.registry import open_session
from clipflow.settings import EncoderSettings
from unit import checkpoints

from . import cuda
from .conftest import Bench

LEAST_COSINE = {'float32': 0.999999, 'float16': 0.9999}


def warnings(lines: pytest.LogCaptureFixture) -> list[str]:
    return [line.getMessage() for line in lines.records if line.levelname == 'WARNING']


def exported_as(path: Path, content: bytes) -> None:
    """Put other content into an exported file, as if the export had made it."""
    report = json.loads((path.parent / 'export.json').read_text())
    report['files'][path.name] = len(content)
    path.write_bytes(content)
    (path.parent / 'export.json').write_text(json.dumps(report))


# -- vectors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('family', checkpoints.FAMILIES)
@pytest.mark.parametrize('precision', LEAST_COSINE)
def test_it_gives_the_vectors_of_float32_torch(
    shared: Bench, lines: pytest.LogCaptureFixture, family: str, precision: str
) -> None:
    session, reference = shared.open(family, precision), shared.reference(family)
    assert session.dimension == reference.dimension
    found = compare(shared.spec_of(family), session, reference)
    assert min(found['image'].worst, found['text'].worst) >= LEAST_COSINE[precision], found
    assert warnings(lines) == []


@pytest.mark.parametrize('version', ['10.13.0.35'])
@pytest.mark.parametrize('precision', LEAST_COSINE)
def test_it_gives_them_with_version_10(
    bench: Bench, lines: pytest.LogCaptureFixture, version: str, precision: str
) -> None:
    session = bench.open('clip', precision)
    assert session.description == {
        'runtime': 'tensorrt',
        'device': 'cuda',
        'precision': precision,
        'runtime_version': version,
    }
    found = compare(bench.spec_of('clip'), session, bench.reference())
    assert min(found['image'].worst, found['text'].worst) >= LEAST_COSINE[precision], found
    assert warnings(lines) == []


@pytest.mark.parametrize('family', ['clip', 'siglip', 'altclip'])
def test_more_items_than_an_engine_takes_are_divided(shared: Bench, family: str) -> None:
    session, reference = shared.open(family, 'float32'), shared.reference(family)
    pixels, ids, mask = shared.probes(family)
    pixels = np.tile(pixels, (9, 1, 1, 1))[:130]
    ids, mask = np.tile(ids, (9, 1))[:65], np.tile(mask, (9, 1))[:65]
    shared.device.sizes.clear()
    assert np.abs(session.encode_images(pixels) - reference.encode_images(pixels)).max() < 1e-4
    assert [size[0] for size in shared.device.sizes] == [64, 64, 2]
    shared.device.sizes.clear()
    assert np.abs(session.encode_texts(ids, mask) - reference.encode_texts(ids, mask)).max() < 1e-4
    assert shared.device.sizes == [(64, ids.shape[1]), (1, ids.shape[1])]


@pytest.mark.parametrize('family', ['clip', 'clip-legacy', 'altclip', 'chinese_clip'])
def test_texts_of_any_length_pass_and_longer_ones_are_refused(shared: Bench, family: str) -> None:
    session, reference = shared.open(family, 'float32'), shared.reference(family)
    _, ids, mask = shared.probes(family)
    for length in (1, 2, 3, ids.shape[1]):
        some = ids[:2, :length], mask[:2, :length]
        assert np.abs(session.encode_texts(*some) - reference.encode_texts(*some)).max() < 1e-4
    long = np.ones((1, checkpoints.CONTEXT + 1), np.int32)
    with pytest.raises(Internal, match=rf'refuses ids of the shape \(1, {checkpoints.CONTEXT + 1}\)'):
        session.encode_texts(long, long)


def test_input_may_lie_in_memory_as_it_likes(bench: Bench) -> None:
    session = bench.open()
    pixels, ids, mask = bench.probes()
    turned = np.asfortranarray(pixels)[::-1]
    assert (session.encode_images(turned) == session.encode_images(pixels[::-1].copy())).all()
    assert (session.encode_texts(ids.T.copy().T, mask.T.copy().T) == session.encode_texts(ids, mask)).all()


def test_a_result_is_not_overwritten_by_the_next_call(bench: Bench) -> None:
    session = bench.open()
    pixels, _, _ = bench.probes()
    first = session.encode_images(pixels[:2])
    kept = first.copy()
    session.encode_images(pixels[2:4])
    assert (first == kept).all()


def test_the_registry_takes_it_by_itself(bench: Bench) -> None:
    machine = Machine(True, True, frozenset({'tensorrt'}))
    settings = EncoderSettings.load(cache=bench.cache)
    opened = open_session(bench.spec_of('clip'), settings, 1, shared=False, machine=machine)
    assert opened.session.description['runtime'] == 'tensorrt'
    assert opened.session.description['precision'] == 'float16'
    assert opened.warnings == ()


def test_weights_beside_a_graph_are_found_and_make_another_plan(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pixels, _, _ = bench.probes()
    expected = bench.open().encode_images(pixels)
    bench.cache = tmp_path / 'large'
    monkeypatch.setattr('clipflow.sessions.export._MOST_BYTES', 1000)
    assert np.abs(bench.open().encode_images(pixels) - expected).max() < 1e-4
    assert len(list(bench.cache.glob('exports/*/*-float16.onnx.data'))) == 2
    weights = next(bench.cache.glob('exports/*/image-float16.onnx.data'))
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    bench.open()
    assert bench.device.built[-1] == 'pixels'
    assert len(bench.device.built) == 5


# -- plans ------------------------------------------------------------------------------------------------------------


def test_a_plan_is_built_once(bench: Bench) -> None:
    bench.open()
    assert bench.device.built == ['ids', 'pixels']
    kept = {path: path.stat().st_mtime_ns for path in bench.plans().values()}
    assert len(kept) == 2
    bench.open()
    assert len(bench.device.built) == 2
    assert {path: path.stat().st_mtime_ns for path in bench.plans().values()} == kept
    bench.open(precision='float32')
    assert len(bench.device.built) == 4


@pytest.mark.parametrize(('name', 'value'), [('version', '11.5.0'), ('name', 'Double 200'), ('capability', (10, 0))])
def test_another_version_or_gpu_has_plans_of_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    bench.open()
    monkeypatch.setattr(bench.device, name, value)
    monkeypatch.setattr(bench.trt, '__version__', bench.device.version)
    bench.open()
    assert len(bench.device.built) == 4
    assert len(list(bench.cache.glob('exports/*/tensorrt/*.plan'))) == 4


def test_other_sizes_or_another_exported_file_have_plans_of_their_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.open()
    monkeypatch.setattr(bench.runtime, '_ITEMS', (1, 8, 64))
    bench.open()
    assert len(bench.device.built) == 4
    path = next(bench.cache.glob('exports/*/image-float16.onnx'))
    model = onnx.load(path)
    model.doc_string = 'another'
    exported_as(path, model.SerializeToString())
    bench.open()
    assert bench.device.built[4:] == ['pixels']


@pytest.mark.parametrize('how', ['cut', 'empty', 'foreign', 'older'])
def test_a_plan_that_does_not_load_is_built_again(bench: Bench, lines: pytest.LogCaptureFixture, how: str) -> None:
    bench.open()
    path = bench.plans()['image']
    data = path.read_bytes()
    older = data.replace(bench.device.version.encode(), b'10.0.0', 1)
    path.write_bytes({'cut': data[:-100], 'empty': b'', 'foreign': b'something else', 'older': older}[how])
    lines.clear()
    bench.open()
    assert bench.device.built == ['ids', 'pixels', 'pixels']
    (said,) = warnings(lines)
    assert str(path) in said
    assert 'is built again: IRuntime::deserializeCudaEngine' in said
    bench.open()
    assert len(bench.device.built) == 3


def test_a_plan_that_does_not_load_just_built_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.device.faults['tactic'] = 'Error Code 2: OutOfMemory'  # which has nothing to do with it
    monkeypatch.setattr(bench.runtime, 'put', lambda path, data: path.write_bytes(data[:50]))
    with pytest.raises(Internal, match='cannot read the engine that it has just built'):
        bench.open()
    assert bench.plans() == {}


def test_a_plan_stays_when_only_memory_is_missing(bench: Bench) -> None:
    bench.open()
    kept = bench.plans()
    bench.device.faults['engine'] = 'Error Code 2: OutOfMemory (Requested size was 1000 bytes.)'
    with pytest.raises(Unavailable, match='no memory for the engine text-float16'):
        bench.open()
    assert bench.plans() == kept
    bench.open()
    assert len(bench.device.built) == 2


@pytest.fixture
def closed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the cache one that cannot be written, by whom it may be."""

    def close() -> None:
        allowed = os.access
        monkeypatch.setattr(
            os, 'access', lambda path, mode: bench.cache not in [path, *Path(path).parents] and allowed(path, mode)
        )
        lock = next(bench.cache.glob('exports/*')) / 'tensorrt.lock'
        lock.unlink(missing_ok=True)
        lock.mkdir()

    return close


def test_plans_that_are_whole_are_used_where_nothing_can_be_written(bench: Bench, closed: Callable[[], None]) -> None:
    assert not bench.runtime.are_there(bench.spec_of('clip'), bench.cache, 'float16')
    bench.open()
    assert bench.runtime.are_there(bench.spec_of('clip'), bench.cache, 'float16')
    closed()
    files = {path: path.stat().st_mtime_ns for path in bench.cache.rglob('*')}
    assert bench.open().dimension == checkpoints.DIMENSION
    assert {path: path.stat().st_mtime_ns for path in bench.cache.rglob('*')} == files
    assert len(bench.device.built) == 2


@pytest.mark.parametrize('damaged', [False, True])
def test_a_plan_that_is_missing_where_nothing_can_be_written_is_told_with_what_to_do(
    bench: Bench, closed: Callable[[], None], damaged: bool
) -> None:
    if damaged:
        bench.open()
        bench.plans()['text'].write_bytes(b'')
    closed()
    with pytest.raises(Unavailable, match=r'no engine of the text tower .*`clipflow export tensorrt`.*CLIPFLOW_CACHE'):
        bench.open()
    assert damaged == ('text' in bench.plans())


def test_doctor_takes_a_cache_that_cannot_be_written_for_a_fault_only_without_plans(
    bench: Bench, closed: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machines, 'this_machine', lambda: Machine(True, True, frozenset({'tensorrt'})))
    monkeypatch.setenv('CLIPFLOW_MODEL', str(bench.spec_of('clip').directory))
    monkeypatch.setenv('CLIPFLOW_CACHE', str(bench.cache))
    monkeypatch.setenv('CLIPFLOW_WORKSPACE', str(bench.cache.parent / 'workspace'))
    bench.open()
    closed()
    main(['doctor'])
    assert f'ok     cache: {bench.cache} cannot be written, and need not be' in capsys.readouterr().out
    bench.plans()['image'].unlink()
    assert main(['doctor']) == 1
    assert f'fault  cache: {bench.cache} cannot be written' in capsys.readouterr().out


def test_of_several_at_once_one_builds(bench: Bench) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(bench.open().dimension)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [checkpoints.DIMENSION] * 3
    assert sorted(bench.device.built) == ['ids', 'pixels']


def test_a_build_that_fails_leaves_nothing(bench: Bench) -> None:
    bench.device.faults['build'] = 'Error Code 10: Could not find any implementation for node /text/MatMul'
    with pytest.raises(InvalidParameter, match=r'cannot build the text tower of .*: Error Code 10: Could not find'):
        bench.open()
    assert list(bench.cache.glob('exports/*/tensorrt/*')) == []


def test_the_log_tells_about_once_a_second_how_far_a_build_is(
    bench: Bench, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)

    def monotonic() -> float:
        clock.now += 0.1
        return float(clock.now)

    monkeypatch.setattr(bench.runtime, 'time', SimpleNamespace(monotonic=monotonic))
    bench.open()
    said = [line.getMessage() for line in lines.records if line.levelname == 'INFO']
    said = [line for line in said if 'text tower' in line]
    assert said[0].startswith('building the text tower of')
    assert said[0].endswith('this takes minutes, and is done once')
    assert said[1].startswith('building the text tower: Building Engine, step 0 of 2 (0 %), after 0 s')
    assert re.fullmatch(r'building the text tower: Tactic selection, step \d+ of 40 \(\d\d %\), after 3 s', said[4])
    assert said[-1] == 'the text tower is built, after 5 s'
    assert 6 <= len(said) <= 8


# -- memory -----------------------------------------------------------------------------------------------------------


def test_memory_that_runs_out_is_said_and_the_next_call_works(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    session = bench.open()
    pixels, _, _ = bench.probes()
    expected = session.encode_images(pixels)
    emptied = cuda.GPU.emptied

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 1 GiB')

    with monkeypatch.context() as patch:
        patch.setattr(torch, 'empty', full)
        with pytest.raises(OutOfMemory, match='Tried to allocate 1 GiB'):
            session.encode_images(pixels)
    assert cuda.GPU.emptied == emptied + 1
    assert (session.encode_images(pixels) == expected).all()


def test_memory_that_runs_out_within_tensorrt_is_said_too(bench: Bench) -> None:
    session = bench.open()
    pixels, _, _ = bench.probes()
    expected, emptied = session.encode_images(pixels), cuda.GPU.emptied
    bench.device.faults['execute'] = 'IExecutionContext::enqueueV3: Error Code 2: OutOfMemory (no further information)'
    with pytest.raises(OutOfMemory, match='Error Code 2: OutOfMemory'):
        session.encode_images(pixels)
    assert cuda.GPU.emptied == emptied + 1
    assert (session.encode_images(pixels) == expected).all()


def test_an_illegal_access_to_memory_is_no_lack_of_it(bench: Bench) -> None:
    bench.open()
    bench.device.faults['engine'] = 'Error Code 1: Cuda Runtime (an illegal memory access was encountered)'
    assert bench.open().dimension == checkpoints.DIMENSION, 'the plan is read a second time'


def test_a_tower_that_was_released_comes_back(bench: Bench) -> None:
    session = bench.open()
    pixels, ids, mask = bench.probes()
    images, texts = session.encode_images(pixels), session.encode_texts(ids, mask)
    session.release(IMAGE)
    assert (session.encode_images(pixels) == images).all()
    session.release(TEXT)
    session.release(TEXT)
    assert (session.encode_texts(ids, mask) == texts).all()
    session.close()
    session.close()
    assert len(bench.device.built) == 2
    assert cuda.GPU.emptied == 5, 'after each release, and when it was closed'


def test_a_tower_that_has_no_memory_to_come_back_is_named(bench: Bench) -> None:
    session = bench.open()
    pixels, _, _ = bench.probes()
    session.release(IMAGE)
    bench.device.faults['context'] = 'Error Code 2: OutOfMemory'
    with pytest.raises(Unavailable, match='no memory to run the image tower: Error Code 2'):
        session.encode_images(pixels)
    assert session.encode_images(pixels).shape == (len(pixels), session.dimension)


# -- what is said -----------------------------------------------------------------------------------------------------


def test_a_call_that_does_not_run_is_an_error(bench: Bench) -> None:
    session = bench.open()
    pixels, _, _ = bench.probes()
    bench.device.faults['execute'] = 'Error Code 1: Cuda Runtime (an illegal memory access was encountered)'
    with pytest.raises(Internal, match='TensorRT does not run: Error Code 1'):
        session.encode_images(pixels)


def test_a_model_that_cannot_be_read_is_said_in_one_sentence(bench: Bench) -> None:
    path = next(bench.cache.glob('exports/*/text-float16.onnx'))
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == 'Softmax':
            node.op_type = 'Hardmax'
    exported_as(path, model.SerializeToString())
    with pytest.raises(InvalidParameter) as caught:
        bench.open()
    assert str(caught.value).startswith('TensorRT cannot read the text tower of')
    assert str(caught.value).count('No importer registered for op: Hardmax') == 2
    assert '\n' not in str(caught.value)
    exported_as(path, b'no model')
    with pytest.raises(InvalidParameter, match='it is no protobuf message'):
        bench.open()


@pytest.mark.parametrize(
    ('precision', 'device'), [('bfloat16', 'cuda'), ('int8', 'cuda'), ('float16', 'cpu'), ('float32', 'mps')]
)
def test_what_it_does_not_compute_in_is_said(bench: Bench, precision: str, device: str) -> None:
    with pytest.raises(InvalidParameter, match=f'float32 or float16 on CUDA, not in {precision} on {device}'):
        bench.open(precision=precision, device=device)


def test_a_machine_without_a_gpu_is_named_before_anything_is_exported(
    shared: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    shared.cache = tmp_path / 'nothing'
    with pytest.raises(InvalidParameter, match=r'finds no CUDA device; is there a driver, and is it the CUDA build\?'):
        shared.open()
    assert not shared.cache.exists()


@pytest.mark.parametrize('version', ['8.6.1'])
def test_a_version_that_is_too_old_is_named(bench: Bench, version: str) -> None:
    with pytest.raises(InvalidParameter, match=rf'TensorRT {version} is too old'):
        bench.open()


def test_a_driver_that_does_not_fit_is_named(bench: Bench) -> None:
    bench.device.usable = False
    with pytest.raises(InvalidParameter, match='cannot use this GPU: CUDA initialization failure with error: 35'):
        bench.open()


@pytest.mark.parametrize(
    ('source', 'said'),
    [
        ('import nothing_of_this_name', "'tensorrt' is not installed (No module named 'nothing_of_this_name')"),
        ('raise ImportError("libnvinfer.so.11: cannot open")', 'cannot be imported (libnvinfer.so.11: cannot open)'),
        ('raise RuntimeError("no driver")', "'tensorrt' cannot be imported (no driver)"),
    ],
)
def test_a_package_that_is_missing_or_broken_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    (tmp_path / 'tensorrt').mkdir()
    (tmp_path / 'tensorrt' / '__init__.py').write_text(source, encoding='utf-8')
    monkeypatch.syspath_prepend(tmp_path)
    spec: Any = None
    with pytest.raises(InvalidParameter) as caught:
        registry.load('tensorrt', spec, Options('cuda', 'float16', 1, False, tmp_path))
    assert said in str(caught.value)
    assert 'pip install "clipflow[tensorrt]"' in str(caught.value)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures('lines')  # gives the log its level back
def test_the_command_builds_and_measures(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(bench.spec_of('clip').directory)
    assert main(['export', 'tensorrt', '--model', model, '--cache', str(bench.cache)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith('/tensorrt')
    assert re.fullmatch(
        r'  tensorrt float16: cosine to float32 torch at worst: image \d.\d{6} \(mean .*\), text .*', second
    )
    assert set(bench.plans()) == {'image', 'text'}
    report = next(bench.cache.glob('exports/*/tensorrt/parity.json')).read_text(encoding='utf-8')
    assert '"tensorrt float16"' in report


def test_the_command_says_what_this_machine_lacks(spec_of: Any, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip('this machine has a GPU')
    command = [sys.executable, '-m', 'clipflow.cli.main', 'export', 'tensorrt']
    command += ['--model', str(spec_of('clip').directory), '--cache', str(tmp_path / 'nothing')]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (1, '')
    (line,) = done.stderr.splitlines()
    assert line.startswith('clipflow: invalid-parameter: ')
    assert 'pip install "clipflow[tensorrt]"' in line or 'finds no CUDA device' in line
    assert not (tmp_path / 'nothing').exists()
