"""Collections to measure and to learn from: pictures with captions, and pictures with labels.

What cannot be used is listed with its reason and left out, and the rest counts. Nothing usable is an error.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from clipflow.errors import InvalidParameter, NotFound
from clipflow.relevance.album import Album, Fault, Picture
from clipflow.relevance.tables import LABELS, Entry, check, entries, from_rows, holds_labels, is_album
from clipflow.tags import unsendable

_SPLITS = ('train', 'training', 'val', 'valid', 'validation', 'dev', 'test', 'testing')

__all__ = [
    'CaptionSet',
    'Fault',
    'LabelledSet',
    'Picture',
    'read_captions',
    'read_labelled',
    'read_pictures',
    'splits_of',
]


@dataclass(frozen=True)
class CaptionSet:
    """Pictures that have captions.

    Attributes:
        pictures: each once.
        captions: the place of the picture in `pictures`, and a text; those of one picture follow each other.
        faults: what was left out.
    """

    pictures: tuple[Picture, ...]
    captions: tuple[tuple[int, str], ...]
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class LabelledSet:
    """Pictures that have one class each.

    Attributes:
        pictures: each once.
        labels: the place of each picture's class in `classes`.
        classes: names for people, in the order of the alphabet; _ is read as a space. They are those of the whole
            table or folder, whatever the split.
        faults: what was left out.
    """

    pictures: tuple[Picture, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    faults: tuple[Fault, ...]


def read_captions(path: Path, images: Path | None = None, split: str | None = None) -> CaptionSet:
    """Read a table of captions.

    Args:
        path: `.jsonl`, a line for a picture: `file` or `image` names it, `captions` (a list) or `caption` describes
            it; a line with `"image": false` says itself that its picture is not there, and is passed over. Or `.csv`
            or `.tsv`, a row for a caption. Or `.json` as Karpathy's splits: `images[].filename`,
            `sentences[].raw`, `split`.
        images: folder or zip file of the pictures; None: `images.zip` or `images/` beside the table, else its folder.
        split: only these entries; None: all.

    Raises:
        NotFound: no such file, split, or nothing that can be used.
        InvalidParameter: a file that is no such table.
    """
    check(path)
    album, faults = _album(path, images), list[Fault]()
    texts: dict[Picture, list[str]] = {}
    whole: set[Picture] = set()
    for entry in _of_split(list(entries(path, faults)), split, path):
        picture = album.find(entry.name)
        if isinstance(picture, Fault):
            faults.append(picture)
        elif picture in whole or (entry.whole and picture in texts):
            faults.append(Fault(entry.name, f'{entry.place}: is there twice; the first counts'))
        else:
            sound = _sound(entry, texts.get(picture, []), faults)
            if sound:
                texts.setdefault(picture, []).extend(sound)
                whole |= {picture} if entry.whole else set()
    if not texts:
        raise NotFound(_nothing(path, 'caption', faults))
    captions = tuple((place, text) for place, several in enumerate(texts.values()) for text in several)
    return CaptionSet(tuple(texts), captions, tuple(faults))


def read_labelled(path: Path, images: Path | None = None, split: str | None = None) -> LabelledSet:
    """Read labelled pictures.

    Args:
        path: a folder or zip file with a folder for each class (with `split`: in a folder of that name), or a table
            (`.csv`, `.tsv`) with the columns `file` and `label`, and `split` if that is asked for.
        images: folder or zip file of the pictures of a table; see `read_captions`.
        split: only these pictures; None: all.

    Raises:
        NotFound: no such file, split, or nothing that can be used.
        InvalidParameter: a file that is no such table, or only one class.
    """
    faults = list[Fault]()
    if is_album(path):
        named, known = _by_folder(Album(path), split)
    else:
        check(path)
        named, known = _by_table(path, _album(path, images), split, faults)
    if not named:
        raise NotFound(_nothing(path, 'label', faults))
    classes = tuple(sorted(known))
    if len(classes) < 2:
        raise InvalidParameter(f'{path} has the one class {classes[0]!r}; at least two are needed to tell them apart')
    places = {name: place for place, name in enumerate(classes)}
    return LabelledSet(tuple(named), tuple(places[name] for name in named.values()), classes, tuple(faults))


def splits_of(path: Path) -> tuple[str, ...]:
    """The splits that captions or labels name, in the order of the alphabet; errors as of those who read them.

    In a folder or zip file they are folders with the name of a split, such as `train`, and at least two classes inside.
    """
    if not is_album(path):
        rows = from_rows(path, LABELS, []) if holds_labels(path) else entries(path, [])
        return tuple(sorted({entry.split for entry in rows if entry.split}))
    classes: dict[str, set[str]] = {}
    for picture in Album(path).pictures:
        first, *rest = picture.name.split('/')[:-1] or ['']
        classes.setdefault(first, set()).update(rest[:1])
    return tuple(sorted(name for name, inside in classes.items() if name.lower() in _SPLITS and len(inside) > 1))


def read_pictures(path: Path) -> tuple[Picture, ...]:
    """All pictures of a folder or zip file, in the order of their names; errors as of `Album`."""
    return Album(path).pictures


def _album(path: Path, images: Path | None) -> Album:
    beside = (path.with_name('images.zip'), path.with_name('images'), path.parent)
    return Album(images or next(place for place in beside if place.exists()))


def _nothing(path: Path, what: str, faults: list[Fault]) -> str:
    first = f'; left out: {len(faults):,}, the first {faults[0].name}: {faults[0].reason}' if faults else ''
    return f'{path} has no picture with a {what} that can be used{first}'


def _of_split(entries: list[Entry], split: str | None, path: Path) -> list[Entry]:
    if split is None:
        return entries
    known = Counter(entry.split for entry in entries if entry.split)
    if split not in known:
        there = ', '.join(f'{name} ({count:,})' for name, count in known.items()) or 'none'
        raise NotFound(f'{path} has no split {split!r}; there is: {there}')
    return [entry for entry in entries if entry.split == split]


def _sound(entry: Entry, known: list[str], faults: list[Fault]) -> list[str]:
    """The captions of an entry that say something new."""
    found = list[str]()
    for text in (text.strip() for text in entry.texts):
        if not text:
            faults.append(Fault(entry.name, f'{entry.place}: an empty caption'))
        elif text in found or text in known:
            faults.append(Fault(entry.name, f'{entry.place}: the same caption twice'))
        elif reason := unsendable(text):  # no tokenizer takes that
            faults.append(Fault(entry.name, f'{entry.place}: a caption that holds {reason}'))
        else:
            found.append(text)
    if not entry.texts:
        faults.append(Fault(entry.name, f'{entry.place}: has no caption'))
    return found


def _by_folder(album: Album, split: str | None) -> tuple[dict[Picture, str], set[str]]:
    """The class of each picture, and all classes."""
    parts = {picture: picture.name.split('/')[:-1] for picture in album.pictures}
    if split is None:
        named = {picture: _words(folders[0]) for picture, folders in parts.items() if folders}
        return named, set(named.values())
    *above, last = split.split('/')
    depth = len(above)
    beside = {picture: folders[depth:] for picture, folders in parts.items() if folders[:depth] == above}
    if not any(folders[:1] == [last] for folders in beside.values()):
        raise NotFound(f'{album.path} has no folder {split!r}')
    classes = {picture: _words(folders[1]) for picture, folders in beside.items() if len(folders) > 1}
    named = {picture: name for picture, name in classes.items() if beside[picture][0] == last}
    return named, set(classes.values())


def _by_table(path: Path, album: Album, split: str | None, faults: list[Fault]) -> tuple[dict[Picture, str], set[str]]:
    """The class of each picture, and all classes."""
    rows = list(from_rows(path, LABELS, faults))
    named = dict[Picture, str]()
    for entry in _of_split(rows, split, path):
        picture, label = album.find(entry.name), _words(entry.texts[0])
        if isinstance(picture, Fault):
            faults.append(picture)
        elif picture in named:
            faults.append(Fault(entry.name, f'{entry.place}: is there twice; the first counts'))
        elif not label:
            faults.append(Fault(entry.name, f'{entry.place}: an empty label'))
        else:
            named[picture] = label
    return named, {label for entry in rows if (label := _words(entry.texts[0]))}


def _words(label: str) -> str:
    return ' '.join(label.replace('_', ' ').split())
