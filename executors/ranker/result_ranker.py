"""Last stage: the order of results. See README.md beside this file."""

from docarray import DocumentArray

from clipflow import wire
from clipflow.border import heads
from clipflow.border.room import Room, endpoint
from clipflow.clicks import merged, propensities
from clipflow.errors import InvalidParameter
from clipflow.rank import scores
from clipflow.rank.calibration import Calibration
from clipflow.rank.live import LiveHead
from clipflow.settings import RankerSettings
from clipflow.store import layout
from clipflow.wire import EncodeParameters, Parameters, RankerParameters, SearchParameters
from clipflow.work import WorkQueue


class ResultRanker(Room):
    """Merges, sorts and cuts matches; scores the Document's own on `/rank`. Cheap enough for the event loop."""

    stage = 'ranker'
    settings_class = RankerSettings
    settings: RankerSettings

    def open(self) -> None:
        """See `Room`."""
        self.work = WorkQueue(self.stage, 1, self.settings.queue_limit)
        path = self.settings.calibration
        self._calibration = None if path is None else Calibration.read(path)
        if self._calibration is not None:
            self._calibration.check(self.spec.fingerprint)
        folder = self.settings.ranker_heads or self.settings.workspace / layout.RANKER
        self._live = LiveHead(folder, self.settings.ranker_head, self.spec.fingerprint)

    @endpoint('/search', parse=SearchParameters)
    async def search(self, docs: DocumentArray, parameters: SearchParameters) -> None:
        """`/search`."""
        if 'probability' in parameters.include and self._calibration is None:
            raise InvalidParameter(
                "this service has no calibration, so 'include' cannot name 'probability'; make one with "
                '"clipflow calibrate" and start the ranker with CLIPFLOW_CALIBRATION'
            )
        head = self._live.current() if parameters.rerank else None
        version = '' if head is None else head.version
        if parameters.rerank and parameters.head not in (None, version):
            raise heads.changed(version, self.settings.ranker_depth)
        for doc in wire.chosen(docs, parameters.access_paths):
            if not wire.failed(doc):
                scores.merge(doc, parameters, head, self._calibration)
            if 'embedding' not in parameters.include:
                doc.pop('embedding')
            wire.strip(doc)

    @endpoint('/ranker', parse=RankerParameters)
    async def ranker(self, docs: DocumentArray, parameters: RankerParameters) -> DocumentArray:
        """`/ranker`: another head, the one before, or none; tells which it is now."""
        if parameters.do == 'load':
            self._live.load(parameters.path, docs[0].blob if docs else b'', force=parameters.force)
        elif parameters.do == 'rollback':
            self._live.rollback()
        else:
            self._live.off()
        return wire.result_document(self.stage, self._live.status())

    @endpoint('/feedback/stats', parse=Parameters)
    async def feedback_stats(self, docs: DocumentArray, parameters: Parameters) -> DocumentArray:
        """`/feedback/stats`: of the sums of the log what people read, with the propensities of places."""
        for doc in docs:
            counts = merged([doc.tags.pop('counts')])
            theta = propensities(counts)
            doc.tags['users'] = len(doc.tags['users'])
            doc.tags['places'] = [
                {'place': place + 1, 'shown': shown, 'clicked': clicked, 'propensity': round(float(theta[place]), 4)}
                for place, (shown, clicked) in sorted(counts.places.items())
            ]
        return docs

    @endpoint('/rank', parse=EncodeParameters)
    async def rank(self, docs: DocumentArray, parameters: EncodeParameters) -> None:
        """`/rank`."""
        for doc in docs:
            if not wire.failed(doc):
                with wire.caught(doc, self.stage):
                    scores.clip_scores(doc, self.spec.scale)
            wire.strip(doc)
            doc.pop('embedding')

    @endpoint('/status', parse=Parameters)
    async def tell(self, docs: DocumentArray, parameters: Parameters) -> DocumentArray:
        """`/status`."""
        # The encoder, which has told of itself before, knows how long its vectors are.
        sizes = [int(doc.tags['dimension']) for doc in docs if doc.id == 'encoder' and doc.tags.get('dimension')]
        self._live.dimension = sizes[0] if sizes else self._live.dimension
        told = None if self._calibration is None else self._calibration.told()
        return await self.status(docs, **self._live.status(), head_depth=self.settings.ranker_depth, calibration=told)
