"""A workspace that is replaced is the old one or the new one, wherever it is interrupted."""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipflow.errors import ClipflowError, Conflict, Internal, NotFound, ReadOnly, StorageFull
from clipflow.store import generations, layout

PARTS = (layout.FEEDBACK, layout.RANKER)


class Interrupted(BaseException):
    """As by a power cut."""


def written(folder: Path, word: str) -> None:
    (folder / layout.INDEXER / '0').mkdir(parents=True)
    (folder / layout.INDEXER / '0' / layout.DOCUMENTS).write_text(word)
    for name in PARTS:
        (folder / name).mkdir()
        (folder / name / f'{word} file').write_text(word)


def words(workspace: Path) -> list[str]:
    """What whoever asks finds."""
    folder = generations.current(workspace)
    files = [folder / '0' / layout.DOCUMENTS, *(path for name in PARTS for path in (workspace / name).glob('*'))]
    return [path.read_text() for path in files]


def interrupt(patch: pytest.MonkeyPatch, step: int) -> None:
    """At the change of the file system with this number: before it, or half way through a deletion."""
    left = step

    def counted(call: Callable[..., Any], half: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def wrapper(*given: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                if half is not None:
                    half(*given)
                raise Interrupted
            return call(*given, **more)

        return wrapper

    def half_removed(path: Path, **_: Any) -> None:
        files = sorted(found for found in Path(path).rglob('*') if found.is_file())
        for found in files[: (len(files) + 1) // 2]:
            found.unlink()

    patch.setattr(Path, 'rename', counted(Path.rename))
    patch.setattr(Path, 'mkdir', counted(Path.mkdir))
    patch.setattr(os, 'replace', counted(os.replace))
    patch.setattr(shutil, 'rmtree', counted(shutil.rmtree, half_removed))


def test_a_workspace_that_is_replaced_is_never_half_of_each(tmp_path: Path) -> None:
    outcomes = []
    for step in range(100):
        workspace = tmp_path / str(step)
        written(workspace, 'old')
        written(generations.staging(workspace), 'new')
        done = False
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, step)
            try:
                generations.replace(workspace)
                done = True
            except Interrupted:
                pass
        # And once more, when somebody asks.
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, step // 3)
            with contextlib.suppress(Interrupted):
                generations.current(workspace)
        found = words(workspace)
        assert found in (['old'] * 3, ['new'] * 3), step
        outcomes.append(found[0])
        if found[0] == 'new':
            assert sorted(path.name for path in workspace.iterdir()) == sorted(
                [layout.GENERATION, generations.current(workspace).name, *PARTS]
            )
        if done:
            break
    assert done
    assert outcomes == sorted(outcomes, reverse=True)  # old up to one point, new from there on
    assert outcomes.count('old') > 1
    assert outcomes.count('new') > 4


def test_all_shards_of_a_service_ask_at_once(tmp_path: Path) -> None:
    written(tmp_path, 'old')
    written(generations.staging(tmp_path), 'new')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generations, '_take_over', lambda _: None)
        generations.replace(tmp_path)
    assert (tmp_path / layout.RESTORED).is_dir()
    together = threading.Barrier(8)
    found: list[Path] = []

    def ask() -> None:
        together.wait()
        found.append(generations.current(tmp_path))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert words(tmp_path) == ['new'] * 3


# -- one in the place of another --------------------------------------------------------------------------------------


def made(workspace: Path, mark: str) -> Path:
    folder = generations.named(workspace, mark)
    (folder / '0').mkdir(parents=True)
    (folder / '0' / layout.DOCUMENTS).write_text(mark)
    return folder


def test_what_counts_no_more_is_named_until_it_is_deleted(tmp_path: Path) -> None:
    for step in range(20):
        workspace = tmp_path / str(step)
        before, after, other = (made(workspace, mark) for mark in ('before', 'after', 'other'))
        generations.switch(workspace, before)
        done = False
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, step)
            try:
                generations.switch(workspace, after, gone=before)
                generations.clear(workspace)
                done = True
            except Interrupted:
                pass
        switched = generations.current(workspace) == after
        with generations.alone(workspace) as folder:
            assert folder == (after if switched else before)
        assert {path.name for path in workspace.iterdir() if path.is_dir()} == {
            after.name,
            other.name,
            *([] if switched else [before.name]),
        }
        # A name that comes again is not deleted for what it was.
        made(workspace, 'before2').rename(before) if switched else None
        with generations.alone(workspace):
            pass
        assert before.exists()
        if done:
            break
    assert done
    assert step > 2


def test_one_command_at_a_time_and_a_start_waits_for_none(tmp_path: Path) -> None:
    before, after = made(tmp_path, 'before'), made(tmp_path, 'after')
    with generations.alone(tmp_path):
        generations.switch(tmp_path, after, gone=before)
        with pytest.raises(Conflict, match='another command'), generations.alone(tmp_path):
            pass
        assert generations.cleared(tmp_path) == after
        assert before.exists()
    assert generations.cleared(tmp_path) == after
    assert not before.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [layout.GENERATION, after.name]


def test_a_workspace_that_is_not_there_is_made_only_for_who_wants_that(tmp_path: Path) -> None:
    missing = tmp_path / 'a' / 'b'
    with pytest.raises(NotFound, match='CLIPFLOW_WORKSPACE'), generations.alone(missing):
        pass
    assert generations.cleared(missing) == missing / layout.INDEXER
    assert not missing.parent.exists()
    with generations.alone(missing, make=True) as folder:
        assert folder == missing / layout.INDEXER
    (tmp_path / 'file').touch()
    with pytest.raises(ReadOnly), generations.alone(tmp_path / 'file', make=True):
        pass


def test_a_name_is_free_only_if_it_does_not_count(tmp_path: Path) -> None:
    first = generations.free(tmp_path, 'x')
    assert first == generations.free(tmp_path, 'x') == made(tmp_path, 'x')
    generations.switch(tmp_path, first)
    second = generations.free(tmp_path, 'x')
    assert second not in (first, tmp_path / layout.INDEXER)
    generations.switch(tmp_path, made(tmp_path, 'x2'))
    assert generations.free(tmp_path, 'x') == first


@pytest.mark.parametrize('text', ['', '..\n', 'indexer/0', 'indexer-a\n..', 'indexer\nindexer\n'])
def test_a_file_that_names_something_else_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / layout.GENERATION).write_text(text)
    with pytest.raises(Internal, match='is damaged'):
        generations.current(tmp_path)


def test_a_switch_that_fails_changes_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = made(tmp_path, 'before'), made(tmp_path, 'after')
    generations.switch(tmp_path, before)
    there = sorted(tmp_path.iterdir())
    synced = os.fsync

    def full(descriptor: int) -> None:
        if os.path.isfile(f'/proc/self/fd/{descriptor}'):
            raise OSError(28, 'No space left on device')
        synced(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        with pytest.raises(StorageFull):
            generations.switch(tmp_path, after, gone=before)
    with pytest.raises(ClipflowError):
        generations.switch(tmp_path, generations.named(tmp_path, 'missing'), gone=before)
    assert generations.current(tmp_path) == before
    assert sorted(tmp_path.iterdir()) == there
