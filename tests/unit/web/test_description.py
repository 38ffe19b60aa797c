"""What /openapi.json says."""

from typing import Any

from docarray import DocumentArray

from clipflow.access import Access
from clipflow.metrics import Metrics
from clipflow.settings import GatewaySettings
from clipflow.web.app import create_app


async def _flow(*_: object) -> DocumentArray:
    return DocumentArray()


def description(keys: str = '') -> dict[str, Any]:
    return create_app(_flow, GatewaySettings.load(), Access.of(keys, None), Metrics()).openapi()


def operations(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f'{method} {path}': told for path, all_of in found['paths'].items() for method, told in all_of.items()}


def test_every_form_of_a_body_is_described() -> None:
    found = operations(description())
    forms = {name: set(told['requestBody']['content']) for name, told in found.items() if 'requestBody' in told}
    assert forms['post /v1/documents'] == {'application/json', 'multipart/form-data', 'application/x-ndjson'}
    assert {name for name in found if name.startswith(('post', 'patch'))} == set(forms)
    body = found['post /post']['requestBody']['content']['application/json']['schema']
    assert {'exec_endpoint', 'data', 'parameters'} <= set(body['properties'])


def test_errors_are_described_as_they_come() -> None:
    found = operations(description())
    assert not [name for name, told in found.items() if '422' in told['responses']]
    error = found['get /v1/documents']['responses']['default']
    assert set(error['content']) == {'application/problem+json'}
    assert all('default' in told['responses'] for told in found.values())


def test_where_a_key_is_needed_the_description_says_so() -> None:
    open_to_all, guarded = description(), description('reading-key-1:read')
    assert 'securitySchemes' not in open_to_all['components']
    assert [scheme['scheme'] for scheme in guarded['components']['securitySchemes'].values()] == ['bearer']
    assert operations(guarded)['post /v1/search']['security']
