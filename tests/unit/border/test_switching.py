"""Where the launcher can be reached."""

import os
from pathlib import Path

import pytest

from clipflow import ROOT
from clipflow.border.control import GATEWAY_SOCKET
from clipflow.border.switching import Switching


def test_under_systemd_the_sockets_are_where_other_processes_see_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GATEWAY_SOCKET, '')
    monkeypatch.setenv('RUNTIME_DIRECTORY', str(tmp_path))
    with Switching([], list, None):
        assert Path(os.environ[GATEWAY_SOCKET]).is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []
    unit = (ROOT / 'scripts' / 'clipflow.service').read_text(encoding='utf-8')
    assert {'PrivateTmp=yes', 'RuntimeDirectory=clipflow'} <= set(unit.splitlines())
