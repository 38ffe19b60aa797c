"""An index of a folder of vectors in a file, for other tools that read FAISS."""

import contextlib
import os
import secrets
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np

from clipflow.bulk import on_disk
from clipflow.bulk.build import INDEXING, Told
from clipflow.bulk.mapped import Mapped
from clipflow.errors import InvalidParameter, ReadOnly, StorageFull
from clipflow.index.approximate import Approximate, save
from clipflow.index.build import build
from clipflow.index.choice import Choice, Wanted, choose
from clipflow.index.trial import check_kind


def write(source: Mapped, file: Path, wanted: Wanted, told: Told) -> Choice:
    """An index for others, such as clip-retrieval's back: FAISS, inner product, ids are places in the folder.

    Its search effort is set as it was tuned.

    Raises:
        InvalidParameter: FAISS knows no such kind, or the file is a folder.
        ReadOnly, StorageFull: it cannot be written; a file that was there is left.
    """
    if file.is_dir():
        raise InvalidParameter(f'{file} is a folder; name a file for the index')
    check_kind(wanted.kind, source.dimension())
    choice = choose(wanted, source.count(), source.dimension())
    temporary = file.with_name(f'.{file.name}-{secrets.token_hex(4)}')
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        if 'IVF' in choice.factory and choice.memory > wanted.memory:
            on_disk.write(source, temporary, choice, wanted, told)
        else:
            save(_built(source, choice, wanted.recall, told).faiss, temporary)
        os.replace(temporary, file)
    except OSError as error:
        kind = StorageFull if temporary.exists() else ReadOnly
        raise kind(f'{file} could not be written: {error.strerror or error}') from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return choice


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
