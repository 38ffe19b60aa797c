"""What holds for every request: endpoints, parameters, deadlines, limits, and how failures look on the wire."""

import asyncio
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docarray import Document, DocumentArray
from jina import Client

from clipflow.errors import BY_CODE, ClipflowError, InvalidParameter, NotFound, Overloaded, Timeout
from clipflow_client import AsyncClient
from forms import long
from service import Service, flow_with, png

STAGES = ['preprocessor', 'encoder', 'indexer', 'ranker']
QUIET_SECONDS = 60


@pytest.mark.parametrize(
    ('endpoint', 'nearest'),
    [('/serch', '/search'), ('/indx', '/index'), ('/Status', '/status'), ('/encode/', '/encode')],
)
def test_an_unknown_endpoint_is_refused_with_the_nearest_one(fake: Service, endpoint: str, nearest: str) -> None:
    with pytest.raises(NotFound, match=re.escape(repr(endpoint)) + '.*' + re.escape(repr(nearest))):
        fake.post(endpoint, Document(id='a', text='x'))


def test_an_endpoint_like_no_other_is_refused_with_the_list_of_all(fake: Service) -> None:
    with pytest.raises(NotFound, match=r'/index.*/search'):
        fake.post('/qqqqqqqqqqqqqqq')


@pytest.mark.parametrize(
    ('endpoint', 'given', 'nearest'),
    [
        ('/search', 'limt', 'limit'),
        ('/search', 'filters', 'filter'),
        ('/search', 'minscore', 'min_score'),
        ('/delete', 'id', 'ids'),
        ('/get', 'includes', 'include'),
        ('/classify', 'label', 'labels'),
        ('/index', 'acces_paths', 'access_paths'),
    ],
)
def test_an_unknown_parameter_is_refused_with_the_nearest_one(
    fake: Service, endpoint: str, given: str, nearest: str
) -> None:
    with pytest.raises(InvalidParameter, match=f"'{given}'.*'{nearest}'"):
        fake.post(endpoint, Document(id='a', text='x'), {given: 1})
    assert fake.stored_ids() == set()


@pytest.mark.parametrize('endpoint', ['/', '/encode', '/index', '/search', '/rank', '/get', '/status', '/update'])
def test_parameters_that_published_clients_send_are_accepted_everywhere(fake: Service, endpoint: str) -> None:
    doc = Document(id='a', text='x', matches=DocumentArray([Document(text='y')]))
    sent = {
        'drop_image_content': True,
        'minibatch_size': 32,
        'batch_size': 8,
        'model_name': '',
        'traversal_paths': '@r',
    }
    fake.post(endpoint, doc, sent)


def test_status_has_one_document_a_stage_in_their_order(fake: Service) -> None:
    fake.post('/index', [Document(id='a', text='x'), Document(id='b', text='y')])
    reply = fake.post('/status')
    assert [(doc.id, doc.tags['stage']) for doc in reply] == [(stage, stage) for stage in STAGES]
    told = {doc.id: doc.tags for doc in reply}
    assert len({tags['fingerprint'] for tags in told.values()}) == 1
    assert {tags['model'] for tags in told.values()} == {'clip-mini'}
    assert told['encoder']['runtime'] == 'fake'
    assert told['encoder']['dimension'] == 32
    assert told['indexer']['documents'] == 2
    assert all(tags['waiting'] == 0 and list(tags['warnings']) == [] for tags in told.values())


def test_status_does_not_pass_on_documents_of_the_client(fake: Service) -> None:
    reply = fake.post('/status', [Document(id='mine', text='x', tags={'stage': 'mine'})])
    assert [doc.id for doc in reply] == STAGES


def test_jinas_own_readiness_check_says_yes(fake: Service) -> None:
    assert Client(host='127.0.0.1', port=fake.port).is_flow_ready()


@pytest.mark.parametrize(
    ('endpoint', 'doc', 'parameters', 'code'),
    [
        ('/nothing', None, {}, 'not-found'),
        ('/search', Document(text='x'), {'limit': 0}, 'invalid-parameter'),
        ('/search', Document(text='x'), {'filter': 'x'}, 'invalid-filter'),
        ('/encode/other', Document(text='x'), {}, 'model-mismatch'),
        ('/delete', None, {}, 'invalid-parameter'),
        ('/encode', Document(text='x'), {'__deadline': 1.0}, 'timeout'),
        ('/index', Document(text='x' * (65 * 1024 * 1024)), {}, 'too-large'),
    ],
)
def test_a_failed_reply_says_code_and_sentence_and_carries_no_trace(
    fake: Service, endpoint: str, doc: Document | None, parameters: dict[str, Any], code: str
) -> None:
    reply = fake.request(endpoint, doc, parameters)
    status = reply.header.status
    assert status.code == status.ERROR
    assert re.fullmatch(rf'{code}: \S.{{10,300}}', status.description)
    assert status.exception.name == BY_CODE[code].__name__
    assert list(status.exception.stacks) == []
    assert list(status.exception.args) == []
    assert len(reply.docs) == 0
    assert '/work' not in status.description
    assert 'Traceback' not in status.description


@pytest.mark.parametrize('endpoint', ['/index', '/search', '/encode', '/delete', '/clear', '/update'])
def test_a_request_whose_deadline_has_passed_is_refused_before_any_work(fake: Service, endpoint: str) -> None:
    fake.post('/index', Document(id='before', text='x'))
    with pytest.raises(Timeout, match='deadline'):
        fake.post(endpoint, Document(id='late', text='y'), {'__deadline': time.time() - 1})
    assert fake.stored_ids() == {'before'}


def test_a_deadline_in_the_future_is_no_hindrance(fake: Service) -> None:
    assert fake.one('/index', Document(id='a', text='x'), {'__deadline': time.time() + 30}).id == 'a'


def test_a_client_that_allows_no_time_gets_a_timeout(fake: Service) -> None:
    async def ask() -> None:
        async with AsyncClient(fake.grpc, timeout=0.001, retries=0) as client:
            await client.post('/encode', DocumentArray([Document(blob=png(size=(3000, 3000))) for _ in range(4)]))

    with pytest.raises(Timeout):
        asyncio.run(ask())


@pytest.fixture(scope='module')
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two replicas of the stateless stages, each with a queue of one."""
    folder = tmp_path_factory.mktemp('replicated')
    flow = flow_with(folder, {'preprocessor': {'replicas': 2}, 'encoder': {'replicas': 2}})
    with Service(folder, {'RUNTIME': 'fake', 'QUEUE_LIMIT': '1'}, flow=flow) as running:
        yield running


def test_a_full_queue_answers_overloaded_to_some_while_others_succeed(replicated: Service) -> None:
    pictures = DocumentArray([Document(blob=png(size=(800, 800))) for _ in range(8)])

    async def ask(address: str) -> list[Any]:
        async with AsyncClient(address, retries=0) as client:
            calls = [client.post('/encode', pictures) for _ in range(24)]
            return await asyncio.gather(*calls, return_exceptions=True)

    async def ask_again(address: str) -> list[Any]:
        async with AsyncClient(address, retries=20) as client:
            return await asyncio.gather(*(client.post('/encode', pictures) for _ in range(6)))

    outcomes = asyncio.run(ask(replicated.grpc))
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert {type(error) for error in failed} == {Overloaded}
    assert {error.retryable for error in failed if isinstance(error, ClipflowError)} == {True}
    assert 0 < len(failed) < len(outcomes)
    assert all(len(reply.embeddings) == 8 for reply in outcomes if isinstance(reply, DocumentArray))
    # Nothing is left behind, and a client that tries again gets through.
    assert [doc.tags['waiting'] for doc in replicated.post('/status')] == [0, 0, 0, 0]
    assert len(asyncio.run(ask_again(replicated.grpc))) == 6


def test_two_replicas_of_the_stateless_stages_share_the_cores(replicated: Service) -> None:
    names = {'preprocessor/rep-0', 'preprocessor/rep-1', 'encoder/rep-0', 'encoder/rep-1'}
    assert set(replicated.pids) == names | {'indexer', 'ranker', 'gateway'}
    told = {doc.id: doc.tags for doc in replicated.post('/status')}
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert (told['preprocessor']['threads'], told['encoder']['threads']) == (share, share)
    for i in range(20):
        replicated.post('/index', Document(id=f'd{i}', blob=png((i * 12, 0, 0))))
    assert replicated.stored_ids() == {f'd{i}' for i in range(20)}
    assert len(replicated.matches(Document(blob=png('red')), limit=20)) == 20


@long
def test_the_first_request_after_a_quiet_minute_is_answered(tmp_path: Path) -> None:
    # Nothing is waited for: Jina's own pings between gateway and stages would break the connections in this time.
    with Service(tmp_path, {'RUNTIME': 'fake'}) as service:
        service.post('/index', Document(id='a', text='x'))
        time.sleep(QUIET_SECONDS)
        assert service.stored_ids() == {'a'}
