"""Tests of the IPU worker, against a double of PopTorch that holds it to the contract."""
