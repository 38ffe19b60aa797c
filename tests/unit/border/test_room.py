"""What a stage writes to its log beside its own lines."""

import os
import subprocess
import sys
from pathlib import Path

from clipflow import ROOT

_SCRIPT = """
from jina.logging.logger import JinaLogger
from result_ranker import ResultRanker
log = JinaLogger('ranker/rep-0')
ResultRanker(runtime_args={'name': 'ranker/rep-0'})
log.error('')
log.error('something else')
"""


def test_lines_of_jina_without_a_word_are_left_out(tmp_path: Path) -> None:
    room = str(ROOT / 'executors' / 'ranker')
    environment = {**os.environ, 'JINA_LOG_LEVEL': 'ERROR', 'PYTHONPATH': room, 'CLIPFLOW_WORKSPACE': str(tmp_path)}
    command = [sys.executable, '-W', 'ignore', '-c', _SCRIPT]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.count('ERROR') == 1
    assert 'something else' in done.stdout
