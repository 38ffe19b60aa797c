"""A stage in several shards, with real gRPC servers: a search does not wait for one that hangs."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from docarray import Document, DocumentArray
from jina.proto.jina_pb2 import DataRequestProto
from jina.types.request.data import DataRequest

from clipflow import wire
from clipflow.border.shards import Shards
from clipflow.border.stage import Stage
from clipflow.errors import Timeout, Unavailable

PATIENCE = 0.3


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
async def sharded(count: int = 3) -> AsyncIterator[tuple[Shards, list[Shard]]]:
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
        together = Shards('indexer', stages, PATIENCE)
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
        async with sharded() as (together, _):
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
            assert PATIENCE <= spent < 5
            # While its call is open, nobody waits for it, and nobody asks it.
            for _ in range(5):
                assert names(await ask(together)) == ['0', '2']
            assert (shards[0].asked, shards[1].asked) == (6, 1)
            shards[1].free.set()
            deadline = time.monotonic() + 5
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
            await asyncio.wait([asked], timeout=3 * PATIENCE)
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
            await asyncio.wait([asked], timeout=3 * PATIENCE)
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
            await asyncio.wait([asked], timeout=3 * PATIENCE)
            assert not asked.done()
            shards[1].free.set()
            await asked
            return [shard.asked for shard in shards]

    assert asyncio.run(run()) == [1, 1, 1]
