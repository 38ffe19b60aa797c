"""`clipflow evaluate`: how good results are, on captioned or labelled pictures."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipflow.cli.service import PRECISIONS, RUNTIMES, stored_ids, warn
from clipflow.errors import InvalidParameter

if TYPE_CHECKING:
    from clipflow.relevance.evaluate import Evaluation
    from clipflow.relevance.systems import System
    from clipflow_client import Client

_AGAINST = ('model', 'runtime', 'precision', 'template', 'index-kind', 'head')
_LIMIT = 100


def add_commands(commands: Any) -> None:
    """Add `evaluate`."""
    command = commands.add_parser(
        'evaluate',
        help='measure how good results are',
        description='Measure a model, or a running service, on pictures with captions (Recall@k, median rank, MRR, '
        'nDCG, both ways) or with labels (zero-shot top-1 and top-5), with intervals. What was embedded is kept in '
        'CLIPFLOW_CACHE, so an interrupted run goes on where it stopped.',
    )

    def option(name: str, explained: str, **kind: Any) -> None:
        command.add_argument(name, help=explained, **kind)

    option('set', 'captions as .jsonl, .csv or .json; or labels as .csv, or a folder of classes', type=Path)
    option('--images', 'folder or zip file of the pictures (images.zip or images/ beside SET)', type=Path, metavar='P')
    option('--split', 'only the entries of this split', metavar='NAME')
    option(
        '--distractors',
        'folders or zip files with further pictures to find them among',
        type=Path,
        nargs='+',
        action='extend',
        default=[],
        metavar='P',
    )
    option('--model', 'a directory or a name (CLIPFLOW_MODEL)')
    option('--runtime', 'what the model runs on (CLIPFLOW_RUNTIME)', choices=RUNTIMES, default='auto')
    option('--precision', 'its number format (CLIPFLOW_PRECISION)', choices=PRECISIONS, default='auto')
    option('--template', 'a sentence with {} for the text; several are averaged', action='append', metavar='TEXT')
    option('--index-kind', 'search in such an index, beside the exact search', default='flat', metavar='KIND')
    option('--head', "a head of the ranker, beside the model's own scores", type=Path, metavar='FILE')
    option(
        '--against',
        f'compare with the same but for this; a model, or one of {", ".join(_AGAINST)}; may be repeated',
        action='append',
        default=[],
        metavar='KEY=VALUE',
    )
    option('--host', 'measure the service at this gRPC address, over what it holds', metavar='HOST:PORT')
    option('--out', 'write evaluation.md, .json and .png into this folder', type=Path, metavar='FOLDER')
    option('--quiet', 'no progress bar', action='store_true')
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Measure, print the tables, and write the report; 130 after Ctrl-C."""
    from clipflow.relevance import report

    if given.out is not None:
        report.check(given.out)
        if not report.has_plot():
            warn('there will be no plot, because matplotlib is missing: pip install "clipflow[plot]"')
    try:
        found = _of_service(given) if given.host is not None else _of_models(given)
    except KeyboardInterrupt:
        again = 'begin again' if given.host else 'the same command goes on where this one stopped'
        warn(f'interrupted; {again}')
        return 130
    for measured in found.measured:
        print('\n'.join(report.table(measured)) + '\n')
    for fault in found.faults[:5]:
        warn(f'{fault.name}: {fault.reason}')
    if found.faults:
        warn(f'{len(found.faults):,} faults in all were left out; the rest is measured')
    if given.out is not None:
        for path in report.write(found, given.out, shlex.join(['clipflow', *sys.argv[1:]])):
            print(path)
    return 0


def _of_models(given: argparse.Namespace) -> 'Evaluation':
    from clipflow.cli.collection import progress
    from clipflow.relevance import evaluate
    from clipflow.relevance.captions import read_captions, read_labelled, read_pictures, splits_of
    from clipflow.relevance.tables import holds_labels, is_album

    systems, title, shown = _systems(given), _title(given), partial(progress, quiet=given.quiet)
    if holds_labels(given.set):
        if given.distractors or any(system.index_kind != 'flat' or system.head for system in systems):
            raise InvalidParameter(
                '--distractors, --index-kind and --head are for captions; these pictures have labels'
            )
        if given.split is None and is_album(given.set) and (splits := splits_of(given.set)):
            raise InvalidParameter(f'{given.set} has classes in {", ".join(splits)}; say which with --split')
        return evaluate.labelled(systems, read_labelled(given.set, given.images, given.split), title, shown)
    others = [picture for path in given.distractors for picture in read_pictures(path)]
    return evaluate.captions(systems, read_captions(given.set, given.images, given.split), others, title, shown)


def _of_service(given: argparse.Namespace) -> 'Evaluation':
    from clipflow.cli.collection import progress
    from clipflow.cli.service import opened
    from clipflow.relevance import service
    from clipflow.relevance.captions import read_captions
    from clipflow.relevance.tables import holds_labels

    ours = {
        '--model': given.model,
        '--distractors': given.distractors,
        '--against': given.against,
        '--head': given.head,
    }
    ours |= {'--runtime': given.runtime != 'auto', '--precision': given.precision != 'auto'}
    ours |= {'--index-kind': given.index_kind != 'flat'}
    if wrong := [name for name, value in ours.items() if value]:
        raise InvalidParameter(f'with --host the service decides; leave out {", ".join(wrong)}')
    if holds_labels(given.set):
        raise InvalidParameter('--host is for captions; these pictures have labels')
    chosen = read_captions(given.set, given.images, given.split)
    with opened(given) as client:
        parameters = {'limit': _LIMIT, 'include': []} | ({'templates': given.template} if given.template else {})

        def search(texts: Sequence[str]) -> list[list[tuple[str, float]]]:
            replies = client.search_many(texts, **parameters)
            return [[(match.id, match.score) for match in matches] for matches in replies]

        asked = service.Service(_told(given, client), lambda: stored_ids(client), search)
        return service.captions(asked, chosen, _title(given), partial(progress, quiet=given.quiet))


def _told(given: argparse.Namespace, client: 'Client') -> dict[str, str]:
    """What the service says of itself, as far as it decides about results."""
    wanted = {'model', 'fingerprint', 'runtime', 'precision', 'kind', 'index', 'head', 'documents'}
    stages = client.status()
    told = {name: str(value) for tags in stages.values() for name, value in tags.items() if name in wanted and value}
    return {'service': given.host, **told, 'templates': ' | '.join(given.template or [])}


def _systems(given: argparse.Namespace) -> 'list[System]':
    """What is measured, behind what it is compared with."""
    from clipflow.relevance.systems import System
    from clipflow.settings import EncoderSettings

    model = given.model or EncoderSettings.load().model
    templates = tuple(given.template) if given.template else None
    own = System(model, given.runtime, given.precision, templates, given.index_kind, given.head)
    other = _other(own, given.against) if given.against else replace(own, index_kind='flat', head=None)
    if given.against and own == other:
        raise InvalidParameter('--against changes nothing of what is measured; give it another value')
    systems = [own] if own == other else [other, own]
    for kind in {system.index_kind for system in systems} - {'flat'}:
        from clipflow.index.trial import check_kind

        check_kind(kind, 0)
    return systems


def _other(own: 'System', changes: Sequence[str]) -> 'System':
    templates = list[str]()
    for change in changes:
        key, separator, value = change.partition('=')
        if not separator or key not in _AGAINST:
            key, value = 'model', change
        if key == 'template':
            templates.append(value)
        elif key == 'head':
            own = replace(own, head=Path(value) if value else None)
        else:
            known = {'runtime': RUNTIMES, 'precision': PRECISIONS}.get(key, (value,))
            if value not in known:
                raise InvalidParameter(f'--against {change}: {key} is one of {", ".join(known)}')
            changed: dict[str, Any] = {key.replace('-', '_'): value}
            own = replace(own, **changed)
    return replace(own, templates=tuple(templates)) if templates else own


def _title(given: argparse.Namespace) -> str:
    folder = given.set.absolute().parent.name
    return f'{folder}/{given.set.name}' + (f', {given.split}' if given.split else '')
