"""The learning rate over the steps: linear warm-up, then half a cosine down to nought."""

import math


def cosine(step: int, total: int, warmup: int) -> float:
    """Factor from 0 to 1 on the learning rate of a step that counts from 0.

    Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5 with one cycle, after `warmup` steps that rise evenly.
    A function of the step alone, so that a resumed run has nothing to restore.
    """
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
