"""Which runtime is taken, and what is said about it."""

import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipflow.errors import InvalidParameter
from clipflow.sessions import machine as machines
from clipflow.sessions import registry
from clipflow.sessions import torch as sessions_torch
from clipflow.sessions.base import Options, Session
from clipflow.sessions.machine import Machine, this_machine
from clipflow.sessions.registry import candidates, open_session
from clipflow.settings import EncoderSettings
from clipflow.weights import ModelSpec, load_spec

ALL = frozenset({'onnx', 'openvino'})
NONE: frozenset[str] = frozenset()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('RUNTIME', 'DEVICE', 'PRECISION', 'CACHE', 'COMPILE'):
        monkeypatch.delenv(f'CLIPFLOW_{name}', raising=False)


def ways(machine: Machine, **given: str) -> list[tuple[str, str, str]]:
    found = candidates(EncoderSettings.load(**given), machine)
    return [(choice.runtime, choice.device, choice.precision) for choice in found]


@pytest.mark.parametrize(
    ('machine', 'first'),
    [
        (Machine(True, True, NONE), ('torch', 'cuda', 'float16')),
        (Machine(True, True, ALL), ('torch', 'cuda', 'float16')),
        (Machine(True, True, ALL, onnx_cuda=True), ('onnx', 'cuda', 'float16')),
        (Machine(True, True, ALL | {'tensorrt'}, onnx_cuda=True), ('tensorrt', 'cuda', 'float16')),
        (Machine(False, True, ALL | {'tensorrt'}), ('openvino', 'cpu', 'bfloat16')),
        (Machine(False, False, NONE, mps=True), ('torch', 'cpu', 'float32')),
        (Machine(False, True, ALL), ('openvino', 'cpu', 'bfloat16')),
        (Machine(False, True, frozenset({'onnx'})), ('torch', 'cpu', 'bfloat16')),
        (Machine(False, True, NONE), ('torch', 'cpu', 'bfloat16')),
        (Machine(False, False, ALL), ('openvino', 'cpu', 'float32')),
        (Machine(False, False, frozenset({'onnx'})), ('onnx', 'cpu', 'float32')),
        (Machine(False, False, NONE), ('torch', 'cpu', 'float32')),
    ],
)
def test_auto_takes_the_fastest_that_is_there(machine: Machine, first: tuple[str, str, str]) -> None:
    assert ways(machine)[0] == first


@pytest.mark.parametrize('cuda', [False, True])
@pytest.mark.parametrize('bfloat16', [False, True])
@pytest.mark.parametrize('packages', [NONE, ALL])
def test_int8_is_never_taken_by_itself_and_torch_in_float_is_always_left(
    cuda: bool, bfloat16: bool, packages: frozenset[str]
) -> None:
    found = ways(Machine(cuda, bfloat16, packages))
    assert 'int8' not in {precision for _, _, precision in found}
    assert found[-1][0] == 'torch'


def test_what_is_asked_for_is_taken_and_nothing_else() -> None:
    machine = Machine(False, True, ALL)
    assert ways(machine, runtime='torch', precision='float32') == [('torch', 'cpu', 'float32')]
    assert ways(machine, runtime='onnx') == [('onnx', 'cpu', 'float32')]
    assert ways(machine, precision='int8') == [('onnx', 'cpu', 'int8')]
    assert ways(Machine(True, True, ALL), device='cpu')[0] == ('openvino', 'cpu', 'bfloat16')
    assert ways(Machine(True, True, ALL), runtime='openvino')[0] == ('openvino', 'cpu', 'bfloat16')
    assert ways(Machine(True, True, ALL), runtime='onnx')[0] == ('onnx', 'cpu', 'float32')
    card = Machine(True, True, ALL | {'tensorrt'}, onnx_cuda=True)
    for runtime in ('torch', 'onnx', 'tensorrt'):
        assert ways(card, runtime=runtime) == [(runtime, 'cuda', 'float16'), (runtime, 'cuda', 'float32')]
    assert ways(Machine(False, True, NONE, mps=True), device='mps') == [('torch', 'mps', 'float32')]


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ({'device': 'cuda'}, 'CLIPFLOW_DEVICE is cuda, but PyTorch finds no CUDA device'),
        ({'runtime': 'tensorrt'}, 'tensorrt needs an NVIDIA GPU'),
        ({'device': 'mps'}, 'it is the GPU of a Mac'),
        ({'precision': 'int8'}, r'clipflow\[onnx\]'),
        (
            {'runtime': 'openvino', 'precision': 'int8'},
            'openvino cannot compute in int8 on cpu; set CLIPFLOW_RUNTIME=onnx',
        ),
        ({'runtime': 'torch', 'precision': 'int8'}, 'torch cannot compute in int8 on cpu; set CLIPFLOW_RUNTIME=onnx'),
        ({'runtime': 'tensorrt', 'device': 'cpu'}, 'tensorrt computes on cuda, not on cpu; set CLIPFLOW_DEVICE=auto'),
        ({'runtime': 'openvino', 'device': 'cuda'}, 'openvino computes on cpu, not on cuda; set CLIPFLOW_DEVICE=auto'),
    ],
)
def test_what_cannot_be_had_is_said(given: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        ways(Machine(False, True, NONE), **given)


@pytest.mark.parametrize(
    ('machine', 'given', 'said'),
    [
        (
            Machine(True, True, ALL),
            {'precision': 'int8'},
            'nothing computes in int8 on cuda; set CLIPFLOW_PRECISION to .*, or CLIPFLOW_DEVICE=cpu$',
        ),
        (
            Machine(True, True, ALL | {'tensorrt'}),
            {'runtime': 'tensorrt', 'precision': 'bfloat16'},
            'tensorrt cannot compute in bfloat16 on cuda; set CLIPFLOW_RUNTIME=torch',
        ),
        (
            Machine(True, True, ALL),
            {'runtime': 'torch', 'precision': 'int8'},
            'torch cannot compute in int8 on cuda; set CLIPFLOW_PRECISION=float16',
        ),
        (Machine(False, True, NONE), {'precision': 'int8'}, 'needs the extra "onnx"'),
    ],
)
def test_what_is_said_helps(machine: Machine, given: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        ways(machine, **given)


def test_cards_that_nobody_has_counted_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', 'RR')
    with pytest.raises(InvalidParameter, match='set CUDA_TOTAL_DEVICES'):
        ways(Machine(False, True, NONE), device='cuda')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '1')
    with pytest.raises(InvalidParameter, match=r'CUDA build\?\)$'):
        ways(Machine(False, True, NONE), device='cuda')


OPENVINO = ['clipflow[openvino]']
TENSORRT = ['clipflow[tensorrt]', 'onnxruntime-gpu in place of onnxruntime']


@pytest.mark.parametrize(
    ('machine', 'given', 'named'),
    [
        (Machine(False, True, NONE), {}, OPENVINO),
        (Machine(False, False, frozenset({'onnx'})), {}, OPENVINO),
        (Machine(False, True, frozenset({'onnx'})), {'precision': 'int8'}, []),
        (Machine(False, True, NONE), {'precision': 'float16'}, []),
        (Machine(False, True, NONE), {'runtime': 'torch'}, []),
        (Machine(False, True, ALL), {}, []),
        (Machine(True, True, NONE), {}, TENSORRT),
        (Machine(True, True, ALL), {}, TENSORRT),
        (Machine(True, True, ALL, onnx_cuda=True), {}, ['clipflow[tensorrt]']),
        (Machine(True, True, ALL | {'tensorrt'}, onnx_cuda=True), {}, []),
        (Machine(True, True, NONE), {'precision': 'bfloat16'}, []),
        (Machine(True, True, NONE), {'device': 'cpu'}, OPENVINO),
        (Machine(True, True, ALL), {'runtime': 'onnx'}, ['there is a GPU', 'onnxruntime-gpu in place of onnxruntime']),
        (Machine(True, True, ALL), {'runtime': 'onnx', 'device': 'cpu'}, []),
        (Machine(False, True, ALL), {'runtime': 'onnx'}, []),
    ],
)
def test_what_would_be_faster_is_named_where_it_would_be_taken(
    machine: Machine, given: dict[str, str], named: list[str]
) -> None:
    settings = EncoderSettings.load(**given)
    said = registry.faster(settings, candidates(settings, machine)[0], machine)
    assert len(said) == bool(named)
    assert all(name in said[0] for name in named)


def test_what_is_there_and_has_failed_is_not_named_as_missing() -> None:
    settings, machine = EncoderSettings.load(), Machine(True, True, frozenset({'tensorrt'}))
    last = [choice for choice in candidates(settings, machine) if choice.device == 'cuda'][-1]
    assert last.runtime == 'torch'
    assert registry.faster(settings, last, machine) == (
        'ONNX Runtime may be faster on this GPU: install onnxruntime-gpu in place of onnxruntime',
    )


def test_the_runtimes_that_are_asked_for_are_opened(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    spec = load_spec(str(checkpoint('clip')))
    for runtime in ('torch', 'fake'):
        settings = EncoderSettings.load(runtime=runtime, cache=tmp_path)
        opened = open_session(spec, settings, 1, shared=False)
        assert opened.session.description['runtime'] == runtime
        assert (opened.why, opened.warnings) == ('asked for', ())


def test_a_runtime_that_fails_is_passed_over_and_named(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    spec = load_spec(str(checkpoint('clip')))
    machine = Machine(False, True, ALL)
    (tmp_path / 'file').touch()  # below which nothing can be exported to
    opened = open_session(spec, EncoderSettings.load(cache=tmp_path / 'file'), 1, shared=False, machine=machine)
    assert opened.session.description['runtime'] == 'torch'
    assert opened.warnings
    assert opened.warnings[0].startswith('openvino was to be used, but: ')


class Broken:
    """A module of a runtime whose load raises what its library raises."""

    @staticmethod
    def load(*_: Any) -> None:
        raise RuntimeError('Check failed at core.cpp:84\nmany more lines')


def test_whatever_a_runtime_raises_is_a_sentence_and_the_trace_stands_in_the_log(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec, real = load_spec(str(checkpoint('clip'))), registry.import_module
    monkeypatch.setattr(registry, 'import_module', lambda name: Broken if 'openvino' in name else real(name))
    monkeypatch.setattr(logging.getLogger('clipflow'), 'propagate', True)
    with pytest.raises(InvalidParameter, match=r'openvino cannot load .*: Check failed at core.cpp:84$'):
        registry.load('openvino', spec, Options('cpu', 'float32', 1, False, tmp_path))
    assert any(record.exc_info for record in caplog.records)
    machine = Machine(False, True, frozenset({'openvino'}))
    opened = open_session(spec, EncoderSettings.load(cache=tmp_path), 1, shared=False, machine=machine)
    assert opened.session.description['runtime'] == 'torch'
    assert opened.warnings[0].startswith('openvino was to be used, but: ')
    assert 'fastest' not in opened.why


def test_a_gpu_that_fails_is_left_for_the_cpu_only_where_nobody_has_asked_for_it() -> None:
    machine = Machine(True, True, ALL | {'tensorrt'}, onnx_cuda=True)
    assert ways(machine) == [
        ('tensorrt', 'cuda', 'float16'),
        ('onnx', 'cuda', 'float16'),
        ('torch', 'cuda', 'float16'),
        ('tensorrt', 'cuda', 'float32'),
        ('onnx', 'cuda', 'float32'),
        ('torch', 'cuda', 'float32'),
        ('openvino', 'cpu', 'bfloat16'),
        ('torch', 'cpu', 'bfloat16'),
        ('openvino', 'cpu', 'float32'),
        ('onnx', 'cpu', 'float32'),
        ('torch', 'cpu', 'float32'),
    ]
    for asked in ('device', 'cuda'), ('runtime', 'torch'), ('runtime', 'onnx'):
        assert {device for _, device, _ in ways(machine, **dict([asked]))} == {'cuda'}


class OldCard:
    """The module of torch with a GPU that its kernels are not for."""

    @staticmethod
    def load(spec: ModelSpec, options: Options) -> Session:
        if options.device == 'cuda':
            raise RuntimeError('CUDA error: no kernel image is available for execution on the device')
        return sessions_torch.load(spec, options)


def test_a_card_that_is_too_old_is_passed_over_and_named(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, 'import_module', lambda name: OldCard)
    machine, settings = Machine(True, False, NONE), EncoderSettings.load(cache=tmp_path)
    opened = open_session(load_spec(str(checkpoint('clip'))), settings, 1, shared=False, machine=machine)
    assert (opened.session.description['device'], opened.why) == ('cpu', 'torch is the next that works')
    assert sum('no kernel image' in warning for warning in opened.warnings) == 1


@pytest.fixture
def wide(checkpoint: Callable[[str], Path], tmp_path: Path) -> ModelSpec:
    """A checkpoint of which a layer gives numbers that are too large for 16 bits, and a later one small ones again."""
    folder = shutil.copytree(checkpoint('clip'), tmp_path / 'wide')
    weights = load_file(folder / 'model.safetensors')
    weights['text_model.encoder.layers.0.mlp.fc2.weight'] *= 1e6
    save_file(weights, folder / 'model.safetensors', {'format': 'pt'})
    return load_spec(str(folder))


def test_numbers_that_16_bits_do_not_hold_are_told_before_the_first_query(wide: ModelSpec, tmp_path: Path) -> None:
    registry.load('torch', wide, Options('cpu', 'float32', 1, False, tmp_path))
    with pytest.raises(InvalidParameter, match=r'text tower .* not finite in float16; set CLIPFLOW_PRECISION=float32'):
        registry.load('torch', wide, Options('cpu', 'float16', 1, False, tmp_path))


class OnCpu:
    """The module of torch, for a GPU that is a CPU."""

    @staticmethod
    def load(spec: ModelSpec, options: Options) -> Session:
        return sessions_torch.load(spec, replace(options, device='cpu'))


def test_auto_takes_float32_for_a_model_that_16_bits_do_not_hold(
    wide: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, 'import_module', lambda name: OnCpu)
    machine, settings = Machine(True, False, NONE), EncoderSettings.load(cache=tmp_path)
    opened = open_session(wide, settings, 1, shared=False, machine=machine)
    assert opened.session.description['precision'] == 'float32'
    assert 'not finite in float16' in opened.warnings[0]


def test_a_driver_whose_gpu_pytorch_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip('PyTorch can use the GPU of this machine')
    monkeypatch.setattr(machines, '_NVIDIA', '/dev/null')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    machine = this_machine()
    assert not machine.cuda
    assert machine.idle
    for given, named in (
        ({}, True),
        ({'runtime': 'torch'}, True),
        ({'device': 'cpu'}, False),
        ({'runtime': 'openvino'}, False),
    ):
        settings = EncoderSettings.load(**given)
        said = ' '.join(registry.faster(settings, candidates(settings, machine)[0], machine))
        assert (f'PyTorch cannot use it ({machine.idle})' in said) is named
    with pytest.raises(InvalidParameter, match=re.escape(f'no CUDA device ({machine.idle})')):
        ways(machine, device='cuda')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert this_machine().idle == '', 'somebody has hidden it'


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ({'runtime': 'fake', 'precision': 'int8'}, ['CLIPFLOW_PRECISION']),
        ({'runtime': 'fake', 'device': 'cpu', 'compile': True}, ['CLIPFLOW_DEVICE', 'CLIPFLOW_COMPILE']),
        ({'runtime': 'fake'}, []),
        ({'runtime': 'torch', 'precision': 'float32', 'device': 'cpu'}, []),
    ],
)
def test_a_setting_without_an_effect_is_named(
    checkpoint: Callable[[str], Path], tmp_path: Path, given: dict[str, Any], said: list[str]
) -> None:
    spec = load_spec(str(checkpoint('clip')))
    opened = open_session(spec, EncoderSettings.load(cache=tmp_path, **given), 1, shared=False)
    assert [name for warning in opened.warnings for name in said if name in warning] == said
    assert len(opened.warnings) == len(said)


def test_the_reason_of_a_choice_is_true() -> None:
    def why(machine: Machine, **given: str) -> str:
        return candidates(EncoderSettings.load(**given), machine)[0].why

    assert (
        why(Machine(False, True, ALL)) == 'the CPU computes in bfloat16, and openvino is the fastest that is installed'
    )
    assert why(Machine(False, False, ALL)) == 'openvino is the fastest in float32 on this CPU that is installed'
    for precision in ('int8', 'float16', 'bfloat16'):
        assert why(Machine(False, False, ALL), precision=precision).startswith(f'CLIPFLOW_PRECISION is {precision}, ')
    assert why(Machine(True, False, ALL)).startswith('there is a GPU (cuda), ')


def test_a_faster_extra_is_named(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    spec = load_spec(str(checkpoint('clip')))
    machine = Machine(False, True, NONE)
    opened = open_session(spec, EncoderSettings.load(cache=tmp_path), 1, shared=False, machine=machine)
    assert 'clipflow[openvino]' in opened.warnings[0]


def test_a_gpu_that_auto_leaves_alone_is_named(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    spec = load_spec(str(checkpoint('clip')))
    machine = Machine(False, False, NONE, mps=True)
    opened = open_session(spec, EncoderSettings.load(cache=tmp_path), 1, shared=False, machine=machine)
    assert 'CLIPFLOW_DEVICE=mps' in opened.warnings[0]


def test_this_machine_can_be_looked_at() -> None:
    assert this_machine().packages <= ALL


def test_every_runtime_of_the_settings_has_a_row_in_the_registry() -> None:
    named = set(EncoderSettings.model_fields['runtime'].annotation.__args__) - {'auto'}  # type: ignore[union-attr]
    assert named == set(registry._RUNTIMES)
