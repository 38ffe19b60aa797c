"""Which head is live: loaded, replaced, rolled back, switched off, refused; across restarts and replicas."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from clipflow.errors import Conflict, DimensionMismatch, Forbidden, InvalidParameter, ModelMismatch, NotFound
from clipflow.rank.head import Head
from clipflow.rank.live import LiveHead

MODEL = 'm' * 64


def head(number: int, model: str = MODEL, passed: bool = True) -> Head:
    matrix = np.full((1, 4), number, dtype=np.float32)
    return Head(matrix, matrix.T.copy(), model, passed=passed)


class Ranker(LiveHead):
    """One that lives in its own time: `version` looks a second later than before."""

    def __init__(self, folder: Path, setting: Path | None = None, model: str = MODEL) -> None:
        super().__init__(folder, setting, model)
        self._time = 0.0

    @property
    def version(self) -> str:
        self._time += 1.0
        found = self.current(self._time)
        return 'none' if found is None else found.version

    @property
    def warnings(self) -> str:
        return ' '.join(self._warnings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / 'ranker'


def test_without_a_head_nothing_is_written(folder: Path) -> None:
    assert Ranker(folder).version == 'none'
    assert not folder.exists()


def test_a_head_goes_live_at_once_and_the_one_before_comes_back(folder: Path) -> None:
    ranker = Ranker(folder)
    ranker.load('', head(1).content(), force=False)
    assert ranker.status()['head'] == head(1).version
    ranker.load('', head(2).content(), force=False)
    assert (ranker.status()['head'], ranker.status()['heads_before']) == (head(2).version, [head(1).version, 'none'])
    for expected in (head(1).version, 'none'):
        ranker.rollback()
        assert ranker.status()['head'] == expected
    with pytest.raises(Conflict, match='no head to go back to'):
        ranker.rollback()


def test_what_another_replica_writes_while_this_one_reads_is_followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Ranker(folder), Ranker(folder)
    other.load('', head(1).content(), force=False)
    read = one._read

    def overtaken() -> object:
        state = read()
        monkeypatch.undo()
        other.load('', head(2).content(), force=False)
        return state

    monkeypatch.setattr(one, '_read', overtaken)
    assert [one.version for _ in range(3)] == [head(1).version, head(2).version, head(2).version]


def test_off_is_undone_by_a_rollback(folder: Path) -> None:
    ranker = Ranker(folder)
    ranker.load('', head(1).content(), force=False)
    ranker.off()
    assert (ranker.version, Ranker(folder).version) == ('none', 'none')
    ranker.rollback()
    assert ranker.version == head(1).version


def test_replicas_and_restarts_agree(folder: Path) -> None:
    one, other = Ranker(folder), Ranker(folder)
    assert (one.version, other.version) == ('none', 'none')
    one.load('', head(1).content(), force=False)
    assert (other.version, Ranker(folder).version) == (head(1).version, head(1).version)
    one.load('', head(2).content(), force=False)
    other.rollback()
    assert (one.version, other.version, Ranker(folder).version) == (head(1).version,) * 3


def test_a_file_is_looked_at_once_a_second_at_most(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = LiveHead(folder, None, MODEL)
    assert ranker.current(10.0) is None
    LiveHead(folder, None, MODEL).load('', head(1).content(), force=False)
    assert ranker.current(10.9) is None
    found = ranker.current(11.0)
    assert found is not None
    monkeypatch.setattr(Head, 'read', lambda path: pytest.fail('nothing has changed'))
    assert ranker.current(12.5) is found


@pytest.mark.parametrize('by', ['setting', 'path'])
def test_a_watched_file_is_read_again_when_it_changes_and_missed_when_it_is_gone(folder: Path, by: str) -> None:
    file = folder / 'mine.safetensors'
    head(1).write(file)
    ranker = Ranker(folder, file if by == 'setting' else None)
    if by == 'path':
        ranker.load('mine.safetensors', b'', force=False)
    assert (ranker.version, ranker.warnings) == (head(1).version, '')
    head(2).write(file)
    assert ranker.version == head(2).version
    file.unlink()
    assert ranker.version == 'none'
    assert 'there is no head' in ranker.warnings
    assert str(file) in ranker.warnings
    head(2).write(file)
    assert (ranker.version, ranker.warnings) == (head(2).version, '')
    # What was rolled back does not return with the next look, a new file does.
    ranker.rollback()
    os.utime(file)
    assert ranker.version == head(1).version
    assert ranker.version == head(1).version
    head(3).write(file)
    assert ranker.version == head(3).version


def test_a_rollback_leads_away_from_a_file_that_was_replaced_just_before(folder: Path) -> None:
    file = folder / 'mine.safetensors'
    head(1).write(file)
    ranker = Ranker(folder, file)
    assert ranker.version == head(1).version
    head(2).write(file)
    ranker.rollback()
    assert [ranker.version for _ in range(2)] == [head(1).version] * 2


def test_a_file_that_is_not_right_leaves_the_live_head_and_is_told(folder: Path) -> None:
    file = folder / 'mine.safetensors'
    head(1).write(file)
    ranker = Ranker(folder, file)
    assert ranker.version == head(1).version
    for content, reason in (
        (b'rubbish', 'damaged'),
        (head(2, 'other').content(), 'another model'),
        (head(2, passed=False).content(), 'worse than the cosine'),
    ):
        file.write_bytes(content)
        assert ranker.version == head(1).version
        assert reason in ranker.warnings
    assert Ranker(folder, file).version == head(1).version


def test_another_setting_wins_over_what_was_loaded_before(folder: Path) -> None:
    file = folder / 'mine.safetensors'
    head(1).write(file)
    Ranker(folder).load('', head(2).content(), force=False)
    assert Ranker(folder, file).version == head(1).version
    other = Ranker(folder, file)
    other.load('', head(3).content(), force=False)
    assert Ranker(folder, file).version == head(3).version  # the setting is the same as before
    head(1).write(folder / 'again.safetensors')
    assert Ranker(folder, folder / 'again.safetensors').version == head(1).version
    assert Ranker(folder, None).version == 'none'


def test_a_setting_whose_file_is_missing_is_not_what_was_loaded_before(folder: Path) -> None:
    Ranker(folder).load('', head(1).content(), force=False)
    ranker = Ranker(folder, folder / 'missing.safetensors')
    assert ranker.version == 'none'
    assert 'order of the cosine' in ranker.warnings
    head(2).write(folder / 'missing.safetensors')
    assert (ranker.version, ranker.warnings) == (head(2).version, '')


def test_what_was_rolled_back_to_stays_when_the_watched_file_is_gone_and_the_warning_says_so(folder: Path) -> None:
    file = folder / 'mine.safetensors'
    ranker = Ranker(folder, file)
    for number in (1, 2):
        head(number).write(file)
        assert ranker.version == head(number).version
    ranker.rollback()
    file.unlink()
    assert ranker.version == head(1).version
    assert f'the head {head(1).version} stays' in ranker.warnings
    assert 'cosine' not in ranker.warnings
    ranker.rollback()
    assert ranker.version == 'none'
    assert 'order of the cosine' in ranker.warnings


@pytest.mark.parametrize('damage', [{'source': 5}, {'before': [1]}, {'live': None}, {'off': 'no'}])
def test_a_state_of_other_types_is_told(folder: Path, damage: dict[str, object]) -> None:
    ranker = Ranker(folder)
    ranker.load('', head(1).content(), force=False)
    state = folder / 'state.json'
    state.write_text(json.dumps(json.loads(state.read_text()) | damage))
    assert ranker.version == 'none'
    assert f'{state} cannot be read' in ranker.warnings


def test_what_may_not_go_live_is_refused(folder: Path, tmp_path: Path) -> None:
    ranker = Ranker(folder)
    ranker.load('', head(1).content(), force=False)
    head(2).write(tmp_path / 'outside.safetensors')
    for path, content, error in (
        ('../outside.safetensors', b'', Forbidden),
        (str(tmp_path / 'outside.safetensors'), b'', Forbidden),
        ('none.safetensors', b'', NotFound),
        ('a\0b', b'', InvalidParameter),
        ('', b'', InvalidParameter),
        ('', b'rubbish', InvalidParameter),
        ('', head(2, 'other').content(), ModelMismatch),
        ('', head(2, passed=False).content(), Conflict),
    ):
        with pytest.raises(error):
            ranker.load(path, content, force=False)
        assert ranker.status()['head'] == head(1).version
    ranker.load('', head(2, passed=False).content(), force=True)
    assert ranker.version == head(2).version


def test_once_the_dimension_is_known_a_head_of_another_is_refused(folder: Path) -> None:
    file = folder / 'mine.safetensors'
    wide = Head(np.ones((1, 5), np.float32), np.ones((5, 1), np.float32), MODEL, passed=True)
    head(1).write(file)
    ranker = Ranker(folder, file)
    ranker.dimension = 4
    assert (ranker.version, ranker.warnings) == (head(1).version, '')
    for force in (False, True):
        with pytest.raises(DimensionMismatch, match='5 dimensions, and here they have 4'):
            ranker.load('', wide.content(), force=force)
    wide.write(file)
    assert ranker.version == head(1).version
    assert '5 dimensions' in ranker.warnings


def test_another_model_or_a_lost_version_means_the_cosine_and_a_warning(folder: Path) -> None:
    Ranker(folder).load('', head(1).content(), force=False)
    changed = Ranker(folder, model='x' * 64)
    assert changed.version == 'none'
    assert 'another model' in changed.warnings
    (folder / 'versions' / f'{head(1).version}.safetensors').unlink()
    lost = Ranker(folder)
    assert lost.version == 'none'
    assert 'there is no head' in lost.warnings
    (folder / 'state.json').write_text('{')
    damaged = Ranker(folder)
    assert damaged.version == 'none'
    assert 'state.json' in damaged.warnings
    assert 'state.json' in ' '.join(damaged.status()['warnings'])


def test_where_nothing_can_be_written_the_setting_still_counts(tmp_path: Path) -> None:
    file = tmp_path / 'head.safetensors'
    head(1).write(file)
    (tmp_path / 'file').write_text('a directory cannot be made below this')
    ranker = Ranker(tmp_path / 'file' / 'ranker', file)
    assert ranker.version == head(1).version
    assert 'cannot be rolled back' in ranker.warnings
    assert ranker.version == head(1).version


def test_old_versions_are_removed_in_the_end(folder: Path) -> None:
    ranker = Ranker(folder)
    for number in range(1, 15):
        ranker.load('', head(number).content(), force=False)
    kept = {path.stem for path in (folder / 'versions').iterdir()}
    assert kept == {head(number).version for number in range(4, 15)}
