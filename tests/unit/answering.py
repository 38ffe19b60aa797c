"""A server in this process whose answers the test chooses."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from docarray import DocumentArray
from jina.proto.jina_pb2 import StatusProto
from jina.types.request.data import DataRequest

from clipflow import wire

Answer = Callable[[DocumentArray], DocumentArray]


class Server:
    """Answers one request after the other as it is told; an exception is the error of the whole request."""

    def __init__(self) -> None:
        self.answers: list[Answer | Exception] = []
        self.asked: list[list[str]] = []
        self.parameters: list[dict[str, Any]] = []
        handler = grpc.unary_unary_rpc_method_handler(self._answer)
        service = grpc.method_handlers_generic_handler(
            'jina.JinaSingleDataRequestRPC', {'process_single_data': handler}
        )
        self._server = grpc.server(ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers((service,))
        self.address = f'127.0.0.1:{self._server.add_insecure_port("127.0.0.1:0")}'
        self._server.start()

    def _answer(self, data: bytes, context: object) -> bytes:
        request = DataRequest(data)
        self.asked.append([doc.id for doc in request.docs])
        self.parameters.append(request.parameters)
        answer, reply = self.answers.pop(0), DataRequest()
        if isinstance(answer, Exception):
            reply.header.status.code = StatusProto.ERROR
            reply.header.status.description = repr(answer)
        else:
            reply.data.docs = answer(request.docs)
        return bytes(reply.SerializeToString())

    def stop(self) -> None:
        self._server.stop(None)


def failing(**errors: Exception) -> Answer:
    """Documents come back as they are, some of them with an error."""

    def answer(docs: DocumentArray) -> DocumentArray:
        for doc in docs:
            if doc.id in errors:
                wire.fail(doc, errors[doc.id], 'indexer')
        return docs

    return answer
