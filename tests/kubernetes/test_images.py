"""The Dockerfiles: each room's image is made alike, and holds what it needs and no more."""

import fnmatch
import re

import pytest

from clipflow import ROOT, __version__

from .cluster import mappings
from .test_manifests import Build, container

FOLDERS = {
    'gateway': 'gateway',
    'preprocessor': 'executors/preprocessor',
    'encoder': 'executors/encoder',
    'indexer': 'executors/indexer',
    'ranker': 'executors/ranker',
    'clip-server': 'executors/clip_server',
    'milvus-indexer': 'executors/milvus_indexer',
}


def dockerfile(room: str) -> str:
    return (ROOT / FOLDERS[room] / 'Dockerfile').read_text(encoding='utf-8')


def instructions(room: str) -> list[tuple[str, str]]:
    """Each instruction and what stands behind it, in one line."""
    lines = re.sub(r'\\\n\s*', '', re.sub(r'^#.*\n', '', dockerfile(room), flags=re.MULTILINE)).splitlines()
    return [(line.partition(' ')[0], line.partition(' ')[2]) for line in lines if line]


def only(room: str, word: str) -> str:
    (found,) = (rest for name, rest in instructions(room) if name == word)
    return found


@pytest.mark.parametrize('room', FOLDERS)
def test_an_image_is_made_in_two_steps_on_a_base_that_can_be_chosen(room: str) -> None:
    found = instructions(room)
    assert found[0] == ('ARG', 'BASE=python:3.11.13-slim-bookworm')
    assert [rest for name, rest in found if name == 'FROM'] == ['${BASE} AS build', '${BASE}']
    last = found[len(found) - 1 - [name for name, _ in found][::-1].index('FROM') :]
    assert not any('pip' in rest for name, rest in last if name == 'RUN')


@pytest.mark.parametrize('room', FOLDERS)
def test_an_image_runs_as_a_numbered_user_and_ends_by_sigterm(room: str) -> None:
    found = instructions(room)
    assert only(room, 'USER') == '10001:10001'
    assert only(room, 'STOPSIGNAL') == 'SIGTERM'
    assert [name for name, _ in found].index('USER') > max(n for n, (name, _) in enumerate(found) if name == 'RUN')
    assert f'/clipflow/{FOLDERS[room]}' in [rest for n, rest in found if n == 'WORKDIR']
    assert f'org.opencontainers.image.title="clipflow-{room}"' in only(room, 'LABEL')
    assert f'VERSION={__version__}' in [rest for name, rest in found if name == 'ARG']


@pytest.mark.parametrize('room', FOLDERS)
def test_its_health_check_asks_its_own_port(room: str) -> None:
    port = '51000' if room == 'gateway' else '8080'
    assert f'CMD ["python", "-m", "clipflow.probe", "127.0.0.1:{port}"]' in only(room, 'HEALTHCHECK')
    assert f'"--port", "{port}"' in only(room, 'ENTRYPOINT')
    assert port in only(room, 'EXPOSE').split()


@pytest.mark.parametrize('room', FOLDERS)
def test_what_the_manifests_mount_can_be_written_in_the_image(built: Build, room: str) -> None:
    assert '/cache' in only(room, 'VOLUME')
    kinds = {'indexer': 'StatefulSet', 'clip-server': None, 'milvus-indexer': None}
    if shape := kinds.get(room, 'Deployment'):
        paths = {mount['mountPath'] for mount in mappings(container(built('base'), f'{shape}/{room}'), 'volumeMounts')}
        made = [rest for name, rest in instructions(room) if name == 'RUN' and rest.startswith('install -d')]
        assert paths - {'/tmp'} <= set(made[0].split())


def test_rooms_differ_in_nothing_but_what_they_must() -> None:
    """All Dockerfiles are one text, but for names, and for lines that one room alone needs."""
    own = {
        'gateway': r'^EXPOSE.*|^ENTRYPOINT.*|.*clipflow\.probe.*',
        'encoder': r'.*RUNTIME.*|.*runtimes.*',
        'indexer': r'.*/data.*|.*documents.*',
        'clip-server': r'ENV CLIPFLOW_MODEL=.*',
        'milvus-indexer': r'.*/data.*|.*documents.*',
    }
    plain = {}
    for room, folder in FOLDERS.items():
        text = dockerfile(room).replace(f'clipflow-{room}', 'clipflow-ROOM').replace(folder, 'FOLDER')
        # One room needs another gRPC than the checkout.
        text = (
            text.replace(" -e '^grpcio=='", '')
            .replace('grep -v -e', 'grep -v')
            .replace(', but for gRPC, of which it needs another', '')
        )
        text = re.sub(r'"--name", "\w+"', '"--name", "NAME"', text)
        text = re.sub(r'image.description="[^"]*"', 'image.description=""', text)
        text = re.sub(r'PIP_ARGUMENTS=".*"', 'PIP_ARGUMENTS=""', text)
        lines = [line.strip().removesuffix('\\').strip() for line in text.splitlines()]
        start = r'.*--start-period=.*|.*/cache.*|.*What is written at run time.*|^COPY models/clip-mini.*'
        skip = re.compile(f'{own.get(room, "(?!)")}|{start}|{own["gateway"]}')
        plain[room] = [line for line in lines if not skip.fullmatch(line)]
    assert {room: lines for room, lines in plain.items() if lines != plain['ranker']} == {}


def test_the_bundled_model_is_in_every_image_that_needs_it_and_in_no_other() -> None:
    have = {room for room in FOLDERS if 'COPY models/clip-mini' in dockerfile(room)}
    assert have == {'preprocessor', 'encoder', 'indexer', 'ranker', 'milvus-indexer'}


@pytest.mark.parametrize('room', FOLDERS)
def test_what_is_copied_is_let_through_to_the_builder(room: str) -> None:
    rules = [line for line in (ROOT / '.dockerignore').read_text(encoding='utf-8').splitlines() if line[:1] not in '#']
    assert rules[0] == '*'
    let, kept = [rule[1:] for rule in rules if rule[0] == '!'], [rule for rule in rules[1:] if rule[0] != '!']
    for name, rest in instructions(room):
        if name == 'COPY' and not rest.startswith('--from'):
            source = rest.split()[0]
            assert (ROOT / source).exists()
            assert any(source == path or source.startswith(f'{path}/') for path in let), source
            assert not any(fnmatch.fnmatch(source, rule) for rule in kept), source


def test_python_writes_nothing_while_it_runs() -> None:
    for room in FOLDERS:
        environment = ' '.join(rest for name, rest in instructions(room) if name == 'ENV')
        assert 'PYTHONDONTWRITEBYTECODE=1' in environment
        assert 'HOME=/tmp' in environment
        assert 'compileall' in dockerfile(room)
        # PyTorch starts this program to share memory between processes.
        assert 'torch/bin' not in dockerfile(room)
