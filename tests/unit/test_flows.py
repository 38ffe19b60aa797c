"""A Flow's YAML as typed data."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from clipflow import ROOT
from clipflow.errors import ClipflowError, InvalidParameter, NotFound
from clipflow.flows import Flow, Part


def flow(tmp_path: Path, raw: Any) -> Flow:
    path = tmp_path / 'flow.yml'
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw), encoding='utf-8')
    return Flow.read(path)


def of(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {'jtype': 'Flow', 'executors': list(parts), **more}


def test_our_own_flow() -> None:
    found = Flow.read(ROOT / 'flow.yml')
    assert found.ports == {'grpc': 51000, 'http': 8080}
    assert (found.retries, found.prefetch) == (0, 32)
    assert found.parts[1] == Part('encoder', 'encoder', ('preprocessor',))


@pytest.mark.parametrize('path', sorted((ROOT / 'flows').glob('*.yml')), ids=lambda path: path.stem)
def test_every_variant_is_read(path: Path) -> None:
    assert Flow.read(path).parts


def test_a_stage_follows_the_one_before_it_unless_it_says_otherwise(tmp_path: Path) -> None:
    found = flow(
        tmp_path, of({'name': 'a'}, {'name': 'b'}, {'name': 'c', 'needs': 'a'}, {'name': 'd', 'needs': ['b', 'c']})
    )
    assert found.graph() == {
        'start-gateway': ['a'],
        'a': ['b', 'c'],
        'b': ['d'],
        'c': ['d'],
        'd': ['end-gateway'],
    }


def test_an_external_stage_has_an_address_and_no_room(tmp_path: Path) -> None:
    (part,) = flow(
        tmp_path, of({'name': 'a', 'external': True, 'host': 'h', 'port': 1, 'uses': 'x/a/config.yml'})
    ).parts
    assert (part.address, part.room) == ('h:1', '')


@pytest.mark.parametrize(
    ('raw', 'sentence'),
    [
        ('jtype: Gateway', 'is not a Flow'),
        ('[1, 2]', 'is not a Flow'),
        ('a: [', 'is not valid YAML'),
        (of(), 'has no stages'),
        (of('encoder'), 'a stage has no name'),  # type: ignore[arg-type]
        (of({'uses': 'x'}), 'a stage has no name'),
        (of({'name': 'a'}, {'name': 'a'}), "two stages 'a'"),
        (of({'name': 'a', 'needs': 'b'}), "a needs 'b'"),
        (of({'name': 'a', 'replicas': 'two'}), "replicas is 'two'"),
        (of({'name': 'a'}, gateway={'port': [1, 2], 'protocol': ['grpc']}), 'as long a list of protocols'),
        (of({'name': 'a'}, gateway={'port': 1, 'protocol': 'grpc'}), 'as long a list of protocols'),
        (of({'name': 'a'}, gateway={'port': ['x'], 'protocol': ['grpc']}), "port is 'x'"),
        (of({'name': 'a'}, **{'with': {'retries': True}}), 'retries is True'),
    ],
)
def test_what_is_no_flow_of_ours_is_refused_in_a_sentence(raw: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter) as caught:
        flow(tmp_path, raw)
    assert sentence in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match='cannot be read'):
        Flow.read(tmp_path / 'none.yml')


def test_a_folder_is_no_flow(tmp_path: Path) -> None:
    with pytest.raises(ClipflowError):
        Flow.read(tmp_path)
