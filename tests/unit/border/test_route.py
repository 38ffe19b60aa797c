"""The way through the stages, with real gRPC servers as stages."""

import asyncio
import json
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from docarray import Document, DocumentArray
from jina.proto import jina_pb2
from jina.types.request.data import DataRequest

from clipflow.border.route import Route
from clipflow.border.stage import CHANNEL_OPTIONS
from clipflow.errors import InvalidParameter, Timeout, Unavailable
from local_service import held_port
from service import free_port

Answer = Callable[[jina_pb2.DataRequestProto], Awaitable[None]]


@asynccontextmanager
async def stage(name: str, answer: Answer | None = None, port: int = 0) -> AsyncIterator[str]:
    """A stage that adds its name to the text of every Document; its address."""

    async def process(data: bytes, context: Any) -> bytes:
        message = jina_pb2.DataRequestProto.FromString(data)
        for doc in message.data.docs.docs:
            doc.text += name
        if answer is not None:
            await answer(message)
        return bytes(message.SerializeToString())

    server = grpc.aio.server()
    handlers = {'process_single_data': grpc.unary_unary_rpc_method_handler(process)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler('jina.JinaSingleDataRequestRPC', handlers),))
    bound = server.add_insecure_port(f'127.0.0.1:{port}')
    await server.start()
    try:
        yield f'127.0.0.1:{bound}'
    finally:
        await server.stop(None)


def request(target: str = '') -> DataRequest:
    made = DataRequest()
    made.header.exec_endpoint = '/x'
    made.header.target_executor = target
    made.data.docs = DocumentArray([Document(text='')])
    return made


async def fails(message: jina_pb2.DataRequestProto) -> None:
    message.header.status.code = jina_pb2.StatusProto.ERROR
    message.header.status.description = 'invalid-parameter: no'


async def takes_long(message: jina_pb2.DataRequestProto) -> None:
    await asyncio.sleep(30)


def soon() -> float:
    return time.time() + 10


async def through(*stages: tuple[str, list[str]], target: str = '', deadline: float | None = None) -> DataRequest:
    route = Route([(name, [addresses]) for name, addresses in stages])
    try:
        return await route.send(request(target), deadline or soon())
    finally:
        await route.close()


def test_a_request_passes_the_stages_in_their_order_and_says_when() -> None:
    async def run() -> DataRequest:
        async with stage('a') as one, stage('b') as two, stage('c') as three:
            return await through(('a', [one]), ('b', [two]), ('c', [three]))

    reply = asyncio.run(run())
    assert reply.docs[0].text == 'abc'
    assert [route.executor for route in reply.routes] == ['gateway', 'a', 'b', 'c']
    times = [(r.start_time.ToNanoseconds(), r.end_time.ToNanoseconds()) for r in reply.routes]
    assert times[0][0] <= times[1][0] <= times[1][1] <= times[2][0] <= times[3][1] <= times[0][1]


def test_behind_a_stage_that_fails_nobody_is_asked() -> None:
    async def run() -> DataRequest:
        async with stage('a') as one, stage('b', fails) as two, stage('c') as three:
            return await through(('a', [one]), ('b', [two]), ('c', [three]))

    reply = asyncio.run(run())
    assert (reply.status.code, reply.status.description) == (1, 'invalid-parameter: no')
    assert reply.docs[0].text == 'ab'


@pytest.mark.parametrize(('target', 'passed'), [('b', 'b'), ('a|c', 'ac'), ('nobody', ''), ('', 'abc')])
def test_only_the_stages_that_a_request_is_for_get_it(target: str, passed: str) -> None:
    async def run() -> DataRequest:
        async with stage('a') as one, stage('b') as two, stage('c') as three:
            return await through(('a', [one]), ('b', [two]), ('c', [three]), target=target)

    assert asyncio.run(run()).docs[0].text == passed


def test_a_target_that_is_no_expression_is_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"target_executor '\('"):
        asyncio.run(through(('a', ['127.0.0.1:1']), target='('))


def test_an_address_may_be_a_name_for_the_resolver() -> None:
    async def run() -> str:
        async with stage('a') as one:
            return str((await through(('a', [f'dns:///localhost:{one.rpartition(":")[2]}']))).docs[0].text)

    assert asyncio.run(run()) == 'a'


def test_replicas_take_turns() -> None:
    async def run() -> list[str]:
        async with stage('1') as one, stage('2') as two:
            route = Route([('a', [[one, two]])])
            seen, until = set[str](), time.monotonic() + 60
            # The first calls find out who is there; from then on it is one after the other.
            while len(seen) < 2 and time.monotonic() < until:
                seen.add((await route.send(request(), soon())).docs[0].text)
            replies = [(await route.send(request(), soon())).docs[0].text for _ in range(4)]
            await route.close()
            return replies

    assert sorted(asyncio.run(run())) == ['1', '1', '2', '2']


def test_a_replica_that_is_away_is_passed_over_and_used_again_when_it_is_back() -> None:
    async def run() -> tuple[list[str], list[str]]:
        held = held_port()
        port = int(held.getsockname()[1])
        async with stage('1') as one:
            route = Route([('a', [[one, f'127.0.0.1:{port}']])])
            while True:
                try:
                    await route.send(request(), soon())
                    break
                except Unavailable:
                    pass
            alone = [(await route.send(request(), soon())).docs[0].text for _ in range(6)]
            async with stage('2', port=port):
                until = time.monotonic() + 60
                both: list[str] = []
                while '2' not in both and time.monotonic() < until:
                    both.append((await route.send(request(), soon())).docs[0].text)
                    await asyncio.sleep(0.01)
            await route.close()
            held.close()
            return alone, both

    alone, both = asyncio.run(run())
    assert set(alone) == {'1'}
    assert '2' in both


def test_a_stage_that_is_away_is_named() -> None:
    with pytest.raises(Unavailable, match='the encoder cannot be reached'):
        asyncio.run(through(('encoder', [f'127.0.0.1:{free_port()}'])))


def test_a_stage_is_given_until_the_deadline_and_then_named() -> None:
    async def run() -> None:
        async with stage('a', takes_long) as one:
            await through(('encoder', [one]), deadline=time.time() + 0.3)

    begun = time.monotonic()
    with pytest.raises(Timeout, match='the encoder did not answer in time'):
        asyncio.run(run())
    assert time.monotonic() - begun < 20


def arguments(graph: dict[str, list[str]], timeout: int | None = None) -> Namespace:
    addresses = {name: {'GRPC': ['127.0.0.1:1']} for name in graph}
    return Namespace(
        graph_description=json.dumps(graph), deployments_addresses=json.dumps(addresses), timeout_send=timeout
    )


@pytest.mark.parametrize(
    'graph',
    [
        {'start-gateway': ['a', 'b'], 'a': ['end-gateway'], 'b': ['end-gateway']},
        {'start-gateway': ['a'], 'a': ['b', 'c'], 'b': ['end-gateway'], 'c': ['end-gateway']},
        {'start-gateway': ['a'], 'a': ['b'], 'b': ['a']},
    ],
)
def test_a_flow_that_is_no_chain_is_refused(graph: dict[str, list[str]]) -> None:
    async def run() -> None:
        Route.of(arguments(graph))

    with pytest.raises(InvalidParameter, match='chain'):
        asyncio.run(run())


def test_the_order_is_that_of_the_graph_whatever_the_order_of_its_description() -> None:
    async def run() -> list[str]:
        route = Route.of(arguments({'b': ['end-gateway'], 'a': ['b'], 'start-gateway': ['a']}, timeout=500))
        return [part.name for part in route._way._stages]

    assert asyncio.run(run()) == ['a', 'b']


def test_nothing_pings_a_stage_without_calls() -> None:
    assert CHANNEL_OPTIONS['grpc.keepalive_permit_without_calls'] == 0


def test_a_route_that_is_replaced_lets_its_requests_end_where_they_began() -> None:
    async def run() -> tuple[str, str]:
        inside, go = asyncio.Event(), asyncio.Event()

        async def waits(message: jina_pb2.DataRequestProto) -> None:
            inside.set()
            await go.wait()

        async with stage('a', waits) as one, stage('b') as two, stage('c') as three:
            route = Route([('a', [[one]]), ('b', [[two]])])
            early = asyncio.create_task(route.send(request(), soon()))
            await inside.wait()
            graph = json.dumps({'start-gateway': ['c'], 'c': ['end-gateway']})
            replaced = asyncio.create_task(route.replace(graph, json.dumps({'c': {'GRPC': [three]}})))
            await asyncio.sleep(0)
            late = await route.send(request(), soon())
            assert not replaced.done()
            go.set()
            await replaced
            await route.close()
            return (await early).docs[0].text, late.docs[0].text

    assert asyncio.run(run()) == ('ab', 'c')
