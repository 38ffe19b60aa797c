"""Between the start weights and the tuned ones: WiSE-FT, so that the old task is not forgotten.

Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv:2109.01903: weights =
(1 - alpha) x start + alpha x tuned. The share is chosen on validation data, and reported on others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipflow.tuning.journal import Journal
from clipflow.tuning.measuring import Exam, Runner
from clipflow.tuning.tasks import Measures, score

Weights = Mapping[str, Tensor]
BEFORE, AFTER, MIXED = 'before', 'after', 'mixed'


@dataclass(frozen=True)
class Mixture:
    """What came of it.

    Attributes:
        alpha: the chosen share of the tuned weights.
        tried: the score of each share on what it is chosen on, and their mean under `mean`.
        reported: of each exam the measures before, after and mixed.
    """

    alpha: float
    tried: dict[float, dict[str, float]]
    reported: dict[str, dict[str, Measures]]


def mix(start: Weights, tuned: Weights, alpha: float) -> dict[str, Tensor]:
    """The weights in between; exactly the start at 0, and exactly the tuned ones at 1."""
    if alpha in (0, 1):
        return dict(tuned if alpha else start)
    return {name: start[name] + alpha * (tuned[name] - start[name]) for name in start}


def rounded(weights: Weights, number: torch.dtype) -> dict[str, Tensor]:
    """Copies in float32 on the CPU, as exact as this number format."""
    return {name: tensor.detach().clone().to('cpu', number).float() for name, tensor in weights.items()}


def choose(
    runner: Runner,
    start: Weights,
    tuned: Weights,
    alphas: Sequence[float],
    *,
    selecting: Sequence[Exam],
    reporting: Sequence[Exam],
    number: torch.dtype,
    journal: Journal,
) -> Mixture:
    """Try the shares, choose the best by the mean score over `selecting`, and leave that mix in the model.

    Of equally good ones the smallest is taken: the nearest to the start. What is measured is what will be loaded,
    rounded as it is saved.

    Args:
        runner: of the model.
        start, tuned: weights by the names of `TwoTowers.weights`.
        alphas: in rising order.
        selecting: what the share is chosen on, such as the validation data and a part of the old task.
        reporting: what the table tells of.
        number: format in which the weights will be saved.
        journal: for the progress.
    """
    shares = sorted({*alphas})
    work = len(shares) * sum(exam.size for exam in selecting) + 3 * sum(exam.size for exam in reporting)
    with journal.bar('mixing and measuring', work) as moved:
        tried: dict[float, dict[str, float]] = {}
        for alpha in shares:
            runner.model.set_weights(rounded(mix(start, tuned, alpha), number))
            scores = {exam.title: score(exam.take(runner, moved)) for exam in selecting}
            tried[alpha] = scores | {'mean': float(np.mean(list(scores.values())))}
        chosen = max(shares, key=lambda alpha: (tried[alpha]['mean'], -alpha))
        reported: dict[str, dict[str, Measures]] = {exam.title: {} for exam in reporting}
        for name, alpha in ((BEFORE, 0.0), (AFTER, 1.0), (MIXED, chosen)):
            runner.model.set_weights(rounded(mix(start, tuned, alpha), number))
            for exam in reporting:
                reported[exam.title][name] = exam.take(runner, moved)
    return Mixture(chosen, tried, reported)
