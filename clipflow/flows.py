"""A Flow's YAML as typed data, without Jina: what its stages are called, and in which order data passes them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from clipflow.errors import InvalidParameter, NotFound

START, END, GATEWAY = 'start-gateway', 'end-gateway', 'gateway'
_COMMON = {'retries', 'prefetch', 'timeout_send'}
_OF_GATEWAY = {'uses', 'host', 'port', 'protocol', 'grpc_server_options'}
_OF_STAGE = {'name', 'uses', 'needs', 'replicas', 'uses_with', 'env', 'external', 'host', 'port', 'quiet_error'}


@dataclass(frozen=True)
class Part:
    """One entry below `executors:`."""

    name: str
    room: str
    """Name of the folder that `uses` points into; empty for an external stage."""
    needs: tuple[str, ...]
    """Names of the stages before it; none for those that the gateway calls first."""
    replicas: int = 1
    uses_with: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    address: str = ''
    """host:port of an external stage."""


@dataclass(frozen=True)
class Flow:
    """What a Flow's YAML says, as far as a deployment needs it."""

    parts: tuple[Part, ...]
    ports: dict[str, int]
    """Protocol of the gateway, in lower case, to its port."""
    retries: int
    prefetch: int
    server_options: dict[str, Any]
    """Of gRPC, for the gateway."""
    timeout_send: int | None = None
    """Milliseconds for one call of a stage."""
    others: tuple[str, ...] = ()
    """What else it says, which only Jina knows."""

    @classmethod
    def read(cls, path: Path) -> 'Flow':
        """Read a YAML.

        Raises:
            NotFound, InvalidParameter: there is no such file, it is no Flow, or a stage in it is not like ours.
        """
        raw = load(path)
        gateway, common = raw.get('gateway') or {}, raw.get('with') or {}
        ports, protocols = gateway.get('port') or [], gateway.get('protocol') or []
        if not isinstance(ports, list) or not isinstance(protocols, list) or len(ports) != len(protocols):
            raise InvalidParameter(f'{path}: the gateway needs a list of ports and as long a list of protocols')
        stages = raw.get('executors') or []
        return cls(
            parts=_parts(path, stages),
            ports={
                str(protocol).lower(): _whole(path, 'port', port)
                for protocol, port in zip(protocols, ports, strict=True)
            },
            retries=_whole(path, 'retries', common.get('retries', -1)),
            prefetch=_whole(path, 'prefetch', common.get('prefetch', 1000)),
            server_options=dict(gateway.get('grpc_server_options') or {}),
            timeout_send=_whole(path, 'timeout_send', common['timeout_send']) if 'timeout_send' in common else None,
            others=(
                *_others(common, _COMMON, 'with'),
                *_others(gateway, _OF_GATEWAY, 'gateway'),
                *(other for stage in stages for other in _others(stage, _OF_STAGE, stage['name'])),
            ),
        )

    def graph(self) -> dict[str, list[str]]:
        """Who sends to whom, in the words in which Jina tells it to a gateway."""
        found: dict[str, list[str]] = {}
        for part in self.parts:
            for before in part.needs or (START,):
                found.setdefault(before, []).append(part.name)
        for part in self.parts:
            found.setdefault(part.name, [END])
        return found


def load(path: Path) -> dict[str, Any]:
    """The YAML of a Flow as it stands.

    Raises:
        NotFound, InvalidParameter: there is no such file, or it is no Flow.
    """
    try:
        flow = yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise NotFound(f'the Flow {path} cannot be read: {error.strerror}') from None
    except yaml.YAMLError as error:
        raise InvalidParameter(f'{path} is not valid YAML: {str(error).splitlines()[0]}') from None
    if not isinstance(flow, dict) or flow.get('jtype') != 'Flow':
        raise InvalidParameter(f'{path} is not a Flow (its first line is "jtype: Flow")')
    return flow


def _others(given: dict[str, Any], known: set[str], place: str) -> list[str]:
    return [f'{name!r} of {place!r}' for name in given if name not in known]


def _whole(path: Path, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidParameter(f'{path}: {name} is {value!r}, not a whole number')
    return value


def _parts(path: Path, entries: list[Any]) -> tuple[Part, ...]:
    found: dict[str, Part] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not entry.get('name'):
            raise InvalidParameter(f'{path}: a stage has no name')
        part = _part(path, entry, list(found)[-1:])
        if unknown := [name for name in part.needs if name not in found]:
            raise InvalidParameter(f'{path}: {part.name} needs {unknown[0]!r}, which does not stand before it')
        if part.name in found:
            raise InvalidParameter(f'{path}: there are two stages {part.name!r}')
        found[part.name] = part
    if not found:
        raise InvalidParameter(f'{path} has no stages')
    return tuple(found.values())


def _part(path: Path, entry: dict[str, Any], last: list[str]) -> Part:
    """One stage; without `needs` it follows the `last` one."""
    needs = entry.get('needs', last)
    needs = [needs] if isinstance(needs, str) else needs
    external = bool(entry.get('external'))
    return Part(
        name=str(entry['name']),
        room='' if external else Path(str(entry.get('uses', ''))).parent.name,
        needs=tuple(str(name) for name in needs if name != GATEWAY),
        replicas=_whole(path, 'replicas', entry.get('replicas', 1)),
        uses_with=dict(entry.get('uses_with') or {}),
        env={str(name): str(value) for name, value in (entry.get('env') or {}).items()},
        address=f'{entry.get("host", "")}:{entry.get("port", "")}' if external else '',
    )
