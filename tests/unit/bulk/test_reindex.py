"""A collection under another model: from texts, files and thumbnails, resumed, following what is written meanwhile."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docarray import Document
from PIL import Image

from clipflow import ROOT
from clipflow.bulk import workspace
from clipflow.bulk.encoding import LocalEncoder
from clipflow.bulk.reindex import Reindexing
from clipflow.cli.main import main
from clipflow.errors import Conflict
from clipflow.store import generations
from clipflow.store.reading import Documents, Record
from clipflow.store.sqlite import Store
from clipflow.weights import load_spec

OLD = np.eye(4, dtype=np.float32)[0]


def webp(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new('RGB', (64, 48), colour).save(out, 'WEBP')
    return out.getvalue()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'fake')
    return tmp_path / 'workspace'


@pytest.fixture
def old(place: Path) -> Iterator[list[Store]]:
    class Spec:
        fingerprint, name = 'before', 'the model before'

    with workspace.opened(generations.current(place), Spec(), 2) as stores:  # type: ignore[arg-type]
        yield stores


@pytest.fixture
def encoder(place: Path) -> Iterator[LocalEncoder]:
    with LocalEncoder(load_spec(str(ROOT / 'models' / 'clip-mini'))) as found:
        yield found


@pytest.fixture
def new(place: Path) -> Iterator[list[Store]]:
    spec = load_spec(str(ROOT / 'models' / 'clip-mini'))
    with workspace.being_made(generations.named(place, spec.fingerprint), spec, 2) as stores:
        yield stores


def readers(stores: list[Store]) -> list[Documents]:
    """What another process would see of them."""
    return [Documents(store.directory) for store in stores]


def ids(stores: list[Store]) -> set[str]:
    return set().union(*(store.ids() for store in stores))


def test_texts_files_and_thumbnails_are_embedded_again_and_nothing_else_is_changed(
    old: list[Store], new: list[Store], encoder: LocalEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / 'files' / 'red.webp'
    picture.parent.mkdir()
    picture.write_bytes(webp('red'))
    records = [
        Record('text', 'a photo', '', '{"price": 3}', OLD),
        Record('file', '', picture.as_uri(), '{}', OLD, webp('blue')),
        Record('thumbnail', '', 'file:///gone.jpg', '{}', OLD, webp('green')),
        Record('nothing', '', '', '{}', OLD),
    ]
    workspace.put(old, records)
    monkeypatch.setenv('CLIPFLOW_FILE_ROOTS', str(picture.parent))
    spec = load_spec(str(ROOT / 'models' / 'clip-mini'))
    with LocalEncoder(spec) as reading:
        work = Reindexing(readers(old), new, reading)
        told: list[int] = []
        assert work.follow(told.append) == sum(told) == 4
        assert work.finish() == ['nothing']
        assert (len(ids(new)), work.tally.from_thumbnails) == (3, 1)
        assert 'no content' in work.tally.reasons['nothing']

        # The expected vectors: the same contents, given to the encoder by hand.
        docs = [Document(text='a photo'), Document(blob=webp('red')), Document(blob=webp('green'))]
        reading.encode(docs)
    for record, doc in zip(records, docs, strict=False):
        (found,) = [
            s.by_ids([record.id], thumbnails=True, vectors=True)[record.id] for s in new if record.id in s.ids()
        ]
        np.testing.assert_allclose(found.vector, doc.embedding, atol=1e-6)
        assert (found.text, found.uri, found.tags, found.thumbnail) == (
            record.text,
            record.uri,
            record.tags,
            record.thumbnail,
        )


def test_of_a_text_and_a_uri_that_is_embedded_which_the_vector_is_of(
    old: list[Store], new: list[Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / 'red.webp'
    picture.write_bytes(webp('red'))
    monkeypatch.setenv('CLIPFLOW_FILE_ROOTS', str(tmp_path))
    workspace.put(
        old,
        [
            Record('either', 'a caption', picture.as_uri(), '{}', OLD),
            Record('shown', 'a caption', picture.as_uri(), '{}', OLD, webp('blue')),
            Record('text', 'a caption', '', '{}', OLD),
        ],
    )
    docs = [Document(text='a caption'), Document(blob=webp('red'))]
    with LocalEncoder(load_spec(str(ROOT / 'models' / 'clip-mini'))) as reading:
        reading.encode(docs)
        for prefer, expected in (('', None), ('text', docs[0]), ('picture', docs[1])):
            work = Reindexing(readers(old), new, reading, prefer)
            work.follow(lambda count: None)
            found = {r.id: r for store in new for r in store.by_ids(sorted(store.ids()), vectors=True).values()}
            np.testing.assert_allclose(found['shown'].vector, docs[1].embedding, atol=1e-6)
            np.testing.assert_allclose(found['text'].vector, docs[0].embedding, atol=1e-6)
            if expected is None:
                assert work.finish() == ['either']
                assert '--prefer' in work.tally.reasons['either']
            else:
                assert work.finish() == []
                np.testing.assert_allclose(found['either'].vector, expected.embedding, atol=1e-6)


def test_the_command_asks_what_vectors_are_of_before_it_begins(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(ROOT / 'models' / 'clip-mini')
    monkeypatch.setenv('CLIPFLOW_WORKSPACE', str(place))
    monkeypatch.setenv('CLIPFLOW_FILE_ROOTS', str(tmp_path))
    picture = tmp_path / 'cat.webp'
    picture.write_bytes(webp('red'))
    store = Store(generations.current(place) / '0', 'before', 'the model before')
    store.upsert([Record('cat', 'a cat', picture.as_uri(), '{}', OLD)])
    store.close()
    assert main(['reindex', model]) == 1
    assert '1 documents have a text and a URI' in capsys.readouterr().err
    assert [path.name for path in place.iterdir()] == ['indexer']
    assert main(['reindex', model, '--prefer', 'picture']) == 0


def test_what_is_written_and_deleted_meanwhile_is_followed(
    old: list[Store], new: list[Store], encoder: LocalEncoder
) -> None:
    workspace.put(old, [Record(f'd{n}', f'text {n}', '', '{}', OLD) for n in range(20)])
    work = Reindexing(readers(old), new, encoder)
    work.follow(lambda count: None)
    workspace.put(old, [Record('d3', 'another text', '', '{"new": 1}', OLD), Record('late', 'late', '', '{}', OLD)])
    for store in old:
        store.delete(['d5'])
    assert work.follow(lambda count: None) == 2
    assert work.finish() == []
    assert ids(new) == ids(old)
    (found,) = [store.by_ids(['d3'])['d3'] for store in new if 'd3' in store.ids()]
    assert (found.text, found.tags) == ('another text', '{"new": 1}')
    # The numbers by which some clients know documents stay.
    for before, after in zip(old, new, strict=True):
        names = sorted(before.ids())
        assert {name: r.key for name, r in before.by_ids(names).items()} == {
            name: r.key for name, r in after.by_ids(names).items()
        }


def test_an_interrupted_run_goes_on_where_it_stopped(
    old: list[Store], new: list[Store], encoder: LocalEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.put(old, [Record(f'd{n}', f'text {n}', '', '{}', OLD) for n in range(3000)])

    class Interrupted(Exception):
        pass

    def stop(count: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        Reindexing(readers(old), new, encoder).follow(stop)
    done = len(ids(new))
    assert 0 < done < 3000
    assert Reindexing(readers(old), new, encoder).follow(lambda count: None) == 3000 - done
    assert ids(new) == ids(old)


def test_what_could_not_be_read_is_tried_again_in_the_next_run(
    old: list[Store], new: list[Store], encoder: LocalEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / 'red.webp'
    picture.write_bytes(webp('red'))
    workspace.put(old, [Record('file', '', picture.as_uri(), '{}', OLD)])
    work = Reindexing(readers(old), new, encoder)
    work.follow(lambda count: None)
    assert work.finish() == ['file']
    monkeypatch.setenv('CLIPFLOW_FILE_ROOTS', str(tmp_path))
    with LocalEncoder(load_spec(str(ROOT / 'models' / 'clip-mini'))) as reading:
        again = Reindexing(readers(old), new, reading)
        again.retry()
        assert again.finish() == []


def test_what_was_taken_from_another_generation_counts_for_nothing(
    old: list[Store], new: list[Store], encoder: LocalEncoder, tmp_path: Path
) -> None:
    workspace.put(old, [Record(f'd{n}', f'text {n}', '', '{}', OLD) for n in range(20)])
    Reindexing(readers(old), new, encoder).follow(lambda count: None)

    class Spec:
        fingerprint, name = 'between', 'the model between'

    # The same ids with other texts, under smaller numbers of changes.
    place = tmp_path / 'workspace'
    with workspace.being_made(generations.named(place, 'between'), Spec(), 2) as between:  # type: ignore[arg-type]
        workspace.put(between, [Record(f'd{n}', f'changed {n}', '', '{}', OLD) for n in range(10)])
        work = Reindexing(readers(between), new, encoder)
        assert work.follow(lambda count: None) == 10
        assert work.finish() == []
        assert ids(new) == ids(between)
    texts = {r.text for store in new for r in store.by_ids(sorted(store.ids())).values()}
    assert texts == {f'changed {n}' for n in range(10)}


def test_keys_stay_those_of_the_source_and_none_is_given_again(
    old: list[Store], new: list[Store], encoder: LocalEncoder
) -> None:
    source, target = old[0], new[0]

    def stored(*names: str) -> None:
        source.upsert([Record(name, f'text {name}', '', '{}', OLD) for name in names])

    stored('a', 'b', 'c')
    work = Reindexing(readers(old), new, encoder)
    work.follow(lambda count: None)
    source.delete(['a'])
    stored('a', 'last')
    source.delete(['last'])
    work.follow(lambda count: None)
    assert work.finish() == []
    for store in (source, target):
        assert {name: found.key for name, found in store.by_ids(['a', 'b', 'c']).items()} == {'a': 4, 'b': 2, 'c': 3}
        assert store.upsert([Record('next', '', '', '{}', store.vectors_of(store.keys())[1][0])]).tolist() == [6]
    # A store that never had a document knows too which keys were given.
    other = old[1]
    other.upsert([Record('x', '', '', '{}', OLD)])
    other.clear()
    work.finish()
    assert (new[1].newest_key(), new[1].count()) == (1, 0)


def test_a_shard_on_a_volume_of_its_own_is_prepared_beside_its_service_and_changed_without_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('CLIPFLOW_WORKSPACE', str(place))
    model = str(ROOT / 'models' / 'clip-mini')
    folder = generations.current(place) / '2'
    service = Store(folder, 'before', 'the model before', (), 3)
    service.upsert([Record(f'd{n}', f'text {n}', '', '{}', OLD) for n in range(5)])
    assert main(['reindex', model, '--prepare']) == 0
    assert main(['reindex', model, '--prepare']) == 0  # again, with nothing left to do
    assert generations.current(place) == folder.parent
    service.upsert([Record('late', 'late', '', '{}', OLD)])
    service.delete(['d0'])
    assert main(['reindex', model]) == 1
    assert 'stop it' in capsys.readouterr().err
    assert generations.current(place) == folder.parent

    service.close()
    assert main(['reindex', model]) == 0
    spec = load_spec(model)
    changed = Store(generations.current(place) / '2', spec.fingerprint, spec.name, (), 3)
    assert changed.ids() == {'d1', 'd2', 'd3', 'd4', 'late'}
    assert changed.dimension() == 32
    changed.close()


def test_what_cannot_be_embedded_is_said_while_it_is_prepared(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('CLIPFLOW_WORKSPACE', str(place))
    service = Store(generations.current(place) / '0', 'before', 'the model before')
    service.upsert([Record('good', 'text', '', '{}', OLD), Record('bare', '', '', '{}', OLD)])
    assert main(['reindex', str(ROOT / 'models' / 'clip-mini'), '--prepare']) == 1
    said = capsys.readouterr().err
    assert 'bare: ' in said
    assert '1 documents cannot be embedded again' in said
    assert main(['reindex', str(ROOT / 'models' / 'clip-mini'), '--prepare', '--drop-missing']) == 0
    service.close()


# -- the command, and what others do meanwhile -------------------------------------------------------------------------

MODEL = str(ROOT / 'models' / 'clip-mini')


class Before:
    """The model that documents are of."""

    fingerprint, name = 'before', 'the model before'


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with 20 documents in two shards."""
    monkeypatch.setenv('CLIPFLOW_WORKSPACE', str(place))
    with workspace.opened(generations.current(place), Before(), 2) as stores:  # type: ignore[arg-type]
        workspace.put(stores, [Record(f'd{n}', f'text {n}', '', '{}', OLD) for n in range(20)])
    return place


def meanwhile(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Something happens once, after the first documents are embedded."""
    follow, waiting = Reindexing.follow, [action]

    def followed(work: Reindexing, moved: Callable[[int], None]) -> int:
        count = follow(work, moved)
        while waiting:
            waiting.pop()()
        return count

    monkeypatch.setattr(Reindexing, 'follow', followed)


def embedded(home: Path) -> set[str]:
    """The ids that are under the new model."""
    spec, folder = load_spec(MODEL), generations.current(home)
    with workspace.opened(folder, spec, workspace.shards_in(folder)) as stores:
        assert OLD.size not in {store.dimension() for store in stores}
        return ids(stores)


def test_no_other_command_makes_the_documents_anew_meanwhile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []

    def others() -> None:
        with pytest.raises(Conflict, match='another command'):
            workspace.reshard(home, Before(), 3, lambda count: None)  # type: ignore[arg-type]
        refused.append(main(['reindex', MODEL]))

    meanwhile(monkeypatch, others)
    assert main(['reindex', MODEL]) == 0
    assert refused == [1]
    assert embedded(home) == {f'd{n}' for n in range(20)}


def test_shards_that_came_meanwhile_are_not_forgotten(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('CLIPFLOW_WORKSPACE', str(place))
    folder = generations.current(place)

    def stored(number: int) -> None:
        store = Store(folder / str(number), Before.fingerprint, Before.name, (), 2)
        store.upsert([Record(f'd{number}', 'a text', '', '{}', OLD)])
        store.close()

    stored(0)
    meanwhile(monkeypatch, lambda: stored(1))
    assert main(['reindex', MODEL]) == 1
    assert 'other shards' in capsys.readouterr().err
    assert generations.current(place) == folder
    assert main(['reindex', MODEL]) == 0
    assert embedded(place) == {'d0', 'd1'}


@pytest.mark.parametrize('moment', ['switch', 'clear'])
def test_nobody_writes_to_the_documents_before_until_the_new_ones_count(
    home: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    done: Callable[..., None] = getattr(generations, moment)
    folder, tried = generations.current(home), []

    def started() -> None:
        for number in range(2):
            with pytest.raises(Conflict, match='another process'):
                Store(folder / str(number), Before.fingerprint, Before.name, (), 2)
            tried.append(number)

    def wrapped(given: Path, *more: Any, **named: Any) -> None:
        if moment == 'switch' or generations.current(home) != folder:
            started()
        done(given, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(generations, moment, wrapped)
        assert main(['reindex', MODEL]) == 0
    assert tried == [0, 1]
    assert embedded(home) == {f'd{n}' for n in range(20)}


def test_what_was_prepared_for_another_number_of_shards_is_made_anew(home: Path) -> None:
    assert main(['reindex', MODEL, '--prepare']) == 0
    workspace.reshard(home, Before(), 3, lambda count: None)  # type: ignore[arg-type]
    assert main(['reindex', MODEL]) == 0
    assert workspace.shards_in(generations.current(home)) == 3
    assert embedded(home) == {f'd{n}' for n in range(20)}
    assert [path for path in home.iterdir() if path.is_dir()] == [generations.current(home)]


def test_the_directory_of_a_model_that_was_left_is_not_filled_over_what_counts(home: Path) -> None:
    assert main(['reindex', MODEL]) == 0
    spec, folder = load_spec(MODEL), generations.current(home)
    with workspace.opened(folder, spec, 2) as stores:
        for store in stores:
            store.clear()
    with workspace.opened(folder, Before(), 2) as stores:  # type: ignore[arg-type]
        workspace.put(stores, [Record(f'e{n}', f'text {n}', '', '{}', OLD) for n in range(20)])
    assert main(['reindex', MODEL]) == 0
    assert embedded(home) == {f'e{n}' for n in range(20)}


def test_a_kill_after_the_switch_leaves_nothing_for_ever(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = generations.current(home)

    def killed(path: Path, **_: Any) -> None:
        if path == folder:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, 'rmtree', killed)
        assert main(['reindex', MODEL]) == 130
    assert generations.current(home) != folder
    assert folder.exists()
    assert main(['reindex', MODEL]) == 1  # they are under that model already
    assert embedded(home) == {f'd{n}' for n in range(20)}
    assert [path for path in home.iterdir() if path.is_dir()] == [generations.current(home)]
