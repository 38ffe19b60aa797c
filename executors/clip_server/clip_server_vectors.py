"""Behind clip-as-service's encoder in a Flow: its vectors become ours. See README.md beside this file."""

from docarray import DocumentArray

from clipflow import wire
from clipflow.border.room import Room, endpoint
from clipflow.elsewhere import adopt, restore
from clipflow.errors import InvalidParameter, ModelMismatch
from clipflow.settings import RoomSettings
from clipflow.weights import CLIP_SERVER, is_served
from clipflow.wire import ClassifyParameters, EncodeParameters, Parameters, SearchParameters
from clipflow.work import WorkQueue


class ClipServerVectors(Room):
    """Stands behind the foreign encoder: checks, normalises and marks what it sent."""

    stage = 'encoder'
    settings_class = RoomSettings

    def open(self) -> None:
        """See `Room`."""
        if self.spec.family != CLIP_SERVER:
            raise InvalidParameter(
                f'this Flow takes the vectors of clip-as-service, but CLIPFLOW_MODEL is {self.spec.name!r}; unset it, '
                f'or set it to {CLIP_SERVER}::<the name there>'
            )
        self.work = WorkQueue(self.stage, 1, self.settings.queue_limit)

    @endpoint('/', '/encode', parse=EncodeParameters)
    async def encode(self, docs: DocumentArray, parameters: EncodeParameters) -> None:
        """`/` and `/encode`."""
        self._adopt(docs, parameters)
        for doc in wire.chosen(docs, parameters.access_paths):
            wire.strip(doc)

    @endpoint('/index', parse=EncodeParameters)
    async def index(self, docs: DocumentArray, parameters: EncodeParameters) -> None:
        """`/index`."""
        self._adopt(docs, parameters)

    @endpoint('/search', parse=SearchParameters)
    async def search(self, docs: DocumentArray, parameters: SearchParameters) -> None:
        """`/search`, without templates."""
        if parameters.templates:
            raise InvalidParameter("clip-as-service knows no 'templates'; put the text into its sentence yourself")
        self._adopt(docs, parameters)

    @endpoint('/rank', parse=EncodeParameters)
    async def rank(self, docs: DocumentArray, parameters: EncodeParameters) -> None:
        """`/rank`: the foreign encoder has ranked; what it left in the Documents is taken out."""
        self._check_model(parameters)
        for doc in docs:
            adopt(doc, self.spec.fingerprint)
            for match in doc.matches:
                restore(match)

    @endpoint('/classify', parse=ClassifyParameters)
    async def classify(self, docs: DocumentArray, parameters: ClassifyParameters) -> None:
        """`/classify` needs an encoder of ours."""
        raise InvalidParameter('clip-as-service does not classify; serve flow.yml for it')

    @endpoint('/status', parse=Parameters)
    async def tell(self, docs: DocumentArray, parameters: Parameters) -> DocumentArray:
        """`/status`: the preprocessor's Document came through the foreign encoder with a text."""
        dimension = 0
        for doc in docs:
            if doc.embedding is not None:
                dimension = len(doc.embedding)
            doc.pop('text', 'embedding')
        return await self.status(
            docs, runtime=CLIP_SERVER, ready=dimension > 0, dimension=dimension, why='this Flow is for it'
        )

    def _adopt(self, docs: DocumentArray, parameters: EncodeParameters) -> None:
        self._check_model(parameters)
        for doc in wire.chosen(docs, parameters.access_paths):
            adopt(doc, self.spec.fingerprint)

    def _check_model(self, parameters: EncodeParameters) -> None:
        if parameters.model and not is_served(parameters.model, self.spec):
            raise ModelMismatch(f'this service runs the model {self.spec.name!r}, not {parameters.model!r}')
