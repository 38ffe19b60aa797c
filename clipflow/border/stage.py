"""One stage as the gateway sees it: channels to its replicas, and what their failures mean."""

import time
from collections.abc import Sequence
from typing import Any

import grpc

from clipflow.errors import ClipflowError, NotReady, Timeout, TooLarge, Unavailable

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


class Stage:
    """One stage: its replicas take turns; one that is away is passed over while another is there."""

    def __init__(self, name: str, addresses: Sequence[str], timeout: float | None) -> None:
        self.name = name
        self._timeout = timeout
        self._channels = [_channel(address) for address in addresses]
        self._calls = [channel.unary_unary(_METHOD) for channel in self._channels]
        self._turn = -1

    async def send(self, data: bytes, deadline: float) -> bytes:
        """Pass a message on; `deadline` in seconds since the epoch.

        Raises:
            ClipflowError: the stage cannot be reached, or does not answer in time.
        """
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
