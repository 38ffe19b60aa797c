"""A browser for all tests of the page, and pictures to store."""

import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from clipflow import ROOT
from service import Service

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from .browser import Page

AXE = '4.14.1'
DATA = Path(os.environ.get('CLIPFLOW_TEST_DATA', ROOT.parent / 'shared' / 'data'))
NAMES = ('chelsea.png', 'coffee.png', 'rocket.jpg', 'camera.png', 'moon.png', 'brick.png', 'astronaut.png')


@pytest.fixture(scope='session')
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator['Chrome']:
    """Chromium, or the test is skipped."""
    pytest.importorskip('selenium', reason='selenium is not installed')
    from . import browser

    for program in (browser.CHROMIUM, browser.CHROMEDRIVER):
        if not program.exists():
            pytest.skip(f'there is no {program}: apt-get install chromium chromium-driver')
    driver = browser.start(tmp_path_factory.mktemp('chromium'))
    yield driver
    driver.quit()


@pytest.fixture
def page_of(chromium: 'Chrome') -> Iterator[Callable[[str], 'Page']]:
    """Makes a page of a service, in a browser that remembers nothing."""
    from .browser import Page

    pages: list[Page] = []

    def make(address: str) -> Page:
        pages.append(Page(chromium, address))
        pages[-1].prefer()
        chromium.execute_cdp_cmd('Storage.clearDataForOrigin', {'origin': address, 'storageTypes': 'all'})
        chromium.execute_cdp_cmd('Network.clearBrowserCache', {})
        chromium.get('about:blank')
        chromium.get_log('browser')
        return pages[-1]

    yield make
    for page in pages:
        # What a test has left running must not ask a service that is stopped.
        page.run('sessionStorage.clear(); localStorage.clear(); onbeforeunload = null')
        chromium.get('about:blank')


@pytest.fixture
def page(fake: Service, page_of: Callable[[str], 'Page']) -> 'Page':
    """The page of the service `fake`, not loaded yet."""
    return page_of(f'{fake.http}/')


@pytest.fixture
def album(http: httpx.Client, photographs: Path) -> list[str]:
    """Seven photographs and two texts with tags, stored in the service `fake`; their ids."""
    for place, name in enumerate(NAMES):
        tags = f'{{"album": "{("A", "B", "C")[place % 3]}", "stars": {place % 2}}}'
        files = [('files', (name, (photographs / name).read_bytes()))]
        http.post('/v1/documents', files=files, data={'tags': tags}).raise_for_status()
    texts = [
        {'id': 'note', 'text': 'the cat is asleep', 'tags': {'album': 'A', 'stars': 1}},
        {'id': '<b>bold</b>', 'text': '<img src=x onerror="document.title=1">', 'tags': {'<i>tag</i>': '<u>value</u>'}},
    ]
    http.post('/v1/documents', json={'documents': texts}).raise_for_status()
    return [*NAMES, 'note', '<b>bold</b>']


@pytest.fixture
def twenty(photographs: Path) -> list[Path]:
    """Twenty photographs as files."""
    paths = sorted(path for path in photographs.iterdir() if path.suffix in ('.jpg', '.png'))
    assert len(paths) >= 20
    return paths[:20]


@pytest.fixture(scope='session')
def unsplash() -> Iterator[zipfile.ZipFile]:
    """A thousand photographs, or the test is skipped."""
    archive = DATA / 'unsplash' / 'photos.zip'
    if not archive.exists():
        pytest.skip(f'the photographs {archive} are not here')
    with zipfile.ZipFile(archive) as opened:
        yield opened


@pytest.fixture(scope='session')
def axe() -> str:
    """The source of axe-core, kept below .cache/, or the test is skipped."""
    script = ROOT / '.cache' / f'axe-core-{AXE}' / 'package' / 'axe.min.js'
    if not script.exists():
        folder = script.parent.parent
        folder.mkdir(parents=True, exist_ok=True)
        try:
            command = ['npm', 'pack', f'axe-core@{AXE}', '--pack-destination', str(folder)]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f'npm cannot fetch axe-core {AXE}: {error}')
        with tarfile.open(folder / f'axe-core-{AXE}.tgz') as archive:
            member = archive.extractfile('package/axe.min.js')
            assert member is not None
            script.parent.mkdir(exist_ok=True)
            script.write_bytes(member.read())
    return script.read_text()
