"""What travels between client, gateway and rooms: endpoints, their parameters, and the conventions on Documents.

Parameters are parsed once at each border; numbers arrive as floats (protobuf Struct), whole ones pass as integers.
Tags whose names begin with `__` are ours: a client's are dropped on entry.
"""

import difflib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal, Self

from docarray import Document, DocumentArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clipflow import filters, templates
from clipflow.clicks import check_judged
from clipflow.errors import ClipflowError, Internal, InvalidDocument, InvalidParameter, NotFound, Timeout, from_code

DEADLINE = '__deadline'
REQUEST_ID = '__request_id'
MODEL_NAME = '__model_name'
TRACE = '__trace'
CANDIDATES = '__candidates'
HEAD = '__head'
ERROR = '__error__'
MODEL = '__model__'
GROUP = '__group__'
SORT = '__sort__'
PARTIAL = '__partial__'
KEY = '__key__'
TRUNCATED = '__truncated__'
THUMBNAIL = '__thumbnail__'
ORIGINAL = '__original__'
BACKGROUND = '__background__'
CHUNKS = (THUMBNAIL, ORIGINAL, BACKGROUND)
"""Modalities of the chunks that are ours."""
MAX_ID_BYTES = 512
MAX_LIMIT = 10_000
MAX_PARTS = 32
"""Of a compound query."""
MAX_EFFORT = 1_000_000
"""More than any index has lists or is worth to look at; FAISS reserves memory for `ef_search`."""
MIXED = 250
"""So many of the best are put into another order by `diversity`: five pages of 48 or so."""

Include = Literal['tags', 'uri', 'thumbnail', 'embedding', 'key']
IncludeFound = Literal['tags', 'uri', 'thumbnail', 'embedding', 'key', 'percentile', 'probability']
Texts = Annotated[tuple[str, ...], Field(min_length=1, max_length=1000)]
Templates = Annotated[tuple[str, ...], AfterValidator(templates.checked)]


class Parameters(BaseModel):
    """What every request may carry. Names that published clients send are accepted everywhere."""

    model_config = ConfigDict(extra='forbid', frozen=True, populate_by_name=True, protected_namespaces=())
    own: ClassVar[tuple[str, ...]] = (DEADLINE, REQUEST_ID, MODEL_NAME, TRACE, CANDIDATES, HEAD, '__results__')
    silent: ClassVar[tuple[str, ...]] = ('minibatch_size', 'batch_size', 'model_name', 'drop_image_content')

    deadline: float | None = Field(None, alias=DEADLINE)
    request_id: str = Field('', alias=REQUEST_ID)
    trace: str = Field('', alias=TRACE)

    @classmethod
    def parse(cls, given: dict[str, Any]) -> Self:
        """Parse what arrived.

        Raises:
            InvalidParameter: names the parameter, what is expected and, for an unknown name, the nearest known one.
        """
        known = {field.alias or name for name, field in cls.model_fields.items()}
        kept = {}
        for name, value in given.items():
            if name in known:
                kept[name] = value
            elif name not in cls.silent and name not in cls.own and name != 'traversal_paths':
                near = difflib.get_close_matches(name, known, 1)
                hint = f'did you mean {near[0]!r}?' if near else f'known are {", ".join(sorted(known - set(cls.own)))}'
                raise InvalidParameter(f'unknown parameter {filters.shown(name)}; {hint}')
        if 'traversal_paths' in given and 'access_paths' in known:
            kept.setdefault('access_paths', given['traversal_paths'])
        try:
            return cls.model_validate(kept)
        except ValidationError as error:
            raise InvalidParameter('; '.join(_sentence(item) for item in error.errors())) from None

    def check_deadline(self) -> None:
        """Raises Timeout once the caller has given up (clocks of the machines are taken as equal)."""
        if self.deadline is not None and time.time() > self.deadline:
            raise Timeout('the deadline of this request has passed; ask for less or allow more time')


def _sentence(item: Any) -> str:
    name = str(item['loc'][0]) if item['loc'] else 'parameters'
    if item['type'] == 'value_error':
        return str(item['ctx']['error'])
    value = repr(item['input'])
    value = value if len(value) <= 60 else value[:57] + '...'
    return f'parameter {name!r} is not valid: {item["msg"][:1].lower()}{item["msg"][1:]}, got {value}'


class EncodeParameters(Parameters):
    """`/`, `/encode`, `/encode/<model>`, `/index`, `/rank`."""

    access_paths: str = '@r'
    drop_image_content: bool = True
    model: str = Field('', alias=MODEL_NAME)
    """From the path `/encode/<model>`; the gateway puts it here."""

    @field_validator('access_paths')
    @classmethod
    def _traversal(cls, value: str) -> str:
        if not re.fullmatch(r'@[rcm](,?[rcm])*', value):
            raise ValueError(f"parameter 'access_paths' is a path such as '@r', '@c' or '@r,m', not {value!r}")
        return value


class _Filtered(Parameters):
    filter: dict[str, Any] | None = None

    @field_validator('filter', mode='before')
    @classmethod
    def _compiles(cls, value: Any) -> Any:
        # The compiled form is made again where it is used: it is cheap, and Documents carry the source.
        if value is not None:
            filters.compile_filter(value)
        return value


class _Page(_Filtered):
    limit: int = Field(10, ge=1, le=MAX_LIMIT)
    offset: int = Field(0, ge=0, le=10**9)


class SearchParameters(EncodeParameters, _Page):
    """`/search`. `nprobe` and `ef_search` mean nothing to an exact index and are accepted, `rerank` to all."""

    include: tuple[IncludeFound, ...] = ('tags', 'uri')
    min_score: float | None = Field(None, ge=-1, le=1)
    relevance: float | None = Field(None, ge=0, lt=1)
    group_by: str | None = Field(None, min_length=1)
    dedup: float | None = Field(None, gt=0, le=1)
    sort_by: str | None = Field(None, pattern=r'^-?[^-]')
    diversity: float | None = Field(None, ge=0, le=1)
    templates: Templates | None = None
    """None: those of the encoder; empty: none."""
    rerank: bool = True
    nprobe: int | None = Field(None, ge=1, le=MAX_EFFORT)
    ef_search: int | None = Field(None, ge=1, le=MAX_EFFORT)
    candidates: int = Field(0, alias=CANDIDATES)
    """How many of the best the ranker's head is to order; 0 without one. The gateway puts it here."""
    head: str | None = Field(None, alias=HEAD)
    """Version of the head that the gateway takes for live, empty for none; None: it does not say."""

    @property
    def reach(self) -> int:
        """How many of the best the ranker has to see. It mixes always as many, so that a page begins the next."""
        return max(self.limit + self.offset, self.candidates, MIXED if self.diversity else 0)

    @property
    def compares(self) -> bool:
        """Whether the ranker needs the vectors of the matches."""
        return self.dedup is not None or bool(self.diversity) or self.candidates > 0

    @model_validator(mode='after')
    def _consistent(self) -> Self:
        if self.offset + self.limit > 2 * MAX_LIMIT:  # all before a page is found, sent and ordered with it
            raise ValueError(f"'offset' and 'limit' reach the best {2 * MAX_LIMIT:,}; narrow the search with 'filter'")
        if self.sort_by is not None and self.min_score is None and self.relevance is None:
            raise ValueError(
                "'sort_by' orders what is relevant: say with 'relevance' (such as 0.99) or 'min_score' what that is"
            )
        if self.sort_by is not None and self.diversity:
            raise ValueError("'sort_by' and 'diversity' are two orders; give one of them")
        return self


class GetParameters(_Page):
    """`/get`: by the Documents' ids, `ids`, `keys` (numbers that `include: ['key']` tells), or a page by `filter`."""

    include: tuple[Include, ...] = ('tags', 'uri')
    ids: tuple[str, ...] | None = Field(None, max_length=MAX_LIMIT)
    keys: tuple[Annotated[int, Field(ge=0, lt=2**53)], ...] | None = Field(None, max_length=MAX_LIMIT)


class DeleteParameters(_Filtered):
    """`/delete`: by the Documents' ids, `ids` or `filter`."""

    ids: tuple[str, ...] | None = None


class FacetParameters(_Filtered):
    """`/facets`: how often each value of each tag stands on the documents that pass `filter`."""

    limit: int = Field(20, ge=1, le=1000)


Ids = tuple[Annotated[str, Field(min_length=1)], ...]


class FeedbackParameters(EncodeParameters):
    """`/feedback`: the Document is the query; `shown` are ids of its results in their order."""

    shown: Annotated[Ids, Field(min_length=1, max_length=1000)]
    clicked: Ids = ()
    disliked: Ids = ()
    scores: tuple[Annotated[float, Field(ge=-1.001, le=1.001)], ...] = ()
    user: str = Field('', max_length=MAX_ID_BYTES)
    head: str = Field('', alias=HEAD)
    """Version of the head that is live. The gateway puts it here."""
    templates: Templates | None = None
    rerank: bool = True
    """Both as in the search."""

    @model_validator(mode='after')
    def _of_the_shown(self) -> Self:
        check_judged(self.shown, self.clicked, self.disliked, self.scores)
        return self


class ExportParameters(Parameters):
    """`/feedback/export`: entries whose numbers are `after` + 1 to `after` + `limit` in their shard."""

    after: int = Field(0, ge=0)
    limit: int = Field(1000, ge=1, le=MAX_LIMIT)
    user: str | None = Field(None, min_length=1, max_length=MAX_ID_BYTES)


class PurgeParameters(Parameters):
    """`/feedback/purge`: entries of `user`, entries older than `before` (seconds since the epoch), or both at once."""

    user: str | None = Field(None, min_length=1, max_length=MAX_ID_BYTES)
    before: float | None = None

    @model_validator(mode='after')
    def _something(self) -> Self:
        if self.user is None and self.before is None:
            raise ValueError("say what to delete: 'user', 'before' or both")
        return self


class RankerParameters(Parameters):
    """`/ranker`: another head of the ranker. `load` takes the file `path` in the directory of heads, or the content of
    a file from the Document.
    """

    do: Literal['load', 'rollback', 'off']
    path: str = Field('', max_length=1000)
    force: bool = False
    """Load a head that did not pass its check on held-out queries."""


class ClassifyParameters(EncodeParameters):
    """`/classify`."""

    labels: Texts
    templates: Annotated[Templates, Field(min_length=1)] = ('{}',)

    @model_validator(mode='after')
    def _distinct(self) -> Self:
        if len(set(self.labels)) < 2 or len(set(self.labels)) < len(self.labels):
            raise ValueError("parameter 'labels' needs at least two different labels")
        return self


ENDPOINTS: dict[str, type[Parameters]] = {
    '/': EncodeParameters,
    '/encode': EncodeParameters,
    '/index': EncodeParameters,
    '/update': Parameters,
    '/delete': DeleteParameters,
    '/search': SearchParameters,
    '/rank': EncodeParameters,
    '/classify': ClassifyParameters,
    '/get': GetParameters,
    '/facets': FacetParameters,
    '/feedback': FeedbackParameters,
    '/feedback/stats': Parameters,
    '/feedback/export': ExportParameters,
    '/feedback/purge': PurgeParameters,
    '/ranker': RankerParameters,
    '/status': Parameters,
    '/clear': Parameters,
    '/snapshot': Parameters,
}
WRITES = frozenset({'/index', '/update', '/delete', '/clear', '/snapshot', '/feedback/purge', '/ranker'})
"""What changes what is stored."""
PRIVATE = frozenset({'/feedback/export'})
"""What tells of people; as for writing, a key for reading is not enough."""
ONCE = frozenset({'/feedback', '/ranker'})
"""What must not be done twice; everything else may be sent again."""


def parse_endpoint(endpoint: str) -> tuple[str, str | None]:
    """Split `/encode/<model>` and `/rank/<model>` into endpoint and model.

    Raises:
        NotFound: with the nearest known endpoint. (Jina itself would pass an unknown one silently.)
    """
    if endpoint in ENDPOINTS:
        return endpoint, None
    for base in ('/encode', '/rank'):
        if endpoint.startswith(base + '/') and len(endpoint) > len(base) + 1:
            return base, endpoint[len(base) + 1 :]
    near = difflib.get_close_matches(endpoint, ENDPOINTS, 1)
    hint = f'did you mean {near[0]!r}?' if near else f'known are {", ".join(ENDPOINTS)}'
    raise NotFound(f'there is no endpoint {endpoint!r}; {hint}')


def fail(doc: Document, error: ClipflowError, stage: str) -> None:
    """Mark one Document as failed: it goes back under its id, without content, embedding or matches."""
    doc.tags[ERROR] = {'code': error.code, 'message': error.message, 'stage': stage}
    doc.pop('blob', 'tensor', 'embedding', 'matches', 'chunks')


def failed(doc: Document) -> bool:
    """Whether an earlier stage has marked this Document."""
    return ERROR in doc.tags


def error_of(doc: Document) -> ClipflowError | None:
    """The error that came back with this Document, as an exception to raise or show."""
    found = doc.tags.get(ERROR)
    if found is None:
        return None
    if isinstance(found, dict) and 'code' in found:
        return from_code(str(found['code']), str(found.get('message', '')))
    return Internal('a document came back with an error that cannot be read')


@contextmanager
def caught(doc: Document, stage: str) -> Iterator[None]:
    """What goes wrong inside concerns this Document alone."""
    try:
        yield
    except ClipflowError as error:
        fail(doc, error, stage)


def chosen(docs: DocumentArray, access_paths: str) -> list[Document]:
    """The Documents that a request speaks of: the roots, or what the path names (`@c`, `@r,m`)."""
    return list(docs) if access_paths == '@r' else list(docs[access_paths])


def model_mark(fingerprint: str, precision: str) -> str:
    """What a Document carries of the model that encoded it. 8-bit vectors are not those of the same model in float."""
    return f'{fingerprint}+int8' if precision == 'int8' else fingerprint


def read_mark(mark: object) -> tuple[str, str]:
    """Fingerprint, and `int8` or `float`."""
    fingerprint, _, precision = str(mark).partition('+')
    return fingerprint, precision or 'float'


def strip(doc: Document) -> None:
    """Take out what only stages need to know, before a Document goes back."""
    doc.tags.pop(MODEL, None)
    for modality in CHUNKS:
        detach(doc, modality)


def is_empty(doc: Document) -> bool:
    """Whether there is nothing to encode (DocArray cannot tell an empty text from none)."""
    return not (doc.text or doc.blob or doc.uri or doc.tensor is not None or doc.embedding is not None or doc.chunks)


def check_id(doc: Document) -> None:
    """Raises InvalidDocument unless the id is a text of 1 to 512 bytes."""
    if not doc.id:
        raise InvalidDocument('a document needs an id that is not empty')
    if len(doc.id.encode('utf-8', 'surrogatepass')) > MAX_ID_BYTES:
        raise InvalidDocument(f'the id {doc.id[:40]!r}... is longer than {MAX_ID_BYTES} bytes')


def attach(doc: Document, modality: str, **content: Any) -> None:
    """Add a private chunk that carries something of the Document to a later stage."""
    doc.chunks.append(Document(modality=modality, **content))


def detach(doc: Document, modality: str) -> Document | None:
    """Take a private chunk out again, None if there is none."""
    if not doc.chunks:
        return None
    for position, chunk in enumerate(doc.chunks):
        if chunk.modality == modality:
            del doc.chunks[position]
            return chunk
    return None


def parts_of(doc: Document) -> list[Document]:
    """The weighted parts of a compound query: its chunks, without the private ones."""
    return [chunk for chunk in doc.chunks if chunk.modality not in CHUNKS] if doc.chunks else []


def result_document(stage: str, tags: dict[str, Any]) -> DocumentArray:
    """A reply that is one Document with tags (`/status`, `/delete`, `/clear`)."""
    return DocumentArray([Document(id=stage, tags=tags)])
