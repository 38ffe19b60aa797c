"""The pages under test: they name everything there is, nothing that is not, and their commands and examples run.

A block of commands or Python that cannot run has a comment in the line before it, `<!-- not run: reason -->`; one that
shows an error has `<!-- fails with: code -->`. Everything else runs, page by page, against a real service.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clipflow import ROOT, catalogue, errors, settings, wire
from clipflow.cli import main
from clipflow_client import Client
from local_service import LocalService

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in (
        'README.md',
        'CHANGELOG.md',
        'docs/**/*.md',
        '*/README.md',
        'executors/**/README.md',
        'k8s/*/**/README.md',
    )
    for path in ROOT.glob(pattern)
)
GUIDES = [page for page in PAGES if page == 'README.md' or page.startswith('docs/')]
ROOMS = {
    'executors/preprocessor/README.md': settings.PreprocessorSettings,
    'executors/encoder/README.md': settings.EncoderSettings,
    'executors/indexer/README.md': settings.IndexerSettings,
    'executors/milvus_indexer/README.md': settings.MilvusSettings,
    'executors/ranker/README.md': settings.RankerSettings,
    'gateway/README.md': settings.GatewaySettings,
}
LANGUAGES = {'sh', 'python', 'json', ''}
SECONDS = 400
"""For one block: a command needs seconds before it begins, on a busy machine many, and a block may have six."""
PHOTOS = {
    'cat.jpg': 'chelsea.png',
    'rocket.jpg': 'rocket.jpg',
    'coffee.jpg': 'coffee.png',
    'camera.jpg': 'camera.png',
}
_PATH = re.compile(r'`((?:clipflow|executors|gateway|client|scripts|benchmarks|tests|models|docs|k8s)/[\w./-]*)`')


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the line of its first line, its text, and the mark in the line before it."""

    page: str
    language: str
    line: int
    text: str
    mark: str

    @property
    def is_run(self) -> bool:
        """Whether it is a command or Python that has to run."""
        return self.language in ('sh', 'python') and not self.mark.startswith('not run: ')


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding='utf-8')


def blocks_of(page: str) -> list[Block]:
    found = []
    lines = text_of(page).splitlines()
    start = None
    for number, line in enumerate(lines):
        if not line.startswith('```'):
            continue
        if start is None:
            start = number
        else:
            comment = re.fullmatch(r'<!-- (.*) -->', lines[start - 1])
            text = '\n'.join(lines[start + 1 : number]) + '\n'
            found.append(Block(page, lines[start][3:], start + 2, text, comment[1] if comment else ''))
            start = None
    assert start is None, f'{page}: a block does not end'
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = sorted({block.page for block in BLOCKS if block.is_run})
GUIDE_TEXT = '\n'.join(text_of(page) for page in GUIDES)


# -- what there is, is named ------------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len(text_of('README.md').splitlines()) < 200


@pytest.mark.parametrize('code', errors.BY_CODE)
def test_every_error_code_is_in_the_table(code: str) -> None:
    row = next(line for line in text_of('docs/design.md').splitlines() if line.startswith(f'| `{code}` | '))
    assert str(errors.BY_CODE[code].status) in row
    assert errors.BY_CODE[code].retryable == ('| yes |' in row)


@pytest.mark.parametrize('endpoint', wire.ENDPOINTS)
def test_every_endpoint_is_in_the_readme_and_the_design(endpoint: str) -> None:
    assert f'`{endpoint}`' in text_of('README.md')
    assert f'`{endpoint}`' in text_of('docs/design.md')


def test_every_parameter_of_a_search_is_explained() -> None:
    known = wire.SearchParameters.model_fields.keys() - {
        'deadline',
        'request_id',
        'model',
        'trace',
        'candidates',
        'head',
    }
    assert {name for name in known if f'`{name}`' not in text_of('docs/design.md')} == set()


def test_every_http_route_is_on_its_page() -> None:
    from clipflow.access import Access
    from clipflow.metrics import Metrics
    from clipflow.web.app import create_app

    async def flow(endpoint: str, docs: Any, parameters: dict[str, Any]) -> Any:
        raise AssertionError('nothing is called here')

    routes = create_app(flow, settings.GatewaySettings(), Access({}), Metrics()).openapi()['paths']
    named = [f'{method.upper()} {path}' for path, methods in routes.items() for method in methods]
    assert [name for name in named if f'`{name}' not in text_of('docs/http.md')] == []
    assert [path for path in routes if path not in text_of('README.md')] == []


def test_every_command_is_in_the_readme() -> None:
    actions: Any = main.parser()._subparsers
    commands = [name for action in actions._group_actions for name in action.choices]
    assert commands
    assert [name for name in commands if f'clipflow {name}' not in text_of('README.md')] == []


def test_every_tag_of_ours_that_a_reply_may_carry_is_explained() -> None:
    tags = (wire.ERROR, wire.MODEL, wire.GROUP, wire.TRUNCATED)
    assert [tag for tag in tags if f'`{tag}`' not in text_of('docs/design.md')] == []


def test_every_module_is_in_the_layout() -> None:
    modules = [path.name for path in (ROOT / 'clipflow').glob('[a-z]*.py')]
    packages = [path.parent.name + '/' for path in (ROOT / 'clipflow').glob('*/__init__.py')]
    assert [name for name in modules + packages if f'`clipflow/{name}`' not in text_of('docs/design.md')] == []


@pytest.mark.parametrize('page', ROOMS)
def test_the_page_of_a_room_names_its_settings(page: str) -> None:
    names = [f'`{settings.PREFIX}{name.upper()}`' for name in ROOMS[page].model_fields]
    assert [name for name in names if name not in text_of(page)] == []


def requirements(file: str) -> list[tuple[str, str]]:
    lines = text_of(file).partition('# what came with them')[0].splitlines()
    pairs = [line.split('==') for line in lines if '==' in line and not line.startswith('#')]
    return [(name, version) for name, version in pairs]


@pytest.mark.parametrize(
    'file',
    [
        'requirements.txt',
        'requirements-dev.txt',
        'executors/encoder/runtimes/onnx.txt',
        'executors/encoder/runtimes/openvino.txt',
        'executors/encoder/runtimes/tensorrt.txt',
        'executors/encoder/runtimes/triton.txt',
        'clipflow/bulk/requirements.txt',
        'clipflow/bulk/fetch/requirements.txt',
        'clipflow/bulk/embed/ray.txt',
        'clipflow/backup/s3.txt',
        'clipflow/cli/plot.txt',
        'clipflow/tuning/requirements.txt',
    ],
)
def test_every_requirement_has_its_reason(file: str) -> None:
    rows = [f'| `{name}` | {version} | ' for name, version in requirements(file)]
    assert [row for row in rows if row not in text_of('docs/dependencies.md')] == []


def test_every_model_of_the_catalogue_that_loads_is_listed() -> None:
    entries = list(catalogue._entries().values())
    page = text_of('docs/models.md')
    rows = [f'| `{entry.name}` | {entry.repository} |' for entry in entries if entry.loadable]
    assert [row for row in rows if row not in page] == []
    assert f'{len(entries) - len(rows)} names of weights that' in page


# -- what is named, is there ------------------------------------------------------------------------------------------


def test_the_page_of_settings_is_fresh() -> None:
    import write_configuration

    assert write_configuration.TARGET.read_text(encoding='utf-8') == write_configuration.page(), 'run: make config'


@pytest.mark.parametrize('page', PAGES)
def test_every_variable_that_is_named_is_a_setting(page: str) -> None:
    known = {settings.PREFIX + name.upper() for cls in settings.ALL for name in cls.model_fields}
    # The page of settings begins with "CLIPFLOW_NAME", which stands for all of them.
    named = set(re.findall(r'CLIPFLOW_[A-Z_]*[A-Z]', text_of(page))) - {'CLIPFLOW_NAME'}
    assert named - known == set()


@pytest.mark.parametrize('page', PAGES)
def test_every_file_that_is_named_is_there(page: str) -> None:
    assert [path for path in _PATH.findall(text_of(page)) if not (ROOT / path).exists()] == []


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    broken = []
    prose = re.sub(r'^```.*?^```', '', text_of(page), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r'\]\(([^)\s]+)\)', prose):
        if '://' in link:
            continue
        target, _, anchor = link.partition('#')
        path = (ROOT / page).parent / target if target else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert broken == []


# -- commands and examples --------------------------------------------------------------------------------------------


def test_blocks_have_a_known_language_and_a_known_mark() -> None:
    assert {block.language for block in BLOCKS} <= LANGUAGES
    marks = [block.mark for block in BLOCKS if block.mark]
    assert [mark for mark in marks if not re.match(r'(not run|fails with): \S', mark)] == []


def test_a_good_part_of_the_commands_runs() -> None:
    assert {'README.md', 'docs/client.md', 'docs/http.md'} <= set(RUN)


@pytest.mark.parametrize('block', [b for b in BLOCKS if b.language == 'sh'], ids=lambda b: f'{b.page}:{b.line}')
def test_commands_are_valid_shell(block: Block) -> None:
    checked = subprocess.run(['bash', '-n'], input=block.text, capture_output=True, text=True, check=False, timeout=60)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize('block', [b for b in BLOCKS if b.language == 'json'], ids=lambda b: f'{b.page}:{b.line}')
def test_json_is_valid(block: Block) -> None:
    json.loads(block.text)


@pytest.fixture(scope='session')
def documented_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """The service as `clipflow serve` runs it by default, on ports of its own."""
    with LocalService(tmp_path_factory.mktemp('documented')) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader sits: a folder with photographs."""
    import skimage
    from PIL import Image

    (tmp_path / 'photos').mkdir()
    for name, original in PHOTOS.items():
        with Image.open(Path(skimage.__file__).parent / 'data' / original) as picture:
            picture.convert('RGB').save(tmp_path / 'photos' / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def environment(documented_service: LocalService, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The reader's shell: `clipflow` on the path, and curl that fails where the service answers an error."""
    home = tmp_path_factory.mktemp('home')
    command = home / 'clipflow'
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m clipflow.cli.main "$@"\n', encoding='utf-8')
    command.chmod(0o755)
    (home / '.curlrc').write_text('fail-with-body\nnoproxy = "*"\n', encoding='utf-8')
    return {
        **os.environ,
        'PATH': f'{home}:{os.environ["PATH"]}',
        'CURL_HOME': str(home),
        'CLIPFLOW_GRPC_PORT': documented_service.grpc.rpartition(':')[2],
        'CLIPFLOW_WORKSPACE': str(documented_service.workspace),
    }


def run_commands(block: Block, service: LocalService, environment: dict[str, str]) -> None:
    text = block.text.replace('http://127.0.0.1:8080', service.http)
    run = subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', text],
        env=environment,
        capture_output=True,
        text=True,
        errors='replace',
        check=False,
        timeout=SECONDS,
    )
    said = f'{block.page}:{block.line}\n{block.text}\n{run.stdout}\n{run.stderr}'
    if block.mark:
        assert run.returncode != 0, said
        assert block.mark.removeprefix('fails with: ') in run.stdout + run.stderr, said
    else:
        assert run.returncode == 0, said


@pytest.mark.timeout(3 * SECONDS)
@pytest.mark.parametrize('page', RUN)
def test_the_commands_and_examples_of_a_page_run(
    page: str, documented_service: LocalService, folder: Path, environment: dict[str, str]
) -> None:
    with Client(documented_service.grpc) as client:
        client.clear()
    names: dict[str, Any] = {'__name__': '__main__'}
    # In a thread of its own, so that an example's event loop is not that of the tests.
    with ThreadPoolExecutor(1) as reader:
        for block in blocks_of(page):
            if block.is_run and block.language == 'sh':
                run_commands(block, documented_service, environment)
            elif block.is_run:
                text = block.text.replace('127.0.0.1:51000', documented_service.grpc)
                code = compile('\n' * (block.line - 1) + text, str(ROOT / page), 'exec')
                reader.submit(exec, code, names).result(timeout=SECONDS)
    if page == 'README.md':
        assert (folder / 'out.png').stat().st_size > 10_000
