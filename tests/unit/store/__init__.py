"""Tests of clipflow.store."""
