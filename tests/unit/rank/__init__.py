"""Tests of clipflow.rank."""
