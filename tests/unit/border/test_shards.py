"""A stage in several shards, with real gRPC servers: a search does not wait for one that hangs."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from docarray import Document, DocumentArray
from jina.proto.jina_pb2 import DataRequestProto, StatusProto
from jina.types.request.data import DataRequest

from clipflow import wire
from clipflow.border.route import Route
from clipflow.border.shards import Shards
from clipflow.border.stage import Stage
from clipflow.errors import ClipflowError, InvalidParameter, StorageFull, Timeout, Unavailable
from clipflow.sharding import shard_of

PATIENCE = 1.0
"""Seconds. A shard that answers must not lose them, however busy the machine is."""
LONGER = 1.5 * PATIENCE


class Shard:
    """Answers with its name as a match, while it is not told to hang."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.free = asyncio.Event()
        self.free.set()
        self.asked = 0

    async def process(self, data: bytes, context: Any) -> bytes:
        self.asked += 1
        await self.free.wait()
        message = DataRequestProto.FromString(data)
        for doc in message.data.docs.docs:
            doc.matches.add(id=self.name)
            doc.chunks.add(modality=wire.BACKGROUND, text=self.name)
            doc.chunks.add(modality='mine', text=self.name)
        return bytes(message.SerializeToString())


@asynccontextmanager
async def sharded(count: int = 3, patience: float = PATIENCE) -> AsyncIterator[tuple[Shards, list[Shard]]]:
    shards = [Shard(str(number)) for number in range(count)]
    async with AsyncExitStack() as stack:
        stages = []
        for shard in shards:
            server = grpc.aio.server()
            handler = grpc.unary_unary_rpc_method_handler(shard.process)
            service = 'jina.JinaSingleDataRequestRPC'
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, {'process_single_data': handler}),)
            )
            port = server.add_insecure_port('127.0.0.1:0')
            await server.start()
            stack.push_async_callback(server.stop, None)
            stages.append(Stage(shard.name, [f'127.0.0.1:{port}'], None))
        together = Shards('indexer', stages, patience)
        stack.push_async_callback(together.close)
        yield together, shards


async def ask(shards: Shards, endpoint: str = '/search', seconds: float = 20.0) -> Any:
    made = DataRequest()
    made.header.exec_endpoint = endpoint
    made.data.docs = DocumentArray([Document(id='q')])
    reply = await shards.send(made.to_bytes(), time.time() + seconds)
    return DataRequestProto.FromString(reply).data.docs.docs[0]


def names(doc: Any) -> list[str]:
    return [match.id for match in doc.matches]


def test_all_matches_and_all_samples_come_together() -> None:
    async def run() -> Any:
        async with sharded(patience=20.0) as (together, _):  # the first calls make the connections
            return await ask(together)

    doc = asyncio.run(run())
    assert names(doc) == ['0', '1', '2']
    assert [chunk.text for chunk in doc.chunks if chunk.modality == wire.BACKGROUND] == ['0', '1', '2']
    assert [chunk.text for chunk in doc.chunks if chunk.modality == 'mine'] == ['0']
    assert wire.PARTIAL not in doc.tags


def test_a_search_gives_up_a_shard_that_hangs_and_finds_it_again() -> None:
    async def run() -> None:
        async with sharded() as (together, shards):
            shards[1].free.clear()
            begun = time.monotonic()
            doc = await ask(together)
            spent = time.monotonic() - begun
            assert names(doc) == ['0', '2']
            assert doc.tags[wire.PARTIAL] is True
            assert PATIENCE <= spent < 15
            # While its call is open, nobody waits for it, and nobody asks it.
            for _ in range(5):
                assert names(await ask(together)) == ['0', '2']
            assert (shards[0].asked, shards[1].asked) == (6, 1)
            shards[1].free.set()
            deadline = time.monotonic() + 60
            while len(names(doc := await ask(together))) < 3:
                assert time.monotonic() < deadline
            assert wire.PARTIAL not in doc.tags

    asyncio.run(run())


def test_a_search_that_takes_long_everywhere_is_waited_for() -> None:
    async def run() -> Any:
        async with sharded() as (together, shards):
            for shard in shards:
                shard.free.clear()
            asked = asyncio.create_task(ask(together))
            await asyncio.wait([asked], timeout=LONGER)
            assert not asked.done()
            for shard in shards:
                shard.free.set()
            return await asked

    assert names(asyncio.run(run())) == ['0', '1', '2']


def test_an_error_is_no_answer_that_would_make_others_late() -> None:
    async def run() -> Any:
        async with sharded() as (together, shards):
            await together._members[0].close()
            together._members = [Stage('0', ['127.0.0.1:1'], None), *together._members[1:]]
            for shard in shards:
                shard.free.clear()
            asked = asyncio.create_task(ask(together))
            await asyncio.wait([asked], timeout=LONGER)
            assert not asked.done()
            for shard in shards:
                shard.free.set()
            return await asked

    doc = asyncio.run(run())
    assert names(doc) == ['1', '2']
    assert doc.tags[wire.PARTIAL] is True


def test_when_all_hang_or_are_away_the_search_fails() -> None:
    async def hang() -> None:
        async with sharded() as (together, shards):
            for shard in shards:
                shard.free.clear()
            await ask(together, seconds=0.5)

    async def away() -> None:
        together = Shards('indexer', [Stage(str(n), ['127.0.0.1:1'], None) for n in range(2)], PATIENCE)
        try:
            await ask(together)
        finally:
            await together.close()

    with pytest.raises(Timeout):
        asyncio.run(hang())
    with pytest.raises(Unavailable):
        asyncio.run(away())


def test_a_search_that_is_given_up_leaves_no_call_behind() -> None:
    async def run() -> None:
        async with sharded() as (together, shards):
            for shard in shards:
                shard.free.clear()
            asked = asyncio.create_task(ask(together))
            while not all(shard.asked for shard in shards):
                await asyncio.sleep(0.01)
            before = asyncio.all_tasks()
            asked.cancel()
            await asyncio.wait([asked])
            await asyncio.sleep(0)
            assert not any('Stage.send' in repr(task) for task in asyncio.all_tasks() & before if not task.done())

    asyncio.run(run())


def test_a_write_waits_for_every_shard() -> None:
    async def run() -> Any:
        async with sharded() as (together, shards):
            shards[1].free.clear()
            asked = asyncio.create_task(ask(together, '/index'))
            await asyncio.wait([asked], timeout=LONGER)
            assert not asked.done()
            shards[1].free.set()
            await asked
            return [shard.asked for shard in shards]

    assert asyncio.run(run()) == [1, 1, 1]


class Member(Stage):
    """A shard without a network: what it answers to each message, or the error that keeps it from answering."""

    def __init__(self, number: int, answers: Callable[[int, DataRequestProto], DataRequestProto | None]) -> None:
        self.name = f'indexer_{number}'
        self._number, self._answers = number, answers

    async def send(self, data: bytes, deadline: float, *, patient: bool = True) -> bytes:
        found = self._answers(self._number, DataRequestProto.FromString(data))
        if found is None:
            raise Unavailable(f'{self.name} is away')
        return bytes(found.SerializeToString())


def merged(
    endpoint: str,
    answers: Callable[[int, DataRequestProto], DataRequestProto | None],
    docs: Sequence[Document] = (),
    parameters: dict[str, Any] | None = None,
) -> DataRequest:
    """The answer of three such shards as one."""
    made = DataRequest()
    made.header.exec_endpoint, made.parameters = endpoint, parameters or {}
    made.data.docs = DocumentArray(docs)
    together = Shards('indexer', [Member(number, answers) for number in range(3)], PATIENCE)
    return DataRequest(asyncio.run(together.send(made.to_bytes(), time.time() + 20)))


def told(tags: dict[str, Any]) -> DataRequestProto:
    message = DataRequestProto()
    message.data.docs.docs.add().tags.update(tags)
    return message


def refused(message: DataRequestProto, error: ClipflowError) -> DataRequestProto:
    message.header.status.code = StatusProto.ERROR
    message.header.status.description = repr(error)
    del message.data.docs.docs[:]
    return message


DOCS = [Document(id=f'd{n}', text='x') for n in range(12)]


@pytest.mark.parametrize('endpoint', ['/index', '/update'])
def test_what_one_shard_refuses_is_said_of_its_documents_and_the_others_are_done(endpoint: str) -> None:
    full = StorageFull('no space')
    reply = merged(endpoint, lambda number, message: refused(message, full) if number == 1 else message, DOCS)
    assert reply.status.code != StatusProto.ERROR
    codes = {doc.id: doc.tags[wire.ERROR]['code'] if wire.ERROR in doc.tags else None for doc in reply.docs}
    assert codes == {doc.id: 'storage-full' if shard_of(doc.id, 3) == 1 else None for doc in DOCS}
    assert set(codes.values()) == {'storage-full', None}


@pytest.mark.parametrize(('endpoint', 'shards'), [('/index', {0, 1, 2}), ('/delete', {1}), ('/search', {1})])
def test_what_all_refuse_or_what_has_no_documents_of_its_own_fails_as_a_whole(endpoint: str, shards: set[int]) -> None:
    def answers(number: int, message: DataRequestProto) -> DataRequestProto:
        return refused(message, StorageFull('no space')) if number in shards else message

    reply = merged(endpoint, answers, DOCS)
    assert (reply.status.code, reply.status.description) == (StatusProto.ERROR, 'storage-full: no space')


def test_documents_by_key_are_all_told_or_the_shard_that_has_some_is_away() -> None:
    def answers(number: int, message: DataRequestProto) -> DataRequestProto | None:
        if number == 1:
            return None
        del message.data.docs.docs[:]
        for key in (int(key) for key in message.parameters['keys']):
            if key % 3 == number:
                message.data.docs.docs.add(id=f'd{key}')
        return message

    assert sorted(doc.id for doc in merged('/get', answers, (), {'keys': [0, 2, 3]}).docs) == ['d0', 'd2', 'd3']
    with pytest.raises(Unavailable, match='indexer_1'):
        merged('/get', answers, (), {'keys': [0, 4]})


def test_of_snapshots_the_sums_are_told_and_no_number_of_a_change_that_none_has() -> None:
    def answers(number: int, message: DataRequestProto) -> DataRequestProto:
        return told({'documents': 5, 'sequence': 10 + number, 'bytes': 100})

    assert merged('/snapshot', answers).docs[0].tags == {'documents': 15, 'bytes': 300}


@pytest.mark.parametrize('name', ['access_paths', 'traversal_paths'])
@pytest.mark.parametrize('endpoint', ['/index', '/search'])
def test_chunks_are_refused_by_several_shards_before_any_work(endpoint: str, name: str) -> None:
    def request(paths: str, path: str = endpoint) -> DataRequest:
        made = DataRequest()
        made.header.exec_endpoint, made.parameters = path, {name: paths}
        made.data.docs = DocumentArray(Document(id='q', chunks=[Document(id='c')]))
        return made

    async def run() -> None:
        async with sharded(patience=20.0) as (together, shards):
            route = Route([('a', [['127.0.0.1:1']])])
            route._way._stages.append(together)
            try:
                for paths in ('@c', '@r,c', '@m'):
                    with pytest.raises(InvalidParameter, match=f"several shards.*not '{paths}'"):
                        await route.send(request(paths), time.time() + 20)
                # The first stage is away, and would have been asked.
                for others in (request('@r'), request('@c', '/feedback')):
                    with pytest.raises(Unavailable, match='the a'):
                        await route.send(others, time.time() + 20)
                assert [shard.asked for shard in shards] == [0, 0, 0]
            finally:
                await route.close()

    asyncio.run(run())
