"""Every kind of input gives the same items in the same order, whatever its partitions; damage costs what is damaged."""

import base64
import gzip
import io
import os
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from clipflow import ROOT
from clipflow.bulk.embed import plan as plans
from clipflow.bulk.embed import storage
from clipflow.bulk.embed.decoding import Decoder
from clipflow.bulk.embed.items import Content, Fault, Item, Part
from clipflow.bulk.embed.readers import open_input
from clipflow.bulk.embed.tables import Columns
from clipflow.bulk.embed.worker import items_of
from clipflow.errors import ClipflowError, InvalidDocument, InvalidParameter, NotFound, Unavailable
from clipflow.settings import PreprocessorSettings
from clipflow.weights import load_spec
from unit.bulk import embed_inputs as inputs
from unit.bulk.embed_inputs import COUNT, caption, jpeg, name

MOST = 10_000
KINDS = ('folder', 'zip', 'shards', 'packed', 'csv', 'parquet', 'dataset')


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same pictures in every form."""
    path, files = tmp_path_factory.mktemp('inputs'), inputs.files()
    folder = inputs.folder(path / 'folder', files)
    return {
        'folder': str(folder),
        'zip': str(inputs.zipped(path / 'pictures.zip', dict(reversed(files.items())))),
        'shards': inputs.shards(path / 'shards', files),
        'packed': str(inputs.shard(path / 'packed.tar.gz', list(files.items()))),
        'csv': str(inputs.uris(path / 'table.csv', folder)),
        'parquet': str(inputs.parquet(path / 'table.parquet')),
        'dataset': str(inputs.dataset(path / 'dataset')),
    }


def scanned(pattern: str, size: int, columns: Columns | None = None) -> list[Part]:
    reader = open_input(pattern, columns or Columns())
    return list(plans.parts(reader.scan(), size))


def read(pattern: str, size: int = 4, columns: Columns | None = None) -> tuple[dict[str, Content], list[Fault]]:
    """Sound items by their key, and faults, read partition by partition by a reader that has scanned nothing."""
    reader = open_input(pattern, columns or Columns())
    contents, faults = {}, []
    for part in scanned(pattern, size, columns):
        for item in items_of(reader, part, MOST):
            if isinstance(item, Item):
                try:
                    content = item.load()
                except InvalidDocument as error:
                    faults.append(Fault(item.key, error.message))
                    continue
                assert item.key not in contents
                contents[item.key] = content
            else:
                faults.append(item)
    return contents, faults


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('size', [1, 5, 100])
def test_every_kind_gives_the_same_items_in_the_same_order(made: dict[str, str], kind: str, size: int) -> None:
    contents, faults = read(made[kind], size)
    assert faults == []
    assert [content.picture for content in contents.values()] == [jpeg(n) for n in range(COUNT)]
    assert [content.caption for content in contents.values()] == [caption(n) for n in range(COUNT)]


@pytest.mark.parametrize('kind', KINDS)
def test_partitions_are_full_and_the_same_again(made: dict[str, str], kind: str) -> None:
    parts = scanned(made[kind], 5)
    assert [part.count for part in parts] == [5, 5, 5, 5, 3]
    assert scanned(made[kind], 5) == parts


def test_keys_and_metadata_are_those_of_the_files(made: dict[str, str]) -> None:
    assert list(read(made['folder'])[0]) == [f'{made["folder"]}/{name(n)}.jpg' for n in range(COUNT)]
    assert list(read(made['zip'])[0]) == [f'{name(n)}.jpg' for n in range(COUNT)]
    assert list(read(made['shards'])[0]) == [name(n) for n in range(COUNT)]
    assert list(read(made['dataset'])[0])[12] == 'train/data-00001-of-00002.arrow:2'
    for kind in ('folder', 'zip', 'shards'):
        assert list(read(made[kind])[0].values())[3].metadata == inputs.TAGS | {'n': 3}
    assert list(read(made['csv'])[0].values())[3].metadata == {'note': 'a "note",\nof 3'}
    assert list(read(made['dataset'])[0].values())[3].metadata == {'n': 3, 'captions': [caption(3), 'another']}


def test_a_folder_and_shards_elsewhere_are_read_by_their_url() -> None:
    memory = fsspec.filesystem('memory')
    for file, content in inputs.files(3).items():
        memory.pipe_file(f'/far/{file}', content)
    contents, faults = read('memory://far')
    assert (list(contents), faults) == ([f'memory:///far/{name(n)}.jpg' for n in range(3)], [])
    assert contents['memory:///far/001.jpg'].picture == jpeg(1)


@pytest.mark.parametrize('suffix', ['tar', 'zip'])
def test_archives_whose_names_begin_with_a_dot_and_a_slash_are_read(tmp_path: Path, suffix: str) -> None:
    files = {f'./{file}': content for file, content in inputs.files(2).items()} | {'./.hidden/x.jpg': jpeg(9)}
    path = tmp_path / f'x.{suffix}'
    inputs.shard(path, list(files.items())) if suffix == 'tar' else inputs.zipped(path, files)
    contents, faults = read(str(path))
    assert [(content.picture, content.caption) for content in contents.values()] == [
        (jpeg(n), caption(n)) for n in range(2)
    ]
    assert faults == []


@pytest.mark.parametrize('suffix', ['tar', 'zip'])
def test_archives_in_several_folders_may_all_count_from_0(tmp_path: Path, suffix: str) -> None:
    for n, place in enumerate(('a', 'b/c')):
        (tmp_path / place).mkdir(parents=True)
        path, files = tmp_path / place / f'0.{suffix}', {'0.jpg': jpeg(n)}
        inputs.shard(path, list(files.items())) if suffix == 'tar' else inputs.zipped(path, files)
    contents, faults = read(f'{tmp_path}/{{a,b/c}}/0.{suffix}')
    end = '' if suffix == 'tar' else '.jpg'
    assert {key: content.picture for key, content in contents.items()} == {f'a/0{end}': jpeg(0), f'b/c/0{end}': jpeg(1)}
    assert faults == []


def test_what_has_the_name_of_a_pattern_is_meant_itself(tmp_path: Path) -> None:
    for place in ('photos {old,new}', 'a*', 'b::c', 'd[1]'):
        folder = inputs.folder(tmp_path / place, inputs.files(1))
        inputs.shard(folder / 'x.tar', [('y.jpg', jpeg(1))])
        assert [content.picture for content in read(str(folder))[0].values()] == [jpeg(0)]
        assert [content.picture for content in read(f'{folder}/x.tar')[0].values()] == [jpeg(1)]


def test_a_caption_may_begin_with_the_mark_that_windows_writes(tmp_path: Path) -> None:
    files = {'a.jpg': jpeg(0), 'a.txt': '\ufeffa cat\r\n'.encode()}
    assert [content.caption for content in read(str(inputs.folder(tmp_path / 'x', files)))[0].values()] == ['a cat']


@pytest.mark.parametrize('suffix', ['tsv', 'TSV', 'tsv.gz'])
def test_tables_with_tabs_are_known_by_their_names(tmp_path: Path, suffix: str) -> None:
    (tmp_path / 'a.jpg').write_bytes(jpeg(0))
    table = b'note\turl\ttext\nx, y\ta.jpg\ta cat\n'
    (tmp_path / f'x.{suffix}').write_bytes(gzip.compress(table) if suffix.endswith('gz') else table)
    contents, faults = read(f'{tmp_path}/x.{suffix}')
    assert [(content.caption, content.metadata) for content in contents.values()] == [('a cat', {'note': 'x, y'})]
    assert faults == []


def test_a_picture_in_a_uri_is_named_by_its_row(tmp_path: Path) -> None:
    (tmp_path / 'x.csv').write_text(f'url\n"data:image/jpeg;base64,{base64.b64encode(jpeg(0)).decode()}"\n')
    contents, _ = read(f'{tmp_path}/x.csv')
    assert {key: content.picture for key, content in contents.items()} == {'x.csv:0': jpeg(0)}


def test_a_pattern_is_a_range_a_choice_or_a_star(tmp_path: Path) -> None:
    for file in ('a-08', 'a-09', 'a-10', 'b-09'):
        (tmp_path / file).touch()
    assert storage.expanded(f'{tmp_path}/a-{{08..10}}') == [f'{tmp_path}/a-{n}' for n in ('08', '09', '10')]
    assert storage.expanded(f'{tmp_path}/{{b,a}}-09') == [f'{tmp_path}/b-09', f'{tmp_path}/a-09']
    assert storage.expanded(f'{tmp_path}/a-*') == [f'{tmp_path}/a-{n}' for n in ('08', '09', '10')]


def test_a_table_says_which_columns_it_has(made: dict[str, str]) -> None:
    contents, _ = read(made['csv'], columns=Columns('URL', 'note'))
    assert [content.caption for content in contents.values()][1] == 'a "note",\nof 1'
    with pytest.raises(InvalidParameter, match="no column 'absent'; it has URL, TEXT, note"):
        scanned(made['csv'], 5, Columns('absent'))


def test_of_a_large_table_little_is_in_memory(tmp_path: Path) -> None:
    path = tmp_path / 'x.parquet'
    with pyarrow.parquet.ParquetWriter(path, pyarrow.schema([('image', pyarrow.binary())])) as out:
        for _ in range(40):
            out.write_table(pyarrow.table({'image': [os.urandom(2**17) for _ in range(10)]}))
    reader = open_input(str(path), Columns())
    (part,) = plans.parts(reader.scan(), 1000)
    tracemalloc.start()
    try:
        assert sum(isinstance(item, Item) for item in items_of(reader, part, MOST)) == 400
        assert tracemalloc.get_traced_memory()[1] < 25 * 2**20  # of 50
    finally:
        tracemalloc.stop()


def test_columns_without_a_known_name_have_to_be_named(tmp_path: Path) -> None:
    (tmp_path / 'odd.csv').write_text('one,two\na,b\n')
    with pytest.raises(InvalidParameter, match='--image-column: one, two'):
        scanned(str(tmp_path / 'odd.csv'), 5)


@pytest.mark.parametrize(
    ('pattern', 'error'),
    [('absent', NotFound), ('*.tar', NotFound), ('notes.md', InvalidParameter), ('{a.tar,b.zip}', InvalidParameter)],
)
def test_what_is_no_input_is_refused(tmp_path: Path, pattern: str, error: type[ClipflowError]) -> None:
    (tmp_path / 'notes.md').touch()
    with pytest.raises(error):
        open_input(f'{tmp_path}/{pattern}', Columns())


# -- damage -----------------------------------------------------------------------------------------------------------


def offset_of(path: Path, member: str) -> int:
    with tarfile.open(path) as archive:
        return archive.getmember(member).offset


@pytest.mark.parametrize('damage', ['header', 'cut in a header', 'cut in a picture', 'no end'])
def test_of_a_damaged_shard_everything_before_the_damage_is_there(tmp_path: Path, damage: str) -> None:
    inputs.shards(tmp_path / 'shards', inputs.files(), (10, 13))
    path = tmp_path / 'shards' / '00000.tar'
    begin, content = offset_of(path, '006.jpg'), bytearray(path.read_bytes())
    if damage == 'header':
        content[begin + 100 : begin + 160] = b'\xff' * 60
    else:
        ends = {
            'cut in a header': begin + 100,
            'cut in a picture': begin + 700,
            'no end': offset_of(path, '009.txt') + 1024,
        }
        content = content[: ends[damage]]
    path.write_bytes(content)
    contents, faults = read(f'{tmp_path}/shards/0000{{0..1}}.tar')
    lost = range(0) if damage == 'no end' else range(6, 10)
    assert list(contents) == [name(n) for n in range(COUNT) if n not in lost]
    assert [fault.reason for fault in faults if fault.key == str(path)] != []
    assert {fault.key for fault in faults} - {str(path)} == ({'006'} if damage == 'cut in a picture' else set())


def test_duplicates_and_items_without_a_picture_are_faults(tmp_path: Path) -> None:
    members = [('a.jpg', jpeg(0)), ('b.txt', b'alone'), ('c.jpg', jpeg(1)), ('c.jpg', jpeg(2)), ('a.jpg', jpeg(3))]
    contents, faults = read(str(inputs.shard(tmp_path / 'x.tar', [*members, ('d.jpg', jpeg(4))])))
    assert {key: content.picture for key, content in contents.items()} == {'a': jpeg(0), 'c': jpeg(1), 'd': jpeg(4)}
    assert [(fault.key, fault.reason.partition(':')[0]) for fault in faults] == [
        ('b', 'has no picture, only txt'),
        ('c', 'duplicate key'),
        ('a', 'duplicate key'),
    ]


def test_a_file_that_vanishes_is_one_fault_and_so_is_a_shard(tmp_path: Path) -> None:
    files = inputs.files(6)
    folder, pattern = inputs.folder(tmp_path / 'folder', files), inputs.shards(tmp_path / 'shards', files, (2, 4))
    for source, gone, keys in (
        (str(folder), folder / '001.jpg', [0, 2, 3, 4, 5]),
        (pattern, tmp_path / 'shards' / '00001.tar', [0, 1]),
    ):
        reader = open_input(source, Columns())
        (part,) = plans.parts(reader.scan(), 100)
        gone.unlink()
        found = list(items_of(reader, part, MOST))
        sound, faults = [], [item for item in found if isinstance(item, Fault)]
        for item in found:
            try:
                sound += [item.load().picture] if isinstance(item, Item) else []
            except InvalidDocument as error:
                faults.append(Fault(item.key, error.message))
        assert sound == [jpeg(n) for n in keys]
        assert [(fault.key, 'No such file' in fault.reason) for fault in faults] == [(str(gone), True)]


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_file_that_may_not_be_read_is_a_fault(tmp_path: Path) -> None:
    folder = inputs.folder(tmp_path / 'folder', inputs.files(2))
    (folder / '000.jpg').chmod(0)
    contents, faults = read(str(folder))
    assert list(contents) == [f'{folder}/001.jpg']
    assert 'Permission denied' in faults[0].reason


def test_what_looks_like_a_file_and_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    folder = inputs.folder(tmp_path / 'folder', inputs.files(1))
    # Root, too, is refused the first: a process has no memory at address 0.
    for link, target in (('1.jpg', '/proc/self/mem'), ('2.jpg', 'nowhere'), ('3.jpg', '3.jpg')):
        (folder / link).symlink_to(target)
    os.mkfifo(folder / '4.jpg')
    (folder / '5.jpg').mkdir()
    contents, faults = read(str(folder))
    assert list(contents) == [f'{folder}/000.jpg']
    assert [fault.key for fault in faults] == [f'{folder}/{n}.jpg' for n in (1, 2, 3)]
    assert all('cannot be read: ' in fault.reason for fault in faults)


def test_a_link_to_a_pipe_is_no_file(tmp_path: Path) -> None:
    folder = inputs.folder(tmp_path / 'folder', inputs.files(1))
    os.mkfifo(tmp_path / 'pipe')
    (folder / '1.jpg').symlink_to(tmp_path / 'pipe')
    assert [content.picture for content in read(str(folder))[0].values()] == [jpeg(0)]


def test_a_folder_that_may_not_be_listed_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = inputs.folder(tmp_path / 'folder', inputs.files(1))
    inputs.folder(folder / 'secret', inputs.files(2))
    listing = os.scandir

    def scandir(place: str) -> Any:
        if str(place).endswith('secret'):
            raise PermissionError(13, 'Permission denied', place)
        return listing(place)

    monkeypatch.setattr(os, 'scandir', scandir)
    contents, faults = read(str(folder))
    assert list(contents) == [f'{folder}/000.jpg']
    assert faults == [Fault(f'{folder}/secret', f'{folder}/secret cannot be read: Permission denied')]


def test_links_in_a_shard_are_faults(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / 'x.tar', 'w') as archive:
        for name_of, kind in (('0', tarfile.REGTYPE), ('1', tarfile.LNKTYPE), ('2', tarfile.SYMTYPE)):
            member = tarfile.TarInfo(f'{name_of}.jpg')
            member.type, member.linkname = kind, '' if name_of == '0' else '0.jpg'
            member.size = 0 if member.linkname else len(jpeg(0))
            archive.addfile(member, io.BytesIO(jpeg(0)))
    contents, faults = read(str(tmp_path / 'x.tar'))
    assert list(contents) == ['0']
    assert [(fault.key, 'is a link' in fault.reason) for fault in faults] == [('1', True), ('2', True)]


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar', 'csv', 'memory'])
def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, kind: str) -> None:
    files = inputs.files(2) | {'000.jpg': b'x' * (MOST + 1)}
    folder = inputs.folder(tmp_path / 'folder', files)
    (tmp_path / 'x.csv').write_text('url,text\n' + ''.join(f'folder/{n:03}.jpg,{caption(n)}\n' for n in range(2)))
    memory = fsspec.filesystem('memory')
    for file, content in files.items():
        memory.pipe_file(f'/large/{file}', content)
    pattern = {
        'folder': str(folder),
        'zip': str(inputs.zipped(tmp_path / 'x.zip', files)),
        'tar': str(inputs.shard(tmp_path / 'x.tar', list(files.items()))),
        'csv': str(tmp_path / 'x.csv'),
        'memory': 'memory://large',
    }[kind]
    contents, faults = read(pattern)
    assert [content.picture for content in contents.values()] == [jpeg(1)]
    assert [fault.reason.rpartition('has more than')[2] for fault in faults] == [' 10,000 bytes']


class Refusing(fsspec.AbstractFileSystem):
    """Storage whose client connects at once, and has errors of its own."""

    class Refused(Exception):
        pass

    def __init__(self, **_: Any) -> None:
        raise self.Refused('no credentials')


def test_what_a_client_of_storage_says_is_a_sentence(tmp_path: Path) -> None:
    fsspec.register_implementation('refusing', Refusing, clobber=True)
    with pytest.raises(Unavailable, match=r'refusing://x/\*.tar cannot be reached: no credentials'):
        open_input('refusing://x/*.tar', Columns())
    (tmp_path / 'a.jpg').write_bytes(jpeg(0))
    (tmp_path / 'x.csv').write_text('url\nrefusing://x/y.jpg\na.jpg\n')
    reader = open_input(f'{tmp_path}/x.csv', Columns())
    (part,) = plans.parts(reader.scan(), 10)
    decoder = Decoder(load_spec(str(ROOT / 'models' / 'clip-mini')), PreprocessorSettings())
    found = [decoder.decode(item, texts=False) for item in items_of(reader, part, MOST)]
    assert [isinstance(one, Fault) for one in found] == [True, False]


def test_captions_and_metadata_that_are_none_are_faults(tmp_path: Path) -> None:
    files = inputs.files(4) | {'000.txt': b'\xff\xfe', '001.json': b'[1]', '002.json': b'{'}
    contents, faults = read(str(inputs.zipped(tmp_path / 'x.zip', files)))
    assert list(contents) == ['003.jpg']
    assert [fault.reason for fault in faults] == [
        '000.txt is not text in UTF-8',
        '001.json is not a JSON object',
        '002.json is not a JSON object',
    ]


def test_a_damaged_archive_or_table_does_not_keep_the_others_from_being_read(tmp_path: Path) -> None:
    for suffix in ('zip', 'tar', 'parquet', 'arrow'):
        (tmp_path / f'0.{suffix}').write_bytes(b'no archive at all' * 100)
    (tmp_path / '0.csv').touch()
    (tmp_path / '1.csv').write_text(f'url\n{tmp_path}/a.jpg\n')
    (tmp_path / 'a.jpg').write_bytes(jpeg(0))
    inputs.zipped(tmp_path / '1.zip', inputs.files(2))
    inputs.shard(tmp_path / '1.tar', list(inputs.files(2).items()))
    inputs.parquet(tmp_path / '1.parquet')
    inputs.dataset(tmp_path / 'dataset')
    os.link(tmp_path / 'dataset' / 'train' / 'data-00000-of-00002.arrow', tmp_path / '1.arrow')
    for suffix, count in (('zip', 2), ('tar', 2), ('parquet', COUNT), ('arrow', 10), ('csv', 1)):
        contents, faults = read(f'{tmp_path}/*.{suffix}')
        assert (len(contents), [fault.key for fault in faults]) == (count, [f'{tmp_path}/0.{suffix}'])
