"""The Compose file for one host says the same as the manifests."""

from typing import Any

import pytest
import yaml

from clipflow import ROOT, __version__, settings
from clipflow.deploy.kubernetes import gateway_arguments
from clipflow.flows import Flow

FILE: dict[str, Any] = yaml.safe_load((ROOT / 'compose.yml').read_text(encoding='utf-8'))
SERVICES: dict[str, dict[str, Any]] = FILE['services']
STAGES = ('preprocessor', 'encoder', 'indexer', 'ranker')


def test_the_gateway_is_told_what_the_manifests_tell_it() -> None:
    patch = next(yaml.safe_load_all((ROOT / 'k8s/base/flow/gateway.yaml').read_text(encoding='utf-8')))
    told = patch['spec']['template']['spec']['containers'][0]['args']
    assert SERVICES['gateway']['command'] == told == gateway_arguments(Flow.read(ROOT / 'flow.yml'))


@pytest.mark.parametrize('stage', STAGES)
def test_a_stage_is_told_what_the_manifests_tell_it(stage: str) -> None:
    patch = yaml.safe_load((ROOT / f'k8s/base/flow/{stage}.yaml').read_text(encoding='utf-8'))
    container = patch['spec']['template']['spec']['containers'][0]
    assert SERVICES[stage]['command'] == container['args']
    assert SERVICES[stage]['networks'] == ['stages']


def test_all_stages_are_there_and_built_from_their_own_files() -> None:
    assert set(SERVICES) == {'gateway', *STAGES}
    for name, service in SERVICES.items():
        assert service['image'] == f'clipflow-{name}:{__version__}'
        assert (ROOT / service['build']['context'] / service['build']['dockerfile']).is_file()
        assert name in service['build']['dockerfile']


@pytest.mark.parametrize('name', SERVICES)
def test_a_container_can_write_its_volumes_only_and_has_no_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service['read_only'] is True
    assert service['cap_drop'] == ['ALL']
    assert service['security_opt'] == ['no-new-privileges:true']
    assert service['user'] == '10001:10001'
    assert service['tmpfs'] == ['/tmp']
    given = service['environment']
    drain, longest = (float(given[key]) for key in ('CLIPFLOW_DRAIN_SECONDS', 'CLIPFLOW_REQUEST_TIMEOUT'))
    assert float(service['stop_grace_period'].removesuffix('s')) > drain + longest
    mounted = {volume.partition(':')[2] for volume in service.get('volumes', [])} | {'/tmp'}
    assert name == 'gateway' or {given['CLIPFLOW_CACHE'], given['HOME']} <= mounted


def test_only_the_gateway_is_reachable_and_only_from_this_host() -> None:
    assert [name for name, service in SERVICES.items() if 'ports' in service] == ['gateway']
    assert all(port.startswith('127.0.0.1:') for port in SERVICES['gateway']['ports'])
    assert FILE['networks']['stages'] == {'internal': True}
    # A page in a browser of this host is no other host: without a key it must not come by a name of its own.
    assert SERVICES['gateway']['environment']['CLIPFLOW_ALLOWED_HOSTS'] == '${CLIPFLOW_ALLOWED_HOSTS:-localhost}'


def test_documents_are_on_a_volume() -> None:
    assert 'documents:/data' in SERVICES['indexer']['volumes']
    assert 'ENV CLIPFLOW_WORKSPACE=/data\n' in (ROOT / 'executors/indexer/Dockerfile').read_text(encoding='utf-8')
    assert set(FILE['volumes']) == {'cache', 'documents'}


def test_every_variable_is_one_that_is_read() -> None:
    known = {settings.PREFIX + field.upper() for cls in settings.ALL for field in cls.model_fields}
    given = {key for service in SERVICES.values() for key in service['environment'] if key.startswith(settings.PREFIX)}
    assert given - known == set()
