"""Jina's own launcher serves flow.yml too: from any directory, with the settings of the environment."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from docarray import Document
from jina import Client

from clipflow import ROOT
from clipflow_client import Client as OurClient
from local_service import held_port
from service import Service, until


def stop(process: 'subprocess.Popen[bytes]') -> None:
    """Ctrl-C. Jina loses one that comes while it still says how the Flow can be reached; then another is needed."""
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
            return
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail('Ctrl-C does not end it')


def test_jina_flow_serves_from_any_directory_and_honours_the_environment(tmp_path: Path) -> None:
    # flow.yml as it is but for its ports, which cannot be chosen with plain Jina, beside the rooms that it names.
    checkout = tmp_path / 'checkout'
    checkout.mkdir()
    for name in ('executors', 'gateway'):
        (checkout / name).symlink_to(ROOT / name)
    flow = yaml.safe_load((ROOT / 'flow.yml').read_text(encoding='utf-8'))
    held = [held_port() for _ in range(2)]
    flow['gateway']['port'] = [one.getsockname()[1] for one in held]
    (checkout / 'flow.yml').write_text(yaml.safe_dump(flow, sort_keys=False), encoding='utf-8')
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    workspace = tmp_path / 'workspace'
    environment = {**os.environ, 'CLIPFLOW_RUNTIME': 'fake', 'CLIPFLOW_WORKSPACE': str(workspace)}
    log = tmp_path / 'log'
    with log.open('w') as out:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name('jina')), 'flow', '--uses', str(checkout / 'flow.yml')],
            cwd=elsewhere,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    port = flow['gateway']['port'][0]
    try:
        until(lambda: Client(host='127.0.0.1', port=port).is_flow_ready(), 120, 'the Flow is ready')
        with OurClient(f'127.0.0.1:{port}') as client:
            assert [outcome.error for outcome in client.index([Document(id='a', text='x')])] == [None]
            assert [match.id for match in client.search('x')] == ['a']
            told = client.status()
        assert told['encoder']['runtime'] == 'fake'
        assert told['indexer']['workspace'] == str(workspace)
    except BaseException:
        print(log.read_text()[-3000:])
        raise
    finally:
        stop(process)
        for one in held:
            one.close()
    assert (workspace / 'indexer' / '0' / 'documents.db').exists()
    assert list(elsewhere.iterdir()) == []


def test_flow_yml_names_no_variable() -> None:
    # Jina leaves the name of a variable that is not set in its place, as a value.
    assert '$' not in (ROOT / 'flow.yml').read_text(encoding='utf-8')


def test_clipflow_serve_serves_a_flow_with_jina_s_own_gateway(tmp_path: Path) -> None:
    flow = yaml.safe_load((ROOT / 'benchmarks' / 'noop' / 'flow.yml').read_text(encoding='utf-8'))
    for executor in flow['executors']:
        executor['uses'] = str(ROOT / 'benchmarks' / 'noop' / executor['uses'])
    path = tmp_path / 'flow.yml'
    path.write_text(yaml.safe_dump(flow, sort_keys=False), encoding='utf-8')
    with Service(tmp_path / 'workspace', flow=path) as service:  # it says that it serves
        assert service.one('/', Document(id='a', text='x')).text == 'x'
