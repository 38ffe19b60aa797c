"""Accessibility, weight, headers, and a proxy with a prefix."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from service import Service

from .browser import Page

MOST_BYTES = 150_000


def faults(page: Page, axe: str) -> list[str]:
    """What axe calls serious or critical, where and why."""
    page.run(axe)
    script = "const done = arguments[0]; axe.run({resultTypes: ['violations']}).then((x) => done(x.violations))"
    found: list[dict[str, Any]] = page.driver.execute_async_script(script)
    return [
        f'{rule["id"]}: {node["target"]} {node["failureSummary"]}'
        for rule in found
        if rule['impact'] in ('serious', 'critical')
        for node in rule['nodes']
    ]


@pytest.mark.parametrize('colours', ['light', 'dark'])
@pytest.mark.parametrize('view', ['results', 'filtered', 'large', 'adding', 'classes', 'narrow', 'empty', 'error'])
def test_everybody_can_use_it(page: Page, request: pytest.FixtureRequest, axe: str, view: str, colours: str) -> None:
    if view != 'empty':
        request.getfixturevalue('album')
    page.prefer(color_scheme=colours, reduced_motion='reduce')
    if view == 'narrow':
        page.size(390, 844)
    queries = {'filtered': '?q=cat&part=text:-0.5:dog&f.album=A&f.stars=1', 'error': '?part=id:1:nobody'}
    page.open(queries.get(view, '?q=cat' if view != 'empty' else ''))
    page.until(lambda: page.one('#status summary').text, 'the status')
    if view in ('large', 'adding', 'classes'):
        page.click({'large': '.view', 'adding': '#add', 'classes': '#show-classes'}[view])
    if view in ('large', 'adding'):
        page.until(lambda: page.one('dialog[open]').is_displayed(), 'the dialog')
    if view == 'narrow':
        page.one('#show-facets').click()
    assert faults(page, axe) == []


@pytest.mark.usefixtures('album')
def test_the_page_is_light(page: Page) -> None:
    page.open()
    page.until(lambda: page.one('#status summary').text, 'the status')
    page.until(lambda: page.all('#facets details'), 'the filters')
    own = [entry for entry in page.requests('') if 'v1/thumbnails' not in entry['name']]
    document = page.run("return performance.getEntriesByType('navigation')[0].transferSize")
    bytes_in_all = document + sum(entry['transferSize'] for entry in own)
    print(f'first paint: {bytes_in_all:,} bytes in {len(own) + 1} requests')
    assert 10_000 < bytes_in_all < MOST_BYTES, 'neither heavy nor from the cache'
    assert all(entry['name'].startswith(page.address) for entry in own), 'nothing comes from elsewhere'


def test_headers_and_files(http: httpx.Client) -> None:
    index = http.get('/')
    assert index.headers['content-type'] == 'text/html; charset=utf-8'
    policy = index.headers['content-security-policy']
    assert "default-src 'self'" in policy
    assert 'unsafe' not in policy
    assert index.headers['x-content-type-options'] == 'nosniff'
    script = http.get('/page/main.js')
    assert script.headers['content-type'] == 'text/javascript; charset=utf-8'
    assert http.get('/page/main.js', headers={'If-None-Match': script.headers['etag']}).status_code == 304
    plain = http.get('/page/main.js', headers={'Accept-Encoding': 'identity'})
    assert 'content-encoding' not in plain.headers
    assert plain.text == script.text
    assert http.head('/').status_code == 200


@pytest.mark.parametrize(
    'name', ['nothing.js', '..%2fpage.py', '%2e%2e%2fpage.py', '..%5cpage.py', 'page.py', '.', '%00']
)
def test_only_the_files_of_the_page_are_served(http: httpx.Client, name: str) -> None:
    reply = http.get(f'/page/{name}')
    assert reply.status_code == 404
    assert reply.json()['code'] == 'not-found'


class _Prefixed(BaseHTTPRequestHandler):
    """Passes on what is below /photos/, as a reverse proxy does."""

    upstream = ''

    def _pass_on(self) -> None:
        if not self.path.startswith('/photos/'):
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get('content-length', 0)))
        kept = {name: self.headers[name] for name in ('content-type',) if name in self.headers}
        url = self.upstream + self.path.removeprefix('/photos')
        reply = httpx.request(self.command, url, content=body, headers=kept, timeout=60, trust_env=False)
        self.send_response(reply.status_code)
        for name in ('content-type', 'content-security-policy'):
            if name in reply.headers:
                self.send_header(name, reply.headers[name])
        self.send_header('content-length', str(len(reply.content)))
        self.end_headers()
        self.wfile.write(reply.content)

    do_GET = do_POST = _pass_on  # noqa: N815

    def log_message(self, *about: Any) -> None:
        """Say nothing."""


@pytest.fixture
def prefixed(fake: Service) -> Iterator[str]:
    """The address of the service behind a proxy."""
    handler = type('Handler', (_Prefixed,), {'upstream': fake.http})
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/photos/'
        server.shutdown()


@pytest.mark.usefixtures('album')
def test_behind_a_proxy_with_a_prefix(page_of: Any, prefixed: str) -> None:
    page = page_of(prefixed).open()
    assert len(page.ids) == 9
    page.type('cat')
    page.until(lambda: page.all('.view img.loaded'), 'pictures')
    page.until(lambda: page.all('#facets details'), 'filters')
    assert all(entry['name'].startswith(prefixed) for entry in page.requests(''))
    assert page.complaints() == []
