"""Documents to embeddings in this process, without a service: the preprocessor's and the encoder's work in one call."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from docarray import Document

from clipflow import wire
from clipflow.batching import Embedder
from clipflow.preparation import Preparation
from clipflow.sessions.registry import open_session
from clipflow.settings import EncoderSettings, PreprocessorSettings
from clipflow.weights import ModelSpec
from clipflow.work import share_of_cores


class LocalEncoder:
    """See the module. A context: the model is freed at its end.

    Args:
        spec: of the model.
        encoding: how it runs; None: as the environment says.

    Raises:
        ClipflowError: the model cannot be loaded on what the settings ask for.
    """

    def __init__(self, spec: ModelSpec, encoding: EncoderSettings | None = None) -> None:
        reading, encoding = PreprocessorSettings.load(), encoding or EncoderSettings.load()
        threads = share_of_cores(encoding.threads, 1)
        self._preparation = Preparation(spec, reading)
        self._session = open_session(spec, encoding, threads, shared=False).session
        self._embedder = Embedder(spec, self._session, encoding.batch_size)
        self._pool = ThreadPoolExecutor(share_of_cores(reading.threads, 1), thread_name_prefix='decode')

    def encode(self, docs: Sequence[Document], templates: Sequence[str] = ()) -> None:
        """Set `embedding` (float32, unit length) on each, or an error (`wire.error_of`); ready embeddings are kept.

        Texts are put into the templates, sentences with a place `{}`, and the vectors of several are averaged.
        """

        def prepare(doc: Document) -> None:
            self._preparation.prepare(doc, needs_content=True, trust_embedding=True, thumbnail=False, keep=False)

        list(self._pool.map(prepare, docs))
        self._embedder.embed(docs, templates)

    @property
    def precision(self) -> str:
        """What the vectors are made with: float or int8."""
        return wire.read_mark(self._embedder.mark)[1]

    @property
    def description(self) -> dict[str, str]:
        """Runtime, device, precision and version."""
        return self._session.description

    @property
    def dimension(self) -> int:
        """Of the vectors."""
        return self._session.dimension

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._session.close()
