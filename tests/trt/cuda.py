"""What the runtime needs of `torch.cuda`, on the CPU: streams that run when they are waited for, and addresses."""

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch


class Stream:
    """A stream of CUDA: what stands in its queue is run by `synchronize`, and not before."""

    _numbers = itertools.count(1)

    def __init__(self, number: int | None = None) -> None:
        self.cuda_stream = next(self._numbers) if number is None else number
        self.queue: list[Callable[[], None]] = []
        GPU.device.streams[self.cuda_stream] = self

    def synchronize(self) -> None:
        """Run it all."""
        while self.queue:
            self.queue.pop(0)()


class _Gpu:
    """The device of the double, the current stream, and how often the cache was emptied."""

    device: Any
    current: Stream
    emptied = 0


GPU = _Gpu()


@contextlib.contextmanager
def _on(stream: Stream) -> Iterator[None]:
    before, GPU.current = GPU.current, stream
    try:
        yield
    finally:
        GPU.current = before


def _emptied() -> None:
    GPU.emptied += 1


def install(monkeypatch: pytest.MonkeyPatch, device: Any) -> None:
    """Let torch find the GPU of the double; addresses of tensors are told to it."""
    GPU.device, GPU.emptied = device, 0
    GPU.current = Stream(0)
    address_of = torch.Tensor.data_ptr

    def data_ptr(tensor: torch.Tensor) -> int:
        address = address_of(tensor)
        device.tensors[address] = weakref.ref(tensor)
        return address

    monkeypatch.setattr(torch.Tensor, 'data_ptr', data_ptr)
    for name, value in {
        'is_available': lambda: True,
        'Stream': Stream,
        'stream': _on,
        'current_stream': lambda: GPU.current,
        'get_device_capability': lambda: device.capability,
        'get_device_name': lambda: device.name,
        'empty_cache': _emptied,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
