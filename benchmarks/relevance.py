"""What does relevance gain? Fine-tuning, a head, templates, 8-bit weights, and what the old task loses.

    python benchmarks/relevance.py --work DIR [--rows zero-shot,full,...] [--data DIR] [--epochs N] [--start MODEL]

The start has not seen flickr8k: the towers of the bundled model with fresh projections, trained on unsplash's captions
(or `--start`). Then it is tuned on flickr8k's train part, and measured on its test part with `clipflow evaluate`. What
is in DIR is not made again, so rows can be measured one by one, and an interrupted run goes on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from docarray import Document

from clipflow import ROOT
from clipflow_client import Client
from quality import photographs
from setups import LocalService

SHOWN = (('text to image', 'R@1'), ('text to image', 'R@5'), ('image to text', 'R@1'), ('image to text', 'R@5'))
TUNED = {
    'full': ('full', '--learning-rate', '1e-4', '--set', 'layer_decay=0.9'),
    'lora': ('lora', '--learning-rate', '1e-3'),
    'projection': ('projection', '--learning-rate', '1e-3'),
}
"""Rates for a model of this size, which nobody has tuned. A real CLIP takes the defaults, which are smaller."""
TEMPLATE = 'a photo of a person {}'


class Bench:
    """The steps, each a command whose result is kept.

    Args:
        work: where the results are kept.
        data: see benchmarks/README.md.
        epochs: of each tuning.
        start: a model that has not seen flickr8k; None: one is made.
    """

    def __init__(self, work: Path, data: Path, epochs: int, start: str | None) -> None:
        self.work, self.data, self.epochs, self._start = work, data, epochs, start
        self.captions = data / 'flickr8k' / 'captions.jsonl'

    def start(self) -> str:
        """The model that everything is compared with."""
        if self._start is not None:
            return self._start
        run = self.work / 'start'
        if not (run / 'report.json').exists():
            self._bare(self.work / 'bare')
            told = ['--captions', self.data / 'unsplash' / 'photos.csv']
            told += ['--images', self.data / 'unsplash' / 'photos.zip']
            options = ['--strategy', 'projection', '--learning-rate', '2e-3', '--epochs', '12', '--batch', '256']
            rest = ['--set', 'alphas=[1.0]', '--set', 'layer_decay=1', '--set', 'weight_decay=0.05']
            call('finetune', '--model', self.work / 'bare', '--out', run, *told, *options, *rest)
        return str(run / 'model')

    def _bare(self, directory: Path) -> None:
        """The bundled model's towers, without what it has learned of captions."""
        import torch

        from clipflow.tuning.towers import TwoTowers, save
        from clipflow.weights import load_spec

        spec = load_spec(str(ROOT / 'models' / 'clip-mini'))
        weights = {name: tensor.detach().clone() for name, tensor in TwoTowers(spec).weights().items()}
        torch.nn.init.normal_(weights['visual_projection.weight'], 0, 0.01, torch.Generator().manual_seed(0))
        torch.nn.init.eye_(weights['text_projection.weight'])
        save(spec, weights, directory, torch.float32)

    def tuned(self, name: str) -> str:
        """The start, tuned on flickr8k's train part; the old task is human-action's val part."""
        strategy, *options = TUNED[name]
        run = self.work / f'{name}-{self.epochs}'
        old = ['--old-task', self.data / 'human-action' / 'labels.csv', '--old-split', 'val']
        old += ['--set', f'old_templates={TEMPLATE}']
        told = [
            '--captions',
            self.captions,
            '--splits',
            'train,val,test',
            '--strategy',
            strategy,
            '--epochs',
            self.epochs,
        ]
        call('finetune', '--model', self.start(), '--out', run, *told, *options, *old)
        return str(run / 'model')

    def evaluated(self, name: str, *options: object) -> dict[str, Any]:
        """What `clipflow evaluate` finds on flickr8k's test part."""
        out = self.work / 'evaluated' / name
        told = [self.captions, '--split', 'test', '--model', self.start(), *options]
        return self._evaluation(out, told)

    def old_task(self, name: str) -> dict[str, Any]:
        """The same on human-action's val part, of which one half took part in the choice of the mix."""
        labels = self.data / 'human-action' / 'labels.csv'
        told = [
            labels,
            '--split',
            'val',
            '--model',
            self.start(),
            '--template',
            TEMPLATE,
            '--against',
            self.tuned(name),
        ]
        return self._evaluation(self.work / 'evaluated' / f'old-{name}', told)

    def _evaluation(self, out: Path, told: list[Any]) -> dict[str, Any]:
        if not (out / 'evaluation.json').exists():
            call('evaluate', *told, '--out', out, '--quiet')
        found: dict[str, Any] = json.loads((out / 'evaluation.json').read_text(encoding='utf-8'))
        return found

    def head(self) -> Path:
        """A head of the ranker, from flickr8k's train part, on the vectors of a service."""
        file = self.work / 'head.safetensors'
        if not file.exists():
            with LocalService(self.work / 'workspace', {'MODEL': self.start()}) as service:
                with Client(service.grpc) as client:
                    chosen = (item for item in photographs(self.data, None) if item[0].startswith('flickr8k/'))
                    docs = (Document(id=name.partition('/')[2], blob=blob) for name, blob in chosen)
                    failed = [outcome for outcome in client.index_iter(docs) if outcome.error is not None]
                    assert not failed, failed[:3]
                pairs = ['--pairs', self.captions, '--split', 'train', '--host', service.grpc]
                call('head', 'train', *pairs, '--out', file)
        return file


def call(*command: object) -> None:
    """Run a command of clipflow, and stop where it fails."""
    words = [sys.executable, '-m', 'clipflow.cli.main', *map(str, command)]
    print('$ clipflow', *words[3:], file=sys.stderr, flush=True)
    subprocess.run(words, check=True)


def lines(title: str, found: dict[str, Any]) -> list[str]:
    """A row for each measure of an evaluation: the start, what was changed, and the difference, with intervals."""
    made = []
    for part in found['measured']:
        wanted = [name for direction, name in SHOWN if direction == part['direction']] or ['top-1']
        for name in wanted:
            # `evaluate` puts what it compares with first: here that is what was changed.
            cells = [shown(part['estimates'][-1][name])]
            if part['differences']:
                cells += [shown(part['estimates'][0][name]), shown(negative(part['differences'][0][name]), '+')]
            made.append(f'| {title} | {part["direction"]} {name} | ' + ' | '.join([*cells, '', ''][:3]) + ' |')
    return made


def negative(difference: dict[str, float]) -> dict[str, float]:
    """The same, the other way round."""
    return {'value': -difference['value'], 'low': -difference['high'], 'high': -difference['low']}


def shown(estimate: dict[str, float], sign: str = '') -> str:
    """A value and its interval."""
    return f'{estimate["value"]:{sign}.3f} ({estimate["low"]:{sign}.3f} to {estimate["high"]:{sign}.3f})'


def main() -> None:
    """Measure the rows and print a table."""
    rows: dict[str, Any] = {
        'zero-shot': lambda bench: bench.evaluated('zero-shot'),
        'full': lambda bench: bench.evaluated('full', '--against', bench.tuned('full')),
        'lora': lambda bench: bench.evaluated('lora', '--against', bench.tuned('lora')),
        'projection': lambda bench: bench.evaluated('projection', '--against', bench.tuned('projection')),
        'head': lambda bench: bench.evaluated('head', '--against', f'head={bench.head()}'),
        'templates': lambda bench: bench.evaluated('templates', '--against', 'template=a photo of {}'),
        'int8': lambda bench: bench.evaluated(
            'int8', '--runtime', 'onnx', '--precision', 'float32', '--against', 'precision=int8'
        ),
        'old-task': lambda bench: bench.old_task('full'),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', type=Path, required=True, help='where results are kept')
    parser.add_argument('--rows', default=','.join(rows), help='which: ' + ', '.join(rows))
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared' / 'data')
    parser.add_argument('--epochs', type=int, default=6, help='of each tuning')
    parser.add_argument('--start', help='a model that has not seen flickr8k, instead of one that is made')
    given = parser.parse_args()
    wanted = given.rows.split(',')
    if unknown := [name for name in wanted if name not in rows]:
        parser.error(f'no such row: {", ".join(unknown)}')
    given.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.work, given.data, given.epochs, given.start)
    made = [line for name in wanted for line in lines(name, rows[name](bench))]
    print('\n| row | measure | start | with it | difference |\n|---|---|---:|---:|---:|')
    print('\n'.join(made))


if __name__ == '__main__':
    main()
