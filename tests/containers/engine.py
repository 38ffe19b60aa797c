"""Podman with storage and settings of its own below .cache/, and a network that nobody else sees.

Everything that it starts is named after the process, and ended by name.
"""

import ctypes
import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from clipflow import ROOT

FOLDER = ROOT / '.cache' / 'containers'
NETWORK = 'clipflow'
SUBNET, HOST = '10.89.0.0/16', '10.89.0.1'
"""Addresses of pods, and the one of the namespace itself."""
SERVICES = '10.96.0.0/16'
"""Addresses of Services."""
_NEEDED = ('podman', 'runc', 'conmon', 'nsenter', 'ip', 'iptables-restore')
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_NAMESPACES = Path('/run/netns')
_LISTED = {
    'container': ['ps', '-a', '--format', '{{.Names}}'],
    'volume': ['volume', 'ls', '--format', '{{.Name}}'],
}
# No limits that only a privileged root may set, runc for machines with both kinds of cgroups, nothing of systemd.
_SETTINGS = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
_STORAGE = """
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""


class EngineError(Exception):
    """A command failed; with what it said."""


def enter(namespace: str) -> None:
    """Put this thread, and those that it will start, into a network namespace."""
    with (_NAMESPACES / namespace).open('rb') as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f'the network namespace {namespace} cannot be entered')


class Engine:
    """A network namespace, an internal network in it, and podman.

    Raises (on entering):
        EngineError: there can be none here; it says why.
    """

    def __init__(self) -> None:
        self.name = f'clipflow-{os.getpid()}'
        self._lock = -1
        settings, storage = FOLDER / 'containers.conf', FOLDER / 'storage.conf'
        self._files = {settings: _SETTINGS, storage: _STORAGE}
        self._environment = os.environ | {
            'CONTAINERS_CONF': str(settings),
            'CONTAINERS_STORAGE_CONF': str(storage),
        }

    def __enter__(self) -> Self:
        if os.geteuid():
            raise EngineError('only root can start them')
        if missing := [name for name in _NEEDED if not shutil.which(name)]:
            raise EngineError(f'not installed: {", ".join(missing)}')
        FOLDER.mkdir(parents=True, exist_ok=True)
        for path, text in self._files.items():
            path.write_text(text.format(folder=FOLDER), encoding='utf-8')
        self._lock = os.open(FOLDER / 'lock', os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # one run at a time; the file names the last
        before = os.pread(self._lock, 100, 0).decode()
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, self.name.encode(), 0)
        try:
            run(['ip', 'netns', 'add', self.name])
            self.inside(['ip', 'link', 'set', 'lo', 'up'])
            if before:  # it was killed
                self._clear(before)
            address = ['--subnet', SUBNET, '--gateway', HOST]
            self.podman('network', 'create', '--internal', '--disable-dns', *address, NETWORK)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything that was started here."""
        if (_NAMESPACES / self.name).exists():
            self._clear(self.name)
        os.ftruncate(self._lock, 0)
        os.close(self._lock)

    def _clear(self, run_name: str) -> None:
        """Remove what a run has started."""
        for kind, command in (('container', ['rm', '-f', '-v', '-t', '0']), ('volume', ['volume', 'rm', '-f'])):
            listed = self.podman(*_LISTED[kind], '--filter', f'name={run_name}-')
            for name in listed.split():  # one by one: podman removes none of several if one is missing
                self.try_podman(*command, name)
        self.try_podman('network', 'rm', '-f', NETWORK)
        subprocess.run(['ip', 'netns', 'del', run_name], check=False, capture_output=True)

    def inside(self, command: Sequence[str], text: str = '') -> str:
        """A command in the network namespace; what it writes."""
        # "ip netns exec" would hide the cgroups from podman.
        return run(['nsenter', f'--net={_NAMESPACES / self.name}', '--', *command], text, self._environment)

    def podman(self, *arguments: str) -> str:
        """One command; what it writes.

        Raises:
            EngineError: it failed.
        """
        return self.inside(['podman', *arguments])

    def try_podman(self, *arguments: str) -> bool:
        """One command that may fail; whether it did not."""
        try:
            self.podman(*arguments)
        except EngineError:
            return False
        return True

    @property
    def bridge(self) -> str:
        """The name of the network's interface; it is there as long as a container is."""
        return self.podman('network', 'inspect', '--format', '{{.NetworkInterface}}', NETWORK).strip()

    def start(self, name: str, image: str, options: Sequence[str], command: Sequence[str] = ()) -> str:
        """Start a container in the background; its full name, which ends with the process."""
        full = f'{self.name}-{name}'
        self.podman('run', '-d', '--name', full, *options, image, *command)
        return full

    def volume(self, name: str) -> str:
        """The full name of a volume that is removed at the end."""
        return f'{self.name}-{name}'


def run(command: Sequence[str], text: str = '', environment: dict[str, str] | None = None) -> str:
    """A command; what it writes.

    Raises:
        EngineError: it failed.
    """
    done = subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f'code {done.returncode}').splitlines()
        raise EngineError(f'{" ".join(command[:6])} ...: {" / ".join(said[-5:])}')
    return done.stdout
