"""Tests of clipflow.index."""
