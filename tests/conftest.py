"""What the tests that drive a service share: services that live for the whole run, and pictures to send them."""

import os

# Before Jina is imported: no telemetry, no look at a package index, no lines about errors that the tests provoke.
os.environ['JINA_OPTOUT_TELEMETRY'] = '1'
os.environ['NO_VERSION_CHECK'] = '1'
os.environ['JINA_LOG_LEVEL'] = 'CRITICAL'

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service import Service


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
def model_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the bundled model."""
    with Service(tmp_path_factory.mktemp('model')) as running:
        yield running
