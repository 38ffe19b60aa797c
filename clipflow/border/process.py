"""What every process of a Flow does first."""

import os
import signal
import threading
import time

from clipflow.border import messages

_PARENT_CHECK_SECONDS = 1.0


def prepare_process() -> None:
    """End with the process that started this one, and read and write messages our way."""
    _end_with_parent()
    messages.install()


def _end_with_parent() -> None:
    """Stop this process when the one that started it is gone, so that a killed Flow leaves no orphan with its ports."""
    parent = os.getppid()
    if parent <= 1:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name='parent-watch', daemon=True).start()
