"""Log lines, for people or as JSON."""

import json
import logging
from collections.abc import Iterator

import pytest

from clipflow import logs


@pytest.fixture
def fresh() -> Iterator[None]:
    """The logger as a new process has it."""
    root = logging.getLogger('clipflow')
    before = root.handlers[:], root.level, root.propagate
    root.handlers[:] = []
    yield
    root.handlers[:], root.level, root.propagate = before


@pytest.mark.usefixtures('fresh')
def test_a_json_line_is_one_object_with_stage_level_and_trace(capsys: pytest.CaptureFixture[str]) -> None:
    log = logs.configure('json', 'indexer')
    log.info('%d documents, "quoted"\nand more', 3)
    try:
        raise ValueError('broken')
    except ValueError:
        log.exception('failed')
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first['stage'], first['level']) == ('indexer', 'info')
    assert first['message'] == '3 documents, "quoted"\nand more'
    assert 'ValueError: broken' in second['trace']


@pytest.mark.usefixtures('fresh')
def test_a_line_for_people_names_the_stage_and_comes_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure('text', 'indexer')
    logs.configure('text', 'indexer').warning('careful')
    (line,) = capsys.readouterr().err.splitlines()
    assert 'WARNING' in line
    assert 'clipflow.indexer: careful' in line
