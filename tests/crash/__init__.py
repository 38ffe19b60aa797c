"""Processes that are killed, stopped, or cannot start."""
