"""`clipflow index`, `search` and `delete` against a server whose answers the test chooses."""

import os
from pathlib import Path

import pytest
from docarray import Document, DocumentArray
from docarray.score import NamedScore

from clipflow import wire
from clipflow.cli.main import main
from clipflow.errors import Internal, TooLarge
from service import png
from unit.answering import Server, failing

Said = pytest.CaptureFixture[str]


def run(server: Server, command: str, *arguments: object) -> int:
    return main([command, '--host', server.address, *map(str, arguments)])


def nothing_stored(docs: DocumentArray) -> DocumentArray:
    return DocumentArray()


def pictures(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(png())
    return folder


def test_what_cannot_be_read_is_told_with_its_reason_and_nothing_waits_for_a_pipe(
    server: Server, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures(tmp_path / 'photos', 'a.png', 'forbidden.png')
    (folder / 'empty.png').touch()
    (folder / 'dead.png').symlink_to(tmp_path / 'gone.png')
    os.mkfifo(folder / 'pipe.png')
    pictures(folder / 'locked', 'c.png')
    read, scan = Path.read_bytes, os.scandir

    def read_bytes(path: Path) -> bytes:
        if path.name == 'forbidden.png':
            raise PermissionError(13, 'Permission denied', str(path))
        return read(path)

    def scandir(path: object) -> object:
        if str(path).endswith('locked'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, 'read_bytes', read_bytes)
    monkeypatch.setattr(os, 'scandir', scandir)
    server.answers = [failing()]
    assert run(server, 'index', '--force', '--quiet', folder, tmp_path / 'none') == 1
    assert server.asked == [[f'{folder}/a.png']]
    said = capsys.readouterr()
    assert said.out == '1 stored, 0 unchanged, 6 failed\n'
    assert sorted(said.err.splitlines()) == [
        f'{tmp_path}/none: cannot be read: No such file or directory',
        f'{folder}/dead.png: cannot be read: No such file or directory',
        f'{folder}/empty.png: is empty',
        f'{folder}/forbidden.png: cannot be read: Permission denied',
        f'{folder}/locked: the folder cannot be read: Permission denied',
        f'{folder}/pipe.png: it is no file',
    ]


def test_a_file_that_no_request_takes_does_not_end_the_run(server: Server, tmp_path: Path, capsys: Said) -> None:
    folder = pictures(tmp_path / 'photos', 'a.png', 'b.png')
    server.answers = [TooLarge('too many bytes'), TooLarge('too many bytes'), failing()]
    assert run(server, 'index', '--force', '--quiet', folder) == 1
    said = capsys.readouterr()
    assert said.out == '1 stored, 0 unchanged, 1 failed\n'
    assert said.err == f'{folder}/a.png: too many bytes\n'


def test_what_failed_before_the_service_went_is_told_too(server: Server, tmp_path: Path, capsys: Said) -> None:
    folder = pictures(tmp_path / 'photos', *(f'{number:03}.png' for number in range(600)))
    (folder / '000.png').write_bytes(b'')
    server.answers = [nothing_stored, *[failing()] * 32, Internal('it broke')]
    assert run(server, 'index', '--quiet', folder) == 1
    said = capsys.readouterr()
    assert said.out == '511 stored, 0 unchanged, 1 failed\n'
    assert said.err == f'{folder}/000.png: is empty\nclipflow: internal: it broke\n'


def test_a_file_has_one_id_from_whichever_folder_it_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / 'photos' / 'deep', 'a.png')
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'link').symlink_to(tmp_path / 'photos' / 'deep')
    name = f'{tmp_path}/photos/deep/a.png'
    for folder, given in (
        ('photos', '.'),
        ('photos', '../photos'),
        ('photos/deep', '../deep/a.png'),
        ('elsewhere', '../photos/deep'),
        ('elsewhere', 'link/../deep'),
    ):
        monkeypatch.chdir(tmp_path / folder)
        server.answers, server.asked = [failing()], []
        assert run(server, 'index', '--force', '--quiet', given) == 0
        assert server.asked == [[name]], given


@pytest.mark.parametrize('name', ['Screenshot 3.45\u202fPM.png', 'new\nline.png', '\u732b' * 80 + '.png'])
def test_a_file_is_deleted_by_its_path_whatever_its_name(server: Server, tmp_path: Path, name: str) -> None:
    folder = pictures(tmp_path / '/'.join(['\u732b' * 30] * 3), name)
    server.answers = [failing()]
    assert run(server, 'index', '--force', '--quiet', folder) == 0
    server.answers = [lambda _: DocumentArray([Document(tags={'deleted': 1})])]
    assert run(server, 'delete', folder / name) == 0
    assert server.asked[0][0] in server.parameters[-1]['ids']


def test_all_and_some_is_no_way_to_delete(server: Server, capsys: Said) -> None:
    for some in (['an id'], ['--filter', '{"album": "old"}']):
        assert run(server, 'delete', '--all', *some) == 1
        assert 'leave it out' in capsys.readouterr().err
    assert server.asked == []


def found(docs: DocumentArray) -> DocumentArray:
    docs[0].matches = DocumentArray([Document(id='a', scores={'cosine': NamedScore(value=0.5)})])
    return docs


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('grid.xyz', 'the suffix says no kind of picture'),
        ('grid', 'the suffix says no kind of picture'),
        ('none/grid.png', 'cannot be written: No such file or directory'),
        ('folder.png', 'cannot be written: Is a directory'),
    ],
)
def test_a_grid_that_cannot_be_saved_is_one_sentence(
    server: Server, tmp_path: Path, capsys: Said, name: str, reason: str
) -> None:
    (tmp_path / 'folder.png').mkdir()
    server.answers = [found]
    assert run(server, 'search', 'a cat', '--grid', tmp_path / name) == 1
    said = capsys.readouterr()
    assert 'a' in said.out.split()
    assert said.err.startswith(f'clipflow: invalid-parameter: {tmp_path / name}')
    assert reason in said.err


def test_a_search_says_that_a_shard_was_away(server: Server, capsys: Said) -> None:
    def partial(docs: DocumentArray) -> DocumentArray:
        docs[0].tags[wire.PARTIAL] = True
        return found(docs)

    server.answers = [found, partial]
    assert run(server, 'search', 'a cat', '--json') == 0
    assert capsys.readouterr().err == ''
    assert run(server, 'search', 'a cat', '--json') == 0
    assert 'a shard of the collection was away' in capsys.readouterr().err


def test_what_the_system_refuses_is_one_sentence(server: Server, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('clipflow.cli.search._table', full)
    server.answers = [found]
    assert run(server, 'search', 'a cat') == 1
    assert capsys.readouterr().err == 'clipflow: [Errno 28] No space left on device\n'
