"""An index of a folder of vectors in a file, for other tools that read FAISS."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np

from clipflow.bulk import on_disk
from clipflow.bulk.build import INDEXING, Told
from clipflow.bulk.mapped import Mapped
from clipflow.errors import ClipflowError, Conflict, InvalidParameter, ReadOnly, StorageFull
from clipflow.index.approximate import Approximate, save
from clipflow.index.build import build
from clipflow.index.choice import Choice, Wanted, choose
from clipflow.index.trial import check_kind


def write(source: Mapped, file: Path, wanted: Wanted, told: Told) -> Choice:
    """An index for others, such as clip-retrieval's back: FAISS, inner product, ids are places in the folder.

    Its search effort is set as it was tuned.

    Raises:
        InvalidParameter: FAISS knows no such kind, or the file is a folder.
        Conflict: another process makes it.
        ReadOnly, StorageFull: it cannot be written; a file that was there is left.
    """
    if file.is_dir():
        raise InvalidParameter(f'{file} is a folder; name a file for the index')
    check_kind(wanted.kind, source.dimension())
    choice = choose(wanted, source.count(), source.dimension())
    kind: type[ClipflowError] = ReadOnly
    try:
        with _workshop(file) as folder:
            kind, temporary = StorageFull, folder / file.name
            if 'IVF' in choice.factory and choice.memory > wanted.memory:
                on_disk.write(source, temporary, choice, wanted, told)
            else:
                save(_built(source, choice, wanted.recall, told).faiss, temporary)
            os.replace(temporary, file)
    except OSError as error:
        raise kind(f'{file} could not be written: {error.strerror or error}') from None
    return choice


@contextmanager
def _workshop(file: Path) -> Iterator[Path]:
    """A folder beside the file for what only the making needs; what a killed process has left in it is gone."""
    folder = file.with_name(f'.{file.name}-parts')
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Conflict(f'another process makes {file}; let it end, or name another file') from None
    except OSError:
        pass  # a file system without locks, as many that are shared
    try:
        for left in folder.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _built(source: Mapped, choice: Choice, recall: float, told: Told) -> Approximate:
    """In memory."""
    made = choice if choice.factory else replace(choice, factory='Flat')
    done = 0

    def watch(task: str, share: float) -> None:
        nonlocal done
        if task == 'filling':
            told(INDEXING, int(share * source.count()) - done)
            done = int(share * source.count())

    main = build(source, made, np.empty((0, source.dimension()), np.float32), recall, watch).main
    assert main is not None
    if main.lists:
        faiss.ParameterSpace().set_index_parameter(main.faiss, 'nprobe', main.effort)
    elif 'HNSW' in main.factory:
        faiss.ParameterSpace().set_index_parameter(main.faiss, 'efSearch', main.effort)
    return main
