"""Tests of clipflow.milvus."""
