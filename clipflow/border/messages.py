"""How messages are read and written in every process of a Flow, where Jina's and DocArray's own way would not do.

- Jina also takes documents as a pickle (`docs_bytes`), which would run whatever a client has put into it.
- One document that cannot be read (NaN in its tags, half an array) would fail the whole request.
- DocArray reads an array with the library that wrote it, so a client could make every stage load PyTorch.
- Jina counts the bytes of all messages in environment variables, for the progress bar of its client. Each change takes
  memory that the C library never gives back.
"""

from typing import Any

import docarray.proto.io
import numpy as np
from docarray import Document, DocumentArray
from jina.proto.serializer import DataRequestProto
from jina.types.request.data import DataRequest
from numpy.typing import NDArray

from clipflow import wire
from clipflow.border import protobuf
from clipflow.errors import InvalidDocument

_UNREADABLE = '_clipflow_unreadable'


def install() -> None:
    """Replace how this process reads and writes messages."""
    DataRequestProto.SerializeToString = staticmethod(_written)
    DataRequestProto.FromString = staticmethod(DataRequest)
    content = DataRequest._DataContent
    content.docs = content.docs.getter(_docs)
    docarray.proto.io.read_ndarray = _array
    protobuf.install()


def put_back(docs: DocumentArray, reply: DocumentArray, stage: str) -> DocumentArray:
    """Put the documents of a request that could not be read into its reply, in their places, with their errors.

    Args:
        docs: of the request, as Jina has read them.
        reply: to the others.
        stage: which stage has found out.
    """
    unreadable: list[tuple[int, Document]] = getattr(docs, _UNREADABLE, [])
    if not unreadable:
        return reply
    found = list(reply)
    for position, doc in unreadable:
        sentence = f'{doc.id!r}: it cannot be read (NaN in its tags, a damaged array, nested too deeply?)'
        wire.fail(doc, InvalidDocument(sentence), stage)
        found.insert(position, doc)
    return DocumentArray(found)


def _written(request: DataRequest) -> bytes:
    data: bytes = request.proto.SerializePartialToString() if request.is_decompressed else request.buffer
    return data


def _docs(content: Any) -> DocumentArray:
    """The documents of a message, without those that cannot be read; they wait for `put_back`."""
    if content._loaded_doc_array is None:
        if content._content.WhichOneof('documents') == 'docs_bytes':
            raise InvalidDocument('documents come one by one as protobuf, not as one block of bytes')
        docs, unreadable = [], []
        for position, message in enumerate(content._content.docs.docs):
            try:
                docs.append(Document.from_protobuf(message))
            except Exception:  # DocArray raises whatever protobuf and NumPy raise
                unreadable.append((position, Document(id=message.id) if message.id else Document()))
        content._loaded_doc_array = DocumentArray(docs)
        if unreadable:
            setattr(content._loaded_doc_array, _UNREADABLE, unreadable)
    found: DocumentArray = content._loaded_doc_array
    return found


def _array(message: Any) -> NDArray[Any]:
    """An array as NumPy, whatever library wrote it; read-only."""
    if message.WhichOneof('content') != 'dense':
        raise InvalidDocument('sparse arrays are not read')
    dense = message.dense
    array: NDArray[Any] = np.frombuffer(dense.buffer, dtype=dense.dtype or None).reshape(dense.shape)
    return array
