"""What one does with the search box, the tiles, the filters and the address."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from service import Service, png

from .browser import Page
from .conftest import NAMES

pytestmark = pytest.mark.usefixtures('album')


def found_by(http: httpx.Client, **request: Any) -> list[str]:
    """What the service itself answers."""
    reply = http.post('/v1/search', json={'limit': 48, **request})
    reply.raise_for_status()
    return [match['id'] for match in reply.json()['matches']]


def test_without_a_query_one_sees_what_is_stored(page: Page, album: list[str]) -> None:
    assert sorted(page.open().ids) == sorted(album)
    page.until(lambda: page.count == '9 documents', 'the number of documents')


def test_results_come_while_one_types(page: Page, http: httpx.Client) -> None:
    page.open().type('a cat')
    assert page.ids == found_by(http, text='a cat')
    assert page.count == '9 results'
    scores = [float(score.text) for score in page.all('.tile .score')]
    assert scores == sorted(scores, reverse=True)
    assert page.complaints() == []


def test_a_late_answer_does_not_replace_a_newer_one(page: Page, http: httpx.Client) -> None:
    page.open()
    page.run("""
        const real = window.fetch;
        window.late = 0;
        window.fetch = (path, options) => {
          if (!options?.body?.includes?.('"first"')) return real(path, options);
          const answer = real(path, { ...options, signal: undefined });
          return new Promise((done) => { window.release = () => answer.then((x) => { window.late += 1; done(x); }); });
        };""")
    page.one('#text').send_keys('first')
    page.until(lambda: page.run('return Boolean(window.release)'), 'the first request')
    page.one('#text').send_keys(' second')
    page.until(lambda: page.ids == found_by(http, text='first second'), 'the second answer')
    page.run('window.release()')
    page.until(lambda: page.run('return window.late') == 1, 'the first answer')
    assert page.ids == found_by(http, text='first second')
    assert not page.one('#busy').is_displayed()


@pytest.mark.parametrize('way', ['pick', 'drop', 'drop from disk', 'paste'])
def test_a_picture_finds_itself(page: Page, photographs: Path, way: str) -> None:
    page.open()
    if way == 'pick':
        page.one('#pick-file').send_keys(str(photographs / 'coffee.png'))
    elif way == 'drop from disk':
        page.drop_from_disk(500, 500, photographs / 'coffee.png')
    else:
        page.drop('body', photographs / 'coffee.png', event=way)
    page.until(lambda: page.ids[0] == 'coffee.png', 'the same picture first')
    assert page.one('.tile .score').text == '1.000'
    assert page.one('.part img').get_attribute('src').startswith('data:image/png')


def test_a_large_picture_is_sent_smaller(page: Page, tmp_path: Path) -> None:
    large = tmp_path / 'large.png'
    large.write_bytes(png('red', (3000, 2000), 'BMP'))
    page.open()
    page.one('#pick-file').send_keys(str(large))
    page.until(lambda: page.all('.part img'), 'the chip')
    page.settled()
    assert page.count == '9 results'
    source = page.one('.part img').get_attribute('src')
    assert source.startswith('data:image/jpeg')
    assert len(source) < 500_000


def test_more_like_this(page: Page, http: httpx.Client) -> None:
    page.open().click('[data-id="moon.png"] [aria-label="More like this"]')
    page.until(lambda: page.ids[:1] == ['moon.png'], 'the picture itself first')
    assert page.ids == found_by(http, id='moon.png')
    assert 'part=id%3A1%3Amoon.png' in page.driver.current_url
    assert page.one('.part').text == 'moon.png'


def test_parts_lead_towards_and_away(page: Page, http: httpx.Client, photographs: Path) -> None:
    page.open()
    text = page.one('#text')
    text.send_keys('beach')
    text.send_keys(Keys.SHIFT, Keys.ENTER)
    text.send_keys(Keys.NULL, 'people')
    page.one('#keep-less').click()
    page.one('#pick-file').send_keys(str(photographs / 'moon.png'))
    parts: list[dict[str, Any]] = [{'text': 'beach'}, {'text': 'people', 'weight': -0.5}, {'id': 'moon.png'}]
    page.until(lambda: page.ids == found_by(http, query=parts), 'the results of all three')
    page.until(lambda: [part.text for part in page.all('.part')] == ['beach', 'people', 'Picture'], 'three chips')

    page.all('.part .sign')[1].click()
    parts[1]['weight'] = 1
    page.until(lambda: page.ids == found_by(http, query=parts), 'the results with people')

    page.all('.part [aria-label^=Remove]')[1].click()
    del parts[1]
    page.until(lambda: page.ids == found_by(http, query=parts), 'the results without')


def test_values_of_one_tag_are_alternatives_and_tags_add_up(page: Page, http: httpx.Client) -> None:
    page.open('?q=cat')
    page.until(lambda: page.all('#facets [data-tag=album]'), 'the filters')
    # By a script: the counts are drawn again when their answer has come, which may be later than the results.
    page.click('[id="facet album \\"A\\""]')
    page.until(lambda: set(page.ids) == set(found_by(http, text='cat', filter={'album': 'A'})), 'album A')
    page.click('[id="facet album \\"B\\""]')
    either = {'album': {'$in': ['A', 'B']}}
    page.until(lambda: set(page.ids) == set(found_by(http, text='cat', filter=either)), 'album A or B')
    page.until(lambda: page.all('[id="facet stars 1"]'), 'the values of stars')
    page.click('[id="facet stars 1"]')
    both = {'$and': [either, {'stars': 1}]}
    page.until(lambda: set(page.ids) == set(found_by(http, text='cat', filter=both)), 'and one star')
    assert 'f.album=A&f.album=B&f.stars=1' in page.driver.current_url
    counted = 'return document.getElementById(arguments[0]).parentElement.querySelector(".count").textContent'
    what = 'values that are not chosen say what they would add'
    page.until(lambda: page.run(counted, 'facet album "C"') == '1', what)

    page.one('[aria-label="Remove the filter album A"]').click()
    page.until(lambda: 'f.album=A' not in page.driver.current_url, 'album A gone')
    page.settled().one('.token.plain').click()
    page.until(lambda: len(page.ids) == 9, 'everything again')


def test_relevance_leaves_out_what_fits_badly(page: Page, http: httpx.Client) -> None:
    page.open()
    assert not page.one('#relevance').is_enabled(), 'there is no relevance without a query'
    page.type('cat')
    page.pull('#relevance', 2)
    page.until(lambda: page.ids == found_by(http, text='cat', relevance=0.75), 'the better quarter')
    assert 0 < len(page.ids) < 9
    assert page.one('#relevance-text').text == 'Best 25 %'
    page.pull('#relevance', 0)
    page.until(lambda: len(page.ids) == 9, 'all')
    assert 'relevance' not in page.driver.current_url


def test_pages_follow_one_another(page: Page, http: httpx.Client) -> None:
    texts = [{'id': f'text {number:03}', 'text': f'line {number}'} for number in range(120)]
    http.post('/v1/documents', json={'documents': texts}).raise_for_status()
    page.open('?q=line')
    page.run("localStorage.setItem('clipflow.page', '24')")
    page.open('?q=line')
    both = "return [document.querySelector('#count').textContent, document.querySelectorAll('.tile').length]"
    count, tiles = page.run(both)
    assert count == f'First {tiles} results'
    assert tiles % 24 == 0

    def scrolled() -> str:
        page.run('window.scrollTo(0, document.body.scrollHeight)')
        return page.count

    page.until(lambda: scrolled() == '129 results', 'the last page')
    assert page.ids == found_by(http, text='line', limit=200)
    assert not page.one('#more').is_displayed()


def test_an_address_shows_the_same_again(page: Page, http: httpx.Client) -> None:
    page.open('?q=cat&part=text:-0.5:dog&part=id:1:moon.png&f.stars=1&relevance=0.5')
    before = page.ids
    parts = [{'text': 'cat'}, {'text': 'dog', 'weight': -0.5}, {'id': 'moon.png'}]
    assert before == found_by(http, query=parts, filter={'stars': 1}, relevance=0.5)
    page.driver.refresh()
    page.settled()
    assert page.ids == before
    assert page.one('#text').get_attribute('value') == 'cat'
    assert [part.text for part in page.all('.part')] == ['dog', 'moon.png']


def test_back_and_forward(page: Page, photographs: Path) -> None:
    page.open().type('cat')
    cats = page.ids
    page.click('[data-id="moon.png"] [aria-label="More like this"]')
    page.until(lambda: page.ids[0] == 'moon.png', 'more like the moon')
    page.one('#pick-file').send_keys(str(photographs / 'brick.png'))
    page.until(lambda: len(page.all('.part')) == 2, 'a picture beside it')
    page.settled()
    last = page.ids
    page.driver.back()
    page.until(lambda: len(page.all('.part')) == 1, 'one step back')
    page.driver.back()
    page.until(lambda: page.ids == cats, 'the cats again')
    assert page.one('#text').get_attribute('value') == 'cat'
    page.driver.back()
    page.until(lambda: page.one('#text').get_attribute('value') == '', 'the beginning')
    # One after the other: a step that is not done yet is none from which the browser could go on.
    page.driver.forward()
    page.until(lambda: page.one('#text').get_attribute('value') == 'cat', 'the cats once more')
    page.driver.forward()
    page.until(lambda: len(page.all('.part')) == 1, 'the moon')
    page.driver.forward()
    page.until(lambda: len(page.all('.part')) == 2 and page.ids == last, 'the picture is still known')
    page.driver.refresh()
    page.settled()
    assert page.ids == last, 'also after loading the page again'


def test_what_the_service_says_is_never_html(page: Page) -> None:
    page.open('?open=' + '%3Cb%3Ebold%3C%2Fb%3E')
    page.until(lambda: page.one('#lightbox').is_displayed(), 'the text, large')
    assert page.one('#lightbox .words').text == '<img src=x onerror="document.title=1">'
    page.until(lambda: page.all('#facets details'), 'the filters')
    assert page.all('#results b:not(.class b), #lightbox table i, #facets u') == []
    assert page.driver.title == 'clipflow'


def test_an_error_is_a_sentence(page: Page) -> None:
    page.open('?part=id:1:nobody')
    shown = page.until(lambda: page.one('#error').text, 'the error')
    assert shown == "There is no document with the id 'nobody'."
    page.one('#text').send_keys(Keys.BACKSPACE)
    page.until(lambda: len(page.ids) == 9, 'all documents')
    assert not page.one('#error').is_displayed()


def test_a_key_is_asked_for_and_kept(page: Page) -> None:
    with page.before("""
        const real = window.fetch;
        window.fetch = (path, options) => {
          if (new Headers(options?.headers).get('Authorization') === 'Bearer secret') return real(path, options);
          const body = JSON.stringify({detail: 'this service needs a key', code: 'unauthorized'});
          return Promise.resolve(new Response(body, {status: 401}));
        };"""):
        page.driver.get(page.address)
        page.until(lambda: page.one('#ask-key').is_displayed(), 'the question')
        assert 'This service needs an API key' in page.one('#ask-key').text
        page.one('#key').send_keys('wrong', Keys.ENTER)
        page.until(lambda: 'not accepted' in page.one('#ask-key').text, 'the question again')
        page.one('#key').send_keys('secret', Keys.ENTER)
        page.until(lambda: len(page.ids) == 9, 'the documents')
        page.until(lambda: page.all('.view img.loaded[src^="blob:"]'), 'pictures that were fetched with the key')
        page.open()
        assert len(page.ids) == 9
        assert page.run('return JSON.stringify([localStorage, sessionStorage])') == json.dumps(
            [{}, {'clipflow.key': 'secret'}], separators=(',', ':')
        )


def test_results_that_differ_and_how_probable_they_are(
    calibrated: Service, page_of: Callable[[str], Page], photographs: Path
) -> None:
    page = page_of(f'{calibrated.http}/')
    with httpx.Client(base_url=calibrated.http, timeout=60, trust_env=False) as http:
        for name in NAMES:
            files = [('files', (name, (photographs / name).read_bytes()))]
            http.post('/v1/documents', files=files).raise_for_status()
        page.open().type('cat')
        reply = http.post('/v1/search', json={'text': 'cat', 'limit': 48, 'include': ['probability']}).json()
        page.until(lambda: len(page.all('.tile .chance')) == len(NAMES), 'the probabilities')
        chances = [match['probability'] for match in reply['matches']]
        assert [tile.text for tile in page.all('.tile .chance')] == [
            f'{100 * chance:.{1 if chance < 0.1 else 0}f} %' for chance in chances
        ]
        page.pull('#diversity', 5)
        mixed = found_by(http, text='cat', diversity=0.5)
        assert mixed != [match['id'] for match in reply['matches']]
        page.until(lambda: page.ids == mixed, 'another order')
        assert page.one('#diversity-text').text == '0.5'
        assert 'diversity=0.5' in page.driver.current_url
        page.driver.refresh()
        assert page.settled().ids == mixed
        page.until(
            lambda: page.all('.tile .chance'), 'the probabilities, which the page asks for when it knows of them'
        )
        page.click('.view')
        page.until(lambda: 'Probability' in page.one('#lightbox table').text, 'the probability in the large view')
        with page.before("""
            const real = window.fetch;
            window.fetch = async (path, options) => {
              const isOpen = () => document.querySelector('#lightbox[open]');
              while (String(path).includes('v1/status') && !isOpen()) await new Promise((go) => setTimeout(go, 10));
              return real(path, options);
            };"""):
            page.driver.refresh()
            page.until(
                lambda: 'Probability' in page.one('#lightbox table').text,
                'it comes to an open view, too',
            )
    assert page.complaints() == []
