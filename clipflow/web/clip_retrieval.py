"""clip-retrieval's HTTP API (2.45.0), for its `ClipClient` and its front end.

Both send JSON without a content type, nulls for what they leave out, and options of models that are not here. One
collection holds texts and pictures, so `modality` changes nothing, and `indice_name` may be any. An id is the number
that the store has given a document: it is kept until the document is deleted, and not given again. Only `clipflow
reshard` gives new ones.
"""

import base64
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from docarray import Document, DocumentArray
from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from clipflow import wire
from clipflow.errors import InvalidParameter
from clipflow.tags import plain_tags
from clipflow.web import bodies
from clipflow.web.content import Query, Vector, query_document
from clipflow.web.flow import FlowCall, only

NAME = 'clipflow'
"""Of the one index."""
_SAME = 0.94
"""The cosine from which clip-retrieval takes two pictures for one."""
_AT_ONCE = 200
_KEYS = 2**53
_OWN = ('id', 'similarity')
_STEPS = {
    'full_knn_request_time': 'Time spent processing knn request',
    'knn_index_time': 'Time spent encoding the query and doing a knn on the index',
    'metadata_get_time': 'Time spent retrieving metadata',
}


class _Body(BaseModel):
    """What is null has its default, and what is not known is ignored."""

    model_config = ConfigDict(extra='ignore')

    @model_validator(mode='before')
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class KnnRequest(_Body):
    """The body of `/knn-service`. The first of `text`, `image`, `image_url`, `embedding_input` that is there counts."""

    text: str = ''
    image: str = Field('', description='base64')
    image_url: str = Field('', description='fetched only where the service allows it')
    embedding_input: Vector | None = None
    modality: str = Field('image', description='accepted; one index holds texts and pictures')
    num_images: int = Field(40, ge=0, description='results that get metadata')
    num_result_ids: int | None = Field(
        None, ge=0, description=f'results; as many as `num_images` by default, {wire.MAX_LIMIT:,} at most'
    )
    indice_name: str = Field(NAME, description='accepted; there is one index')
    deduplicate: bool = Field(False, description='leave out what is nearly the same as a better result')

    @property
    def limit(self) -> int:
        """How many results."""
        return min(self.num_images if self.num_result_ids is None else self.num_result_ids, wire.MAX_LIMIT)

    def query(self) -> Query:
        """Raises InvalidParameter if there is none."""
        if self.text:
            return Query(text=self.text)
        if self.image:
            return Query(image=self.image)
        if self.image_url:
            return Query(uri=self.image_url)
        if self.embedding_input is not None:
            return Query(embedding=self.embedding_input)
        raise InvalidParameter('give one of text, image, image_url, embedding_input')


class MetadataRequest(_Body):
    """The body of `/metadata`."""

    ids: list[int] = Field(max_length=wire.MAX_LIMIT, description='numbers, or texts of digits')
    indice_name: str = NAME


class Item(BaseModel):
    """One result: metadata (tags, `url`, `caption`, `image_path`, `image` in base64) for the first `num_images`."""

    model_config = ConfigDict(extra='allow')
    id: int
    similarity: float = Field(description='cosine, -1 to 1')


class Metadata(BaseModel):
    """What `/metadata` knows of one id."""

    id: int
    metadata: dict[str, Any]


class Front(BaseModel):
    """What clip-retrieval's front end reads first."""

    defaultBackend: str  # noqa: N815 - as the front end spells it
    defaultIndex: str  # noqa: N815
    urlColumn: str  # noqa: N815


def router(flow: FlowCall) -> APIRouter:
    """The routes, at the root."""
    routes = APIRouter(tags=['clip-retrieval'])
    tally = _Tally()

    @routes.post(
        '/knn-service',
        summary='Search, as clip-retrieval does',
        response_model_exclude_unset=True,
        openapi_extra=bodies.json_of(KnnRequest),
    )
    async def knn_service(request: Request) -> list[Item]:
        with tally.timed('full_knn_request_time'):
            asked = bodies.parsed(KnnRequest, await request.body())
            query = await query_document(flow, asked.query())
            if not asked.limit:
                return []
            parameters: dict[str, Any] = {'limit': asked.limit, 'include': ['key']}
            if asked.deduplicate:
                parameters['dedup'] = _SAME
            with tally.timed('knn_index_time'):
                matches = only(await flow('/search', DocumentArray([query]), parameters)).matches
            scores = {_key(match): match.scores['cosine'].value for match in matches}
            with tally.timed('metadata_get_time'):
                known = await _metadata(flow, list(scores)[: asked.num_images])
            return [Item(**known.get(key, {}), id=key, similarity=round(score, 6)) for key, score in scores.items()]

    @routes.post(
        '/metadata',
        summary='Metadata of ids that a search has told; unknown ids are left out',
        openapi_extra=bodies.json_of(MetadataRequest),
    )
    async def metadata(request: Request) -> list[Metadata]:
        asked = bodies.parsed(MetadataRequest, await request.body())
        with tally.timed('metadata_get_time'):
            known = await _metadata(flow, asked.ids)
        return [Metadata(id=key, metadata=known[key]) for key in asked.ids if key in known]

    @routes.get('/indices-list', summary='The names of the indexes: one')
    async def indices_list() -> list[str]:
        return [NAME]

    @routes.get('/config.json', summary="For clip-retrieval's front end")
    async def config(request: Request) -> Front:
        return Front(defaultBackend=str(request.base_url).rstrip('/'), defaultIndex=NAME, urlColumn='url')

    @routes.get(
        '/metrics-summary', summary='What these routes have spent their time on', response_class=PlainTextResponse
    )
    async def metrics_summary() -> str:
        return tally.table()

    return routes


async def _metadata(flow: FlowCall, keys: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Of the documents that are there, by their keys; a few at a time, because each may bring a picture."""
    able = [key for key in dict.fromkeys(keys) if 0 <= key < _KEYS]
    found: dict[int, dict[str, Any]] = {}
    for start in range(0, len(able), _AT_ONCE):
        some = {'keys': able[start : start + _AT_ONCE], 'include': ['key', 'tags', 'uri', 'thumbnail']}
        found |= {_key(doc): _fields(doc) for doc in await flow('/get', DocumentArray(), some)}
    return found


def _key(doc: Document) -> int:
    return int(doc.tags[wire.KEY])


def _fields(doc: Document) -> dict[str, Any]:
    fields = {name: value for name, value in plain_tags(doc).items() if name not in _OWN}
    if re.match('https?:', doc.uri, re.IGNORECASE):
        fields['url'] = doc.uri
    elif doc.uri and not doc.uri.startswith('data:'):
        fields['image_path'] = doc.uri
    if doc.text:
        fields['caption'] = doc.text
    if doc.blob:
        fields['image'] = base64.b64encode(doc.blob).decode()
    return fields


class _Tally:
    """Calls and seconds of each step since the start of this process."""

    def __init__(self) -> None:
        self._spent: dict[str, list[float]] = {name: [] for name in _STEPS}

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """One call of a step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            calls, seconds = self._spent[step] or (0, 0.0)
            self._spent[step] = [calls + 1, seconds + time.perf_counter() - started]

    def table(self) -> str:
        """As clip-retrieval prints it."""
        whole, *steps = _STEPS
        if not self._spent[whole]:
            return 'No request yet, go do some'
        calls, average = self._average(whole)
        rows = [('name', 'description', 'calls', 'average', 'proportion')]
        for name in sorted(steps, key=lambda step: -self._average(step)[1]):
            count, mean = self._average(name)
            rows.append((name, _STEPS[name], str(count), f'{mean:.4f}s', f'{100 * mean / average:.1f}%'))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ['  '.join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
        return (
            f'Among {calls} calls to the knn end point with an average latency of {average:.4f}s per request, the step '
            'costs are (in order): \n\n' + '\n'.join(lines)
        )

    def _average(self, step: str) -> tuple[int, float]:
        calls, seconds = self._spent[step] or (0, 0.0)
        return int(calls), seconds / calls if calls else 0.0
