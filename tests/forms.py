"""The short form of the tests, which `make test` runs, and the long one of `make long`."""

import os

import pytest

LONG = bool(os.environ.get('CLIPFLOW_TEST_LONG'))

long = pytest.mark.skipif(not LONG, reason='takes minutes, or an environment of its own: `make long` runs it')
