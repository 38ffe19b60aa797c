"""Last stage: the order of results. See README.md beside this file."""

from docarray import DocumentArray

from clipflow import wire
from clipflow.border.room import Room, endpoint
from clipflow.rank import scores
from clipflow.settings import RankerSettings
from clipflow.wire import EncodeParameters, Parameters, SearchParameters
from clipflow.work import WorkQueue


class ResultRanker(Room):
    """Merges, sorts and cuts matches; scores the Document's own on `/rank`. Cheap enough for the event loop."""

    stage = 'ranker'
    settings_class = RankerSettings
    settings: RankerSettings

    def open(self) -> None:
        """See `Room`."""
        self.work = WorkQueue(self.stage, 1, self.settings.queue_limit)

    @endpoint('/search', parse=SearchParameters)
    async def search(self, docs: DocumentArray, parameters: SearchParameters) -> None:
        """`/search`."""
        for doc in wire.chosen(docs, parameters.access_paths):
            if not wire.failed(doc):
                scores.merge(doc, parameters)
            wire.strip(doc)

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
        return self.status(docs, head='none')
