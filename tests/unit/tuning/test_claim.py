"""A run folder is of one run, and of one process at a time; what is damaged there is told."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from clipflow.errors import Conflict, InvalidParameter
from clipflow.tuning import claim


class Asked(BaseModel):
    """Of a training."""

    epochs: int = 3
    rate: float = 1e-5
    device: str = 'cpu'


ASKED = Asked()


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    first, second = (claim.claimed(tmp_path / 'run', ASKED) for _ in range(2))
    with first, pytest.raises(Conflict, match='another process'), second:
        pytest.fail('it was taken twice')
    with claim.claimed(tmp_path / 'run', ASKED):
        claim.check(tmp_path / 'run', ASKED)


def test_the_folder_is_of_what_was_asked_first(tmp_path: Path) -> None:
    with claim.claimed(tmp_path / 'run', ASKED):
        pass
    other = Asked(epochs=4, device='cuda')
    with pytest.raises(Conflict, match='another device and epochs'):
        claim.check(tmp_path / 'run', other)
    with pytest.raises(Conflict, match='another epochs;'), claim.claimed(tmp_path / 'run', other, {'device'}):
        pytest.fail('it was taken')
    claim.check(tmp_path / 'run', ASKED)
    with claim.claimed(tmp_path / 'run', Asked(device='cuda'), {'device'}):
        claim.check(tmp_path / 'run', Asked(device='cuda'))


def test_a_folder_of_something_else_is_refused_and_one_that_a_kill_left_is_not(tmp_path: Path) -> None:
    (tmp_path / '.lock').write_bytes(b'')
    (tmp_path / '.config.yaml-abc').write_bytes(b'epo')
    claim.check(tmp_path, ASKED)
    (tmp_path / 'letter.txt').write_text('dear reader', encoding='utf-8')
    with pytest.raises(Conflict, match='is no run folder'):
        claim.check(tmp_path, ASKED)
    with pytest.raises(Conflict, match='is no run folder'):
        claim.check(tmp_path / 'letter.txt', ASKED)


@pytest.mark.parametrize('content', ['', 'a: [', '- a', '\0'])
def test_a_damaged_configuration_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / 'config.yaml').write_text(content, encoding='utf-8')
    with pytest.raises(InvalidParameter, match=f'{re.escape(str(tmp_path))}.*choose another out') as error:
        claim.check(tmp_path, ASKED)
    assert '\n' not in error.value.message
