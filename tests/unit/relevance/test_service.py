"""A service under measure, as it answers: which document is which picture, and what counts as found."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from clipflow.errors import NotFound
from clipflow.relevance.captions import CaptionSet, Fault, Picture
from clipflow.relevance.service import Service, captions, matched


@contextmanager
def silent(title: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


def chosen(folder: Path, **contents: bytes) -> CaptionSet:
    """Pictures whose captions are their names."""
    pictures = []
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        pictures.append(Picture(name, folder / name))
    return CaptionSet(tuple(pictures), tuple((place, name) for place, name in enumerate(contents)), ())


def named(*names: str) -> CaptionSet:
    return CaptionSet(tuple(Picture(name, Path(name)) for name in names), (), ())


def test_a_document_is_the_picture_whose_path_its_id_ends_with() -> None:
    pictures = named('a/1.jpg', 'b/1.jpg', '1.jpg', 'c/2.jpg', '3.jpg')
    ids = ['/all/a/1.jpg', 'b/1.jpg', '/all/1.jpg', '/else/2.jpg', '3', '4.jpg']
    numbers, faults, count = matched(ids, pictures)
    assert numbers == {'/all/a/1.jpg': 0, 'b/1.jpg': 1, '/all/1.jpg': 2, '/else/2.jpg': 3, '3': 4}
    assert (faults, count) == ([], 6)


def test_what_is_not_exactly_one_picture_says_why() -> None:
    pictures = named('a/1.jpg', 'b/1.jpg', 'c/2.jpg', 'c/3.jpg')
    numbers, faults, count = matched(['1.jpg', 'x/2.jpg', 'y/2.jpg'], pictures)
    assert (numbers, count) == ({}, 3)
    assert faults == [
        Fault('a/1.jpg', '2 pictures have this name'),
        Fault('b/1.jpg', '2 pictures have this name'),
        Fault('c/2.jpg', '2 documents have this name'),
        Fault('c/3.jpg', 'is not in the service'),
    ]


def test_equal_pictures_are_one(tmp_path: Path) -> None:
    def search(texts: Sequence[str]) -> list[list[tuple[str, float]]]:
        return [[('other', 0.9), ('first', 0.5), ('twin', 0.5), ('last', 0.4)] for _ in texts]

    service = Service({}, lambda: iter(['first', 'twin', 'last', 'other']), search)
    found = captions(service, chosen(tmp_path, first=b'same', last=b'another', twin=b'same'), 'twins', silent)
    (measured,) = found.measured
    assert (measured.queries, measured.items) == (3, 3)
    # Both captions of the twins find them in the second place, the other finds its picture in the third.
    assert measured.estimates[0]['MRR'].value == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)


def test_a_picture_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    pictures = chosen(tmp_path, first=b'1', second=b'2')
    (tmp_path / 'first').unlink()
    service = Service({}, lambda: iter(['first', 'second']), lambda texts: [[('second', 0.5)] for _ in texts])
    found = captions(service, pictures, 'gone', silent)
    assert found.measured[0].queries == 1
    assert [fault.name for fault in found.faults] == ['first']
    (tmp_path / 'second').unlink()
    with pytest.raises(NotFound, match='first cannot be read: No such file'):
        captions(service, pictures, 'gone', silent)
