"""`clipflow evaluate`: what it prints and writes, what it refuses, and the bundled model on real photographs."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from clipflow.cli import main
from clipflow.cli.evaluate import _other
from clipflow.relevance import embedding
from clipflow.relevance.systems import System

from .conftest import paint

SHOWN = {
    'a cat': 'chelsea.png',
    'a cup of coffee': 'coffee.png',
    'a rocket launch': 'rocket.jpg',
    'a man with a camera': 'camera.png',
    'a clock': 'clock_motion.png',
    'a motorcycle': 'motorcycle_left.png',
}


def evaluate(*arguments: object) -> int:
    return main.main(['evaluate', *map(str, arguments), '--quiet'])


def test_the_bundled_model_finds_photographs(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'torch')
    (tmp_path / 'images').mkdir()
    for name in SHOWN.values():
        shutil.copy(photographs / name, tmp_path / 'images')
    lines = ''.join(f'{name},{text}\n' for text, name in SHOWN.items())
    (tmp_path / 'captions.csv').write_text(f'image,caption\n{lines}gone.png,what is not there\n', encoding='utf-8')
    assert evaluate(tmp_path / 'captions.csv', '--precision', 'float32', '--out', tmp_path / 'out') == 0
    said = capsys.readouterr()
    assert '**text to image**: 6 queries, 6 items' in said.out
    assert said.out.count('| R@1 | 1.000 (1.000 to 1.000) |') == 2
    assert 'gone.png: is not in images' in said.err
    told = json.loads((tmp_path / 'out' / 'evaluation.json').read_text(encoding='utf-8'))
    assert told['systems'][0]['runtime'] == 'torch'
    assert told['measured'][0]['estimates'][0]['MRR'] == {'value': 1.0, 'low': 1.0, 'high': 1.0}
    assert told['faults'] == [{'name': 'gone.png', 'reason': 'is not in images'}]
    page = (tmp_path / 'out' / 'evaluation.md').read_text(encoding='utf-8')
    assert '| R@1 | 1.000 (1.000 to 1.000) |' in page
    assert '- gone.png: is not in images' in page
    with Image.open(tmp_path / 'out' / 'evaluation.png') as plot:
        assert plot.format == 'PNG'
        # Bars of both directions are there.
        assert {(0x2F, 0x6F, 0xDE)} <= {colour[:3] for _, colour in plot.convert('RGB').getcolors(1 << 20)}
    assert {file.name for file in (tmp_path / 'out').iterdir()} == {
        f'evaluation.{suffix}' for suffix in ('md', 'json', 'png')
    }


def test_a_comparison_names_both_and_their_difference(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(album, '--template', 'a photo of {}', '--against', 'template={}') == 0
    said = capsys.readouterr().out
    assert said.count('| | A | B | B - A |') == 2
    assert '**image to text**: 79 queries, 158 items' in said


def test_after_an_interruption_it_says_how_to_go_on(
    album: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedding.Embedding, 'pictures', interrupted)
        assert evaluate(album) == 130
    assert 'the same command goes on where this one stopped' in capsys.readouterr().err
    assert evaluate(album) == 0


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['--template', 'a photo'], "each of 'templates' has one place '{}' for the text; 'a photo' has not"),
        (['--against', 'precision=int9'], 'precision is one of auto, float32'),
        (['--against', 'nowhere/model'], 'not-found: '),
        (['--template', 'a {}', '--against', 'template=a {}'], '--against changes nothing of what is measured'),
        (['--split', 'test'], "has no split 'test'; there is: none"),
        (['--head', 'none.safetensors'], 'there is no head none.safetensors'),
        (['--index-kind', 'nonsense'], "'nonsense' is not a kind of index"),
        (['--host', 'localhost:1', '--precision', 'int8'], 'with --host the service decides; leave out --precision'),
    ],
)
def test_what_it_refuses_in_one_sentence(
    album: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(album, *arguments) == 1
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.out == ''
    assert len(said.err.strip().splitlines()) == 1


def test_what_is_for_captions_and_that_out_is_a_folder(
    album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path, '--distractors', tmp_path / 'images') == 1
    assert 'are for captions; these pictures have labels' in capsys.readouterr().err
    assert evaluate(tmp_path, '--head', 'a.safetensors') == 1
    assert 'are for captions; these pictures have labels' in capsys.readouterr().err
    assert evaluate(tmp_path / 'images', '--host', 'localhost:1') == 1
    assert '--host is for captions; these pictures have labels' in capsys.readouterr().err
    assert evaluate(album, '--out', album) == 1
    assert 'is a file; name a folder' in capsys.readouterr().err


def test_folders_of_splits_are_not_measured_as_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(('train/cat', 'train/dog', 'test/cat', 'test/dog')):
        paint(tmp_path / 'set' / name, ['1.png'], number)
    assert evaluate(tmp_path / 'set') == 1
    assert 'set has classes in test, train; say which with --split' in capsys.readouterr().err
    assert evaluate(tmp_path / 'set', '--split', 'test') == 0
    assert '**zero-shot**: 2 queries, 2 items' in capsys.readouterr().out


def test_what_against_changes() -> None:
    own = System('model', 'torch', 'int8', ('a {}',), 'ivf', Path('head'))
    assert _other(own, ['other/model']) == System('other/model', 'torch', 'int8', ('a {}',), 'ivf', Path('head'))
    assert _other(own, ['a=b']) == System('a=b', 'torch', 'int8', ('a {}',), 'ivf', Path('head'))
    changes = ['precision=float32', 'runtime=onnx', 'head=', 'index-kind=flat', 'template={}', 'template=x=2, {}']
    assert _other(own, changes) == System('model', 'onnx', 'float32', ('{}', 'x=2, {}'), 'flat', None)
