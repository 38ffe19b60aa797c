"""The contract of a session. Nothing outside this package knows a runtime."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Session(Protocol):
    """Prepared input to unit vectors, on one runtime. N items, L tokens, D dimensions, pictures of H x W."""

    @property
    def dimension(self) -> int:
        """D."""
        ...

    @property
    def description(self) -> dict[str, str]:
        """Runtime, device, precision and version, for /status."""
        ...

    def use_threads(self, threads: int) -> None:
        """Set how many threads the model uses; called in the thread that will encode."""
        ...

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[N, H, W, 3] to [N, D]."""
        ...

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        """Two of [N, L] to [N, D]."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...
