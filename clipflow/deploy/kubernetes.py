"""What has to agree between a Flow and its Kubernetes manifests, as a kustomize component of patches.

The manifests themselves are written by hand (k8s/base). From the Flow come names, ports, shards, replicas, and what the
gateway is told of its stages.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from clipflow.errors import Conflict, InvalidParameter
from clipflow.flows import Flow, Part

STAGE_PORT = 8080
"""Where each stage listens in a pod of its own."""
CONTAINER = 'clipflow'
SHARD_LABEL = 'clipflow/shard'
_COMPONENT_LABEL = 'app.kubernetes.io/component'
_INDEXER = 'indexer'
_ROOMS = ('preprocessor', 'encoder', _INDEXER, 'ranker')
_HEADER = '# Written by `{command}`: change the Flow, and run it again.\n'

Files = dict[Path, str]
"""Paths below the folder that is written, and texts."""


def gateway_arguments(flow: Flow) -> list[str]:
    """The arguments of a gateway container, behind the entrypoint of its image."""
    addresses = {part.name: [part.address or f'dns:///{object_name(part.name)}:{STAGE_PORT}'] for part in flow.parts}
    return [
        '--graph-description',
        json.dumps(flow.graph()),
        '--deployments-addresses',
        json.dumps(addresses),
        '--port',
        *[str(port) for port in flow.ports.values()],
        '--protocol',
        *[protocol.upper() for protocol in flow.ports],
        '--retries',
        str(flow.retries),
        '--prefetch',
        str(flow.prefetch),
        '--grpc-server-options',
        json.dumps(flow.server_options),
        *([] if flow.timeout_send is None else ['--timeout-send', str(flow.timeout_send)]),
    ]


def object_name(stage: str) -> str:
    """The name of a stage as Kubernetes allows it."""
    return stage.replace('_', '-').lower()


def component(flow: Flow, out: Path, base: Path, command: str) -> Files:
    """The files of the component.

    Args:
        out: where it will be. Inside of `base` it is a part of it; elsewhere it is put on top of it, and has only what
            is not in `base` already.
        base: the folder of the manifests written by hand.
        command: that writes it, for the first line of each file.

    Raises:
        InvalidParameter: the manifests have no place for a stage of this Flow.
    """
    own = [part for part in flow.parts if part.room]
    if flow.others:
        raise InvalidParameter(f'the manifests have no place for {", ".join(flow.others)}')
    for part in own:
        _check(part)
    if set(flow.ports) != {'grpc', 'http'}:
        raise InvalidParameter(
            f'the manifests have a gateway with gRPC and HTTP; this Flow has {", ".join(flow.ports) or "neither"}'
        )
    shards = [part for part in own if part.room == _INDEXER]
    inside = out.resolve().is_relative_to(base.resolve())
    alone = len(shards) == 1 and shards[0].name == _INDEXER
    to_base = Path(os.path.relpath(base.resolve(), out.resolve()))
    files: dict[Path, list[Any]] = {Path('gateway.yaml'): _gateway(flow, inside)}
    resources: list[str] = []
    patches: list[dict[str, Any]] = []
    if alone and inside:
        resources = [str(to_base / _INDEXER)]
    if not alone:
        resources = [object_name(part.name) for part in shards]
        patches = [] if inside else [_without_indexer(kind) for kind in _KINDS_OF_A_SHARD]
    for part in own:
        name = object_name(part.name)
        if part.room != _INDEXER or alone:
            patch = [_workload(part, name)]
            if inside or not _is_there(base / 'flow' / f'{name}.yaml', patch):
                files[Path(f'{name}.yaml')] = patch
        else:
            folder, up = Path(name), Path('..') / to_base
            files[folder / 'arguments.yaml'] = [_workload(part, _INDEXER)]
            files[folder / 'kustomization.yaml'] = [_shard(part, up)]
    patches += [{'path': str(path)} for path in files if path.parent == Path()]
    files[Path('kustomization.yaml')] = [
        {'apiVersion': 'kustomize.config.k8s.io/v1alpha1', 'kind': 'Component'}
        | ({'resources': resources} if resources else {})
        | {'patches': patches}
    ]
    header = _HEADER.format(command=command)
    return {path: header + '---\n'.join(_text(document) for document in documents) for path, documents in files.items()}


def write(files: Files, out: Path) -> None:
    """Write a component; folders of shards that are there no more are an error, so that nothing of old is left.

    Raises:
        Conflict: there are files that this component does not have, or it cannot be written.
    """
    there = {path.relative_to(out) for path in out.rglob('*.yaml')} if out.exists() else set()
    if foreign := sorted(there - set(files)):
        raise Conflict(f'{out} holds {foreign[0]}, which is not from this Flow; remove it, or choose another --out')
    try:
        for path, text in files.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_text(text, encoding='utf-8')
    except OSError as error:
        raise Conflict(f'{out} cannot be written: {error.strerror}') from None


_KINDS_OF_A_SHARD = {'StatefulSet': 'apps/v1', 'Service': 'v1', 'PodDisruptionBudget': 'policy/v1'}


def _check(part: Part) -> None:
    if part.room not in _ROOMS:
        raise InvalidParameter(f'the manifests have no place for the room {part.room!r} of {part.name!r}')
    if part.room not in (_INDEXER, part.name):
        raise InvalidParameter(f'the manifests have one {part.room}, of that name; here it is called {part.name!r}')
    if part.room == _INDEXER and not re.fullmatch(r'indexer(_\d+)?', part.name):
        raise InvalidParameter(f'indexers are called indexer, or indexer_0 and so on; here one is called {part.name!r}')
    if part.room == _INDEXER and part.replicas != 1:
        raise InvalidParameter(
            f'{part.name!r} has {part.replicas} replicas, but one process has a workspace; use shards'
        )
    if card := next((name for name, value in part.env.items() if value.startswith('RR')), None):
        raise InvalidParameter(
            f'{card}=RR of {part.name!r} counts the cards of one host; use the component gpu instead'
        )


def _is_there(path: Path, documents: list[Any]) -> bool:
    return path.exists() and list(yaml.safe_load_all(path.read_text(encoding='utf-8'))) == documents


def _gateway(flow: Flow, inside: bool) -> list[Any]:
    ports = list(flow.ports.items())
    # Ports are merged by their numbers: without this, those of the base would stay beside others.
    instead: list[dict[str, Any]] = [] if inside else [{'$patch': 'replace'}]
    container = {
        'name': CONTAINER,
        'args': gateway_arguments(flow),
        'ports': instead + [{'name': name, 'containerPort': port} for name, port in ports],
    }
    service = {'ports': instead + [{'name': name, 'port': port, 'targetPort': name} for name, port in ports]}
    return [
        _object('apps/v1', 'Deployment', 'gateway', {'template': {'spec': {'containers': [container]}}}),
        _object('v1', 'Service', 'gateway', service),
    ]


def _workload(part: Part, name: str) -> Any:
    arguments = ['--name', part.name, '--port', str(STAGE_PORT)]
    if part.uses_with:
        arguments += ['--uses-with', json.dumps(part.uses_with)]
    container: dict[str, Any] = {
        'name': CONTAINER,
        'args': arguments,
        'ports': [{'name': 'grpc', 'containerPort': STAGE_PORT}],
    }
    if part.env:
        container['env'] = [{'name': key, 'value': value} for key, value in part.env.items()]
    spec = {'template': {'spec': {'containers': [container]}}}
    if part.room == _INDEXER:
        return _object('apps/v1', 'StatefulSet', name, spec)
    return _object('apps/v1', 'Deployment', name, {'replicas': part.replicas, **spec})


def _shard(part: Part, base: Path) -> Any:
    suffix = object_name(part.name).removeprefix(_INDEXER)
    return {
        'apiVersion': 'kustomize.config.k8s.io/v1beta1',
        'kind': 'Kustomization',
        'namespace': 'clipflow',
        'nameSuffix': suffix,
        'resources': [str(base / _INDEXER)],
        'components': [str(base / 'pods')],
        'labels': [
            {'pairs': {SHARD_LABEL: suffix.strip('-')}, 'includeSelectors': True, 'includeTemplates': True},
        ],
        'patches': [{'path': 'arguments.yaml'}],
    }


def _without_indexer(kind: str) -> Any:
    """A patch that takes the one indexer of the base away; the shards have a label that it has not."""
    body = {
        'apiVersion': _KINDS_OF_A_SHARD[kind],
        'kind': kind,
        'metadata': {'name': _INDEXER},
        '$patch': 'delete',
    }
    return {
        'target': {'kind': kind, 'labelSelector': f'{_COMPONENT_LABEL}={_INDEXER},!{SHARD_LABEL}'},
        'patch': _text(body),
    }


def _object(version: str, kind: str, name: str, spec: dict[str, Any]) -> Any:
    return {'apiVersion': version, 'kind': kind, 'metadata': {'name': name}, 'spec': spec}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Indents lists, and writes texts of several lines as such."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """See PyYAML."""
        super().increase_indent(flow, False)


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar('tag:yaml.org,2002:str', text, style='|' if '\n' in text else None)


_Dumper.add_representer(str, _represent)


def _text(document: Any) -> str:
    return str(yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10_000))
