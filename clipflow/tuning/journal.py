"""What a run says of itself: a progress bar, lines in metrics.jsonl, and curves for TensorBoard."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipflow.files import replaced
from clipflow.tuning.state import writing
from clipflow.tuning.tasks import Measures

Moved = Callable[..., None]
METRICS = 'metrics.jsonl'


class Journal:
    """Of one run folder.

    Args:
        folder: of the run; it is there.
        speaks: whether this process writes and shows anything (the first of several does).
        shows: whether there is a progress bar.
    """

    def __init__(self, folder: Path, speaks: bool, shows: bool) -> None:
        self._file, self._shows = folder / METRICS, speaks and shows
        self._speaks = speaks
        self._boards = folder / 'tensorboard'
        self._board: Any = None
        self._bars: Any = None

    def resume(self, step: int) -> None:
        """Forget what was written after this step (-1: all): it comes again."""
        if self._speaks:
            kept = [json.dumps(row) + '\n' for row in self.rows() if row['step'] <= step]
            replaced(self._file, ''.join(kept).encode())
            with writing(self._boards):
                self._board = _writer(self._boards, step + 1)

    def step(self, step: int, epoch: int, loss: float, rate: float) -> None:
        """Note one step."""
        self._write({'step': step, 'epoch': epoch, 'loss': loss, 'learning_rate': rate})

    def epoch(self, step: int, epoch: int, measures: Measures, score: float) -> None:
        """Note one measurement on the validation data."""
        self._write({'step': step, 'epoch': epoch, 'score': score, **measures})

    def rows(self) -> list[dict[str, Any]]:
        """All that was noted; a last line that was cut by a crash is left out."""
        if not self._file.exists():
            return []
        found = []
        for line in self._file.read_text(encoding='utf-8').splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return found

    def _write(self, row: dict[str, Any]) -> None:
        if not self._speaks:
            return
        with writing(self._file), self._file.open('a', encoding='utf-8') as file:
            file.write(json.dumps(row | {'time': round(time.time(), 3)}) + '\n')
        with writing(self._boards):
            self._board = self._board or _writer(self._boards, None)
            for name, value in row.items():
                if name not in ('step', 'epoch'):
                    self._board.add_scalar(name.replace('@', '_at_').replace(' ', '/'), value, row['step'])

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Moved]:
        """A bar with rate and remaining time, on standard error; the function is told how many more are done."""
        if not self._shows:
            yield lambda count, said='': None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        outer = self._bars is None
        if outer:
            columns = (
                TextColumn('{task.description}'),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn('{task.fields[rate]}/s'),
                TimeRemainingColumn(),
                TextColumn('{task.fields[said]}'),
            )
            self._bars = Progress(*columns, console=Console(stderr=True))
            self._bars.start()
        bars = self._bars
        task = bars.add_task(title, total=total, completed=done, rate='-', said='')

        def moved(count: int, said: str = '') -> None:
            speed = next(one.speed for one in bars.tasks if one.id == task)
            bars.update(task, advance=count, rate=f'{speed:,.1f}' if speed else '-', said=said)

        try:
            yield moved
        finally:
            if outer:
                bars.stop()
                self._bars = None
            else:
                bars.remove_task(task)

    def close(self) -> None:
        """Write out what is not written yet."""
        if self._board is not None:
            with writing(self._boards):
                self._board.close()


def _writer(folder: Path, purge: int | None) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge)
