"""What a score means as a probability that the picture is what the text asks for.

A logistic function of the cosine and of how rare so high a score is (Platt 1999, "Probabilistic outputs for support
vector machines"):

    P = 1 / (1 + exp(-(constant + cosine * c + rarity * r))),    r = -log(share above + 1/1000)

A cosine means more for one query than for another; the share of a sample of the collection that scores higher tells
them apart. `clipflow calibrate` fits it (`clipflow/relevance/calibrate.py`).
"""

import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow.errors import InvalidParameter, ModelMismatch, NotFound
from clipflow.files import replaced

FORMAT = 'clipflow-calibration-1'
_LEAST = 1e-3
"""Of a sample of 1,000, a smaller share cannot be told from none."""


@dataclass(frozen=True)
class Calibration:
    """See the module.

    Attributes:
        model: fingerprint of the model whose scores these are.
        name: of the model, for people.
        constant, cosine, rarity: of the formula.
        error: expected calibration error on captions that it was not fitted with.
        pictures, captions: how many it was made with, the held-out ones included.
    """

    model: str
    name: str
    constant: float
    cosine: float
    rarity: float
    error: float
    pictures: int
    captions: int

    def probability(self, scores: NDArray[np.float64], above: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of cosines and the shares of the sample that score higher, of the same shape."""
        found: NDArray[np.float64] = sigmoid(self.constant + self.cosine * scores + self.rarity * rarity_of(above))
        return found

    def check(self, model: str) -> None:
        """Raises ModelMismatch if it was made for another model than that with this fingerprint."""
        if self.model != model:
            raise ModelMismatch(
                f'the calibration is for the model {self.name!r} ({self.model}), here runs {model}; make one for this '
                'model with "clipflow calibrate", or unset CLIPFLOW_CALIBRATION'
            )

    def told(self) -> dict[str, Any]:
        """For /status."""
        return {name: getattr(self, name) for name in ('error', 'pictures', 'captions')}

    def write(self, path: Path) -> None:
        """Write the file as a whole.

        Raises:
            ReadOnly, StorageFull: it cannot be written.
        """
        replaced(path, json.dumps({'format': FORMAT, **asdict(self)}, indent=2).encode() + b'\n')

    @classmethod
    def read(cls, path: Path) -> 'Calibration':
        """Read a file.

        Raises:
            NotFound: there is none.
            InvalidParameter: it is no calibration, or damaged.
        """
        try:
            found = json.loads(path.read_text(encoding='utf-8'))
        except FileNotFoundError:
            raise NotFound(f'there is no calibration {path}') from None
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidParameter(f'the calibration {path} cannot be read: {error}') from None
        kinds = {field.name: field.type for field in fields(cls)}
        sound = (
            isinstance(found, dict)
            and found.pop('format', None) == FORMAT
            and found.keys() == kinds.keys()
            and all(type(found[name]) in ((float, int) if kind is float else (kind,)) for name, kind in kinds.items())
            and all(abs(value) <= sys.float_info.max for value in found.values() if isinstance(value, float | int))
        )
        if not sound:
            raise InvalidParameter(f'{path} is no calibration that this version of "clipflow calibrate" has written')
        return cls(**found)


def rarity_of(above: NDArray[np.float64]) -> NDArray[np.float64]:
    """How rare so high a score is: 0 for the lowest, 6.9 for what is above the whole sample."""
    found: NDArray[np.float64] = -np.log(above + _LEAST)
    return found


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function, without overflow."""
    found: NDArray[np.float64] = 0.5 * (1 + np.tanh(logits / 2))
    return found
