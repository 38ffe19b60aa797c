"""One way to search: a model, how it runs, how texts are put to it, and what orders the results."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipflow import templates
from clipflow.errors import InvalidParameter
from clipflow.rank.head import Head
from clipflow.relevance.album import Picture
from clipflow.relevance.embedding import Embedded, Embedding, Moved
from clipflow.relevance.metrics import Found, Scores, cosines
from clipflow.settings import EncoderSettings
from clipflow.weights import load_spec

Rows = NDArray[np.float32]
Progress = Callable[[str, int], AbstractContextManager[Moved]]
"""Shows work with a title and so many steps."""


@dataclass(frozen=True)
class System:
    """One way to search.

    Attributes:
        model: a directory or a name, as in CLIPFLOW_MODEL.
        runtime: of the model, as in CLIPFLOW_RUNTIME.
        precision: of the model, as in CLIPFLOW_PRECISION.
        templates: sentences with a place `{}` that texts are put into; None: those of CLIPFLOW_TEMPLATES or of the
            model, or else of the task.
        index_kind: of the pictures, as in CLIPFLOW_INDEX_KIND; flat is exact.
        head: of the ranker; it scores every picture, or what an index that is not exact has found.
    """

    model: str
    runtime: str = 'auto'
    precision: str = 'auto'
    templates: tuple[str, ...] | None = None
    index_kind: str = 'flat'
    head: Path | None = None


@dataclass(frozen=True)
class Vectors:
    """What a system makes of a set.

    Attributes:
        told: what the system is, in words.
        head: of the ranker, if it has one.
        pictures: those that are looked for.
        others: further pictures.
        texts: captions, or names of classes.
    """

    told: dict[str, str]
    head: Head | None
    pictures: Embedded
    others: Embedded
    texts: Embedded

    def scores(self, texts: Rows, pictures: Rows) -> Scores:
        """Of texts with all pictures. Where pictures look for texts there are only `cosines`: a head moves texts."""
        if self.head is None:
            return cosines(texts, pictures)
        head = self.head
        return lambda part: head.scores(texts[part], pictures)

    def found(self, texts: Rows, pictures: Rows, index_kind: str) -> list[Found]:
        """What an index of this kind finds for each text, in the order of the head as the ranker orders it."""
        from clipflow.relevance.nearest import Nearest

        nearest = Nearest(pictures, index_kind)
        self.told['index'] = nearest.told
        found = nearest.search(texts)
        if self.head is None:
            return list(found)
        ordered = list[Found]()
        for row, (places, _) in enumerate(found):
            scores = self.head.scores(texts[row : row + 1], pictures[places])[0]
            order = np.argsort(-scores, kind='stable')
            ordered.append((places[order], scores[order]))
        return ordered


@dataclass(frozen=True)
class Wanted:
    """What is to be embedded, and the templates that are usual for these texts."""

    pictures: Sequence[Picture]
    others: Sequence[Picture]
    texts: Sequence[str]
    usual: tuple[str, ...]


def embedded(system: System, wanted: Wanted, progress: Progress) -> Vectors:
    """Vectors of what is wanted.

    Raises:
        ClipflowError: the model cannot be loaded, or the head is not of this model.
    """
    spec = load_spec(system.model)
    encoding = EncoderSettings.load()
    forms = _forms(system, templates.usual(encoding.templates, spec.templates) or wanted.usual)
    head = None if system.head is None else Head.read(system.head)
    if head is not None:
        head.check(spec.fingerprint)
    given = {'runtime': system.runtime, 'precision': system.precision}
    encoding = encoding.model_copy(update={name: value for name, value in given.items() if value != 'auto'})
    with Embedding(spec, encoding) as embedding:
        with progress(f'{spec.name}: texts', len(wanted.texts)) as moved:
            said = embedding.texts(wanted.texts, forms, moved)
        with progress(f'{spec.name}: pictures', len(wanted.pictures) + len(wanted.others)) as moved:
            shown, further = embedding.pictures(wanted.pictures, moved), embedding.pictures(wanted.others, moved)
        described = embedding.description
    told = {
        'model': spec.name,
        'fingerprint': spec.fingerprint,
        'runtime': described['runtime'],
        'device': described.get('device', ''),
        'precision': described['precision'],
        'templates': ' | '.join(forms),
        'index': 'flat',
        'head': '' if head is None else head.version,
    }
    return Vectors(told, head, shown, further, said)


def _forms(system: System, usual: tuple[str, ...]) -> tuple[str, ...]:
    if system.templates is None:
        return usual
    try:
        return templates.checked(system.templates)
    except ValueError as error:
        raise InvalidParameter(str(error)) from None
