"""Items to what the model takes: read, decoded, and brought to its size."""

import math
from dataclasses import dataclass
from typing import Any

from docarray import Document

from clipflow import wire
from clipflow.bulk.embed.items import Fault, Item
from clipflow.errors import ClipflowError
from clipflow.preparation import Preparation
from clipflow.settings import PreprocessorSettings
from clipflow.weights import ModelSpec

_DEEPEST = 16
"""Levels of lists and objects in metadata; messages of a service hold some more."""


@dataclass(frozen=True)
class Row:
    """What is known of an item that has a vector."""

    key: str
    caption: str | None
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Ready:
    """An item that can pass through the model; without a caption its text is empty."""

    row: Row
    picture: Document
    text: Document


class Decoder:
    """See the module; for any thread.

    Args:
        spec: of the model.
        reading: limits of pictures and texts.
    """

    def __init__(self, spec: ModelSpec, reading: PreprocessorSettings) -> None:
        self._preparation = Preparation(spec, reading)

    def decode(self, item: Item | Fault, texts: bool) -> Ready | Fault:
        """Read an item; `texts` says whether its caption will be embedded too."""
        if isinstance(item, Fault):
            return item
        try:
            content = item.load()
        except ClipflowError as error:
            return Fault(item.key, error.message)
        if not content.picture:
            return Fault(item.key, 'its picture is empty')
        metadata = storable(content.metadata) or {}
        said = metadata.get('caption') if content.caption is None else storable(content.caption)
        if isinstance(said, list) and said:
            metadata, said = {'captions': said} | metadata, said[0]
        caption = said.strip() if isinstance(said, str) else None
        picture, text = Document(id='picture', blob=content.picture), Document(id='caption', text=caption or '')
        for doc in (picture, text) if texts and caption else (picture,):
            self._preparation.prepare(doc, needs_content=True, trust_embedding=False, thumbnail=False, keep=False)
            if (reason := reason_of(doc)) is not None:
                return Fault(item.key, reason)
        return Ready(Row(item.key, caption or None, metadata), picture, text)


def storable(value: Any, depth: int = 0) -> Any:
    """Metadata that parquet files, and whoever reads them, can hold; what is left of it is null.

    Left out are bytes, numbers that are not finite, empty objects, and what is nested too deeply; in texts the
    character NUL, and half letters.
    """
    if isinstance(value, str):
        return value.replace('\0', '').encode('utf-8', 'replace').decode('utf-8')
    if isinstance(value, bytes) or (isinstance(value, float) and not math.isfinite(value)) or depth > _DEEPEST:
        return None
    if isinstance(value, dict):
        return {storable(str(name)): storable(held, depth + 1) for name, held in value.items()} or None
    return [storable(held, depth + 1) for held in value] if isinstance(value, list) else value


def reason_of(doc: Document) -> str | None:
    """Why a Document has failed, if it has."""
    error = wire.error_of(doc)
    return None if error is None else error.message.removeprefix(f'{doc.id!r}: ')
