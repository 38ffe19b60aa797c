"""What goes on beside the straight way: odd tags, moving results, a service that is away, things done twice."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from service import Service, png

from .browser import Page

COUNT = 'return document.getElementById(arguments[0]).parentElement.querySelector(".count").textContent'


def store(http: httpx.Client, count: int, tag: str) -> None:
    documents = [{'id': f'd{n:03}', 'text': f'line {n}', 'tags': {tag: f'v{n:02}'}} for n in range(count)]
    documents.append({'id': 'more', 'text': 'another', 'tags': {tag: 'v00'}})
    http.post('/v1/documents', json={'documents': documents}).raise_for_status()


@pytest.mark.parametrize('tag', ['constructor', 'toString', 'valueOf'])
def test_a_tag_may_be_called_like_something_that_every_object_has(page: Page, http: httpx.Client, tag: str) -> None:
    store(http, 3, tag)
    page.open()
    box = f'[id="facet {tag} \\"v00\\""]'
    page.until(lambda: page.all(box), 'the value')
    page.click(box)
    page.until(lambda: sorted(page.ids) == ['d000', 'more'], 'its documents')
    page.driver.refresh()
    page.until(lambda: page.all(f'{box}:checked'), 'the chosen value again')
    assert sorted(page.settled().ids) == ['d000', 'more']
    page.one('.token').click()
    page.until(lambda: len(page.ids) == 4, 'everything')
    assert page.complaints() == []


def test_an_address_with_a_tag_that_is_none_shows_the_page(page: Page, http: httpx.Client) -> None:
    store(http, 3, 'n')
    page.open('?f.__proto__=1&f.constructor=2')
    page.until(lambda: page.all('.token'), 'the filters')
    assert page.ids == []


def test_a_chosen_value_that_is_rare_has_its_count(page: Page, http: httpx.Client) -> None:
    documents = [{'id': f'd{n}', 'text': f'line {n}', 'tags': {'n': n // 3}} for n in range(90)]
    documents.append({'id': 'rare', 'text': 'rare', 'tags': {'n': 99}})
    http.post('/v1/documents', json={'documents': documents}).raise_for_status()
    page.open('?f.n=99')
    page.until(lambda: page.all('[id="facet n 99"]:checked'), 'the value')
    assert page.ids == ['rare']
    assert page.run(COUNT, 'facet n 99') == '1'


def test_shards_are_counted_together(page: Page, http: httpx.Client) -> None:
    store(http, 60, 'n')
    with page.before("""
        const real = window.fetch;
        window.fetch = async (path, options) => {
          const answer = await real(path, options);
          if (!String(path).includes('v1/status')) return answer;
          const {version, stages: {indexer, ...others}} = await answer.json();
          const stages = {...others, indexer_0: {...indexer, documents: 40}, indexer_1: {...indexer, documents: 21}};
          return new Response(JSON.stringify({version, stages}));
        };"""):
        page.open()
        page.until(lambda: page.one('#status summary').text.startswith('61 documents'), 'both together')
        page.until(lambda: page.count == '61 documents', 'the number above the results')
        page.type('nothing at all')
        page.one('#status summary').click()
        assert 'Index flat' in page.one('#status dl').text.replace('\n', ' ')


def test_words_that_are_being_typed_survive_a_picture_that_arrives(
    page: Page, http: httpx.Client, photographs: Path
) -> None:
    store(http, 3, 'n')
    page.open()
    page.run("""
        const box = document.querySelector('#text');
        document.querySelector('#pick-file').addEventListener('change', () => {
          box.value = 'in snow';
          box.dispatchEvent(new Event('input', {bubbles: true}));
        });""")
    page.one('#pick-file').send_keys(str(photographs / 'moon.png'))
    page.until(lambda: 'q=in+snow' in page.driver.current_url and 'part=image' in page.driver.current_url, 'both')
    assert page.one('#text').get_attribute('value') == 'in snow'


@pytest.mark.usefixtures('album')
def test_next_may_be_pressed_again_and_again(page: Page) -> None:
    page.open('?q=cat')
    ids = page.ids
    page.click('.view')
    page.until(lambda: page.one('#lightbox').is_displayed(), 'the large view')
    page.run("document.querySelector('#lightbox .next').focus()")
    for place in (1, 2, 3):
        page.focused.send_keys(Keys.ENTER)
        page.until(lambda place=place: page.one('#lightbox').get_attribute('data-id') == ids[place], 'the next one')


@pytest.mark.usefixtures('album')
def test_the_same_thumb_twice_is_one_opinion(page: Page, http: httpx.Client) -> None:
    def entries() -> int:
        return int(http.get('/v1/feedback/stats').json()['entries'])

    before = entries()
    page.open('?q=cat')
    page.run("""
        const thumb = document.querySelector('[data-id="moon.png"] [data-judge=up]');
        thumb.click(); thumb.click();""")
    page.until(lambda: page.toast == 'Noted, thank you.', 'the confirmation')
    page.click('[data-id="moon.png"] [data-judge=up]')
    page.click('[data-id="coffee.png"] [data-judge=down]')
    pressed = '[data-id="coffee.png"] [data-judge=down][aria-pressed=true]'
    page.until(lambda: page.all(pressed), 'another one')
    assert entries() - before == 2


@pytest.mark.usefixtures('album')
def test_what_is_dropped_while_others_are_sent_is_told_of(page: Page, fake: Service, twenty: list[Path]) -> None:
    page.open().one('#add').click()
    page.run("""
        const real = window.fetch;
        const held = new Promise((done) => { window.release = done; });
        window.fetch = async (path, options) => {
          if (options?.body instanceof FormData) await held;
          return real(path, options);
        };""")
    page.one('#files').send_keys('\n'.join(map(str, twenty[:2])))
    page.until(lambda: page.all('#upload .figures'), 'the progress')
    page.drop('#upload', twenty[3], twenty[4])
    page.until(lambda: page.toast.startswith('Others are being sent.'), 'that these were not taken')
    page.run('window.release()')
    page.until(lambda: page.one('#upload .outcome').text.startswith('2 pictures stored'), 'the end')


def test_a_picture_that_is_replaced_is_shown_anew(page: Page, http: httpx.Client, tmp_path: Path) -> None:
    picture = tmp_path / 'same.png'
    http.post('/v1/documents', files=[('files', ('same.png', png('red')))]).raise_for_status()
    colour = """
        const image = document.querySelector('.view img.loaded');
        if (!image?.naturalWidth) return null;
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const pen = canvas.getContext('2d');
        pen.drawImage(image, 0, 0);
        const [r, g, b] = pen.getImageData(canvas.width - 2, canvas.height - 2, 1, 1).data;
        return r > b ? 'red' : 'blue';"""
    page.open()
    page.until(lambda: page.run(colour) == 'red', 'the first picture')
    picture.write_bytes(png('blue'))
    page.one('#add').click()
    page.one('#files').send_keys(str(picture))
    page.until(lambda: page.one('#upload .outcome').text.startswith('1 picture stored'), 'the end')
    page.until(lambda: page.run(colour) == 'blue', 'the second picture')


def test_results_that_move_come_once(page: Page, http: httpx.Client) -> None:
    store(http, 100, 'n')
    page.open()
    page.run("localStorage.setItem('clipflow.page', '24')")
    with page.before("""
        const real = window.fetch;
        window.offsets = [];
        window.fetch = async (path, options) => {
          const asked = options?.body && JSON.parse(options.body);
          if (!asked?.text) return real(path, options);
          window.offsets.push(asked.offset);
          // As if three better ones had been stored after the first page.
          const body = JSON.stringify({...asked, offset: Math.max(0, asked.offset - 3)});
          return real(path, {...options, body});
        };"""):
        page.open('?q=line')

        def scrolled() -> bool:
            page.run('window.scrollTo(0, document.body.scrollHeight)')
            return not page.one('#more').is_displayed()

        page.until(scrolled, 'the last page')
        assert page.count == f'{len(page.ids)} results'
        assert len(set(page.ids)) == len(page.ids)
        offsets = page.run('return window.offsets')
        assert offsets == sorted(set(offsets))


@pytest.mark.usefixtures('album')
def test_a_service_that_comes_back_is_asked_again(page: Page) -> None:
    with page.before("""
        const real = window.fetch;
        window.away = true;
        window.fetch = (path, options) => (window.away ? Promise.reject(new TypeError('away')) : real(path, options));
        """):
        page.driver.get(page.address)
        page.until(lambda: page.one('#error').text == 'The service cannot be reached.', 'the error')
        page.run('window.away = false')
        page.until(lambda: len(page.ids) == 9, 'the results, without a word typed')
        page.until(lambda: page.all('#facets details'), 'the filters')
        assert not page.one('#error').is_displayed()


@pytest.mark.usefixtures('album')
def test_a_key_that_no_header_can_hold_is_not_taken(page: Page) -> None:
    with page.before("""
        const real = window.fetch;
        window.fetch = (path, options) => {
          if (new Headers(options?.headers).get('Authorization') === 'Bearer secret') return real(path, options);
          return Promise.resolve(new Response('{}', {status: 401}));
        };"""):
        page.driver.get(page.address)
        page.until(lambda: page.one('#ask-key').is_displayed(), 'the question')
        page.one('#key').send_keys('secret\u200b', Keys.ENTER)
        assert page.one('#ask-key').is_displayed()
        page.one('#key').send_keys(Keys.BACKSPACE, Keys.ENTER)
        page.until(lambda: len(page.ids) == 9, 'the documents')


def test_the_last_pages_error_is_seen_where_one_is(page: Page, http: httpx.Client) -> None:
    store(http, 100, 'n')
    page.open()
    page.run("localStorage.setItem('clipflow.page', '24')")
    with page.before("""
        const real = window.fetch;
        window.fetch = (path, options) => {
          const asked = options?.body && JSON.parse(options.body);
          return asked?.offset > 0 ? Promise.reject(new TypeError('away')) : real(path, options);
        };"""):
        page.open('?q=line')
        page.run('window.scrollTo(0, document.body.scrollHeight)')
        page.until(lambda: page.toast == 'The service cannot be reached.', 'what is wrong')
        assert page.one('#more').is_displayed()


def test_a_file_that_is_too_large_stops_no_other(page: Page, fake: Service, twenty: list[Path], tmp_path: Path) -> None:
    large = tmp_path / 'a-large.png'
    with large.open('wb') as file:
        file.truncate(90 * 2**20)
    page.open().one('#add').click()
    page.one('#files').send_keys('\n'.join(map(str, [large, *twenty[:3]])))
    page.until(lambda: page.one('#upload .outcome').text.startswith('3 pictures stored'), 'the end')
    assert [x.text for x in page.all('#upload .failed li b')] == ['a-large.png']
    assert 'larger than' in page.one('#upload .failed li span').text
    assert fake.stored_ids() == {path.name for path in twenty[:3]}


def test_a_folder_that_cannot_be_read_stops_no_other(page: Page, fake: Service, twenty: list[Path]) -> None:
    page.open().one('#add').click()
    page.run("""
        DataTransferItem.prototype.webkitGetAsEntry = function () {
          const picture = this.getAsFile();
          const folder = (name, readEntries) => ({name, fullPath: name, createReader: () => ({readEntries})});
          const entries = [
            {isFile: true, name: picture.name, fullPath: `/card/${picture.name}`, file: (done) => done(picture)},
            folder('/card/System', (_, fail) => fail(new DOMException('', 'NotReadableError'))),
          ];
          return folder('/card', (done) => done(entries.splice(0)));
        };""")
    page.drop('#upload', twenty[0])
    page.until(lambda: page.one('#upload .outcome').text.startswith('1 picture stored'), 'the end')
    assert [x.text for x in page.all('#upload .failed li b')] == ['card/System']
    assert fake.stored_ids() == {f'card/{twenty[0].name}'}


@pytest.mark.parametrize(('kinds', 'is_picture'), [((), True), (('html',), True), (('plain', 'html'), False)])
def test_words_that_come_with_a_picture_of_them_are_words(page: Page, kinds: tuple[str, ...], is_picture: bool) -> None:
    page.open()
    taken = page.run(
        """
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(9)], 'cell.png', {type: 'image/png'}));
        for (const kind of arguments[0]) data.setData(`text/${kind}`, 'words');
        const event = new ClipboardEvent('paste', {bubbles: true, cancelable: true, clipboardData: data});
        return !document.querySelector('#text').dispatchEvent(event);""",
        list(kinds),
    )
    assert taken is is_picture


def test_a_picture_of_a_kind_that_is_not_read_is_told_what_is(page: Page, tmp_path: Path) -> None:
    heic = tmp_path / 'IMG_1.HEIC'
    heic.write_bytes(b'\0\0\0\x18ftypheic' + bytes(100))
    page.open().one('#add').click()
    page.one('#files').send_keys(str(heic))
    page.until(lambda: page.one('#upload .outcome').text.startswith('0 pictures stored'), 'the end')
    assert 'JPEG, PNG' in page.one('#upload .failed li span').text


class _Elsewhere(BaseHTTPRequestHandler):
    """Another site, whose page sends what a browser sends without asking first."""

    target = ''

    def do_GET(self) -> None:
        script = f"""
            const plain = {{method: 'POST', mode: 'no-cors', body: '{{"exec_endpoint": "/clear"}}'}};
            fetch('{self.target}/post', plain).finally(() => document.title = 'sent');"""
        content = f'<!doctype html><title>-</title><script>{script}</script>'.encode()
        self.send_response(200)
        self.send_header('content-type', 'text/html')
        self.send_header('content-length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *about: Any) -> None:
        """Say nothing."""


@pytest.mark.usefixtures('album')
@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost'])
def test_a_page_of_another_site_in_the_same_browser_changes_nothing(page: Page, fake: Service, host: str) -> None:
    stored = fake.stored_ids()
    handler = type('Handler', (_Elsewhere,), {'target': fake.http})
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.driver.get(f'http://{host}:{server.server_port}/')
        page.until(lambda: page.driver.title == 'sent', 'the request has been answered')
        server.shutdown()
    assert fake.stored_ids() == stored
