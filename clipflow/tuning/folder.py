"""The run folder: what was asked, whether it is finished, curves, and the model's card."""

import json
from pathlib import Path
from typing import Any

import yaml

from clipflow.errors import Conflict, ReadOnly
from clipflow.tuning.config import TuneConfig
from clipflow.tuning.journal import METRICS, Journal
from clipflow.tuning.mixing import AFTER, BEFORE, MIXED
from clipflow.tuning.state import put

CONFIG, REPORT, MODEL, CARD, CURVES = 'config.yaml', 'report.json', 'model', 'README.md', 'curves.png'
_FREE = frozenset(('out', 'part', 'device', 'cache_mb', 'save_every', 'checkpointing'))
"""Options that may change when a run goes on: they are about the machine, not about the result."""


def check(config: TuneConfig) -> None:
    """Whether the folder can be this run's.

    Raises:
        Conflict: another run is in it, or files that are none of a run.
    """
    file = config.out / CONFIG
    if not file.exists():
        if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
            raise Conflict(f'{config.out} is there and is no run folder; choose another out')
        return
    was, asked = yaml.safe_load(file.read_text(encoding='utf-8')), _plain(config)
    other = sorted(name for name in {*was, *asked} - _FREE if was.get(name) != asked.get(name))
    if other:
        raise Conflict(
            f'{config.out} is of a run with another {" and ".join(other)}; choose another out, or ask for the same'
        )


def begin(config: TuneConfig) -> None:
    """Make the folder, and note what was asked."""
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReadOnly(f'the folder {config.out} cannot be made: {error.strerror}') from None
    put(config.out / CONFIG, yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True))


def report(folder: Path) -> dict[str, Any] | None:
    """What a finished run came to; None of one that is not finished."""
    file = folder / REPORT
    return json.loads(file.read_text(encoding='utf-8')) if file.exists() else None


def finish(config: TuneConfig, found: dict[str, Any], journal: Journal) -> None:
    """Draw the curves, write the card and the report, and remove what only an unfinished run needs."""
    folder = config.out
    _draw(journal, folder / CURVES)
    text = card(config, found)
    put(folder / CARD, text)
    put(folder / MODEL / CARD, text)
    put(folder / REPORT, json.dumps(found, indent=2) + '\n')
    for file in folder.glob('*.safetensors'):
        file.unlink()


def table(found: dict[str, Any]) -> str:
    """Before, after and mixed, as Markdown."""
    lines = [
        f'| measured on | measure | before | after | mixed (alpha {found["alpha"]:g}) |',
        '|---|---|---:|---:|---:|',
    ]
    for title, columns in found['reported'].items():
        for name, value in columns[BEFORE].items():
            lines.append(
                f'| {title} | {name} | {value:.3f} | {columns[AFTER][name]:.3f} | {columns[MIXED][name]:.3f} |'
            )
    return '\n'.join(lines)


def card(config: TuneConfig, found: dict[str, Any]) -> str:
    """The model card."""
    data = config.captions or config.labelled or config.feedback
    tried = '\n'.join(
        f'| {alpha} | ' + ' | '.join(f'{value:.3f}' for value in scores.values()) + ' |'
        for alpha, scores in found['tried'].items()
    )
    titles = list(next(iter(found['tried'].values())))
    old = (
        'The old task was split in two: one half took part in the choice of alpha, the other is in the table.'
        if config.old_task
        else 'No old task was given: what the model has forgotten is not known. Name one with `old_task`.'
    )
    seen = '' if found['has_test'] else ' The figures on the validation data are of the data that chose, so too good.'
    return f"""# {config.out.name}

{found['model']} (fingerprint {found['fingerprint']}), fine-tuned by `clipflow finetune`.

| what | |
|---|---|
| data | {data}: {found['examples']:,} pictures to learn from; validation {found['validation']:,} |
| left out | {found['left_out']:,} entries that could not be used |
| learned | {config.strategy}, {config.towers} towers: {found['parameters']:,} parameters |
| loss | {config.loss}, batch {config.batch}, hard negatives {config.hard_negatives} |
| learning rate | {config.rate:g}, layer decay {config.layer_decay:g}, cosine after {config.warmup:.0%} warm-up |
| epochs | best of {found['epochs']:g}: {found['best_epoch']}; {found['steps']:,} steps |
| seed | {config.seed} |
| weights | {config.save_precision}, {found['alpha']:g} tuned + {1 - found['alpha']:g} start |

## Figures

{table(found)}

"before" is the start, "after" the tuned weights alone, "mixed" what is in `model/`.{seen} {old}

Alpha was chosen by the mean score (mean of Recall@1, 5 and 10 both ways, or top-1):

| alpha | {' | '.join(titles)} |
|---:|{'---:|' * len(titles)}
{tried}

## Limits

The model is the start, moved towards one set of data. Other languages, other kinds of pictures and other tasks than
those in the table were not measured and may have got worse. The figures hold for the size of gallery that was measured:
recall is lower in a larger one. The licences of the start and of the data apply; pictures are not in the weights.

## Use

    CLIPFLOW_MODEL={config.out / MODEL} clipflow serve

Its vectors are others than those of the start: `clipflow reindex` makes stored ones anew.
Every option is in `{CONFIG}`, every step in `{METRICS}`.
"""


def _plain(config: TuneConfig) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(config.model_dump_json())
    return plain


def _draw(journal: Journal, file: Path) -> None:
    """Loss of each step; recalls of each epoch."""
    import matplotlib as mpl

    mpl.use('Agg')
    from matplotlib import pyplot as plt

    rows = journal.rows()
    steps, epochs = [row for row in rows if 'loss' in row], [row for row in rows if 'score' in row]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout='constrained')
    left.plot([row['step'] for row in steps], [row['loss'] for row in steps], lw=1)
    left.set(xlabel='step', ylabel='loss', title='Training')
    for name in epochs[0] if epochs else ():
        if name not in ('step', 'epoch', 'time', 'score'):
            right.plot([row['epoch'] for row in epochs], [row[name] for row in epochs], marker='o', ms=3, label=name)
    right.set(xlabel='epoch', title='Validation')
    right.legend(fontsize='small')
    figure.savefig(file, dpi=110)
    plt.close(figure)
