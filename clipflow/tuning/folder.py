"""The run folder: what was asked, whether it is finished, curves, and the model's card."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from clipflow.errors import InvalidParameter, NotFound
from clipflow.files import replaced
from clipflow.tuning import claim
from clipflow.tuning.claim import CONFIG
from clipflow.tuning.config import TuneConfig
from clipflow.tuning.journal import METRICS, Journal
from clipflow.tuning.mixing import AFTER, BEFORE, MIXED
from clipflow.tuning.state import writing

REPORT, MODEL, CARD, CURVES = 'report.json', 'model', 'README.md', 'curves.png'
_FREE = frozenset(('out', 'part', 'device', 'cache_mb', 'save_every', 'checkpointing'))
"""Options that may change when a run goes on: they are about the machine, not about the result."""


def check(config: TuneConfig) -> None:
    """Whether the folder can be this run's.

    Raises:
        Conflict, InvalidParameter: as of `claim.check`.
    """
    claim.check(config.out, config, _FREE)


def claimed(config: TuneConfig) -> AbstractContextManager[None]:
    """The folder for this process alone, with what was asked in it; errors as of `claim.claimed`."""
    return claim.claimed(config.out, config, _FREE)


def report(folder: Path) -> dict[str, Any] | None:
    """What a finished run came to; None of one that is not finished.

    Raises:
        InvalidParameter: it is damaged.
        NotFound: the model of the finished run is gone.
    """
    file = folder / REPORT
    if not file.exists():
        return None
    anew = f'delete {file}, and the same command trains it again'
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding='utf-8'))
        table(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidParameter(f'{file} is damaged ({error}); {anew}') from None
    if not (folder / MODEL).is_dir():
        raise NotFound(f'the run in {folder} is finished, but {folder / MODEL} is gone; {anew}')
    return found


def finish(config: TuneConfig, found: dict[str, Any], journal: Journal) -> None:
    """Draw the curves, write the card and the report, and remove what only an unfinished run needs."""
    folder = config.out
    _draw(journal, folder / CURVES)
    text = card(config, found)
    replaced(folder / CARD, text.encode())
    replaced(folder / MODEL / CARD, text.encode())
    replaced(folder / REPORT, (json.dumps(found, indent=2) + '\n').encode())
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
    validation = f'{found["validation"]:,} pictures, {found["validation_texts"]:,} texts'
    seen = '' if found['has_test'] else ' The figures on the validation data are of the data that chose, so too good.'
    return f"""# {config.out.name}

{found['model']} (fingerprint {found['fingerprint']}), fine-tuned by `clipflow finetune`.

| what | |
|---|---|
| data | {data}: {found['examples']:,} pairs to learn from; validation: {validation} |
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
    with writing(file):
        figure.savefig(file, dpi=110)
    plt.close(figure)
