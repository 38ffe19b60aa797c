"""Large view, keyboard, colours, small windows, classification and thumbs."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from service import Service

from .browser import Page
from .conftest import NAMES


def until_closed(page: Page) -> None:
    """The large view has gone, also from the address: the browser may close a dialog before the page goes back."""
    page.until(lambda: 'open=' not in page.driver.current_url, 'the address of the results')
    page.until(lambda: not page.one('#lightbox').is_displayed(), 'the results')


@pytest.mark.usefixtures('album')
def test_the_large_view_by_keyboard(page: Page) -> None:
    page.open('?q=cat')
    ids = page.ids
    page.run("document.querySelector('.view').focus()")
    page.focused.send_keys(Keys.ARROW_RIGHT)
    page.focused.send_keys(Keys.ENTER)
    dialog = page.one('#lightbox')
    page.until(dialog.is_displayed, 'the large view')
    page.until(lambda: f'open={ids[1]}'.split('<')[0] in page.driver.current_url, 'its id in the address')
    page.focused.send_keys(Keys.ARROW_RIGHT)
    page.until(lambda: ids[2] in page.one('#lightbox table').text, 'the next one')
    page.focused.send_keys(Keys.ARROW_LEFT)
    page.focused.send_keys(Keys.ARROW_LEFT)
    page.until(lambda: ids[0] in page.one('#lightbox table').text, 'the first one')
    for _ in range(12):
        page.focused.send_keys(Keys.TAB)
        inside = 'return arguments[0].contains(document.activeElement) || document.activeElement === document.body'
        assert page.run(inside, dialog), 'the focus stays inside'
    page.focused.send_keys(Keys.ESCAPE)
    until_closed(page)
    assert page.run("return document.activeElement.closest('.tile').dataset.id") == ids[0]
    assert page.complaints() == []


@pytest.mark.usefixtures('album')
def test_back_closes_the_large_view_and_a_link_opens_it(page: Page) -> None:
    page.open('?q=cat').click('[data-id="moon.png"] .view')
    page.until(lambda: page.one('#lightbox').is_displayed(), 'the large view')
    link = page.driver.current_url
    page.driver.back()
    until_closed(page)
    for _ in range(2):
        page.click('[data-id="moon.png"] .view')
        page.until(lambda: page.one('#lightbox').is_displayed(), 'the large view')
        page.focused.send_keys(Keys.ESCAPE)
        until_closed(page)
    page.driver.forward()
    page.until(lambda: page.one('#lightbox').is_displayed(), 'the large view: Escape was a step back')
    page.driver.get(link)
    page.until(lambda: page.one('#lightbox').is_displayed(), 'the large view from the link')
    rows = {row.text for row in page.all('#lightbox tr')}
    assert {'Id moon.png', 'album B', 'stars 0'} <= rows
    page.focused.send_keys(Keys.ESCAPE)
    until_closed(page)
    assert page.driver.current_url.endswith('?q=cat')


@pytest.mark.usefixtures('album')
def test_a_view_that_is_opened_as_the_last_one_closes_stays(page: Page) -> None:
    page.open('?q=cat').click('[data-id="moon.png"] .view')
    page.until(lambda: page.one('#lightbox').is_displayed(), 'the large view')
    # A dialog says that it has closed only later: the next one is open by then.
    page.driver.execute_async_script("""
        const done = arguments[0];
        document.querySelector('#lightbox').addEventListener('close', () => setTimeout(done, 500), {once: true});
        const next = () => document.querySelector('[data-id="coffee.png"] .view').click();
        window.addEventListener('popstate', next, {once: true});
        history.back();""")
    assert page.one('#lightbox').is_displayed()
    assert page.driver.current_url.endswith('open=coffee.png')


@pytest.mark.usefixtures('album')
def test_the_focus_comes_back_also_if_the_browser_closes_the_view(page: Page) -> None:
    page.open('?q=cat').click('[data-id="moon.png"] .view')
    page.until(lambda: page.one('#lightbox').is_displayed(), 'the large view')
    page.run("document.querySelector('#lightbox').close()")
    until_closed(page)
    focused = "return document.activeElement.closest('.tile')?.dataset.id"
    page.until(lambda: page.run(focused) == 'moon.png', 'the focus')


@pytest.mark.usefixtures('album')
def test_slash_leads_to_the_search_box(page: Page) -> None:
    page.open()
    page.one('body').send_keys('/')
    assert page.focused.get_attribute('id') == 'text'
    assert page.focused.get_attribute('value') == ''
    page.focused.send_keys('a/b')
    assert page.focused.get_attribute('value') == 'a/b'


@pytest.mark.usefixtures('album')
def test_dark_colours(page: Page) -> None:
    def brightness() -> int:
        return int(page.run('return getComputedStyle(document.body.parentElement).backgroundColor.match(/\\d+/)[0]'))

    page.open()
    assert brightness() > 200
    page.prefer(color_scheme='dark')
    page.until(lambda: brightness() < 60, 'dark as the system')
    page.until(lambda: page.one('#theme').get_attribute('aria-pressed') == 'true', 'the button knows')
    page.one('#theme').click()
    page.until(lambda: brightness() > 200, 'light as chosen')
    page.open()
    assert brightness() > 200, 'the choice is kept'


@pytest.mark.usefixtures('album')
def test_a_narrow_window(page: Page) -> None:
    page.size(390, 844, touch=True)
    page.open('?q=cat')
    assert page.run('return document.documentElement.scrollWidth') == 390
    assert len({tile.rect['x'] for tile in page.all('.tile')}) == 2, 'two columns'
    facets = page.one('#facets')
    assert not facets.is_displayed()
    page.one('#show-facets').click()
    page.until(facets.is_displayed, 'the filters')
    page.until(lambda: page.all('[id="facet album \\"C\\""]'), 'the albums')
    page.one('[id="facet album \\"C\\""]').click()
    page.until(lambda: len(page.ids) == 2, 'the results of one album')
    assert page.one('#show-facets').text == 'Filters (1)'


@pytest.mark.usefixtures('album')
def test_the_corner_says_how_the_service_is(page: Page) -> None:
    page.open()
    page.until(lambda: page.one('#status summary').text == '9 documents · clip-mini', 'documents and model')
    page.one('#status summary').click()
    assert 'fake' in page.one('#status dl').text


@pytest.mark.usefixtures('album')
def test_warnings_are_seen(page: Page) -> None:
    with page.before("""
        const real = window.fetch;
        window.fetch = async (path, options) => {
          const answer = await real(path, options);
          if (!String(path).includes('v1/status')) return answer;
          const body = await answer.json();
          body.stages.encoder.warnings = ['the model is slow here'];
          return new Response(JSON.stringify(body));
        };"""):
        page.open()
        page.until(lambda: page.one('#warnings').text == 'The model is slow here.', 'the warning')


@pytest.mark.usefixtures('album')
def test_thumbs_are_stored(page: Page) -> None:
    page.open()
    assert page.all('[data-judge]') == [], 'there is nothing to judge without a query'
    page.type('cat')
    page.click('[data-id="moon.png"] [data-judge=up]')
    page.until(lambda: page.toast == 'Noted, thank you.', 'the confirmation')
    pressed = {judge: f'[data-id="moon.png"] [data-judge={judge}]' for judge in ('up', 'down')}
    assert page.one(pressed['up']).get_attribute('aria-pressed') == 'true'
    page.click(pressed['down'])
    page.until(lambda: page.one(pressed['down']).get_attribute('aria-pressed') == 'true', 'the other way')
    assert page.one(pressed['up']).get_attribute('aria-pressed') == 'false'
    assert not page.one('#error').is_displayed()


def test_words_find_and_labels_sort_photographs(
    model_service: Service, page_of: Callable[[str], Page], photographs: Path
) -> None:
    model_service.post('/clear')
    files = [('files', (name, (photographs / name).read_bytes())) for name in NAMES]
    httpx.post(f'{model_service.http}/v1/documents', files=files, timeout=60).raise_for_status()
    page = page_of(f'{model_service.http}/').open()
    page.type('a rocket launch')
    assert page.ids[0] == 'rocket.jpg'

    page.one('#show-classes').click()
    page.one('#labels').send_keys('cat', Keys.ENTER)
    page.until(lambda: page.one('#error').text.startswith('Give at least two labels'), 'that one label is too few')
    page.one('#labels').send_keys(', rocket, cup of coffee', Keys.ENTER)
    page.until(lambda: len(page.all('.tile .class')) == len(NAMES), 'a label on each tile')
    label = page.one('[data-id="chelsea.png"] .class').text
    assert label.startswith('cat')
    assert int(label.split()[1]) > 50
    counts = {bar.get_attribute('data-label'): int(bar.text.split('\n')[1]) for bar in page.all('.bars li')}
    assert set(counts) == {'cat', 'rocket', 'cup of coffee'}
    assert sum(counts.values()) == len(NAMES)

    page.one('[data-label=cat] button').click()
    page.until(lambda: len(page.all('.tile:not(.dim)')) == counts['cat'] < len(NAMES), 'only the cats')
    page.one('#show-classes').click()
    page.until(lambda: not page.all('.tile .class, .tile.dim'), 'no labels')
    assert page.complaints() == []
