"""Thousands of requests leave the memory of every process as it was: nothing that a request brings is kept."""

import asyncio
import io
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from docarray import Document, DocumentArray
from PIL import Image

from clipflow_client import AsyncClient
from service import Service

ALL = int(os.environ.get('REQUESTS', '4000'))
"""`make memory` takes ten thousand."""
FIRST = 1_000
"""Until then connections, threads, caches and the runtime's memory may grow to their size."""
AT_ONCE = 32
CACHED_TEXTS = 100
PICTURE_EVERY = 10
LONG_TEXT_EVERY = 100
"""Texts that run together become as long as the longest of them: with a long one now and then batches of every shape
come about, and a runtime must not keep something for each."""
BYTES_PER_REQUEST = 1_500
"""An embedding of clip-mini has 1,536 bytes, a Document with it twice as many, a prepared picture 150,000: what is kept
of every request shows. The rest is left to an allocator that does not give back at once."""
WORDS = ['a', 'the', 'red', 'old', 'small', 'cat', 'dog', 'river', 'snow', 'house', 'on', 'in', 'beside', 'motorcycle']


@pytest.fixture
def service(tmp_path: Path, export_cache: Path) -> Iterator[Service]:
    with Service(tmp_path, {'TEXT_CACHE': str(CACHED_TEXTS), 'CACHE': str(export_cache)}) as running:
        yield running


@pytest.fixture(scope='module')
def pictures(photographs: Path) -> list[bytes]:
    """Small JPEGs of different sizes, parts of a photograph."""
    whole = Image.open(photographs / 'rocket.jpg')
    found = []
    for width in range(90, 290, 10):
        out = io.BytesIO()
        whole.crop((width, 0, 2 * width, 200)).save(out, 'JPEG')
        found.append(out.getvalue())
    return found


def document(number: int, pictures: list[bytes]) -> Document:
    """A picture, or a text that no other request has."""
    if number % PICTURE_EVERY == 0:
        return Document(id=str(number), blob=pictures[number // PICTURE_EVERY % len(pictures)])
    chance = random.Random(number)
    words = chance.randint(9, 45) if number % LONG_TEXT_EVERY == 1 else chance.randint(1, 3)
    return Document(id=str(number), text=' '.join([*chance.choices(WORDS, k=words), str(number)]))


def warm_up(service: Service, pictures: list[bytes]) -> None:
    """Batches of some sizes and lengths, alone: then a runtime has what it keeps for a bounded number of shapes."""
    for count in range(1, 13):  # only each tenth request is a picture: more than that never wait together
        service.post('/encode', [Document(blob=blob) for blob in pictures[:count]])
    chance = random.Random(0)
    for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
        for words in (2, 5, 9, 13, 17, 21, 25, 29, 40, 47):
            texts = (' '.join(chance.choices(WORDS, k=words)) for _ in range(count))
            service.post('/encode', [Document(text=text) for text in texts])


def encode(service: Service, numbers: range, pictures: list[bytes]) -> None:
    """One request for each number, so many at once; each is answered with an embedding."""
    left = iter(numbers)

    async def requests(client: AsyncClient) -> None:
        for number in left:
            (doc,) = await client.post('/encode', DocumentArray([document(number, pictures)]))
            assert (doc.id, doc.embedding is None, dict(doc.tags)) == (str(number), False, {})

    async def everything() -> None:
        async with AsyncClient(service.grpc) as client:
            await asyncio.gather(*(requests(client) for _ in range(AT_ONCE)))

    asyncio.run(everything())


def memory(service: Service) -> dict[str, int]:
    """Bytes of its own, files not counted, that each process of the service holds."""
    stages = {pid: stage for stage, pid in service.pids.items()}
    found = {}
    for pid in service.processes():
        lines = Path(f'/proc/{pid}/smaps_rollup').read_text(encoding='ascii').splitlines()[1:]
        kilobytes = {name: int(value.split()[0]) for name, value in (line.split(':') for line in lines)}
        name = stages.get(pid, 'launcher' if pid == service.process.pid else 'helper')
        found[f'{name} {pid}'] = 1024 * (kilobytes['Anonymous'] + kilobytes['Swap'])
    return found


@pytest.mark.alone
def test_thousands_of_requests_leave_memory_constant(service: Service, pictures: list[bytes]) -> None:
    warm_up(service, pictures)
    encode(service, range(FIRST), pictures)
    before = memory(service)
    assert len(before) > len(service.pids)
    encode(service, range(FIRST, ALL), pictures)
    after = memory(service)
    assert set(after) == set(before), 'a process was started again'
    grown = {name: after[name] - before[name] for name in before}
    assert max(grown.values()) < BYTES_PER_REQUEST * (ALL - FIRST), grown
    status = {doc.id: doc.tags for doc in service.post('/status')}['encoder']
    # The cache was full all the time, and has forgotten nearly all texts.
    assert status['cached_texts'] == CACHED_TEXTS
    assert status['cache_misses'] >= ALL - ALL // PICTURE_EVERY
