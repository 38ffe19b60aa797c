"""How a record becomes a row of the collection, and back."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from clipflow.errors import TooLarge
from clipflow.milvus.filters import literal
from clipflow.milvus.terms import terms_of, values_of
from clipflow.store.reading import Record

MOST_BYTES = 65_535
"""Of a text or of JSON in one field."""
MOST_TERMS = 4096
KEYS = 2**53
"""Numbers of documents are below it, so that a float holds them."""
_FIELDS = ('id', 'key', 'mark', 'text', 'uri', 'tags')


def key_of(identifier: str) -> int:
    """The number of a document: the same for one id always, and for two of them hardly ever."""
    return xxhash.xxh64_intdigest(identifier.encode('utf-8', 'surrogatepass')) % KEYS


def check(record: Record) -> None:
    """Raises TooLarge for what a row cannot hold."""
    tags = json.loads(record.tags)
    sizes = [
        ('text', record.text),
        ('URI', record.uri),
        ('tags', record.tags),
        ('tags', json.dumps(values_of(tags), ensure_ascii=False)),
    ]
    for name, value in [*sizes, ('thumbnail', _encoded(record.thumbnail))]:
        if len(value.encode('utf-8', 'surrogatepass')) > MOST_BYTES:
            raise TooLarge(f'{record.id[:40]!r}: its {name} has more than the {MOST_BYTES:,} bytes that Milvus keeps')
    if len(terms_of(tags)) > MOST_TERMS:
        raise TooLarge(f'{record.id[:40]!r}: it has too many tags; Milvus keeps {MOST_TERMS // 2:,}')


def row_of(record: Record, mark: str) -> dict[str, Any]:
    """A record as a row; `mark` says what its vector was made with."""
    return {
        'id': record.id,
        'key': key_of(record.id),
        'mark': mark,
        'text': record.text,
        'uri': record.uri,
        **tagged(record.tags),
        'thumbnail': _encoded(record.thumbnail),
        'vector': np.asarray(record.vector, dtype=np.float32).tolist(),
    }


def tagged(tags: str) -> dict[str, Any]:
    """The fields that come from the tags."""
    parsed = json.loads(tags)
    return {'tags': tags, 'terms': terms_of(parsed), 'values': values_of(parsed)}


def record_of(row: dict[str, Any]) -> Record:
    """The other way round."""
    vector, thumbnail = row.get('vector'), row.get('thumbnail')
    return Record(
        id=row['id'],
        text=row['text'],
        uri=row['uri'],
        tags=row['tags'],
        vector=None if vector is None else np.asarray(vector, dtype=np.float32),
        thumbnail=base64.b64decode(thumbnail) if thumbnail else None,
        key=int(row['key']),
    )


def fields(thumbnails: bool, vectors: bool) -> list[str]:
    """Those that a record is made of."""
    return [*_FIELDS, *(['thumbnail'] if thumbnails else []), *(['vector'] if vectors else [])]


def among(field: str, values: Sequence[Any]) -> str:
    """A condition: the field has one of these values."""
    return f'{field} in [{", ".join(literal(v) if isinstance(v, str) else str(v) for v in values)}]'


def size_of(row: dict[str, Any]) -> int:
    """About how many bytes it takes in a message."""
    return sum(
        len(value) * (1 if isinstance(value, str) else 8) for value in row.values() if not isinstance(value, int)
    )


def _encoded(thumbnail: bytes | None) -> str:
    # Milvus has no field for bytes.
    return base64.b64encode(thumbnail).decode() if thumbnail else ''
