"""First stage: texts pass, pictures become the model's input. See README.md beside this file."""

from docarray import DocumentArray

from clipflow import wire
from clipflow.border.room import Room, endpoint
from clipflow.elsewhere import PROBE, PassThrough
from clipflow.errors import InvalidDocument
from clipflow.preparation import Preparation
from clipflow.settings import PreprocessorSettings
from clipflow.weights import CLIP_SERVER
from clipflow.wire import ClassifyParameters, EncodeParameters, FeedbackParameters, Parameters, SearchParameters
from clipflow.work import WorkQueue, share_of_cores


class InputPreprocessor(Room):
    """Checks every Document and prepares its content, on as many threads as the cores allow."""

    stage = 'preprocessor'
    settings_class = PreprocessorSettings
    settings: PreprocessorSettings

    def open(self) -> None:
        """See `Room`."""
        self._elsewhere = self.spec.family == CLIP_SERVER
        self._preparation = (PassThrough if self._elsewhere else Preparation)(self.spec, self.settings)
        self._threads = share_of_cores(self.settings.threads, self.replicas)
        self.work = WorkQueue(self.stage, self._threads, self.settings.queue_limit)

    @endpoint('/', '/encode', parse=EncodeParameters)
    async def encode(self, docs: DocumentArray, parameters: EncodeParameters) -> None:
        """`/` and `/encode` (the gateway turns `/encode/<model>` into a parameter)."""
        await self._prepare(docs, parameters, needs_content=False, trust_embedding=False)

    @endpoint('/index', parse=EncodeParameters)
    async def index(self, docs: DocumentArray, parameters: EncodeParameters) -> None:
        """`/index`: thumbnails, and ids that can be stored."""
        await self._prepare(docs, parameters, needs_content=True, trust_embedding=True, thumbnail=True)
        seen: set[str] = set()
        for doc in wire.chosen(docs, parameters.access_paths):
            with wire.caught(doc, self.stage):
                wire.check_id(doc)
                if doc.id in seen:
                    raise InvalidDocument(f'the id {doc.id!r} comes twice in this request; only the first is taken')
            seen.add(doc.id)

    @endpoint('/search', parse=SearchParameters)
    async def search(self, docs: DocumentArray, parameters: SearchParameters) -> None:
        """`/search`."""
        await self._prepare(docs, parameters, needs_content=True, trust_embedding=True)

    @endpoint('/feedback', parse=FeedbackParameters)
    async def feedback(self, docs: DocumentArray, parameters: FeedbackParameters) -> None:
        """`/feedback`: the query again."""
        await self._prepare(docs, parameters, needs_content=True, trust_embedding=True)

    @endpoint('/classify', parse=ClassifyParameters)
    async def classify(self, docs: DocumentArray, parameters: ClassifyParameters) -> None:
        """`/classify`."""
        await self._prepare(docs, parameters, needs_content=True, trust_embedding=True)

    @endpoint('/rank', parse=EncodeParameters)
    async def rank(self, docs: DocumentArray, parameters: EncodeParameters) -> None:
        """`/rank`: the Documents and their matches."""
        both = DocumentArray([*docs, *(match for doc in docs for match in doc.matches)])
        await self._prepare(both, parameters, needs_content=True, trust_embedding=not self._elsewhere)
        for error in filter(None, map(wire.error_of, both if self._elsewhere else ())):
            raise error  # clip-as-service ranks a request as a whole

    @endpoint('/status', parse=Parameters)
    async def tell(self, docs: DocumentArray, parameters: Parameters) -> DocumentArray:
        """`/status`."""
        reply = await self.status(docs, threads=self._threads, reads_files=bool(self.settings.file_roots))
        if self._elsewhere:
            reply[0].text = PROBE
        return reply

    async def _prepare(
        self,
        docs: DocumentArray,
        parameters: EncodeParameters,
        *,
        needs_content: bool,
        trust_embedding: bool,
        thumbnail: bool = False,
    ) -> None:
        chosen = wire.chosen(docs, parameters.access_paths)

        def prepare(position: int) -> None:
            self._preparation.prepare(
                chosen[position],
                needs_content=needs_content,
                trust_embedding=trust_embedding,
                thumbnail=thumbnail,
                keep=not parameters.drop_image_content,
            )

        # What holds no picture to decode is not worth a change of thread.
        light = [p for p, doc in enumerate(chosen) if doc.text or (doc.embedding is not None and trust_embedding)]
        for position in light:
            prepare(position)
        await self.work.map(parameters, prepare, sorted(set(range(len(chosen))) - set(light)))
