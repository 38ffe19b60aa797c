"""The session `kserve` against real servers."""
