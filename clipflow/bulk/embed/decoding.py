"""Items to what the model takes: read, decoded, and brought to its size."""

from dataclasses import dataclass
from typing import Any

from docarray import Document

from clipflow import wire
from clipflow.bulk.embed.items import Fault, Item
from clipflow.errors import ClipflowError
from clipflow.preparation import Preparation
from clipflow.settings import PreprocessorSettings
from clipflow.weights import ModelSpec


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
        caption = content.caption
        if caption is None and isinstance(said := content.metadata.get('caption'), str):
            # JSON can hold half letters, of which no text can be made.
            caption = said.encode('utf-8', 'replace').decode('utf-8')
        picture, text = Document(id='picture', blob=content.picture), Document(id='caption', text=caption or '')
        for doc in (picture, text) if texts and caption else (picture,):
            self._preparation.prepare(doc, needs_content=True, trust_embedding=False, thumbnail=False, keep=False)
            if (reason := reason_of(doc)) is not None:
                return Fault(item.key, reason)
        return Ready(Row(item.key, caption or None, content.metadata), picture, text)


def reason_of(doc: Document) -> str | None:
    """Why a Document has failed, if it has."""
    error = wire.error_of(doc)
    return None if error is None else error.message.removeprefix(f'{doc.id!r}: ')
