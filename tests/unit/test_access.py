"""API keys, their scopes, and how often somebody may ask."""

from pathlib import Path

import pytest

from clipflow.access import Access, RateLimit, Scope, check, key_of
from clipflow.errors import Forbidden, InvalidParameter, Overloaded, Unauthorized
from clipflow.settings import GatewaySettings


def test_without_keys_everything_is_open() -> None:
    assert Access.of('', None).scope(None) is Scope.WRITE


def test_keys_come_from_the_setting_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / 'keys'
    file.write_text('# of the shop\n\nfile-key-1:write  # with a remark\n')
    access = Access.of('reading-key:read, odd:key:with:colons:write', file)
    assert access.scope('Bearer reading-key') is Scope.READ
    assert access.scope('reading-key') is Scope.READ
    assert access.scope('Bearer odd:key:with:colons') is Scope.WRITE
    assert access.scope('Bearer file-key-1') is Scope.WRITE


@pytest.mark.parametrize('header', [None, '', 'Bearer', 'Bearer other-key', 'reading-ke', 'Basic reading-key', 'ü' * 9])
def test_anything_else_is_refused(header: str | None) -> None:
    with pytest.raises(Unauthorized):
        Access.of('reading-key:read', None).scope(header)


@pytest.mark.parametrize('keys', ['secret-key', 'secret-key:admin', ':read', 'tiny:read'])
def test_a_key_that_is_none_is_named_by_its_place_only(keys: str) -> None:
    with pytest.raises(InvalidParameter, match='number 2') as caught:
        Access.of(f'good-key:read,{keys}', None)
    assert keys.partition(':')[0] not in str(caught.value) or not keys.partition(':')[0]


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match='API_KEYS_FILE'):
        Access.of('', tmp_path / 'nothing')


@pytest.mark.parametrize('endpoint', ['/index', '/update', '/delete', '/clear', '/snapshot'])
def test_a_key_for_reading_changes_nothing(endpoint: str) -> None:
    with pytest.raises(Forbidden):
        check(Scope.READ, endpoint)
    check(Scope.WRITE, endpoint)
    check(Scope.READ, '/search')


def test_the_rate_holds_for_each_client() -> None:
    limit = RateLimit(2)
    for now in (0.0, 0.0, 0.5, 1.0):
        limit.take('a', now)
    limit.take('b', 1.0)
    with pytest.raises(Overloaded, match='2 requests'):
        limit.take('a', 1.1)
    limit.take('a', 1.6)


@pytest.mark.parametrize(
    'header', ['a-reading-key', 'Bearer a-reading-key', 'bearer  a-reading-key ', ' a-reading-key']
)
def test_a_key_is_one_key_however_it_is_written(header: str) -> None:
    assert key_of(header) == 'a-reading-key'
    assert Access.of('a-reading-key:read', None).scope(header) is Scope.READ


@pytest.mark.parametrize('key', ['schlüssel-1', 'with\ta-tab', 'zero\u200bwidth'])
def test_a_key_that_no_header_can_hold_stops_the_start(key: str) -> None:
    with pytest.raises(InvalidParameter, match='number 1') as caught:
        Access.of(f'{key}:read', None)
    assert key not in str(caught.value)


def test_many_clients_take_bounded_memory() -> None:
    limit = RateLimit(1)
    for number in range(11_000):
        limit.take(str(number), 0.0)
    assert len(limit._buckets) == 10_000


def test_no_message_about_settings_holds_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CLIPFLOW_API_KEYS', 'secret-key:read')
    monkeypatch.setenv('CLIPFLOW_TLS_KEY', '/key.pem')
    with pytest.raises(InvalidParameter, match='belong together') as caught:
        GatewaySettings.load()
    assert 'secret' not in str(caught.value)
    monkeypatch.delenv('CLIPFLOW_TLS_KEY')
    assert 'secret' not in repr(GatewaySettings.load())
