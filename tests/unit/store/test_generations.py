"""A workspace that is replaced is the old one or the new one, wherever it is interrupted."""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
