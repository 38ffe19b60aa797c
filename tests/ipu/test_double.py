"""The double itself is strict: what PopTorch refuses, it refuses. The numbers are those of its comments."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from .process import DOUBLE


@pytest.fixture
def poptorch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imported afresh, with four IPUs."""
    monkeypatch.setenv('POPLAR_SDK_ENABLED', '1')
    monkeypatch.syspath_prepend(DOUBLE)
    yield __import__('poptorch')
    for name in [name for name in sys.modules if name.partition('.')[0] == 'poptorch']:
        del sys.modules[name]


class Scaled(torch.nn.Module):
    """A model of one product."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> Any:
        return x * self.factor


def rows(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32)[:, None]


def made(poptorch: Any, model: type[torch.nn.Module] = Scaled, **options: Any) -> Any:
    chosen = poptorch.Options()
    for name, value in options.items():
        getattr(chosen, name)(value)
    return poptorch.inferenceModel(model().eval(), chosen)


def test_1_it_needs_the_sdk_and_its_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOUBLE)
    monkeypatch.delenv('POPLAR_SDK_ENABLED', raising=False)
    with pytest.raises(ImportError, match='SDK'):
        __import__('poptorch')
    monkeypatch.setenv('POPLAR_SDK_ENABLED', '1')
    monkeypatch.setenv('POPTORCH_DOUBLE_TORCH', '1.13')
    with pytest.raises(AssertionError):
        __import__('poptorch')


@pytest.mark.parametrize(
    ('setter', 'values', 'kind'),
    [
        ('deviceIterations', (2.0,), AssertionError),
        ('replicationFactor', ('2',), AssertionError),
        ('setAvailableMemoryProportion', ({'0': 0.1},), AssertionError),
        ('setAvailableMemoryProportion', ({'IPUx': 0.1},), ValueError),
        ('setAvailableMemoryProportion', ({'IPU0': 1.5},), AssertionError),
        ('outputMode', (2,), AssertionError),
        ('connectionType', (0,), AssertionError),
        ('setExecutionStrategy', ('sharded',), AssertionError),
        ('batchSize', (2,), AttributeError),
    ],
)
def test_2_to_5_options_check_what_they_are_given(poptorch: Any, setter: str, values: Any, kind: Any) -> None:
    options = poptorch.Options()
    with pytest.raises(kind):
        getattr(options, setter)(*values)
    with pytest.raises(AssertionError):
        options.outputMode(poptorch.OutputMode.EveryN)


def test_6_options_are_frozen_once_used_and_a_clone_is_not(poptorch: Any) -> None:
    options = poptorch.Options()
    poptorch.inferenceModel(Scaled().eval(), options)
    poptorch.inferenceModel(Scaled().eval(), options)
    for change in (
        lambda: options.deviceIterations(2),
        lambda: options.setAvailableMemoryProportion({'IPU0': 0.1}),
        lambda: options.Precision.enableStochasticRounding(True),
    ):
        with pytest.raises(AttributeError, match='frozen'):
            change()
    assert options.clone().deviceIterations(2).device_iterations == 2


def test_7_and_8_what_cannot_be_wrapped(poptorch: Any) -> None:
    with pytest.raises(poptorch.Error, match='Invalid type'):
        poptorch.inferenceModel(Scaled().eval(), {})
    options = poptorch.Options()
    options.Training.gradientAccumulation(2)
    with pytest.raises(poptorch.Error, match='gradientAccumulation'):
        poptorch.inferenceModel(Scaled().eval(), options)
    with pytest.raises(AssertionError, match='eval'):
        poptorch.inferenceModel(Scaled())


def test_10_11_22_batches_are_divided_and_the_output_mode_counts(poptorch: Any) -> None:
    seen: list[int] = []

    class Counting(Scaled):
        def forward(self, x: torch.Tensor) -> Any:
            seen.append(len(x))
            return x * self.factor

    executor = made(poptorch, Counting, deviceIterations=3, replicationFactor=2)
    with pytest.raises(AssertionError, match='Invalid batch dimension'):
        executor(rows(8))
    assert executor(rows(12)).tolist() == (2 * rows(12)).tolist()
    assert set(seen) == {2}
    final = made(poptorch, deviceIterations=3, outputMode=poptorch.OutputMode.Final)
    assert final(rows(6)).tolist() == [[8.0], [10.0]]


class Item(Scaled):
    def forward(self, x: torch.Tensor) -> Any:
        return x * 2 if x.mean() == 0 else x * 3


class Moves(Scaled):
    def forward(self, x: torch.Tensor) -> Any:
        return (x * 2).cpu()


class Sorts(Scaled):
    def forward(self, x: torch.Tensor) -> Any:
        return torch.sort(x)[0]


class Attends(Scaled):
    def forward(self, x: torch.Tensor) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None])[0]


class Minus(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('mask', torch.full((1,), float('-inf'), dtype=torch.float16))


class Overflows(Scaled):
    def forward(self, x: torch.Tensor) -> Any:
        return x.half() * 60000


@pytest.mark.parametrize('model', [Item, Moves, Sorts, Attends, Minus, Overflows])
def test_12_13_what_does_not_compile_or_stay_finite(poptorch: Any, model: Any) -> None:
    executor = made(poptorch, model)
    with pytest.raises(poptorch.Error):
        executor(rows(4))


def test_14_to_17_later_calls_must_match_and_a_wrong_one_harms_nothing(poptorch: Any) -> None:
    executor = made(poptorch)
    executor.compile(rows(4))
    for bad, gist in (
        (rows(5), 'Shape mismatch for x'),
        (rows(4).int(), 'Data type mismatch'),
        ([rows(4)], 'Type mismatch'),
    ):
        with pytest.raises(poptorch.Error, match=gist):
            executor(bad)
    for arguments in ((rows(4), 1), ()):
        with pytest.raises((AssertionError, poptorch.Error)):
            executor(*arguments)
    assert executor(rows(4)).shape == (4, 1)


def test_18_to_21_types(poptorch: Any) -> None:
    assert made(poptorch)(torch.arange(4)).dtype == torch.float32

    class Ids(Scaled):
        def forward(self, x: torch.Tensor) -> Any:
            assert x.dtype == torch.int32
            return (x + 1).to(torch.int64)

    assert made(poptorch, Ids)(torch.arange(4)).dtype == torch.int32
    with pytest.raises(OverflowError):
        made(poptorch, Ids)(torch.tensor([2**31]))
    with pytest.raises(poptorch.Error, match='Unsupported'):
        made(poptorch)(rows(4).bfloat16())
    with pytest.raises(TypeError):
        made(poptorch)(rows(4).numpy())
    with pytest.raises(poptorch.Error, match='backward'):
        made(poptorch)(rows(4)).backward()


def test_25_28_30_devices_are_counted_and_given_back(poptorch: Any) -> None:
    first = made(poptorch, replicationFactor=4)
    first(rows(4))
    second = made(poptorch)
    with pytest.raises(poptorch.Error, match='Failed to acquire 1 IPU'):
        second(rows(4))
    first.detachFromDevice()
    with pytest.raises(poptorch.Error, match='not attached'):
        first.detachFromDevice()
    assert second(rows(4)).shape == (4, 1)
    second.destroy()
    second.destroy()
    with pytest.raises(poptorch.Error, match='has not been compiled'):
        second.detachFromDevice()
    assert second(rows(6)).shape == (6, 1)
    second.destroy()
    first(rows(4))
    del first
    assert second(rows(2)).shape == (2, 1)
    with pytest.raises(poptorch.Error, match='power of 2'):
        made(poptorch, replicationFactor=3)(rows(3))


def test_29_an_offline_model_compiles_but_does_not_run(poptorch: Any) -> None:
    executor = made(poptorch, connectionType=poptorch.ConnectionType.Never)
    executor.compile(rows(4))
    with pytest.raises(AssertionError, match='offline'):
        executor(rows(4))


def test_31_weights_on_the_device_change_only_when_copied(poptorch: Any) -> None:
    executor = made(poptorch)
    executor(rows(2))
    with torch.no_grad():
        executor.factor.fill_(5)
    assert executor(rows(2)).tolist() == [[0.0], [2.0]]
    executor.copyWeightsToDevice()
    assert executor(rows(2)).tolist() == [[0.0], [5.0]]


def test_34_a_fault_needs_a_new_start(poptorch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('POPTORCH_DOUBLE_FAIL', 'call:1:recoverable:IPU_RESET')
    executor = made(poptorch)
    with pytest.raises(poptorch.RecoverableError) as caught:
        executor(rows(2))
    assert caught.value.recovery_action == 'IPU_RESET'
    with pytest.raises(poptorch.UnrecoverableError):
        executor(rows(2))
    executor.destroy()
    assert executor(rows(2)).shape == (2, 1)
