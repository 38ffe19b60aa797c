"""Runs a Flow under supervision: Jina reads the YAML and builds the stages, this starts, watches and stops them.

`jina flow` itself never restarts a stage, leaves orphans when it is terminated, and asks public hosts for its address.
"""

import errno
import functools
import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from clipflow import flows
from clipflow.border.supervised import Stage, StageFailed, say
from clipflow.border.switching import Switching
from clipflow.errors import Conflict
from clipflow.settings import GatewaySettings, IndexerSettings
from clipflow.store import generations

_QUIET = {
    'JINA_OPTOUT_TELEMETRY': '1',
    'NO_VERSION_CHECK': '1',
    'HF_HUB_DISABLE_TELEMETRY': '1',
    'JINA_LOG_LEVEL': 'ERROR',
    # A stage that is started again must not inherit gRPC's threads; spawned processes start clean.
    'JINA_MP_START_METHOD': 'spawn',
    'PYTHONWARNINGS': 'ignore:pkg_resources is deprecated',
    # After each product of matrices OpenBLAS's threads spin for up to a tenth of a second, on the cores that the next
    # stage needs; 2**10 cycles are enough. It is read when NumPy is loaded, which Jina does before our code.
    'OPENBLAS_THREAD_TIMEOUT': '10',
}
_CARDS = 'CUDA_VISIBLE_DEVICES'
_END = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 0.1
_GATEWAY_STOP_SECONDS = 3.0
_STOP_SECONDS = 8.0


def quiet_environment() -> None:
    """No telemetry, no version check: to be called before Jina is imported."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def load_flow(path: Path, settings: GatewaySettings) -> dict[str, Any]:
    """The YAML of a Flow with host and ports from the environment and paths that hold from any directory.

    Raises:
        NotFound, InvalidParameter: there is no such file, or it is no Flow.
    """
    flow = flows.load(path)
    gateway = flow.setdefault('gateway', {})
    for part in [gateway, *flow.get('executors', [])]:
        if isinstance(part.get('uses'), str) and (path.parent / part['uses']).exists():
            part['uses'] = str((path.parent / part['uses']).resolve())
        # Of RR alone Jina makes all cards of the host, whichever of them this process may see.
        if (part.get('env') or {}).get(_CARDS) == 'RR' and (seen := os.environ.get(_CARDS)) is not None:
            part['env'][_CARDS] = f'RR{seen}' if seen[:1].isalnum() and not seen.startswith('RR') else seen
    if 'host' in settings.model_fields_set:
        gateway['host'] = settings.host
    ports = {'grpc': ('grpc_port', settings.grpc_port), 'http': ('http_port', settings.http_port)}
    for position, protocol in enumerate(gateway.get('protocol', [])):
        name, port = ports.get(str(protocol).lower(), ('', 0))
        if name in settings.model_fields_set:
            gateway['port'][position] = port
    return flow


def serve(path: Path, settings: GatewaySettings) -> None:
    """Serve the Flow until SIGTERM or SIGINT.

    Raises:
        StageFailed: a stage did not start, or died more than five times within a minute.
        ClipflowError: the Flow cannot be read, or a port is taken.
    """
    quiet_environment()
    flow = load_flow(path, settings)
    gateway = flow['gateway']
    for port in gateway.get('port', []):
        check_port(str(gateway.get('host', '127.0.0.1')), int(port))
    stages = _stages(flow)
    heard = _signals()  # after Jina is imported, which takes SIGINT for itself
    say('starting ' + ', '.join(stage.name for stage in stages))
    workspace = _workspace(flow)
    if workspace is not None:
        generations.current(workspace)  # a restore that was interrupted comes to its end before any stage reads there
    with Switching(stages, lambda: _stages(flow), workspace) as switching:
        try:
            for stage in stages:
                stage.start()
            _watch(stages, gateway, heard, switching)
        finally:
            _stop([*stages, *switching.coming])


def _stages(flow: dict[str, Any]) -> list[Stage]:
    from jina import Flow
    from jina_cli import lookup

    # Jina makes the table of all its arguments once for every stage, and that is most of the work here.
    lookup._build_lookup_table = functools.cache(lookup._build_lookup_table)
    built = Flow.load_config(yaml.safe_dump(flow, sort_keys=False))
    built.build(copy_flow=False)
    found = []
    for _, deployment in built:
        if not deployment.external:
            parts = deployment.pod_args
            single = [parts[name] for name in ('uses_before', 'uses_after', 'head', 'gateway') if parts.get(name)]
            found += [Stage(args) for args in [*(a for group in parts['pods'].values() for a in group), *single]]
    unique = {stage.name: stage for stage in found}
    for stage in unique.values():
        stage.name = re.sub(r'/rep-0$', '', stage.name) if _is_alone(stage, list(unique)) else stage.name
    return list(unique.values())


def _is_alone(stage: Stage, names: list[str]) -> bool:
    return sum(name.split('/')[0] == stage.name.split('/')[0] for name in names) == 1


def _workspace(flow: dict[str, Any]) -> Path | None:
    """Where the indexers of this Flow keep their documents; None: it has none, or it is not known here."""
    for part in flow.get('executors', []):
        if str(part.get('name', '')).split('_')[0] == 'indexer' and not part.get('external'):
            return IndexerSettings.load(**part.get('uses_with') or {}).workspace
    return None


def _signals() -> list[int]:
    """Those that ask for the end, as they come. No event: its lock may be held by what the handler interrupts."""
    heard: list[int] = []
    for number in _END:
        signal.signal(number, lambda number, _: heard.append(number))
    return heard


def _watch(stages: list[Stage], gateway: dict[str, Any], heard: Sequence[int], switching: Switching) -> None:
    serving = False
    while not heard:
        switching.step()
        for stage in stages:
            if stage.has_become_ready():
                say(f'{stage.name} is ready (pid {stage.pid})')
            elif stage.failed_to_start() and not stage.restarts:
                raise StageFailed(f'the stage {stage.name} did not start; its own message stands above')
            elif not stage.is_alive() and not switching.replaces(stage):
                stage.start_again()
        if not serving and all(stage.ready for stage in stages) and switching.answers():
            serving = True
            switching.listen()
            host = gateway.get('host', '127.0.0.1')
            pairs = zip(gateway.get('protocol', []), gateway.get('port', []), strict=False)
            say('serving ' + ', '.join(f'{str(protocol).lower()}://{host}:{port}' for protocol, port in pairs))
        time.sleep(_POLL_SECONDS)


def _stop(stages: list[Stage]) -> None:
    """The gateway first, so that nothing new comes in, then the others; within ten seconds all are gone."""
    for number in _END:
        signal.signal(number, signal.SIG_IGN)  # Python would let one that comes at its very end end it at once
    say('stopping')
    begun = time.monotonic()
    started = [stage for stage in stages if stage.started]
    doors = [stage for stage in started if stage.is_gateway]
    for group, seconds in ((doors, _GATEWAY_STOP_SECONDS), (started, _STOP_SECONDS)):
        for stage in group:
            stage.terminate()
        for stage in group:
            stage.wait(begun + seconds)


def check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:  # the second is said of numbers that no port has
            code, reason = getattr(error, 'errno', errno.EACCES), getattr(error, 'strerror', None) or error
            ports = 'CLIPFLOW_GRPC_PORT or CLIPFLOW_HTTP_PORT'
            setting = ports if code in (errno.EADDRINUSE, errno.EACCES) else 'CLIPFLOW_HOST to an IPv4 address of here'
            raise Conflict(f'cannot listen on {host}:{port} ({reason}); set {setting}') from None
