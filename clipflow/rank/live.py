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

    def with_setting(self, setting: str) -> '_State':
        """One that is new counts, whatever was loaded before."""
        if self.setting == setting:
            return self
        gone = not setting and self.source == self.setting
        live = '' if gone else self.live
        return replace(self, setting=setting, source=setting, taken='', live=live, off=False)

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

    Attributes:
        dimension: of the vectors, once somebody has said it; a head of another one is refused then.
    """

    def __init__(self, folder: Path, setting: Path | None, model: str) -> None:
        self._folder = folder
        self._setting = '' if setting is None else str(setting)
        self._model = model
        self.dimension: int | None = None
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

        self._follow()  # a file that was replaced since the last look is what one wants to get away from
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
            self._state = self._read().with_setting(self._setting)
            self._state, self._head = self._with_watched(self._state)
        except ClipflowError as error:
            self._head = None
            self._warnings.append(f'results are in the order of the cosine: {error.message}')
        self._seen = seen

    def _with_watched(self, state: _State) -> tuple[_State, Head | None]:
        """The state once the watched file is taken, if its content is new, and the head that counts. What is wrong with
        the file is said.
        """
        if state.off:
            return state, None
        try:
            if state.source:
                head = Head.read(Path(state.source))
                if head.version != state.taken:
                    self._check(head, force=False)
                    return self._kept(state, head), head
        except NotFound as error:
            if not state.taken or state.live in ('', state.taken):
                self._warnings.append(f'{error.message}; results are in the order of the cosine')
                return state, None
            # Rolled back to, so it did not come from the file.
            self._warnings.append(f'{error.message}; the head {state.live} stays')
        except ClipflowError as error:
            self._warnings.append(f'{state.source} is not used: {error.message}')
        return state, self._version(state.live) if state.live else None

    def _kept(self, state: _State, head: Head) -> _State:
        def taken(before: _State) -> _State:
            return before.with_live(head.version, taken=head.version)

        try:
            return self._changed(taken, head)
        except (ReadOnly, StorageFull) as error:
            self._warnings.append(f'{error.message}; the head counts, but cannot be rolled back')
            return taken(state)

    def _version(self, version: str) -> Head:
        head = self._head
        if head is None or head.version != version:
            head = Head.read(self._folder / 'versions' / f'{version}.safetensors')
        head.check(self._model)
        return head

    def _check(self, head: Head, force: bool) -> None:
        head.check(self._model)
        if self.dimension is not None:
            head.check_dimension(self.dimension)
        if not (head.passed or force):
            raise Conflict(
                f'the head {head.version} ranked queries that it was not trained with worse than the cosine does; '
                'train it with more, or load it with force'
            )

    def _change(self, change: Callable[[_State], _State], head: Head | None = None) -> None:
        self._changed(change, head)
        self._follow()

    def _changed(self, change: Callable[[_State], _State], head: Head | None) -> _State:
        """Change what is kept, for all replicas; `head` is kept as a version first."""
        with self._locked():
            if head is not None:
                head.write(self._folder / 'versions' / f'{head.version}.safetensors')
            state = change(self._read().with_setting(self._setting))
            replaced(self._folder / 'state.json', json.dumps(asdict(state)).encode())
            for file in (self._folder / 'versions').glob('*.safetensors'):
                if file.stem not in (state.live, *state.before):
                    file.unlink(missing_ok=True)
            return state

    def _read(self) -> _State:
        try:
            found = json.loads((self._folder / 'state.json').read_text(encoding='utf-8'))
            state = _State(**found | {'before': tuple(found['before'])})
            texts = (state.setting, state.source, state.taken, state.live, *state.before)
            if not all(isinstance(text, str) for text in texts) or not isinstance(state.off, bool):
                raise TypeError('a value of another type')
            return state
        except (FileNotFoundError, NotADirectoryError):
            return _State()
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise Conflict(
                f'{self._folder / "state.json"} cannot be read ({error}); remove it, and load a head'
            ) from None

    def _below(self, path: str) -> Path:
        try:
            file = (self._folder / path).resolve()
        except (ValueError, OSError):  # a NUL, or a loop of links
            raise InvalidParameter(f'{path!r} is no path of a file') from None
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
