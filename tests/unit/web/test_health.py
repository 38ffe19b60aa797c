"""What asks the stages how they are, when they do not say."""

import asyncio
from typing import Any

import pytest
from docarray import DocumentArray

from clipflow.errors import Timeout
from clipflow.metrics import Metrics
from clipflow.web.health import _Probe


def test_those_that_wait_for_a_stage_that_is_silent_share_one_answer() -> None:
    calls = []

    async def silent(endpoint: str, docs: DocumentArray, parameters: dict[str, Any]) -> DocumentArray:
        calls.append(endpoint)
        await asyncio.sleep(0.1)
        raise Timeout('the indexer does not answer')

    async def many() -> list[Any]:
        probe = _Probe(silent, Metrics())
        return await asyncio.gather(*(probe.stages() for _ in range(20)), return_exceptions=True)

    found = asyncio.run(many())
    assert calls == ['/status']
    assert [repr(error) for error in found] == ['timeout: the indexer does not answer'] * 20
    with pytest.raises(Timeout):
        raise found[0]
