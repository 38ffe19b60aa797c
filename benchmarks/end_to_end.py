"""What the Flow costs beside what it runs: against the bare session, against an empty Flow, against clip-as-service.

    python benchmarks/end_to_end.py [--data DIR] [--rounds 3] [--only throughput,latency]
    python benchmarks/end_to_end.py --only concurrency [--model DIR]
    python benchmarks/end_to_end.py --only peer --peer-python DIR/bin/python --peer DIR --model DIR

All figures of one part are taken in turns in one run; ratios are what counts. The peer part needs an environment with
clip-server, a folder with its serve.py and bench.py, and the same weights converted by convert_openai.py.
"""

import argparse
import asyncio
import http.client
import json
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from docarray import Document, DocumentArray

from clipflow import ROOT
from clipflow_client import Client
from setups import LocalService, free_port, quantiles, spread, timed

PHOTOGRAPHS = 512
CALLS = 60
QUERY = 'a dog in the snow'
BARE = """
import json, sys, time, zipfile
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from docarray import Document
from clipflow.batching import Embedder
from clipflow.preparation import Preparation
from clipflow.sessions.registry import open_session
from clipflow.settings import EncoderSettings, PreprocessorSettings
from clipflow.weights import load_spec
from clipflow.work import share_of_cores

settings = EncoderSettings.load()
spec = load_spec(settings.model)
session = open_session(spec, settings, share_of_cores(0, 1), shared=False).session
embedder, preparation = Embedder(spec, session, 32), Preparation(spec, PreprocessorSettings.load())
with zipfile.ZipFile(sys.argv[1]) as file:
    blobs = [file.read(name) for name in sorted(file.namelist())[:int(sys.argv[2])]]
begun = time.perf_counter()
docs = [Document(blob=blob) for blob in blobs]
for doc in docs:
    preparation.prepare(doc, needs_content=True, trust_embedding=True, thumbnail=False, keep=False)
decoded = time.perf_counter()
embedder.embed(docs)
ended = time.perf_counter()
docs = [Document(blob=blob) for blob in blobs]
def prepare(doc):
    preparation.prepare(doc, needs_content=True, trust_embedding=True, thumbnail=False, keep=False)
    return doc
with ThreadPoolExecutor(share_of_cores(0, 1)) as pool:
    started = time.perf_counter()
    waiting = pool.map(prepare, docs)
    while batch := list(islice(waiting, 32)):
        embedder.embed(batch)
    finished = time.perf_counter()
print(json.dumps({
    'loop': len(docs) / (ended - begun),
    'session': len(docs) / (ended - decoded),
    'beside': len(docs) / (finished - started),
}))
"""


def bare(archive: Path) -> dict[str, float]:
    """Photographs per second of one process: decoding and encoding in turn, side by side, and encoding alone."""
    command = [sys.executable, '-W', 'ignore', '-c', BARE, str(archive), str(PHOTOGRAPHS)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def throughput(archive: Path, rounds: int) -> None:
    """Photographs per second through the Flow, in turns with the bare session."""
    with zipfile.ZipFile(archive) as file:
        blobs = [file.read(name) for name in sorted(file.namelist())[:PHOTOGRAPHS]]
    flow: list[float] = []
    alone: dict[str, list[float]] = {'loop': [], 'beside': [], 'session': []}
    with (
        tempfile.TemporaryDirectory() as workspace,
        LocalService(Path(workspace)) as service,
        Client(service.grpc) as client,
    ):
        client.index(Document(id=f'warm {i}', blob=blob) for i, blob in enumerate(blobs[:32]))
        for turn in range(rounds):
            begun = time.perf_counter()
            outcomes = client.index(Document(id=f'{turn} {i}', blob=blob) for i, blob in enumerate(blobs))
            flow.append(len(outcomes) / (time.perf_counter() - begun))
            assert all(outcome.error is None for outcome in outcomes)
            for name, speed in bare(archive).items():
                alone[name].append(speed)
    print('\n| photographs per second | median (range) |\n|---|---|')
    print(f'| through the Flow, stored and searchable | {spread(flow)} |')
    titles = {
        'loop': 'decoding and session in turn, one process',
        'beside': 'decoding and session side by side, one process',
        'session': 'session alone, pixels ready',
    }
    for name, title in titles.items():
        print(f'| {title} | {spread(alone[name])} |')
    for name, title in titles.items():
        ratios = [a / b for a, b in zip(flow, alone[name], strict=True)]
        print(f'| Flow / {title} | {spread(ratios, ".2f")} |')


def _noop_flow(folder: Path) -> Path:
    """The empty Flow, with paths and ports that hold here."""
    text = (ROOT / 'benchmarks' / 'noop' / 'flow.yml').read_text(encoding='utf-8')
    path = folder / 'noop.yml'
    path.write_text(text.replace('config.yml', str(ROOT / 'benchmarks' / 'noop' / 'config.yml')), encoding='utf-8')
    return path


def latency(archive: Path, rounds: int, model: str | None) -> None:
    """One query, by three clients, in turns with an empty Flow of four stages.

    What a search costs without encoding shows a query that brings its embedding: the model is not asked, all else is
    the same.
    """
    from jina import Client as JinaClient

    with zipfile.ZipFile(archive) as file:
        blobs = [file.read(name) for name in sorted(file.namelist())[:200]]
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        settings = {'TEXT_CACHE': '0'} | ({'MODEL': model} if model else {})
        service = opened.enter_context(LocalService(folder / 'workspace', settings))
        empty = opened.enter_context(LocalService(folder / 'none', flow=_noop_flow(folder)))
        client, none = (opened.enter_context(Client(address)) for address in (service.grpc, empty.grpc))
        jina, jina_none = (JinaClient(host=f'grpc://{address}') for address in (service.grpc, empty.grpc))
        web = http.client.HTTPConnection(service.http.removeprefix('http://'))
        client.index(Document(id=str(i), blob=blob) for i, blob in enumerate(blobs))
        text, vector = Document(text=QUERY), Document(embedding=client.encode([QUERY])[0])
        by_text, by_vector = {'text': QUERY}, {'embedding': vector.embedding.tolist()}
        calls: dict[str, Callable[[], object]] = {
            'our client, text': lambda: client.post('/search', DocumentArray([text])),
            'our client, embedding': lambda: client.post('/search', DocumentArray([vector])),
            'our client, empty Flow': lambda: none.post('/search', DocumentArray([text])),
            'jina.Client, text': lambda: jina.post('/search', text),
            'jina.Client, embedding': lambda: jina.post('/search', vector),
            'jina.Client, empty Flow': lambda: jina_none.post('/search', text),
            'HTTP, text': lambda: _by_http(web, by_text),
            'HTTP, embedding': lambda: _by_http(web, by_vector),
        }
        taken: dict[str, list[list[float]]] = {name: [] for name in calls}
        stages: dict[str, list[list[float]]] = {}
        for _ in range(rounds):
            for name, call in calls.items():
                web.close()  # the server hangs up on a connection that was quiet during the other calls
                taken[name].append(timed(call, CALLS))
            for stage, times in _by_stage(jina, text).items():
                stages.setdefault(stage, []).append(times)
    print('\n| one query, 10 results | p50 ms, median (range) of the rounds | p95 ms |\n|---|---|---|')
    p50 = {name: [quantiles(turn)[0] for turn in turns] for name, turns in taken.items()}
    for name, turns in taken.items():
        print(f'| {name} | {spread(p50[name])} | {spread([quantiles(turn)[1] for turn in turns])} |')
    for stage, turns in stages.items():
        halves = [quantiles(turn) for turn in turns]
        cells = (spread([half[part] for half in halves]) for part in (0, 1))
        print(f'| of it, the stage {stage} and its call | {" | ".join(cells)} |')
    for way, base in (('our client', 'our client'), ('jina.Client', 'jina.Client'), ('HTTP', 'our client')):
        pairs = zip(p50[f'{way}, embedding'], p50[f'{base}, empty Flow'], strict=True)
        print(f'| {way}: without encoding / empty Flow | {spread([a / b for a, b in pairs], ".2f")} | |')


def _by_stage(jina: Any, query: Document) -> dict[str, list[float]]:
    """Seconds in each stage of searches by text, as the gateway has timed its calls."""
    found: dict[str, list[float]] = {}
    for _ in range(CALLS):
        (reply,) = jina.post('/search', query, return_responses=True)
        for route in reply.routes:
            if route.executor != 'gateway':
                nanoseconds = route.end_time.ToNanoseconds() - route.start_time.ToNanoseconds()
                found.setdefault(route.executor, []).append(nanoseconds / 1e9)
    return found


def _by_http(web: http.client.HTTPConnection, body: dict[str, Any]) -> None:
    web.request('POST', '/v1/search', json.dumps(body), {'Content-Type': 'application/json'})
    reply = web.getresponse()
    assert reply.status == 200, reply.read()
    json.loads(reply.read())


OURS = {
    'clipflow, torch float32': {'RUNTIME': 'torch', 'PRECISION': 'float32', 'TEXT_CACHE': '0'},
    'clipflow, auto': {'TEXT_CACHE': '0'},
}
"""Texts come again in these measurements; a cache would answer them without the model."""


def peer(given: argparse.Namespace) -> None:
    """The peer's own measurements on both, with the same weights."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in ('clip-as-service', *OURS)}
    for _ in range(given.rounds):
        port = free_port()
        command = [given.peer_python, str(given.peer / 'serve.py'), '--port', str(port)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        for line in process.stdout:
            if 'grpc://' in line:
                break
        results['clip-as-service'].append(_bench(given, port))
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        for name, settings in OURS.items():
            with (
                tempfile.TemporaryDirectory() as folder,
                LocalService(Path(folder), {'MODEL': str(given.model), **settings}) as service,
            ):
                results[name].append(_bench(given, int(service.grpc.rpartition(':')[2])))
    rows = (
        ('photographs/s, batches of 16', 'a_photos', 'per_second', False),
        ('texts/s, batches of 32', 'b_texts', 'per_second', False),
        ('one text, p50 ms', 'c_one_text', 'p50_ms', True),
        ('32 texts at once, texts/s', 'd_32_texts_at_once', 'per_second', False),
        ('one photograph, p50 ms', 'e_one_photo', 'p50_ms', True),
    )
    print(
        '\n| ratios: above 1, clipflow is faster | clip-as-service | ' + ' | '.join(f'{n} | ratio' for n in OURS) + ' |'
    )
    print('|---|---|' + '---|---|' * len(OURS))
    for title, part, figure, less_is_better in rows:
        theirs = [run[part][figure] for run in results['clip-as-service']]
        cells = [spread(theirs)]
        for name in OURS:
            ours = [run[part][figure] for run in results[name]]
            ratios = [a / b if less_is_better else b / a for a, b in zip(theirs, ours, strict=True)]
            cells += [spread(ours), spread(ratios, '.2f')]
        print(f'| {title} | ' + ' | '.join(cells) + ' |')


def concurrency(rounds: int, model: str | None) -> None:
    """32 clients that each ask for the embedding of one short text after the other, beside the empty Flow."""
    settings = {'TEXT_CACHE': '0'} | ({'MODEL': model} if model else {})
    ours, nothing = [], []
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        service = opened.enter_context(LocalService(folder / 'workspace', settings))
        empty = opened.enter_context(LocalService(folder / 'none', flow=_noop_flow(folder)))
        for _ in range(rounds):
            nothing.append(asyncio.run(_at_once(empty.grpc)))
            ours.append(asyncio.run(_at_once(service.grpc)))
    print('\n| 32 clients at once, one text each, requests per second | median (range) |\n|---|---|')
    print(f'| clipflow | {spread(ours)} |')
    print(f'| empty Flow | {spread(nothing)} |')
    print(f'| clipflow / empty Flow | {spread([a / b for a, b in zip(ours, nothing, strict=True)], ".2f")} |')


async def _at_once(address: str, clients: int = 32, calls: int = 640) -> float:
    """Requests per second through Jina's own asyncio client."""
    from jina import Client as JinaClient

    jina = JinaClient(host=f'grpc://{address}', asyncio=True)
    numbers = iter(range(calls))

    async def one() -> None:
        for number in numbers:
            async for _ in jina.post('/encode', Document(text=f'a photo of dog number {number}')):
                pass

    await asyncio.gather(*(one() for _ in range(4)))
    numbers = iter(range(calls))
    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return calls / (time.perf_counter() - begun)


def _bench(given: argparse.Namespace, port: int) -> dict[str, Any]:
    command = [given.peer_python, str(given.peer / 'bench.py'), '--port', str(port)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return found


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared' / 'data')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--only', default='throughput,latency', help='throughput, latency, concurrency, peer')
    parser.add_argument('--peer-python', help='Python of the environment with clip-server')
    parser.add_argument('--peer', type=Path, help='folder with serve.py and bench.py')
    parser.add_argument('--model', type=Path, help="the peer's weights in the Hugging Face format")
    given = parser.parse_args()
    archive = given.data / 'unsplash' / 'photos.zip'
    parts = given.only.split(',')
    if 'throughput' in parts:
        throughput(archive, given.rounds)
    if 'latency' in parts:
        latency(archive, given.rounds, str(given.model) if given.model else None)
    if 'concurrency' in parts:
        concurrency(given.rounds, str(given.model) if given.model else None)
    if 'peer' in parts:
        peer(given)


if __name__ == '__main__':
    main()
