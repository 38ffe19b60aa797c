"""Items become files of clip-retrieval's layout: the same for every form of the input, and whole or not there."""

import errno
import gc
import hashlib
import json
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from clipflow import ROOT
from clipflow.bulk import exchange
from clipflow.bulk.embed import plan as plans
from clipflow.bulk.embed import runner, worker, writer
from clipflow.bulk.embed.decoding import Row
from clipflow.bulk.embed.items import Fault
from clipflow.bulk.embed.mapper import NO_CAPTION, Mapper
from clipflow.bulk.embed.plan import Plan
from clipflow.bulk.embed.readers import open_input
from clipflow.bulk.embed.runner import Rank
from clipflow.bulk.embed.tables import Columns
from clipflow.bulk.embed.worker import Job
from clipflow.cli import embed as cli_embed
from clipflow.cli import main
from clipflow.errors import (
    ClipflowError,
    Conflict,
    InvalidParameter,
    ModelMismatch,
    NotFound,
    ReadOnly,
    StorageFull,
)
from clipflow.settings import EncoderSettings, PreprocessorSettings
from clipflow.weights import load_spec
from forms import long
from unit.bulk import embed_inputs as inputs
from unit.bulk.embed_inputs import COUNT, caption, jpeg, name

SPEC = load_spec(str(ROOT / 'models' / 'clip-mini'))
ENCODING = EncoderSettings(runtime='fake', batch_size=4)


@pytest.fixture(scope='module')
def mapper() -> Iterator[Mapper]:
    with Mapper(SPEC, ENCODING, PreprocessorSettings()) as opened:
        yield opened


def begun(pattern: str, out: Path, size: int = 5, **changes: Any) -> Job:
    """The job of an output folder, with its plan."""
    reader = open_input(pattern, Columns())
    keep = changes.pop('keep', False)
    given: dict[str, Any] = {'fingerprint': SPEC.fingerprint, 'partition_size': size, 'texts': True} | changes
    wanted = Plan(pattern, reader.digest(), **given)
    return Job(out, plans.planned(out, wanted, reader, keep=keep), reader, ENCODING, PreprocessorSettings())


def embed(mapper: Mapper, pattern: str, out: Path, size: int = 5) -> dict[str, Any]:
    """All that a run does, in this process; returns the manifest."""
    job = begun(pattern, out, size)
    writer.agree(out, mapper.encoder.description)
    for number in writer.unfinished(out, job.plan):
        worker.embed(job, mapper, number, lambda items, failed: None)
    assert writer.unfinished(out, job.plan) == []
    return writer.finish(out, job.plan, 'clip-mini')


def vectors(out: Path, tower: str = 'img_emb') -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(out.glob(f'{tower}/{tower}_*.npy'))])


def rows(out: Path) -> list[dict[str, Any]]:
    tables = [pyarrow.parquet.read_table(path) for path in sorted(out.glob('metadata/metadata_*.parquet'))]
    return [row for table in tables for row in table.to_pylist()]


def failed(out: Path) -> list[dict[str, Any]]:
    return list(pyarrow.parquet.read_table(out / 'failures.parquet').to_pylist())


def contents(out: Path) -> dict[str, str]:
    """Digests of the results, without what tells the time."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob('*'))
        if path.is_file() and path.parent.name not in ('stats', 'plan')
    }


def test_a_folder_a_zip_file_shards_and_tables_give_the_same_vectors(mapper: Mapper, tmp_path: Path) -> None:
    files = inputs.files()
    patterns = [
        str(inputs.folder(tmp_path / 'folder', files)),
        str(inputs.zipped(tmp_path / 'pictures.zip', files)),
        inputs.shards(tmp_path / 'shards', files),
        str(inputs.parquet(tmp_path / 'table.parquet')),
        str(inputs.dataset(tmp_path / 'dataset')),
    ]
    outs = [tmp_path / f'out{number}' for number in range(len(patterns))]
    for pattern, out in zip(patterns, outs, strict=True):
        assert embed(mapper, pattern, out)['sample_count'] == COUNT
    for tower in ('img_emb', 'text_emb'):
        assert len(np.unique(vectors(outs[0], tower), axis=0)) == COUNT
        for number in range(5):
            files_of = [out / tower / f'{tower}_{number}.npy' for out in outs]
            assert len({path.read_bytes() for path in files_of}) == 1
    assert [row['caption'] for row in rows(outs[4])] == [caption(n) for n in range(COUNT)]


def test_the_layout_is_that_of_clip_retrieval(mapper: Mapper, tmp_path: Path) -> None:
    manifest = embed(mapper, str(inputs.zipped(tmp_path / 'x.zip', inputs.files())), tmp_path / 'out', size=2)
    numbers = [f'{n:02d}' for n in range(12)]
    for folder, suffix in (('img_emb', 'npy'), ('text_emb', 'npy'), ('metadata', 'parquet'), ('failures', 'parquet')):
        found = sorted(path.name for path in (tmp_path / 'out' / folder).iterdir())
        assert found == [f'{folder}_{number}.{suffix}' for number in numbers]
    assert sorted(path.stem for path in (tmp_path / 'out' / 'stats').iterdir()) == numbers
    for tower in ('img_emb', 'text_emb'):
        found = vectors(tmp_path / 'out', tower)
        assert (found.dtype, found.shape) == (np.float16, (COUNT, mapper.encoder.dimension))
        assert np.abs(np.linalg.norm(found.astype(np.float64), axis=1) - 1).max() < 1e-3
    assert rows(tmp_path / 'out')[7] == {
        'image_path': '007.jpg',
        'caption': caption(7),
        'n': 7,
        'deep.ä': 'x',
        'deep.list': [1, 2],
    }
    assert manifest == json.loads((tmp_path / 'out' / 'manifest.json').read_text())
    assert (manifest['fingerprint'], manifest['runtime']) == (SPEC.fingerprint, 'fake')
    assert (manifest['partitions'], manifest['sample_count'], manifest['failures']) == (12, COUNT, 0)


def test_a_vector_belongs_to_its_row(mapper: Mapper, tmp_path: Path) -> None:
    embed(mapper, str(inputs.zipped(tmp_path / 'all.zip', inputs.files() | {'003.jpg': b'damaged'})), tmp_path / 'all')
    embed(
        mapper,
        str(inputs.zipped(tmp_path / 'one.zip', {'x.jpg': jpeg(9), 'x.txt': caption(9).encode()})),
        tmp_path / 'one',
    )
    place = [row['image_path'] for row in rows(tmp_path / 'all')].index('009.jpg')
    for tower in ('img_emb', 'text_emb'):
        close = vectors(tmp_path / 'all', tower).astype(np.float32) @ vectors(tmp_path / 'one', tower)[0]
        assert close.argmax() == place
        assert close[place] > 0.999


def test_load_reads_what_embed_has_written(mapper: Mapper, tmp_path: Path) -> None:
    embed(mapper, str(inputs.zipped(tmp_path / 'x.zip', inputs.files())), tmp_path / 'out')
    records = [record for block in exchange.read(tmp_path / 'out') for record in block]
    assert [(record.id, record.text) for record in records] == [(f'{name(n)}.jpg', caption(n)) for n in range(COUNT)]
    assert json.loads(records[4].tags)['n'] == 4


def test_load_takes_metadata_that_have_a_name_of_ours(mapper: Mapper, tmp_path: Path) -> None:
    given: list[Any] = ['sea, sky', ['sea'], {'sea': 1}, None, '{"sky": 2}']
    files = inputs.files(5) | {f'{name(n)}.json': json.dumps({'tags': tags}).encode() for n, tags in enumerate(given)}
    embed(mapper, str(inputs.zipped(tmp_path / 'x.zip', files)), tmp_path / 'out', size=1)
    found = [json.loads(record.tags) for block in exchange.read(tmp_path / 'out') for record in block]
    assert found == [{'tags': 'sea, sky'}, {'tags': ['sea']}, {'tags.sea': 1}, {}, {'sky': 2}]


def test_what_is_wrong_is_listed_and_the_rest_is_there(mapper: Mapper, tmp_path: Path) -> None:
    files = inputs.files()
    files |= {'002.jpg': jpeg(2)[:300], '005.jpg': b'', '006.jpg': b'no picture', '011.json': b'no object'}
    del files['008.txt']
    files['009.txt'] = b' \n'
    embed(mapper, str(inputs.zipped(tmp_path / 'x.zip', files)), tmp_path / 'out')
    assert [row['image_path'] for row in rows(tmp_path / 'out')] == [
        f'{name(n)}.jpg' for n in range(COUNT) if n not in (2, 5, 6, 11)
    ]
    found = {row['key']: (row['reason'], row['embedded']) for row in failed(tmp_path / 'out')}
    assert list(found) == ['002.jpg', '005.jpg', '006.jpg', '008.jpg', '009.jpg', '011.jpg']
    assert 'damaged' in found['002.jpg'][0]
    assert found['005.jpg'][0] == 'its picture is empty'
    assert 'not a picture' in found['006.jpg'][0]
    assert found['008.jpg'] == found['009.jpg'] == (NO_CAPTION, True)
    assert found['011.jpg'] == ('011.json is not a JSON object', False)
    assert len(vectors(tmp_path / 'out', 'text_emb')) == len(vectors(tmp_path / 'out')) == COUNT - 4


def test_a_partition_of_nothing_but_damage_is_empty_and_keeps_its_place(mapper: Mapper, tmp_path: Path) -> None:
    files = inputs.files(9) | {f'{name(n)}.jpg': b'damaged' for n in (3, 4, 5)}
    manifest = embed(mapper, str(inputs.zipped(tmp_path / 'x.zip', files)), tmp_path / 'out', size=3)
    assert (manifest['sample_count'], manifest['failures']) == (6, 3)
    assert np.load(tmp_path / 'out' / 'img_emb' / 'img_emb_1.npy').shape == (0, mapper.encoder.dimension)
    assert sum(len(block) for block in exchange.read(tmp_path / 'out')) == 6


def test_without_captions_there_are_no_vectors_of_texts(mapper: Mapper, tmp_path: Path) -> None:
    files = {file: content for file, content in inputs.files().items() if file.endswith('.jpg')}
    embed(mapper, str(inputs.zipped(tmp_path / 'x.zip', files)), tmp_path / 'out')
    assert not (tmp_path / 'out' / 'text_emb').exists()
    assert rows(tmp_path / 'out')[0] == {'image_path': '000.jpg'}
    assert failed(tmp_path / 'out') == []


def test_file_names_and_texts_with_letters_that_are_none_are_kept_readable(mapper: Mapper, tmp_path: Path) -> None:
    folder = inputs.folder(tmp_path / 'folder', {'a.jpg': jpeg(0), 'a.txt': b'one', 'b\udcff.jpg': jpeg(1)})
    (folder / 'b\udcff.json').write_text('{"caption": "half \\ud800", "note": "\\ud800"}')
    embed(mapper, str(folder), tmp_path / 'out')
    assert [(Path(row['image_path']).name, row['caption'], row['note']) for row in rows(tmp_path / 'out')] == [
        ('a.jpg', 'one', None),
        ('b\\udcff.jpg', 'half ?', '?'),
    ]


def test_metadata_of_several_kinds_under_one_name_become_json() -> None:
    given = [{'a': 1}, {'a': 'x'}, {'b': {'c': None}}, {'a': [1, 'y'], 'caption': 'own', 'image_path': 'own'}]
    made = [Row(str(n), None, fields) for n, fields in enumerate(given)]
    found = writer.table(writer.metadata(made, texts=False)).to_pylist()
    assert [row['a'] for row in found] == ['1', 'x', None, '[1, "y"]']
    assert {name for row in found for name in row} == {'image_path', 'a', 'b.c'}


ODD = {
    'name': '{"\\ud800": 1, "b\\u0000": 2}',
    'NUL': '{"s": "a\\u0000b", "l": ["\\u0000", "\\ud800"]}',
    'not finite': '{"s": NaN, "l": [Infinity, 1]}',
    'deep objects': '{"a":' * 900 + '1' + '}' * 900,
    'deep lists': '{"a":' + '[' * 900 + ']' * 900 + '}',
    'empty object': '{"regions": [{}], "b": {}}',
    'large number': '{"n": ' + '9' * 400 + '}',
}


@pytest.mark.parametrize('odd', ODD)
def test_metadata_of_any_kind_are_stored_and_read_again(mapper: Mapper, tmp_path: Path, odd: str) -> None:
    files = {'a.jpg': jpeg(0), 'a.json': ODD[odd].encode(), 'b.jpg': jpeg(1), 'b.json': b'{"good": 1}'}
    manifest = embed(mapper, str(inputs.zipped(tmp_path / 'x.zip', files)), tmp_path / 'out')
    assert (manifest['sample_count'], manifest['failures']) == (2, 0)
    assert [row['good'] for row in rows(tmp_path / 'out')] == [None, 1]
    assert [record.id for block in exchange.read(tmp_path / 'out') for record in block] == ['a.jpg', 'b.jpg']


def test_of_several_captions_in_metadata_the_first_counts_and_all_stay(mapper: Mapper, tmp_path: Path) -> None:
    files = {'a.jpg': jpeg(0), 'a.json': b'{"caption": ["one", "two"]}'}
    embed(mapper, str(inputs.zipped(tmp_path / 'x.zip', files)), tmp_path / 'out')
    assert rows(tmp_path / 'out') == [{'image_path': 'a.jpg', 'caption': 'one', 'captions': ['one', 'two']}]


def test_nothing_of_a_table_is_lost_because_of_its_name_or_kind(mapper: Mapper, tmp_path: Path) -> None:
    columns = {
        'image': [{'bytes': jpeg(n), 'path': 'inside.jpg'} for n in range(4)],
        'sentences': [[{'raw': 'a cat'}], [], None, [{'raw': 'a dog'}]],
        'path': [f'{n}' for n in range(4)],
        'metadata': ['of', 'some', 'other', 'program'],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / 'x.parquet')
    embed(mapper, str(tmp_path / 'x.parquet'), tmp_path / 'out')
    assert [(row['sentences'], row['path'], row['metadata']) for row in rows(tmp_path / 'out')] == [
        ([{'raw': 'a cat'}], '0', 'of'),
        ([], '1', 'some'),
        (None, '2', 'other'),
        ([{'raw': 'a dog'}], '3', 'program'),
    ]


def test_of_several_captions_in_a_table_the_first_that_says_anything_counts(mapper: Mapper, tmp_path: Path) -> None:
    columns = {'image': [jpeg(n) for n in range(3)], 'caption': [[None, 'b'], ['', 'c'], [' d ', 'e']]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / 'x.parquet')
    embed(mapper, str(tmp_path / 'x.parquet'), tmp_path / 'out')
    assert [(row['caption'], row['captions']) for row in rows(tmp_path / 'out')] == [
        ('b', [None, 'b']),
        ('c', ['', 'c']),
        ('d', [' d ', 'e']),
    ]


def test_a_caption_of_spaces_is_none_and_an_empty_picture_is_said_to_be_empty(mapper: Mapper, tmp_path: Path) -> None:
    columns = {'path': ['a.jpg', 'b.jpg', 'c.jpg'], 'caption': ['  ', 'b', 'c']}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / 'x.parquet')
    for file, content in (('a.jpg', jpeg(0)), ('b.jpg', jpeg(1)), ('c.jpg', b'')):
        (tmp_path / file).write_bytes(content)
    embed(mapper, str(tmp_path / 'x.parquet'), tmp_path / 'out')
    assert [row['caption'] for row in rows(tmp_path / 'out')] == [None, 'b']
    failed = pyarrow.parquet.read_table(tmp_path / 'out' / 'failures.parquet').to_pylist()
    assert [(row['key'], row['reason']) for row in failed] == [('a.jpg', NO_CAPTION), ('c.jpg', 'its picture is empty')]


def test_pictures_in_other_columns_are_not_carried_along(mapper: Mapper, tmp_path: Path) -> None:
    mask = [{'bytes': jpeg(n), 'path': f'{n}.png'} for n in range(2)]
    columns = {'image': [jpeg(n) for n in range(2)], 'mask': mask, 'caption': [['a', 'b'], ['c', 'd']]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / 'x.parquet')
    embed(mapper, str(tmp_path / 'x.parquet'), tmp_path / 'out')
    assert rows(tmp_path / 'out')[1] == {
        'image_path': 'x.parquet:1',
        'caption': 'c',
        'captions': ['c', 'd'],
        'mask.bytes': None,
        'mask.path': '1.png',
    }


# -- again and again --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('damage', ['gone', 'short', 'no stats', 'left over'])
def test_a_half_written_partition_is_made_again_and_the_others_are_left(
    mapper: Mapper, tmp_path: Path, damage: str
) -> None:
    pattern, out = str(inputs.zipped(tmp_path / 'x.zip', inputs.files())), tmp_path / 'out'
    embed(mapper, pattern, out)
    before, times = contents(out), {path.name: path.stat().st_mtime_ns for path in (out / 'img_emb').iterdir()}
    target = out / 'img_emb' / 'img_emb_2.npy'
    if damage == 'gone':
        target.unlink()
    elif damage == 'short':
        os.truncate(target, 100)
    else:
        (out / 'stats' / '2.json').unlink()
    if damage == 'left over':
        (out / '.partition-2-77').mkdir()
        (out / '.partition-2-77' / 'img_emb').write_bytes(b'half')
        (out / '.plan-88').mkdir()
        (out / '.plan-88' / 'part-0').write_bytes(b'half')
    assert writer.unfinished(out, begun(pattern, out).plan) == [2]
    embed(mapper, pattern, out)
    writer.tidy(out, begun(pattern, out).plan)
    assert contents(out) == before
    changed = [name for name, at in times.items() if (out / 'img_emb' / name).stat().st_mtime_ns != at]
    assert changed == [target.name]


def test_the_order_of_partitions_makes_no_difference(mapper: Mapper, tmp_path: Path) -> None:
    pattern = str(inputs.zipped(tmp_path / 'x.zip', inputs.files()))
    embed(mapper, pattern, tmp_path / 'forth')
    job = begun(pattern, tmp_path / 'back')
    for number in reversed(range(5)):
        worker.embed(job, mapper, number, lambda items, failed: None)
    embed(mapper, pattern, tmp_path / 'back')
    assert contents(tmp_path / 'back').keys() == contents(tmp_path / 'forth').keys()
    for file, digest in contents(tmp_path / 'forth').items():
        assert contents(tmp_path / 'back')[file] == digest, file


@pytest.mark.parametrize(
    ('changes', 'error'),
    [
        ({'fingerprint': 'another'}, ModelMismatch),
        ({'size': 6}, Conflict),
        ({'options': {'--no-text': ''}}, Conflict),
        ({'options': {'--caption-column': 'x'}}, Conflict),
        ({'pattern': 'second.zip'}, Conflict),
    ],
)
def test_a_folder_that_was_begun_otherwise_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[ClipflowError]
) -> None:
    for file in ('first.zip', 'second.zip'):
        inputs.zipped(tmp_path / file, inputs.files(3))
    begun(str(tmp_path / 'first.zip'), tmp_path / 'out')
    with pytest.raises(error, match='another folder'):
        begun(str(tmp_path / changes.pop('pattern', 'first.zip')), tmp_path / 'out', **changes)


def test_a_partition_that_another_process_has_done_meanwhile_counts_throughout(mapper: Mapper, tmp_path: Path) -> None:
    pattern, out = str(inputs.zipped(tmp_path / 'x.zip', inputs.files())), tmp_path / 'out'
    embed(mapper, pattern, out)
    job, before = begun(pattern, out), (out / 'stats' / '2.json').stat().st_mtime_ns
    worker.embed(job, mapper, 2, lambda items, failed: None)
    assert (out / 'stats' / '2.json').stat().st_mtime_ns == before
    (out / 'stats' / '2.json').unlink()
    with pytest.raises(Conflict, match='another process is at partition 2'):
        writer.finish(out, job.plan, 'clip-mini')


def test_folders_without_links_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(1, 'Operation not permitted')

    monkeypatch.setattr(os, 'link', refused)
    said = {'runtime': 'onnx', 'device': 'cpu', 'precision': 'float32'}
    writer.agree(tmp_path, said)
    assert json.loads((tmp_path / 'plan' / 'session.json').read_text()) == said
    assert [path.name for path in (tmp_path / 'plan').iterdir()] == ['session.json']


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    pattern = str(inputs.zipped(tmp_path / 'x.zip', inputs.files(1)))
    (tmp_path / 'file').touch()
    with pytest.raises(ReadOnly, match='cannot be written: Not a directory'):
        begun(pattern, tmp_path / 'file' / 'out')


def test_an_input_that_has_changed_is_refused_unless_the_plan_is_kept(mapper: Mapper, tmp_path: Path) -> None:
    folder, out = inputs.folder(tmp_path / 'folder', inputs.files()), tmp_path / 'out'
    begun(str(folder), out)
    (folder / '001.jpg').unlink()
    with pytest.raises(Conflict, match='has changed since'):
        begun(str(folder), out)
    assert begun(str(folder), out, keep=True).plan.items == COUNT


def test_another_runtime_than_that_of_the_first_process_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'plan').mkdir()
    first = {'runtime': 'onnx', 'device': 'cpu', 'precision': 'float32', 'runtime_version': '1'}
    writer.agree(tmp_path, first)
    writer.agree(tmp_path, first | {'runtime_version': '2'})
    with pytest.raises(ModelMismatch, match='begun on onnx cpu float32, and here the model runs on torch cpu float32'):
        writer.agree(tmp_path, first | {'runtime': 'torch'})


def test_a_folder_with_other_things_and_an_empty_input_are_refused(tmp_path: Path) -> None:
    pattern = str(inputs.zipped(tmp_path / 'x.zip', inputs.files(1)))
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'thesis.txt').touch()
    for out in (tmp_path / 'full', tmp_path / 'full' / 'thesis.txt'):
        with pytest.raises(InvalidParameter):
            begun(pattern, out)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(NotFound, match='holds no pictures'):
        begun(str(tmp_path / 'empty'), tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []


def test_a_full_disk_is_said_and_what_was_done_stays(
    mapper: Mapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern, out = str(inputs.zipped(tmp_path / 'x.zip', inputs.files())), tmp_path / 'out'
    job = begun(pattern, out)
    worker.embed(job, mapper, 0, lambda items, failed: None)
    with monkeypatch.context() as patch:

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, 'No space left on device')

        patch.setattr(os, 'fsync', full)
        with pytest.raises(StorageFull, match='what is done stays'):
            worker.embed(job, mapper, 1, lambda items, failed: None)
    assert writer.unfinished(out, job.plan) == [1, 2, 3, 4]
    assert [path.name for path in out.iterdir() if path.name.startswith('.')] == []
    assert embed(mapper, pattern, out)['sample_count'] == COUNT


def test_on_a_disk_that_is_really_full_the_same_command_goes_on_when_there_is_space(
    mapper: Mapper, tmp_path: Path, small_disk: Path
) -> None:
    pattern, out = str(inputs.zipped(tmp_path / 'x.zip', inputs.files())), small_disk / 'out'
    embed(mapper, pattern, tmp_path / 'expected')
    job = begun(pattern, out)
    writer.agree(out, mapper.encoder.description)
    worker.embed(job, mapper, 0, lambda items, failed: None)
    free = os.statvfs(small_disk)
    (small_disk / 'filling').write_bytes(bytes(free.f_bavail * free.f_frsize))
    with pytest.raises(StorageFull, match='what is done stays'):
        embed(mapper, pattern, out)
    (small_disk / 'filling').unlink()
    assert writer.unfinished(out, job.plan) == [1, 2, 3, 4]
    embed(mapper, pattern, out)
    assert contents(out) == contents(tmp_path / 'expected')


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (['absent.zip', '--out', 'out'], 'not-found: .*there is no such file or folder'),
        (['empty', '--out', 'out'], 'not-found: .*holds no pictures'),
        (['notes.md', '--out', 'out'], 'invalid-parameter: .*is neither a folder, nor'),
        (['second.zip', '--out', 'begun'], 'conflict: .*was begun with the input .*first.zip'),
        (['first.zip', '--out', 'begun', '--partition-size', '3'], 'conflict: .*--partition-size 5; give the same'),
        (['first.zip', '--out', 'other'], 'model-mismatch: .*another model'),
        (['first.zip', '--out', 'notes.md'], 'invalid-parameter: .*is a file; name a folder'),
        (['first.zip', '--out', 'full'], 'invalid-parameter: .*is not empty'),
        (['first.zip', '--out', 'begun', '--partition-size', '0'], 'invalid-parameter: .*at least 1'),
        (['first.zip', '--out', 'begun', '--no-text'], 'conflict: .*was begun with none of these options'),
        (
            ['empty', '--out', 'empty/below/out'],
            'invalid-parameter: .*lies in the input .*empty; name a folder outside',
        ),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, options: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name_of, count in (('first', 1), ('second', 2)):
        inputs.zipped(tmp_path / f'{name_of}.zip', inputs.files(count))
    for folder in ('empty', 'full'):
        (tmp_path / folder).mkdir()
    for file in ('notes.md', 'full/thesis.txt'):
        (tmp_path / file).touch()
    begun(str(tmp_path / 'first.zip'), tmp_path / 'begun')
    begun(str(tmp_path / 'first.zip'), tmp_path / 'other', fingerprint='another')
    before = contents(tmp_path)
    size = [] if '--partition-size' in options else ['--partition-size', '5']
    assert main.main(['embed', *options, *size]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f'clipflow: {sentence}.*', line)
    assert contents(tmp_path) == before


@long
def test_many_partitions_take_no_more_memory_than_few(mapper: Mapper, tmp_path: Path) -> None:
    pattern, out = str(inputs.zipped(tmp_path / 'x.zip', inputs.files())), tmp_path / 'out'
    embed(mapper, pattern, out)
    job = begun(pattern, out)

    def resident() -> int:
        for number in range(5):
            worker.embed(job, mapper, number, lambda items, failed: None)
        gc.collect()
        return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()

    resident()
    before = resident()
    for _ in range(5):
        after = resident()
    # The prepared pictures alone would be 17 MB.
    assert after - before < 8 * 2**20


def test_without_a_terminal_progress_is_told_in_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'fake')
    monkeypatch.setattr(cli_embed, '_SECONDS', 0.0)
    inputs.zipped(tmp_path / 'x.zip', inputs.files(6) | {'003.jpg': b'damaged'})
    given = ['embed', str(tmp_path / 'x.zip'), '--partition-size', '2']
    assert main.main([*given, '--out', str(tmp_path / 'out')]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if 'items/s' in line and 'left' in line]
    assert [re.sub(r', .* left', '', line) for line in told] == [
        '2 of 6 done, 0 failed',
        '4 of 6 done, 1 failed',
        '6 of 6 done, 1 failed',
    ]
    assert main.main([*given, '--out', str(tmp_path / 'quiet'), '--quiet']) == 1
    assert 'items/s' not in capsys.readouterr().err


# -- ranks ------------------------------------------------------------------------------------------------------------


def test_ranks_share_all_partitions_and_none_twice() -> None:
    shares = [Rank(rank, 3).share(range(10)) for rank in range(3)]
    assert shares == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


def test_the_environment_of_slurm_and_torchrun_tells_the_rank() -> None:
    assert Rank.of_environment({'SLURM_PROCID': '3', 'SLURM_NTASKS': '8'}) == Rank(3, 8)
    torchrun = {'RANK': '0', 'WORLD_SIZE': '2', 'LOCAL_RANK': '0'}
    assert Rank.of_environment(torchrun) == Rank(0, 2)
    # srun starts one torchrun a node.
    assert Rank.of_environment({'SLURM_PROCID': '1', 'SLURM_NTASKS': '4'} | torchrun | {'RANK': '1'}) == Rank(1, 2)
    for wrong in ({'RANK': '1'}, {'RANK': '2', 'WORLD_SIZE': '2'}, {'RANK': 'x', 'WORLD_SIZE': '2'}):
        with pytest.raises(InvalidParameter):
            Rank.of_environment(wrong)


def test_a_rank_is_told_in_one_way(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert main.main(['embed', 'input', '--out', 'out', '--distributed', '--rank', '1', '--world-size', '2']) == 1
    assert 'leave out --rank and --world-size' in capsys.readouterr().err


def test_torchrun_leaves_the_choice_of_the_gpu_to_us() -> None:
    assert runner.own_device({'LOCAL_RANK': '1'}) == '1'
    assert runner.own_device({'LOCAL_RANK': '1', 'CUDA_VISIBLE_DEVICES': '4,7'}) == '7'
    assert runner.own_device({'SLURM_LOCALID': '1', 'CUDA_VISIBLE_DEVICES': '4'}) is None
    assert runner.own_device({'LOCAL_RANK': '1', 'CUDA_VISIBLE_DEVICES': ''}) is None


def test_a_source_that_is_lost_is_told_with_how_much_of_it(tmp_path: Path) -> None:
    pattern = inputs.shards(tmp_path / 'shards', inputs.files(6), (6,))
    reader = open_input(pattern, Columns())
    (part,) = plans.parts(reader.scan(), 100)
    path = tmp_path / 'shards' / '00000.tar'
    os.truncate(path, path.stat().st_size // 2)
    found = list(worker.items_of(reader, part, 10**6))
    lost = next(item for item in found if isinstance(item, Fault) and item.key == str(path))
    sound = sum(not isinstance(item, Fault) or item.key != str(path) for item in found)
    assert lost.reason.endswith(f'; {6 - sound} items from there are lost')
    assert 0 < sound < 6
