"""A stage that does nothing: what four hops through Jina cost by themselves."""

from typing import Any

from jina import Executor, requests


class NoopExecutor(Executor):  # type: ignore[misc]
    """Passes every Document on."""

    @requests  # type: ignore[untyped-decorator]
    def nothing(self, **kwargs: Any) -> None:
        """Do nothing."""
