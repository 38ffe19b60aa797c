"""Searches and additions take turns at a FAISS index."""

import threading

from clipflow.index.approximate import Turns
from service import until


def test_a_reader_waits_for_one_turn_of_a_writer_who_takes_many() -> None:
    turns, begun, entered = Turns(), threading.Event(), list[int]()
    done = 0

    def write() -> None:
        nonlocal done
        for number in range(200):
            with turns.writing():
                done = number
                if number == 5:
                    begun.set()
                    until(lambda: turns._waiting == 2, 20, 'both readers wait for this turn')

    def read() -> None:
        begun.wait(20)
        with turns.reading():
            entered.append(done)

    threads = [threading.Thread(target=call) for call in (write, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (entered, done) == ([5, 5], 199)


def test_a_waiting_writer_goes_before_new_readers() -> None:
    turns, order = Turns(), list[str]()

    def write() -> None:
        with turns.writing():
            order.append('writer')

    def read() -> None:
        with turns.reading():
            order.append('reader')

    writer, reader = threading.Thread(target=write), threading.Thread(target=read)
    with turns.reading():
        writer.start()
        until(lambda: turns._writing, 20, 'the writer waits')
        reader.start()
        until(lambda: turns._waiting == 1, 20, 'the reader waits')
    writer.join(20)
    reader.join(20)
    assert order == ['writer', 'reader']
