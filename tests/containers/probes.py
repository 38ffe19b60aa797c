"""The kubelet's part: probe containers as their manifests say, say who is ready, and start again who does not live."""

import contextlib
import threading
import time

from .engine import Engine, EngineError
from .inside import Inside, answers, serving
from .pods import Probe, Running


class Kubelet:
    """Looks after pods, each in a thread of its own."""

    def __init__(self, engine: Engine, inside: Inside) -> None:
        self._engine = engine
        self._inside = inside
        self._stops: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []
        self.faults: list[BaseException] = []

    def watch(self, pod: Running) -> None:
        """Begin."""
        self._stops[pod.name] = stop = threading.Event()
        self._threads.append(threading.Thread(target=self._look_after, args=(pod, stop), daemon=True))
        self._threads[-1].start()

    def leave(self, pod: Running) -> None:
        """A pod that is about to end: it gets no new requests, and is not started again."""
        pod.ready = False
        self._stops[pod.name].set()

    def close(self) -> None:
        """Leave all."""
        for stop in self._stops.values():
            stop.set()
        for thread in self._threads:
            thread.join()

    def _look_after(self, pod: Running, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                pod.ready = False
                if pod.alive and self._started(pod, stop):
                    self._probe_until_dead(pod, stop)
                stop.wait(0.2)
        except BaseException as fault:
            self.faults.append(fault)
            raise

    def _started(self, pod: Running, stop: threading.Event) -> bool:
        """Whether the startup probe has succeeded; the container is started again where it has failed too often."""
        probe, begun, restarts = pod.probes['startup'], time.monotonic(), pod.restarts
        failures = 0
        stop.wait(probe.delay)
        while pod.alive and not stop.is_set() and pod.restarts == restarts:
            if self._succeeds(pod, probe):
                return True
            failures += 1
            if failures >= probe.failures:
                self._start_again(pod, stop)
            stop.wait(max(0.0, begun + failures * probe.period - time.monotonic()))
        return False

    def _probe_until_dead(self, pod: Running, stop: threading.Event) -> None:
        restarts = pod.restarts
        counts = {'readiness': 0, 'liveness': 0}  # failures; below zero: successes
        due = {kind: time.monotonic() + pod.probes[kind].delay for kind in counts}
        while pod.alive and not stop.is_set() and pod.restarts == restarts:
            kind = min(due, key=due.__getitem__)
            if stop.wait(max(0.0, min(due[kind] - time.monotonic(), 0.2))) or time.monotonic() < due[kind]:
                continue
            probe = pod.probes[kind]
            due[kind] += probe.period
            good = self._succeeds(pod, probe)
            counts[kind] = min(counts[kind], 0) - 1 if good else max(counts[kind], 0) + 1
            if stop.is_set() or not pod.alive:
                return
            if kind == 'liveness' and counts[kind] >= probe.failures:
                self._start_again(pod, stop)
            elif kind == 'readiness' and (counts[kind] >= probe.failures or -counts[kind] >= probe.successes):
                pod.ready = good

    def _succeeds(self, pod: Running, probe: Probe) -> bool:
        if probe.service is None:
            url = f'http://{pod.address}:{probe.port}{probe.path}'
            return self._inside.call(answers, url, probe.timeout)
        return self._inside.call(serving, f'{pod.address}:{probe.port}', probe.service, probe.timeout)

    def _start_again(self, pod: Running, stop: threading.Event) -> None:
        pod.ready = False
        pod.restarts += 1
        # A process that does not answer does not heed SIGTERM either; the grace period is not waited for.
        self._engine.podman('kill', pod.container)
        with contextlib.suppress(EngineError):  # it is being deleted
            if not stop.is_set():
                self._engine.podman('wait', pod.container)
                self._engine.podman('start', pod.container)
