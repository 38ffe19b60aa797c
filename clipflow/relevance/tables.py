"""Tables of pictures with texts or labels, as people keep them: JSON lines, CSV, Karpathy's JSON."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipflow.errors import InvalidParameter, NotFound
from clipflow.relevance.album import Fault

_NAMES = ('image', 'file', 'filename', 'image_name', 'filepath', 'path', 'photo_id', 'id')
TEXTS = ('caption', 'captions', 'title', 'text', 'comment', 'ai_description', 'description')
LABELS = ('label', 'class')
_DELIMITERS = ',\t|;'


@dataclass(frozen=True)
class Entry:
    """One picture of a table: where it stands, its name, what belongs to it, its split."""

    place: str
    name: str
    texts: tuple[str, ...]
    split: str | None
    whole: bool
    """Whether this is all that there is of the picture, so that a second entry is a fault."""


def check(path: Path) -> None:
    """Raises NotFound if there is no such file, InvalidParameter if it is a folder."""
    if path.is_dir():
        raise InvalidParameter(f'{path} is a folder; name a table')
    if not path.is_file():
        raise NotFound(f'{path}: there is no such file')


def is_album(path: Path) -> bool:
    """Whether this is a folder or zip file of pictures, and no table."""
    return path.is_dir() or path.suffix.lower() == '.zip'


def holds_labels(path: Path) -> bool:
    """Whether this is a set of labelled pictures: a folder, a zip file, or a table with labels and without captions.

    Raises:
        NotFound: there is nothing.
    """
    if is_album(path):
        return True
    check(path)
    if path.suffix.lower() not in ('.csv', '.tsv'):
        return False
    head = _text_of(path).partition('\n')[0].lower()
    names = {name.strip(' "\r') for delimiter in _DELIMITERS for name in head.split(delimiter)}
    return bool(names & set(LABELS)) and not names & set(TEXTS)


def entries(path: Path, faults: list[Fault]) -> Iterator[Entry]:
    """The entries of a table of captions, as `captions.read_captions` explains; faults are added to `faults`."""
    suffix = path.suffix.lower()
    if suffix in ('.jsonl', '.ndjson'):
        return _from_lines(path, faults)
    if suffix in ('.csv', '.tsv'):
        return from_rows(path, TEXTS, faults)
    if suffix == '.json':
        return _from_karpathy(path, faults)
    raise InvalidParameter(f'{path}: captions come as .jsonl, .csv, .tsv or .json')


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise InvalidParameter(f'{path} is not UTF-8, at byte {error.start:,}') from None
    except OSError as error:
        raise NotFound(f'{path} cannot be read: {error.strerror}') from None


def _from_lines(path: Path, faults: list[Fault]) -> Iterator[Entry]:
    # Not splitlines: that would break a caption at characters that JSON may hold as they are.
    for number, line in enumerate(_text_of(path).split('\n'), 1):
        if not line.strip():
            continue
        place = f'line {number}'
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.append(Fault(place, f'is not JSON: {error}'))
            continue
        if not isinstance(row, dict):
            faults.append(Fault(place, 'is no JSON object'))
        elif row.get('image') is not False:
            entry = _entry(place, row, row.get('captions', row.get('caption')), 'captions' in row)
            if isinstance(entry, Fault):
                faults.append(entry)
            else:
                yield entry


def _entry(place: str, row: dict[str, Any], texts: Any, whole: bool) -> Entry | Fault:
    name = next((row[key] for key in ('file', 'image', 'filename') if isinstance(row.get(key), str)), None)
    if not name:
        return Fault(place, 'does not name its picture in `file` or `image`')
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return Fault(name, f'{place}: `captions` is no list of texts, and `caption` no text')
    split = row.get('split')
    return Entry(place, name, tuple(texts), split if isinstance(split, str) else None, whole)


def _from_karpathy(path: Path, faults: list[Fault]) -> Iterator[Entry]:
    try:
        whole = json.loads(_text_of(path))
        rows = whole['images']
        found = [(row, [sentence['raw'] for sentence in row['sentences']]) for row in rows]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise InvalidParameter(
            f'{path} is not as Karpathy\'s splits, with "images", and "sentences" with "raw": {error}'
        ) from None
    for number, (row, texts) in enumerate(found, 1):
        entry = _entry(f'image {number}', row, texts, True)
        if isinstance(entry, Fault):
            faults.append(entry)
        else:
            yield entry


def from_rows(path: Path, wanted: tuple[str, ...], faults: list[Fault]) -> Iterator[Entry]:
    """Rows of a table with a heading; the character between columns is the one that gives known names.

    Args:
        path: of the table.
        wanted: names of the column that counts, the best first.
        faults: is added to.

    Raises:
        InvalidParameter: no such columns, or a quotation mark that would take other rows into its own.
    """
    whole = io.StringIO(_text_of(path), newline='')
    for delimiter in _DELIMITERS:
        whole.seek(0)
        reader = csv.reader(whole, delimiter=delimiter, strict=True)
        try:
            head = [name.strip().lower() for name in next(reader, [])]
        except csv.Error:  # quotation marks around names that another character separates
            continue
        name = next((key for key in _NAMES if key in head), None)
        text = next((key for key in wanted if key in head), None)
        if name is not None and text is not None:
            break
    else:
        raise InvalidParameter(
            f'{path}: the first line names no column of pictures ({", ".join(_NAMES)}) beside one of '
            f'{", ".join(wanted)}'
        )
    for line, cells in _rows(path, reader):
        place = f'line {line}'
        row = dict(zip(head, cells, strict=False))
        if not any(cells):
            continue
        if text not in row or not row.get(name, '').strip():
            faults.append(Fault(place, 'has too few columns, or does not name its picture'))
        else:
            yield Entry(place, row[name].strip(), (row[text],), row.get('split', '').strip() or None, False)


def _rows(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows, and the line that each ends on."""
    begun = reader.line_num + 1
    try:
        for cells in reader:
            yield reader.line_num, cells
            begun = reader.line_num + 1
    except csv.Error as error:
        raise InvalidParameter(
            f'{path}, line {begun}: {error}; a text that begins with a quotation mark is written in quotation marks, '
            'with its own doubled'
        ) from None
