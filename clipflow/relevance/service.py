"""A running service under measure: what it answers counts, with its index, its ranker and what it holds."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipflow.errors import NotFound
from clipflow.relevance.album import Fault
from clipflow.relevance.captions import CaptionSet
from clipflow.relevance.evaluate import Evaluation, found_by_service
from clipflow.relevance.metrics import Found
from clipflow.relevance.systems import Progress

_TOGETHER = 32


@dataclass(frozen=True)
class Service:
    """How to ask it.

    Attributes:
        told: what it is, in words.
        ids: of all documents that it holds.
        search: of each text the ids of the best documents and their scores, best first.
    """

    told: Mapping[str, str]
    ids: Callable[[], Iterator[str]]
    search: Callable[[Sequence[str]], list[list[tuple[str, float]]]]


def captions(service: Service, chosen: CaptionSet, title: str, progress: Progress) -> Evaluation:
    """Text to image in the collection of the service, in which a picture is known by the name of its file.

    Raises:
        NotFound: none of the pictures is in the service.
        ClipflowError: what the service answers.
    """
    owners, count = _owners(service, chosen)
    faults = list(chosen.faults)
    numbers = dict[str, int]()
    for number, picture in enumerate(chosen.pictures):
        several = owners.get(number, [])
        if len(several) == 1:
            numbers[several[0]] = number
        else:
            reason = f'{len(several)} documents have this name' if several else 'is not in the service'
            faults.append(Fault(picture.name, reason))
    there = set(numbers.values())
    asked = [(place, text) for place, text in chosen.captions if place in there]
    if not asked:
        raise NotFound(
            f'none of the {len(chosen.pictures):,} pictures is among the {count:,} documents of the service; index '
            'them first, under the names of their files'
        )
    answers = list[Found]()
    with progress('searching', len(asked)) as moved:
        for start in range(0, len(asked), _TOGETHER):
            some = [text for _, text in asked[start : start + _TOGETHER]]
            for matches in service.search(some):
                places = np.asarray([numbers.get(name, -1) for name, _ in matches], np.int64)
                answers.append((places, np.asarray([score for _, score in matches], np.float64)))
            moved(len(some))
    owner = np.asarray([place for place, _ in asked], np.int64)
    return found_by_service(service.told, answers=answers, owner=owner, items=count, title=title, faults=tuple(faults))


def _owners(service: Service, chosen: CaptionSet) -> tuple[dict[int, list[str]], int]:
    """The ids of each picture's documents, by the picture's number; and how many documents there are."""
    files = Counter(_file(picture.name) for picture in chosen.pictures)
    by_name = {_file(picture.name): number for number, picture in enumerate(chosen.pictures)}
    by_name = {name: number for name, number in by_name.items() if files[name] == 1}
    by_stem = {name.rpartition('.')[0]: number for name, number in by_name.items()}
    owners, count = dict[int, list[str]](), 0
    for identifier in service.ids():
        count += 1
        name = _file(identifier)
        number = by_name.get(name, by_stem.get(name))
        if number is not None:
            owners.setdefault(number, []).append(identifier)
    return owners, count


def _file(name: str) -> str:
    return name.rpartition('/')[2]
