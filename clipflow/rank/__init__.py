"""The order of results."""
