"""An evaluation for people (Markdown, a plot) and for programs (JSON)."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from clipflow import __version__
from clipflow.errors import InvalidParameter
from clipflow.files import replaced
from clipflow.relevance.bootstrap import DRAWS, LEVEL, SEED, Estimate
from clipflow.relevance.evaluate import Evaluation, Measured
from clipflow.relevance.metrics import MEDIAN

NAME = 'evaluation'
_LETTERS = 'AB'
_SHOWN_FAULTS = 20
_DPI = 150
_COLOURS = ('#8d99ae', '#2f6fde')


def check(folder: Path) -> None:
    """Find out before the work what would stop `write` after it; raises InvalidParameter."""
    if folder.exists() and not folder.is_dir():
        raise InvalidParameter(f'--out {folder} is a file; name a folder')


def has_plot() -> bool:
    """Whether matplotlib is here."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def write(evaluation: Evaluation, folder: Path, command: str) -> list[Path]:
    """Write `evaluation.md`, `evaluation.json`, and `evaluation.png` where matplotlib is; each as a whole.

    Args:
        evaluation: what was measured.
        folder: is made.
        command: that measured it.

    Raises:
        ReadOnly, StorageFull: they cannot be written.
    """
    files = {'md': markdown(evaluation, command).encode(), 'json': as_json(evaluation, command).encode()}
    if has_plot():
        files['png'] = plot(evaluation)
    for suffix, content in files.items():
        replaced(folder / f'{NAME}.{suffix}', content)
    return [folder / f'{NAME}.{suffix}' for suffix in files]


def as_json(evaluation: Evaluation, command: str) -> str:
    """All numbers; `differences` has one element less than `systems`."""
    method = {'interval': 'bootstrap over pictures', 'level': LEVEL, 'draws': DRAWS, 'seed': SEED}
    whole = {'command': command, 'clipflow': __version__, 'method': method, **asdict(evaluation)}
    return json.dumps(whole, indent=2, ensure_ascii=False) + '\n'


def markdown(evaluation: Evaluation, command: str) -> str:
    """A page: what was compared, the tables, what was left out."""
    lines = [f'# Evaluation: {evaluation.title}', '', '```sh', command, '```', '', *_systems(evaluation), '']
    for measured in evaluation.measured:
        lines += [*table(measured), '']
    lines.append(
        f'In brackets: {LEVEL:.0f} % interval, bootstrap over pictures, {DRAWS:,} draws, seed {SEED}. '
        'Ties count against the query.'
    )
    if evaluation.faults:
        lines += ['', f'## Left out: {len(evaluation.faults):,}', '']
        lines += [f'- {_cell(fault.name)}: {fault.reason}' for fault in evaluation.faults[:_SHOWN_FAULTS]]
        if len(evaluation.faults) > _SHOWN_FAULTS:
            lines.append(f'- and {len(evaluation.faults) - _SHOWN_FAULTS:,} more, in `{NAME}.json`')
    return '\n'.join(lines) + '\n'


def table(measured: Measured) -> list[str]:
    """Lines of Markdown: a heading, and a row for each measure."""
    head = [_label(number, len(measured.estimates)) for number in range(len(measured.estimates))]
    head += [f'{letter} - A' for letter in _LETTERS[1 : len(measured.estimates)]]
    rows = []
    for name in measured.estimates[0]:
        cells = [_shown(name, each[name]) for each in measured.estimates]
        cells += [_shown(name, each[name], sign='+') for each in measured.differences]
        rows.append(f'| {name} | {" | ".join(cells)} |')
    return [
        f'**{measured.direction}**: {measured.queries:,} queries, {measured.items:,} items',
        '',
        f'| | {" | ".join(head)} |',
        f'|---|{"---|" * len(head)}',
        *rows,
    ]


def _systems(evaluation: Evaluation) -> list[str]:
    names = list(dict.fromkeys(name for told in evaluation.systems for name in told))
    names = [name for name in names if any(told.get(name) for told in evaluation.systems)]
    head = [_label(number, len(evaluation.systems)) for number in range(len(evaluation.systems))]
    rows = [f'| {name} | {" | ".join(_cell(told.get(name, "")) for told in evaluation.systems)} |' for name in names]
    return [f'| | {" | ".join(head)} |', f'|---|{"---|" * len(head)}', *rows]


def _label(number: int, count: int) -> str:
    return 'value' if count == 1 else _LETTERS[number]


def _cell(text: str) -> str:
    return text.replace('|', '\\|').replace('\n', ' ')


def _shown(name: str, estimate: Estimate, sign: str = '') -> str:
    form = f'{sign}.1f' if name == MEDIAN else f'{sign}.3f'
    return f'{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})'


def plot(evaluation: Evaluation) -> bytes:
    """A PNG: for each direction a bar for each measure and system, with its interval; ranks are left to the table."""
    from matplotlib.figure import Figure

    parts = evaluation.measured
    figure = Figure(figsize=(6.0 * len(parts), 4.5), dpi=_DPI, facecolor='white', layout='constrained')
    for place, measured in enumerate(parts):
        axes = figure.add_subplot(1, len(parts), place + 1)
        names = [name for name in measured.estimates[0] if name != MEDIAN]
        width = 0.8 / len(measured.estimates)
        for number, each in enumerate(measured.estimates):
            values = [each[name].value for name in names]
            # Percentile intervals of a skewed measure need not hold its value.
            below = [max(0.0, each[name].value - each[name].low) for name in names]
            above = [max(0.0, each[name].high - each[name].value) for name in names]
            at = [line + (number - (len(measured.estimates) - 1) / 2) * width for line in range(len(names))]
            axes.bar(
                at,
                values,
                width * 0.92,
                yerr=[below, above],
                capsize=3,
                color=_COLOURS[number - len(measured.estimates)],
                label=_named(evaluation.systems, number),
            )
        axes.set_xticks(range(len(names)), names)
        axes.set_ylim(0, 1)
        axes.grid(axis='y', alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[['top', 'right']].set_visible(False)
        axes.set_title(
            f'{measured.direction}, {measured.queries:,} queries, {measured.items:,} items', parse_math=False
        )
        if len(measured.estimates) > 1:
            axes.legend(frameon=False, loc='upper left', fontsize=8)
    figure.suptitle(evaluation.title, parse_math=False)
    out = io.BytesIO()
    figure.savefig(out, format='png')
    return out.getvalue()


def _named(systems: Sequence[Mapping[str, str]], number: int) -> str:
    """A letter, and what makes this system another than the rest."""
    own = systems[number].items()
    differing = [value for name, value in own if any(each.get(name) != value for each in systems)]
    return f'{_LETTERS[number]}: {", ".join(part for part in differing if part) or "plain"}'.replace('$', r'\$')
