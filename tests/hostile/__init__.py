"""Input that no well-meaning client sends: each bad thing has its code, and its neighbours succeed."""
