"""A double of TensorRT for Python, version 10 or 11, as far as building and running an engine goes.

It refuses what TensorRT refuses, in the way that TensorRT does: by False, by None, by an index of -1, by an exception,
and by a line to the logger. A few rules are its own, where TensorRT would go on with a wrong result or crash; their
messages say so. A plan holds its ONNX file, and ONNX Runtime computes it at the addresses that the context was given.

Which version it is: TENSORRT_DOUBLE_VERSION, when it is imported. What the machine is like: `DEVICE`.
"""

from ._build import (
    Builder,
    BuilderFlag,
    IBuilderConfig,
    IHostMemory,
    INetworkDefinition,
    IOptimizationProfile,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
)
from ._device import DEVICE, ILogger, IProgressMonitor, Logger
from ._parse import IParserError, OnnxParser
from ._run import ICudaEngine, IExecutionContext, Runtime, TensorIOMode

__version__ = DEVICE.version
__all__ = [
    'DEVICE',
    'Builder',
    'BuilderFlag',
    'IBuilderConfig',
    'ICudaEngine',
    'IExecutionContext',
    'IHostMemory',
    'ILogger',
    'INetworkDefinition',
    'IOptimizationProfile',
    'IParserError',
    'IProgressMonitor',
    'Logger',
    'MemoryPoolType',
    'NetworkDefinitionCreationFlag',
    'OnnxParser',
    'Runtime',
    'TensorIOMode',
]
