"""clip-retrieval's own front end, as its package ships it, in a real browser before our service."""

import base64
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from environments import clip_retrieval
from forms import long
from service import Service

from .browser import Page

pytestmark = long
COUNT = 120
_HOST = "document.querySelector('clip-front')"
_SHOWN = f"""return [...{_HOST}.shadowRoot.querySelectorAll('#products figure')].map((figure) => {{
  const image = figure.querySelector('img.pic');
  return {{
    score: figure.querySelector('p')?.textContent, caption: figure.querySelector('figcaption').textContent.trim(),
    source: image.src.slice(0, 60), width: image.naturalWidth, hidden: getComputedStyle(figure).display === 'none',
  }};
}});"""


class _Front(SimpleHTTPRequestHandler):
    """Serves the folder of the front end, with the configuration that `clip-retrieval front` gives it."""

    config = b''
    picture = b''

    def do_GET(self) -> None:
        """What the front end asks for."""
        own = {'/config.json': self.config, '/rocket.jpg': self.picture}.get(self.path.partition('?')[0])
        if own is None:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header('content-length', str(len(own)))
        self.end_headers()
        self.wfile.write(own)

    def log_message(self, *about: Any) -> None:
        """Say nothing."""


class Front:
    """The front end in a tab."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def inside(self, selector: str) -> Any:
        """An element of its shadow root, when it is there."""
        script = f'return {_HOST}?.shadowRoot?.querySelector(arguments[0])'
        return self.page.until(lambda: self.page.run(script, selector), selector)

    def search(self, words: str) -> list[dict[str, Any]]:
        """Type and press Enter; what is shown when all of its pictures are there."""
        box = self.inside('#searchBar')
        box.clear()
        box.send_keys(words, Keys.ENTER)
        return self.shown(lambda: f'query={words.partition(" ")[0]}' in self.page.driver.current_url)

    def shown(self, ready: Callable[[], bool]) -> list[dict[str, Any]]:
        """The results, once `ready` and all their pictures are loaded."""

        def all_there() -> list[dict[str, Any]]:
            found = [item for item in self.page.run(_SHOWN) if not item['hidden']] if ready() else []
            return found if all(item['width'] for item in found) else []

        return self.page.until(all_there, 'results with their pictures')


@pytest.fixture(scope='module')
def service(
    unsplash: zipfile.ZipFile, photographs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, str]]:
    """A service with photographs whose origins the front end may call, and the address of the front end."""
    folder = clip_retrieval().parents[1].resolve()
    (build,) = folder.glob('lib/python*/site-packages/front/build')
    rocket = (photographs / 'rocket.jpg').read_bytes()
    handler = type('Handler', (_Front,), {'picture': rocket})
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(handler, directory=str(build))) as server:
        address = f'http://127.0.0.1:{server.server_port}'
        with (
            Service(tmp_path_factory.mktemp('front'), {'CORS_ORIGINS': address}) as running,
            httpx.Client(base_url=running.http, timeout=300, trust_env=False) as client,
        ):
            config = {'defaultBackend': running.http, 'defaultIndex': '', 'urlColumn': 'url'}
            handler.config = json.dumps(config).encode()
            names = sorted(unsplash.namelist())[:COUNT]
            files = [('files', (name, unsplash.read(name))) for name in names]
            assert client.post('/v1/documents', files=files).json()['stored'] == COUNT
            # As those who fetched their pictures from elsewhere have it: an address, and a caption.
            rocket_document = {
                'id': 'rocket',
                'embedding': vector(client, rocket),
                'uri': f'{address}/rocket.jpg',
                'tags': {'caption': 'ROCKET'},
            }
            assert client.post('/v1/documents', json={'documents': [rocket_document]}).json()['stored'] == 1
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield running, address
            server.shutdown()


def vector(client: httpx.Client, content: bytes) -> list[float]:
    """The model's embedding of a picture."""
    inputs = [{'image': base64.b64encode(content).decode()}]
    found: list[float] = client.post('/v1/encode', json={'inputs': inputs}).json()['items'][0]['embedding']
    return found


@pytest.fixture
def front(service: tuple[Service, str], page_of: Callable[[str], Page]) -> Front:
    page = page_of(f'{service[1]}/')
    page.driver.get(page.address)
    return Front(page)


def test_words_find_pictures_and_scrolling_more_of_them(front: Front, service: tuple[Service, str]) -> None:
    found = front.search('a rocket launch')
    asked = {'text': 'a rocket launch', 'limit': 40, 'dedup': 0.94}
    matches = httpx.post(f'{service[0].http}/v1/search', json=asked, timeout=60).json()['matches']
    assert len(found) == len(matches) == 40
    assert [item['caption'] == 'ROCKET' for item in found] == [match['id'] == 'rocket' for match in matches]
    sources = {item['source'] for item in found if item['caption'] != 'ROCKET'}
    assert all(source.startswith('data:image/png;base64, UklGR') for source in sources), 'our thumbnails, as WebP'
    assert [item['source'] for item in found if item['caption']] == [f'{service[1]}/rocket.jpg']
    front.inside('#filter label:nth-of-type(3) input').click()
    scores = [item['score'] for item in front.shown(lambda: True)]
    assert scores == [f'{match["score"]:.4f}' for match in matches]

    def bottom() -> bool:
        front.page.run('window.scrollTo(0, document.body.scrollHeight)')
        return len(front.page.run(_SHOWN)) == COUNT + 1

    front.page.size(900, 600)
    assert len(front.shown(bottom)) == COUNT + 1, 'forty at first, the others by /metadata'
    # Of its own files some are not in its package.
    assert [said for said in front.page.complaints() if service[1] not in said] == []


def test_a_click_and_a_file_search_by_picture(front: Front, photographs: Path) -> None:
    third = front.search('a beach')[2]
    front.page.run(f"{_HOST}.shadowRoot.querySelectorAll('.subImageSearch')[2].click()")
    again = front.shown(lambda: 'query=' not in front.page.driver.current_url)
    assert again[0]['source'] == third['source']
    front.inside('#filechooser').send_keys(str(photographs / 'rocket.jpg'))
    front.shown(lambda: front.page.run(_SHOWN)[0]['caption'] == 'ROCKET')
    front.inside('#filter label:nth-of-type(3) input').click()
    assert front.shown(lambda: True)[0]['score'] == '1.0000'


def test_an_address_opens_what_it_shows(front: Front, service: tuple[Service, str]) -> None:
    found = front.search('a mountain')
    link = front.page.driver.current_url
    assert 'index=clipflow' in link
    front.page.driver.get('about:blank')
    front.page.driver.get(link)
    assert front.shown(lambda: 'query=a+mountain' in front.page.driver.current_url) == found
    front.page.until(lambda: front.inside('#filter select').text == 'clipflow', 'the name of the index')
