"""Documents to protobuf messages and back, as DocArray 0.21 does it, in half of its time.

Every request is read and written in every process that looks into it, and DocArray spends most of that in generic
code: attributes set one after the other, tags by way of rules for JSON, a media type guessed for each URI. What comes
out is the same; `tests/unit/border/test_protobuf.py` compares both.
"""

import math
import mimetypes
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import docarray.proto.io
from docarray import Document, DocumentArray
from docarray.array.chunk import ChunkArray
from docarray.array.match import MatchArray
from docarray.document.data import DocumentData
from docarray.proto.docarray_pb2 import DocumentArrayProto, DocumentProto
from docarray.proto.io.ndarray import flush_ndarray
from docarray.score import NamedScore
from docarray.score.data import NamedScoreData

_PLAIN = ('parent_id', 'granularity', 'adjacency', 'blob', 'mime_type', 'text', 'weight', 'uri', 'offset', 'modality')
_SCORE = ('value', 'op_name', 'description', 'ref_id')
_KNOWN_TYPES = frozenset(mimetypes.types_map.values())


def read(message: Any) -> Document:
    """A Document of a `DocumentProto`.

    Raises:
        ValueError: a number in its tags is not finite, or what NumPy says of an array.
        RecursionError: it is nested too deeply.
    """
    fields: dict[str, Any] = {}
    inner = {}
    for field, value in message.ListFields():
        name = field.name
        if name in ('chunks', 'matches'):
            inner[name] = [read(one) for one in value]
        elif name in ('tags', '_metadata'):
            fields[name] = _object(value)
        elif name in ('tensor', 'embedding'):
            fields[name] = docarray.proto.io.read_ndarray(value)
        elif name in ('scores', 'evaluations'):
            fields[name] = defaultdict(NamedScore, {key: _score(one) for key, one in value.items()})
        elif name == 'location':
            fields[name] = list(value)
        else:
            fields[name] = value
    uri, kind = fields.get('uri'), fields.get('mime_type')
    if kind is None:
        if uri is not None and (guessed := mimetypes.guess_type(uri)[0]):
            fields['mime_type'] = guessed
    elif kind not in _KNOWN_TYPES:
        fields['mime_type'] = mimetypes.guess_type(f'*.{kind}')[0] or kind
    doc: Document = Document.__new__(Document)
    doc.__dict__['_data'] = DocumentData(doc, **fields)
    if 'chunks' in inner:
        doc._data.chunks = ChunkArray(inner['chunks'], reference_doc=doc)
    if 'matches' in inner:
        doc._data.matches = MatchArray(inner['matches'], reference_doc=doc)
    return doc


def write(doc: Document, message: Any, array_type: str | None = None) -> Any:
    """Put a Document into an empty `DocumentProto`, which is returned; `array_type` is Jina's `output_array_type`.

    Raises:
        TypeError, ValueError: protobuf cannot hold what the Document does.
    """
    data = doc._data
    message.id = doc.id
    for name in _PLAIN:
        if value := getattr(data, name):
            setattr(message, name, value)
    for name in ('tags', '_metadata'):
        if value := getattr(data, name):
            getattr(message, name).update(value)
    for name in ('tensor', 'embedding'):
        value = getattr(data, name)
        if value is not None:
            flush_ndarray(getattr(message, name), value, array_type)
    for name in ('chunks', 'matches'):
        for one in getattr(data, name) or ():
            write(one, getattr(message, name).add(), array_type)
    for name in ('scores', 'evaluations'):
        _write_scores(getattr(data, name) or {}, getattr(message, name))
    if data.location:
        message.location.extend(data.location)
    return message


def install() -> None:
    """Replace DocArray's own way in this process."""

    def written(doc: Document, ndarray_type: str | None = None) -> Any:
        return write(doc, DocumentProto(), ndarray_type)

    def all_written(docs: DocumentArray, ndarray_type: str | None = None) -> Any:
        message = DocumentArrayProto()
        for doc in docs:
            write(doc, message.docs.add(), ndarray_type)
        return message

    Document.from_protobuf = staticmethod(read)
    Document.to_protobuf = written
    DocumentArray.to_protobuf = all_written


def _write_scores(scores: Mapping[str, NamedScore], messages: Any) -> None:
    for key, score in scores.items():
        for part in _SCORE:
            if (value := getattr(score._data, part)) is not None:
                setattr(messages[key], part, value)


def _score(message: Any) -> NamedScore:
    score: NamedScore = NamedScore.__new__(NamedScore)
    score._data = NamedScoreData(score, **{field.name: value for field, value in message.ListFields()})
    return score


def _object(struct: Any) -> dict[str, Any]:
    return {name: _value(value) for name, value in struct.fields.items()}


def _value(value: Any) -> Any:
    kind = value.WhichOneof('kind')
    if kind == 'number_value':
        number: float = value.number_value
        if not math.isfinite(number):
            raise ValueError(f'{number} is not finite')
        return number
    if kind == 'struct_value':
        return _object(value.struct_value)
    if kind == 'list_value':
        return [_value(item) for item in value.list_value.values]
    return None if kind in (None, 'null_value') else getattr(value, kind)
