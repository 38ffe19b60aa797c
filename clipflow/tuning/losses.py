"""Losses over the cosines of a batch: which pair belongs together, and which pictures count against a text.

All take `cosines` [N, M] of N texts (rows) with M pictures (columns), float32. Text i belongs to picture i; pictures
from N on, if there are any, belong to no text: they are negatives only. `negatives` [N, M], bool, says which pictures
count against a text; what is neither on the diagonal nor in `negatives` is left out of the loss, in both directions.
All return a scalar that is a mean over the texts, so that it does not grow with the batch.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, relu, softplus

_IMPOSSIBLE = float('-inf')


def negatives_of(pictures: Tensor, texts: Tensor) -> Tensor:
    """Who is a negative of whom: [N, M] bool. The same picture again, or one with the same text, is none.

    Args:
        pictures: [M] int64, equal numbers for equal pictures.
        texts: [N] int64, equal numbers for equal texts; text i belongs to picture i.
    """
    count = len(texts)
    same = pictures[:count, None] == pictures[None, :]
    same[:, :count] |= texts[:, None] == texts[None, :]
    return ~same


def clip(cosines: Tensor, negatives: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross entropy, Radford et al. 2021, arXiv:2103.00020, figure 3.

    1/2N sum_i [-log softmax_j(scale c_ij)_i - log softmax_j(scale c_ji)_i], where j runs over i and its negatives.
    """
    count = len(cosines)
    logits = (scale * cosines).masked_fill(~(negatives | _diagonal(cosines)), _IMPOSSIBLE)
    own = torch.arange(count, device=cosines.device)
    return (cross_entropy(logits, own) + cross_entropy(logits[:, :count].T, own)) / 2


def siglip(cosines: Tensor, negatives: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Sigmoid loss, Zhai et al. 2023, arXiv:2303.15343, equation 1.

    -1/N sum_ij log sigmoid(z_ij (scale c_ij + bias)), with z = 1 on the diagonal and -1 for negatives.
    """
    diagonal = _diagonal(cosines)
    sign = torch.where(diagonal, 1.0, -1.0)
    terms = logsigmoid(sign * (scale * cosines + bias))
    return -(terms * (diagonal | negatives)).sum() / len(cosines)


def triplet(cosines: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """Hinge with the hardest negative, both ways, Faghri et al. 2018 (VSE++), arXiv:1707.05612, equation 6.

    1/2N sum_i [max(0, margin - c_ii + max_j c_ij) + max(0, margin - c_ii + max_j c_ji)]; 0 where i has no negative.
    """
    count = len(cosines)
    wrong = cosines.masked_fill(~negatives, _IMPOSSIBLE)
    own = cosines.diagonal()
    by_text, by_picture = wrong.amax(dim=1), wrong[:, :count].amax(dim=0)
    return (relu(margin - own + by_text) + relu(margin - own + by_picture)).mean() / 2


def ranking(cosines: Tensor, negatives: Tensor, scale: Tensor) -> Tensor:
    """RankNet, Burges et al. 2005, "Learning to Rank using Gradient Descent", equation 3, with certain targets.

    1/N sum_i mean_j log(1 + exp(-scale (c_ii - c_ij))), where j runs over the negatives of text i; 0 without any.
    """
    costs = softplus(-scale * (cosines.diagonal()[:, None] - cosines)) * negatives
    return (costs.sum(dim=1) / negatives.sum(dim=1).clamp(min=1)).mean()


def _diagonal(cosines: Tensor) -> Tensor:
    return torch.eye(*cosines.shape, dtype=torch.bool, device=cosines.device)
