"""What to learn from and what to measure on: from captions, from labels, from the log of clicks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipflow.errors import ClipflowError, InvalidParameter, NotFound
from clipflow.relevance.album import Album, digest
from clipflow.relevance.captions import CaptionSet, Fault, LabelledSet, Picture, read_captions, read_labelled
from clipflow.tuning.config import TuneConfig
from clipflow.tuning.tasks import Retrieval, Task, ZeroShot, of_captions, of_labels

IGNORED = ('none',)
_TABLES = ('.jsonl', '.ndjson', '.json')


@dataclass(frozen=True)
class Example:
    """A picture and what is said of it.

    Attributes:
        picture: its place among the pictures.
        texts: one of them is drawn in each epoch.
        rejected: places of pictures that were shown for this text and not taken.
    """

    picture: int
    texts: tuple[str, ...]
    rejected: tuple[int, ...] = ()


@dataclass(frozen=True)
class Data:
    """All that a run reads.

    Attributes:
        pictures: those that `examples` point to.
        kinds: equal numbers for pictures with equal bytes.
        examples: to learn from.
        validation: to choose on.
        test: to report on.
        faults: what was left out.
    """

    pictures: tuple[Picture, ...]
    kinds: tuple[int, ...]
    examples: tuple[Example, ...]
    validation: Task
    test: Task | None
    faults: tuple[Fault, ...]


def read(config: TuneConfig) -> Data:
    """Read what the configuration names as its data.

    Raises:
        NotFound, InvalidParameter: it is not there, not what it should be, or nothing of it can be used.
    """
    if config.feedback is not None:
        return _from_feedback(config.feedback, config)
    if config.captions is not None:
        return _from_captions(config.captions, config)
    assert config.labelled is not None
    return _from_labels(config.labelled, config)


def read_old_task(config: TuneConfig) -> Task | None:
    """The task that must not be forgotten.

    Raises:
        NotFound, InvalidParameter: as of `read_captions` and `read_labelled`.
    """
    path = config.old_task
    if path is None:
        return None
    if path.suffix.lower() in _TABLES:
        return of_captions(read_captions(path, config.old_images, config.old_split))
    return of_labels(read_labelled(path, config.old_images, config.old_split), config.old_templates)


def _from_captions(path: Path, config: TuneConfig) -> Data:
    def get(split: str | None) -> CaptionSet:
        return read_captions(path, config.images, split)

    if len(config.splits) > 1:
        parts = [get(split) for split in config.splits]
        tasks: list[Task] = [of_captions(part) for part in parts]
        faults = tuple(dict.fromkeys(fault for part in parts for fault in part.faults))
    else:
        _check_unsplit(get, path, config)
        whole = get(None)
        faults = whole.faults
        tasks = list(_drawn(of_captions(whole), config.validation_share))
    examples = [Example(place, texts) for place, texts in enumerate(_by_picture(tasks[0]))]
    return _data(tasks, examples, faults)


def _from_labels(path: Path, config: TuneConfig) -> Data:
    def get(split: str | None) -> LabelledSet:
        return read_labelled(path, config.images, split)

    if len(config.splits) > 1:
        parts = [get(split) for split in config.splits]
        tasks: list[Task] = [of_labels(part, config.templates) for part in parts]
        faults = tuple(dict.fromkeys(fault for part in parts for fault in part.faults))
    else:
        _check_unsplit(get, path, config)
        whole = get(None)
        faults = whole.faults
        tasks = list(_drawn(of_labels(whole, config.templates), config.validation_share))
    learning = tasks[0]
    assert isinstance(learning, ZeroShot)
    names = [learning.classes[label] for label in learning.labels]
    texts = [tuple(template.replace('{}', name) for template in config.templates) for name in names]
    return _data(tasks, [Example(place, several) for place, several in enumerate(texts)], faults)


def _check_unsplit(get: Any, path: Path, config: TuneConfig) -> None:
    """Nobody learns from a test part because he did not know that there is one."""
    if config.splits == IGNORED:
        return
    try:
        get('train')
    except ClipflowError:
        return
    raise InvalidParameter(f'{path} names splits: say which to use, such as splits=train,val,test, or splits=none')


def _drawn(task: Retrieval | ZeroShot, share: float) -> tuple[Task, Task]:
    """Learning and validation part. Equal pictures go into the same part, and the same picture into the same always."""
    chosen = [int(digest(picture.read())[:8], 16) < share * 16**8 for picture in task.pictures]
    return tuple(  # type: ignore[return-value]
        task.part(_some([place for place, there in enumerate(chosen) if there == wanted])) for wanted in (False, True)
    )


def _some(places: list[int]) -> list[int]:
    if not places:
        raise InvalidParameter(
            'the data are too few to draw a part to choose on; name splits, or set another validation_share'
        )
    return places


def _by_picture(task: Task) -> list[tuple[str, ...]]:
    assert isinstance(task, Retrieval)
    found: list[list[str]] = [[] for _ in task.pictures]
    for place, text in task.captions:
        found[place].append(text)
    return [tuple(texts) for texts in found]


def _data(tasks: Sequence[Task], examples: Sequence[Example], faults: tuple[Fault, ...]) -> Data:
    pictures = tasks[0].pictures
    return Data(pictures, _kinds(pictures), tuple(examples), tasks[1], tasks[2] if len(tasks) > 2 else None, faults)


def _kinds(pictures: Sequence[Picture]) -> tuple[int, ...]:
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(digest(picture.read()), len(numbers)) for picture in pictures)


def _from_feedback(path: Path, config: TuneConfig) -> Data:
    """Each query with what was clicked; what was shown and not clicked, by anyone, is rejected for that query."""
    assert config.images is not None
    album, faults = Album(config.images), dict[Fault, None]()
    pictures: dict[Picture, int] = {}
    shown: dict[str, dict[int, None]] = {}
    clicked: dict[str, dict[int, None]] = {}
    for number, line in enumerate(_lines(path), 1):
        entry = _entry(line)
        if isinstance(entry, str):
            faults[Fault(f'line {number}', entry)] = None
            continue
        text, ids, taken = entry
        for name in ids:
            picture = album.find(name)
            if isinstance(picture, Fault):
                faults[picture] = None
                continue
            place = pictures.setdefault(picture, len(pictures))
            shown.setdefault(text, {})[place] = None
            if name in taken:
                clicked.setdefault(text, {})[place] = None
    if not clicked:
        raise NotFound(f'{path} has no query by text with a clicked picture that is in {config.images}')
    learning, held = list[Example](), list[tuple[int, str]]()
    for text, several in clicked.items():
        rejected = tuple(place for place in shown[text] if place not in several)
        for place in several:
            # By the query: what people clicked for it is either learned or held out.
            if int(digest(text.encode())[:8], 16) < config.validation_share * 16**8:
                held.append((place, text))
            else:
                learning.append(Example(place, (text,), rejected))
    if not held or not learning:
        raise InvalidParameter(f'{path} has too few queries to draw a part to choose on; set another validation_share')
    everything = tuple(pictures)
    return Data(
        everything, _kinds(everything), tuple(learning), Retrieval(everything, tuple(held)), None, tuple(faults)
    )


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding='utf-8').split('\n') if line.strip()]
    except OSError as error:
        raise NotFound(f'{path} cannot be read: {error.strerror}') from None
    except UnicodeDecodeError:
        raise InvalidParameter(f'{path} is not UTF-8') from None


def _entry(line: str) -> tuple[str, list[str], set[str]] | str:
    """Text, shown ids and clicked ids; or what is wrong with the line."""
    try:
        row = json.loads(line)
    except ValueError:
        return 'is not JSON'
    if not isinstance(row, dict) or not all(isinstance(row.get(name), list) for name in ('shown', 'clicked')):
        return 'is no object with the lists `shown` and `clicked`'
    if not isinstance(row.get('text'), str) or not row['text'].strip():
        return 'has no text: a query by picture is nothing to learn from here'
    if not row['clicked']:
        return 'has no click'
    return row['text'].strip(), [str(name) for name in row['shown']], {str(name) for name in row['clicked']}
