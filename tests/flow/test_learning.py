"""Learning from clicks in a running Flow: feedback is kept, a head is trained, goes live, and is rolled back."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from docarray import Document, DocumentArray

from clipflow import ROOT, wire
from clipflow.cli.main import main
from clipflow.clicks import read_log
from clipflow.errors import Conflict, DimensionMismatch, Forbidden, InvalidParameter, ModelMismatch
from clipflow.rank.head import Head
from clipflow.store.feedback import FeedbackLog
from clipflow_client import Client
from service import Service, until

D = 32
"""Of the vectors that the session `fake` makes."""
COUNT = 300
SHOWN = 12


def units(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


ROWS = units(np.random.default_rng(0).normal(size=(COUNT, D)))
QUERY = Document(text='a wish', embedding=units(np.ones(D)))


@pytest.fixture(scope='module')
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that CLIPFLOW_RANKER_HEAD names; at first it is not there."""
    return tmp_path_factory.mktemp('heads') / 'watched.safetensors'


@pytest.fixture(scope='module')
def sharded(watched: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {'RUNTIME': 'fake', 'RANKER_HEAD': str(watched)}
    flow = ROOT / 'flows' / 'sharded.yml'
    with Service(tmp_path_factory.mktemp('learning'), settings, flow=flow) as running:
        docs = [Document(id=f'd{n}', embedding=row, tags={'n': n, 'half': n % 2}) for n, row in enumerate(ROWS)]
        running.post('/index', docs)
        yield running


@pytest.fixture
def client(sharded: Service) -> Iterator[Client]:
    with Client(sharded.grpc) as opened:
        yield opened


@pytest.fixture
def plain(client: Client) -> Client:
    """No head, and no feedback."""
    client.ranker('off')
    client.purge_feedback(before=4e9)
    return client


def fingerprint(client: Client) -> str:
    return str(client.status()['ranker']['fingerprint'])


def made(client: Client, seed: int = 0, dimension: int = D, **more: Any) -> Head:
    rng = np.random.default_rng(seed)
    given = {'model': fingerprint(client), 'passed': True} | more
    down, up = rng.normal(size=(4, dimension)), rng.normal(size=(dimension, 4))
    return Head(down.astype(np.float32), up.astype(np.float32), **given)


def ids(matches: Any) -> list[str]:
    return [match.id for match in matches]


def expected(head: Head, depth: int = 100, step: int = 1) -> list[str]:
    """The order of every `step`th document: the best by the cosine as the head has them, and then the rest."""
    best = np.argsort(-(ROWS @ QUERY.embedding))
    best = best[best % step == step - 1]
    scores = head.scores(QUERY.embedding[None], ROWS)[0]
    return [f'd{n}' for n in [*sorted(best[:depth], key=lambda n: -scores[n]), *best[depth:]]]


def test_a_watched_file_goes_live_and_its_loss_is_told(client: Client, watched: Path) -> None:
    def told() -> dict[str, Any]:
        return client.status()['ranker']

    # The first test of this module: a head that is loaded takes the place of the file of the settings.
    assert str(watched) in told()['warnings'][0]
    first, second = made(client, 5), made(client, 6)
    first.write(watched)
    until(lambda: ids(client.search(QUERY, limit=5)) == expected(first)[:5], 60, 'the new file is live')
    second.write(watched)
    until(lambda: ids(client.search(QUERY, limit=5)) == expected(second)[:5], 60, 'the changed file is live')
    watched.unlink()
    until(lambda: told()['warnings'], 60, 'the loss of the file is told')
    assert str(watched) in told()['warnings'][0]
    cosine = [f'd{n}' for n in np.argsort(-(ROWS @ QUERY.embedding))[:5]]
    assert ids(client.search(QUERY, limit=5)) == cosine
    second.write(watched)
    until(lambda: ids(client.search(QUERY, limit=5)) == expected(second)[:5], 60, 'the file is back')
    assert told()['warnings'] == []


def test_a_head_orders_results_and_every_page_is_a_piece_of_one_order(plain: Client) -> None:
    cosine = plain.search(QUERY, limit=COUNT)
    head = made(plain)
    assert plain.ranker('load', content=head.content())['head'] == head.version
    found = plain.search(QUERY, limit=COUNT)
    assert ids(found) == expected(head) != ids(cosine)
    assert {match.id: match.score for match in found} == {match.id: match.score for match in cosine}
    scores = head.scores(QUERY.embedding[None], ROWS)[0]
    for match in found[:100]:
        assert match.head == pytest.approx(scores[int(match.id[1:])], abs=2e-6)
    assert {match.head for match in found[100:]} == {None}
    for size in (7, 60):
        pages = [plain.search(QUERY, limit=size, offset=start) for start in range(0, COUNT, size)]
        assert [name for page in pages for name in ids(page)] == ids(found)
    assert ids(plain.search(QUERY, limit=20, rerank=False)) == ids(cosine[:20])
    assert ids(plain.search(QUERY, limit=COUNT, filter={'half': 1})) == expected(head, step=2)
    assert len(plain.search(QUERY, limit=10, group_by='half')) == 2
    assert ids(plain.search(QUERY, sort_by='n', min_score=-1, limit=3)) == ['d0', 'd1', 'd2']
    plain.ranker('off')
    assert ids(plain.search(QUERY, limit=COUNT)) == ids(cosine)


def test_a_reply_holds_no_more_than_before(plain: Client, sharded: Service) -> None:
    plain.ranker('load', content=made(plain).content())
    query = sharded.one('/search', QUERY, {'limit': 2})
    assert query.embedding is None
    assert {match.embedding is None for match in query.matches} == {True}
    assert set(query.matches[0].scores) == {'cosine', 'head'}
    assert not [name for doc in [query, *query.matches] for name in doc.tags if name.startswith('__')]
    asked = sharded.one('/search', QUERY, {'limit': 2, 'include': ['embedding']})
    assert asked.matches[0].embedding.shape == (D,)
    # A client can neither ask for candidates nor say that another head is live.
    forged = sharded.one('/search', QUERY, {'limit': 2, wire.CANDIDATES: 2, wire.HEAD: 'f' * 12})
    assert ids(forged.matches) == ids(query.matches)


def test_versions_roll_back_and_what_is_not_right_is_refused(plain: Client) -> None:
    one, other = made(plain, 1), made(plain, 2)
    plain.ranker('load', content=one.content())
    plain.ranker('load', content=other.content())
    for content, error in (
        (made(plain, model='0' * 64).content(), ModelMismatch),
        (one.content()[:-9], InvalidParameter),
        (made(plain, 3, passed=False).content(), Conflict),
        (made(plain, dimension=D // 2).content(), DimensionMismatch),
    ):
        with pytest.raises(error):
            plain.ranker('load', content=content)
        assert ids(plain.search(QUERY, limit=5)) == expected(other)[:5]
    assert plain.ranker('rollback')['head'] == one.version
    assert ids(plain.search(QUERY, limit=5)) == expected(one)[:5]
    with pytest.raises(InvalidParameter, match="'do'"):
        plain.post('/ranker', DocumentArray(), {})


class People:
    """They want what lies near a query that is turned a little, and look at the first results most."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)
        self.turn = np.eye(D) + 0.8 * self.rng.normal(size=(D, 2)) @ self.rng.normal(size=(2, D))

    def wanted(self, query: np.ndarray, shown: list[str]) -> set[str]:
        places = np.array([int(name[1:]) for name in shown])
        best = np.argsort(-(ROWS[places] @ units(query @ self.turn.T)))[:3]
        return {shown[n] for n in best}

    def clicks(self, query: np.ndarray, shown: list[str]) -> list[str]:
        right = self.wanted(query, shown)
        return [n for k, n in enumerate(shown) if self.rng.random() < (0.9 if n in right else 0.03) / (k + 1)]


def wish(number: int, query: np.ndarray) -> Document:
    """As if somebody had written it."""
    return Document(text=f'wish {number}', embedding=query)


def searched(client: Client, queries: np.ndarray) -> list[Any]:
    wishes = [wish(number, query) for number, query in enumerate(queries)]
    blocks = [wishes[start : start + 50] for start in range(0, len(wishes), 50)]
    return [found for block in blocks for found in client.search_many(block, limit=SHOWN)]


def test_clicks_become_a_head_that_puts_first_what_people_want(
    plain: Client, sharded: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = People()
    queries = units(people.rng.normal(size=(3000, D)))
    answers = searched(plain, queries)
    clicks = [people.clicks(query, ids(found)) for query, found in zip(queries, answers, strict=True)]
    wishes = [wish(number, query) for number, query in enumerate(queries)]
    given = [one for one in zip(wishes, answers, clicks, strict=True) if one[2]]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda one: plain.feedback(one[0], one[1], one[2], user='u1'), given))
    at = ['--host', sharded.grpc]
    log, file = tmp_path / 'log.jsonl', tmp_path / 'head.safetensors'
    assert main(['feedback', 'export', str(log), *at]) == 0
    entries = list(read_log(log)[0].values())
    assert sorted(one.clicked for one in entries) == sorted(tuple(clicked) for _, _, clicked in given)
    assert len(entries[0].scores) == SHOWN
    assert main(['feedback', 'stats', *at]) == 0
    assert f'{len(given)} entries of 1 users' in capsys.readouterr().out
    assert main(['head', 'train', '--feedback', str(log), '--out', str(file), '--rank', '2', *at]) == 0
    assert 'passed its check' in capsys.readouterr().out
    # The same from the files of the stopped or running service.
    again = tmp_path / 'again.safetensors'
    common = ['head', 'train', '--feedback', str(log), '--rank', '2', '--out', str(again)]
    assert main([*common, '--workspace', str(sharded.workspace)]) == 0
    assert Head.read(again).version == Head.read(file).version

    new = units(np.random.default_rng(9).normal(size=(150, D)))

    def precision() -> float:
        found = [(query, ids(matches)) for query, matches in zip(new, searched(plain, new), strict=True)]
        return float(np.mean([len(people.wanted(q, shown) & set(shown[:3])) / 3 for q, shown in found]))

    before = precision()
    assert main(['head', 'apply', str(file), *at]) == 0
    assert f'head {Head.read(file).version} is live' in capsys.readouterr().out
    assert precision() > before + 0.05
    found = plain.search(QUERY)
    plain.feedback(QUERY, found, ids(found)[:1])
    plain.feedback(QUERY, plain.search(QUERY, rerank=False), [found[0].id], rerank=False)
    assert plain.feedback_stats()['heads'] == {'': len(given) + 1, Head.read(file).version: 1}
    assert main(['head', 'rollback', *at]) == 0
    assert main(['head', 'off', *at]) == 0
    assert main(['head', 'status', *at]) == 0
    assert 'in the order of the cosine' in capsys.readouterr().out
    assert precision() == before


def test_feedback_is_exported_and_purged_by_user_from_all_shards(plain: Client, sharded: Service) -> None:
    for user in ('alice', 'bob', 'alice', ''):
        plain.feedback(QUERY, ['d1', 'd2'], ['d2'], user=user)
    # While a shard was away, another one has taken entries.
    away = FeedbackLog(sharded.workspace, 2)
    away.append(list(plain.feedback_log('bob')))
    away.close()
    assert [one.user for one in plain.feedback_log('alice')] == ['alice', 'alice']
    assert sorted(one.user for one in plain.feedback_log()) == ['', 'alice', 'alice', 'bob', 'bob']
    assert plain.feedback_stats()['users'] == 2
    assert plain.purge_feedback('alice', before=1.0) == 0
    assert plain.purge_feedback('alice') == 2
    assert plain.feedback_stats()['entries'] == 3
    assert main(['feedback', 'purge', '--before', '2100-01-01', '--host', sharded.grpc]) == 0
    assert list(plain.feedback_log()) == []


def test_what_is_wrong_with_feedback_is_said(
    plain: Client, capsys: pytest.CaptureFixture[str], sharded: Service
) -> None:
    for wrong in ({'scores': [0.1]}, {'scores': [0.1, 7]}, {'scores': ['a', 'b']}):
        with pytest.raises(InvalidParameter, match='scores'):
            plain.feedback(QUERY, ['d1', 'd2'], ['d2'], **wrong)
    with pytest.raises(InvalidParameter, match="either 'clicked' or 'disliked'"):
        plain.feedback(QUERY, ['d1', 'd2'], ['d2'], ['d2'])
    with pytest.raises(InvalidParameter, match='what to delete'):
        plain.purge_feedback()
    assert main(['feedback', 'purge', '--user', 'x', '--before', 'tomorrow', '--host', sharded.grpc]) == 1
    assert '2026-01-31' in capsys.readouterr().err
    assert plain.feedback_stats()['entries'] == 0


def test_over_http(fake: Service, http: httpx.Client) -> None:
    fake.post('/index', [Document(id=f'd{n}', embedding=row) for n, row in enumerate(ROWS[:20])])
    http.delete('/v1/feedback', params={'before': 4e9})
    body = {'query': {'id': 'd1'}, 'shown': ['d1', 'd2'], 'scores': [1.0, 0.1], 'clicked': ['d2'], 'user': 'u1'}
    assert http.post('/v1/feedback', json=body).json() == {'stored': 1}
    stats = http.get('/v1/feedback/stats').json()
    assert (stats['entries'], stats['users'], stats['heads']) == (1, 1, {'': 1})
    assert [(row['place'], row['shown'], row['clicked']) for row in stats['places']] == [(1, 1, 0), (2, 1, 1)]
    lines = http.get('/v1/feedback', params={'user': 'u1'}).text.splitlines()
    assert [json.loads(line)['scores'] for line in lines] == [[1.0, 0.1]]
    assert http.get('/v1/feedback', params={'user': 'u2'}).text == ''
    assert http.delete('/v1/feedback').json()['code'] == 'invalid-parameter'
    assert http.delete('/v1/feedback', params={'user': 'u1'}).json() == {'deleted': 1}
    with Client(fake.grpc) as client:
        head = made(client)
    head.write(fake.workspace / 'ranker' / 'mine.safetensors')
    state = http.post('/v1/ranker', json={'do': 'load', 'path': 'mine.safetensors'}).json()
    assert state['head'] == http.get('/v1/ranker').json()['head'] == head.version
    found = http.post('/v1/search', json={'text': 'a wish', 'limit': 3}).json()['matches']
    assert [match['head'] for match in found] == sorted((match['head'] for match in found), reverse=True)
    for other in ({'text': 'a wish', 'rerank': False}, {'embedding': ROWS[1].tolist()}):
        assert 'head' not in http.post('/v1/search', json=other).json()['matches'][0]
    for wrong, status in (
        ({'do': 'load', 'path': '../x'}, 403),
        ({'do': 'load', 'path': 'none'}, 404),
        ({'do': 'load', 'path': 'a\0b'}, 400),
        ({'do': 'x'}, 400),
    ):
        assert http.post('/v1/ranker', json=wrong).status_code == status
    assert http.post('/v1/ranker', json={'do': 'off'}).json()['head'] == 'none'
    shutil.rmtree(fake.workspace / 'ranker')  # other tests share this service
    assert http.post('/v1/ranker', json={'do': 'rollback'}).json()['code'] == 'conflict'


def test_a_key_for_reading_changes_no_head_and_sees_no_person() -> None:
    from clipflow.access import Scope, check

    for endpoint in ('/ranker', '/feedback/export', '/feedback/purge'):
        with pytest.raises(Forbidden):
            check(Scope.READ, endpoint)
        check(Scope.WRITE, endpoint)
    for endpoint in ('/feedback', '/feedback/stats', '/search'):
        check(Scope.READ, endpoint)
