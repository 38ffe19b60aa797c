"""What has to agree between a Flow and its manifests is what `clipflow export k8s` writes."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from clipflow import ROOT
from clipflow.cli.main import main
from clipflow.deploy.kubernetes import component, gateway_arguments
from clipflow.flows import Flow

from .cluster import mappings
from .conftest import OUTSIDE
from .rules import check

FLOW, SHARDED = ROOT / 'flow.yml', ROOT / 'flows' / 'sharded.yml'
BASE = ROOT / 'k8s' / 'base'


def written(folder: Path) -> dict[Path, str]:
    return {path.relative_to(folder): path.read_text(encoding='utf-8') for path in folder.rglob('*.yaml')}


def value(arguments: list[str], option: str) -> Any:
    return json.loads(arguments[arguments.index(option) + 1])


@pytest.mark.parametrize(('flow', 'out'), [(FLOW, BASE / 'flow'), (SHARDED, ROOT / 'k8s/components/sharded')])
def test_the_committed_manifests_are_what_the_command_writes(
    flow: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / 'k8s', tmp_path / 'k8s')
    here = tmp_path / out.relative_to(ROOT)
    for path in here.rglob('*.yaml'):
        path.unlink()
    given = ['export', 'k8s', '--flow', str(flow), '--out', str(here), '--base', str(tmp_path / 'k8s/base')]
    assert main(given) == 0
    assert str(here) in capsys.readouterr().out
    # The first line names the command, and with it the folder.
    shown = {path: text.replace(str(here), str(out.relative_to(ROOT))) for path, text in written(here).items()}
    assert shown == written(out)


def told_by_jina(path: Path) -> tuple[Any, Any, list[str]]:
    """Graph and addresses as Jina tells them to the gateway of a Flow, and the names of all stages."""
    from clipflow.border.launcher import _stages, load_flow, quiet_environment
    from clipflow.settings import GatewaySettings

    with patch.dict(os.environ):  # what is set for the stages is not to reach the processes of other tests
        quiet_environment()
        stages = _stages(load_flow(path, GatewaySettings()))
    gateway = next(stage.args for stage in stages if stage.is_gateway)
    names = sorted({stage.name.partition('/')[0] for stage in stages if not stage.is_gateway})
    return json.loads(gateway.graph_description), json.loads(gateway.deployments_addresses), names


@pytest.mark.parametrize('path', [FLOW, SHARDED], ids=lambda path: path.stem)
def test_the_gateway_is_told_the_graph_that_jina_derives_from_the_flow(path: Path) -> None:
    graph, addresses, names = told_by_jina(path)
    flow = Flow.read(path)
    arguments = gateway_arguments(flow)
    assert value(arguments, '--graph-description') == graph
    assert set(value(arguments, '--deployments-addresses')) == set(addresses) == set(names)
    raw = yaml.safe_load(path.read_text(encoding='utf-8'))
    assert arguments[arguments.index('--port') + 1 :][:2] == [str(port) for port in raw['gateway']['port']]
    assert value(arguments, '--grpc-server-options') == raw['gateway']['grpc_server_options']


def test_jina_understands_the_arguments_of_all_containers() -> None:
    from jina.parsers import set_gateway_parser, set_pod_parser

    arguments = gateway_arguments(Flow.read(SHARDED))
    parsed = set_gateway_parser().parse_args(arguments)
    assert (parsed.port, parsed.retries, parsed.prefetch) == ([51000, 8080], 0, 32)
    assert parsed.grpc_server_options == {'grpc.max_receive_message_length': 268435456}
    shard = yaml.safe_load((ROOT / 'k8s/components/sharded/indexer-1/arguments.yaml').read_text(encoding='utf-8'))
    given = mappings(shard, 'spec', 'template', 'spec', 'containers')[0]['args']
    pod = set_pod_parser().parse_args(given)
    assert (pod.name, pod.port, pod.uses_with) == ('indexer_1', [8080], {'shard': 1, 'shards': 3})


def test_another_number_of_shards_makes_manifests_without_a_fault(tmp_path: Path, kustomize: Any) -> None:
    raw = yaml.safe_load(SHARDED.read_text(encoding='utf-8'))
    shards = [part for part in raw['executors'] if part['name'].startswith('indexer_')]
    before, after = raw['executors'][:2], raw['executors'][-1]
    five = [shards[0] | {'name': f'indexer_{n}', 'uses_with': {'shard': n, 'shards': 5}} for n in range(5)]
    before[1]['replicas'] = 4
    raw['executors'] = [*before, *five, after | {'needs': [part['name'] for part in five]}]
    path = tmp_path / 'five.yml'
    path.write_text(yaml.safe_dump(raw, sort_keys=False), encoding='utf-8')
    out, top = tmp_path / 'five', tmp_path / 'top'
    assert main(['export', 'k8s', '--flow', str(path), '--out', str(out)]) == 0
    top.mkdir()
    base = os.path.relpath(BASE, top.resolve())
    (top / 'kustomization.yaml').write_text(f'resources: [{base}]\ncomponents: [../five]\n', encoding='utf-8')
    objects = kustomize(top)
    assert check(objects, OUTSIDE) == []
    replicas = {one['metadata']['name']: one['spec']['replicas'] for one in objects if one['kind'] == 'Deployment'}
    assert replicas['encoder'] == 4
    assert sum(one['kind'] == 'StatefulSet' for one in objects) == 5


def test_a_gateway_on_other_ports_has_these_and_no_others(tmp_path: Path, kustomize: Any) -> None:
    raw = yaml.safe_load(FLOW.read_text(encoding='utf-8'))
    raw['gateway']['port'] = [52000, 8081]
    path, top = tmp_path / 'flow.yml', tmp_path / 'top'
    path.write_text(yaml.safe_dump(raw, sort_keys=False), encoding='utf-8')
    assert main(['export', 'k8s', '--flow', str(path), '--out', str(tmp_path / 'mine')]) == 0
    top.mkdir()
    base = os.path.relpath(BASE, top.resolve())
    (top / 'kustomization.yaml').write_text(f'resources: [{base}]\ncomponents: [../mine]\n', encoding='utf-8')
    objects = kustomize(top)
    assert check(objects, OUTSIDE) == []
    spec = {one['kind']: one['spec'] for one in objects if one['metadata']['name'] == 'gateway' and 'spec' in one}
    ports = {'grpc': 52000, 'http': 8081}
    assert {one['name']: one['port'] for one in spec['Service']['ports']} == ports
    container = mappings(spec['Deployment'], 'template', 'spec', 'containers')[0]
    assert [(one['name'], one['containerPort']) for one in container['ports']] == list(ports.items())


def test_what_an_earlier_flow_has_left_is_not_overlooked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['export', 'k8s', '--flow', str(SHARDED), '--out', str(tmp_path / 'out')]) == 0
    assert main(['export', 'k8s', '--out', str(tmp_path / 'out')]) == 1
    assert 'indexer-0/arguments.yaml, which is not from this Flow' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'uses': 'executors/clip_server/config.yml'}, "no place for the room 'clip_server'"),
        ({'name': 'model'}, 'one encoder, of that name'),
        ({'env': {'CUDA_VISIBLE_DEVICES': 'RR'}}, 'use the component gpu'),
        ({'name': 'indexer', 'uses': 'executors/indexer/config.yml', 'replicas': 2}, 'use shards'),
        ({'name': 'store', 'uses': 'executors/indexer/config.yml'}, 'called indexer'),
        ({'shards': 2, 'tls': True}, "no place for 'shards' of 'encoder', 'tls' of 'encoder'"),
        ({}, 'a gateway with gRPC and HTTP'),
    ],
)
def test_what_the_manifests_have_no_place_for_is_refused(
    change: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = {'name': 'encoder', 'uses': 'executors/encoder/config.yml'} | change
    path = tmp_path / 'flow.yml'
    path.write_text(yaml.safe_dump({'jtype': 'Flow', 'executors': [part]}), encoding='utf-8')
    assert main(['export', 'k8s', '--flow', str(path), '--out', str(tmp_path / 'out')]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_the_time_of_a_call_is_that_of_the_flow(tmp_path: Path) -> None:
    raw = yaml.safe_load(FLOW.read_text(encoding='utf-8'))
    raw['with']['timeout_send'] = 90_000
    path = tmp_path / 'flow.yml'
    path.write_text(yaml.safe_dump(raw), encoding='utf-8')
    assert value(gateway_arguments(Flow.read(path)), '--timeout-send') == 90_000
    assert '--timeout-send' not in gateway_arguments(Flow.read(FLOW))


def test_an_external_stage_is_called_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / 'flow.yml'
    external = {'name': 'encoder', 'external': True, 'host': 'models.example.com', 'port': 7000}
    gateway = {'port': [51000, 8080], 'protocol': ['grpc', 'http']}
    path.write_text(yaml.safe_dump({'jtype': 'Flow', 'gateway': gateway, 'executors': [external]}), encoding='utf-8')
    flow = Flow.read(path)
    assert value(gateway_arguments(flow), '--deployments-addresses') == {'encoder': ['models.example.com:7000']}
    assert set(component(flow, tmp_path, BASE, 'x')) == {Path('gateway.yaml'), Path('kustomization.yaml')}


def test_the_command_loads_no_jina(tmp_path: Path) -> None:
    import subprocess

    code = (
        'import sys; from clipflow.cli.main import main; '
        f'main(["export", "k8s", "--out", {str(tmp_path / "out")!r}]); '
        'sys.exit(bool({"jina", "docarray", "torch", "grpc"} & set(sys.modules)))'
    )
    assert subprocess.run([sys.executable, '-c', code], check=False, cwd=ROOT).returncode == 0
