"""Tests of clipflow.border."""
