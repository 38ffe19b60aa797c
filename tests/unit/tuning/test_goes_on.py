"""What a run of `clipflow finetune` finds when it goes on, and what stops it on its way: each is one sentence."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from clipflow.cli.main import main
from clipflow.tuning import claim, folder, towers, trainer
from clipflow.tuning.config import TuneConfig

from .test_finetune import FAST, rows

BATCH = 48
STEPS = 4


@pytest.fixture(scope='module')
def copied(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp('copied')
    shutil.copytree(shapes.parent / 'images', data / 'images')
    return Path(shutil.copy(shapes, data / 'captions.jsonl'))


@pytest.fixture(scope='module')
def command(copied: Path, checkpoint: Callable[[str], Path]) -> Callable[[Path], list[str]]:
    def to(out: Path) -> list[str]:
        given = ['finetune', '--model', str(checkpoint('clip')), '--captions', str(copied), '--splits', 'train,val']
        given += ['--batch', str(BATCH), '--epochs', '2', '--set', 'save_every=1', '--set', 'alphas=[1.0]']
        return [*given, '--out', str(out), *FAST]

    return to


def failing(real: Any, call: int, error: BaseException) -> Callable[..., Any]:
    """The function, which raises when it is called for the n-th time."""
    calls = 0

    def one(*values: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return real(*values, **named)

    return one


@pytest.fixture(scope='module')
def interrupted(command: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('interrupted') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, 'learn', failing(trainer.learn, 4, KeyboardInterrupt()))
        assert main(command(out)) == 130
    return out


@pytest.fixture
def stopped(interrupted: Path, tmp_path: Path) -> Path:
    """The folder of a run that was interrupted in its second epoch."""
    return Path(shutil.copytree(interrupted, tmp_path / 'run'))


def told(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    said = capsys.readouterr().err
    assert said.count('\n') == 1, said
    assert all(part in said for part in parts), said


@pytest.mark.parametrize('split', ['train', 'val'])
def test_other_pictures_under_the_same_names_are_other_data(
    stopped: Path, command: Any, copied: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    picture = copied.parent / 'images' / f'{split}-red-disc-0.png'
    before = picture.read_bytes()
    picture.write_bytes((copied.parent / 'images' / 'test-red-disc-0.png').read_bytes())
    capsys.readouterr()
    try:
        assert main(command(stopped)) == 1
    finally:
        picture.write_bytes(before)
    told(capsys, 'the data have changed')


def test_without_its_best_weights_a_run_says_what_to_do_and_that_helps(
    stopped: Path, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped / 'best.safetensors').unlink()
    capsys.readouterr()
    assert main(command(stopped)) == 1
    told(capsys, 'best.safetensors is missing', f'delete {stopped / "state.safetensors"} too')
    (stopped / 'state.safetensors').unlink()
    assert main(command(stopped)) == 0
    # From the beginning, and nothing is noted twice.
    assert [row['step'] for row in rows(stopped) if 'loss' in row] == list(range(1, STEPS + 1))
    assert [row['epoch'] for row in rows(stopped) if 'score' in row] == [0, 1, 2]


def test_a_finished_run_without_its_model_or_with_a_damaged_report_is_told(
    stopped: Path, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(stopped)) == 0
    shutil.rmtree(stopped / 'model')
    capsys.readouterr()
    assert main(command(stopped)) == 1
    told(capsys, 'is finished, but', 'is gone')
    for content in ('{', '[]'):
        (stopped / 'report.json').write_text(content, encoding='utf-8')
        assert main(command(stopped)) == 1
        told(capsys, 'report.json is damaged')
    (stopped / 'report.json').unlink()
    assert main(command(stopped)) == 0
    assert (stopped / 'model' / 'config.json').exists()


def test_the_model_is_on_disk_before_the_checkpoint_is_removed(
    stopped: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def noted(path: Path) -> None:
        assert (stopped / 'state.safetensors').exists()
        synced.append(path.name)

    with monkeypatch.context() as patch:
        patch.setattr(towers, 'sync', noted)
        assert main(command(stopped)) == 0
    files_of_model = {file.name for file in (stopped / 'model').iterdir()} - {'README.md'}
    assert files_of_model <= set(synced)
    assert synced[-2:] == ['model.part', stopped.name]
    assert not (stopped / 'state.safetensors').exists()


@pytest.mark.parametrize(
    'error',
    [
        torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB'),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=['CUDA', 'CPU'],
)
def test_too_little_memory_is_one_sentence(
    command: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    monkeypatch.setattr(trainer, 'learn', failing(trainer.learn, 1, error))
    assert main(command(tmp_path / 'run')) == 1
    told(capsys, 'part=64; set a lower part, or checkpointing=true')


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(
    stopped: Path, command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers

    full = OSError(28, 'No space left on device')
    for owner, name in ((Path, 'open'), (transformers.CLIPModel, 'save_pretrained')):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            real = getattr(owner, name)

            def one(self: Any, *values: Any, real: Any = real, **named: Any) -> Any:
                if isinstance(self, Path) and (self.name != 'metrics.jsonl' or values[:1] != ('a',)):
                    return real(self, *values, **named)
                raise full

            patch.setattr(owner, name, one)
            assert main(command(stopped)) == 1
        told(capsys, 'storage-full', 'no space is left for')
    assert main(command(stopped)) == 0


def test_a_second_run_in_the_same_folder_is_refused(
    stopped: Path, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = yaml.safe_load((stopped / 'config.yaml').read_text(encoding='utf-8'))
    before = (stopped / 'metrics.jsonl').read_bytes()
    with claim.claimed(stopped, TuneConfig(**asked)):
        capsys.readouterr()
        assert main(command(stopped)) == 1
    told(capsys, 'another process trains in')
    assert (stopped / 'metrics.jsonl').read_bytes() == before


def test_the_card_of_clicks_counts_pairs() -> None:
    found = {
        'model': 'm', 'fingerprint': 'f', 'examples': 104, 'validation': 120, 'validation_texts': 8, 'has_test': False,
        'left_out': 0, 'parameters': 1, 'epochs': 1.0, 'steps': 3, 'best_epoch': 1, 'alpha': 1.0,
        'tried': {'1': {'validation': 0.5, 'mean': 0.5}},
        'reported': {'validation': {name: {'image R@1': 0.5} for name in ('before', 'after', 'mixed')}},
    }  # fmt: skip
    text = folder.card(TuneConfig(feedback=Path('log.jsonl'), images=Path('images')), found)
    assert 'log.jsonl: 104 pairs to learn from; validation: 120 pictures, 8 texts' in text
