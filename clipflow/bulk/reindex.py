"""A collection under another model: every document is embedded again from what is stored of it.

The new generation is filled beside the old one, which may be served and written meanwhile: changes are followed by
their numbers. How far it has come stands in the new stores, so that an interrupted run goes on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from docarray import Document

from clipflow import wire
from clipflow.bulk.encoding import LocalEncoder
from clipflow.store.reading import Documents, Record
from clipflow.store.sqlite import Store

TEXT, PICTURE = 'text', 'picture'
_UNDECIDED = 'it has a text and a URI; say with --prefer which of them its vector is of'
_REASONS = 5
_RECORDS = 1000


@dataclass
class Tally:
    """What became of the documents in this run; `reasons` of some that failed, by their ids."""

    from_thumbnails: int = 0
    reasons: dict[str, str] = field(default_factory=dict)


class Reindexing:
    """See the module.

    Args:
        sources: the shards as they are; only read.
        targets: as many new ones, by the same numbers.
        encoder: of the new model.
        prefer: TEXT or PICTURE, of documents that have a text and a URI, and no thumbnail. Their vector may be of
            either: who stores a text may name a file with it, and loaded pictures have captions. Without an answer
            such documents cannot be embedded.
    """

    def __init__(
        self, sources: Sequence[Documents], targets: Sequence[Store], encoder: LocalEncoder, prefer: str = ''
    ) -> None:
        self._pairs = list(zip(sources, targets, strict=True))
        for source, target in self._pairs:
            # An earlier run may have filled it from another generation, whose changes have numbers of their own, or
            # with the model in another form, such as int8. Then it is of no use.
            made = f'{source.identity()} {encoder.precision} {encoder.dimension} {prefer}'
            if target.made() != made:
                target.clear()
                target.note_made(made)
        self._encoder = encoder
        self._prefer = prefer
        self.tally = Tally()

    def retry(self) -> None:
        """Try again what could not be embedded in an earlier run: its files may be open to this one."""
        for source, target in self._pairs:
            if target.taken():
                lost = sorted(source.ids() - target.ids())
                for start in range(0, len(lost), _RECORDS):
                    self._take(list(source.by_ids(lost[start : start + _RECORDS], thumbnails=True).values()), target)

    def follow(self, moved: Callable[[int], None]) -> int:
        """Embed what has changed since the last call, of this run or an earlier one; returns how many documents.

        Args:
            moved: is told of each block how many documents it had.
        """
        total = 0
        for source, target in self._pairs:
            while True:
                records, sequence = source.changed_since(target.taken())
                if not records:
                    break
                self._take(records, target)
                target.note_taken(sequence)
                moved(len(records))
                total += len(records)
        return total

    def finish(self) -> list[str]:
        """Delete what the sources do not hold any more; returns ids of documents that could not be embedded."""
        missing: list[str] = []
        for source, target in self._pairs:
            there, here = source.ids(), target.ids()
            target.delete(here - there)
            target.note_newest_key(source.newest_key())
            missing += sorted(there - here)
        return missing

    def _take(self, records: Sequence[Record], target: Store) -> None:
        docs = [self._original(record) for record in records]
        self._encoder.encode(docs)
        again = [n for n, doc in enumerate(docs) if wire.failed(doc) and records[n].thumbnail]
        thumbnails = [Document(id=records[n].id, blob=records[n].thumbnail) for n in again]
        self._encoder.encode(thumbnails)
        for n, doc in zip(again, thumbnails, strict=True):
            docs[n] = doc
        good = []
        for record, doc in zip(records, docs, strict=True):
            error = wire.error_of(doc)
            if error is None:
                good.append(replace(record, vector=doc.embedding))
            elif len(self.tally.reasons) < _REASONS:
                undecided = _is_either(record) and not self._prefer
                self.tally.reasons[record.id] = _UNDECIDED if undecided else error.message
        target.upsert(good, self._encoder.precision, keep_keys=True)
        target.delete({record.id for record in records} - {record.id for record in good})
        self.tally.from_thumbnails += sum(not wire.failed(doc) for doc in thumbnails)

    def _original(self, record: Record) -> Document:
        """What the vector is of: the text, or what is behind the URI, if this process may read it."""
        # Only of a picture there is a thumbnail.
        of = self._prefer if _is_either(record) else TEXT if record.text and not record.thumbnail else PICTURE
        if of == TEXT:
            return Document(id=record.id, text=record.text)
        return Document(id=record.id, uri=record.uri) if of == PICTURE and record.uri else Document(id=record.id)


def _is_either(record: Record) -> bool:
    """As `Documents.count_of_either`."""
    return bool(record.text and record.uri and not record.thumbnail)
