"""Messages from outside: nothing in them is run, and what cannot be read fails alone."""

import subprocess
import sys

import numpy as np
import pytest
from docarray import Document, DocumentArray
from jina.proto import jina_pb2

WITHOUT_TORCH = """
import sys
from clipflow.border import messages
from jina.types.request.data import DataRequest
messages.install()
doc = DataRequest(sys.stdin.buffer.read()).docs[0]
print(type(doc.embedding).__name__, doc.embedding.tolist(), 'torch' in sys.modules)
"""

READ = """
import sys
from clipflow.border import messages
from docarray import DocumentArray
from jina.types.request.data import DataRequest
messages.install()
docs = DataRequest(sys.stdin.buffer.read()).docs
for doc in messages.put_back(docs, docs, 'encoder'):
    print(doc.id, doc.tags.get('__error__', {}).get('code', 'sound'))
"""


def message(*docs: Document) -> jina_pb2.DataRequestProto:
    made = jina_pb2.DataRequestProto()
    made.header.request_id = 'r'
    made.data.docs.CopyFrom(DocumentArray(docs).to_protobuf())
    return made


def run(script: str, data: jina_pb2.DataRequestProto) -> str:
    """In a process of its own: `install` is for good."""
    command = [sys.executable, '-W', 'ignore', '-c', script]
    found = subprocess.run(command, input=data.SerializeToString(), capture_output=True, check=False)
    assert found.returncode == 0, found.stderr.decode()
    return found.stdout.decode().strip()


@pytest.mark.parametrize('library', ['numpy', 'torch', 'tensorflow', 'paddle', 'list', ''])
def test_an_array_is_read_as_numpy_whatever_library_wrote_it(library: str) -> None:
    sent = message(Document(embedding=np.array([1, 2], dtype=np.float32)))
    sent.data.docs.docs[0].embedding.cls_name = library
    assert run(WITHOUT_TORCH, sent) == 'ndarray [1.0, 2.0] False'


def test_documents_that_cannot_be_read_come_back_in_their_places_with_an_error() -> None:
    whole = Document(tensor=np.zeros((2, 2, 3), dtype=np.uint8))
    sent = message(
        Document(id='first', tags={'n': float('nan')}),
        Document(id='good', text='x'),
        Document(whole, id='half'),
        Document(whole, id='huge'),
        Document(whole, id='objects'),
        Document(whole, id='sparse'),
        Document(id='last', text='y'),
    )
    half, huge, objects, sparse = (sent.data.docs.docs[place].tensor for place in (2, 3, 4, 5))
    half.dense.buffer = half.dense.buffer[:5]
    huge.dense.buffer = b''
    huge.dense.shape[:] = [2**31, 2**31]
    objects.dense.dtype = '|O'
    sparse.sparse.shape.extend([2, 2])
    assert run(READ, sent).splitlines() == [
        'first invalid-document',
        'good sound',
        'half invalid-document',
        'huge invalid-document',
        'objects invalid-document',
        'sparse invalid-document',
        'last sound',
    ]
