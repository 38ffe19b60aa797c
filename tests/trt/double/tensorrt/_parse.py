"""`tensorrt.OnnxParser`: bytes to a network, or errors that can be asked for."""

from typing import Any

import onnx

from ._device import ILogger, buffer, checked, tell

# Of TensorRT's list of operators, those that a tower may have.
_OPERATORS = (
    'Add And ArgMax AveragePool BatchNormalization Cast Clip Concat Constant ConstantOfShape Conv CumSum Div Equal Erf '
    'Expand Flatten Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GreaterOrEqual Greater HardSigmoid '
    'HardSwish Identity IsNaN LayerNormalization LessOrEqual Less MatMul Max Min Mod Mul Neg Not Or Pad Pow Range '
    'ReduceL2 ReduceMax ReduceMean ReduceSum Relu Reshape ScatterND Shape Sigmoid Slice Softmax Split Sqrt Squeeze Sub '
    'Tanh Tile TopK Transpose Trilu Unsqueeze Where'
)
_SUPPORTED = frozenset(_OPERATORS.split())
_OPSET = 24


class Tensor:
    """An `ITensor` of a network; -1 is a side that may change."""

    __slots__ = ('dtype', 'name', 'shape')

    def __init__(self, name: str, shape: tuple[int, ...], dtype: int) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype


class IParserError:
    """One thing that the parser does not take."""

    __slots__ = ('_desc', '_node')

    def __init__(self, node: int, desc: str) -> None:
        self._node, self._desc = node, desc

    def node(self) -> int:
        """Its number."""
        return self._node

    def desc(self) -> str:
        """What is wrong with it."""
        return self._desc

    def __str__(self) -> str:
        return f'In node {self._node}: {self._desc}'


class OnnxParser:
    """See the original."""

    __slots__ = ('_errors', '_logger', '_network')

    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._logger = network, checked(logger, 'OnnxParser')
        self._errors: list[IParserError] = []

    @property
    def num_errors(self) -> int:
        """Since the last call of `clear_errors`."""
        return len(self._errors)

    def get_error(self, index: int) -> IParserError:
        """The error of this number."""
        return self._errors[index]

    def clear_errors(self) -> None:
        """Forget them."""
        self._errors.clear()

    def parse_from_file(self, model: str) -> bool:
        """As `parse`, with the weights that lie in other files beside this one."""
        if not isinstance(model, str):
            raise TypeError('parse_from_file(): incompatible function arguments')
        try:
            return self.parse(onnx.load(model).SerializeToString())
        except Exception:  # protobuf raises several kinds, and so do files that are not there
            return self._refuse(0, f'Failed to parse the ONNX model {model}: it is no protobuf message of this kind')

    def parse(self, model: Any, path: str | None = None) -> bool:
        """Whether the network has all of the model now; weights that lie in other files are not looked for (own)."""
        data = buffer(model)
        try:
            graph = onnx.load_from_string(data)
        except Exception:  # protobuf raises several kinds
            return self._refuse(0, 'Failed to parse the ONNX model: it is no protobuf message of this kind')
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.graph.initializer):
            return self._refuse(0, 'Failed to open the file with weights')
        if not graph.graph.node:
            return self._refuse(0, 'the graph is empty')
        if graph.opset_import[0].version > _OPSET:
            return self._refuse(0, f'opset {graph.opset_import[0].version} is newer than {_OPSET}')
        unknown = [(n, node) for n, node in enumerate(graph.graph.node) if node.op_type not in _SUPPORTED]
        for number, node in unknown:
            self._refuse(number, f'No importer registered for op: {node.op_type}')
        inputs = [Tensor(item.name, _shape(item), item.type.tensor_type.elem_type) for item in graph.graph.input]
        for item in inputs:
            users = {node.op_type for node in graph.graph.node if item.name in node.input}
            if item.dtype == onnx.TensorProto.UINT8 and users - {'Cast', 'Shape'}:
                self._refuse(0, f'UINT8 input {item.name} can be cast only, not used by {sorted(users)}')
        if not self._errors:
            self._network.fill(data, inputs, [item.name for item in graph.graph.output])
        return not self._errors

    def _refuse(self, node: int, desc: str) -> bool:
        self._errors.append(IParserError(node, desc))
        tell(self._logger, ILogger.ERROR, f'ModelImporter: {self._errors[-1]}')
        return False


def _shape(item: Any) -> tuple[int, ...]:
    return tuple(-1 if side.dim_param else side.dim_value for side in item.type.tensor_type.shape.dim)
