"""Tests of clipflow.tuning."""
