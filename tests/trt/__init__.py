"""Tests of the runtime `tensorrt`, against a double of TensorRT that holds it to the vendor's rules.

The folder is not called `tensorrt`: `tests` is on the path, and the name would be taken for the package.
"""
