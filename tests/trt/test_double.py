"""The double itself is strict: what TensorRT refuses, it refuses, and in the same way."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from . import cuda

TEN, ELEVEN = '10.13.0.35', '11.4.0.106'
BOTH = pytest.mark.parametrize('version', [TEN, ELEVEN])
SIDES = 4


def model(kind: int = TensorProto.UINT8, operation: str = '') -> bytes:
    """Pixels of any number to their lengths as vectors."""
    nodes = [helper.make_node('Cast', ['pixels'], ['floats'], to=TensorProto.FLOAT)]
    nodes += [helper.make_node(operation or 'Tanh', ['floats'], ['vectors'])]
    pixels = helper.make_tensor_value_info('pixels', kind, ['batch', SIDES])
    vectors = helper.make_tensor_value_info('vectors', TensorProto.FLOAT, ['batch', SIDES])
    graph = helper.make_graph(nodes, 'tower', [pixels], [vectors])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    return bytes(made.SerializeToString())


class Log:
    """What the loggers of a test were told."""

    def __init__(self, trt: Any) -> None:
        lines: list[str] = []

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                lines.append(f'{severity.name} {msg}')

        self.lines, self.logger = lines, Logger()


@pytest.fixture
def log(trt: Any) -> Log:
    """One, and its logger."""
    return Log(trt)


@pytest.fixture
def kit(trt: Any, log: Log) -> tuple[Any, Any, Any]:
    """Builder, network and configuration, with a profile."""
    builder = trt.Builder(log.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, log.logger).parse(model())
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape('pixels', (1, SIDES), (2, SIDES), (8, SIDES))
    assert config.add_optimization_profile(profile) == 0
    return builder, network, config


@pytest.fixture
def context(trt: Any, log: Log, kit: Any) -> Any:
    """Of an engine that is exact."""
    builder, network, config = kit
    config.clear_flag(trt.BuilderFlag.TF32)
    plan = bytes(builder.build_serialized_network(network, config))
    return trt.Runtime(log.logger).deserialize_cuda_engine(plan).create_execution_context()


def prepared(context: Any, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes and addresses are set; what lies there."""
    pixels = torch.arange(count * SIDES, dtype=torch.uint8).reshape(count, SIDES)
    vectors = torch.zeros(count, SIDES)
    assert context.set_input_shape('pixels', tuple(pixels.shape))
    assert context.set_tensor_address('pixels', pixels.data_ptr())
    assert context.set_tensor_address('vectors', vectors.data_ptr())
    return pixels, vectors


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('version', 'there'), [(TEN, True), (ELEVEN, False)])
def test_version_11_has_lost_names(trt: Any, kit: Any, there: bool) -> None:
    builder, _, config = kit
    assert hasattr(trt.NetworkDefinitionCreationFlag, 'EXPLICIT_BATCH') == there
    assert hasattr(builder, 'platform_has_fast_fp16') == there
    assert hasattr(config, 'int8_calibrator') == there
    assert [hasattr(trt.BuilderFlag, name) for name in ('FP16', 'INT8', 'BF16')] == [there] * 3
    assert hasattr(trt.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED')


@BOTH
def test_what_both_have_lost_is_not_there(trt: Any, kit: Any, context: Any) -> None:
    builder, _, config = kit
    assert not hasattr(builder, 'build_engine')
    assert not hasattr(builder, 'max_batch_size')
    assert not hasattr(context, 'execute_async_v2')
    assert not hasattr(context, 'set_binding_shape')
    with pytest.raises(AttributeError):
        config.max_workspace_size = 1 << 30
    with pytest.raises(TypeError):
        1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED


# -- loggers and monitors ---------------------------------------------------------------------------------------------


def test_a_base_class_must_be_initialised(trt: Any) -> None:
    class Silent(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match=r'ILogger.__init__\(\) must be called'):
        Silent()
    with pytest.raises(TypeError, match='logger is a str'):
        trt.Builder('stderr')


def test_a_second_logger_is_told_of(trt: Any, log: Log) -> None:
    trt.Builder(log.logger)
    other = Log(trt)
    trt.Runtime(other.logger)
    assert other.lines == ['WARNING The logger differs from the one that is registered already']


def test_without_a_driver_there_are_no_objects(trt: Any, log: Log) -> None:
    trt.DEVICE.usable = False
    for kind in (trt.Builder, trt.Runtime):
        with pytest.raises(TypeError, match='nullptr'):
            kind(log.logger)


@pytest.mark.parametrize('answer', [None, False, 1, 'raise'])
def test_a_monitor_that_does_not_say_go_on_ends_the_build(trt: Any, log: Log, kit: Any, answer: Any) -> None:
    calls: list[Any] = []

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            calls.append((phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> Any:
            if answer == 'raise':
                raise KeyboardInterrupt
            return answer

        def phase_finish(self, phase_name: str) -> None:
            calls.append(phase_name)

    builder, network, config = kit
    config.progress_monitor = Monitor()
    assert builder.build_serialized_network(network, config) is None
    assert calls[0] == ('Building Engine', None, 2)
    assert 'progress monitor raises' in log.lines[-1] if answer == 'raise' else 'cancelled' in log.lines[-1]
    with pytest.raises(TypeError):
        config.progress_monitor = object()


# -- the parser -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('data', 'said'),
    [
        (b'no model', 'no protobuf message'),
        (b'', 'the graph is empty'),
        (model(operation='Hardmax'), 'In node 1: No importer registered for op: Hardmax'),
    ],
)
def test_what_the_parser_refuses_it_explains(trt: Any, log: Log, data: bytes, said: str) -> None:
    parser = trt.OnnxParser(trt.Builder(log.logger).create_network(2), log.logger)
    assert parser.parse(data) is False
    assert parser.num_errors == 1
    assert said in str(parser.get_error(0))
    with pytest.raises(IndexError):
        parser.get_error(1)
    parser.clear_errors()
    assert parser.num_errors == 0


def test_the_parser_takes_bytes_only(trt: Any, log: Log, tmp_path: Path) -> None:
    parser = trt.OnnxParser(trt.Builder(log.logger).create_network(2), log.logger)
    for wrong in ('model.onnx', tmp_path, onnx.load_from_string(model())):
        with pytest.raises(TypeError, match='no buffer'):
            parser.parse(wrong)


def test_bytes_of_pixels_can_only_be_cast(trt: Any, log: Log) -> None:
    changed = onnx.load_from_string(model())
    changed.graph.node[0].op_type = 'Identity'
    del changed.graph.node[0].attribute[:]
    parser = trt.OnnxParser(trt.Builder(log.logger).create_network(2), log.logger)
    assert not parser.parse(changed.SerializeToString())
    assert 'UINT8 input pixels can be cast only' in str(parser.get_error(0))


# -- the builder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'shapes', [((2, 4), (1, 4), (8, 4)), ((1, 4), (9, 4), (8, 4)), ((1, 4), (2, 4), (8,)), ((-1, 4), (2, 4), (8, 4))]
)
def test_a_profile_goes_from_least_to_most(kit: Any, shapes: Any) -> None:
    with pytest.raises(RuntimeError, match='inconsistent'):
        kit[0].create_optimization_profile().set_shape('pixels', *shapes)


@BOTH
@pytest.mark.parametrize(
    ('name', 'shapes', 'said'),
    [
        ('', (), 'no optimization profile'),
        ('images', ((1, 4), (2, 4), (8, 4)), 'no optimization profile'),
        ('pixels', ((1, 4), (2, 5), (8, 6)), 'the profile says'),
        ('pixels', ((1, 4, 1), (2, 4, 1), (8, 4, 1)), 'the profile says'),
    ],
)
def test_a_network_that_its_profile_does_not_cover_is_not_built(
    log: Log, kit: Any, name: str, shapes: Any, said: str
) -> None:
    builder, network, _ = kit
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    if name:
        profile.set_shape(name, *shapes)
    assert config.add_optimization_profile(profile) == (0 if name else -1)
    assert builder.build_serialized_network(network, config) is None
    assert said in log.lines[-1]


def test_nothing_is_built_of_nothing(log: Log, kit: Any) -> None:
    builder, _, config = kit
    assert builder.build_serialized_network(builder.create_network(2), config) is None
    assert 'at least one output' in log.lines[-1]


@pytest.mark.parametrize('version', [TEN])
def test_strong_types_and_flags_of_weak_ones_do_not_go_together(trt: Any, log: Log, kit: Any) -> None:
    builder, network, config = kit
    config.set_flag(trt.BuilderFlag.FP16)
    assert builder.build_serialized_network(network, config) is None
    assert 'FP16 cannot be set for a strongly typed network' in log.lines[-1]
    builder.create_network(0)
    assert log.lines[-1] == 'WARNING weakly typed networks are deprecated'


def test_the_configuration_checks_its_arguments(trt: Any, kit: Any) -> None:
    builder, _, config = kit
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    for pool, size in ((0, 1 << 30), (trt.MemoryPoolType.WORKSPACE, 1e9)):
        with pytest.raises(TypeError):
            config.set_memory_pool_limit(pool, size)
    with pytest.raises(TypeError):
        builder.create_network(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert config.get_flag(trt.BuilderFlag.TF32)


# -- plans and engines ------------------------------------------------------------------------------------------------


def test_a_plan_is_bound_to_its_version_and_gpu(trt: Any, log: Log, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    builder, network, config = kit
    plan = bytes(builder.build_serialized_network(network, config))
    runtime = trt.Runtime(log.logger)
    assert runtime.deserialize_cuda_engine(plan) is not None
    for damaged in (plan[:-1], plan[1:], b''):
        assert runtime.deserialize_cuda_engine(damaged) is None
    with pytest.raises(TypeError):
        runtime.deserialize_cuda_engine('engine.plan')
    for name, value in (('version', '11.5.0'), ('capability', (8, 0))):
        with monkeypatch.context() as patch:
            patch.setattr(trt.DEVICE, name, value)
            assert runtime.deserialize_cuda_engine(plan) is None
            assert f'this is {value}' in log.lines[-1]


def test_an_engine_knows_its_tensors(trt: Any, log: Log, kit: Any) -> None:
    builder, network, config = kit
    plan = bytes(builder.build_serialized_network(network, config))
    engine = trt.Runtime(log.logger).deserialize_cuda_engine(plan)
    assert [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)] == ['pixels', 'vectors']
    modes = [engine.get_tensor_mode(name) for name in ('pixels', 'vectors', 'mask')]
    assert modes == [trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT, trt.TensorIOMode.NONE]


# -- contexts ---------------------------------------------------------------------------------------------------------


def test_nothing_has_run_before_the_stream_was_waited_for(context: Any) -> None:
    pixels, vectors = prepared(context)
    stream = cuda.Stream()
    assert context.execute_async_v3(stream.cuda_stream)
    assert vectors.count_nonzero() == 0
    stream.synchronize()
    assert np.allclose(vectors.numpy(), np.tanh(pixels.numpy().astype(np.float32)), atol=1e-6)


@pytest.mark.parametrize('shape', [(0, 4), (9, 4), (2, 5), (2,), (2, 4, 1)])
def test_a_shape_outside_of_the_profile_is_refused(log: Log, context: Any, shape: Any) -> None:
    assert context.set_input_shape('pixels', shape) is False
    assert 'does not satisfy any profile' in log.lines[-1]
    assert context.set_input_shape('images', (2, 4)) is False


def test_what_is_not_set_does_not_run(log: Log, context: Any) -> None:
    stream = cuda.Stream()
    assert context.get_tensor_shape('vectors') == (-1, SIDES)
    assert context.execute_async_v3(stream.cuda_stream) is False
    assert 'the shape of pixels is not set' in log.lines[-1]
    tensors = prepared(context)
    assert context.get_tensor_shape('vectors') == (2, SIDES)
    for name, tensor in zip(('pixels', 'vectors'), tensors, strict=True):
        assert context.set_tensor_address(name, 0)
        assert context.execute_async_v3(stream.cuda_stream) is False
        assert f'Address is not set for {name}' in log.lines[-1]
        assert context.set_tensor_address(name, tensor.data_ptr())
    assert context.set_tensor_address('mask', tensors[0].data_ptr()) is False
    with pytest.raises(TypeError):
        context.set_tensor_address('pixels', tensors[0])
    assert context.execute_async_v3(987654) is False
    assert context.execute_async_v3(0)
    assert log.lines[-1].startswith('WARNING Using default stream')


@pytest.mark.parametrize('lost', [0, 1])
def test_a_tensor_that_was_freed_before_it_has_run_is_noticed(context: Any, lost: int) -> None:
    tensors = list(prepared(context))
    stream = cuda.Stream()
    assert context.execute_async_v3(stream.cuda_stream)
    del tensors[lost]
    gc.collect()
    with pytest.raises(RuntimeError, match='illegal memory access'):
        stream.synchronize()


def test_a_tensor_that_is_too_small_is_noticed(context: Any) -> None:
    _, vectors = prepared(context)
    small = torch.zeros(1, SIDES)
    assert context.set_tensor_address('vectors', small.data_ptr())
    stream = cuda.Stream()
    assert context.execute_async_v3(stream.cuda_stream)
    with pytest.raises(RuntimeError, match='illegal memory access'):
        stream.synchronize()
    assert vectors.count_nonzero() == 0


def test_a_context_belongs_to_its_thread(context: Any) -> None:
    import threading

    caught: list[str] = []

    def use() -> None:
        try:
            context.set_input_shape('pixels', (2, SIDES))
        except RuntimeError as error:
            caught.append(str(error))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert 'belongs to another thread' in caught[0]


def test_tf32_shows(trt: Any, log: Log, kit: Any) -> None:
    builder, network, config = kit
    plan = bytes(builder.build_serialized_network(network, config))
    rough = trt.Runtime(log.logger).deserialize_cuda_engine(plan).create_execution_context()
    pixels, vectors = prepared(rough)
    stream = cuda.Stream()
    rough.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    assert 1e-3 < np.abs(vectors.numpy() - np.tanh(pixels.numpy().astype(np.float32))).max() < 0.1


def test_faults_come_once(trt: Any, log: Log, kit: Any, context: Any) -> None:
    builder, network, config = kit
    trt.DEVICE.faults.update(build='no kernel', execute='no', context='no memory', engine='no memory')
    assert builder.build_serialized_network(network, config) is None
    plan = bytes(builder.build_serialized_network(network, config))
    runtime = trt.Runtime(log.logger)
    assert runtime.deserialize_cuda_engine(plan) is None
    engine = runtime.deserialize_cuda_engine(plan)
    assert engine.create_execution_context() is None
    assert engine.create_execution_context() is not None
    _held = prepared(context)
    assert context.execute_async_v3(cuda.Stream().cuda_stream) is False
    assert context.execute_async_v3(cuda.Stream().cuda_stream) is True
