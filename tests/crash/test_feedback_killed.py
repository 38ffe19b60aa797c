"""kill -9 of the indexer while many send feedback: none that was acknowledged is lost, and none is there twice."""

import threading

import numpy as np
from docarray import Document

from clipflow.errors import ClipflowError
from clipflow_client import Client
from service import Service, until

PEOPLE = 4
KILLS = 2


class Person(threading.Thread):
    """Sends feedback without pause, and remembers what was acknowledged."""

    def __init__(self, service: Service, number: int, stop: threading.Event) -> None:
        super().__init__()
        self._client = Client(service.grpc, timeout=20)
        self._number, self._ended = number, stop
        self.acknowledged: list[str] = []
        self.errors: list[ClipflowError] = []

    def run(self) -> None:
        turn = 0
        query = np.ones(32, dtype=np.float32)
        while not self._ended.is_set():
            user = f'{self._number}/{turn}'
            turn += 1
            try:
                self._client.feedback(query, ['a', 'b'], ['b'], user=user)
                self.acknowledged.append(user)
            except ClipflowError as error:
                self.errors.append(error)
                self._ended.wait(0.02)
        self._client.close()


def test_no_feedback_that_was_acknowledged_is_lost(furnished: Service) -> None:
    furnished.post('/index', Document(id='a', text='a'))
    stop = threading.Event()
    people = [Person(furnished, number, stop) for number in range(PEOPLE)]
    for person in people:
        person.start()
    try:
        for _ in range(KILLS):
            before = sum(len(person.acknowledged) for person in people)
            until(lambda: sum(len(p.acknowledged) for p in people) > before + 40, 60, 'feedback comes')  # noqa: B023
            furnished.kill('indexer')
            furnished.wait_until_ready_again('indexer')
    finally:
        stop.set()
        for person in people:
            person.join()
    with Client(furnished.grpc) as client:
        kept = [entry.user for entry in client.feedback_log()]
    assert {error.retryable for person in people for error in person.errors} == {True}
    assert {user for person in people for user in person.acknowledged} - set(kept) == set()
    assert len(kept) == len(set(kept))
