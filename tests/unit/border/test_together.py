"""Queries that wait go on together, and each caller gets the answer to its own."""

import asyncio
import time

import pytest
from docarray import Document, DocumentArray
from jina.types.request.data import DataRequest

from clipflow import wire
from clipflow.border.together import FLIGHTS, MOST, Together
from clipflow.errors import ClipflowError, Overloaded, Timeout


def query(text: str, endpoint: str = '/search', docs: int = 1, **parameters: float) -> DataRequest:
    request = DataRequest()
    request.header.request_id = f'id-{text}'
    request.header.exec_endpoint = endpoint
    request.parameters = {**parameters, wire.DEADLINE: time.time() + 10, wire.REQUEST_ID: f'id-{text}'}
    request.data.docs = DocumentArray([Document(text=text) for _ in range(docs)])
    return DataRequest(request.to_bytes())  # as it arrives


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request does not count as late because the machine is busy."""
    monkeypatch.setattr('clipflow.border.together.LATE_SECONDS', 60.0)


class Stages:
    """Answers with the texts in capitals; waits until it may."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []
        self.go = asyncio.Event()
        self.error: ClipflowError | None = None

    async def send(self, request: DataRequest, deadline: float) -> DataRequest:
        self.seen.append([doc.text for doc in request.docs])
        await self.go.wait()
        if self.error is not None:
            raise self.error
        reply = DataRequest(request.to_bytes())
        reply.data.docs = DocumentArray([Document(text=doc.text.upper()) for doc in request.docs])
        return DataRequest(reply.to_bytes())


def soon() -> float:
    return time.time() + 10


async def started(together: Together, stages: Stages, request: DataRequest) -> 'asyncio.Task[DataRequest]':
    """A caller who has asked: the query is on its way, or it waits."""
    task = asyncio.create_task(together.send(request, soon()))
    for _ in range(3):  # turns of the loop until a query that need not wait has come to the stages
        await asyncio.sleep(0)
    return task


async def answers(stages: Stages, requests: list[DataRequest]) -> list[object]:
    """What each caller gets, when all have asked before the first is answered."""
    together = Together(stages.send)
    tasks = [await started(together, stages, request) for request in requests]
    stages.go.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


def texts(found: list[object]) -> list[str]:
    return [reply.docs[0].text for reply in found if isinstance(reply, DataRequest)]


def test_what_waits_goes_on_together_and_everybody_gets_their_own() -> None:
    async def run() -> None:
        stages = Stages()
        found = await answers(stages, [query(f't{n}') for n in range(10)])
        assert texts(found) == [f'T{n}' for n in range(10)]
        assert [reply.header.request_id for reply in found if isinstance(reply, DataRequest)] == [
            f'id-t{n}' for n in range(10)
        ]
        assert [len(seen) for seen in stages.seen] == [1] * FLIGHTS + [10 - FLIGHTS]

    asyncio.run(run())


def test_at_most_so_many_go_together() -> None:
    async def run() -> None:
        stages = Stages()
        found = await answers(stages, [query(f't{n}') for n in range(100)])
        assert len(texts(found)) == 100
        assert max(len(seen) for seen in stages.seen) == MOST

    asyncio.run(run())


def test_only_queries_with_the_same_parameters_go_together() -> None:
    async def run() -> None:
        stages = Stages()
        requests = [query(f't{n}', limit=1 + n % 2) for n in range(12)]
        assert texts(await answers(stages, requests)) == [f'T{n}' for n in range(12)]
        for seen in stages.seen:
            assert len({int(text[1:]) % 2 for text in seen}) == 1

    asyncio.run(run())


@pytest.mark.parametrize('more', [{'endpoint': '/index'}, {'docs': 2}, {wire.TRACE: 1.0}])
def test_everything_else_goes_alone(more: dict[str, object]) -> None:
    async def run() -> None:
        stages = Stages()
        await answers(stages, [query(f't{n}', **more) for n in range(6)])  # type: ignore[arg-type]
        assert len(stages.seen) == 6

    asyncio.run(run())


def test_an_error_reaches_all_who_went_together() -> None:
    async def run() -> None:
        stages = Stages()
        stages.error = Overloaded('too many')
        found = await answers(stages, [query(f't{n}') for n in range(6)])
        assert [type(error) for error in found] == [Overloaded] * 6

    asyncio.run(run())


def test_who_has_gone_is_left_out_and_whose_time_is_over_is_told() -> None:
    async def run() -> None:
        stages = Stages()
        together = Together(stages.send)
        tasks = [await started(together, stages, query(f't{n}')) for n in range(5)]
        late = asyncio.create_task(together.send(query('late'), time.time() + 0.02))
        await asyncio.sleep(0)
        tasks[3].cancel()
        with pytest.raises(Timeout):
            await late
        stages.go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert texts(found) == ['T0', 'T1', 'T2', 'T4']
        assert stages.seen[FLIGHTS:] == [['t2', 't4']]

    asyncio.run(run())


def test_a_request_that_hangs_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> list[list[str]]:
        stages = Stages()
        together = Together(stages.send)
        hanging = [await started(together, stages, query(str(number))) for number in range(FLIGHTS)]
        waiting = await started(together, stages, query('waits'))
        assert len(stages.seen) == FLIGHTS
        monkeypatch.setattr('clipflow.border.together.LATE_SECONDS', 0.0)  # that long have they been on their way
        last = await started(together, stages, query('last'))
        seen = list(stages.seen)
        stages.go.set()
        await asyncio.gather(*hanging, waiting, last)
        return seen

    assert asyncio.run(run())[FLIGHTS:] == [['waits', 'last']]
