"""One step of learning on a batch of any size in the memory of a part of it, with the exact gradient of the whole.

A contrastive loss compares all pairs of the batch, so gradients of parts cannot simply be added. First all vectors
are computed without a graph, then the loss and its gradient by each vector, then each part is computed again and its
vectors' gradients flow on (Gao et al. 2021, "GradCache", arXiv:2101.06983). Several processes each take their share:
all have all vectors, and so the same loss.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from clipflow.tuning.parallel import Group


@dataclass(frozen=True)
class Encoder:
    """One side of a batch.

    Attributes:
        encode: rows of the batch to their unit vectors, [rows, D]; called twice with the same rows, with one result.
        count: rows of the whole batch, at least one for each process.
        learns: whether anything of it learns; else it is called once.
    """

    encode: Callable[[slice], Tensor]
    count: int
    learns: bool = True


def learn(
    encoders: Sequence[Encoder],
    loss_of: Callable[..., Tensor],
    *,
    parameters: Sequence[torch.nn.Parameter],
    shared: Sequence[torch.nn.Parameter],
    part: int,
    group: Group,
    calculation: Callable[[], AbstractContextManager[object]],
) -> float:
    """Set the gradients of one batch, which have to be None before; returns the loss.

    Args:
        encoders: of the texts and of the pictures, say.
        loss_of: of all vectors of each encoder, [count, D] float32, a scalar.
        parameters: those that the encoders use and that learn.
        shared: those that the loss itself uses and that learn, such as the temperature.
        part: rows that are computed at once.
        group: of the processes that share the batch.
        calculation: context in which the encoders run, such as autocast.
    """
    parts = [_parts(group.share(encoder.count), part) for encoder in encoders]
    if group.size == 1 and all(len(slices) == 1 for slices in parts):
        with calculation():
            vectors = [encoder.encode(slices[0]) for encoder, slices in zip(encoders, parts, strict=True)]
        loss = loss_of(*(one.float() for one in vectors))
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())
    leaves = []
    for encoder, slices in zip(encoders, parts, strict=True):
        with torch.no_grad(), calculation():
            found = [encoder.encode(rows).float() for rows in slices]
        leaves.append(group.gather(torch.cat(found), encoder.count).requires_grad_())
    loss = loss_of(*leaves)
    # All processes have this loss, and so the whole gradient of what it uses itself: that is not added up.
    gradients = torch.autograd.grad(loss, [*leaves, *shared], allow_unused=True)
    for parameter, gradient in zip(shared, gradients[len(leaves) :], strict=True):
        parameter.grad = gradient
    for encoder, slices, gradient in zip(encoders, parts, gradients, strict=False):
        for rows in slices if encoder.learns else ():
            with calculation():
                again = encoder.encode(rows)
            again.backward(gradient[rows].to(again.dtype))  # type: ignore[no-untyped-call]
    group.add([parameter.grad for parameter in parameters if parameter.grad is not None])
    return float(loss.detach())


def _parts(share: slice, size: int) -> list[slice]:
    return [slice(start, min(start + size, share.stop)) for start in range(share.start, share.stop, size)]
