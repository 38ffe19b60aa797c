"""Tests of clipflow.web."""
