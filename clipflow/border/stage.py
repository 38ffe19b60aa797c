"""One stage as the gateway sees it: channels to its replicas, repetition of what may pass, and what failures mean."""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

import grpc

from clipflow.errors import ClipflowError, NotReady, Timeout, TooLarge, Unavailable

CHANNEL_OPTIONS: dict[str, Any] = {
    'grpc.max_send_message_length': -1,
    'grpc.max_receive_message_length': -1,
    # gRPC asks a proxy even for this host.
    'grpc.enable_http_proxy': 0,
    # A replica that is frozen or cut off gives no sign: during calls it is asked for one, and given up after three more
    # seconds. Not without calls: a stage that is not ours takes that for an attack and hangs up ("too many pings").
    'grpc.keepalive_permit_without_calls': 0,
    'grpc.keepalive_time_ms': 3000,
    'grpc.keepalive_timeout_ms': 3000,
    # A ping that measures the connection may be on its way already, with a minute of its own.
    'grpc.http2.ping_timeout_ms': 3000,
    # gRPC waits up to two minutes before it looks again for a stage that was away, 20 s for an address without answer,
    # and 30 s before it asks DNS again.
    'grpc.initial_reconnect_backoff_ms': 200,
    'grpc.max_reconnect_backoff_ms': 1000,
    'grpc.min_reconnect_backoff_ms': 2000,
    'grpc.dns_min_time_between_resolutions_ms': 1000,
    'grpc.lb_policy_name': 'round_robin',
}
PAUSES = (0.0, 0.05, 0.2, 0.5, 0.8)
"""Seconds before a message that did not arrive is sent again: for a moment only, since callers repeat too."""
_METHOD = '/jina.JinaSingleDataRequestRPC/process_single_data'


class Stage:
    """One stage: its replicas take turns; one that is away is passed over while another is there."""

    def __init__(self, name: str, addresses: Sequence[str], timeout: float | None) -> None:
        self.name = name
        self._timeout = timeout
        self._channels = [_channel(address) for address in addresses]
        self._calls = [channel.unary_unary(_METHOD) for channel in self._channels]
        self._turn = -1

    async def send(self, data: bytes, deadline: float, *, patient: bool = True) -> bytes:
        """Pass a message on.

        Args:
            data: the message.
            deadline: seconds since the epoch.
            patient: send it again, to another replica where there is one, while the stage cannot be reached. It may
                then be done twice.

        Raises:
            ClipflowError: the stage cannot be reached, or does not answer in time.
        """
        for pause in PAUSES if patient else ():
            try:
                return await self._once(data, deadline)
            except Unavailable:
                wait = pause * random.uniform(0.8, 1.2)
                if time.time() + wait >= deadline:
                    raise
            await asyncio.sleep(wait)
        return await self._once(data, deadline)

    async def _once(self, data: bytes, deadline: float) -> bytes:
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
        """Close the channels."""
        for channel in self._channels:
            await channel.close()


def _channel(address: str) -> grpc.aio.Channel:
    scheme, _, host = address.rpartition('://')
    host = host.removeprefix('/')  # of dns:///name, which is what gRPC makes of a name anyway: all its addresses
    options = list(CHANNEL_OPTIONS.items())
    if scheme in ('grpcs', 'https'):
        return grpc.aio.secure_channel(host, grpc.ssl_channel_credentials(), options)
    return grpc.aio.insecure_channel(host, options)


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
