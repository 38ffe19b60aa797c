"""Log lines of our own processes: for people, or one JSON object a line."""

import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import Any


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            'time': time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created)) + f'.{int(record.msecs):03d}Z',
            'level': record.levelname.lower(),
            'stage': record.name.removeprefix('clipflow.'),
            'message': record.getMessage(),
        }
        if hasattr(record, 'request'):
            line['request'] = record.request
        if record.exc_info:
            line['trace'] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f'{text} [{record.request}]' if hasattr(record, 'request') else text


request_id: ContextVar[str] = ContextVar('request_id', default='')
"""Of the HTTP request that is being answered."""


def configure(log_format: str, stage: str) -> logging.Logger:
    """The logger of one stage, on standard error."""
    root = logging.getLogger('clipflow')
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        text = _TextFormatter('%(asctime)s %(levelname)-7s %(name)s: %(message)s', '%H:%M:%S')
        handler.setFormatter(_JsonFormatter() if log_format == 'json' else text)
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        root.propagate = False
    return root.getChild(stage)
