"""Between Documents on the wire and records in the store."""

import json
from collections.abc import Collection

import numpy as np
from docarray import Document

from clipflow import wire
from clipflow.store.reading import Record
from clipflow.tags import tags_json


def record_of(doc: Document) -> Record:
    """What is stored of an encoded Document; takes its thumbnail out.

    Raises:
        InvalidDocument: its tags are not a JSON object.
    """
    thumbnail = wire.detach(doc, wire.THUMBNAIL)
    return Record(
        id=doc.id,
        text=doc.text or '',
        uri=doc.uri or '',
        tags=tags_json(doc),
        vector=np.asarray(doc.embedding, dtype=np.float32),
        thumbnail=thumbnail.blob if thumbnail is not None else None,
    )


def document_of(record: Record, include: Collection[str]) -> Document:
    """A stored document as it is sent; `include` names what comes with it beside id and text."""
    doc = Document(id=record.id)
    if record.text:
        doc.text = record.text
    if 'thumbnail' in include and record.thumbnail:
        doc.blob = record.thumbnail
        doc.mime_type = 'image/webp'
    if 'uri' in include and record.uri:
        doc.uri = record.uri
    if 'tags' in include:
        doc.tags = json.loads(record.tags)
    if 'embedding' in include and record.vector is not None:
        doc.embedding = record.vector
    return doc
