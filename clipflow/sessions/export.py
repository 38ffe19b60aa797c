"""The towers as ONNX files: what ONNX Runtime and OpenVINO load, made once for a model and kept in a cache.

    <cache>/exports/<fingerprint>-<format>/
        image.onnx, text.onnx               float32; they take [N, H, W, 3] uint8, and [N, L] int64
        image-float16.onnx, text-...        weights and activations in 16 bits, for GPUs
        image-int8.onnx, text-int8.onnx     weights of the matrix products in 8 bits
        image.onnx.data, ...                the weights of one of these that is too large for one file
        export.json, int8.json              what they were made from, and their sizes; how close 8 bits are to float32

A file is written under a temporary name and renamed; a lock lets one of several processes write. What is not as long as
it was written is made again. What is whole needs no lock, and may lie where nothing can be written.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipflow.errors import InvalidParameter, StorageFull, Unavailable, first_line
from clipflow.files import sync
from clipflow.sessions.base import IMAGE, TEXT, TOWERS, Tower
from clipflow.weights import ModelSpec

_log = logging.getLogger('clipflow.export')

OPSET = 17
FORMAT = 1
"""Of the exported files; a change of the graphs' inputs or outputs raises it, and older files are made again."""
PRECISIONS = ('float32', 'float16', 'int8')
INT8 = 'int8.json'
"""How close 8 bits are to float32; it goes when one of both is made again."""
_MOST_BYTES = (1 << 31) - 1
"""Of a graph with its weights inside: protobuf takes no more."""
_LOOSE = ('onnx__*', '_model.*')
"""Files that PyTorch's exporter makes of such weights, one of each tensor."""


def file_name(tower: Tower, precision: str) -> str:
    """Of a tower's file in its directory."""
    return f'{tower}.onnx' if precision == 'float32' else f'{tower}-{precision}.onnx'


def files_of(graph: Path) -> list[Path]:
    """A graph, and the file with its weights where they are not inside; the graph knows that by its name."""
    weights = _weights(graph)
    return [graph, weights] if weights.exists() else [graph]


def _weights(graph: Path) -> Path:
    return graph.with_name(f'{graph.name}.data')


def exported(spec: ModelSpec, cache: Path, precision: str = 'float32') -> Path:
    """The directory with the exported files of a model, float32 and `precision`; makes what is missing or damaged.

    Raises:
        Unavailable, StorageFull: it cannot be written.
        InvalidParameter: this model cannot be exported, or a package for it is missing.
    """
    directory = _directory(spec, cache)
    # What was left half written is for those to remove who may.
    tidy = not any(directory.glob('*.part')) or not os.access(directory, os.W_OK)
    if tidy and are_there(spec, cache, precision):
        return directory
    with locked(directory):
        report = _report(directory)
        for number in dict.fromkeys(('float32', precision)):
            if _is_whole(directory, number, report):
                continue
            if number != 'float16':
                (directory / INT8).unlink(missing_ok=True)
            if number == 'float32':
                report = export(spec, directory)
            elif number == 'int8':
                for tower in TOWERS:
                    _quantise(directory, tower)
            else:
                _trace(spec, directory, number)
            for name in _told(report, number):
                del report['files'][name]
            report['files'] |= _sizes(directory, number)
            put(directory / 'export.json', (json.dumps(report, indent=2) + '\n').encode())
    return directory


def are_there(spec: ModelSpec, cache: Path, precision: str) -> bool:
    """Whether `exported` has nothing to write."""
    directory = _directory(spec, cache)
    report = _report(directory)
    return all(_is_whole(directory, number, report) for number in ('float32', precision))


def _directory(spec: ModelSpec, cache: Path) -> Path:
    return cache.expanduser() / 'exports' / f'{spec.fingerprint}-{FORMAT}'


def _report(directory: Path) -> dict[str, Any]:
    """What export.json says; one that cannot be read says nothing, nor one of weights in loose files."""
    with contextlib.suppress(OSError, ValueError):
        report = json.loads((directory / 'export.json').read_text(encoding='utf-8'))
        loose = any(any(directory.glob(name)) for name in _LOOSE)
        if isinstance(report, dict) and isinstance(report.get('files'), dict) and not loose:
            return report
    return {'files': {}}


def _is_whole(directory: Path, precision: str, report: dict[str, Any]) -> bool:
    told = _told(report, precision)
    return told == _sizes(directory, precision) and all(file_name(tower, precision) in told for tower in TOWERS)


def _told(report: dict[str, Any], precision: str) -> dict[str, Any]:
    """The sizes that a report tells of both towers' files."""
    graphs = [Path(file_name(tower, precision)) for tower in TOWERS]
    names = {path.name for graph in graphs for path in (graph, _weights(graph))}
    return {name: size for name, size in report['files'].items() if name in names}


def _sizes(directory: Path, precision: str) -> dict[str, int]:
    """The sizes that both towers' files have."""
    graphs = [directory / file_name(tower, precision) for tower in TOWERS]
    return {path.name: path.stat().st_size for graph in graphs for path in files_of(graph) if path.exists()}


def export(spec: ModelSpec, directory: Path) -> dict[str, Any]:
    """Write both towers in float32 into `directory`, and return what they were made from."""
    import torch

    begun = time.monotonic()
    for loose in [path for name in _LOOSE for path in directory.glob(name)]:
        loose.unlink()
    _trace(spec, directory, 'float32')
    return {
        'model': spec.name,
        'fingerprint': spec.fingerprint,
        'format': FORMAT,
        'opset': OPSET,
        'torch': torch.__version__,
        'seconds': round(time.monotonic() - begun, 1),
        'files': {},
    }


def _trace(spec: ModelSpec, directory: Path, precision: str) -> None:
    import torch

    from clipflow.sessions.towers import FORMATS, load_towers

    _log.info('exporting the model %s in %s to %s; this is done once', spec.name, precision, directory)
    image, text = load_towers(spec)
    for tower in (image, text):
        tower.convert(FORMATS[precision])
        if precision == 'float16':
            # The exporter writes a float32 scale into the fused attention, which makes the graph one of mixed types.
            tower._model.set_attn_implementation('eager')
    # Traced with more than one item and token, or else these numbers would be taken for constants.
    pixels = torch.zeros(2, spec.picture.height, spec.picture.width, 3, dtype=torch.uint8)
    length = spec.context if spec.padding == 'fixed' else min(12, spec.context)
    ids = torch.ones(2, length, dtype=torch.int64)
    # The tracer may look for the end token, and must find it.
    ids[:, -1] = _last_token(text)
    mask = (torch.ones_like(ids),) if text.masked and spec.family != 'clip' else ()
    tokens = {0: 'batch'} | ({} if spec.padding == 'fixed' else {1: 'length'})
    directory.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        names = ('ids', 'mask')[: 1 + len(mask)]
        try:
            _write(image, (pixels,), directory / file_name(IMAGE, precision), {'pixels': {0: 'batch'}})
            _write(text, (ids, *mask), directory / file_name(TEXT, precision), dict.fromkeys(names, tokens))
        except OSError:
            raise
        except Exception as error:  # the exporter raises what the operators of a model make it raise
            raise InvalidParameter(f'the model {spec.name} cannot be exported: {first_line(error)}') from error


def _last_token(text: Any) -> int:
    config = text._model.config.text_config
    token = getattr(config, 'eos_token_id', None)
    return int(token) if isinstance(token, int) and 2 < token < config.vocab_size else int(config.vocab_size) - 1


def _write(tower: Any, example: tuple[Any, ...], path: Path, axes: dict[str, dict[int, str]]) -> None:
    import torch

    with _graph(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about the exporter's age, and about branches that are the same for all inputs
        torch.onnx.export(
            tower,
            example,
            str(temporary),
            input_names=list(axes),
            output_names=['vectors'],
            dynamic_axes={**axes, 'vectors': {0: 'batch'}},
            opset_version=OPSET,
            dynamo=False,
        )


def _quantise(directory: Path, tower: Tower) -> None:
    """8-bit weights for the matrix products: signed, a scale a channel (unsigned ones miss the fast kernels)."""
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError:
        raise InvalidParameter('int8 needs the extra "onnx": pip install "clipflow[onnx]"') from None
    _log.info('writing the %s tower with weights in 8 bits; this is done once', tower)
    source = directory / file_name(tower, 'float32')
    _check_room(directory, files_of(source))
    large = len(files_of(source)) > 1
    temporary = tempfile.TemporaryDirectory(dir=directory, suffix='.part')
    with temporary as folder, _graph(directory / file_name(tower, 'int8')) as target:
        prepared = Path(folder) / 'prepared.onnx'
        try:
            quant_pre_process(
                str(source),
                str(prepared),
                skip_symbolic_shape=True,
                save_as_external_data=large,
                all_tensors_to_one_file=large,
                external_data_location=_weights(prepared).name,
            )
            quantize_dynamic(
                str(prepared),
                str(target),
                op_types_to_quantize=['MatMul'],
                weight_type=QuantType.QInt8,
                per_channel=True,
                use_external_data_format=large,
            )
        except OSError:
            raise
        except Exception as error:  # as of the exporter
            raise InvalidParameter(f'the {tower} tower cannot be written in 8 bits: {first_line(error)}') from error


def _check_room(directory: Path, files: list[Path]) -> None:
    """ONNX Runtime makes two copies here and two among the temporary files, and takes a full disk for a damaged one."""
    need = 2 * sum(file.stat().st_size for file in files)
    for place in (directory, Path(tempfile.gettempdir())):
        if (free := shutil.disk_usage(place).free) < need:
            raise StorageFull(f'to write a tower in 8 bits needs {need:,} bytes, and {free:,} are left in {place}')


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, which need not be there yet; faults of the disk become errors of ours.

    What processes that were killed have left half written in it is removed.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(f'{directory}.lock', os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise Unavailable(
            f'the exported model cannot be kept in {directory.parent} ({error.strerror}); set CLIPFLOW_CACHE'
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for left in directory.glob('*.part'):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    except OSError as error:
        raise StorageFull(f'the exported model cannot be written to {directory}: {error.strerror}') from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _graph(path: Path) -> Iterator[Path]:
    """A temporary name for a graph, in a folder of its own: what is written there becomes `files_of(path)`."""
    with tempfile.TemporaryDirectory(dir=path.parent, suffix='.part') as folder:
        graph = Path(folder) / path.name
        yield graph
        _bundle(graph)
        new = files_of(graph)
        for file in new:
            file.chmod(graph.stat().st_mode)  # onnx keeps weights from everybody else
            sync(file)
        # First nothing, then the weights, then the graph: it never stands beside weights of another one.
        for old in files_of(path):
            old.unlink(missing_ok=True)
        for file in reversed(new):
            file.replace(path.with_name(file.name))


def _bundle(graph: Path) -> None:
    """Bring weights that lie in loose files, or are too large to lie in the graph, into one file beside it."""
    import onnx

    weights = _weights(graph)
    loose = [file for file in graph.parent.iterdir() if file not in (graph, weights)]
    if loose or graph.stat().st_size > _MOST_BYTES:
        model = onnx.load(graph)
        for file in (*loose, weights):
            file.unlink(missing_ok=True)  # now, or the disk would have to hold both
        onnx.save(model, graph, save_as_external_data=True, location=weights.name)


def put(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all; the caller holds the lock of its directory."""
    temporary = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        temporary.write_bytes(data)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
