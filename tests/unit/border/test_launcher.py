"""How the launcher hears that it has to stop, the ports that it holds for its stages, and when it gives one up."""

import socket
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest

from clipflow.border import supervised
from clipflow.border.supervised import Stage, StageFailed
from service import free_port

_WATCHED = """
import subprocess
from clipflow.border import launcher

class Switching:
    def step(self): pass
    def answers(self): return False

launcher._POLL_SECONDS = 0.0  # it hardly rests, so that signals interrupt whatever else it does
heard = launcher._signals()
sender = subprocess.Popen(['sh', '-c', 'while kill -TERM $PPID; do sleep 0.005; done'])
for turn in range(100):
    heard.clear()
    launcher._watch([], {}, heard, Switching())
sender.kill()
sender.wait()
print('heard them all')
"""


def test_a_signal_is_heard_whatever_it_interrupts() -> None:
    done = subprocess.run([sys.executable, '-c', _WATCHED], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ('heard them all\n', '')


def test_nobody_gets_the_port_of_a_stage_before_it_listens_or_between_two_starts() -> None:
    port = free_port()
    stage = Stage(Namespace(name='encoder', port=[port]))
    for _ in range(2):
        with socket.socket() as other, pytest.raises(OSError, match='in use'):
            other.bind(('127.0.0.1', port))
        server = grpc.server(ThreadPoolExecutor(1))
        assert server.add_insecure_port(f'0.0.0.0:{port}') == port
        server.start()
        with grpc.insecure_channel(f'127.0.0.1:{port}') as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
        server.stop(None).wait()
    assert stage.name == 'encoder'


def test_a_stage_may_die_five_times_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(supervised, 'time', clock)
    stage = Stage(Namespace(name='ranker', port=[]))
    monkeypatch.setattr(stage, 'start', lambda: None)
    monkeypatch.setattr(stage, 'end', lambda: 'a test')
    stage.ready = True
    for now in (0.0, 10.0, 20.0, 30.0, 40.0, 60.0):  # noqa: B007 - the clock reads it
        stage.start_again()
    now = 69.0
    with pytest.raises(StageFailed, match='the stage ranker died 6 times within a minute'):
        stage.start_again()
