"""The same captioned pictures as a folder, a zip file, shards and tables."""

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
from PIL import Image

COUNT = 23
TAGS = {'n': 1, 'deep': {'ä': 'x', 'list': [1, 2]}}


def jpeg(n: int) -> bytes:
    """A picture like no other."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(n).integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((48, 36)).save(
        out, 'JPEG'
    )
    return out.getvalue()


def name(n: int) -> str:
    return f'{n:03d}'


def caption(n: int) -> str:
    return f'picture number {n}'


def files(count: int = COUNT) -> dict[str, bytes]:
    """Names and contents, in the order in which they go into archives."""
    found = {}
    for n in range(count):
        found[f'{name(n)}.jpg'] = jpeg(n)
        found[f'{name(n)}.json'] = json.dumps(TAGS | {'n': n}).encode()
        found[f'{name(n)}.txt'] = caption(n).encode()
    return found


def folder(path: Path, contents: dict[str, bytes]) -> Path:
    path.mkdir()
    for file, content in contents.items():
        (path / file).write_bytes(content)
    return path


def zipped(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, 'w') as archive:
        for file, content in contents.items():
            archive.writestr(file, content)
    return path


def shard(path: Path, contents: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, 'w:gz' if path.suffix == '.gz' else 'w') as archive:
        for file, content in contents:
            member = tarfile.TarInfo(file)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def shards(path: Path, contents: dict[str, bytes], sizes: tuple[int, ...] = (7, 12, 4)) -> str:
    """Tar files with so many items each; returns their pattern."""
    path.mkdir()
    members = list(contents.items())
    for number, size in enumerate(sizes):
        shard(path / f'{number:05d}.tar', members[: 3 * size])
        members = members[3 * size :]
    return f'{path}/{{00000..{len(sizes) - 1:05d}}}.tar'


def uris(path: Path, pictures: Path) -> Path:
    """A CSV file of relative and absolute paths, and captions with line breaks and quotes."""
    with path.open('w', newline='', encoding='utf-8-sig') as file:
        out = csv.writer(file)
        out.writerow(['URL', 'TEXT', 'note'])
        for n in range(COUNT):
            place = pictures / f'{name(n)}.jpg'
            out.writerow([place if n % 2 else place.relative_to(path.parent), caption(n), f'a "note",\nof {n}'])
    return path


def dataset(path: Path) -> Path:
    """What `datasets.DatasetDict.save_to_disk` writes, in two files of one split."""
    kind = pyarrow.struct([('bytes', pyarrow.binary()), ('path', pyarrow.string())])
    (path / 'train').mkdir(parents=True)
    (path / 'dataset_dict.json').write_text('{"splits": ["train"]}')
    names = [f'data-0000{part}-of-00002.arrow' for part in range(2)]
    (path / 'train' / 'state.json').write_text(json.dumps({'_data_files': [{'filename': file} for file in names]}))
    for file, rows in zip(names, (range(10), range(10, COUNT)), strict=True):
        images = pyarrow.array([{'bytes': jpeg(n), 'path': None} for n in rows], kind)
        table = pyarrow.table({'image': images, 'caption': [[caption(n), 'another'] for n in rows], 'n': list(rows)})
        with pyarrow.ipc.new_stream(path / 'train' / file, table.schema) as out:
            out.write_table(table, max_chunksize=4)
    return path


def parquet(path: Path, rows_per_group: int = 5) -> Path:
    columns = {'image': [jpeg(n) for n in range(COUNT)], 'text': [caption(n) for n in range(COUNT)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_per_group)
    return path
