"""Documents for an encoder that is not ours, clip-as-service's CLIPEncoder, and back.

It encodes whatever has content, prepares pictures itself, reads any URI, and lets one bad picture fail a request. So it
gets only what was checked: everything else of a Document waits in its tags, where the encoder does not look.
"""

import io

from docarray import Document
from PIL import Image

from clipflow import wire
from clipflow.errors import Internal, InvalidDocument
from clipflow.pictures import Filled
from clipflow.preparation import Preparation
from clipflow.vectors import unit_vector

STAGE = 'encoder'
_ASIDE = '__aside__'
PROBE = 'a photo'
"""Text of the document that `/status` sends through the foreign encoder."""


class PassThrough(Preparation):
    """Checks Documents as `Preparation` does, and leaves pictures as they came."""

    def prepare(
        self, doc: Document, *, needs_content: bool, trust_embedding: bool, thumbnail: bool, keep: bool
    ) -> None:
        """See `Preparation`."""
        super().prepare(
            doc, needs_content=needs_content, trust_embedding=trust_embedding, thumbnail=thumbnail, keep=keep
        )
        if wire.failed(doc) or doc.embedding is not None:
            doc.tags[_ASIDE] = {'text': doc.text or '', 'uri': doc.uri or ''}
            doc.pop('text', 'uri')

    def _put(self, doc: Document, image: Image.Image, filled: Filled, encoded: bytes | None) -> None:
        if encoded is None:
            buffer = io.BytesIO()
            image.save(buffer, 'PNG', compress_level=1)
            encoded = buffer.getvalue()
        doc.blob = encoded

    def _prepare_parts(self, doc: Document) -> None:
        raise InvalidDocument('clip-as-service encodes no queries of several parts; send them one by one')


def adopt(doc: Document, fingerprint: str) -> None:
    """Turn a Document that came back from the foreign encoder into one that ours would have sent, in place.

    Args:
        doc: with an `embedding` of any length, or failed.
        fingerprint: of the model that made it.
    """
    empty = wire.is_empty(doc)
    restore(doc)
    if wire.failed(doc) or empty:
        return
    with wire.caught(doc, STAGE):
        if doc.embedding is None:
            raise Internal(f'{doc.id!r}: clip-as-service gave no embedding')
        doc.embedding = unit_vector(doc.embedding)
        doc.tags[wire.MODEL] = fingerprint


def restore(doc: Document) -> None:
    """Bring back what was put aside, and take out what only the foreign encoder needed."""
    doc.pop('blob')
    original = wire.detach(doc, wire.ORIGINAL)
    if original is not None:
        doc.content = original.content
    aside = doc.tags.pop(_ASIDE, None)
    if aside is not None:
        if aside['text']:
            doc.text = aside['text']
        doc.uri = aside['uri']
