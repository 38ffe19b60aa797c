"""Every room has the same five files, and Jina can load its Python file by path."""

import ast
from collections import Counter
from pathlib import Path

import pytest
import yaml

from .code import DOORS, ROOT, files, tree

SAME_IN_ALL = {'config.yml', 'requirements.txt', 'Dockerfile', 'README.md'}


@pytest.mark.parametrize('room', DOORS, ids=lambda room: room.name)
def test_a_room_is_one_python_file_and_the_same_four_beside_it(room: Path) -> None:
    found = {path.name for path in room.iterdir() if path.is_file()}
    python = {name for name in found if name.endswith('.py')}
    assert len(python) == 1
    assert found - python == SAME_IN_ALL


def test_file_stems_of_rooms_are_unique_and_hide_no_package() -> None:
    stems = Counter(path.stem for path in files('executors', 'gateway'))
    assert [stem for stem, times in stems.items() if times > 1] == []
    assert not {'jina', 'docarray', 'clipflow', 'clipflow_client', 'encoder', 'ranker'} & set(stems)


@pytest.mark.parametrize('room', DOORS, ids=lambda room: room.name)
def test_the_config_names_the_file_and_a_class_in_it(room: Path) -> None:
    config = yaml.safe_load((room / 'config.yml').read_text(encoding='utf-8'))
    modules = config.get('py_modules') or config['metas']['py_modules']
    assert [(room / name).is_file() for name in modules] == [True]
    classes = {node.name for node in tree(room / modules[0]).body if isinstance(node, ast.ClassDef)}
    kind = config['jtype'] if config['jtype'] != 'Gateway' else config['uses']
    assert kind in classes


def test_the_flow_file_names_every_room_once_in_the_order_of_the_data() -> None:
    flow = yaml.safe_load((ROOT / 'flow.yml').read_text(encoding='utf-8'))
    assert [entry['uses'] for entry in flow['executors']] == [
        f'executors/{room}/config.yml' for room in ('preprocessor', 'encoder', 'indexer', 'ranker')
    ]
