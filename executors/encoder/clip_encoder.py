"""Second stage: content becomes embeddings. See README.md beside this file."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

from docarray import Document, DocumentArray

from clipflow import templates, wire
from clipflow.batching import Embedder, Job, in_jobs
from clipflow.border.room import Room, endpoint
from clipflow.cache import TextCache
from clipflow.classify import classify
from clipflow.errors import ModelMismatch, first_line
from clipflow.gathering import Gathering
from clipflow.sessions.cuda import is_lost
from clipflow.sessions.registry import open_session
from clipflow.settings import EncoderSettings
from clipflow.weights import is_served
from clipflow.wire import ClassifyParameters, EncodeParameters, FeedbackParameters, Parameters, SearchParameters
from clipflow.work import WorkQueue, share_of_cores


@contextlib.contextmanager
def _leaving_at_once() -> Iterator[None]:
    """At SIGTERM, while a model loads or a server is waited for: this takes minutes, and nothing has to end well."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class ClipEncoder(Room):
    """Runs the model, what waits together at once; the threads are inside the model."""

    stage = 'encoder'
    settings_class = EncoderSettings
    settings: EncoderSettings

    def open(self) -> None:
        """See `Room`: load the model and encode something before the stage is ready."""
        self._threads = share_of_cores(self.settings.threads, self.replicas)
        # The model is loaded in the thread that will run it: every thread that calls OpenMP gets a team of its own, and
        # with more of them than cores each call waits twice as long for its helpers.
        self.work = WorkQueue(self.stage, 1, self.settings.queue_limit)
        with _leaving_at_once():
            self._embedder = self.work.do(self._load)
        self._gathering = Gathering(self.work, self._embed_together, self.settings.batch_size)
        self._usual = templates.usual(self.settings.templates, self.spec.templates)
        self._closing = threading.Event()
        if self.settings.tower_ttl:
            threading.Thread(target=self._release_idle, name='tower-ttl', daemon=True).start()

    def _load(self) -> Embedder:
        opened = open_session(self.spec, self.settings, self._threads, shared=self.replicas > 1)
        self._why, self._warnings = opened.why, opened.warnings
        cache = TextCache(self.settings.text_cache)
        embedder = Embedder(self.spec, opened.session, self.settings.batch_size, cache)
        embedder.probe()
        return embedder

    def _release_idle(self) -> None:
        ttl = self.settings.tower_ttl
        while not self._closing.wait(ttl / 4):
            try:
                self.work.do(lambda: self._embedder.release_idle(ttl))
            except Exception:  # what runtimes raise
                if not self._closing.is_set():  # else the thread of the model has just ended
                    self.log.exception('a tower that nobody has asked for cannot be freed')

    @endpoint('/', '/encode', parse=EncodeParameters)
    async def encode(self, docs: DocumentArray, parameters: EncodeParameters) -> None:
        """`/` and `/encode` (the gateway turns `/encode/<model>` into a parameter)."""
        chosen = wire.chosen(docs, parameters.access_paths)
        await self._embed(chosen, parameters)
        for doc in chosen:
            wire.strip(doc)

    @endpoint('/index', parse=EncodeParameters)
    async def index(self, docs: DocumentArray, parameters: EncodeParameters) -> None:
        """`/index`."""
        await self._embed(wire.chosen(docs, parameters.access_paths), parameters)

    @endpoint('/search', parse=SearchParameters)
    async def search(self, docs: DocumentArray, parameters: SearchParameters) -> None:
        """`/search`: the text may be put into templates."""
        await self._embed(wire.chosen(docs, parameters.access_paths), parameters, self._templates(parameters))

    @endpoint('/feedback', parse=FeedbackParameters)
    async def feedback(self, docs: DocumentArray, parameters: FeedbackParameters) -> None:
        """`/feedback`: the query again."""
        await self._embed(wire.chosen(docs, parameters.access_paths), parameters, self._templates(parameters))

    @endpoint('/rank', parse=EncodeParameters)
    async def rank(self, docs: DocumentArray, parameters: EncodeParameters) -> None:
        """`/rank`: the Documents and their matches."""
        await self._embed([*docs, *(match for doc in docs for match in doc.matches)], parameters)

    @endpoint('/classify', parse=ClassifyParameters)
    async def classify(self, docs: DocumentArray, parameters: ClassifyParameters) -> None:
        """`/classify`: zero-shot."""
        chosen = wire.chosen(docs, parameters.access_paths)
        classes = [Document(text=label) for label in parameters.labels]
        await self._embed(chosen, parameters)
        await self._embed(classes, parameters, parameters.templates)
        await self.work.run(parameters, classify, chosen, classes, self.spec.scale)
        for doc in chosen:
            wire.strip(doc)

    @endpoint('/status', parse=Parameters)
    async def tell(self, docs: DocumentArray, parameters: Parameters) -> DocumentArray:
        """`/status`."""
        session, cache = self._embedder.session, self._embedder.cache
        return await self.status(
            docs,
            **session.description,
            why=self._why,
            warnings=[*self._warnings, *self._degraded()],
            loaded=self._embedder.loaded,
            batch_size=self._embedder.batch_size,
            dimension=session.dimension,
            threads=self._threads,
            batches=self._gathering.calls,
            items=self._gathering.items,
            batch_sizes=[list(pair) for pair in self._gathering.sizes],
            templates=list(self._usual),
            templates_from='the model' if self.settings.templates is None else 'CLIPFLOW_TEMPLATES',
            cached_texts=len(cache),
            cache_hits=cache.hits,
            cache_misses=cache.misses,
        )

    def _templates(self, parameters: SearchParameters | FeedbackParameters) -> tuple[str, ...]:
        return self._usual if parameters.templates is None else parameters.templates

    def _degraded(self) -> list[str]:
        size, asked = self._embedder.batch_size, self.settings.batch_size
        return [] if size == asked else [f'the device has no memory for CLIPFLOW_BATCH_SIZE={asked}; it takes {size}']

    async def works(self) -> bool:
        """After a call that failed, both towers are asked for something before this stage counts as ready again."""
        if self._gathering.failed:
            try:
                await self.work.run(Parameters(), self._on_device, self._embedder.probe)
            except Exception as error:  # a broken session raises what its runtime raises
                self.log.warning('the model does not answer: %s', str(error) or type(error).__name__)
                return False
            self._gathering.failed = False
        return True

    def _embed_together(self, jobs: Sequence[Job]) -> None:
        self._on_device(lambda: self._embedder.embed_together(jobs))

    def _on_device(self, call: Callable[[], None]) -> None:
        """Let the model do something. A GPU that is lost to this process ends it, so that another one is started."""
        try:
            call()
        except Exception as error:
            if is_lost(self._embedder.session):
                self.log.critical('the GPU is lost to this process, which ends: %s', first_line(error))
                os._exit(1)
            raise

    async def _embed(self, docs: list[Document], parameters: EncodeParameters, templates: Sequence[str] = ()) -> None:
        if parameters.model and not is_served(parameters.model, self.spec):
            raise ModelMismatch(f'this service runs the model {self.spec.name!r}, not {parameters.model!r}')
        if all(doc.embedding is not None or wire.is_empty(doc) for doc in docs):
            self._embedder.embed(docs)  # only checks; nothing for the model
            return
        # A large request asks again for each of its minibatches, so that a single query need not wait for all of them.
        for job, size in in_jobs(docs, templates, self.settings.batch_size):
            await self._gathering.run(parameters, job, size)

    def close(self) -> None:
        """See `Room`."""
        if hasattr(self, '_closing'):
            self._closing.set()
        super().close()
        if hasattr(self, '_embedder'):
            self._embedder.session.close()
