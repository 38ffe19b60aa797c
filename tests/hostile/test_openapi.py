"""schemathesis sends everything that the OpenAPI document allows, and much that it does not: no fault of ours."""

import re
import subprocess
from pathlib import Path

from environments import environment
from forms import LONG
from service import Service

REQUIREMENTS = Path(__file__).with_name('schemathesis_requirements.txt')
EXAMPLES = 100 if LONG else 5


def test_no_request_makes_the_service_fail(fake: Service, tmp_path: Path) -> None:
    python = environment('schemathesis', REQUIREMENTS)
    command = [
        str(python.with_name('schemathesis')),
        'run',
        f'{fake.http}/openapi.json',
        '--exclude-path',
        '/readyz',  # 503 is an answer there, as on a busy machine
        '--checks',
        'not_a_server_error',
        '--phases',
        'examples,fuzzing',
        '--max-examples',
        str(EXAMPLES),
        '--generation-database',
        'none',
        '--seed',
        '1',
        '--workers',
        '2',
        '--request-timeout',
        '60',
    ]
    found = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False, cwd=tmp_path)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-1000:]
    tested = re.search(r'Tested: (\d+)', found.stdout)
    assert tested is not None
    assert int(tested[1]) >= 25, found.stdout[-2000:]
