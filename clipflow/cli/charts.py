"""What a classification shows: a table, and a picture of the classes with samples."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipflow.errors import InvalidParameter, ReadOnly, Unavailable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

DPI = 150
WIDTH = 12.0
"""Inches, so 1,800 pixels; the height grows with the number of classes and samples."""
MOST_CLASSES, MOST_SAMPLES, MOST_BARS = 30, 10, 8
_COLUMNS = 5
_MARGIN, _GAP, _TITLE, _LINE = 0.4, 0.35, 0.55, 0.38
_PICTURE, _CAPTION, _BAR = 2.3, 0.62, 0.27
_INK, _SOFT, _ACCENT, _PALE = '#1c1c1e', '#6e6e73', '#2f6fde', '#d5dae3'


@dataclass(frozen=True)
class Sample:
    """One picture: its file, the name to show, its class, and the probability (0 to 1) of every label."""

    path: Path
    name: str
    label: str
    probabilities: Mapping[str, float]


def table(winner: str, shares: Mapping[str, float]) -> None:
    """Print the probabilities (0 to 1) of one picture, the highest first, the winner marked."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table('', 'label', 'probability', box=box.SIMPLE_HEAD)
    for label in sorted(shares, key=lambda label: -shares[label]):
        mark, style = ('>', 'bold') if label == winner else ('', None)
        shown.add_row(mark, escape(label), f'{shares[label]:.2f}', style=style)
    Console().print(shown)


def check(path: Path) -> None:
    """Find out before the work what would stop `draw` after it.

    Raises:
        Unavailable: matplotlib is missing.
        InvalidParameter: a suffix of no kind of picture that it writes, or a folder that is not there.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise Unavailable('--plot needs matplotlib: pip install "clipflow[plot]"') from None
    known = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lower().removeprefix('.') not in known:
        raise InvalidParameter(f'--plot {path}: the suffix says no kind of picture; take .png')
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InvalidParameter(f'--plot {path}: there is no folder for this file')


def choose(
    counts: Mapping[str, int], classes: Mapping[str, str], files: Mapping[str, Path], seed: int
) -> dict[str, str]:
    """One picture of each class (the ten most frequent ones): class to name, chosen among those that can be drawn.

    Args:
        counts: pictures of each class.
        classes: the class of each picture, by its name.
        files: where each picture is, by its name.
        seed: the same seed, the same choice; one class does not change that of another.
    """
    chosen = {}
    frequent = sorted(counts, key=lambda label: -counts[label])[:MOST_SAMPLES]
    for label in [label for label in counts if label in frequent]:
        names = [name for name, found in classes.items() if found == label]
        random.Random(f'{seed} {label}').shuffle(names)
        for name in names:
            if picture(files[name]) is not None:
                chosen[label] = name
                break
    return chosen


def draw(path: Path, title: str, counts: Mapping[str, int], samples: Sequence[Sample]) -> None:
    """Draw and save; the kind of file follows the suffix.

    Args:
        path: where to.
        title: what was classified; the number of pictures is put behind it.
        counts: pictures of each class, in the order in which the bars stand; the first 30 by number if there are more.
        samples: at most ten are drawn, five in a line.

    Raises:
        ReadOnly: the file cannot be written.
    """
    from matplotlib.figure import Figure

    labels, chosen = list(counts), samples[:MOST_SAMPLES]
    if len(labels) > MOST_CLASSES:
        labels = sorted(counts, key=lambda label: -counts[label])[:MOST_CLASSES]
    bars = min(max((len(sample.probabilities) for sample in chosen), default=0), MOST_BARS)
    columns = max(1, min(len(chosen), _COLUMNS))
    cell = _TITLE + _PICTURE + _CAPTION + bars * _BAR + _GAP
    top = _MARGIN + _TITLE + len(labels) * _LINE + _GAP
    height = top + cell * -(-len(chosen) // columns) + _MARGIN - _GAP
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor='white')
    _classes(_axes(figure, _MARGIN, _MARGIN + _TITLE, WIDTH - 2 * _MARGIN, len(labels) * _LINE), labels, counts)
    total = sum(counts.values())
    more = f', the {len(labels)} most frequent of {len(counts)} classes' if len(labels) < len(counts) else ''
    heading = f'{_short(title, 70)}: {total:,} picture{"" if total == 1 else "s"}{more}'
    _write(figure, _MARGIN, _MARGIN, heading, size=15, weight='bold')
    width = (WIDTH - 2 * _MARGIN - (columns - 1) * _GAP) / columns
    for place, sample in enumerate(chosen):
        left = _MARGIN + place % columns * (width + _GAP)
        # Not wider than 4:3, so that a picture is not cut to a strip where there are two.
        box = (left, top + place // columns * cell, min(width, _PICTURE * 4 / 3))
        _sample(figure, sample, box, bars)
    try:
        figure.savefig(path)
    except OSError as error:
        raise ReadOnly(f'{path} cannot be written: {error.strerror}') from None


def picture(path: Path) -> 'Image.Image | None':
    """The picture as it is drawn: upright, RGB, at most 900 pixels a side; None if Pillow cannot read it here."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.draft('RGB', (900, 900))
            found = ImageOps.exif_transpose(image).convert('RGB')
            found.thumbnail((900, 900))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return found


def _classes(axes: 'Axes', labels: Sequence[str], counts: Mapping[str, int]) -> None:
    """The histogram: one bar a class, its number and share behind it."""
    # In inches, as in `_sample`: names at the left edge, bars behind the longest one.
    total, most = max(1, sum(counts.values())), max(1, *counts.values())
    width = WIDTH - 2 * _MARGIN
    room = max(len(_short(label, 24)) for label in labels) * 0.118 + 0.12
    for line, label in enumerate(labels):
        words: dict[str, Any] = {'va': 'center', 'ha': 'left', 'size': 12, 'parse_math': False}
        reach = (width - room - 1.5) * counts[label] / most
        axes.barh(line, reach, left=room, height=0.72, color=_ACCENT)
        axes.text(0, line, _short(label, 24), color=_INK, **words)
        told = f'{counts[label]:,}   {100 * counts[label] / total:.1f} %'
        axes.text(room + reach + 0.1, line, told, color=_SOFT, **words)
    axes.set_xlim(0, width)
    axes.set_ylim(len(labels) - 0.5, -0.5)


def _sample(figure: 'Figure', sample: Sample, box: tuple[float, float, float], bars: int) -> None:
    """One cell (left, top and width in inches): the class, the picture, the name of its file, the probabilities."""
    from PIL import ImageOps

    left, top, width = box
    image = picture(sample.path)
    _write(figure, left, top + 0.08, _short(sample.label, int(width * 8)), size=15, weight='bold', color=_ACCENT)
    if image is not None:
        # The middle of the picture, as in the model's own view, so that all tiles have one size.
        size = (int(width * DPI), int(_PICTURE * DPI))
        _axes(figure, left, top + _TITLE - 0.1, width, _PICTURE).imshow(ImageOps.fit(image, size), aspect='auto')
    _write(figure, left, top + _TITLE + _PICTURE + 0.04, _short(sample.name, int(width * 11)), size=9, color=_SOFT)
    axes = _axes(figure, left, top + _TITLE + _PICTURE + _CAPTION - 0.3, width, bars * _BAR)
    ranked = sorted(sample.probabilities, key=lambda label: -sample.probabilities[label])[:bars]
    kept = [label for label in sample.probabilities if label in ranked]
    letters = max(4, int(width * 4.5))
    room = min(letters, max((len(label) for label in kept), default=0)) * 0.105 + 0.08
    for line, label in enumerate(kept):
        share = sample.probabilities[label]
        winner = label == sample.label
        words: dict[str, Any] = {'va': 'center', 'ha': 'left', 'size': 10, 'parse_math': False}
        words |= {'color': _INK, 'weight': 'bold'} if winner else {'color': _SOFT}
        # In inches: names at the left edge, bars behind the longest name, each share behind its bar.
        reach = (width - room - 0.55) * share
        axes.barh(line, reach, left=room, height=0.68, color=_ACCENT if winner else _PALE)
        axes.text(0, line, _short(label, letters), **words)
        axes.text(room + reach + 0.06, line, f'{share:.2f}', **words)
    axes.set_xlim(0, width)
    axes.set_ylim(bars - 0.5, -0.5)


def _axes(figure: 'Figure', left: float, top: float, width: float, height: float) -> 'Axes':
    """A bare plane at a place in inches from the upper left corner."""
    whole = figure.get_figheight()
    axes = figure.add_axes((left / WIDTH, 1 - (top + height) / whole, width / WIDTH, height / whole))
    axes.set_axis_off()
    return axes


def _write(figure: 'Figure', left: float, top: float, text: str, color: str = _INK, **words: Any) -> None:
    """A line of text; a $ in it is a $, no formula."""
    place = (left / WIDTH, 1 - top / figure.get_figheight())
    figure.text(*place, text, ha='left', va='top', color=color, parse_math=False, **words)


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + '…'
