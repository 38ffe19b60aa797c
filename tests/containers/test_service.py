"""The service of the manifests in containers: it serves, and it survives what clusters do."""

import os
import time
from collections.abc import Callable

import pytest

from .cluster import Pods
from .measures import (
    COUNT,
    encoded,
    failures,
    index_photographs,
    loaded,
    outage,
    shares_since,
    slowest,
    status,
    stored,
    told,
    until_all_are_used,
)

Figure = Callable[[str], None]
OUTAGE = 5.0
"""Seconds without a gateway, on a machine that has nothing else to do: most of it is the start of a process."""


@pytest.fixture(scope='module')
def filled(pods: Pods) -> Pods:
    """With 200 photographs."""
    errors, missed = pods.inside.call(index_photographs, pods.address('gateway', 'grpc'))
    assert errors == []
    assert missed == []
    return pods


def test_photographs_that_are_indexed_through_the_gateway_are_found(filled: Pods) -> None:
    assert all(pod.ready for pod in filled.running.values())


def test_every_shard_has_some_of_the_photographs(filled: Pods) -> None:
    documents = [status(filled, shard)[0]['documents'] for shard in ('indexer-0', 'indexer-1')]
    assert sum(documents) == COUNT
    assert min(documents) > COUNT / 4


def test_load_is_spread_over_the_replicas(filled: Pods, figure: Figure) -> None:
    # The gateway may have found one of them only, and looks again when its connections have come of age.
    until_all_are_used(filled)
    before = encoded(filled)
    searches = loaded(filled, lambda: filled.sleep(20))
    shares = shares_since(filled, before)
    figure(f'load over two replicas: {", ".join(f"{share:.0%}" for share in shares)}; {told(searches)}')
    assert failures(searches) == []
    assert all(0.4 <= share <= 0.6 for share in shares)


def test_an_encoder_that_is_killed_costs_no_search_and_is_used_again(filled: Pods, figure: Figure) -> None:
    victim = filled.of('encoder')[0]

    def disturb() -> None:
        filled.sleep(5)
        filled.kill(victim)
        filled.sleep(10)

    searches = loaded(filled, disturb)
    figure(f'an encoder is killed: {told(searches)}')
    assert failures(searches) == []
    assert slowest(searches) < 3
    filled.start(victim)
    filled.wait_until_ready(victim)
    searches, seconds = until_all_are_used(filled)
    figure(f'used again {seconds:.0f} s after it is ready; {told(searches)}')
    assert failures(searches) == []


@pytest.mark.parametrize('way', ['frozen', 'cut off'])
def test_an_encoder_that_gives_no_sign_costs_no_search(filled: Pods, figure: Figure, way: str) -> None:
    victim = filled.of('encoder')[0]

    def disturb() -> None:
        filled.sleep(5)
        (filled.freeze if way == 'frozen' else filled.cut_off)(victim)
        filled.sleep(20)
        (filled.thaw if way == 'frozen' else filled.connect)(victim)

    searches = loaded(filled, disturb)
    figure(f'an encoder is {way}: {told(searches)}')
    assert failures(searches) == []
    # Three seconds of silence, three more for an answer to the ping, and the search again elsewhere.
    assert slowest(searches) < 10
    filled.wait_until_ready(victim)
    searches, seconds = until_all_are_used(filled)
    figure(f'used again {seconds:.0f} s after it is ready; {told(searches)}')
    assert failures(searches) == []


def test_without_a_shard_searches_are_partial_and_with_its_volume_all_is_there_again(
    filled: Pods, figure: Figure
) -> None:
    (victim,) = filled.of('indexer-1')

    def disturb() -> None:
        filled.sleep(5)
        filled.kill(victim)
        filled.wait(lambda: filled.load.so_far()[-1].partial, 'a search is partial', 20)
        filled.start(victim)
        filled.wait(lambda: not any(one.partial for one in filled.load.so_far()[-20:]), 'no search is partial', 60)

    searches = loaded(filled, disturb)
    partial = [one.at for one in searches if one.partial]
    figure(f'a shard is killed: {len(partial)} searches partial for {partial[-1] - partial[0]:.1f} s; {told(searches)}')
    assert failures(searches) == []
    assert not searches[0].partial
    assert not searches[-1].partial
    assert filled.inside.call(stored, filled.address('gateway', 'grpc')) == COUNT


def test_a_gateway_that_is_killed_is_back_within_seconds(filled: Pods, figure: Figure) -> None:
    (victim,) = filled.of('gateway')
    crowd = min(4.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))

    def disturb() -> None:
        filled.sleep(5)
        filled.kill(victim)
        filled.start(victim)
        filled.wait_until_ready(victim)
        filled.sleep(5)

    searches = loaded(filled, disturb, retries=0)
    figure(f'the gateway is killed, {crowd:.1f} processes a core: {told(searches)}')
    assert {one.error.partition(':')[0] for one in searches} <= {'', 'unavailable'}
    assert outage(searches) < OUTAGE * crowd
    searches = loaded(filled, disturb, retries=8)
    figure(f'the same, and callers send again: {told(searches)}')
    assert failures(searches) == []


@pytest.mark.parametrize('workload', ['encoder', 'gateway'])
def test_a_rolling_update_costs_no_request(filled: Pods, figure: Figure, workload: str) -> None:
    old = filled.of(workload)
    before = time.monotonic()
    searches = loaded(filled, lambda: filled.roll(workload), rate=20.0)
    figure(f'a rolling update of the {workload}, {time.monotonic() - before:.0f} s: {told(searches)}')
    assert failures(searches) == []
    assert len(filled.of(workload)) == len(old)
    assert not set(filled.of(workload)) & set(old)


def test_a_stage_that_hangs_is_started_again(filled: Pods, figure: Figure) -> None:
    (victim,) = filled.of('ranker')
    before = victim.restarts
    filled.engine.podman('kill', '--signal', 'STOP', victim.container)
    begun = time.monotonic()
    filled.wait(lambda: victim.restarts > before, 'the ranker is started again', 120)
    figure(f'a ranker that hangs is started again after {time.monotonic() - begun:.0f} s')
    filled.wait_until_ready(victim)
    searches = loaded(filled, lambda: filled.sleep(3), retries=8)
    assert failures(searches) == []
