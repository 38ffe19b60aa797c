"""What a gateway tells Prometheus of stages of which it meets one replica at a time."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clipflow import metrics
from clipflow.metrics import Metrics


def encoder(replica: str, items: int) -> dict[str, dict[str, Any]]:
    """As `/status` tells it."""
    told = {'ready': True, 'replica': replica, 'waiting': 0, 'items': items, 'batch_sizes': [[1, 2], [8, 3]]}
    return {'encoder': told}


def values(text: bytes, name: str) -> dict[str, float]:
    """Of one metric, by replica."""
    families = text_string_to_metric_families(text.decode())
    return {one.labels['replica']: one.value for family in families for one in family.samples if one.name == name}


def test_each_replica_has_a_series_of_its_own_that_never_falls() -> None:
    told = Metrics()
    told.note(encoder('a', 1000))
    # By turns, as the gateway meets them: as one series this would look as if the process had begun again each time.
    assert values(told.text(encoder('b', 5)), 'clipflow_encoded_items_total') == {'a': 1000, 'b': 5}
    found = told.text(encoder('a', 1010))
    assert values(found, 'clipflow_encoded_items_total') == {'a': 1010, 'b': 5}
    assert values(found, 'clipflow_batch_size_count') == {'a': 5, 'b': 5}
    assert values(found, 'clipflow_ready') == {'a': 1, 'b': 1}


def test_a_replica_that_is_not_met_any_more_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    told, now = Metrics(), [100.0]
    monkeypatch.setattr(metrics.time, 'monotonic', lambda: now[0])
    told.note(encoder('a', 1000))
    now[0] += 40
    told.note(encoder('b', 5))
    now[0] += 30
    assert values(told.text(encoder('b', 6)), 'clipflow_encoded_items_total') == {'b': 6}


def test_without_an_answer_nothing_is_told_of_the_stages() -> None:
    told = Metrics()
    told.note(encoder('a', 1000))
    assert values(told.text({}), 'clipflow_ready') == {}
    assert b'clipflow_in_flight' in told.text({})
