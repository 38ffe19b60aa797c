"""The way of a request through the stages: one gRPC call after the other, the bytes of a reply are the next request.

Jina's own gateway copies its graph for every request and takes each message apart between the stages, which costs as
much as the calls themselves. Only chains are served, in which one stage may be several shards (`shards.py`).
"""

import asyncio
import json
import re
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from jina.proto import jina_pb2
from jina.types.request.data import DataRequest

from clipflow import wire
from clipflow.border.shards import Shards
from clipflow.border.stage import Stage
from clipflow.errors import InvalidParameter
from clipflow.flows import END, GATEWAY, START

_FIRST_FIELD = b'\n'
_PATIENCE = 5.0


class Route:
    """The stages in their order.

    Args:
        stages: the name of each, and for each of its shards (mostly one) the addresses of the replicas.
        timeout: seconds for one stage, beside the deadline of the request; None: no limit of its own.
        patience: seconds for which a search waits for the other shards once the first has answered.
    """

    def __init__(
        self,
        stages: Sequence[tuple[str, Sequence[Sequence[str]]]],
        timeout: float | None = None,
        patience: float = _PATIENCE,
    ) -> None:
        self._timeout = timeout
        self._patience = patience
        self._way = self._way_through(stages)

    @classmethod
    def of(cls, arguments: Namespace, patience: float = _PATIENCE) -> 'Route':
        """From what Jina tells a gateway of its Flow; `patience` as above.

        Raises:
            InvalidParameter: the Flow is no chain.
        """
        timeout = arguments.timeout_send / 1000 if getattr(arguments, 'timeout_send', None) else None
        return cls(_chain(arguments.graph_description, arguments.deployments_addresses), timeout, patience)

    async def replace(self, graph: str, addresses: str) -> None:
        """From now on requests go to other stages, each of them either the old way or the new one as a whole.

        Returns when no request is on the old way any more.

        Args:
            graph, addresses: JSON, as Jina tells a gateway of its Flow.
        """
        old = self._way
        self._way = self._way_through(_chain(graph, addresses))
        await old.emptied()
        await old.close()

    def _way_through(self, stages: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> '_Way':
        return _Way([_stage(name, parts, self._timeout, self._patience) for name, parts in stages])

    async def send(self, request: DataRequest, deadline: float) -> DataRequest:
        """Pass `request` through the stages; the reply of the last, or of the first that fails.

        Args:
            request: parsed as far as its header and parameters.
            deadline: seconds since the epoch.

        Raises:
            ClipflowError: a stage cannot be reached, does not answer in time, or cannot do this in several shards.
        """
        wanted = _wanted(request.header.target_executor)
        begun = time.time_ns()
        passed: list[tuple[str, int, int]] = []
        data = request.to_bytes()
        patient = request.header.exec_endpoint not in wire.ONCE
        with self._way as stages:
            asked = [stage for stage in stages if wanted is None or wanted.match(stage.name)]
            for stage in asked:
                if isinstance(stage, Shards):
                    stage.check(request)
            for stage in asked:
                started = time.time_ns()
                data = await stage.send(data, deadline, patient=patient)
                passed.append((stage.name, started, time.time_ns()))
                if _status(data) == jina_pb2.StatusProto.ERROR:
                    break
        reply = DataRequest(data)
        del reply.routes[:]
        for name, started, ended in ((GATEWAY, begun, time.time_ns()), *passed):
            route = reply.routes.add(executor=name)
            route.start_time.FromNanoseconds(started)
            route.end_time.FromNanoseconds(ended)
        return reply

    async def close(self) -> None:
        """Close the channels."""
        await self._way.close()


class _Way:
    """Stages in their order, and how many requests are on them."""

    def __init__(self, stages: list[Stage | Shards]) -> None:
        self._stages = stages
        self._inside = 0
        self._left = asyncio.Event()

    def __enter__(self) -> list[Stage | Shards]:
        self._inside += 1
        return self._stages

    def __exit__(self, *_: object) -> None:
        self._inside -= 1
        self._left.set()

    async def emptied(self) -> None:
        """Wait for the end of the requests that are on the way."""
        while self._inside:
            self._left.clear()
            await self._left.wait()

    async def close(self) -> None:
        """Close the channels."""
        for stage in self._stages:
            await stage.close()


def _chain(graph_json: str, addresses_json: str) -> list[tuple[str, list[list[str]]]]:
    graph: dict[str, list[str]] = json.loads(graph_json)
    addresses = json.loads(addresses_json)
    stages: list[tuple[str, list[list[str]]]] = []
    following = graph.get(START, [])
    while following and following != [END]:
        after = [graph.get(name, []) for name in following]
        name = _shared_name(following)
        if name is None or name in dict(stages) or any(other != after[0] for other in after):
            raise InvalidParameter(f'the gateway serves stages in a chain, but the Flow branches at {following}')
        stages.append((name, [_of_grpc(addresses[member]) for member in following]))
        following = after[0]
    return stages


def _stage(name: str, shards: Sequence[Sequence[str]], timeout: float | None, patience: float) -> Stage | Shards:
    if len(shards) == 1:
        return Stage(name, shards[0], timeout)
    members = [Stage(f'{name}_{number}', addresses, timeout) for number, addresses in enumerate(shards)]
    return Shards(name, members, patience)


def _shared_name(members: list[str]) -> str | None:
    """The name of a stage that is alone, or of shards `name_0`, `name_1`, ...; None if they are no such."""
    if len(members) == 1:
        return members[0]
    name = members[0].removesuffix('_0')
    return name if members == [f'{name}_{number}' for number in range(len(members))] else None


def _of_grpc(addresses: Any) -> list[str]:
    found: list[str] = addresses.get('GRPC', []) if isinstance(addresses, dict) else addresses
    return found


def _wanted(pattern: str) -> re.Pattern[str] | None:
    """The stages that a request is for; None: all."""
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise InvalidParameter(f'target_executor {pattern!r} is not a regular expression: {error}') from None


def _status(data: bytes) -> int:
    """The status code of a message, without reading its documents: the header is its first field."""
    if data[:1] != _FIRST_FIELD:
        return int(DataRequest(data).header.status.code)
    size, position, shift = 0, 1, 0
    while True:
        byte = data[position]
        size |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            break
    return int(jina_pb2.HeaderProto.FromString(data[position : position + size]).status.code)
