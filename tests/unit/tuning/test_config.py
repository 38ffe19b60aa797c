"""What is wrong is told before any work, all of it at once."""

from pathlib import Path
from typing import Any

import pytest

from clipflow.cli.main import main
from clipflow.errors import Conflict, InvalidParameter
from clipflow.tuning import folder
from clipflow.tuning.config import LEARNING_RATES, TuneConfig
from clipflow.tuning.run import check


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / 'run.yaml'
    file.write_text('captions: a.jsonl\nepochs: 3\nstrategy: lora\nsplits: [train, val]\n', encoding='utf-8')
    config = TuneConfig.load(file, {'epochs': '7', 'batch': None, 'old_templates': 'a {}'})
    assert (config.epochs, config.strategy, config.captions) == (7, 'lora', Path('a.jsonl'))
    assert (config.batch, config.rate) == (64, LEARNING_RATES['lora'])
    assert (config.splits, config.old_templates) == (('train', 'val'), ('a {}',))
    assert TuneConfig.load(None, {'captions': 'a.jsonl', 'splits': 'train, val,test'}).splits == (
        'train',
        'val',
        'test',
    )


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ({'epochs': 0}, 'epochs=0 is not valid: input should be greater than or equal to 1'),
        ({'epoch': 2}, "unknown option 'epoch'; did you mean 'epochs'?"),
        ({'loss': 'arcface'}, "input should be 'clip', 'siglip', 'triplet' or 'ranking'"),
        ({'templates': 'a photo'}, "one place '{}'"),
        ({'splits': 'train'}, 'two or three splits'),
        ({'splits': 'train,train'}, 'what is learned from cannot be chosen or reported on'),
        ({'seed': 2**32}, 'seed=4294967296 is not valid: input should be less than 4294967296'),
        ({'lora_rank': 10**6}, 'lora_rank=1000000 is not valid: input should be less than or equal to 4096'),
        ({'strategy': 'head'}, 'a head is trained by `clipflow head train`'),
        ({'alphas': [2.0]}, 'from 0 (the start weights) to 1'),
        ({'labelled': 'b'}, 'name one of captions, labelled and feedback to learn from; 2 are given'),
        ({'captions': None, 'feedback': 'log.jsonl'}, 'name their folder with images'),
        ({'out': 'runs/\udcff'}, r"out='runs/\udcff' is not valid: it holds half a surrogate pair"),
    ],
)
def test_an_option_that_cannot_be_is_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameter) as raised:
        TuneConfig.load(None, {'captions': 'a.jsonl'} | given)
    assert said in str(raised.value)
    assert '\n' not in str(raised.value)


def test_all_faults_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'letter.txt').write_text('dear reader', encoding='utf-8')
    given = ['--model', str(tmp_path / 'no-model'), '--captions', str(tmp_path / 'none.jsonl')]
    given += ['--old-task', str(tmp_path / 'gone.jsonl'), '--out', str(tmp_path / 'other'), '--quiet']
    assert main(['finetune', *given]) == 1
    said = capsys.readouterr().err
    assert said.startswith('clipflow: invalid-parameter: 4 things are wrong:\n- ')
    for part in ('no-model', 'none.jsonl', 'gone.jsonl', 'is no run folder'):
        assert part in said
    assert main(['finetune', '--captions', 'x', '--epochs', 'many', '--batch', '1', '--set', 'sed=1', '--quiet']) == 1
    said = capsys.readouterr().err
    assert 'epochs=' in said
    assert 'batch=' in said
    assert "did you mean 'seed'?" in said


def test_too_few_pairs_and_blocks_are_found_before_the_work(tiny: Path, shapes: Path, tmp_path: Path) -> None:
    config = TuneConfig(
        model=str(tiny),
        captions=shapes,
        splits=('train', 'val'),
        batch=500,
        strategy='last-n-layers',
        layers=9,
        out=tmp_path / 'run',
    )
    with pytest.raises(InvalidParameter) as raised:
        check(config)
    assert '96 pairs to learn from are too few for batch=500' in str(raised.value)
    assert 'layers=9 is too many' in str(raised.value)
    assert not (tmp_path / 'run').exists()


def test_a_folder_is_of_one_run_but_the_machine_may_change(tmp_path: Path) -> None:
    config = TuneConfig(captions=Path('a.jsonl'), out=tmp_path / 'run')
    with folder.claimed(config):
        pass
    folder.check(config.model_copy(update={'part': 1, 'device': 'cpu', 'cache_mb': 1}))
    with pytest.raises(Conflict, match='another epochs and loss'):
        folder.check(config.model_copy(update={'epochs': 9, 'loss': 'siglip'}))


def test_a_run_can_be_checked_without_training(
    tiny: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ['--model', str(tiny), '--captions', str(shapes), '--splits', 'train,val', '--out', str(tmp_path / 'run')]
    assert main(['finetune', *given, '--check', '--set', 'device=cpu']) == 0
    assert 'all is well: 96 pairs, cpu' in capsys.readouterr().out
    assert not (tmp_path / 'run').exists()


def test_every_option_is_on_the_page() -> None:
    from clipflow import ROOT

    page = (ROOT / 'docs' / 'relevance.md').read_text(encoding='utf-8')
    assert [name for name in TuneConfig.model_fields if f'| `{name}` |' not in page] == []
