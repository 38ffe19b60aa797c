"""`clipflow train-mini` on painted shapes: it learns, goes on where it stopped, and tells all that is wrong at once."""

import csv
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from clipflow.cli.main import main
from clipflow.errors import InvalidParameter
from clipflow.sessions.towers import load_towers
from clipflow.tuning import claim, mini_data
from clipflow.tuning.mini import Training
from clipflow.tuning.mini_config import MiniConfig
from clipflow.tuning.mini_features import Features, before
from clipflow.tuning.mini_objective import Heads
from clipflow.weights import load_spec

STEPS = 120
WIDTH = 32
"""Of the features of the tiny towers."""
IMAGE_RECALL = 'shapes, 48 captions against 120 pictures, image R@10'


@pytest.fixture(scope='session')
def data(shapes: Path, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collections, the start and a classifier of three classes, below one folder."""
    folder = tmp_path_factory.mktemp('data')
    (folder / 'shapes').symlink_to(shapes.parent)
    (folder / 'start').symlink_to(checkpoint('vision-text-dual-encoder'))
    with (folder / 'labels.csv').open('w', encoding='utf-8', newline='') as file:
        table = csv.writer(file)
        table.writerow(('file', 'label', 'split'))
        for split, several in (('train', range(4)), ('val', range(1))):
            for shape in ('disc', 'box', 'bar'):
                for colour in ('red', 'lime', 'blue'):
                    table.writerows((f'{split}-{colour}-{shape}-{n}.png', shape, split) for n in several)
    (folder / 'classifier').mkdir()
    weights = {'classifier.weight': torch.eye(3, WIDTH), 'classifier.bias': torch.zeros(3)}
    save_file(weights, folder / 'classifier' / 'model.safetensors')
    names = {'id2label': {'0': 'cat', '1': 'dog', '2': 'tree'}}
    (folder / 'classifier' / 'config.json').write_text(json.dumps(names), encoding='utf-8')
    return folder


def asked(**more: Any) -> dict[str, Any]:
    optimiser = {'steps': STEPS, 'warmup': 10, 'batch': 32, 'image_rate': 0.01, 'text_rate': 0.01, 'scale': 12}
    optimiser |= {
        'weight_decay': 0.05,
        'label_smoothing': 0.1,
        'noise': 0.1,
        'dropout': 0.1,
        'seed': 3,
        'scale_rate': 0.005,
    }
    found = {
        'start': 'start',
        'captions': [{'table': 'shapes/captions.jsonl', 'train': 'train', 'validation': 'val'}],
        'labelled': [
            {
                'table': 'labels.csv',
                'images': 'shapes/images',
                'train': 'train',
                'validation': 'val',
                'templates': ['a {}'],
                'weight': 0.2,
                'batch': 8,
                'negatives': 4,
            }
        ],
        'paraphrase_weight': 0.5,
        'mix': 0.9,
        'class_names': {'model': 'classifier', 'templates': ['a {}'], 'weight': 0.1, 'batch': 8},
        'optimiser': optimiser | {'save_every': 40},
    }
    return found | more


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a configuration."""

    def put(**more: Any) -> Path:
        file = tmp_path / 'mini.yml'
        file.write_text(yaml.safe_dump(asked(**more)), encoding='utf-8')
        return file

    return put


def train(file: Path, data: Path, out: Path) -> int:
    return main(['train-mini', str(file), '--data', str(data), '--out', str(out), '--quiet'])


def test_it_learns_and_the_result_loads_as_any_checkpoint(
    data: Path, write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out'
    assert train(write(), data, out) == 0
    told = json.loads((out / 'report.json').read_text(encoding='utf-8'))
    # 10 of 120 by chance; random towers cannot tell more than the colours.
    assert told['after'][IMAGE_RECALL] > max(0.25, told['before'][IMAGE_RECALL] + 0.1)
    assert IMAGE_RECALL in capsys.readouterr().out
    spec = load_spec(str(out / 'model'))
    image, _ = load_towers(spec)
    assert image(torch.zeros(1, spec.picture.height, spec.picture.width, 3, dtype=torch.uint8)).shape == (1, 24)
    assert load_file(out / 'model' / 'model.safetensors')['visual_projection.weight'].dtype == torch.float16


def test_a_training_that_was_interrupted_ends_as_one_that_was_not(
    data: Path, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, whole, stopped = write(), tmp_path / 'whole', tmp_path / 'stopped'
    assert train(file, data, whole) == 0
    real, seen = Training._save, []

    def interrupted(self: Training, heads: Any, optimiser: Any, step: int) -> None:
        real(self, heads, optimiser, step)
        seen.append(step)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, '_save', interrupted)
        assert train(file, data, stopped) == 130
    assert seen == [40]
    assert not (stopped / 'model').exists()
    with monkeypatch.context() as patch:
        # What was computed is not computed again.
        patch.setattr(Features, '_of_pictures', lambda *_: pytest.fail('pictures were embedded again'))
        assert train(file, data, stopped) == 0
    one, other = (load_file(out / 'model' / 'model.safetensors') for out in (whole, stopped))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    steps = [json.loads(line)['step'] for line in (stopped / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()]
    assert steps == list(range(1, STEPS + 1))


def test_another_configuration_does_not_go_on_in_the_same_folder(
    data: Path, write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out'
    with claim.claimed(out, MiniConfig.load(write(), data)):
        pass
    assert train(write(mix=0.5), data, out) == 1
    assert 'another mix' in capsys.readouterr().err
    (out / 'config.yaml').write_text('{', encoding='utf-8')
    assert train(write(), data, out) == 1
    assert f'{out / "config.yaml"} is not YAML' in capsys.readouterr().err


@pytest.fixture
def short(data: Path, tmp_path: Path, write: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a configuration of four steps on few pictures of its own, which a test may change."""
    rows = [json.loads(line) for line in (data / 'shapes' / 'captions.jsonl').read_text(encoding='utf-8').split('\n')]
    few = [row for row in rows if 'red' in row['file']]
    (tmp_path / 'own' / 'images').mkdir(parents=True)
    for row in few:
        picture = data / 'shapes' / 'images' / row['file']
        (tmp_path / 'own' / 'images' / row['file']).write_bytes(picture.read_bytes())
    table = tmp_path / 'own' / 'captions.jsonl'
    table.write_text('\n'.join(map(json.dumps, few)), encoding='utf-8')
    captions = {'table': str(table), 'train': 'train', 'validation': 'val'}
    optimiser = asked()['optimiser'] | {'steps': 4, 'batch': 8}

    def put(**more: Any) -> Path:
        return write(**{'captions': [captions], 'labelled': [], 'optimiser': optimiser} | more)

    return put


@pytest.mark.parametrize('what', ['captions', 'pictures', 'the classifier'])
def test_other_data_do_not_go_on_as_if_they_were_the_same(
    data: Path, short: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    out, own = tmp_path / 'out', tmp_path / 'own'
    classes = tmp_path / 'classifier'
    shutil.copytree(data / 'classifier', classes)
    file = short(class_names=asked()['class_names'] | {'model': str(classes)})
    assert train(file, data, out) == 0
    capsys.readouterr()
    if what == 'captions':
        table = own / 'captions.jsonl'
        table.write_text(table.read_text(encoding='utf-8').replace('a red', 'the red'), encoding='utf-8')
    elif what == 'pictures':
        (own / 'images' / 'train-red-disc-0.png').write_bytes((own / 'images' / 'train-red-box-0.png').read_bytes())
    else:
        save_file(
            {'classifier.weight': -torch.eye(3, WIDTH), 'classifier.bias': torch.zeros(3)},
            classes / 'model.safetensors',
        )
    assert train(file, data, out) == 1
    assert 'the data have changed' in capsys.readouterr().err


@pytest.mark.parametrize('packed', [False, True])
def test_kept_features_are_of_what_the_pictures_hold(
    data: Path, short: Callable[..., Path], tmp_path: Path, packed: bool
) -> None:
    images = tmp_path / 'own' / 'images'
    table = {'table': str(tmp_path / 'own' / 'captions.jsonl'), 'train': 'train', 'validation': 'val'}

    def computed(number: int) -> torch.Tensor:
        where = images
        if packed:
            # Another file each time: an open one is not expected to change.
            where = tmp_path / f'{number}.zip'
            with zipfile.ZipFile(where, 'w') as archive:
                for picture in sorted(images.iterdir()):
                    archive.write(picture, picture.name)
        config = MiniConfig.load(short(captions=[table | {'images': str(where)}]), data)
        read = mini_data.read(config)
        features = Features(load_spec(str(config.start)), tmp_path / 'features', torch.float32)
        return features.pictures(read.pictures, read.stamps, False, lambda _: None)

    before = computed(0)
    kept = sorted((tmp_path / 'features').iterdir())
    assert torch.equal(computed(1), before)
    assert sorted((tmp_path / 'features').iterdir()) == kept
    (images / 'train-red-disc-0.png').write_bytes((images / 'train-red-box-0.png').read_bytes())
    assert not torch.equal(computed(2), before)


def test_a_folder_is_taken_when_all_is_well_and_a_mended_file_goes_on_there(
    data: Path, short: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / 'nothing').mkdir()
    assert (
        train(short(class_names=asked()['class_names'] | {'model': str(tmp_path / 'nothing')}), data, tmp_path / 'out')
        == 1
    )
    assert not (tmp_path / 'out').exists()
    assert train(short(), data, tmp_path / 'out') == 0


@pytest.mark.parametrize('wrong', ['start', 'classifier', 'folder'])
def test_the_check_looks_at_the_start_the_classifier_and_the_folder(
    data: Path, short: Callable[..., Path], checkpoint: Any, capsys: Any, wrong: str
) -> None:
    tmp_path = short().parent
    (tmp_path / 'out').mkdir()
    more: dict[str, Any] = {}
    if wrong == 'start':
        more, said = {'start': str(checkpoint('siglip'))}, 'two linear projections'
    elif wrong == 'classifier':
        more = {'class_names': asked()['class_names'] | {'model': str(checkpoint('clip'))}}
        said = 'is no classifier with names'
    else:
        (tmp_path / 'out' / 'letter.txt').write_text('dear reader', encoding='utf-8')
        said = 'is no run folder'
    assert main(['train-mini', str(short(**more)), '--data', str(data), '--out', str(tmp_path / 'out'), '--check']) == 1
    assert said in capsys.readouterr().err


def test_all_faults_are_told_at_once(data: Path, write: Callable[..., Path]) -> None:
    optimiser = asked()['optimiser'] | {'dropout': 1.5, 'seed': 2**32}
    captions = [{'table': 'a.jsonl', 'split': 'x'}, {'table': 'a.csv', 'paraphrases': True}]
    names = asked()['class_names'] | {'templates': []}
    file = write(optimiser=optimiser, epochs=3, captions=captions, class_names=names, precision='int4')
    with pytest.raises(InvalidParameter) as error:
        MiniConfig.load(file, data)
    said = error.value.message
    for part in ('optimiser.dropout=1.5', "'epochs'", "'captions.0.split'", "precision='int4'", 'optimiser.seed='):
        assert part in said
    assert 'class_names.templates=[] is not valid: at least one template' in said
    assert 'paraphrases are read from a .jsonl' in said


def test_paths_that_are_not_there_are_told_at_once(data: Path, write: Callable[..., Path]) -> None:
    file = write(start='nowhere', captions=[{'table': 'gone.jsonl'}])
    with pytest.raises(InvalidParameter) as error:
        MiniConfig.load(file, data)
    assert 'nowhere: there is no such' in error.value.message
    assert 'gone.jsonl: there is no such' in error.value.message


def test_the_check_trains_nothing(data: Path, write: Callable[..., Path], tmp_path: Path) -> None:
    command = ['train-mini', str(write()), '--data', str(data), '--out', str(tmp_path / 'out'), '--check']
    assert main(command) == 0
    assert not (tmp_path / 'out').exists()


def test_a_start_without_two_linear_projections_is_refused(
    data: Path, write: Callable[..., Path], checkpoint: Callable[[str], Path], tmp_path: Path, capsys: Any
) -> None:
    assert train(write(start=str(checkpoint('siglip'))), data, tmp_path / 'out') == 1
    assert 'two linear projections' in capsys.readouterr().err


def test_no_picture_is_both_learned_from_and_chosen_on(data: Path, write: Callable[..., Path]) -> None:
    drawn = write(captions=[{'table': 'shapes/captions.jsonl'}], labelled=[])
    found = mini_data.read(MiniConfig.load(drawn, data))
    learned, chosen = (set(part.pictures.tolist()) for part in (found.train[0], found.validation[0]))
    assert learned
    assert chosen
    assert not learned & chosen
    # The rest is kept for tests.
    assert len(learned | chosen) < 24 * 6
    assert mini_data.drawn('a/b.jpg') == mini_data.drawn('c/b.png')


def test_captions_of_absent_pictures_are_paraphrases(data: Path, write: Callable[..., Path], tmp_path: Path) -> None:
    lines = (data / 'shapes' / 'captions.jsonl').read_text(encoding='utf-8').splitlines()
    absent = {'file': 'gone.png', 'split': 'train', 'image': False, 'captions': ['a', 'b', 'c', 'd']}
    others = [absent | {'split': 'val'}, absent | {'captions': ['a', 'b']}, absent | {'captions': 'abc'}, ['a']]
    others.append(absent | {'captions': ['a', 'b', 3]})
    table = tmp_path / 'captions.jsonl'
    table.write_text('\n'.join([*lines, '{not json', *map(json.dumps, (absent, *others))]), encoding='utf-8')
    asked_of = {'table': str(table), 'images': str(data / 'shapes' / 'images'), 'train': 'train', 'validation': 'val'}
    config = MiniConfig.load(write(captions=[asked_of | {'paraphrases': True}]), data)
    found = mini_data.read(config)
    assert [[found.texts[place] for place in row] for row in found.paraphrases] == [['a', 'b', 'c']]
    assert [fault.name for fault in found.faults] == ['line 145', 'line 150', 'line 149', 'line 151']
    assert train(write(captions=[asked_of | {'paraphrases': True}]), data, tmp_path / 'out') == 0


def test_the_constant_feature_carries_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(50, 6, generator=generator) + 2
    pictures[:, 4] = 3.0
    heads = Heads(torch.randn(5, 6, generator=generator), torch.eye(5), torch.tensor(2.0), pictures)
    with torch.no_grad():
        heads.offset.uniform_(-1, 1, generator=generator)
    expected = heads.centred(pictures - heads.mean)
    plain = torch.nn.functional.normalize(pictures @ heads.whole_visual().T, dim=-1)
    assert torch.allclose(plain, expected, atol=1e-5)
    # Without a constant feature there is no place for it.
    free = Heads(torch.randn(5, 6), torch.eye(5), torch.tensor(2.0), torch.randn(50, 6) + 2)
    assert not free.mean.any()
    assert not free.offset.requires_grad


def test_features_are_what_the_projection_gets(data: Path, write: Callable[..., Path], tmp_path: Path) -> None:
    config = MiniConfig.load(write(), data)
    spec, read = load_spec(str(config.start)), mini_data.read(config)
    features = Features(spec, tmp_path, torch.float32)
    found = features.texts(read.texts[:40], lambda _: None)
    tokens = features._tokenizer([read.texts[7]])
    ids, mask = (torch.from_numpy(array).long() for array in (tokens.ids, tokens.mask))
    alone = before(features.textual, lambda: features.model.text(ids, mask))
    assert torch.allclose(found[7], alone[0], atol=2e-3)
    plain, squeezed = (features.pictures(read.pictures, read.stamps, view, lambda _: None) for view in (False, True))
    assert plain.shape == squeezed.shape == (len(read.pictures), WIDTH)
    assert not torch.equal(plain, squeezed)
    # From disk they are the same.
    assert torch.equal(squeezed, features.pictures(read.pictures, read.stamps, True, lambda _: None))
