"""The page in a real Chromium, and what the tests do there."""

import base64
import json
import mimetypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

T = TypeVar('T')

CHROMIUM = Path('/usr/bin/chromium')
CHROMEDRIVER = Path('/usr/bin/chromedriver')
SECONDS = 60
_FLAGS = (
    *('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync'),
    *('--disable-background-networking', '--disable-component-update', '--disable-dev-shm-usage'),
    # A desktop with a mouse, also where the machine has none.
    '--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4',
)


def start(profile: Path) -> webdriver.Chrome:
    """Chromium with a fresh profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*_FLAGS, f'--user-data-dir={profile}'):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(CHROMEDRIVER)))
    driver.set_script_timeout(2 * SECONDS)
    return driver


class Page:
    """One tab that shows the page of a service.

    Args:
        driver: Chromium.
        address: where the page is, with a slash at the end.
    """

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        self.address = address
        self.size(1440, 900)

    def size(self, width: int, height: int, touch: bool = False) -> None:
        """The size of the window's inside, in CSS pixels."""
        metrics = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': touch}
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)

    def prefer(self, **features: str) -> None:
        """What the system prefers: `color_scheme='dark'`."""
        named = [{'name': f'prefers-{name.replace("_", "-")}', 'value': value} for name, value in features.items()]
        self.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': named})

    def open(self, query: str = '') -> 'Page':
        """Load the page and wait for its first results."""
        self.driver.get(self.address + query)
        return self.settled()

    def settled(self) -> 'Page':
        """Wait until nothing is searched any more."""
        self.until(lambda: self.one('#results').get_attribute('aria-busy') == 'false', 'the search has ended')
        return self

    def until(self, condition: Callable[[], T], what: str, seconds: float = SECONDS) -> T:
        """The first true value of `condition`; the test fails if it takes longer.

        An element that is replaced between being found and being read is looked for again.
        """
        wait = WebDriverWait(self.driver, seconds, 0.05, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(lambda _: condition(), f'not seen: {what}')

    def one(self, selector: str) -> WebElement:
        """The first element."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """All elements."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: Any) -> Any:
        """JavaScript in the page."""
        return self.driver.execute_script(script, *arguments)

    def click(self, selector: str) -> None:
        """Click as a script does: also what shows only under the mouse."""
        self.run('document.querySelector(arguments[0]).click()', selector)

    def type(self, words: str) -> None:
        """Type into the search box, without Enter."""
        self.one('#text').send_keys(words)
        self.until(lambda: words.rsplit(maxsplit=1)[-1] in self.driver.current_url, f'{words!r} in the address')
        self.settled()

    def pull(self, selector: str, value: int) -> None:
        """Put a slider somewhere."""
        script = 'const x = document.querySelector(arguments[0]); x.value = arguments[1];'
        self.run(script + "x.dispatchEvent(new Event('input', {bubbles: true}));", selector, value)

    def drop(self, selector: str, *paths: Path, event: str = 'drop') -> None:
        """Drop (or paste) files on an element."""
        files = [
            [path.name, mimetypes.guess_type(path)[0], base64.b64encode(path.read_bytes()).decode()] for path in paths
        ]
        script = """
            const data = new DataTransfer();
            for (const [name, type, content] of arguments[1]) {
              const bytes = Uint8Array.from(atob(content), (x) => x.charCodeAt(0));
              data.items.add(new File([bytes], name, {type}));
            }
            const given = {bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data};
            const made = arguments[2] === 'paste' ? new ClipboardEvent('paste', given) : new DragEvent('drop', given);
            document.querySelector(arguments[0]).dispatchEvent(made);"""
        self.run(script, selector, files, event)

    def drop_from_disk(self, x: int, y: int, *paths: Path) -> None:
        """Drop files or folders as a person does, from outside the browser."""
        data = {'items': [], 'files': [str(path) for path in paths], 'dragOperationsMask': 1}
        for kind in ('dragEnter', 'dragOver', 'drop'):
            self.driver.execute_cdp_cmd('Input.dispatchDragEvent', {'type': kind, 'x': x, 'y': y, 'data': data})

    @contextmanager
    def before(self, script: str) -> Iterator[None]:
        """Run a script before those of every page that is loaded meanwhile."""
        command = 'Page.{}ScriptToEvaluateOnNewDocument'
        added = self.driver.execute_cdp_cmd(command.format('add'), {'source': script})
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd(command.format('remove'), {'identifier': added['identifier']})

    @property
    def ids(self) -> list[str]:
        """The ids of the results, in their order."""
        return list(self.run("return [...document.querySelectorAll('.tile')].map((x) => x.dataset.id)"))

    @property
    def count(self) -> str:
        """The line above the results."""
        return self.one('#count').text

    @property
    def toast(self) -> str:
        """What was said last at the foot of the page, where it is seen for a moment only."""
        return str(self.run("return document.querySelector('#toast').textContent"))

    @property
    def focused(self) -> WebElement:
        """What has the focus."""
        return self.driver.switch_to.active_element

    def requests(self, part: str) -> list[dict[str, Any]]:
        """What was loaded from addresses that hold `part`, as the browser counted it."""
        found = json.loads(self.run("return JSON.stringify(performance.getEntriesByType('resource'))"))
        return [entry for entry in found if part in entry['name']]

    def complaints(self) -> list[str]:
        """Lines of the console that are errors, since the last call; a picture that is not there is none."""
        lines = [line for line in self.driver.get_log('browser') if line['level'] == 'SEVERE']
        return [line['message'] for line in lines if 'v1/originals' not in line['message']]
