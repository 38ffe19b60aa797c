"""The pass over the model that a compiler makes, and what is looked at while it runs."""

import copy
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from ._errors import Error, python_error

NATIVE = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.float16, torch.float32}
NARROWED = {torch.int64: torch.int32, torch.float64: torch.float32}
# 13: what a tower may consist of; each of these has a handler in PopTorch.
_OPERATIONS = (
    'convolution view _unsafe_view permute transpose t unsqueeze squeeze expand cat native_layer_norm addmm mm bmm '
    '_softmax sigmoid mul add sub div unbind select embedding linalg_vector_norm _to_copy clone gelu relu tanh detach '
    'alias slice arange argmax index ones full zeros sum mean'
)
ALLOWED = frozenset(_OPERATIONS.split())


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.unsupported: set[str] = set()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split('.')[1]
        self.count += 1
        if name not in ALLOWED:
            self.unsupported.add(f'aten::{name}')
        return func(*args, **(kwargs or {}))


class _Finite(TorchDispatchMode):
    """Own: no half number may overflow, for what an IPU does then was never seen."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in tree_flatten(found)[0]:
            if torch.is_tensor(value) and value.dtype == torch.float16:
                reject_infinite(value, str(func))
        return found


def reject_infinite(value: torch.Tensor, where: str) -> None:
    """Own: -inf, inf and NaN in half precision are an error."""
    if value.dtype == torch.float16 and not bool(torch.isfinite(value).all()):
        raise python_error(f'(own rule of the double) a half number of {where} is not finite')


def check_tensor(value: Any, name: str) -> None:
    """19, 20: a CPU tensor of a type that PopTorch takes."""
    if type(value).__module__.partition('.')[0] in ('numpy', 'PIL') and not isinstance(value, int | float):
        raise TypeError(f'(own rule of the double) {name} is a {type(value).__name__}, not a tensor')
    if torch.is_tensor(value):
        if value.device.type != 'cpu':
            raise TypeError(f'(own rule of the double) {name} lies on {value.device}')
        if value.dtype not in NATIVE | set(NARROWED):
            raise python_error(f'Unsupported tensor input type {value.dtype} for {name}')


def narrowed(value: torch.Tensor) -> torch.Tensor:
    """18: 64 bits become 32; a number that does not fit is an error (own: the original lets it wrap)."""
    if value.dtype == torch.int64 and value.numel() and bool((value.abs() > 2**31 - 1).any()):
        raise OverflowError('(own rule of the double) a 64-bit number does not fit into 32 bits')
    return value.to(NARROWED.get(value.dtype, value.dtype))


def trace(model: torch.nn.Module, arguments: list[Any]) -> None:
    """12, 13, 23: run a copy without data; what asks for data, or has no handler, cannot be compiled."""
    traced = copy.deepcopy(model).to('meta')
    owned = {name: id(value) for name, value in [*traced.named_parameters(), *traced.named_buffers()]}
    inputs = tree_map(lambda value: value.to('meta') if torch.is_tensor(value) else value, arguments)
    recorder = _Recorder()
    try:
        with torch.device('meta'), torch.no_grad(), recorder:
            found = traced(*inputs)
    except Exception as error:
        raise python_error(f'the model cannot be compiled: {error}') from error
    if recorder.unsupported:
        raise python_error(f'Unsupported ops found in compiled model: {sorted(recorder.unsupported)}')
    if not recorder.count:
        raise python_error('Your compiled model is empty')
    for name, value in [*traced.named_parameters(), *traced.named_buffers()]:
        if owned.get(name) != id(value):
            raise python_error(f'{name} was reassigned in forward; use copy_')
    for value in tree_flatten(found)[0]:
        if torch.is_tensor(value) and value.device.type != 'meta':
            raise Error('Illegal move to CPU')


def run(model: torch.nn.Module, arguments: list[Any]) -> Any:
    """One step on one replica."""
    with torch.no_grad(), _Finite():
        return model(*arguments)
