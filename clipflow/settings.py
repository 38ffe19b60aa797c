"""Settings: one frozen class a room. `CLIPFLOW_*` in the environment wins over YAML `with:`, that over the default.

Every field's description is the text of docs/configuration.md, which is generated from these classes.
"""

import difflib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from clipflow import ROOT, templates
from clipflow.errors import InvalidParameter

PREFIX = 'CLIPFLOW_'
MEGABYTE = 1024 * 1024
_NO_TEMPLATES = 'it is not a JSON list of sentences, such as ["a photo of {}"]'


class Settings(BaseSettings):
    """What every process knows. `load` is the way in: it turns faults into one clear sentence."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra='forbid', protected_namespaces=()
    )

    log_format: Literal['text', 'json'] = Field(
        'text', description='Log lines for people or as JSON, one object a line.'
    )
    log_requests: bool = Field(False, description='A log line for each request in each stage, with its request id.')
    otlp_endpoint: str = Field(
        '', description='Host and port of an OpenTelemetry collector (OTLP by gRPC) for traces; none by default.'
    )
    drain_seconds: float = Field(
        0.0,
        ge=0,
        description='Seconds for which a process that is told to stop still takes requests, while it says that it is '
        'not ready: as long as those that send them need to learn of it. What is inside is answered in any case.',
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then what YAML or the caller gives."""
        return env_settings, init_settings

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Settings from the environment and `given` (YAML `with:`).

        Raises:
            InvalidParameter: names every faulty setting, its value and what is expected.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            raise InvalidParameter('; '.join(cls._sentence(item, given) for item in error.errors())) from None

    @classmethod
    def _sentence(cls, item: Any, given: dict[str, Any]) -> str:
        name = str(item['loc'][0]) if item['loc'] else ''
        if item['type'] == 'extra_forbidden':
            near = difflib.get_close_matches(name, cls.model_fields, 1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            return f'unknown setting {name!r}{hint}'
        if not name:  # of the settings as a whole: they are not shown, keys may be among them
            return str(item['ctx']['error']) if 'ctx' in item else str(item['msg'])
        variable = PREFIX + name.upper()
        origin = variable if variable in os.environ else f'setting {name!r}'
        return f'{origin}={item["input"]!r} is not valid: {item["msg"][:1].lower()}{item["msg"][1:]}'


class RoomSettings(Settings):
    """What every Executor knows."""

    model: str = Field(
        str(ROOT / 'models' / 'clip-mini'),
        description='Model: a local directory, a hub name, or a clip-as-service or open_clip name such as '
        '`ViT-B-32::laion2b_s34b_b79k`.',
    )
    queue_limit: int = Field(
        256, ge=1, description='Requests that may wait in one stage; one more is answered `overloaded`.'
    )

    @field_validator('model')
    @classmethod
    def _not_a_variable(cls, value: str) -> str:
        if value.startswith('$'):
            raise ValueError(f'the variable {value} is not set; Jina leaves its name in place')
        return value


class ReadsFiles(Settings):
    """For rooms that may read files where they run."""

    file_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description='Directories below which `file:` URIs may be read, separated by `:`; none by default.'
    )

    @field_validator('file_roots', mode='before')
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(Path(part) for part in value.split(os.pathsep) if part) if isinstance(value, str) else value


class PreprocessorSettings(RoomSettings, ReadsFiles):
    """Settings of the preprocessor."""

    allow_http: bool = Field(False, description='Fetch `http:` and `https:` URIs of public addresses.')
    http_timeout: float = Field(10.0, gt=0, description='Seconds for one fetch, redirects included.')
    max_bytes: int = Field(32 * MEGABYTE, ge=1, description='Largest encoded picture, in bytes.')
    max_pixels: int = Field(
        100_000_000, ge=1, description='Largest picture, width times height, checked before decoding.'
    )
    max_characters: int = Field(100_000, ge=1, description='Longest text, in characters.')
    threads: int = Field(0, ge=0, description='Threads that decode pictures; 0: the cores divided by the replicas.')


class EncoderSettings(RoomSettings):
    """Settings of the encoder."""

    runtime: Literal['auto', 'torch', 'onnx', 'openvino', 'tensorrt', 'kserve', 'fake'] = Field(
        'auto',
        description='`torch`, `onnx` (ONNX Runtime), `openvino`, `tensorrt`, `kserve` (a server such as Triton), or '
        '`fake` (deterministic vectors without weights, for tests); `auto` takes the fastest that is installed '
        '([encoders](encoders.md)).',
    )
    device: Literal['auto', 'cpu', 'cuda', 'mps'] = Field(
        'auto', description='Where the model runs; `auto` is `cuda` where there is one, else `cpu`.'
    )
    precision: Literal['auto', 'float32', 'bfloat16', 'float16', 'int8'] = Field(
        'auto',
        description='Number format of the model; `auto` is `bfloat16` on a CPU that has it, `float16` on a GPU, else '
        '`float32`. `int8` is only used when it is asked for.',
    )
    compile: bool = Field(
        False, description='Let `torch` compile the towers at the start: a minute or two more, and faster after.'
    )
    cache: Path = Field(
        Path('~/.cache/clipflow'), description='Directory where a model is kept in the form that a runtime needs.'
    )
    kserve_url: str = Field('127.0.0.1:8001', description='Host and gRPC port of the server of the runtime `kserve`.')
    kserve_model: str = Field(
        'clip', description='What the names of its two models begin with; `_image` and `_text` follow.'
    )
    kserve_timeout: float = Field(30.0, gt=0, description='Seconds for one call of it, with repetitions.')
    batch_size: int = Field(32, ge=1, le=4096, description='Items that pass through the model at once.')
    text_cache: int = Field(
        10_000, ge=0, description='Embeddings of texts that are kept in memory, the latest; 0 keeps none.'
    )
    tower_ttl: float = Field(
        0.0, ge=0, description='Seconds after which a tower that nobody has asked for is freed; 0 keeps both.'
    )
    threads: int = Field(0, ge=0, description='Threads of the model; 0: the cores divided by the replicas.')
    templates: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None,
        description='Sentences with one place `{}` that the text of a query is put into, as a JSON list; `[]` for '
        'none. By default those in the file `templates.json` of the model ([relevance](relevance.md)).',
    )

    @field_validator('templates', mode='before')
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise ValueError(_NO_TEMPLATES) from None
        if value is not None and not isinstance(value, list | tuple):
            raise ValueError(_NO_TEMPLATES)
        return None if value is None else templates.checked(value)


class KeepsFiles(Settings):
    """For rooms that keep something across restarts."""

    workspace: Path = Field(
        ROOT / 'workspace', description='Directory of the stored documents; `workspace/` beside flow.yml.'
    )

    @field_validator('workspace', mode='after')
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser() if value.expanduser().is_absolute() else ROOT / value


class StoreSettings(RoomSettings, KeepsFiles):
    """What every indexer knows."""

    mix_precisions: bool = Field(
        False, description='Allow vectors that were made in int8 beside others; their scores are not quite comparable.'
    )


class IndexerSettings(StoreSettings):
    """Settings of the indexer."""

    shard: int = Field(0, ge=0, description='Number of this shard, from 0 on ([indexer](indexer.md)).')
    shards: int = Field(1, ge=1, le=1024, description='How many shards there are; each keeps the ids that hash to it.')
    index_kind: str = Field(
        'auto',
        description='Kind of index: `auto`, `flat` (exact), `hnsw`, `ivf`, `ivfpq`, or a factory string of FAISS '
        'such as `IVF1024,SQ8` ([indexer](indexer.md)).',
    )
    index_vectors: Literal['auto', 'float32', 'float16', 'int8'] = Field(
        'auto',
        description='Number format of the vectors in memory, for `auto`, `hnsw` and `ivf`; on disk always float32.',
    )
    index_memory: int = Field(
        0,
        ge=0,
        description='Bytes that the indexer may take in memory, 160 MB of them (half, if that is less) for all but the '
        'vectors; 0: half of the memory of the machine for the vectors.',
    )
    index_trained: Path | None = Field(
        None,
        description='Trained index without vectors, made by `clipflow quantizer`, that all shards use instead of '
        'learning clusters of their own.',
    )
    index_recall: float = Field(
        0.98, gt=0, le=1, description='Share of the true ten best that a search is to find; the effort is tuned to it.'
    )
    indexed_tags: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description='Tags that filters are to find quickly, separated by `,` (nested ones as `a__b`); none by default.',
    )
    snapshot_changes: int = Field(
        100_000, ge=1, description='Changes after which the index is written to disk for a quick start.'
    )
    snapshot_seconds: float = Field(3600.0, gt=0, description='Seconds after a change, at most, until it is.')

    @model_validator(mode='after')
    def _among_them(self) -> Self:
        if self.shard >= self.shards:
            raise ValueError(f'shard {self.shard} of {self.shards} is not there; they are numbered from 0')
        return self

    @field_validator('indexed_tags', mode='before')
    @classmethod
    def _names(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(',') if part.strip()) if isinstance(value, str) else value


class MilvusSettings(StoreSettings):
    """Settings of the indexer over Milvus."""

    milvus_uri: str = Field(
        '',
        repr=False,
        description='Address of Milvus, such as `http://milvus:19530`, or a local path for the embedded Milvus Lite; '
        '`milvus.db` in the workspace by default ([Milvus](milvus.md)).',
    )
    milvus_token: str = Field('', repr=False, description='Token of Milvus, or `user:password`; it is never logged.')
    milvus_collection: str = Field(
        'clipflow',
        pattern=r'^[A-Za-z_][A-Za-z0-9_]{0,254}$',
        description='Name of the collection; it is made when the first document is stored.',
    )
    milvus_index: Literal['AUTOINDEX', 'FLAT', 'HNSW', 'IVF_FLAT', 'DISKANN'] = Field(
        'AUTOINDEX',
        description='Kind of index that a new collection gets, by its name in Milvus; `FLAT` is exact.',
    )
    milvus_timeout: float = Field(30.0, gt=0, description='Seconds for one call of Milvus.')

    @property
    def milvus(self) -> str:
        """The address, or the path of the embedded one."""
        return self.milvus_uri or str(self.workspace / 'milvus.db')


class RankerSettings(RoomSettings, KeepsFiles):
    """Settings of the ranker."""

    ranker_head: Path | None = Field(
        None,
        description='File of a head that orders results, made by `clipflow head train`; it is read again when it '
        'changes ([relevance](relevance.md#learn-from-clicks)).',
    )
    ranker_heads: Path | None = Field(
        None,
        description='Directory from which heads are loaded, and where those that were live are kept; `ranker/` in the '
        'workspace by default. Replicas of the ranker share it.',
    )
    ranker_depth: int = Field(
        100, ge=1, le=10_000, description='How many of the best matches a head puts in its order.'
    )
    calibration: Path | None = Field(
        None,
        description='File that `clipflow calibrate` has written: what a score means as a probability of relevance '
        '([relevance](relevance.md)).',
    )


class GatewaySettings(ReadsFiles):
    """Settings of the gateway and of `clipflow serve`."""

    host: str = Field('127.0.0.1', description='Address that the gateway binds; `0.0.0.0` opens it to the network.')
    grpc_port: int = Field(51000, ge=1, le=65535, description='Port for gRPC. Read by `clipflow serve`.')
    http_port: int = Field(8080, ge=1, le=65535, description='Port for HTTP. Read by `clipflow serve`.')
    max_request_bytes: int = Field(
        64 * MEGABYTE, ge=1, description='Largest request; one above it is answered `too-large`.'
    )
    api_keys: str = Field(
        '',
        repr=False,
        description='API keys as `KEY:read` or `KEY:write`, separated by `,`; without any, no key is needed '
        '([HTTP](http.md#keys)).',
    )
    api_keys_file: Path | None = Field(None, description='File with more of them, one a line.')
    rate_limit: float = Field(
        0.0, ge=0, description='HTTP requests a second of one key or address; more are answered `overloaded`. 0: any.'
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description='Origins whose pages may call the HTTP API, separated by `,`; `*` for all; none by default.'
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description='Names by which HTTP may be asked for, beside addresses and `localhost`, separated by `,`; `*` for '
        'all, as usual unless only this machine reaches it, and always with keys ([HTTP](http.md#keys)).',
    )
    tls_certificate: Path | None = Field(None, description='PEM file of the certificate, for gRPC and HTTP.')
    tls_key: Path | None = Field(None, description='PEM file of its key.')
    max_in_flight: int = Field(512, ge=1, description='Requests inside the Flow; one more is answered `overloaded`.')
    request_timeout: float = Field(
        600.0, gt=0, description='Seconds until a request without a deadline of its own is given up.'
    )
    shard_timeout: float = Field(
        5.0,
        gt=0,
        description='Seconds for which a search waits for other shards once the first has answered; then it answers '
        'without them ([indexer](indexer.md#shards)).',
    )

    @field_validator('cors_origins', 'allowed_hosts', mode='before')
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(',') if part.strip()) if isinstance(value, str) else value

    @field_validator('cors_origins', mode='after')
    @classmethod
    def _origins(cls, found: tuple[str, ...]) -> tuple[str, ...]:
        for origin in found:
            if not re.fullmatch(r'\*|null|[a-z][a-z0-9+.-]*://[^/\sA-Z]+', origin):
                raise ValueError(
                    f'{origin!r} is no origin such as https://shop.example, without a path or a slash behind it'
                )
        return found

    @field_validator('allowed_hosts', mode='after')
    @classmethod
    def _names(cls, found: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(r'\*|[\w.-]*\w', name) for name in found):
            raise ValueError('give names such as photos.example, without a scheme, a port or a path')
        return tuple(name.lower() for name in found)

    @model_validator(mode='after')
    def _both_files(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError('CLIPFLOW_TLS_CERTIFICATE and CLIPFLOW_TLS_KEY belong together')
        return self


class CommandSettings(Settings):
    """Settings of the commands that speak to a service."""

    api_key: str = Field('', repr=False, description='API key that the commands send, if the service wants one.')


ALL: tuple[type[Settings], ...] = (
    PreprocessorSettings,
    EncoderSettings,
    IndexerSettings,
    MilvusSettings,
    RankerSettings,
    GatewaySettings,
    CommandSettings,
)


def unknown_variables() -> list[str]:
    """Sentences about `CLIPFLOW_*` variables that no room reads, each with the nearest known name."""
    known = {PREFIX + name.upper() for settings in ALL for name in settings.model_fields}
    sentences = []
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f'; did you mean {near[0]}?' if near else ''
            sentences.append(f'the environment variable {name} is not known to clipflow{hint}')
    return sentences
