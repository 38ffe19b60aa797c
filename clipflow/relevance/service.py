"""A running service under measure: what it answers counts, with its index, its ranker and what it holds."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipflow.errors import InvalidDocument, NotFound
from clipflow.relevance.album import Fault, digest
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
    """Text to image in the collection of the service, in which a picture is known by its name; see `matched`.

    Documents of pictures that are equal byte for byte are one item, with the captions of all.

    Raises:
        NotFound: none of the pictures is in the service, or none can be read.
        ClipflowError: what the service answers.
    """
    numbers, unmatched, count = matched(service.ids(), chosen)
    if not numbers:
        raise NotFound(
            f'none of the {len(chosen.pictures):,} pictures is among the {count:,} documents of the service; index '
            'them first, under the names of their files'
        )
    firsts, unread = _firsts(chosen, numbers.values())
    if not firsts:
        raise NotFound(unread[0].reason)
    numbers = {identifier: firsts[number] for identifier, number in numbers.items() if number in firsts}
    faults = (*chosen.faults, *unmatched, *unread)
    asked = list(dict.fromkeys((firsts[place], text) for place, text in chosen.captions if place in firsts))
    answers = list[Found]()
    with progress('searching', len(asked)) as moved:
        for start in range(0, len(asked), _TOGETHER):
            some = [text for _, text in asked[start : start + _TOGETHER]]
            for matches in service.search(some):
                found = dict[int | str, float]()
                for name, score in matches:
                    found.setdefault(numbers.get(name, name), score)
                places = np.asarray([key if isinstance(key, int) else -1 for key in found], np.int64)
                answers.append((places, np.asarray(list(found.values()), np.float64)))
            moved(len(some))
    owner = np.asarray([place for place, _ in asked], np.int64)
    items = count - len(numbers) + len(set(numbers.values()))
    return found_by_service(service.told, answers=answers, owner=owner, items=items, title=title, faults=faults)


def matched(ids: Iterable[str], chosen: CaptionSet) -> tuple[dict[str, int], list[Fault], int]:
    """Which document is which picture: the one whose path, or else the name of its file, with or without suffix, its
    id ends with.

    Returns:
        The number of its picture by the id of a document, the pictures that are not exactly one, and how many documents
        there are.
    """
    files = Counter(_file(picture.name) for picture in chosen.pictures)
    by_path = {picture.name: number for number, picture in enumerate(chosen.pictures)}
    by_file = {_file(name): number for name, number in by_path.items() if files[_file(name)] == 1}
    by_stem = {name.rpartition('.')[0]: number for name, number in by_file.items()}
    by_end = by_file | by_path
    owners, count = dict[int, list[str]](), 0
    for identifier in ids:
        count += 1
        parts = identifier.split('/')
        ends = ['/'.join(parts[at:]) for at in range(len(parts))]
        number = next((by_end[end] for end in ends if end in by_end), by_stem.get(ends[-1]))
        if number is not None:
            owners.setdefault(number, []).append(identifier)
    numbers, faults = dict[str, int](), list[Fault]()
    for number, picture in enumerate(chosen.pictures):
        several, same = owners.get(number, []), files[_file(picture.name)]
        if len(several) == 1:
            numbers[several[0]] = number
        elif several:
            faults.append(Fault(picture.name, f'{len(several)} documents have this name'))
        else:
            reason = f'{same} pictures have this name' if same > 1 else 'is not in the service'
            faults.append(Fault(picture.name, reason))
    return numbers, faults, count


def _firsts(chosen: CaptionSet, numbers: Iterable[int]) -> tuple[dict[int, int], list[Fault]]:
    """Of some pictures the first that is equal byte for byte, by their number; and those that cannot be read."""
    firsts, by_content, faults = dict[int, int](), dict[str, int](), list[Fault]()
    for number in numbers:
        try:
            content = digest(chosen.pictures[number].read())
        except InvalidDocument as error:
            faults.append(Fault(chosen.pictures[number].name, error.message))
        else:
            firsts[number] = by_content.setdefault(content, number)
    return firsts, faults


def _file(name: str) -> str:
    return name.rpartition('/')[2]
