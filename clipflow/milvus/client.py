"""The client of Milvus: how it is made, and what its errors mean."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipflow.errors import ClipflowError, Conflict, Internal, Overloaded, ReadOnly, StorageFull, Unavailable

_ERRORS: dict[int, type[ClipflowError]] = {
    1: Unavailable,  # not ready; of the client: no connection
    2: Unavailable,
    3: StorageFull,  # memory
    4: Overloaded,
    7: StorageFull,  # disk
    8: Overloaded,
    9: StorageFull,  # quota
}
"""Codes of Milvus (merr); what else it says of a call is a fault of ours."""
_SENTENCES: dict[type[ClipflowError], str] = {
    Unavailable: 'Milvus cannot be reached or is not ready',
    Overloaded: 'Milvus has too much to do',
    StorageFull: 'Milvus has no room left, and takes nothing more',
    Internal: 'Milvus refused a call',
}


def is_local(uri: str) -> bool:
    """Whether it is the path of an embedded Milvus Lite."""
    return '://' not in uri


def shown(uri: str) -> str:
    """An address without what is secret in it."""
    parts = urlsplit(uri)
    return uri if is_local(uri) else f'{parts.scheme}://{parts.hostname}:{parts.port or 19530}'


def connect(uri: str, token: str, timeout: float) -> Any:
    """A client.

    Raises:
        Unavailable: there is no Milvus, or it does not want this token.
        Conflict: another process has the directory of this Milvus Lite.
    """
    import pymilvus

    for name in [name for name in logging.root.manager.loggerDict if name.startswith('pymilvus')]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # it writes of each error that it raises
    if is_local(uri):
        _make_folder(uri)
    try:
        return pymilvus.MilvusClient(uri, token=token, timeout=timeout)
    except pymilvus.exceptions.ConnectionConfigException:
        if not is_local(uri):
            raise Unavailable(f'{shown(uri)} is no address of a Milvus that can be reached') from None
        raise Conflict(
            f'another process serves the Milvus Lite in {uri}, or it is none; stop that, or choose another '
            'CLIPFLOW_MILVUS_URI'
        ) from None
    except pymilvus.MilvusException as error:
        raise Unavailable(f'there is no Milvus at {shown(uri)}, or not for this token: {error.message}') from None


def _make_folder(uri: str) -> None:
    try:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReadOnly(f'{uri} cannot be written: {error.strerror}') from None


@contextmanager
def translated() -> Iterator[None]:
    """Its errors as ours."""
    import grpc
    import pymilvus

    try:
        yield
    except pymilvus.MilvusException as error:
        late = 'timeout' in error.message.lower() or 'run out of' in error.message.lower()
        kind = Unavailable if late else _ERRORS.get(error.code, Internal)
        raise kind(f'{_SENTENCES[kind]}: {error.message}') from None
    except grpc.RpcError as error:
        raise Unavailable(f'{_SENTENCES[Unavailable]}: {error.details() or error.code()}') from None
