"""A worker as a real process, with the double in the place of PopTorch, and what the tests ask it."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

_REASON = 'the IPU worker speaks KServe with the stubs of tritonclient: pip install "tritonclient[grpc]==2.41.0"'
pb: Any = pytest.importorskip('tritonclient.grpc.service_pb2', reason=_REASON)
stubs: Any = pytest.importorskip('tritonclient.grpc.service_pb2_grpc', reason=_REASON)

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'executors' / 'encoder' / 'ipu'
DOUBLE = Path(__file__).resolve().parent / 'double'
SECONDS = 120.0
"""After which a test fails that waits for something."""
TYPES = {'pixels': ('UINT8', 'u1'), 'ids': ('INT64', '<i8'), 'mask': ('INT64', '<i8')}


def environment(folder: Path, **more: str) -> dict[str, str]:
    """For a process that finds the double and writes its events to `folder`/events."""
    return os.environ | {
        'PYTHONPATH': str(DOUBLE),
        'POPLAR_SDK_ENABLED': '1',
        'POPTORCH_DOUBLE_LOG': str(folder / 'events'),
        'POPTORCH_DOUBLE_GATE': str(folder),
        'OMP_NUM_THREADS': '1',
        **more,
    }


class Worker:
    """As a context: started and listening; at the end it is told to stop, and must."""

    def __init__(self, model: Path, folder: Path, *flags: str, **more: str) -> None:
        self.folder = folder
        command = [sys.executable, str(FOLDER / 'ipu_worker.py'), '--model', str(model), '--port', '0', *flags]
        self.process = subprocess.Popen(
            command, env=environment(folder, **more), cwd=folder, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._said = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._said:
                self.lines.append(line.rstrip())
                self._said.notify_all()
        with self._said:
            self._ended = True
            self._said.notify_all()

    def __enter__(self) -> Self:
        address = self.said('listening on ').rpartition(' ')[2]
        self.channel = grpc.insecure_channel(address)
        self.stub: Any = stubs.GRPCInferenceServiceStub(self.channel)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(AttributeError):
            self.channel.close()
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def said(self, text: str) -> str:
        """The first line with `text` in it, waited for."""
        with self._said:
            found = self._said.wait_for(lambda: self._ended or any(text in line for line in self.lines), SECONDS)
            lines = [line for line in self.lines if text in line]
        assert found, f'{text!r} was not said in time'
        assert lines, f'no line with {text!r} in:\n' + '\n'.join(self.lines)
        return lines[0]

    def ready(self) -> Self:
        """Wait until it is."""
        self.said('ipu_worker: ready')
        return self

    def end(self) -> int:
        """Tell it to stop; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)

    def events(self) -> list[str]:
        """What the double has seen."""
        path = self.folder / 'events'
        return path.read_text(encoding='utf-8').splitlines() if path.exists() else []

    def calls(self) -> int:
        """How many times the device has run."""
        return sum(event.startswith('call') for event in self.events())

    def is_ready(self) -> bool:
        """ServerReady and ModelReady of both, which agree."""
        found = {bool(self.stub.ServerReady(pb.ServerReadyRequest(), timeout=SECONDS).ready)}
        for name in ('clip_image', 'clip_text'):
            found.add(bool(self.stub.ModelReady(pb.ModelReadyRequest(name=name), timeout=SECONDS).ready))
        assert len(found) == 1
        return found.pop()

    def infer(self, model: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Vectors [N, D]."""
        return vectors_of(self.stub.ModelInfer(request(model, **inputs), timeout=SECONDS))

    def refusal(self, made: Any, **more: Any) -> tuple[str, str]:
        """Status and sentence of a request that is not answered."""
        with pytest.raises(grpc.RpcError) as caught:
            self.stub.ModelInfer(made, **({'timeout': SECONDS} | more))
        error: Any = caught.value
        return error.code().name, error.details()


def request(model: str, **inputs: NDArray[Any]) -> Any:
    """A ModelInfer request."""
    made = pb.ModelInferRequest(model_name=model, id='7')
    for name, array in inputs.items():
        datatype, kind = TYPES.get(name, ('FP32', '<f4'))
        made.inputs.add(name=name, datatype=datatype, shape=array.shape)
        made.raw_input_contents.append(array.astype(kind).tobytes())
    return made


def vectors_of(reply: Any) -> NDArray[np.float32]:
    """The output of a reply, whose frame is checked."""
    assert reply.id == '7'
    (output,) = reply.outputs
    assert (output.name, output.datatype) == ('vectors', 'FP32')
    return np.frombuffer(reply.raw_output_contents[0], dtype='<f4').reshape(list(output.shape))


class Gate:
    """Holds the device at an event (`call` or `compile`) of a worker with this folder, until it is opened."""

    def __init__(self, folder: Path, event: str) -> None:
        self._enter, self._leave = folder / f'{event}.enter', folder / f'{event}.leave'
        os.mkfifo(self._leave)
        os.mkfifo(self._enter)

    def entered(self) -> None:
        """Wait until the device is there; later events pass."""
        assert self._enter.read_text(encoding='utf-8')
        self._enter.unlink()

    def open(self) -> None:
        """Let it go on."""
        self._leave.write_text('go', encoding='utf-8')
        self._leave.unlink()
