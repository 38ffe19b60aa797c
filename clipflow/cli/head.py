"""`clipflow head`: a head for the ranker, trained and put to use."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipflow.cli.service import add_address, opened, stored_ids
from clipflow.errors import InvalidParameter, NotFound

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clipflow.rank.fit import Lists
    from clipflow.rank.head import Head
    from clipflow.tuning.head import Figure
    from clipflow_client import Client

_PAGE = 500
_SHOWN = 5


def add_commands(commands: Any) -> None:
    """Add `head` with `train`, `apply`, `rollback`, `off` and `status`."""
    command = commands.add_parser('head', help='order results by what people clicked')
    parts = command.add_subparsers(dest='part', metavar='part', required=True)
    train = parts.add_parser(
        'train',
        help='train a head from clicks or from captions',
        description='Train a head for the ranker, in seconds: vectors are taken from the service or a workspace, and '
        'nothing is encoded again but captions. A fifth of the queries is held out, and the head is marked as fit to '
        'go live only if it orders their results no worse than the cosine.',
    )
    what = train.add_mutually_exclusive_group(required=True)
    what.add_argument('--feedback', type=Path, metavar='FILE.jsonl', help='written by `clipflow feedback export`')
    what.add_argument('--pairs', type=Path, metavar='FILE', help='captions of indexed pictures (jsonl, csv, json)')
    train.add_argument('--images', type=Path, metavar='PATH', help='with --pairs: folder or zip file of the pictures')
    train.add_argument('--split', help='with --pairs: only the captions of this split')
    train.add_argument('--workspace', type=Path, metavar='DIR', help='with --feedback: vectors from here, not --host')
    train.add_argument('--out', type=Path, required=True, metavar='FILE.safetensors', help='where to')
    train.add_argument('--rank', type=int, default=32, help='of the matrix (32)')
    train.add_argument('--blend', type=float, default=1.0, help='share of the head in the score, 0 to 1 (1)')
    train.add_argument('--held-out', type=float, default=0.2, help='share of the queries that the check keeps (0.2)')
    train.add_argument('--seed', type=int, default=0, help='of the split and the start (0)')
    train.set_defaults(run=learn)
    apply = parts.add_parser('apply', help='let a head order results from now on, without a restart')
    apply.add_argument('file', type=Path, metavar='FILE', help='a head')
    apply.add_argument('--force', action='store_true', help='also one that did not pass its check')
    apply.set_defaults(run=put_live)
    rollback = parts.add_parser('rollback', help='go back to the head before')
    rollback.set_defaults(run=change, do='rollback')
    off = parts.add_parser('off', help='order results by the cosine; `rollback` switches it on again')
    off.set_defaults(run=change, do='off')
    status = parts.add_parser('status', help='which head is live')
    status.set_defaults(run=show)
    for part in (train, apply, rollback, off, status):
        add_address(part)


def learn(given: argparse.Namespace) -> int:
    """Train, check and write."""
    from clipflow.cli.service import warn
    from clipflow.tuning import head as heads

    if not 0 < given.held_out < 1 or not 0 <= given.blend <= 1 or given.rank < 1 or given.seed < 0:
        raise InvalidParameter(
            '--held-out lies between 0 and 1, --blend from 0 to 1, --rank is at least 1, and --seed at least 0'
        )
    if given.workspace is not None and given.pairs is not None:
        raise InvalidParameter('captions are encoded by the service: with --pairs, leave out --workspace')
    recipe = heads.Recipe(given.rank, given.blend, given.held_out, given.seed)
    lists, model = _from_feedback(given) if given.feedback is not None else _from_pairs(given)
    source = f'{given.feedback or given.pairs}, {len(lists):,} lists'

    def told(epoch: int, loss: float, validation: float) -> None:
        if epoch % 10 == 0:
            warn(f'epoch {epoch}: loss {loss:.4f}, on validation {validation:.4f}')

    head, figures = heads.train(lists, model, source, recipe, told)
    head.write(given.out)
    _print(head, figures, given.out)
    return 0


def _from_feedback(given: argparse.Namespace) -> 'tuple[Lists, str]':
    from clipflow.clicks import read_log
    from clipflow.tuning import head as heads

    read, faults = read_log(given.feedback)
    entries = list(read.values())
    _tell_faults([(f'line {number}', reason) for number, reason in faults.items()])
    ids = list(dict.fromkeys(name for entry in entries for name in entry.shown))
    if given.workspace is None:
        with opened(given) as client:
            rows, model = _of_service(client, ids), _model(client)
    else:
        rows, model = _of_workspace(given.workspace, ids)
    return heads.from_feedback(entries, rows, model), model


def _from_pairs(given: argparse.Namespace) -> 'tuple[Lists, str]':
    from clipflow.relevance.captions import read_captions
    from clipflow.relevance.service import matched
    from clipflow.tuning import head as heads

    chosen = read_captions(given.pairs, given.images, given.split)
    with opened(given) as client:
        model = _model(client)
        ids = list(stored_ids(client))
        numbers, unmatched, _ = matched(ids, chosen)
        _tell_faults([(fault.name, fault.reason) for fault in (*chosen.faults, *unmatched)])
        # All documents are candidates, as in a search.
        rows = _of_service(client, ids) if numbers else {}
        names = {number: name for name, number in numbers.items() if name in rows}
        known = [(names[number], text) for number, text in chosen.captions if number in names]
        if not known:
            raise NotFound(f'none of the pictures of {given.pairs} is in the service; index them under their names')
        queries = client.encode([text for _, text in known])
    return heads.from_pairs(queries, [name for name, _ in known], rows), model


def _tell_faults(faults: Sequence[tuple[str, str]]) -> None:
    from clipflow.cli.service import warn

    for name, reason in faults[:_SHOWN]:
        warn(f'{name}: {reason}')
    if faults:
        warn(f'{len(faults):,} faults in all were left out')


def _model(client: 'Client') -> str:
    return str(client.status()['ranker']['fingerprint'])


def _of_service(client: 'Client', ids: Sequence[str]) -> 'dict[str, NDArray[np.float32]]':
    from clipflow.cli.collection import progress

    rows: dict[str, NDArray[np.float32]] = {}
    with progress('reading vectors', len(ids)) as moved:
        for start in range(0, len(ids), _PAGE):
            some = ids[start : start + _PAGE]
            rows |= {name: doc.embedding for name, doc in client.get(some, include=['embedding']).items()}
            moved(len(some))
    return rows


def _of_workspace(workspace: Path, ids: Sequence[str]) -> 'tuple[dict[str, NDArray[np.float32]], str]':
    from clipflow.bulk.workspace import shards_in
    from clipflow.store import generations, layout
    from clipflow.store.reading import Documents

    folder = generations.current(workspace)
    shards_in(folder)  # or says what is wrong with them
    stores = [Documents(path) for path in layout.shards(folder).values()]
    found = [record for store in stores for record in store.by_ids(ids, vectors=True).values()]
    return {r.id: r.vector for r in found if r.vector is not None}, stores[0].model()[0]


def _print(head: 'Head', figures: 'dict[str, Figure]', file: Path) -> None:
    print(f'{head.figures["queries"]} queries were held out; 95 % intervals in brackets\n')
    print(f'{"":<10} {"cosine":<24} {"head":<24} difference')
    for name, figure in figures.items():
        cells = [f'{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]' for e in (figure.cosine, figure.head)]
        change = figure.difference
        print(f'{name:<10} {cells[0]:<24} {cells[1]:<24} {change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]')
    print(f'\nhead {head.version} in {file}')
    if head.passed:
        print(f'it passed its check; `clipflow head apply {file}` lets it order results')
    else:
        print('it did not pass its check: held-out queries are ordered worse than by the cosine; it is not applied')


def put_live(given: argparse.Namespace) -> int:
    """Send a head to the ranker."""
    from clipflow.rank.head import Head

    head = Head.read(given.file)
    with opened(given) as client:
        _tell(client.ranker('load', content=head.content(), force=given.force))
    return 0


def change(given: argparse.Namespace) -> int:
    """Roll back or switch off."""
    with opened(given) as client:
        _tell(client.ranker(given.do))
    return 0


def show(given: argparse.Namespace) -> int:
    """Print which head is live."""
    with opened(given) as client:
        _tell(client.status()['ranker'])
    return 0


def _tell(state: dict[str, Any]) -> None:
    print('results are in the order of the cosine' if state['head'] == 'none' else f'head {state["head"]} is live')
    for label, value in (('made', state['head_made']), ('file', state['head_file'])):
        if value:
            print(f'  {label}: {value}')
    if state['heads_before']:
        print(f'  before: {", ".join(state["heads_before"])}')
    for warning in state['warnings']:
        print(f'  warning: {warning}')
