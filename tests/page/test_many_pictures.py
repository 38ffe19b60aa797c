"""A real collection through the page: a thousand photographs in the long form, sixty in the short one."""

import zipfile
from pathlib import Path
from typing import Any

import pytest

from forms import LONG
from service import Service

from .browser import Page

COUNT = 1000 if LONG else 60
SECONDS = 300 if LONG else 120
BATCH = 16
UNREADABLE = 'torn.jpg'
MOST_GROWTH = 16_000_000
"""Bytes that the page itself may have grown by; the pictures of the short form alone have more than that."""
# Keeps what the dialog has shown, each time that it changes.
_WATCH = """
    window.seen = [];
    const look = () => {
      const bar = document.querySelector('#upload progress');
      const [figures, pace] = ['.figures', '.pace'].map((x) => document.querySelector('#upload ' + x)?.textContent);
      if (bar) window.seen.push([bar.value, bar.max, figures, pace, document.querySelector('#add-text').textContent]);
    };
    new MutationObserver(look).observe(document.body, {subtree: true, childList: true, attributes: true});
"""


@pytest.fixture(scope='module')
def folder(unsplash: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, and one that was torn off in the middle of its head."""
    made = tmp_path_factory.mktemp('many') / 'photos'
    names = sorted(unsplash.namelist())[:COUNT]
    unsplash.extractall(made, names)
    (made / UNREADABLE).write_bytes(unsplash.read(names[0])[:200])
    assert len(names) == COUNT
    return made


def held(page: Page) -> dict[str, float]:
    """What the page holds, after a collection of garbage."""
    page.driver.execute_cdp_cmd('Performance.enable', {})
    page.driver.execute_cdp_cmd('HeapProfiler.collectGarbage', {})
    metrics: list[dict[str, Any]] = page.driver.execute_cdp_cmd('Performance.getMetrics', {})['metrics']
    return {item['name']: item['value'] for item in metrics}


def choose(page: Page, chosen: Path, script: str = '') -> None:
    """Open the page and its dialog, run a script, and choose a folder; returns when the first progress is shown."""
    page.open().one('#add').click()
    page.run(_WATCH + script)
    page.one('#folder').send_keys(str(chosen))
    page.until(lambda: page.all('#upload .figures'), 'the progress')


def outcome(page: Page) -> str:
    """Wait for the end of an upload, and what it says."""
    return page.until(lambda: page.one('#upload .outcome').text, 'the end', SECONDS)


def test_a_collection_is_stored_with_correct_progress(page_of: Any, model_service: Service, folder: Path) -> None:
    model_service.post('/clear')
    page: Page = page_of(f'{model_service.http}/')
    page.open()
    before = held(page)
    choose(page, folder)
    assert outcome(page).startswith(f'{COUNT:,} pictures stored in ')

    total = COUNT + 1
    assert page.one('#upload .figures').text == f'{total:,} of {total:,}'
    seen = [(int(a), int(b), *rest) for a, b, *rest in page.run('return window.seen') if rest[0]]
    done = [step[0] for step in seen]
    assert done == sorted(done)
    assert set(done) == {*range(0, total, BATCH), total}, 'a step for each batch, and no other'
    assert all((most, figures) == (total, f'{at:,} of {total:,}') for at, most, figures, _, _ in seen)
    under_way = [(pace, word) for at, _, _, pace, word in seen if 0 < at < total]
    assert all('a second' in pace and pace.endswith(' left') for pace, _ in under_way)
    assert {word for _, word in under_way} == {f'{100 * at // total} %' for at in done if 0 < at < total}

    names, reasons = ([x.text for x in page.all(f'#upload .failed li {tag}')] for tag in ('b', 'span'))
    assert names == [f'photos/{UNREADABLE}']
    assert reasons == ['The picture is damaged: Truncated File Read.']
    stored = {f'photos/{path.name}' for path in folder.iterdir()} - set(names)
    assert model_service.stored_ids() == stored

    after = held(page)
    print(f'heap {before["JSHeapUsedSize"]:,.0f} to {after["JSHeapUsedSize"]:,.0f} bytes, {after["Nodes"]:,.0f} nodes')
    assert after['JSHeapUsedSize'] - before['JSHeapUsedSize'] < MOST_GROWTH
    page.one('#upload .head [aria-label=Close]').click()
    page.until(lambda: page.one('#status summary').text.startswith(f'{COUNT:,} documents'), 'the new number')
    page.type('a beach')
    page.until(lambda: page.all('.view img.loaded'), 'results with thumbnails')
    assert page.complaints() == []


def test_files_that_have_gone_stop_nothing(page: Page, fake: Service, folder: Path, tmp_path: Path) -> None:
    chosen = tmp_path / 'album'
    chosen.mkdir()
    paths = sorted(path for path in folder.iterdir() if path.name != UNREADABLE)[: 3 * BATCH]
    for path in paths:
        (chosen / path.name).write_bytes(path.read_bytes())
    choose(
        page,
        chosen,
        """
        const real = window.fetch;
        const held = new Promise((done) => { window.release = done; });
        window.fetch = async (path, options) => {
          if (options?.body instanceof FormData) await held;
          return real(path, options);
        };
        window.ids = [];
        document.addEventListener('change', (event) => {
          window.ids = [...event.target.files].map((file) => file.name);
        }, true);""",
    )
    ids = page.until(lambda: page.run('return window.ids'), 'the chosen files')
    # Of the second batch one, and all of the third.
    gone = [ids[BATCH], *ids[2 * BATCH :]]
    for name in gone:
        (chosen / name).unlink()
    page.run('window.release()')
    assert outcome(page).startswith(f'{2 * BATCH - 1} pictures stored')
    assert page.one('#upload .figures').text == f'{3 * BATCH} of {3 * BATCH}'
    assert [x.text for x in page.all('#upload .failed li b')] == [f'album/{name}' for name in gone]
    assert {x.text for x in page.all('#upload .failed li span')} == {'This file can no longer be read.'}
    assert fake.stored_ids() == {f'album/{name}' for name in ids} - {f'album/{name}' for name in gone}


def test_what_was_cancelled_goes_on_where_it_was(page: Page, fake: Service, folder: Path) -> None:
    choose(
        page,
        folder,
        """
        const real = window.fetch;
        let sent = 0;
        window.goOn = () => { window.fetch = real; };
        window.fetch = (path, options) => {
          if (!(options?.body instanceof FormData) || ++sent <= 2) return real(path, options);
          return new Promise((_, fail) => {
            options.signal.throwIfAborted();
            options.signal.addEventListener('abort', () => fail(new DOMException('', 'AbortError')));
          });
        };""",
    )
    figures = f'{2 * BATCH} of {COUNT + 1:,}'
    page.until(lambda: page.one('#upload .figures').text == figures, 'two batches')
    page.one('#upload .cancel').click()
    assert outcome(page).startswith('Cancelled. ')
    assert len(fake.stored_ids()) <= 2 * BATCH
    page.run('window.goOn()')
    page.one('#upload .onward').click()
    page.until(lambda: page.one('#upload .outcome').text.startswith(f'{COUNT:,} pictures stored'), 'the end', SECONDS)
    assert not page.one('#upload .onward').is_displayed()
    done = [int(step[0]) for step in page.run('return window.seen')]
    assert done == sorted(done)
    assert len(fake.stored_ids()) == COUNT
    assert [x.text for x in page.all('#upload .failed li b')] == [f'photos/{UNREADABLE}']
