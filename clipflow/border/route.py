"""The way of a request through the stages: one gRPC call after the other, the bytes of a reply are the next request.

Jina's own gateway copies its graph for every request and takes each message apart between the stages, which costs as
much as the calls themselves. Only chains are served; everything that clipflow promises is one.
"""

import json
import re
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import grpc
from jina.proto import jina_pb2
from jina.types.request.data import DataRequest

from clipflow.errors import ClipflowError, InvalidParameter, NotReady, Timeout, TooLarge, Unavailable

# Jina's own options ping an idle stage every ten seconds. A stage takes that for an attack and hangs up ("too many
# pings"), and the request that comes next is lost; so there are no pings without calls, and during long calls they are
# as rare as servers allow by default (five minutes). gRPC waits up to two minutes before it looks again for a stage
# that was away, and asks a proxy even for this host.
CHANNEL_OPTIONS: dict[str, Any] = {
    'grpc.max_send_message_length': -1,
    'grpc.max_receive_message_length': -1,
    'grpc.enable_http_proxy': 0,
    'grpc.keepalive_permit_without_calls': 0,
    'grpc.keepalive_time_ms': 310_000,
    'grpc.keepalive_timeout_ms': 10_000,
    'grpc.initial_reconnect_backoff_ms': 200,
    'grpc.max_reconnect_backoff_ms': 1000,
    'grpc.lb_policy_name': 'round_robin',
}
_METHOD = '/jina.JinaSingleDataRequestRPC/process_single_data'
_FIRST_FIELD = b'\n'
_START, _END, _GATEWAY = 'start-gateway', 'end-gateway', 'gateway'


class Route:
    """The stages in their order.

    Args:
        stages: the name of each, and the addresses of its replicas.
        timeout: seconds for one stage, beside the deadline of the request; None: no limit of its own.
    """

    def __init__(self, stages: Sequence[tuple[str, Sequence[str]]], timeout: float | None = None) -> None:
        self._stages = [_Stage(name, addresses, timeout) for name, addresses in stages]

    @classmethod
    def of(cls, arguments: Namespace) -> 'Route':
        """From what Jina tells a gateway of its Flow.

        Raises:
            InvalidParameter: the Flow is no chain.
        """
        graph: dict[str, list[str]] = json.loads(arguments.graph_description)
        addresses = json.loads(arguments.deployments_addresses)
        names, following = [], graph.get(_START, [])
        while following and following != [_END]:
            if len(following) > 1 or following[0] in names:
                raise InvalidParameter(f'the gateway serves stages in a chain, but the Flow branches at {following}')
            names.append(following[0])
            following = graph.get(following[0], [])
        timeout = arguments.timeout_send / 1000 if getattr(arguments, 'timeout_send', None) else None
        return cls([(name, _of_grpc(addresses[name])) for name in names], timeout)

    async def send(self, request: DataRequest, deadline: float) -> DataRequest:
        """Pass `request` through the stages; the reply of the last, or of the first that fails.

        Args:
            request: parsed as far as its header and parameters.
            deadline: seconds since the epoch.

        Raises:
            ClipflowError: a stage cannot be reached, or does not answer in time.
        """
        wanted = _wanted(request.header.target_executor)
        begun = time.time_ns()
        passed: list[tuple[str, int, int]] = []
        data = request.to_bytes()
        for stage in self._stages:
            if wanted is None or wanted.match(stage.name):
                started = time.time_ns()
                data = await stage.send(data, deadline)
                passed.append((stage.name, started, time.time_ns()))
                if _status(data) == jina_pb2.StatusProto.ERROR:
                    break
        reply = DataRequest(data)
        del reply.routes[:]
        for name, started, ended in ((_GATEWAY, begun, time.time_ns()), *passed):
            route = reply.routes.add(executor=name)
            route.start_time.FromNanoseconds(started)
            route.end_time.FromNanoseconds(ended)
        return reply

    async def close(self) -> None:
        """Close the channels."""
        for stage in self._stages:
            await stage.close()


class _Stage:
    """One stage: its replicas take turns; one that is away is passed over while another is there."""

    def __init__(self, name: str, addresses: Sequence[str], timeout: float | None) -> None:
        self.name = name
        self._timeout = timeout
        self._channels = [_channel(address) for address in addresses]
        self._calls = [channel.unary_unary(_METHOD) for channel in self._channels]
        self._turn = -1

    async def send(self, data: bytes, deadline: float) -> bytes:
        left = deadline - time.time()
        try:
            reply: bytes = await self._next()(data, timeout=left if self._timeout is None else min(left, self._timeout))
            return reply
        except grpc.aio.AioRpcError as error:
            raise _translated(error, self.name) from None

    def _next(self) -> Any:
        for _ in self._calls:
            self._turn = (self._turn + 1) % len(self._calls)
            if len(self._calls) == 1 or self._channels[self._turn].get_state(True) is grpc.ChannelConnectivity.READY:
                break
        return self._calls[self._turn]

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


def _of_grpc(addresses: Any) -> list[str]:
    found: list[str] = addresses.get('GRPC', []) if isinstance(addresses, dict) else addresses
    return found


def _channel(address: str) -> grpc.aio.Channel:
    scheme, _, host = address.rpartition('://')
    options = list(CHANNEL_OPTIONS.items())
    if scheme in ('grpcs', 'https'):
        return grpc.aio.secure_channel(host, grpc.ssl_channel_credentials(), options)
    return grpc.aio.insecure_channel(host, options)


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


def _translated(error: grpc.aio.AioRpcError, stage: str) -> ClipflowError:
    code = error.code()
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return Timeout(f'the {stage} did not answer in time; ask for less or allow more time')
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
        return Unavailable(
            f'the {stage} cannot be reached; it is starting, or it has failed and is restarted; try again'
        )
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TooLarge(f'a message to the {stage} is too large; send fewer documents at once')
    return NotReady(f'the {stage} answers {code.name.lower()}; try again')
