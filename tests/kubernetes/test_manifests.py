"""Every overlay and every component builds, fits the schemas, breaks no rule, and does what it says."""

import json
import re
import subprocess
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipflow import ROOT, __version__, settings
from clipflow.access import Access
from clipflow.metrics import Metrics
from clipflow.web.app import create_app

from . import rules
from .cluster import Cluster, at, kind, mapping, mappings, matches, name, text
from .conftest import COMPONENTS, OUTSIDE, SETS, Objects

OLDEST, NEWEST = '1.27', '1.37'
CRDS = {'ScaledObject', 'ServiceMonitor', 'PrometheusRule'}
OURS = ('gateway', 'preprocessor', 'encoder', 'indexer', 'ranker')
POD = ('spec', 'template', 'spec')
Build = Callable[[str], Objects]


def one(objects: Objects, where: str) -> dict[str, Any]:
    """The object `Kind/name`."""
    (found,) = (entry for entry in objects if f'{kind(entry)}/{name(entry)}' == where)
    return found


def container(objects: Objects, where: str) -> dict[str, Any]:
    return mappings(one(objects, where), 'spec', 'template', 'spec', 'containers')[0]


def faults_of_schemas(python: Path, objects: Objects, *versions: str) -> list[str]:
    done = subprocess.run(
        [python, Path(__file__).with_name('schemas.py')],
        input=json.dumps({'versions': versions, 'objects': objects}),
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(done.stdout))


@pytest.mark.parametrize('chosen', SETS)
def test_no_rule_is_broken(built: Build, chosen: str) -> None:
    assert rules.check(built(chosen), OUTSIDE) == []


def test_all_objects_fit_the_schemas_of_the_oldest_and_the_newest_version(
    built: Build, kubernetes_python: Path
) -> None:
    objects = {json.dumps(entry, sort_keys=True) for chosen in SETS for entry in built(chosen)}
    known = [entry for entry in map(json.loads, sorted(objects)) if kind(entry) not in CRDS]
    assert len(known) > 50
    assert faults_of_schemas(kubernetes_python, known, OLDEST, NEWEST) == []


def test_the_schemas_find_a_misspelt_field_and_a_kind_that_is_not_there(built: Build, kubernetes_python: Path) -> None:
    objects = deepcopy([one(built('base'), 'Deployment/encoder'), one(built('base'), 'Service/encoder')])
    container(objects, 'Deployment/encoder')['imagePullpolicy'] = 'Always'
    objects[1]['kind'] = 'Servise'
    found = faults_of_schemas(kubernetes_python, objects, NEWEST)
    assert ['imagePullpolicy' in found[0], 'v1 Servise' in found[1]] == [True, True]


@pytest.mark.parametrize('component', COMPONENTS)
def test_a_component_changes_something_and_says_what(built: Build, component: str) -> None:
    assert built(component) != built('base')
    text = (ROOT / 'k8s' / 'components' / component / 'README.md').read_text(encoding='utf-8')
    assert text.startswith(f'# {component}\n')


def test_every_file_of_a_component_is_used(kustomize: Callable[[Path], Objects]) -> None:
    # kustomize says nothing of a file, or of a patch, that nobody names.
    for folder in (ROOT / 'k8s').rglob('kustomization.yaml'):
        text = folder.read_text(encoding='utf-8')
        beside = [path.name for path in folder.parent.iterdir() if path.suffix in ('.yaml', '.json')]
        assert [file for file in beside if file != folder.name and file not in text] == [], folder


def test_images_are_of_this_version(built: Build) -> None:
    for chosen in ('base', 'sharded', 'production', 'reindex'):
        images = [text for pod in Cluster(built(chosen)).all_pods for text in [pod.containers[0]['image']]]
        assert {text.rpartition(':')[2] for text in images} == {__version__}
    # An entry of `images:` that matches nothing would pass in silence.
    assert [
        container(built('production'), where)['image']
        for where in ('Deployment/gateway', 'Deployment/encoder', 'StatefulSet/indexer')
    ] == [f'registry.example.com/clipflow/{room}:{__version__}' for room in ('gateway', 'encoder', 'indexer')]
    for chosen, tag in (('gpu', 'gpu'), ('triton', 'triton'), ('ipu', 'triton')):
        assert container(built(chosen), 'Deployment/encoder')['image'] == f'clipflow-encoder:{__version__}-{tag}'


def test_every_variable_is_one_that_is_read(built: Build) -> None:
    known = {settings.PREFIX + field.upper() for cls in settings.ALL for field in cls.model_fields}
    for chosen in SETS:
        cluster = Cluster(built(chosen))
        given = {
            variable
            for pod in cluster.all_pods
            for part in pod.containers
            for variable in [*cluster.environment(pod, part), *(entry['name'] for entry in mappings(part, 'env'))]
            if variable.startswith(settings.PREFIX)
        }
        assert given - known == set()


def test_a_file_of_yaml_is_a_file_of_plain_yaml() -> None:
    # What YAML 1.1 takes for a truth value is quoted; kubectl reads it so, others do not.
    for path in (ROOT / 'k8s').rglob('*.yaml'):
        for event in yaml.parse(path.read_text(encoding='utf-8')):
            if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and not event.style:
                assert event.value not in ('y', 'n', 'Y', 'N', 'yes', 'no', 'on', 'off', 'Yes', 'No', 'On', 'Off'), path


# -- what the options do ----------------------------------------------------------------------------------------------


def test_production_has_two_of_everything_but_the_indexer(built: Build) -> None:
    cluster = Cluster(built('production'))
    least = {name(pod.owner): cluster.least(pod.owner) for pod in cluster.pods}
    assert least == {'gateway': 2, 'preprocessor': 2, 'encoder': 2, 'indexer': 1, 'ranker': 2}


def test_production_wants_keys_and_the_base_does_not(built: Build) -> None:
    optional = []
    for chosen in ('base', 'production'):
        (entry,) = (
            e for e in container(built(chosen), 'Deployment/gateway')['env'] if e['name'] == 'CLIPFLOW_API_KEYS'
        )
        optional.append(at(entry, 'valueFrom', 'secretKeyRef', 'optional'))
    assert optional == [True, False]


def test_three_shards_take_the_place_of_one_indexer(built: Build) -> None:
    objects = built('sharded')
    for shape in ('StatefulSet', 'Service', 'PodDisruptionBudget'):
        found = sorted(name(entry) for entry in objects if kind(entry) == shape and name(entry).startswith('indexer'))
        assert found == ['indexer-0', 'indexer-1', 'indexer-2']
    assert len(objects) == len(built('base')) + 6


def test_an_indexer_over_milvus_keeps_nothing_and_gets_its_token_from_a_secret(built: Build) -> None:
    objects = built('milvus')
    assert not any(kind(entry) == 'StatefulSet' for entry in objects)
    indexer = container(objects, 'Deployment/indexer')
    assert indexer['image'] == f'clipflow-milvus-indexer:{__version__}'
    assert {mount['mountPath'] for mount in indexer['volumeMounts']} == {'/tmp', '/cache'}
    (token,) = (entry for entry in indexer['env'] if entry['name'] == 'CLIPFLOW_MILVUS_TOKEN')
    assert 'value' not in token
    assert token['valueFrom']['secretKeyRef']['name'] == 'clipflow-milvus'
    (address,) = (at(entry, 'data', 'uri') for entry in objects if name(entry).startswith('clipflow-milvus-'))
    port = at(one(objects, 'NetworkPolicy/indexer-to-milvus'), 'spec', 'egress')[0]['ports'][0]['port']
    assert address.endswith(f':{port}')


def test_a_gpu_is_one_card_a_replica(built: Build) -> None:
    encoder = container(built('gpu'), 'Deployment/encoder')
    assert encoder['resources']['limits']['nvidia.com/gpu'] == '1'
    assert {'name': 'CLIPFLOW_DEVICE', 'value': 'cuda'} in encoder['env']


def test_the_name_of_the_ipu_resource_stands_once() -> None:
    text = ''.join(path.read_text(encoding='utf-8') for path in (ROOT / 'k8s/components/ipu').glob('*.yaml'))
    assert text.count('graphcore.ai') == 1


def test_an_image_of_the_encoder_for_each_component_can_be_built() -> None:
    for component in ('triton', 'ipu'):
        text = (ROOT / 'k8s/components' / component / 'README.md').read_text(encoding='utf-8')
        runtime = text.partition('--build-arg RUNTIME=')[2].split()[0]
        assert (ROOT / f'executors/encoder/runtimes/{runtime}.txt').exists()


def test_models_come_from_the_volume(built: Build) -> None:
    cluster = Cluster(built('models'))
    homes = {pod.component: cluster.environment(pod, pod.containers[0]).get('HF_HOME') for pod in cluster.pods}
    mounted = {pod.component for pod in cluster.pods if '/models' in str(pod.containers[0]['volumeMounts'])}
    assert mounted == set(OURS) - {'gateway'}
    assert {homes[stage] for stage in mounted} == {'/models'}


def test_jobs_that_change_the_model_have_the_volume_of_models_and_of_the_indexer(built: Build) -> None:
    for called in ('prepare', 'switch'):
        job = one(built('changing'), f'Job/reindex-{called}')
        mounted = {at(entry, 'mountPath') for entry in container([job], f'Job/reindex-{called}')['volumeMounts']}
        assert {'/models', '/data'} <= mounted
        assert ('--prepare' in container([job], f'Job/reindex-{called}')['args']) is (called == 'prepare')
        assert (job['spec'].get('suspend') is True) is (called == 'switch')
        # Else the pod, and its log, would be deleted when the Job has failed.
        assert at(job, *POD, 'restartPolicy') == 'Never'


def test_a_job_runs_where_the_volume_of_the_indexer_is_for_as_long_as_it_has_it(built: Build) -> None:
    objects = built('changing')
    prepare, switch = (at(one(objects, f'Job/reindex-{called}'), *POD, 'affinity') for called in ('prepare', 'switch'))
    (term,) = mappings(prepare, 'podAffinity', 'requiredDuringSchedulingIgnoredDuringExecution')
    assert term['topologyKey'] == 'kubernetes.io/hostname'
    indexer = mapping(one(objects, 'StatefulSet/indexer'), 'spec', 'template', 'metadata', 'labels')
    assert matches(term['labelSelector'], indexer)
    assert switch is None  # there is no indexer then


def test_alerts_and_scalers_ask_for_metrics_that_there_are(built: Build) -> None:
    metrics = Metrics()
    metrics.request('/search', 'ok', 0.1, [('encoder', 0.1)])
    there = set(re.findall(r'^(clipflow_\w+)', metrics.text({'encoder': {'ready': True, 'waiting': 1}}).decode(), re.M))
    asked = set(
        re.findall(
            r'clipflow_\w+',
            json.dumps(
                [
                    one(built('monitoring'), 'PrometheusRule/clipflow'),
                    one(built('autoscale-keda'), 'ScaledObject/encoder'),
                ]
            ),
        )
    )
    assert len(asked) > 3
    assert asked - there == set()


def test_a_gateway_without_an_answer_from_the_stages_is_noticed_though_another_has_one(built: Build) -> None:
    metrics = Metrics()
    there = {'encoder': {'ready': True}}
    told = [set(re.findall(r'^(clipflow_\w+)', metrics.text(said).decode(), re.M)) for said in (there, {})]
    rules = mappings(one(built('monitoring'), 'PrometheusRule/clipflow'), 'spec', 'groups', 0, 'rules')
    (silent,) = (text(rule, 'expr') for rule in rules if rule['alert'] == 'ClipflowStageSilent')
    found = re.fullmatch(r'(\w+)\{.*\} unless on \(pod\) (\w+)\{.*\}', silent)
    assert found is not None
    # What is left of a gateway's series is what it has always, if it does not have what only stages tell.
    assert [(found[1] in names, found[2] in names) for names in told] == [(True, True), (True, False)]


def test_requests_of_probes_are_no_share_of_what_fails(built: Build) -> None:
    rules = mappings(one(built('monitoring'), 'PrometheusRule/clipflow'), 'spec', 'groups', 0, 'rules')
    (failing,) = (text(rule, 'expr') for rule in rules if rule['alert'] == 'ClipflowErrors')
    assert failing.count('clipflow_requests_total{') == failing.count('endpoint!="/status"') == 2


def test_the_dashboard_counts_a_replica_once_however_many_gateways_tell_of_it() -> None:
    dashboard = json.loads((ROOT / 'k8s/components/monitoring/dashboard.json').read_text(encoding='utf-8'))
    asked = [target['expr'] for panel in dashboard['panels'] for target in panel.get('targets', [])]
    metrics = Metrics()
    always = set(re.findall(r'^(clipflow_\w+)', metrics.text({}).decode(), re.M))
    metrics.request('/search', 'ok', 0.1, [('encoder', 0.1)])
    own = always | set(re.findall(r'^(clipflow_\w+)', metrics.text({}).decode(), re.M))
    of_stages = [text for text in asked if not set(re.findall(r'clipflow_\w+', text)) <= own]
    assert len(of_stages) > 5
    for expression in of_stages:
        for found in re.finditer(r'(rate\()?(clipflow_\w+)', expression):
            before = expression[: found.start()]
            assert re.search(r'(max|min) by \((stage|replica)\) \($', before), expression


def test_a_stream_of_requests_is_not_cut_off_on_its_way_in(built: Build) -> None:
    for called in ('http', 'grpc'):
        told = mapping(one(built('ingress'), f'Ingress/gateway-{called}'), 'metadata', 'annotations')
        assert told['nginx.ingress.kubernetes.io/proxy-body-size'] == '0'


def test_probes_of_the_gateway_are_routes_of_it(built: Build) -> None:
    async def flow(endpoint: str, docs: Any, parameters: dict[str, Any]) -> Any:
        raise AssertionError('nothing is called here')

    routes = create_app(flow, settings.GatewaySettings(), Access({}), Metrics()).openapi()['paths']
    gateway = container(built('base'), 'Deployment/gateway')
    probes = {gateway[key]['httpGet']['path'] for key in ('startupProbe', 'readinessProbe', 'livenessProbe')}
    assert probes <= set(routes)


def test_alerts_have_their_run_books_and_the_dashboard_is_there(built: Build) -> None:
    objects = built('monitoring')
    page = (ROOT / 'docs' / 'operations.md').read_text(encoding='utf-8')
    alerts = [rule['alert'] for rule in one(objects, 'PrometheusRule/clipflow')['spec']['groups'][0]['rules']]
    assert [alert for alert in alerts if f'\n### {alert}\n' not in page] == []
    assert json.loads(one(objects, 'ConfigMap/clipflow-dashboard')['data']['dashboard.json'])['title'] == 'clipflow'
