"""`clipflow feedback export`: the file is there as a whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipflow.cli import feedback
from clipflow.cli.main import main
from clipflow.clicks import Feedback, read_log


class Log:
    """A service that has a log; `between` happens after its first entry."""

    def __init__(self, between: Any) -> None:
        self._between = between

    def feedback_log(self, user: str | None) -> Iterator[Feedback]:
        for number in range(3):
            yield Feedback(f'query {number}', np.ones(2, np.float32), 'model', ('a',), ('a',), (), user=user or 'all')
            if number == 0:
                self._between(user)


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happens while an export runs, called with its user."""
    calls: list[Any] = [lambda user: None]

    @contextmanager
    def opened(given: Any) -> Iterator[Log]:
        yield Log(calls[0])

    monkeypatch.setattr(feedback, 'opened', opened)
    return calls


def test_two_exports_at_once_into_one_file_leave_the_whole_of_one(tmp_path: Path, between: list[Any]) -> None:
    file = tmp_path / 'log.jsonl'

    def again(user: str | None) -> None:
        if user is None:
            assert main(['feedback', 'export', str(file), '--user', 'ann']) == 0

    between[0] = again
    assert main(['feedback', 'export', str(file)]) == 0
    entries, faults = read_log(file)
    assert (len(entries), {entry.user for entry in entries.values()}, faults) == (3, {'all'}, {})
    assert list(tmp_path.iterdir()) == [file]


def test_an_export_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, between: list[Any]) -> None:
    file = tmp_path / 'log.jsonl'
    file.write_text('old')

    def stopped(user: str | None) -> None:
        raise KeyboardInterrupt

    between[0] = stopped
    assert main(['feedback', 'export', str(file)]) == 130
    assert (file.read_text(), list(tmp_path.iterdir())) == ('old', [file])


@pytest.mark.parametrize('name', ['.', '/', ''])
def test_a_folder_is_no_file(tmp_path: Path, between: list[Any], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['feedback', 'export', name or str(tmp_path)]) == 1
    assert 'is a folder; name a file' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
