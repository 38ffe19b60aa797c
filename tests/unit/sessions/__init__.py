"""Tests of clipflow.sessions."""
