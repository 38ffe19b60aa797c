"""A worker that is ready: vectors, what it says of itself, what it refuses, and the queue before it."""

import threading
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from clipflow.sessions.torch import TorchSession
from clipflow.tokens import Tokenizer
from clipflow.weights import load_spec
from unit.checkpoints import CONTEXT, DIMENSION, SIDE

from .process import SECONDS, Gate, Worker, pb, request, vectors_of

TEXTS = ['a cat', 'dog', 'two dogs and a cat', '', 'x', 'do', 'cat cat', 'a', 'of', 'no end', 'it is', 'dogma']
ROWS = 8
"""Of one call of the worker."""


@pytest.fixture(scope='module')
def texts(checkpoint: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Ids and mask of enough texts, padded to the longest."""
    tokens = Tokenizer(load_spec(str(checkpoint)))((TEXTS * 3)[: 3 * ROWS + 2])
    return tokens.ids, tokens.mask


def pictures(random: np.random.Generator, count: int) -> NDArray[np.uint8]:
    return random.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def agree(one: NDArray[np.float32], other: NDArray[np.float32]) -> None:
    assert one.shape == other.shape
    assert np.allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    assert (one * other).sum(axis=1).min() >= 0.999


@pytest.mark.parametrize('count', [1, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS + 2])
def test_vectors_are_those_of_float32_torch_whatever_the_number(
    worker: Worker, reference: TorchSession, random: np.random.Generator, texts: Any, count: int
) -> None:
    pixels = pictures(random, count)
    agree(worker.infer('clip_image', pixels=pixels), reference.encode_images(pixels))
    ids, mask = texts[0][:count], texts[1][:count]
    with_mask = worker.infer('clip_text', ids=ids, mask=mask)
    agree(with_mask, reference.encode_texts(ids, mask))
    assert np.array_equal(with_mask, worker.infer('clip_text', ids=ids))


def test_a_vector_does_not_depend_on_what_is_beside_it(worker: Worker, random: np.random.Generator) -> None:
    pixels = pictures(random, ROWS)
    assert np.allclose(
        worker.infer('clip_image', pixels=pixels)[5:6], worker.infer('clip_image', pixels=pixels[5:6]), atol=2e-3
    )


def test_nothing_gives_nothing(worker: Worker, random: np.random.Generator) -> None:
    before = worker.calls()
    assert worker.infer('clip_image', pixels=pictures(random, 0)).shape == (0, DIMENSION)
    assert worker.infer('clip_text', ids=np.zeros((0, 5), np.int64)).shape == (0, DIMENSION)
    assert worker.calls() == before


def test_it_says_what_it_serves(worker: Worker) -> None:
    assert worker.stub.ServerLive(pb.ServerLiveRequest()).live
    assert worker.stub.ServerMetadata(pb.ServerMetadataRequest()).name == 'clipflow-ipu'
    image = worker.stub.ModelMetadata(pb.ModelMetadataRequest(name='clip_image'))
    assert [(t.name, t.datatype, list(t.shape)) for t in image.inputs] == [('pixels', 'UINT8', [-1, SIDE, SIDE, 3])]
    assert [(t.name, t.datatype, list(t.shape)) for t in image.outputs] == [('vectors', 'FP32', [-1, DIMENSION])]
    config = worker.stub.ModelConfig(pb.ModelConfigRequest(name='clip_text', version='1')).config
    assert [(t.name, list(t.dims), t.optional) for t in config.input] == [('ids', [-1], False), ('mask', [-1], True)]
    assert config.max_batch_size == 40
    assert config.parameters['fingerprint'].string_value == '0123abcd'
    assert config.parameters['precision'].string_value == 'float16'
    assert config.parameters['activation'].string_value == 'quick_gelu'
    means = [float(number) for number in config.parameters['mean'].string_value.split()]
    assert means == [0.48145466, 0.4578275, 0.40821073]  # of transformers' processor for CLIP


@pytest.mark.parametrize(('name', 'version'), [('clip', ''), ('clip_image', '2')])
def test_another_model_is_not_found(worker: Worker, name: str, version: str) -> None:
    made = request(name, pixels=np.zeros((1, SIDE, SIDE, 3), np.uint8))
    made.model_version = version
    assert worker.refusal(made)[0] == 'NOT_FOUND'
    for method, kind in (
        (worker.stub.ModelMetadata, pb.ModelMetadataRequest),
        (worker.stub.ModelConfig, pb.ModelConfigRequest),
        (worker.stub.ModelReady, pb.ModelReadyRequest),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            method(kind(name=name, version=version))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def bad_inputs() -> dict[str, tuple[Any, str]]:
    text = np.array([[0, 3, 517]])
    short = request('clip_text', ids=text)
    short.raw_input_contents[0] = short.raw_input_contents[0][:-1]
    none = request('clip_text', ids=text)
    del none.raw_input_contents[:]
    other = request('clip_text', ids=text)
    other.inputs[0].datatype = 'INT32'
    negative = request('clip_text', ids=text)
    negative.inputs[0].shape[0] = -1
    twice = request('clip_text', ids=text)
    twice.inputs.add().CopyFrom(twice.inputs[0])
    twice.raw_input_contents.append(twice.raw_input_contents[0])
    unknown_output = request('clip_text', ids=text)
    unknown_output.outputs.add(name='logits')
    return {
        'too few bytes': (short, 'cannot have 23 bytes'),
        'no raw contents': (none, 'raw_input_contents'),
        'another datatype': (other, 'ids must be INT64'),
        'a negative size': (negative, 'must have the shape [N, L]'),
        'one input twice': (twice, 'once'),
        'an unknown output': (unknown_output, 'the only output'),
        'an unknown input': (request('clip_text', words=text), "not 'words'"),
        'no ids': (request('clip_text', mask=text), 'needs the input ids'),
        'small pictures': (request('clip_image', pixels=np.zeros((1, 8, 8, 3))), f'[N, {SIDE}, {SIDE}, 3], not [1, 8'),
        'one picture without N': (request('clip_image', pixels=np.zeros((SIDE, SIDE, 3))), 'must have the shape'),
        'too many pictures': (request('clip_image', pixels=np.zeros((41, SIDE, SIDE, 3))), 'at most 40'),
        'a long text': (request('clip_text', ids=np.zeros((1, CONTEXT + 1))), f'within 1 and {CONTEXT}; cut it'),
        'a text without length': (request('clip_text', ids=np.zeros((2, 0))), 'a text of 0 tokens'),
        'no end token': (request('clip_text', ids=np.zeros((1, 4))), 'row 0 of ids has no end token'),
        'a large id': (request('clip_text', ids=text + 10**6), 'ids must be from 0 to'),
        'a negative id': (request('clip_text', ids=text - 1), 'ids must be from 0 to'),
        'an id beyond 32 bits': (request('clip_text', ids=text + 2**32), 'ids must be from 0 to'),
    }


@pytest.mark.parametrize('what', bad_inputs())
def test_bad_input_gets_one_sentence_and_harms_nobody(worker: Worker, texts: Any, what: str) -> None:
    made, sentence = bad_inputs()[what]
    before = worker.calls()
    code, details = worker.refusal(made)
    assert code == 'INVALID_ARGUMENT'
    assert sentence in details
    assert '\n' not in details
    assert worker.calls() == before
    assert worker.infer('clip_text', ids=texts[0][:1]).shape == (1, DIMENSION)


@pytest.mark.parametrize('mask', ['left', 'shape', 'values'])
def test_a_mask_that_does_not_fit_is_refused(worker: Worker, texts: Any, mask: str) -> None:
    ids, sound = texts[0][:3], texts[1][:3]
    bad = {'left': 1 - sound, 'shape': sound[:, :-1], 'values': sound * 2}[mask]
    code, details = worker.refusal(request('clip_text', ids=ids, mask=bad))
    assert code == 'INVALID_ARGUMENT'
    assert details.startswith('mask must')


def test_a_full_queue_refuses_and_what_waited_is_answered(worker: Worker, texts: Any) -> None:
    gate = Gate(worker.folder, 'call')
    made = request('clip_text', ids=texts[0][:1])
    running = worker.stub.ModelInfer.future(made, timeout=SECONDS)
    gate.entered()
    # Two fit, the third is refused; which of the three that is, nobody knows.
    waiting = [worker.stub.ModelInfer.future(made, timeout=SECONDS) for _ in range(3)]
    refused = first_done(waiting)
    assert refused.exception().code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    gate.open()
    answers = [vectors_of(call.result()) for call in (running, *waiting) if call is not refused]
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert len(answers) == 3


def first_done(calls: list[Any]) -> Any:
    """The first of some calls that ends."""
    done = threading.Event()
    for call in calls:
        call.add_done_callback(lambda _: done.set())
    assert done.wait(SECONDS)
    return next(call for call in calls if call.done())


@pytest.mark.parametrize('how', ['its time is over', 'it is cancelled'])
def test_what_its_caller_has_given_up_is_not_run(worker: Worker, texts: Any, how: str) -> None:
    gate = Gate(worker.folder, 'call')
    made = request('clip_text', ids=texts[0][:1])
    before = worker.calls()
    running = worker.stub.ModelInfer.future(made, timeout=SECONDS)
    gate.entered()
    if how == 'its time is over':
        assert worker.refusal(made, timeout=0.2)[0] == 'DEADLINE_EXCEEDED'
    else:
        given_up = worker.stub.ModelInfer.future(made, timeout=SECONDS)
        # It has surely arrived when a later one has found the queue full.
        others = [worker.stub.ModelInfer.future(made, timeout=SECONDS) for _ in range(2)]
        assert first_done([*others, given_up]).exception().code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in (given_up, *others):
            call.cancel()
    # Asked on the same connection, and so after the worker has heard that the other call is over.
    assert worker.is_ready()
    gate.open()
    assert running.result()
    worker.infer('clip_text', ids=texts[0][:1])
    assert worker.calls() == before + 2


def test_each_tower_was_compiled_once_for_all_of_this(worker: Worker) -> None:
    assert worker.events().count('compile') == 2
    assert worker.events().count('attach 2') == 2
    # 64-bit ids would be converted at every call.
    assert [event for event in worker.events() if event.startswith('inputs')] == [
        'inputs torch.uint8',
        'inputs torch.int32 torch.float16',
    ]
    assert {event for event in worker.events() if event.startswith('call')} == {f'call {ROWS}'}
