"""What a model can be measured on: captions that should find their pictures, or pictures that have a class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clipflow.relevance.captions import CaptionSet, LabelledSet, Picture
from clipflow.relevance.metrics import cosines, grouped, ranks_of, retrieval, zero_shot

Vectors = NDArray[np.float32]
Measures = dict[str, float]
_BOTH_WAYS = ('R@1', 'R@5', 'R@10')


@dataclass(frozen=True)
class Retrieval:
    """Captions and their pictures, both ways.

    Attributes:
        pictures: the gallery.
        captions: the place of the picture in `pictures`, and a text.
    """

    pictures: tuple[Picture, ...]
    captions: tuple[tuple[int, str], ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """What has to be encoded, beside the pictures; each once."""
        return tuple(dict.fromkeys(text for _, text in self.captions))

    def measure(self, images: Vectors, texts: Vectors) -> Measures:
        """Recall@1, 5 and 10 of pictures found by texts ("image R@5") and of texts found by pictures ("text R@5").

        Args:
            images: unit vectors of `pictures`.
            texts: unit vectors of `texts`.
        """
        places = {text: place for place, text in enumerate(self.texts)}
        owners = np.array([picture for picture, _ in self.captions])
        said = np.array([places[text] for _, text in self.captions])
        # Of feedback most pictures have no text; they are looked through, but ask for nothing.
        asked = np.unique(owners)
        of_text = _values(owners, grouped(said, len(texts)))
        of_picture = _values(said, grouped(owners, len(images))[asked])
        by_text = retrieval(ranks_of(cosines(texts, images), of_text, len(images)))
        by_picture = retrieval(ranks_of(cosines(images[asked], texts), of_picture, len(texts)))
        found = {f'image {name}': float(by_text[name].mean()) for name in _BOTH_WAYS}
        return found | {f'text {name}': float(by_picture[name].mean()) for name in _BOTH_WAYS}

    def merged(self, contents: Sequence[object]) -> 'Retrieval':
        """Pictures of equal content as one with the captions of all: they would tie, each a wrong answer for the other.

        Args:
            contents: of `pictures`.
        """
        firsts: dict[object, int] = {}
        for place, content in enumerate(contents):
            firsts.setdefault(content, place)
        captions = dict.fromkeys((firsts[contents[place]], text) for place, text in self.captions)
        return replace(self, captions=tuple(captions)).part(list(firsts.values()))

    def part(self, places: Sequence[int]) -> 'Retrieval':
        """Only these pictures, with their captions."""
        new = {place: number for number, place in enumerate(places)}
        captions = tuple((new[place], text) for place, text in self.captions if place in new)
        return Retrieval(tuple(self.pictures[place] for place in places), captions)


@dataclass(frozen=True)
class ZeroShot:
    """Pictures and their classes, which the model tells apart by their names.

    Attributes:
        pictures: to be classified.
        labels: the place of each picture's class in `classes`.
        classes: names.
        templates: sentences with {} for the name; vectors of several are averaged.
    """

    pictures: tuple[Picture, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    templates: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """All sentences, class by class."""
        return tuple(template.replace('{}', name) for name in self.classes for template in self.templates)

    def measure(self, images: Vectors, texts: Vectors) -> Measures:
        """Top-1 and, of more than five classes, top-5."""
        sums = texts.reshape(len(self.classes), len(self.templates), -1).sum(axis=1)
        classes = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        right = np.array(self.labels, dtype=np.int64)[:, None]
        ranks = ranks_of(cosines(images, classes), right, len(classes))
        return {name: float(values.mean()) for name, values in zero_shot(ranks, len(classes)).items()}

    def part(self, places: Sequence[int]) -> 'ZeroShot':
        """Only these pictures; the classes stay."""
        pictures, labels = zip(*((self.pictures[place], self.labels[place]) for place in places), strict=True)
        return replace(self, pictures=pictures, labels=labels)


Task = Retrieval | ZeroShot


def _values(values: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(places < 0, -1, values[places])


def score(measures: Measures) -> float:
    """One number to choose by: the mean of all recalls (VSE++'s "rsum", Faghri et al. 2018), or top-1."""
    return measures.get('top-1', float(np.mean(list(measures.values()))))


def halves(task: Task) -> tuple[Task, Task]:
    """Every second picture, and the others: one part to choose on, one to report on."""
    places = range(len(task.pictures))
    return task.part(places[::2]), task.part(places[1::2])


def of_captions(found: CaptionSet) -> Retrieval:
    """The task of a captioned set."""
    return Retrieval(found.pictures, found.captions)


def of_labels(found: LabelledSet, templates: tuple[str, ...]) -> ZeroShot:
    """The task of a labelled set."""
    return ZeroShot(found.pictures, found.labels, found.classes, templates)
