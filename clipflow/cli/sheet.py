"""Columns that are added to a CSV file, whose other bytes stay as they are."""

import contextlib
import csv
import errno
import fcntl
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from clipflow.errors import Conflict, InvalidParameter, ReadOnly, StorageFull
from clipflow.files import PICTURES

_BOM = '\ufeff'
# A cell as it is written, quotation marks included, and what ends it. One that is never closed does not match.
_CELL = re.compile(r'("[^"]*+(?:""[^"]*+)*+"[^,\r\n]*|[^",\r\n][^,\r\n]*|)(,|\r\n|\r|\n|\Z)')


class Sheet:
    """A CSV file and, beside it, notes of what its columns answer; one process at a time has it open.

    Cells stay as they are written, byte for byte; only those of our columns are written anew. A row is the list of its
    cells in that form. `notes` tells of a column what was asked and which columns belong to it.

    Raises:
        InvalidParameter: it is no CSV in UTF-8 with a header and commas.
        Conflict: another process has it open, or another program has changed it since it was read.
        ReadOnly, StorageFull: it cannot be written.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path.resolve()
        beside = self.path.with_name(f'{self.path.name}.clipflow.json')
        with self._translated():
            self._beside = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            with self._translated():
                fcntl.flock(self._beside, fcntl.LOCK_EX | fcntl.LOCK_NB)
                told = os.pread(self._beside, os.fstat(self._beside).st_size, 0)
                self.notes: dict[str, Any] = json.loads(told or '{}')
                self._stamps: tuple[tuple[int, ...], ...] = (self._stamp_of(self.path),)
                content = self.path.read_bytes() if self.path.exists() else f'{_written(key)}\n'.encode()
                text = content.decode()
            self._mark = _BOM if text.startswith(_BOM) else ''
            (self._header, self._end), *self._lines = _split(self.path, text.removeprefix(_BOM))
            self.names = [_read(cell) for cell in self._header]
            self._rows = [row for row, _ in self._lines if row != ['']]  # an empty line stays one
            for number, row in enumerate(self._rows, 2):
                if len(row) > len(self.names):
                    raise InvalidParameter(f'{path}: record {number} has more cells than the header')
                row.extend([''] * (len(self.names) - len(row)))
            undo.pop_all()

    def close(self) -> None:
        """Let others have it."""
        if not os.fstat(self._beside).st_size:
            self.path.with_name(f'{self.path.name}.clipflow.json').unlink(missing_ok=True)
        os.close(self._beside)

    def rows_of(self, files: list[str], key: str) -> dict[str, list[list[str]]]:
        """The rows of each file: those that name its path or, in a column without suffixes, its stem; else a new one.

        Raises:
            InvalidParameter: there is no such column, or two files have one name in it.
        """
        if self.names.count(key) != 1:
            there = ', '.join(self.names[:12])
            raise InvalidParameter(
                f'{self.path} has no column {key!r}; say with --key which names the pictures: {there}'
            )
        rows: dict[str, list[list[str]]] = {}
        for row in self._rows:
            rows.setdefault(self.value(row, key), []).append(row)
        by_path = key == 'file' or any(PurePosixPath(name).suffix[1:].lower() in PICTURES for name in rows)
        names = {file: file if by_path else PurePosixPath(file).stem for file in files}
        for name, count in Counter(names.values()).items():
            if count > 1:
                raise InvalidParameter(f'{count} pictures have the name {name!r}; a column of paths tells them apart')
            if name not in rows:
                row = [''] * len(self.names)
                row[self.names.index(key)] = _written(name)
                self._lines.append((row, self._end))
                self._rows.append(row)
                rows[name] = [row]
        return {file: rows[name] for file, name in names.items()}

    def value(self, row: list[str], column: str) -> str:
        """What a cell means; empty where there is none."""
        return _read(row[self.names.index(column)]) if column in self.names else ''

    def put(self, row: list[str], column: str, value: str) -> None:
        """Write a cell."""
        row[self.names.index(column)] = _written(value) if value else ''

    def has_values(self, column: str) -> bool:
        """Whether any cell of this column says something."""
        return any(self.value(row, column) for row in self._rows)

    def add(self, column: str, empty: bool) -> None:
        """An empty column behind the others; one that is there stays, and is emptied if asked."""
        if column not in self.names:
            self.names.append(column)
            self._header.append(_written(column))
            for row in self._rows:
                row.append('')
        elif empty:
            for row in self._rows:
                self.put(row, column, '')

    def remove(self, column: str) -> None:
        """Take a column out, if it is there."""
        if column in self.names:
            place = self.names.index(column)
            for row in (self.names, self._header, *self._rows):
                del row[place]

    def save(self) -> None:
        """Write all; whatever happens meanwhile, the file is the old one or the new one."""
        lines = [(self._header, self._end), *self._lines]
        text = self._mark + ''.join(','.join(row) + (end or self._end or '\n') for row, end in lines)
        scratch = self.path.with_name(f'.{self.path.name}.clipflow.tmp')
        with self._translated():
            with scratch.open('w', encoding='utf-8', newline='') as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if self._stamp_of(self.path) not in self._stamps:
                raise Conflict(f'another program has changed {self.path}; with the answers of this run it is {scratch}')
            if self.path.exists():
                shutil.copymode(self.path, scratch)
            # Before the new file is in its place: an interrupt in between must not make it a stranger.
            self._stamps = (self._stamps[-1], self._stamp_of(scratch))
            os.replace(scratch, self.path)

    def note(self, column: str, told: dict[str, Any]) -> None:
        """Keep what a column answers; in one write, so that no half of it stays behind."""
        self.notes[column] = told
        text = json.dumps(self.notes, ensure_ascii=False, indent=1).encode()
        with self._translated():
            os.pwrite(self._beside, text.ljust(os.fstat(self._beside).st_size), 0)
            os.fsync(self._beside)

    @staticmethod
    def _stamp_of(path: Path) -> tuple[int, ...]:
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            return found.st_ino, found.st_size, found.st_mtime_ns
        return ()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:
            raise Conflict(f'another `clipflow classify` has {self.path} open') from None
        except UnicodeDecodeError:
            raise InvalidParameter(f'{self.path} is not UTF-8; save it as "CSV UTF-8"') from None
        except ValueError:
            raise InvalidParameter(f'the notes {self.path.name}.clipflow.json are damaged; remove them') from None
        except OSError as error:
            kind = StorageFull if error.errno == errno.ENOSPC else ReadOnly
            raise kind(f'{self.path} cannot be written: {error.strerror}') from None


def _split(path: Path, text: str) -> Iterator[tuple[list[str], str]]:
    """Records, header first: cells as they are written, and what ends the line. csv.reader would not keep these."""
    row: list[str] = []
    place, number = 0, 1
    while place < len(text) or row or number == 1:
        if (found := _CELL.match(text, place)) is None:
            raise InvalidParameter(f'{path}: a quotation mark in record {number} is not closed')
        row.append(found[1])
        place = found.end()
        if found[2] != ',':
            if number == 1 and (row == [''] or (len(row) == 1 and re.search('[;\t]', row[0]))):
                raise InvalidParameter(f'{path} has no header with commas between its columns')
            yield row, found[2]
            row, number = [], number + 1


def _read(cell: str) -> str:
    return next(csv.reader([cell]))[0] if cell else ''


def _written(value: str) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator='').writerow([value])
    return out.getvalue()
