"""The empty page, and adding pictures."""

from pathlib import Path

import pytest

from service import Service

from .browser import Page

# Keeps what the dialog has shown, each time that it changes.
_WATCH = """
    window.seen = [];
    const look = () => {
      const bar = document.querySelector('#upload progress');
      if (bar) window.seen.push([bar.value, bar.max, document.querySelector('#upload .figures').textContent]);
    };
    const all = {subtree: true, childList: true, attributes: true};
    new MutationObserver(look).observe(document.querySelector('#upload'), all);
"""


def test_an_empty_page_says_how_to_begin(page: Page) -> None:
    page.open()
    page.until(lambda: 'Nothing is stored yet' in page.one('#nothing').text, 'how to begin')
    page.click('#nothing button')  # it is drawn again when the status has come
    page.until(lambda: page.one('#upload').is_displayed(), 'the dialog')


def test_twenty_pictures_with_progress(page: Page, fake: Service, twenty: list[Path]) -> None:
    page.open().one('#add').click()
    page.run(_WATCH)
    page.one('#tag-name').send_keys('album')
    page.one('#tag-value').send_keys('new')
    page.one('#files').send_keys('\n'.join(map(str, twenty)))
    page.until(lambda: page.one('#upload .outcome').text.startswith('20 pictures stored'), 'the end')
    assert fake.stored_ids() == {path.name for path in twenty}
    seen = [(int(done), int(most), text) for done, most, text in page.run('return window.seen') if text]
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert {done for done, _, _ in seen} == {0, 16, 20}
    assert all(text == f'{done} of 20' and most == 20 for done, most, text in seen)
    assert not page.one('#upload .failed').is_displayed()

    page.until(lambda: len(page.ids) == 20, 'the pictures behind the dialog')
    page.until(lambda: page.one('#status summary').text.startswith('20 documents'), 'the new number')
    page.until(lambda: page.all('[id="facet album \\"new\\""]'), 'the tag')
    assert page.complaints() == []


def test_what_fails_has_a_reason_and_stops_nothing(
    page: Page, fake: Service, twenty: list[Path], tmp_path: Path
) -> None:
    broken, other = tmp_path / 'broken.jpg', tmp_path / 'letter.txt'
    broken.write_bytes(b'no picture')
    other.write_text('dear reader')
    page.open()
    page.drop('body', broken, other, *twenty[:17])
    page.until(lambda: page.one('#upload .outcome').text.startswith('17 pictures stored'), 'the end')
    assert page.one('#upload .figures').text == '19 of 19'
    assert page.one('#upload .failed summary').text == '2 files were not stored'
    names, reasons = ([x.text for x in page.all(f'#upload .failed li {tag}')] for tag in ('b', 'span'))
    assert names == ['letter.txt', 'broken.jpg']
    assert reasons[0] == 'This is no picture; it was not sent.'
    assert 'not a picture that can be read' in reasons[1]
    assert len(fake.stored_ids()) == 17


@pytest.mark.parametrize('way', ['choose', 'drop', 'drop on the dialog'])
def test_of_a_folder_the_ids_are_paths(page: Page, fake: Service, twenty: list[Path], tmp_path: Path, way: str) -> None:
    folder = tmp_path / 'summer'
    for name, path in (('one', twenty[0]), ('two', twenty[1])):
        (folder / name).mkdir(parents=True)
        (folder / name / 'same.png').write_bytes(path.read_bytes())
    page.open()
    if way != 'drop':
        page.one('#add').click()
    if way == 'choose':
        page.one('#folder').send_keys(str(folder))
    else:
        page.drop_from_disk(720, 400, folder)
    page.until(lambda: page.one('#upload .outcome').text.startswith('2 pictures stored'), 'the end')
    assert fake.stored_ids() == {'summer/one/same.png', 'summer/two/same.png'}
    page.one('#upload .head [aria-label=Close]').click()
    page.until(lambda: len(page.all('.view img.loaded')) == 2, 'their thumbnails')


def test_one_bad_file_alone(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / 'broken.jpg'
    broken.write_bytes(b'no picture')
    page.open().one('#add').click()
    page.one('#files').send_keys(str(broken))
    page.until(lambda: page.one('#upload .outcome').text.startswith('0 pictures stored'), 'the end')
    assert page.one('#upload .failed summary').text == '1 file was not stored'


def test_sending_can_be_cancelled(page: Page, fake: Service, twenty: list[Path]) -> None:
    page.open().one('#add').click()
    page.run("""
        const real = window.fetch;
        let sent = 0;
        window.fetch = (path, options) => {
          if (!(options?.body instanceof FormData) || ++sent === 1) return real(path, options);
          return new Promise((_, fail) => {
            options.signal.throwIfAborted();
            options.signal.addEventListener('abort', () => fail(new DOMException('', 'AbortError')));
          });
        };""")
    page.one('#files').send_keys('\n'.join(map(str, twenty)))
    page.until(lambda: page.one('#upload .figures').text == '16 of 20', 'the first batch')
    assert 'left' in page.one('#upload .pace').text
    page.one('#upload .cancel').click()
    page.until(lambda: page.one('#upload .outcome').text.startswith('Cancelled. 16 pictures stored'), 'the end')
    assert len(fake.stored_ids()) == 16


def test_a_batch_is_sent_again_when_the_service_is_busy(page: Page, fake: Service, twenty: list[Path]) -> None:
    page.open().one('#add').click()
    page.run("""
        const real = window.fetch;
        let refused = false;
        window.fetch = (path, options) => {
          if (!(options?.body instanceof FormData) || refused) return real(path, options);
          refused = true;
          const body = JSON.stringify({detail: 'too busy', code: 'overloaded'});
          return Promise.resolve(new Response(body, {status: 429, headers: {'Retry-After': '1'}}));
        };""")
    page.one('#files').send_keys('\n'.join(map(str, twenty)))
    page.until(lambda: page.one('#upload .outcome').text.startswith('20 pictures stored'), 'the end')
    assert len(fake.stored_ids()) == 20


@pytest.mark.usefixtures('album')
def test_closed_the_button_tells_how_far_it_is(page: Page, twenty: list[Path]) -> None:
    page.open().one('#add').click()
    page.run("""
        const real = window.fetch;
        let sent = 0;
        const held = new Promise((done) => { window.release = done; });
        window.fetch = async (path, options) => {
          if (options?.body instanceof FormData && ++sent > 1) await held;
          return real(path, options);
        };""")
    page.one('#files').send_keys('\n'.join(map(str, twenty)))
    page.until(lambda: page.one('#upload .figures').text == '16 of 20', 'the first batch')
    page.one('#upload [aria-label=Close]').click()
    assert page.one('#add').text == '80 %'
    page.run('window.release()')
    page.until(lambda: '20 pictures stored' in page.toast, 'the confirmation')
    assert page.one('#add').text == 'Add pictures'
