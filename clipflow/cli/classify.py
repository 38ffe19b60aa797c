"""`clipflow classify`: zero-shot classes of the pictures of a folder, as columns of a CSV file."""

import argparse
import asyncio
import contextlib
import csv
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipflow.cli import charts
from clipflow.cli.collection import progress
from clipflow.cli.index import walk
from clipflow.cli.service import add_address, api_key, opened, prepare, warn
from clipflow.cli.sheet import Sheet
from clipflow.errors import ClipflowError, Conflict, InvalidDocument, InvalidParameter, NotFound
from clipflow.files import located

if TYPE_CHECKING:
    from docarray import Document

    from clipflow_client import AsyncClient

SAVE_SECONDS = 5.0
SAVE_PAUSE = 9
"""Times as long as a save takes pass before the next one, so that saves cost a tenth of the time at most."""

Question = dict[str, list[str]]
"""The parameters of `/classify`: labels and templates."""


def add_commands(commands: Any) -> None:
    """Add `classify`."""
    command = commands.add_parser(
        'classify',
        help='sort pictures into classes that you name',
        description='Ask of each picture of a folder which of the labels fits it best, and write the answers into '
        'columns of a CSV file. Nothing is trained, and nothing is stored in the service. Pictures that are classified '
        'already are skipped, so an interrupted run goes on where it stopped. Of one picture, print a table.',
    )

    def option(name: str, explained: str, **kind: Any) -> None:
        command.add_argument(name, help=explained, **kind)

    option('path', 'a folder, or one picture', type=Path, metavar='FOLDER')
    option('--labels', 'at least two; one with a comma in "..."', action='append', default=[], metavar='A,B,...')
    option('--template', 'a sentence with {} for the label; several are averaged ({})', action='append', metavar='TEXT')
    option('--csv', 'where to; the columns that are there are kept', type=Path, metavar='FILE')
    option('--column', 'the column of the label (label)', default='label')
    option('--key', 'the column that names the pictures: paths in FOLDER, or stems (file)', default='file')
    option('--probabilities', 'one more column for each label', action='store_true')
    option('--force', 'forget what COLUMN holds, and classify all again', action='store_true')
    option('--plot', 'also draw the classes and a sample of each', type=Path, metavar='FILE')
    option('--seed', 'chooses the samples of the plot (0)', type=int, default=0)
    option('--quiet', 'no progress bar', action='store_true')
    add_address(command)
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Classify, write the CSV, and print a summary; 1 if any picture failed, 130 after Ctrl-C."""
    question = _question(given)
    if not given.path.exists():
        raise NotFound(f'{given.path}: there is no such file or folder')
    if not given.path.is_dir():
        return _one(given, question)
    if given.csv is None:
        raise InvalidParameter('for a folder, name the CSV file of the classes with --csv')
    if given.plot is not None:
        charts.check(given.plot)
    folder = located(given.path)
    found = walk(folder, lambda path, reason: warn(f'{path}: {reason}'))
    files = {path.relative_to(folder).as_posix(): path for path in found}
    if not files:
        raise NotFound(f'{given.path} holds no pictures')
    with contextlib.closing(Sheet(given.csv, given.key)) as sheet:
        work = Work(given, question, files, sheet)
        code = work.run()
    if given.plot is not None and code != 130:
        charts.draw(given.plot, f'{given.column} of {folder.resolve().name}', work.counts(), work.samples)
        print(f'the plot is in {given.plot}')
    return code


def _question(given: argparse.Namespace) -> Question:
    given_lines = [line for text in given.labels for line in text.splitlines()]
    lines = csv.reader(given_lines, skipinitialspace=True)
    labels = [label.strip() for line in lines for label in line if label.strip()]
    if len(labels) < 2:
        there = f'{labels[0]!r} is one' if labels else 'there is none'
        raise InvalidParameter(f'name at least two labels, such as --labels dawn,day,dusk,night; {there}')
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        raise InvalidParameter(f'the label {twice[0]!r} is there twice')
    templates = given.template or ['{}']
    for template in templates:
        if template.count('{}') != 1:
            raise InvalidParameter(f'a template has one place {{}} for the label; {template!r} has not')
    return {'labels': labels, 'templates': templates}


def _one(given: argparse.Namespace, question: Question) -> int:
    if given.csv is not None or given.plot is not None:
        raise InvalidParameter('--csv and --plot are for a folder, not for one picture')
    with opened(given) as client:
        from docarray import DocumentArray

        label, shares = _answer(client.post('/classify', DocumentArray([_picture(given.path)]), question)[0], question)
    charts.table(label, shares)
    print(f'This photo is classified as {label}.')
    return 0


def _picture(path: Path, name: str = 'picture') -> 'Document':
    """A Document with what is in a file, or InvalidDocument raised."""
    from docarray import Document

    from clipflow_client import document

    return Document(id=name, blob=document(path).blob)


def _answer(doc: 'Document', question: Question) -> tuple[str, dict[str, float]]:
    """Label, and the probability (0 to 1) of each in the order of the labels; the error that came back is raised."""
    from clipflow_client.results import outcome_of

    if (error := outcome_of(doc).error) is not None:
        raise error
    return doc.tags['label'], {label: doc.tags['probabilities'][label] for label in question['labels']}


class Work:
    """One run over a folder: what is to be done, and what has become of it.

    Args:
        given: the arguments of the command.
        question: labels and templates.
        files: the pictures by their path below the folder, with / between its parts.
        sheet: the CSV.
    """

    def __init__(self, given: argparse.Namespace, question: Question, files: dict[str, Path], sheet: Sheet) -> None:
        self.given, self.question, self.files, self.sheet = given, question, files, sheet
        self.columns = [given.column, f'{given.column}_probability']
        self.of_labels = [f'{given.column}_{label}' for label in question['labels']]
        for name, count in Counter([given.key, *self.columns, *self.of_labels]).items():
            if count > 1:
                raise InvalidParameter(f'two columns would have the name {name!r}; choose another --column')
        self.samples: list[charts.Sample] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.todo: list[str] = []
        self.classified = 0
        self.failed: list[tuple[str, str]] = []

    def run(self) -> int:
        """Classify what is to do and print what came of it; the exit code."""
        again = 'the same command goes on where this one stopped'
        code = 0
        prepare()  # not `opened`, which would bring an event loop of its own
        # Before the loop runs: importing Jina takes Ctrl-C away from it.
        from clipflow_client import AsyncClient

        try:
            asyncio.run(self._all(AsyncClient))
        except KeyboardInterrupt:
            warn(f'interrupted; {again}')
            code = 130
        except ClipflowError:
            if self.rows:
                warn(f'{self.classified:,} of {len(self.todo):,} pictures are classified; {again}')
            raise
        finally:
            if self.rows:
                self.sheet.save()
        for name, reason in self.failed:
            warn(f'{name if name.isprintable() else ascii(name)}: {reason}')
        before = len(self.rows) - len(self.todo)
        print(f'{self.classified:,} classified, {before:,} skipped (done before), {len(self.failed):,} failed')
        for label, count in self.counts().items():
            print(f'{count:8,}  {label}')
        return code or (1 if self.failed else 0)

    def counts(self) -> dict[str, int]:
        """Pictures of the folder by their class, in the order of the labels; earlier runs count too."""
        found = Counter(self.sheet.value(rows[0], self.given.column) for rows in self.rows.values())
        return {label: found[label] for label in self.question['labels']}

    def _fits(self, name: str) -> bool:
        """Whether the CSV can hold the name of this file."""
        try:
            name.encode()
        except UnicodeEncodeError:
            self.failed.append((name, 'its name is not UTF-8, which a CSV file could not hold'))
            return False
        return True

    def _begin(self, model: str) -> None:
        """Make rows and columns ready; `todo` are the pictures that have no answer to this question yet.

        Raises:
            Conflict: the columns hold something else (other labels, templates or model), and --force is not given.
        """
        sheet, column, force = self.sheet, self.given.column, self.given.force
        asked: dict[str, Any] = {name: sorted(texts) for name, texts in self.question.items()} | {'model': model}
        known = sheet.notes.get(column, {})
        ours = known.get('columns', [])
        changed = [name for name in asked if known.get(name) != asked[name]]
        if ours and changed and sheet.has_values(column) and not force:
            what = ' and '.join(changed)
            raise Conflict(
                f'{column!r} in {sheet.path} is from other {what}; '
                'choose another --column, or --force to classify all again'
            )
        if self.given.probabilities or (not changed and set(self.of_labels) <= set(ours)):
            self.columns += self.of_labels
        for name in self.columns:
            if name not in ours and sheet.has_values(name) and not force:
                raise Conflict(
                    f'{name!r} in {sheet.path} has values that are not from this command; '
                    'choose another --column, or --force to replace them'
                )
        self.rows = sheet.rows_of([name for name in self.files if self._fits(name)], self.given.key)
        if force or changed:
            for name in ours:
                sheet.remove(name)
        for name in self.columns:
            sheet.add(name, empty=force)
        # In this order: if we are killed in between, no old answer passes for one to the new question.
        sheet.save()
        sheet.note(column, asked | {'columns': self.columns})
        for name, rows in self.rows.items():
            if not all(sheet.value(row, told) for row in rows for told in self.columns):
                self.todo.append(name)

    async def _all(self, kind: 'type[AsyncClient]') -> None:
        # One client, and so one event loop: gRPC's two loops in one process disturb each other.
        async with kind(self.given.host, api_key=api_key()) as client:
            told = await client.status()
            self._begin(next((str(tags['fingerprint']) for tags in told.values() if 'fingerprint' in tags), ''))
            bar = (
                contextlib.nullcontext(int)
                if self.given.quiet or not self.todo
                else progress('classifying', len(self.todo))
            )
            with bar as self._moved:
                await self._send(client)
            if self.given.plot is not None:
                await self._choose_samples(client)

    async def _send(self, client: 'AsyncClient') -> None:
        saved, pause = time.monotonic(), SAVE_SECONDS
        replies = client.stream('/classify', self._documents(), self.question)
        async with contextlib.aclosing(replies):  # type: ignore[type-var]
            async for reply in replies:
                for doc in reply:
                    self._take(doc)
                if (start := time.monotonic()) - saved >= pause:
                    self.sheet.save()
                    await asyncio.sleep(0)  # hears Ctrl-C, also if more replies are there already
                    saved = time.monotonic()
                    # A large file is written less often: at most a tenth of the time goes into writing.
                    pause = max(SAVE_SECONDS, SAVE_PAUSE * (saved - start))

    async def _choose_samples(self, client: 'AsyncClient') -> None:
        """Ask again for those few: of what was classified before, not all probabilities are known."""
        from docarray import DocumentArray

        classes = {name: self.sheet.value(rows[0], self.given.column) for name, rows in self.rows.items()}
        for label, name in charts.choose(self.counts(), classes, self.files, self.given.seed).items():
            path = self.files[name]
            reply = await client.post('/classify', DocumentArray([_picture(path)]), self.question)
            self.samples.append(charts.Sample(path, name, label, _answer(reply[0], self.question)[1]))

    def _documents(self) -> Iterator['Document']:
        """One picture after the other, its place in `todo` as the id; one that cannot be read fails here."""
        for place, name in enumerate(self.todo):
            try:
                yield _picture(self.files[name], str(place))
            except InvalidDocument as error:
                self._fail(str(place), error)

    def _take(self, doc: 'Document') -> None:
        try:
            label, shares = _answer(doc, self.question)
        except ClipflowError as error:
            self._fail(doc.id, error)
            return
        cells = [label, *(f'{share:.4f}' for share in [shares[label], *shares.values()])]
        for row in self.rows[self.todo[int(doc.id)]]:
            # Those of the single labels are left over where there are no columns for them.
            for column, cell in zip(self.columns, cells, strict=False):
                self.sheet.put(row, column, cell)
        self.classified += 1
        self._moved(1)

    def _fail(self, place: str, error: ClipflowError) -> None:
        name = self.todo[int(place)]
        reason = error.message.removeprefix(f'{place!r}: ').removeprefix(f'{self.files[name]} ')
        self.failed.append((name, reason))
        self._moved(1)
