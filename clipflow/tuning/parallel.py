"""Several processes that train one model (`torchrun`): each has its share of a batch, all know the whole result."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed


class Group:
    """The processes of a run.

    Attributes:
        rank: number of this process; 0 is the one that writes and talks.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def share(self, count: int) -> slice:
        """The part of `count` rows that is this process's: as even as it goes, in order."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """[own rows, D] of each process to [count, D] on all; nothing flows back through it."""
        if self.size == 1:
            return rows
        # A sum of what is nought elsewhere: exact, and shares may differ in length.
        whole = rows.new_zeros((count, *rows.shape[1:]))
        whole[self.share(count)] = rows
        distributed.all_reduce(whole)
        return whole

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each by its sum over all processes."""
        if self.size > 1 and tensors:
            # In one message, because small ones cost a round trip each.
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            distributed.all_reduce(flat)
            for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier()


def processes() -> int:
    """How many `torchrun` has started; 1 without it."""
    return int(os.environ.get('WORLD_SIZE', '1'))


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """The group that `torchrun` started this process in, or a group of one.

    Args:
        device: cpu (over gloo) or cuda (over NCCL, each process on the GPU of its local rank).
    """
    size = processes()
    if size == 1:
        yield Group()
        return
    if device == 'cuda':
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', '0')))
    distributed.init_process_group('nccl' if device == 'cuda' else 'gloo')
    try:
        yield Group(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()
