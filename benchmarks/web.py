"""HTTP: queries from 32 clients at once, one client beside gRPC, clip-retrieval's `back`, and the gateway's memory.

    python benchmarks/web.py [--only crowd,one,memory] [--rounds 5] [--size 100000]
    python benchmarks/web.py --only peer --peer-python DIR/bin/python --peer DIR --model DIR

Vectors and queries are those of vectors.py; the client is a process of its own on the same machine. The peer part needs
an environment with clip-retrieval, a folder with its serve.py and bench.py, and the same weights converted by
convert_openai.py; both serve as many random vectors of 512 dimensions.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import vectors
from docarray import Document

from clipflow.index.choice import MOST_FLAT
from clipflow_client import Client
from setups import LocalService, free_port, quantiles, spread

CLIENTS = 32
CALLS = 1500
SINGLE = 200


async def _crowd(port: int, queries: list[str], clients: int) -> list[float]:
    """Seconds of each query, sent by so many clients on kept connections."""
    waiting = iter(queries)
    seconds = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection('127.0.0.1', port)
        for text in waiting:
            body = json.dumps({'text': text, 'limit': 10}).encode()
            head = (
                f'POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}'
            )
            begun = time.perf_counter()
            writer.write(head.encode() + b'\r\n\r\n' + body)
            answer = await reader.readuntil(b'\r\n\r\n')
            length = next(line for line in answer.lower().split(b'\r\n') if line.startswith(b'content-length'))
            await reader.readexactly(int(length.split(b':')[1]))
            seconds.append(time.perf_counter() - begun)
            if not answer.startswith(b'HTTP/1.1 200'):
                raise RuntimeError(answer.decode())
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return seconds


def crowd(port: int, queries: list[str], clients: int = CLIENTS) -> dict[str, float]:
    """Queries a second, and quantiles in milliseconds; in a process of its own."""
    command = [sys.executable, __file__, '--crowd', str(port), str(clients)]
    told = subprocess.run(command, input=json.dumps(queries), capture_output=True, text=True, check=False)
    if told.returncode:
        raise RuntimeError(told.stderr[-2000:])
    found: dict[str, float] = json.loads(told.stdout)
    return found


def fill(service: LocalService, rows: Any, kind: str) -> None:
    """Store ready vectors, and wait for the index of this kind."""
    with Client(service.grpc) as client:
        items = (Document(id=f'v{n}', embedding=row) for n, row in enumerate(rows))
        for outcome in client.index_iter(items):
            if outcome.error is not None:
                raise outcome.error
        # The kind for so many is built in the background.
        grows = kind == 'auto' and len(rows) > MOST_FLAT
        while 'task' in (told := client.status()['indexer']) or (grows and told['kind'] == 'flat'):
            time.sleep(1)


def captions(count: int, seed: int) -> list[str]:
    """Real captions, each once."""
    lines = (vectors.DATA / 'flickr8k' / 'captions.jsonl').read_text().splitlines()
    sentences = sorted({sentence for line in lines for sentence in json.loads(line)['captions']})
    return [sentences[n] for n in np.random.default_rng(seed).permutation(len(sentences))[:count]]


def many(service: LocalService, rounds: int) -> None:
    """Captions that nobody has asked before, and the same ones again, which the encoder remembers."""
    port = int(service.http.rpartition(':')[2])
    crowd(port, captions(200, 99))
    new, again = [], []
    for number in range(rounds):
        queries = captions(CALLS, number)
        new.append(crowd(port, queries)['rate'])
        again.append(crowd(port, queries[:500] * 3)['rate'])
    print(f'32 clients, captions: {spread(new)} a second; asked before: {spread(again)} a second')


def single(service: LocalService, rounds: int) -> None:
    """p50 of one query by HTTP and by our gRPC client, in turns."""
    ratios, by_http, by_grpc = [], [], []
    with Client(service.grpc) as client, httpx.Client(base_url=service.http, trust_env=False) as plain:
        for number in range(rounds):
            texts = captions(2 * SINGLE, 1000 + number)
            one, other = [], []
            for here, there in zip(texts[::2], texts[1::2], strict=True):
                begun = time.perf_counter()
                plain.post('/v1/search', json={'text': here, 'limit': 10}).json()
                middle = time.perf_counter()
                client.search(there, limit=10)
                one.append(middle - begun)
                other.append(time.perf_counter() - middle)
            by_http.append(quantiles(one)[0])
            by_grpc.append(quantiles(other)[0])
            ratios.append(by_http[-1] / by_grpc[-1])
    print(f'one query: HTTP {spread(by_http)} ms, gRPC {spread(by_grpc)} ms, ratio {spread(ratios)}')


def memory(service: LocalService) -> None:
    """Resident memory of the gateway's process after each thousand requests."""
    port, found = int(service.http.rpartition(':')[2]), []
    for number in range(21):
        crowd(port, (captions(500, number) * 2)[:1000])
        status = Path(f'/proc/{service.pids["gateway"]}/status').read_text()
        found.append(int(next(line.split()[1] for line in status.splitlines() if line.startswith('VmRSS'))) / 1024)
    shown = ', '.join(f'{megabytes:.0f}' for megabytes in found[::5])
    print(f'gateway after 1,000, 6,000, 11,000, 16,000 and 21,000 requests: {shown} MB')


def peer(given: argparse.Namespace, kind: dict[str, str]) -> None:
    """clip-retrieval's own benchmark against it and against us, in turns."""
    rows = np.random.default_rng(0).standard_normal((given.size, 512), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        service = running.enter_context(
            LocalService(Path(folder), {'MODEL': str(given.model), 'TEXT_CACHE': '0', **kind})
        )
        fill(service, rows, given.kind)
        port = free_port()
        command = [given.peer_python, given.peer / 'serve.py', '--port', str(port), '--size', str(given.size)]
        log = Path(folder) / 'back.log'
        with log.open('w') as file:
            back = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file)
        running.callback(back.wait)
        running.callback(back.terminate)
        while 'Running on' not in log.read_text():
            if back.poll() is not None:
                raise RuntimeError(log.read_text()[-2000:])
            time.sleep(0.5)
        places = {'clip-retrieval': f'http://127.0.0.1:{port}', 'clipflow': service.http}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in places}
        for _ in range(given.rounds):
            for name, place in places.items():
                bench = [sys.executable, str(given.peer / 'bench.py'), '--url', f'{place}/knn-service', '--name', name]
                told = subprocess.run(bench, capture_output=True, text=True, check=True)
                found[name].append(json.loads(told.stdout.splitlines()[-1]))
        for name, runs in found.items():
            rates = [run['thirty_two_at_once']['per_second'] for run in runs]
            ones = [run['one']['p50_ms'] for run in runs]
            print(f'{name}: {spread(rates)} a second from 32 threads, one query {spread(ones)} ms')
        pairs = list(zip(found['clipflow'], found['clip-retrieval'], strict=True))
        many_ = [a['thirty_two_at_once']['per_second'] / b['thirty_two_at_once']['per_second'] for a, b in pairs]
        one = [b['one']['p50_ms'] / a['one']['p50_ms'] for a, b in pairs]
        print(f'clipflow is {spread(many_)} times as fast from 32 threads, {spread(one)} times for one query')


def main() -> None:
    """Run the parts that are asked for."""
    if sys.argv[1:2] == ['--crowd']:
        queries = json.load(sys.stdin)
        begun = time.perf_counter()
        seconds = asyncio.run(_crowd(int(sys.argv[2]), queries, int(sys.argv[3])))
        rate, (p50, p95) = len(seconds) / (time.perf_counter() - begun), quantiles(seconds)
        print(json.dumps({'rate': rate, 'p50': p50, 'p95': p95}))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default='crowd,one,memory')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--kind', default='auto', help='of index')
    parser.add_argument('--size', type=int, default=100_000)
    parser.add_argument('--peer-python', type=Path)
    parser.add_argument('--peer', type=Path)
    parser.add_argument('--model', type=Path)
    given = parser.parse_args()
    parts, kind = given.only.split(','), {'INDEX_KIND': given.kind}
    if 'peer' in parts:
        peer(given, kind)
    if {'crowd', 'one', 'memory'} & set(parts):
        with tempfile.TemporaryDirectory() as folder, LocalService(Path(folder), kind) as service:
            fill(service, vectors.made(given.size, vectors.real()[0]), given.kind)
            if 'crowd' in parts:
                many(service, given.rounds)
            if 'one' in parts:
                single(service, given.rounds)
            if 'memory' in parts:
                memory(service)


if __name__ == '__main__':
    main()
