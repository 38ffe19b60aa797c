"""Where writes wait while another generation of the documents takes the place of the one that is served."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from clipflow.errors import Timeout


class Gate:
    """Open, or held: then writes wait for as long as their deadlines allow. Searches do not pass here."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._none_inside = asyncio.Event()
        self._none_inside.set()
        self._inside = 0

    @asynccontextmanager
    async def passed(self, deadline: float) -> AsyncIterator[None]:
        """A write; `deadline` in seconds since the epoch.

        Raises:
            Timeout: the gate was not opened in time.
        """
        while not self._open.is_set():
            try:
                await asyncio.wait_for(self._open.wait(), deadline - time.time())
            except TimeoutError:
                raise Timeout('writes wait until the documents are under another model; try again later') from None
        self._inside += 1
        self._none_inside.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._none_inside.set()

    async def hold(self) -> None:
        """Let no write in any more, and wait for the end of those inside."""
        self._open.clear()
        await self._none_inside.wait()

    def release(self) -> None:
        """Let all in."""
        self._open.set()
