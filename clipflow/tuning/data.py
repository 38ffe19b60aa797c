"""What to learn from and what to measure on: from captions, from labels, from the log of clicks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipflow.clicks import read_log
from clipflow.errors import InvalidParameter, NotFound
from clipflow.relevance.album import Album, digest
from clipflow.relevance.captions import Fault, Picture, read_captions, read_labelled, splits_of
from clipflow.relevance.tables import holds_labels
from clipflow.tuning.config import TuneConfig
from clipflow.tuning.contents import Contents
from clipflow.tuning.tasks import Retrieval, Task, ZeroShot, of_captions, of_labels


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
        digest: of what is learned from and chosen on, with the bytes of the pictures.
    """

    pictures: tuple[Picture, ...]
    kinds: tuple[int, ...]
    examples: tuple[Example, ...]
    validation: Task
    test: Task | None
    faults: tuple[Fault, ...]
    digest: str


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
    if holds_labels(path):
        return of_labels(read_labelled(path, config.old_images, config.old_split), config.old_templates)
    return _merged(of_captions(read_captions(path, config.old_images, config.old_split)), Contents())


def _from_captions(path: Path, config: TuneConfig) -> Data:
    def get(split: str | None) -> tuple[Task, tuple[Fault, ...]]:
        found = read_captions(path, config.images, split)
        return of_captions(found), found.faults

    contents = Contents()
    tasks, faults = _parts(get, path, config, contents)
    examples = [Example(place, texts) for place, texts in enumerate(_by_picture(tasks[0]))]
    return _data(tasks, examples, faults, contents)


def _from_labels(path: Path, config: TuneConfig) -> Data:
    def get(split: str | None) -> tuple[Task, tuple[Fault, ...]]:
        found = read_labelled(path, config.images, split)
        return of_labels(found, config.templates), found.faults

    contents = Contents()
    tasks, faults = _parts(get, path, config, contents)
    learning = tasks[0]
    assert isinstance(learning, ZeroShot)
    names = [learning.classes[label] for label in learning.labels]
    texts = [tuple(template.replace('{}', name) for template in config.templates) for name in names]
    return _data(tasks, [Example(place, several) for place, several in enumerate(texts)], faults, contents)


def _parts(
    get: Callable[[str | None], tuple[Task, tuple[Fault, ...]]],
    path: Path,
    config: TuneConfig,
    contents: Contents,
) -> tuple[list[Task], tuple[Fault, ...]]:
    """What is learned from, chosen on and, if there is such a part, reported on; and what was left out."""
    if not config.splits and (there := splits_of(path)):
        # Nobody learns from a test part because he did not know that there is one.
        raise InvalidParameter(
            f'{path} names splits ({", ".join(there)}): say which to use, such as splits=train,val,test, or splits=none'
        )
    found = [get(split) for split in (config.splits if len(config.splits) > 1 else (None,))]
    tasks, unused = _apart([task for task, _ in found], contents)
    faults = tuple(dict.fromkeys([*(fault for _, several in found for fault in several), *unused]))
    return tasks if len(tasks) > 1 else _drawn(tasks[0], config.validation_share, contents), faults


def _apart(tasks: Sequence[Task], contents: Contents) -> tuple[list[Task], list[Fault]]:
    """Each without what cannot be read, and without what a later one holds too: nothing is learned and measured on."""
    held, found, faults = set[str](), list[Task](), list[Fault]()
    for task in reversed(tasks):
        kept: dict[int, str] = {}
        for place, picture in enumerate(task.pictures):
            content = contents.of(picture)
            if isinstance(content, Fault):
                faults.append(content)
            elif content in held:
                faults.append(Fault(picture.name, 'is in a later split too, byte for byte, and counts there'))
            else:
                kept[place] = content
        if not kept:
            raise InvalidParameter(f'a split has no picture that can be used; {faults[-1].name}: {faults[-1].reason}')
        found.append(task.part(list(kept)))
        held |= set(kept.values())
    return found[::-1], faults


def _drawn(task: Task, share: float, contents: Contents) -> list[Task]:
    """Learning and validation part. Equal pictures go into the same part, and the same picture into the same always."""
    chosen = [_is_drawn(str(contents.of(picture)), share) for picture in task.pictures]
    return [
        task.part(_some([place for place, there in enumerate(chosen) if there == wanted])) for wanted in (False, True)
    ]


def _is_drawn(name: str, share: float) -> bool:
    return int(name[:8], 16) < share * 16**8


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


def _data(tasks: Sequence[Task], examples: Sequence[Example], faults: tuple[Fault, ...], contents: Contents) -> Data:
    pictures, (validation, *test) = tasks[0].pictures, (_merged(task, contents) for task in tasks[1:])
    own, held = ([contents.of(picture) for picture in several] for several in (pictures, validation.pictures))
    numbers: dict[str | Fault, int] = {}
    kinds = tuple(numbers.setdefault(content, len(numbers)) for content in own)
    told = digest(repr((examples, own, replace(validation, pictures=()), held)).encode())
    return Data(pictures, kinds, tuple(examples), validation, test[0] if test else None, faults, told)


def _merged(task: Task, contents: Contents) -> Task:
    """As `Retrieval.merged`; classes do not tie by equal pictures."""
    if not isinstance(task, Retrieval):
        return task
    return task.merged([contents.of(picture) for picture in task.pictures])


def _from_feedback(path: Path, config: TuneConfig) -> Data:
    """Each query with what was clicked; what was shown and not clicked, by anyone, is rejected for that query."""
    assert config.images is not None
    album, contents, faults = Album(config.images), Contents(), dict[Fault, None]()
    pictures: dict[Picture, int] = {}
    shown: dict[str, dict[int, None]] = {}
    clicked: dict[str, dict[int, None]] = {}
    entries, unread = read_log(path)
    faults |= {Fault(f'line {number}', reason): None for number, reason in unread.items()}
    for number, entry in entries.items():
        text = entry.text.strip()
        if not text or not entry.clicked:
            why = 'has no click' if text else 'has no text: a query by picture is nothing to learn from here'
            faults[Fault(f'line {number}', why)] = None
            continue
        for name in entry.shown:
            picture = album.find(name)
            if not isinstance(picture, Fault) and isinstance(content := contents.of(picture), Fault):
                picture = content
            if isinstance(picture, Fault):
                faults[picture] = None
                continue
            place = pictures.setdefault(picture, len(pictures))
            shown.setdefault(text, {})[place] = None
            if name in entry.clicked:
                clicked.setdefault(text, {})[place] = None
    if not clicked:
        raise NotFound(f'{path} has no query by text with a clicked picture that is in {config.images}')
    learning, held = list[Example](), list[tuple[int, str]]()
    for text, several in clicked.items():
        rejected = tuple(place for place in shown[text] if place not in several)
        for place in several:
            # By the query: what people clicked for it is either learned or held out.
            if _is_drawn(digest(text.encode()), config.validation_share):
                held.append((place, text))
            else:
                learning.append(Example(place, (text,), rejected))
    if not held or not learning:
        raise InvalidParameter(f'{path} has too few queries to draw a part to choose on; set another validation_share')
    exam = Retrieval(tuple(pictures), tuple(held))
    return _data((exam, exam), learning, tuple(faults), contents)
