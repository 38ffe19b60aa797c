"""Losses against sums that are written out term by term."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clipflow.tuning import losses

PICTURES = [4, 7, 4, 9, 2, 7]
"""Equal numbers are equal pictures; the last two belong to no text."""
TEXTS = [0, 1, 2, 3]
SCALE, BIAS, MARGIN = 5.0, -2.0, 0.3


@pytest.fixture
def cosines() -> NDArray[np.float64]:
    return np.random.default_rng(0).uniform(-1, 1, (4, 6))


def against() -> list[set[int]]:
    """For each text, the places of the pictures that count against it."""
    return [{place for place in range(6) if PICTURES[place] != PICTURES[row]} for row in range(4)]


def negatives() -> torch.Tensor:
    return losses.negatives_of(torch.tensor(PICTURES), torch.tensor(TEXTS))


def test_the_same_picture_and_the_same_text_are_no_negatives() -> None:
    assert [set(np.flatnonzero(row)) for row in negatives().numpy()] == against()
    same_text = losses.negatives_of(torch.tensor([0, 1, 2]), torch.tensor([5, 6, 5]))
    assert same_text.tolist() == [[False, True, False], [True, False, True], [False, True, False]]


def test_clip(cosines: NDArray[np.float64]) -> None:
    total = 0.0
    for i in range(4):
        row = [cosines[i, j] for j in {i} | against()[i]]
        column = [cosines[j, i] for j in range(4) if j == i or i in against()[j]]
        for values in (row, column):
            total -= math.log(math.exp(SCALE * cosines[i, i]) / sum(math.exp(SCALE * value) for value in values))
    found = losses.clip(torch.tensor(cosines), negatives(), torch.tensor(SCALE))
    assert found.item() == pytest.approx(total / 8)


def test_siglip(cosines: NDArray[np.float64]) -> None:
    total = 0.0
    for i in range(4):
        total += math.log(1 + math.exp(-(SCALE * cosines[i, i] + BIAS)))
        total += sum(math.log(1 + math.exp(SCALE * cosines[i, j] + BIAS)) for j in against()[i])
    found = losses.siglip(torch.tensor(cosines), negatives(), torch.tensor(SCALE), torch.tensor(BIAS))
    assert found.item() == pytest.approx(total / 4)


def test_triplet(cosines: NDArray[np.float64]) -> None:
    total = 0.0
    for i in range(4):
        by_text = max(cosines[i, j] for j in against()[i])
        by_picture = max(cosines[j, i] for j in range(4) if i in against()[j])
        total += max(0, MARGIN - cosines[i, i] + by_text) + max(0, MARGIN - cosines[i, i] + by_picture)
    assert losses.triplet(torch.tensor(cosines), negatives(), MARGIN).item() == pytest.approx(total / 8)


def test_ranking(cosines: NDArray[np.float64]) -> None:
    total = 0.0
    for i in range(4):
        costs = [math.log(1 + math.exp(-SCALE * (cosines[i, i] - cosines[i, j]))) for j in against()[i]]
        total += sum(costs) / len(costs)
    assert losses.ranking(torch.tensor(cosines), negatives(), torch.tensor(SCALE)).item() == pytest.approx(total / 4)


def test_a_text_without_negatives_costs_nothing_and_spoils_no_gradient() -> None:
    cosines = torch.zeros((2, 2), requires_grad=True)
    none, scale = torch.zeros((2, 2), dtype=torch.bool), torch.tensor(SCALE)
    total = (
        losses.clip(cosines, none, scale) + losses.triplet(cosines, none, MARGIN) + losses.ranking(cosines, none, scale)
    )
    total.backward()
    assert total.item() == 0
    assert cosines.grad is not None
    assert torch.isfinite(cosines.grad).all()
