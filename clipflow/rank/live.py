"""Which head orders results now: loaded, replaced, rolled back and switched off while searches go on.

Every head that was live is kept as `versions/<version>.safetensors`, and `state.json` says which of them is. Both stand
in one directory, which replicas of the ranker share: each looks at the files at most once a second, and so all follow
whichever of them was told, or a file that is replaced.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clipflow.errors import ClipflowError, Conflict, Forbidden, InvalidParameter, NotFound, ReadOnly, StorageFull
from clipflow.files import replaced
from clipflow.rank.head import Head

_SECONDS = 1.0
_KEPT = 10


@dataclass(frozen=True)
class _State:
    """What is kept across restarts.

    Attributes:
        setting: the file that the settings named when this was written.
        source: the file that is watched; empty for none.
        taken: version of the head that was last taken from it.
        live: version of the head that counts; empty for none.
        before: those that counted before, the latest first.
        off: whether none counts, whatever `live` is.
    """

    setting: str = ''
    source: str = ''
    taken: str = ''
    live: str = ''
    before: tuple[str, ...] = ()
    off: bool = False

    def with_live(self, version: str, **more: Any) -> '_State':
        if version == self.live:
            return replace(self, off=False, **more)
        return replace(self, live=version, before=(self.live, *self.before)[:_KEPT], off=False, **more)


class LiveHead:
    """See the module. For one thread.

    Args:
        folder: the directory of heads; made when the first one is loaded.
        setting: a file that is to be live, and is watched; None for none.
        model: fingerprint of the model that runs.
    """

    def __init__(self, folder: Path, setting: Path | None, model: str) -> None:
        self._folder = folder
        self._setting = '' if setting is None else str(setting)
        self._model = model
        self._head: Head | None = None
        self._state = _State()
        self._warnings: list[str] = []
        self._seen: object = None
        self._next = 0.0

    def current(self, now: float | None = None) -> Head | None:
        """The head that counts; None: the cosine alone. `now`: seconds of a monotonic clock."""
        now = time.monotonic() if now is None else now
        if now >= self._next:
            self._next = now + _SECONDS
            if self._looks() != self._seen:
                self._follow()
        return self._head

    def load(self, path: str, content: bytes, *, force: bool) -> None:
        """Let a head count from now on.

        Args:
            path: of a file in the directory of heads, which is watched from now on.
            content: of a file, if there is no path.
            force: also one that has not passed its check.

        Raises:
            Forbidden: the path is outside of the directory.
            NotFound, InvalidParameter, DimensionMismatch, ModelMismatch: there is no such head, or it is not right.
            Conflict: it has not passed its check.
            ReadOnly, StorageFull: the directory cannot be written.
        """
        file = self._below(path) if path else None
        if file is None and not content:
            raise InvalidParameter("say which head to load: 'path', or a Document with the content of the file")
        head = Head.read(file) if file is not None else Head.of(content, 'what was sent')
        self._check(head, force)
        source = '' if file is None else str(file)
        self._change(lambda state: state.with_live(head.version, source=source, taken=head.version), head)

    def rollback(self) -> None:
        """Let count what counted before.

        Raises:
            Conflict: nothing did.
            ReadOnly, StorageFull: the directory cannot be written.
        """

        def back(state: _State) -> _State:
            if state.off:
                return replace(state, off=False)
            if not state.before:
                raise Conflict('there is no head to go back to')
            return replace(state, live=state.before[0], before=state.before[1:])

        self._change(back)

    def off(self) -> None:
        """Let none count, until one is loaded or `rollback`.

        Raises:
            ReadOnly, StorageFull: the directory cannot be written.
        """
        self._change(lambda state: replace(state, off=True))

    def status(self) -> dict[str, Any]:
        """For `/status` and `/ranker`."""
        head = self.current()
        return {
            'head': 'none' if head is None else head.version,
            'head_file': self._state.source,
            'head_made': '' if head is None else f'{head.made} from {head.source}',
            'heads_before': [version or 'none' for version in self._state.before],
            'warnings': list(self._warnings),
        }

    # -- files --------------------------------------------------------------------------------------------------------

    def _looks(self) -> object:
        """What changes when a file does."""
        source = self._state.source
        return [_signature(self._folder / 'state.json'), source, _signature(Path(source)) if source else None]

    def _follow(self) -> None:
        """Read the state, take what has changed in the watched file, and load the head that counts."""
        self._warnings = []
        # Before reading: what another replica writes meanwhile is then seen a second later.
        seen = self._looks()
        try:
            self._state = state = self._with_setting(self._read())
            missing = False
            if state.source and not state.off:
                missing = not self._take(Path(state.source))
            state = self._state
            wanted = '' if state.off or (missing and state.live == state.taken) else state.live
            self._head = self._version(wanted) if wanted else None
        except ClipflowError as error:
            self._head = None
            self._warnings.append(f'results are in the order of the cosine: {error.message}')
        self._seen = seen

    def _take(self, file: Path) -> bool:
        """Let the watched file count if its content is new; False if it is missing. What is wrong with it is said."""
        try:
            head = Head.read(file)
            if head.version != self._state.taken:
                self._check(head, force=False)
                self._keep(head)
        except NotFound as error:
            self._warnings.append(f'{error.message}; results are in the order of the cosine')
            return False
        except ClipflowError as error:
            self._warnings.append(f'{file} is not used: {error.message}')
        return True

    def _keep(self, head: Head) -> None:
        def change(state: _State) -> _State:
            return state.with_live(head.version, taken=head.version)

        try:
            self._change(change, head, follow=False)
        except (ReadOnly, StorageFull) as error:
            self._state, self._head = change(self._state), head
            self._warnings.append(f'{error.message}; the head counts, but cannot be rolled back')

    def _version(self, version: str) -> Head:
        head = self._head
        if head is None or head.version != version:
            head = Head.read(self._folder / 'versions' / f'{version}.safetensors')
        head.check(self._model)
        return head

    def _check(self, head: Head, force: bool) -> None:
        head.check(self._model)
        if not (head.passed or force):
            raise Conflict(
                f'the head {head.version} ranked queries that it was not trained with worse than the cosine does; '
                'train it with more, or load it with force'
            )

    def _change(self, change: Callable[[_State], _State], head: Head | None = None, *, follow: bool = True) -> None:
        """Change the state, for all replicas; `head` is kept as a version first."""
        with self._locked():
            if head is not None:
                head.write(self._folder / 'versions' / f'{head.version}.safetensors')
            state = change(self._with_setting(self._read()))
            replaced(self._folder / 'state.json', json.dumps(asdict(state)).encode())
            self._state, self._head = state, head or self._head
            for file in (self._folder / 'versions').glob('*.safetensors'):
                if file.stem not in (state.live, *state.before):
                    file.unlink(missing_ok=True)
        if follow:
            self._follow()

    def _with_setting(self, state: _State) -> _State:
        """A setting that is new counts, whatever was loaded before."""
        if state.setting == self._setting:
            return state
        gone = not self._setting and state.source == state.setting
        live = '' if gone else state.live
        return replace(state, setting=self._setting, source=self._setting, taken='', live=live, off=False)

    def _read(self) -> _State:
        try:
            found = json.loads((self._folder / 'state.json').read_text(encoding='utf-8'))
            return _State(**found | {'before': tuple(found['before'])})
        except (FileNotFoundError, NotADirectoryError):
            return _State()
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise Conflict(
                f'{self._folder / "state.json"} cannot be read ({error}); remove it, and load a head'
            ) from None

    def _below(self, path: str) -> Path:
        file = (self._folder / path).resolve()
        if not file.is_relative_to(self._folder.resolve()):
            raise Forbidden(f'heads are loaded from {self._folder} (CLIPFLOW_RANKER_HEADS) only')
        return file

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder / 'lock', os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ReadOnly(f'the directory of heads {self._folder} cannot be written: {error.strerror}') from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _signature(file: Path) -> object:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
