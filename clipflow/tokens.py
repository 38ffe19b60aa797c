"""Texts to token ids, as the checkpoint's own tokenizer makes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow.errors import InvalidParameter, first_line
from clipflow.weights import LARGEST, ModelSpec


@dataclass(frozen=True)
class Tokens:
    """Ids of N texts, padded to one length L, the mask of real tokens, and which texts were cut."""

    ids: NDArray[np.int32]
    mask: NDArray[np.int32]
    truncated: NDArray[np.bool_]


class Tokenizer:
    """The checkpoint's tokenizer. Pads to the longest text of the call, or to the context where the model needs it.

    A CLIP text tower is causal and pools at the end token, so what stands behind it cannot influence the result. It is
    padded with that token again: where the tower pools at the largest id, another one could be larger. The BERT-like
    towers get a mask. SigLIP pools the last position and was trained with full padding: it is never cut.
    """

    def __init__(self, spec: ModelSpec) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(spec.directory), trust_remote_code=False)
        except Exception as error:  # transformers raises whatever its file readers raise
            reason = first_line(error)
            raise InvalidParameter(f'the tokenizer of {spec.directory} cannot be loaded: {reason}') from None
        self._context = spec.context
        self._fixed = spec.padding == 'fixed'
        self._pad = int(self._tokenizer.pad_token_id or 0)
        self._ends = spec.end is not None
        if self._ends:
            self._check_end(spec)

    def _check_end(self, spec: ModelSpec) -> None:
        ids = self._rows(['a'], truncation=True)[0]
        if not ids or ids[-1] != (max(ids) if spec.end == LARGEST else spec.end):
            pooled = 'the largest id of a text' if spec.end == LARGEST else f'the id {spec.end}'
            raise InvalidParameter(
                f'{spec.directory / "config.json"}: eos_token_id makes the model read a text at {pooled}, but its '
                f'tokenizer ends one with {ids[-1] if ids else "nothing"}, so that none would be read to its end; '
                'write the id of the end token there, or take the tokenizer that belongs to the model'
            )

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenise N texts; ids and mask are int32 of shape (N, L)."""
        rows: list[list[int]] = self._rows(list(texts), truncation=True)
        full = [row for row, ids in enumerate(rows) if len(ids) >= self._context]
        uncut = self._rows([texts[row] for row in full], truncation=False) if full else []
        truncated = np.zeros(len(rows), dtype=np.bool_)
        for row, ids in zip(full, uncut, strict=True):
            truncated[row] = len(ids) > self._context
        length = self._context if self._fixed else max((len(ids) for ids in rows), default=1)
        padded = np.empty((len(rows), length), dtype=np.int32)
        mask = np.zeros((len(rows), length), dtype=np.int32)
        for row, ids in enumerate(rows):
            padded[row] = ids[-1] if self._ends else self._pad
            padded[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        return Tokens(padded, mask, truncated)

    def _rows(self, texts: list[str], truncation: bool) -> list[list[int]]:
        if not texts:
            return []
        options = {'truncation': True, 'max_length': self._context} if truncation else {'verbose': False}
        found: list[list[int]] = self._tokenizer(texts, add_special_tokens=True, **options)['input_ids']
        return found
