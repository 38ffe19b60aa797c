"""What the tests that drive a service share: services that live for the whole run, and pictures to send them."""

import os

# Before Jina is imported: no telemetry, no look at a package index, no lines about errors that the tests provoke.
os.environ['JINA_OPTOUT_TELEMETRY'] = '1'
os.environ['NO_VERSION_CHECK'] = '1'
os.environ['JINA_LOG_LEVEL'] = 'CRITICAL'
# Before OpenMP and OpenBLAS are loaded, as in a service: on a busy machine threads that spin while they wait for each
# other make small calculations take fifty times as long.
os.environ.setdefault('GOMP_SPINCOUNT', '2000')
os.environ.setdefault('OPENBLAS_THREAD_TIMEOUT', '10')

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, settings

from clipflow import ROOT
from clipflow.rank.calibration import Calibration
from clipflow.weights import load_spec
from service import Service, spied_on

# A busy machine takes more than the 200 ms that an example may take otherwise.
settings.register_profile('patient', settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('patient')


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if terminal := config.pluginmanager.get_plugin('terminalreporter'):
        config.pluginmanager.register(_Failures(terminal))


class _Failures:
    """Names a test when it fails: a run that is ended before its summary has said what it found."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line(
                f'\n{report.when} of {report.nodeid} failed: {report.longreprtext[-1000:]}', red=True
            )


@pytest.fixture(scope='session')
def _fake_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp('fake'), {'RUNTIME': 'fake'}) as running:
        yield running


@pytest.fixture
def fake(_fake_service: Service) -> Service:
    """A service without a model and without documents."""
    _fake_service.post('/clear')
    return _fake_service


@pytest.fixture
def http(fake: Service) -> Iterator[httpx.Client]:
    """HTTP to the service `fake`."""
    with httpx.Client(base_url=fake.http, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope='session')
def photographs() -> Path:
    """The folder of the photographs that scikit-image ships."""
    import skimage

    return Path(skimage.__file__).parent / 'data'


@pytest.fixture(scope='session')
def export_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty at first, so that a model that has to be exported is exported, by the first of the services."""
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='session')
def foreign_contacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that names the foreign hosts that `model_service` has looked up, if there are any."""
    return tmp_path_factory.mktemp('contacts') / 'contacts'


@pytest.fixture(scope='session')
def model_service(
    tmp_path_factory: pytest.TempPathFactory, export_cache: Path, foreign_contacts: Path
) -> Iterator[Service]:
    """A service with the bundled model."""
    with pytest.MonkeyPatch.context() as patch:
        spied_on(patch, foreign_contacts.with_name('site'), foreign_contacts)
        running = Service(tmp_path_factory.mktemp('model'), {'CACHE': str(export_cache)})
    with running:
        yield running


@pytest.fixture(scope='session')
def _calibrated_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp('calibrated')
    model = folder / 'clip-mini'
    model.mkdir()
    for file in (ROOT / 'models' / 'clip-mini').iterdir():
        (model / file.name).symlink_to(file)
    (model / 'templates.json').write_text('["a photo of {}"]')
    made = Calibration(load_spec(str(model)).fingerprint, 'clip-mini', -4.0, 6.0, 0.4, 0.01, 100, 500)
    made.write(folder / 'calibration.json')
    settings = {'MODEL': str(model), 'CALIBRATION': str(folder / 'calibration.json')}
    with Service(folder / 'workspace', {'RUNTIME': 'fake', **settings}) as running:
        yield running


@pytest.fixture
def calibrated(_calibrated_service: Service) -> Service:
    """As `fake`, with a model that has a template, and a ranker that has a calibration."""
    _calibrated_service.post('/clear')
    return _calibrated_service


@pytest.fixture(scope='session')
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `furnished` may read files: in `open` and `second`."""
    folder = tmp_path_factory.mktemp('roots')
    for part in ('open', 'second'):
        (folder / part).mkdir()
    return folder


@pytest.fixture(scope='session')
def _furnished_service(roots: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {
        'FILE_ROOTS': f'{roots / "open"}:{roots / "second"}',
        'INDEXED_TAGS': 'n',
        'TOWER_TTL': '0.5',
        'TEXT_CACHE': '0',
    }
    with Service(tmp_path_factory.mktemp('furnished'), {'RUNTIME': 'fake', **settings}) as running:
        yield running


@pytest.fixture
def furnished(_furnished_service: Service) -> Service:
    """As `fake`, with settings of which each serves one suite; its indexer may be killed."""
    _furnished_service.post('/clear')
    return _furnished_service
