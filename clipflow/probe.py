"""Ask a process whether it can work, as a container's health check: `python -m clipflow.probe HOST:PORT [SERVICE]`.

The protocol is `grpc.health.v1`. Nothing of Jina is loaded, so that a check is cheap.
"""

import sys
from collections.abc import Sequence

import grpc

_METHOD = '/grpc.health.v1.Health/Check'
_SECONDS = 5.0
_SERVING = b'\x08\x01'
"""HealthCheckResponse whose field 1, the status, is 1."""


def probe(address: str, service: str = '') -> str:
    """Why the process cannot work; empty: it can.

    Args:
        address: host and port.
        service: what of it; '' is the whole, 'liveness' only whether it answers.
    """
    name = service.encode()
    question = b'\x0a' + bytes([len(name)]) + name if name else b''  # HealthCheckRequest whose field 1 is the service
    options = (('grpc.enable_http_proxy', 0),)
    with grpc.insecure_channel(address, options) as channel:
        try:
            answer: bytes = channel.unary_unary(_METHOD)(question, timeout=_SECONDS, wait_for_ready=False)
        except grpc.RpcError as error:
            return str(error.code().name.lower())
    return '' if answer == _SERVING else 'not serving'


def main(arguments: Sequence[str]) -> int:
    """0: it can work; 1: it cannot; 2: a wrong call."""
    if len(arguments) not in (1, 2) or len(arguments[-1]) > 127:
        print('usage: python -m clipflow.probe HOST:PORT [SERVICE]', file=sys.stderr)
        return 2
    if fault := probe(*arguments):
        print(f'{arguments[0]}: {fault}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
