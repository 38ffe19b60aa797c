"""What a small model learns from and is chosen on: captioned and labelled collections, each picture once."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipflow.relevance.album import digest
from clipflow.relevance.captions import CaptionSet, Fault, Picture, read_captions, read_labelled
from clipflow.tuning.contents import stamps
from clipflow.tuning.mini_config import Captions, Labelled, MiniConfig

Places = NDArray[np.int64]
_PARTS = 10
_SAID = 3
"""Captions of an absent picture; more would double the work, and say little that is new."""


@dataclass(frozen=True)
class Captioned:
    """Places of pictures, and of each the places of its texts."""

    title: str
    pictures: Places
    texts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Classes:
    """Pictures of one collection with their classes.

    Attributes:
        title: for people.
        asked: what the configuration says of it.
        names: of the classes.
        train, validation: places of pictures.
        train_labels, validation_labels: the place of the class of each in `names`.
    """

    title: str
    asked: Labelled
    names: tuple[str, ...]
    train: Places
    train_labels: Places
    validation: Places
    validation_labels: Places


@dataclass(frozen=True)
class MiniData:
    """All that a training reads. Places of pictures are in `pictures`, of texts in `texts`.

    Attributes:
        train, validation: captioned, a part for each collection.
        stamps: of `pictures`, by what they hold: see `contents.stamps`.
        paraphrases: places of texts, [n, 3]: what three people said of one picture that is not there.
        classes: a part for each labelled collection.
        faults: what was left out.
    """

    pictures: tuple[Picture, ...]
    stamps: tuple[str, ...]
    texts: tuple[str, ...]
    train: tuple[Captioned, ...]
    validation: tuple[Captioned, ...]
    paraphrases: Places
    classes: tuple[Classes, ...]
    faults: tuple[Fault, ...]

    @property
    def digest(self) -> str:
        """Of all that decides about the result, so that a training goes on with what it began with."""
        told = (
            self.stamps,
            self.texts,
            [(part.pictures.tolist(), part.texts) for part in self.train],
            self.paraphrases.tolist(),
            [(part.names, part.train.tolist(), part.train_labels.tolist()) for part in self.classes],
        )
        return digest(repr(told).encode())

    @property
    def learned_from(self) -> Places:
        """Places of all pictures that take part in the training."""
        several = [part.pictures for part in self.train] + [part.train for part in self.classes]
        return np.unique(np.concatenate(several))


class _Once:
    """Gives equal things equal places."""

    def __init__(self) -> None:
        self._pictures: dict[Picture, int] = {}
        self._texts: dict[str, int] = {}

    def pictures(self, pictures: Sequence[Picture]) -> Places:
        return np.array([self._pictures.setdefault(picture, len(self._pictures)) for picture in pictures], np.int64)

    def text(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts))

    @property
    def all_pictures(self) -> tuple[Picture, ...]:
        return tuple(self._pictures)

    @property
    def all_texts(self) -> tuple[str, ...]:
        return tuple(self._texts)


def read(config: MiniConfig) -> MiniData:
    """Read all collections.

    Raises:
        NotFound, InvalidParameter: one is not there, not what it should be, or nothing of it can be used.
        InvalidDocument: a picture cannot be read.
    """
    once, faults = _Once(), list[Fault]()
    train, validation, classes = list[Captioned](), list[Captioned](), list[Classes]()
    for asked in config.captions:
        title = asked.table.parent.name
        for found, part in ((train, 'train'), (validation, 'validation')):
            chosen, places = _captions(asked, part)
            faults += chosen.faults
            found.append(_captioned(title, chosen, places, once))
    said = [_absent(asked, faults) for asked in config.captions if asked.paraphrases]
    paraphrases = [[once.text(text) for text in texts] for several in said for texts in several]
    for labelled in config.labelled:
        classes.append(_classes(labelled, once, faults))
    # A splitless table is read twice, with the same faults.
    pictures = once.all_pictures
    return MiniData(
        pictures,
        stamps(pictures),
        once.all_texts,
        tuple(train),
        tuple(validation),
        np.array(paraphrases, np.int64).reshape(-1, _SAID),
        tuple(classes),
        tuple(dict.fromkeys(faults)),
    )


def drawn(name: str) -> str:
    """The split of a picture in a collection without splits, by its name without folder and suffix.

    SHA-1 modulo 10: 0 is kept for tests that this code never sees, 1 is for validation, the rest to learn from. It is
    a function of the name alone, so that a picture that is in two collections is on the same side in both.
    """
    stem = name.rpartition('/')[2].rpartition('.')[0]
    number = int(hashlib.sha1(stem.encode(), usedforsecurity=False).hexdigest(), 16) % _PARTS
    return {0: 'test', 1: 'validation'}.get(number, 'train')


def _captions(asked: Captions, part: str) -> tuple[CaptionSet, list[int]]:
    """The set, and the places in it of the pictures of this part."""
    split = asked.train if part == 'train' else asked.validation
    chosen = read_captions(asked.table, asked.images, split)
    wanted = [
        place for place, picture in enumerate(chosen.pictures) if split is not None or drawn(picture.name) == part
    ]
    return chosen, wanted


def _absent(asked: Captions, faults: list[Fault]) -> list[list[str]]:
    """The first captions of each picture to learn from whose line says that it is not there."""
    found = []
    for number, line in enumerate(asked.table.read_text(encoding='utf-8-sig').split('\n'), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # `read_captions` has told of it
        if not isinstance(row, dict) or row.get('image') is not False or row.get('split') != asked.train:
            continue
        several = row.get('captions')
        if not isinstance(several, list) or not all(isinstance(text, str) for text in several):
            faults.append(Fault(f'line {number}', '`captions` is no list of texts'))
            continue
        texts = list(dict.fromkeys(text.strip() for text in several))[:_SAID]
        if len(texts) == _SAID:
            found.append(texts)
    return found


def _captioned(title: str, chosen: CaptionSet, places: list[int], once: _Once) -> Captioned:
    texts: dict[int, list[int]] = {place: [] for place in places}
    for place, text in chosen.captions:
        if place in texts:
            texts[place].append(once.text(text))
    pictures = once.pictures([chosen.pictures[place] for place in places])
    return Captioned(title, pictures, tuple(tuple(several) for several in texts.values()))


def _classes(asked: Labelled, once: _Once, faults: list[Fault]) -> Classes:
    train = read_labelled(asked.table, asked.images, asked.train)
    validation = read_labelled(asked.table, asked.images, asked.validation)
    faults += [*train.faults, *validation.faults]
    names = tuple(sorted({*train.classes, *validation.classes}))
    places = {name: place for place, name in enumerate(names)}

    def labels(found: tuple[int, ...], own: tuple[str, ...]) -> Places:
        return np.array([places[own[label]] for label in found], np.int64)

    return Classes(
        asked.table.parent.name,
        asked,
        names,
        once.pictures(train.pictures),
        labels(train.labels, train.classes),
        once.pictures(validation.pictures),
        labels(validation.labels, validation.classes),
    )
