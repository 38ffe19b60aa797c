"""A stage that does nothing: what four hops through Jina cost by themselves."""

from typing import Any

from jina import Executor, requests


class NoopExecutor(Executor):
    """Passes every Document on."""

    @requests
    def nothing(self, **kwargs: Any) -> None:
        """Do nothing."""
