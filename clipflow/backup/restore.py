"""A backup is put back: read and compared with its manifest as a whole, then put in place in one step."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clipflow.backup import manifest
from clipflow.backup.contents import SCHEMAS, Moved
from clipflow.backup.manifest import Manifest
from clipflow.backup.take import complete, mark_of, streamed
from clipflow.backup.target import Target
from clipflow.errors import Conflict, Internal, InvalidParameter, ModelMismatch, NotFound, ReadOnly, StorageFull
from clipflow.files import sync
from clipflow.store import generations, layout
from clipflow.store.connection import lock


def found(address: str) -> tuple[Target, Manifest]:
    """The backup at an address, or the latest of those in it.

    Raises:
        NotFound: there is none.
        InvalidParameter: there are backups of several workspaces.
        Conflict, Internal: it is of a newer clipflow, or its manifest is damaged.
    """
    place = Target(address)
    data = place.read(manifest.NAME)
    if data is None:
        backups = complete(place)
        if not backups:
            raise NotFound(f'there is no complete backup in {place.address}')
        *_, latest = backups
        if len(set(map(mark_of, backups))) > 1:
            raise InvalidParameter(
                f'{place.address} has backups of several workspaces; name one of them, such as '
                f'{place.address}/{latest} (`clipflow backup --list` shows all)'
            )
        place, data = place.at(latest), backups[latest]
    return place, Manifest.parse(data, place.address)


def restore(
    workspace: Path,
    backup: Target,
    told: Manifest,
    fingerprint: str,
    begun: Callable[[int], Moved],
    *,
    force: bool = False,
) -> None:
    """Put a backup in the place of everything in a workspace. Until the end nothing there changes.

    Args:
        workspace: as in CLIPFLOW_WORKSPACE; made if it is not there.
        backup: where it is.
        told: its manifest.
        fingerprint: of the model that the service will run.
        begun: as for `take`.
        force: replace what is there.

    Raises:
        ModelMismatch: its vectors are of another model.
        InvalidParameter: it lies in a part of the workspace that it would replace.
        Conflict: a service has the workspace, it is not empty, or a newer clipflow has written the backup.
        NotFound, Internal: a file of the backup is missing or damaged.
        StorageFull, ReadOnly: the workspace cannot be written.
    """
    told.check_versions(backup.address, SCHEMAS)
    backup.check_apart(workspace)
    if told.model.fingerprint not in ('', fingerprint):
        raise ModelMismatch(
            f'the vectors in {backup.address} were made with the model {told.model.name!r} '
            f'({told.model.fingerprint}); set CLIPFLOW_MODEL to it'
        )
    with _alone(workspace, told):
        if not force and (there := _first(workspace)):
            raise Conflict(f'{there} is in the workspace; --force replaces everything there by the backup')
        staging = generations.staging(workspace)
        shutil.rmtree(staging, ignore_errors=True)
        if (free := shutil.disk_usage(workspace).free) < told.size:
            raise StorageFull(f'the backup needs {told.size:,} bytes, and {free:,} are left in {workspace}')
        try:
            _fetch(backup, told, staging, begun(told.size))
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        generations.replace(workspace)


def _fetch(backup: Target, told: Manifest, staging: Path, moved: Moved) -> None:
    target = Target(str(staging))
    for name, file in told.files.items():
        with backup.opened(name) as source, target.created(name) as write:
            read = streamed(source, write, moved)
        if (read.bytes, read.sha256) != (file.bytes, file.sha256):
            raise Internal(f'{backup.address}/{name} is damaged; take another backup. Nothing was changed')
    for folder in [path for path in staging.rglob('*') if path.is_dir()]:
        sync(folder)


@contextmanager
def _alone(workspace: Path, told: Manifest) -> Iterator[None]:
    """No service has the workspace, and none can begin in the shards of old or new; no command makes any anew."""
    with ExitStack() as closing:
        folder = closing.enter_context(generations.alone(workspace, make=True))
        before = layout.shards(folder)
        for number in sorted({*before, *told.shards}):
            closing.callback(os.close, lock(folder / str(number)))
        try:
            yield
        finally:
            for number in told.shards.keys() - before.keys():
                _remove_if_made(folder / str(number))


def _remove_if_made(directory: Path) -> None:
    """Of a shard that was made only to be held."""
    if directory.is_dir() and [path.name for path in directory.iterdir()] == [layout.LOCK]:
        shutil.rmtree(directory)


def _first(workspace: Path) -> Path | None:
    """Something that would be replaced."""
    try:
        shards = layout.shards(generations.current(workspace))
        files = (path for name in (layout.FEEDBACK, layout.RANKER) for path in (workspace / name).glob('*'))
        return next(iter([*shards.values(), *files]), None)
    except OSError as error:
        raise ReadOnly(f'the workspace {workspace} cannot be read: {error.strerror}') from None
