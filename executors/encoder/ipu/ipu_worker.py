"""Serves the two towers of a CLIP model on Graphcore IPUs, by KServe v2 over gRPC.

python ipu_worker.py --model DIRECTORY --port 8001
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from ipu_device import CompiledTower, Fatal, Job, Runner, Shape, import_poptorch, say
from ipu_protocol import IMAGE, TEXT, VERSION, Model, Refused, models, text_inputs
from ipu_towers import BadModel, Towers, load_towers
from tritonclient.grpc import service_pb2 as pb

_SPARE_THREADS = 8
"""Beside one for each request that may wait: for questions about the state and for refusals."""
_MESSAGE_BYTES = 256 << 20


class Service:
    """The methods of the protocol. Handlers run in threads and wait there for the IPU's thread."""

    def __init__(self, runner: Runner, towers: Towers, largest: int, fingerprint: str) -> None:
        self._runner = runner
        self._towers = towers
        self._models = models(towers.side, towers.dimension)
        self._largest = largest
        self._parameters = {'fingerprint': fingerprint, 'precision': 'float16', **towers.settings}

    def handlers(self) -> Any:
        """For `grpc.Server.add_generic_rpc_handlers`."""
        methods: dict[str, Callable[[Any], Any]] = {
            'ServerLive': lambda request: pb.ServerLiveResponse(live=True),
            'ServerReady': lambda request: pb.ServerReadyResponse(ready=self._runner.ready),
            'ServerMetadata': lambda request: pb.ServerMetadataResponse(name='clipflow-ipu', version=VERSION),
            'ModelReady': self._model_ready,
            'ModelMetadata': lambda request: self._model(request.name, request.version).metadata(),
            'ModelConfig': self._model_config,
        }
        found = {name: self._handler(name, _with_status(method)) for name, method in methods.items()}
        found['ModelInfer'] = self._handler('ModelInfer', self._infer)
        return grpc.method_handlers_generic_handler('inference.GRPCInferenceService', found)

    @staticmethod
    def _handler(name: str, method: Callable[[Any, Any], Any]) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            method,
            request_deserializer=getattr(pb, f'{name}Request').FromString,
            response_serializer=getattr(pb, f'{name}Response').SerializeToString,
        )

    def _model(self, name: str, version: str) -> Model:
        if name not in self._models or version not in ('', VERSION):
            raise Refused('NOT_FOUND', f'there is no model {name!r} {version}; there are {IMAGE} and {TEXT}, version 1')
        return self._models[name]

    def _model_ready(self, request: Any) -> Any:
        self._model(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._runner.ready)

    def _model_config(self, request: Any) -> Any:
        return self._model(request.name, request.version).config(self._largest, self._parameters)

    def _infer(self, request: Any, context: Any) -> Any:
        try:
            model = self._model(request.model_name, request.model_version)
            found = model.arrays(request, self._largest)
            inputs = (found['pixels'],) if model.name == IMAGE else text_inputs(found, self._towers)
            if not len(inputs[0]):
                return model.reply(request, np.zeros((0, self._towers.dimension), dtype=np.float32))
            job = Job(model.name, inputs, context.time_remaining())
            # Also when the caller's deadline passes: then gRPC ends the call, and nobody waits here any more.
            if not context.add_callback(job.give_up):
                raise Refused('CANCELLED', 'the caller has gone')
            self._runner.submit(job)
            job.done.wait()
            if job.error is not None:
                raise job.error
            if job.vectors is None:
                raise Refused('CANCELLED', 'the caller has gone')
            return model.reply(request, job.vectors)
        except Refused as refused:
            return context.abort(getattr(grpc.StatusCode, refused.code), str(refused))


def _with_status(method: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def answer(request: Any, context: Any) -> Any:
        try:
            return method(request)
        except Refused as refused:
            return context.abort(getattr(grpc.StatusCode, refused.code), str(refused))

    return answer


class Ending:
    """What the main thread waits for. A pipe, because a signal handler may not take a lock."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.ask())

    def ask(self) -> None:
        """Ask for the end, from any thread or a signal handler."""
        os.write(self._writer, b'.')

    def wait(self) -> None:
        """Until somebody has asked."""
        os.read(self._reader, 1)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a positive number')
    return number


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser('ipu_worker.py', description='CLIP on IPUs by KServe v2 over gRPC.')
    add = parser.add_argument
    add('--model', required=True, type=Path, help='directory of a CLIP checkpoint in the Hugging Face format')
    add('--host', default='127.0.0.1', help='address to listen on; there is no authentication (%(default)s)')
    add('--port', default=8001, type=int, help='0 takes a free one (%(default)s)')
    add('--fingerprint', default='', help="of the model, as clipflow status shows it; clipflow's encoder compares it")
    add('--activation', default='', help='quick_gelu or gelu, where config.json names the wrong one')
    add('--mean', type=float, nargs=3, help='of the three channels from 0 to 1, where the files name the wrong one')
    add('--std', type=float, nargs=3, help='their standard deviation, where the files name the wrong one')
    add('--batch', default=8, type=_positive, help='items of one step on one replica (%(default)s)')
    add('--device-iterations', default=1, type=_positive, help='steps of one call (%(default)s)')
    add('--largest', default=256, type=_positive, help='items of one request (%(default)s)')
    add('--queue', default=32, type=_positive, help='requests that may wait (%(default)s)')
    add('--cache', default='', help='directory for compiled executables; kept for the next start')
    add('--grace', default=10.0, type=float, help='seconds for what is running when the end comes (%(default)s)')
    return parser.parse_args(given)


def _replicas() -> int:
    text = os.environ.get('NUM_AVAILABLE_IPU', '1')
    if not text.isdecimal() or int(text) < 1:
        raise Fatal(f'NUM_AVAILABLE_IPU is {text!r}; set it to a positive number, the replicas of each tower')
    return int(text)


def _compiled(poptorch: Any, towers: Towers, shape: Shape) -> dict[str, CompiledTower]:
    grey = np.full((1, towers.side, towers.side, 3), 127, dtype=np.uint8)
    # A text of one token, which counts as its end.
    ids, end = np.zeros((1, towers.context), dtype=np.int32), np.zeros((1, towers.context), dtype=np.float16)
    end[0, 0] = 1
    return {
        IMAGE: CompiledTower(poptorch, towers.image, [grey], towers.dimension, shape),
        TEXT: CompiledTower(poptorch, towers.text, [ids, end], towers.dimension, shape),
    }


def main(given: list[str] | None = None) -> int:
    """Serve until SIGTERM (0) or a failure of the IPU (1); 2 if it cannot begin."""
    options = _arguments(given)
    ending = Ending()
    try:
        shape = Shape(options.batch, options.device_iterations, _replicas(), options.cache)
        poptorch = import_poptorch()
        towers = load_towers(options.model, options.activation, options.mean, options.std)
    except (BadModel, Fatal) as error:
        say(str(error))
        return 2
    compiled = _compiled(poptorch, towers, shape)
    runner = Runner(poptorch, compiled, options.queue, on_ready=lambda: say('ready'), on_failure=ending.ask)
    sizes = [('grpc.max_receive_message_length', _MESSAGE_BYTES), ('grpc.max_send_message_length', _MESSAGE_BYTES)]
    threads = ThreadPoolExecutor(options.queue + _SPARE_THREADS)
    # Without so_reuseport 0 a second worker would take half of the calls of the first, unnoticed.
    server = grpc.server(threads, options=[('grpc.so_reuseport', 0), *sizes])
    server.add_generic_rpc_handlers((Service(runner, towers, options.largest, options.fingerprint).handlers(),))
    try:
        port = server.add_insecure_port(f'{options.host}:{options.port}')
    except RuntimeError:
        port = 0
    if not port:
        say(f'{options.host}:{options.port} cannot be listened on; is something else there?')
        return 2
    server.start()
    say(f'listening on {options.host}:{port}')
    runner.start()
    ending.wait()
    runner.stop()
    runner.join(options.grace)
    server.stop(1).wait()
    say(f'ended: {runner.failure}' if runner.failure else 'ended')
    if runner.is_alive():
        # In the middle of a compilation, which nothing can interrupt: the interpreter must not be taken down under it.
        os._exit(1 if runner.failure else 0)
    return 1 if runner.failure else 0


if __name__ == '__main__':
    sys.exit(main())
