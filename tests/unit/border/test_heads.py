"""What the gateway tells indexer and ranker of the live head, and how it learns that it is another one."""

import asyncio
import time
from typing import Any

import pytest
from docarray import Document, DocumentArray
from jina.proto import jina_pb2
from jina.types.request.data import DataRequest

from clipflow import wire
from clipflow.border.heads import Heads, changed


def request(endpoint: str = '/search', **parameters: Any) -> DataRequest:
    made = DataRequest()
    made.header.exec_endpoint = endpoint
    made.parameters = parameters
    made.data.docs = DocumentArray([Document(text='x')])
    return made


class Stages:
    """A ranker that has a head, or none, and what was sent to it."""

    def __init__(self, version: str = '') -> None:
        self.version = version
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.heads = Heads(self.send)

    async def send(self, request: DataRequest, deadline: float) -> DataRequest:
        asked = DataRequest(request.to_bytes())
        endpoint, parameters = asked.header.exec_endpoint, asked.parameters
        self.sent.append((endpoint, {name: parameters[name] for name in parameters if name != wire.DEADLINE}))
        reply = DataRequest(request.to_bytes())
        if endpoint == '/status':
            assert asked.header.target_executor == '^ranker$'
            reply.data.docs = DocumentArray(
                [Document(id='ranker', tags={'head': self.version or 'none', 'head_depth': 100})]
            )
        if endpoint == '/search' and parameters.get(wire.HEAD, self.version) != self.version:
            reply.header.status.code = jina_pb2.StatusProto.ERROR
            reply.header.status.description = repr(changed(self.version, 100))
        return reply

    def ask(self, made: DataRequest) -> list[tuple[str, dict[str, Any]]]:
        """What passes through the stages for one request."""
        before = len(self.sent)
        reply = asyncio.run(self.heads.send(made, time.time() + 10))
        assert reply.status.code != jina_pb2.StatusProto.ERROR
        return self.sent[before:]


def test_without_a_head_a_search_goes_its_way_alone() -> None:
    stages = Stages()
    assert stages.ask(request(limit=3)) == [('/status', {}), ('/search', {'limit': 3, wire.HEAD: ''})]
    assert stages.ask(request()) == [('/search', {wire.HEAD: ''})]


def test_with_a_head_candidates_are_asked_for() -> None:
    stages = Stages('abc')
    assert stages.ask(request())[-1] == ('/search', {wire.HEAD: 'abc', wire.CANDIDATES: 100})
    assert stages.ask(request()) == [('/search', {wire.HEAD: 'abc', wire.CANDIDATES: 100})]


@pytest.mark.parametrize('parameters', [{'rerank': False}, {'sort_by': 'n', 'min_score': 0.1}])
def test_where_the_head_is_not_wanted_nothing_is_added(parameters: dict[str, Any]) -> None:
    assert Stages('abc').ask(request(**parameters)) == [('/search', parameters)]


def test_a_change_in_the_ranker_costs_one_search_twice_and_the_next_nothing() -> None:
    stages = Stages()
    stages.ask(request())
    stages.version = 'abc'
    first = {wire.HEAD: ''}
    assert stages.ask(request()) == [('/search', first), ('/search', {wire.CANDIDATES: 100})]
    assert stages.ask(request()) == [('/search', {wire.HEAD: 'abc', wire.CANDIDATES: 100})]
    stages.version = ''
    assert [endpoint for endpoint, _ in stages.ask(request())] == ['/search', '/search']
    assert stages.ask(request()) == [('/search', {wire.HEAD: ''})]


def test_after_a_change_by_ranker_it_asks_again() -> None:
    stages = Stages()
    stages.ask(request())
    assert stages.ask(request('/ranker', do='off')) == [('/ranker', {'do': 'off'})]
    stages.version = 'abc'
    assert stages.ask(request()) == [('/status', {}), ('/search', {wire.HEAD: 'abc', wire.CANDIDATES: 100})]


def test_feedback_is_kept_with_the_version() -> None:
    assert Stages('abc').ask(request('/feedback', user='u')) == [
        ('/status', {}),
        ('/feedback', {'user': 'u', wire.HEAD: 'abc'}),
    ]
    declined = request('/feedback', rerank=False)
    assert Stages('abc').ask(declined) == [('/feedback', {'rerank': False})]
    assert Stages('abc').ask(request('/index')) == [('/index', {})]
