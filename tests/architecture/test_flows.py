"""The variants of flow.yml differ from it in their encoder only, and the launcher can build them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from clipflow.border.launcher import load_flow
from clipflow.settings import EncoderSettings, GatewaySettings

from .code import ROOT

FLOWS = sorted((ROOT / 'flows').glob('*.yml'))
FOREIGN = ROOT / 'flows' / 'clip-server.yml'
"""Its encoder is not ours, and all stages have to know that."""
SHARDED = ROOT / 'flows' / 'sharded.yml'
"""Its indexer is several."""
MILVUS = ROOT / 'flows' / 'milvus.yml'
"""Its indexer runs in an environment of its own."""


def loaded(path: Path) -> dict[str, Any]:
    return load_flow(path, GatewaySettings.load())


@pytest.mark.parametrize(
    'path', [path for path in FLOWS if path not in (FOREIGN, SHARDED, MILVUS)], ids=lambda path: path.stem
)
def test_a_variant_is_the_flow_with_another_encoder(path: Path) -> None:
    flow, variant = loaded(ROOT / 'flow.yml'), loaded(path)
    assert variant | {'executors': []} == flow | {'executors': []}
    assert [part['name'] for part in variant['executors']] == [part['name'] for part in flow['executors']]
    for one, other in zip(flow['executors'], variant['executors'], strict=True):
        if one['name'] != 'encoder':
            assert one == other
    encoder = next(part for part in variant['executors'] if part['name'] == 'encoder')
    assert Path(encoder['uses']).is_file()
    EncoderSettings.load(**encoder.get('uses_with', {}))


def test_the_foreign_encoder_stands_before_a_room_that_takes_its_vectors() -> None:
    flow, variant = loaded(ROOT / 'flow.yml'), loaded(FOREIGN)
    assert variant | {'executors': []} == flow | {'executors': []}
    parts = {part['name']: part for part in variant['executors']}
    assert list(parts) == ['preprocessor', 'clip_server', 'encoder', 'indexer', 'ranker']
    foreign, taking = parts.pop('clip_server'), parts.pop('encoder')
    assert foreign == {'name': 'clip_server', 'external': True, 'host': '127.0.0.1', 'port': foreign['port']}
    assert Path(taking['uses']).parent.name == 'clip_server'
    model = taking['uses_with']
    for one in flow['executors']:
        if one['name'] != 'encoder':
            assert parts.pop(one['name']) == {**one, 'uses_with': model}
    external = yaml.safe_load((ROOT / 'executors/clip_server/external/encoder.yml').read_text(encoding='utf-8'))
    assert model == {'model': 'clip-server::' + external['with']['name']}


def test_the_flow_with_milvus_has_an_indexer_that_is_started_elsewhere() -> None:
    flow, variant = loaded(ROOT / 'flow.yml'), loaded(MILVUS)
    assert variant | {'executors': []} == flow | {'executors': []}
    assert [part['name'] for part in variant['executors']] == [part['name'] for part in flow['executors']]
    for one, other in zip(flow['executors'], variant['executors'], strict=True):
        if one['name'] != 'indexer':
            assert one == other
        else:
            assert other == {'name': 'indexer', 'external': True, 'host': '127.0.0.1', 'port': other['port']}
            room = (ROOT / 'executors' / 'milvus_indexer' / 'README.md').read_text(encoding='utf-8')
            assert f'--name indexer --port {other["port"]}' in room


def test_the_sharded_flow_is_the_flow_with_an_indexer_for_each_shard() -> None:
    flow, variant = loaded(ROOT / 'flow.yml'), loaded(SHARDED)
    assert variant | {'executors': []} == flow | {'executors': []}
    own = {part['name']: part for part in flow['executors']}
    shards = [part for part in variant['executors'] if part['name'].startswith('indexer_')]
    others = [part for part in variant['executors'] if part not in shards]
    names = [f'indexer_{n}' for n in range(len(shards))]
    for number, (part, name) in enumerate(zip(shards, names, strict=True)):
        settings = {'shard': number, 'shards': len(shards)}
        assert part == own['indexer'] | {'name': name, 'needs': 'encoder', 'uses_with': settings}
    assert others == [own['preprocessor'], own['encoder'], own['ranker'] | {'needs': names}]


@pytest.mark.parametrize(
    ('seen', 'given'),
    [
        (None, {0: 0, 1: 1, 2: 2}),
        ('2,3', {0: 2, 1: 3, 2: 2}),
        ('3', {0: 3, 1: 3, 2: 3}),
        ('GPU-8f3a,GPU-11c2', {0: 'GPU-8f3a', 1: 'GPU-11c2', 2: 'GPU-8f3a'}),
        ('RR1:3', {0: 1, 1: 2, 2: 1}),
    ],
)
def test_replicas_take_turns_on_the_cards_that_this_process_may_see(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, given: dict[int, int | str]
) -> None:
    from jina.orchestrate.deployments import Deployment

    monkeypatch.setenv('PATH', '')  # where Jina looks for nvidia-smi
    monkeypatch.setenv('CUDA_TOTAL_DEVICES', '4')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if seen is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', seen)
    encoder = next(part for part in loaded(ROOT / 'flows' / 'gpu.yml')['executors'] if part['name'] == 'encoder')
    assert Deployment._roundrobin_cuda_device(encoder['env']['CUDA_VISIBLE_DEVICES'], 3) == given


@pytest.mark.parametrize('hidden', ['', '-1'])
def test_cards_that_are_hidden_stay_so(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden)
    encoder = next(part for part in loaded(ROOT / 'flows' / 'gpu.yml')['executors'] if part['name'] == 'encoder')
    assert encoder['env'] == {'CUDA_VISIBLE_DEVICES': hidden}


@pytest.mark.parametrize('path', FLOWS, ids=lambda path: path.stem)
def test_a_variant_says_how_it_is_served(path: Path) -> None:
    text = path.read_text(encoding='utf-8')
    assert f'clipflow serve --flow flows/{path.name}' in text
    assert yaml.safe_load(text)['jtype'] == 'Flow'
