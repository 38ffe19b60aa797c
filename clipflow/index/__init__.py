"""Kinds of vector index, and the one that lives on top of the store."""
