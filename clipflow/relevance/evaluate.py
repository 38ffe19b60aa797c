"""What is measured, of one way to search or of several on the same pictures and texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipflow.errors import NotFound
from clipflow.relevance import bootstrap, metrics
from clipflow.relevance.album import Fault, Picture
from clipflow.relevance.bootstrap import Estimate
from clipflow.relevance.captions import CaptionSet, LabelledSet
from clipflow.relevance.embedding import Embedded, distinct, owners, rows
from clipflow.relevance.systems import Progress, System, Vectors, Wanted, embedded

TEXT_TO_IMAGE, IMAGE_TO_TEXT, ZERO_SHOT = 'text to image', 'image to text', 'zero-shot'


@dataclass(frozen=True)
class Measured:
    """One direction.

    Attributes:
        direction: text to image, image to text, or zero-shot.
        queries: how many.
        items: among how many the right ones were looked for.
        estimates: of each system, its measures.
        differences: of each system after the first, how much more than the first it reaches.
    """

    direction: str
    queries: int
    items: int
    estimates: tuple[Mapping[str, Estimate], ...]
    differences: tuple[Mapping[str, Estimate], ...]


@dataclass(frozen=True)
class Evaluation:
    """All that was measured; `systems` says of each in words what it was."""

    title: str
    systems: tuple[Mapping[str, str], ...]
    measured: tuple[Measured, ...]
    faults: tuple[Fault, ...]


def captions(
    systems: Sequence[System], chosen: CaptionSet, others: Sequence[Picture], title: str, progress: Progress
) -> Evaluation:
    """Retrieval both ways: each caption looks for its picture among all, each picture for one of its captions.

    Args:
        systems: the first is what the others are compared with.
        chosen: pictures and captions; pictures that are equal byte for byte are one with the captions of all.
        others: further pictures that a caption has to do without; those that are in `chosen` are left out.
        title: of the evaluation.
        progress: shows the work.

    Raises:
        ClipflowError: a model cannot be loaded, or nothing could be embedded.
    """
    wanted = Wanted(chosen.pictures, others, [text for _, text in chosen.captions], ('{}',))
    found = [embedded(system, wanted, progress) for system in systems]
    pictures = _common([each.pictures for each in found])
    owner = owners(chosen, found[0].pictures)
    kept = _common([each.texts for each in found])
    kept = distinct(chosen, owner, kept[np.isin(owner[kept], pictures)])
    if not len(kept):
        raise NotFound(_nothing([fault for each in found for fault in (*each.pictures.faults, *each.texts.faults)]))
    pictures = np.intersect1d(pictures, owner[kept])
    place = np.searchsorted(pictures, owner[kept])
    captions_of = metrics.grouped(place, len(pictures))
    further = _further(found, pictures)
    items = len(pictures) + len(further)
    forward, back = list[metrics.Ranks](), list[metrics.Ranks]()
    for system, each in zip(systems, found, strict=True):
        asked, shown = rows(each.texts, kept), rows(each.pictures, pictures)
        gallery = np.concatenate([shown, rows(each.others, further)])
        if system.index_kind == 'flat':
            forward.append(metrics.ranks_of(each.scores(asked, gallery), place[:, None], items))
        else:
            best = each.found(asked, gallery, system.index_kind)
            forward.append(metrics.ranks_found(best, place[:, None], items))
        back.append(metrics.ranks_of(metrics.cosines(shown, asked), captions_of, len(asked)))
    measured = (
        _measured(TEXT_TO_IMAGE, [metrics.retrieval(ranks) for ranks in forward], place, items),
        _measured(IMAGE_TO_TEXT, [metrics.retrieval(ranks) for ranks in back], np.arange(len(pictures)), len(kept)),
    )
    return Evaluation(title, tuple(each.told for each in found), measured, _faults(chosen.faults, found))


def labelled(systems: Sequence[System], chosen: LabelledSet, title: str, progress: Progress) -> Evaluation:
    """Zero-shot classification: the class whose name, put into the templates, fits a picture best; see `captions`."""
    wanted = Wanted(chosen.pictures, (), chosen.classes, ('a photo of a {}',))
    found = [embedded(system, wanted, progress) for system in systems]
    pictures = _common([each.pictures for each in found])
    if any(len(each.texts.kept) < len(chosen.classes) for each in found) or not len(pictures):
        raise NotFound(_nothing([fault for each in found for fault in (*each.texts.faults, *each.pictures.faults)]))
    right = np.asarray(chosen.labels, np.int64)[pictures][:, None]
    values = []
    for each in found:
        scores = metrics.cosines(rows(each.pictures, pictures), each.texts.vectors)
        ranks = metrics.ranks_of(scores, right, len(chosen.classes))
        values.append(metrics.zero_shot(ranks, len(chosen.classes)))
    measured = _measured(ZERO_SHOT, values, np.arange(len(pictures)), len(chosen.classes))
    return Evaluation(title, tuple(each.told for each in found), (measured,), _faults(chosen.faults, found))


def found_by_service(
    told: Mapping[str, str],
    *,
    answers: Sequence[metrics.Found],
    owner: NDArray[np.int64],
    items: int,
    title: str,
    faults: tuple[Fault, ...],
) -> Evaluation:
    """Text to image, as a running service answers.

    Args:
        told: what the service is, in words.
        answers: of each caption, the pictures that were found, as numbers, and their scores, best first.
        owner: the picture of each caption, in the same numbers.
        items: how many documents the service holds.
        title: of the evaluation.
        faults: what was left out.
    """
    ranks = metrics.ranks_found(answers, owner[:, None], items)
    return Evaluation(title, (told,), (_measured(TEXT_TO_IMAGE, [metrics.retrieval(ranks)], owner, items),), faults)


def _common(parts: Sequence[Embedded]) -> NDArray[np.int64]:
    """Places of what all systems have embedded, ascending."""
    found = parts[0].kept
    for part in parts[1:]:
        found = np.intersect1d(found, part.kept)
    return found


def _further(found: Sequence[Vectors], pictures: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of further pictures that are none of those that are looked for; each content once."""
    shown = found[0].pictures
    seen = {shown.contents[row] for row in np.flatnonzero(np.isin(shown.kept, pictures))}
    contents = dict(zip(found[0].others.kept.tolist(), found[0].others.contents, strict=True))
    kept = list[int]()
    for place in _common([each.others for each in found]).tolist():
        if contents[place] not in seen:
            seen.add(contents[place])
            kept.append(place)
    return np.asarray(kept, np.int64)


def _measured(
    direction: str, values: Sequence[Mapping[str, NDArray[np.float64]]], owner: NDArray[np.int64], items: int
) -> Measured:
    own = tuple(bootstrap.estimates(each, owner) for each in values)
    against = tuple(bootstrap.differences(values[0], each, owner) for each in values[1:])
    return Measured(direction, len(owner), items, own, against)


def _faults(read: tuple[Fault, ...], found: Sequence[Vectors]) -> tuple[Fault, ...]:
    made = [fault for each in found for part in (each.pictures, each.others, each.texts) for fault in part.faults]
    return tuple(dict.fromkeys((*read, *made)))


def _nothing(faults: Sequence[Fault]) -> str:
    why = f': {faults[0].name}: {faults[0].reason}' if faults else ''
    return f'nothing is left to measure, for want of pictures or texts that the model takes{why}'
