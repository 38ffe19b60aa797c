"""Settings: what wins over what, and what a wrong one says."""

import os
import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from clipflow import ROOT, settings
from clipflow.cli.service import PRECISIONS, RUNTIMES
from clipflow.errors import InvalidParameter
from clipflow.settings import (
    ALL,
    EncoderSettings,
    GatewaySettings,
    IndexerSettings,
    PreprocessorSettings,
    RankerSettings,
    unknown_variables,
)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(settings.PREFIX)]:
        monkeypatch.delenv(name)


def test_the_environment_beats_what_is_given_and_that_beats_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    default = GatewaySettings.model_fields['http_port'].default
    assert GatewaySettings.load().http_port == default
    assert GatewaySettings.load(http_port=1234).http_port == 1234
    monkeypatch.setenv('CLIPFLOW_HTTP_PORT', '4321')
    assert GatewaySettings.load(http_port=1234).http_port == 4321


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CLIPFLOW_HTTP_PORT', '')
    assert GatewaySettings.load(http_port=1234).http_port == 1234


def test_an_unknown_setting_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(InvalidParameter, match=r"'batch_siz'.*'batch_size'"):
        EncoderSettings.load(batch_siz=3)


@pytest.mark.parametrize(
    ('kind', 'name', 'value'),
    [
        (EncoderSettings, 'runtime', 'tourch'),
        (EncoderSettings, 'batch_size', '0'),
        (EncoderSettings, 'batch_size', 'many'),
        (PreprocessorSettings, 'allow_http', 'perhaps'),
        (PreprocessorSettings, 'http_timeout', '-1'),
        (IndexerSettings, 'index_vectors', 'float64'),
        (RankerSettings, 'queue_limit', '1.5'),
        (GatewaySettings, 'grpc_port', '65536'),
        (GatewaySettings, 'log_format', 'xml'),
        (GatewaySettings, 'cors_origins', 'https://shop.example/'),
        (GatewaySettings, 'cors_origins', 'shop.example'),
        (GatewaySettings, 'allowed_hosts', 'https://photos.example'),
        (GatewaySettings, 'allowed_hosts', 'photos.example:8080'),
    ],
)
def test_a_bad_value_is_named_with_the_place_it_came_from(
    monkeypatch: pytest.MonkeyPatch, kind: type[settings.Settings], name: str, value: str
) -> None:
    with pytest.raises(InvalidParameter, match=f"setting '{name}'='{value}'"):
        kind.load(**{name: value})
    monkeypatch.setenv(settings.PREFIX + name.upper(), value)
    with pytest.raises(InvalidParameter, match=f"{settings.PREFIX}{name.upper()}='{value}'"):
        kind.load()


def test_templates_are_a_json_list_and_may_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert EncoderSettings.load().templates is None
    assert EncoderSettings.load(templates=['a {}']).templates == ('a {}',)
    for text, expected in (('["a {}", "{}"]', ('a {}', '{}')), ('[]', ())):
        monkeypatch.setenv('CLIPFLOW_TEMPLATES', text)
        assert EncoderSettings.load(templates=['other {}']).templates == expected
    for text in ('a {}', '"a {}"', '{"a": 1}', '["a"]', '[1]', '["{} {}"]'):
        monkeypatch.setenv('CLIPFLOW_TEMPLATES', text)
        with pytest.raises(InvalidParameter, match='CLIPFLOW_TEMPLATES='):
            EncoderSettings.load()


def test_all_bad_values_are_named_at_once() -> None:
    with pytest.raises(InvalidParameter) as caught:
        EncoderSettings.load(batch_size=0, threads=-1, colour='red')
    assert all(name in caught.value.message for name in ('batch_size', 'threads', 'colour'))


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match='frozen'):
        EncoderSettings.load().batch_size = 3


def test_a_variable_that_jina_left_in_place_is_a_fault() -> None:
    with pytest.raises(InvalidParameter, match=re.escape('$CLIPFLOW_MODEL')):
        EncoderSettings.load(model='$CLIPFLOW_MODEL')


def test_the_default_model_is_the_bundled_one() -> None:
    assert Path(EncoderSettings.load().model) == ROOT / 'models' / 'clip-mini'


def test_file_roots_are_separated_like_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PreprocessorSettings.load().file_roots == ()
    monkeypatch.setenv('CLIPFLOW_FILE_ROOTS', f'/data/a{os.pathsep}/data/b b{os.pathsep}')
    assert PreprocessorSettings.load().file_roots == (Path('/data/a'), Path('/data/b b'))


@pytest.mark.parametrize(
    ('given', 'expected'),
    [('/var/lib/x', Path('/var/lib/x')), ('here', ROOT / 'here'), ('~/there', Path.home() / 'there')],
)
def test_a_relative_workspace_lies_beside_the_flow_whatever_the_current_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, expected: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert IndexerSettings.load(workspace=given).workspace == expected


def test_unknown_variables_are_reported_with_the_nearest_name_and_known_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert unknown_variables() == []
    for kind in ALL:
        for name in kind.model_fields:
            monkeypatch.setenv(settings.PREFIX + name.upper(), 'x')
    assert unknown_variables() == []
    monkeypatch.setenv('CLIPFLOW_MODL', 'x')
    monkeypatch.setenv('CLIPFLOW_QQQQQQQQ', 'x')
    first, second = unknown_variables()
    assert 'CLIPFLOW_MODL ' in first
    assert 'CLIPFLOW_MODEL?' in first
    assert 'CLIPFLOW_QQQQQQQQ' in second


def test_an_unknown_variable_stops_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CLIPFLOW_MODL', 'x')
    assert RankerSettings.load().queue_limit >= 1


@pytest.mark.parametrize('kind', ALL)
def test_every_setting_says_what_it_is(kind: type[settings.Settings]) -> None:
    for name, field in kind.model_fields.items():
        assert field.description, name
        assert field.description.endswith('.'), name


@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        (EncoderSettings, 'model'),
        (EncoderSettings, 'runtime'),
        (EncoderSettings, 'device'),
        (EncoderSettings, 'precision'),
        (IndexerSettings, 'workspace'),
        (IndexerSettings, 'index_kind'),
        (PreprocessorSettings, 'file_roots'),
        (PreprocessorSettings, 'allow_http'),
        (GatewaySettings, 'host'),
        (GatewaySettings, 'grpc_port'),
        (GatewaySettings, 'http_port'),
        (GatewaySettings, 'log_format'),
    ],
)
def test_names_that_users_rely_on_exist(kind: type[settings.Settings], name: str) -> None:
    assert name in kind.model_fields


def test_choices_of_commands_are_those_of_the_settings() -> None:
    fields = EncoderSettings.model_fields
    assert get_args(fields['runtime'].annotation) == RUNTIMES
    assert get_args(fields['precision'].annotation) == PRECISIONS
