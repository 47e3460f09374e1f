"""Whether an ONNX file is one that onnxruntime may load, whoever wrote it.

onnxruntime executes nothing of a file except its operators. But a file's weights may be in other
files, anywhere on the machine, and its loops may never end. A file of `onnx_export` has neither. It
is read here as protobuf messages, without the onnx package; the numbers of their fields are those
of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# What exported classifiers consist of, in 32-bit floats and in 8-bit integers; and what other
# versions of the exporter may use. None of them contains a graph, as loops do.
OPERATORS = frozenset(
    "Add AveragePool Cast Clip Concat Conv DequantizeLinear Div Erf Gemm Identity Log MatMul "
    "MaxPool Mul Pow QuantizeLinear Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum Relu "
    "Reshape Slice Softmax Sqrt Squeeze Sub Transpose Unsqueeze "
    "Abs Constant Equal Exp Expand Flatten Gather Greater Less Max Min Neg Shape Where".split()
)
DOMAINS = frozenset(["", "ai.onnx"])  # of the operators of ONNX itself
MAX_FIELDS = 200_000  # an exported classifier has a few thousand

# Numbers of fields, by message.
MODEL_GRAPH, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 20, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE_INITIALIZER = 1, 5, 15
NODE_OPERATOR, NODE_ATTRIBUTE, NODE_DOMAIN = 4, 5, 7
ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS = 5, 10
ATTRIBUTE_GRAPHS = (6, 11, 22, 23)  # graphs and sparse tensors, one or several
TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 13, 14

VARINT, LENGTH, FIXED_SIZES = 0, 2, {1: 8, 5: 4}  # wire types; the last by their bytes


class Field(NamedTuple):
    """A field of a protobuf message: its number, and its bytes or its integer."""

    number: int
    content: memoryview  # empty if it is an integer
    integer: int  # 0 if it has bytes


def check_model(content: bytes) -> None:
    """Check that a model refers to nothing outside of it, and has known operators only.

    Raises:
        ValueError: it does not, or `content` is no protobuf message.
    """
    reader, graphs = _Reader(), 0
    for field in reader.fields(memoryview(content)):
        if field.number in (MODEL_TRAINING, MODEL_FUNCTIONS):
            raise ValueError("it has functions")
        if field.number == MODEL_GRAPH:
            graphs += 1
            _check_graph(reader, field.content)
    if graphs != 1:
        raise ValueError("it has no graph")


def _check_graph(reader: _Reader, graph: memoryview) -> None:
    for field in reader.fields(graph):
        if field.number == GRAPH_NODE:
            _check_node(reader, field.content)
        elif field.number == GRAPH_INITIALIZER:
            _check_tensor(reader, field.content)
        elif field.number == GRAPH_SPARSE_INITIALIZER:
            raise ValueError("it has sparse weights")


def _check_node(reader: _Reader, node: memoryview) -> None:
    operator = domain = ""
    for field in reader.fields(node):
        if field.number == NODE_OPERATOR:
            operator = bytes(field.content).decode()
        elif field.number == NODE_DOMAIN:
            domain = bytes(field.content).decode()
        elif field.number == NODE_ATTRIBUTE:
            for part in reader.fields(field.content):
                if part.number in ATTRIBUTE_GRAPHS:
                    raise ValueError("it has graphs within graphs")
                if part.number in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
                    _check_tensor(reader, part.content)
    if operator not in OPERATORS or domain not in DOMAINS:
        raise ValueError(f"it has the operator {operator[:50]!r}")


def _check_tensor(reader: _Reader, tensor: memoryview) -> None:
    for field in reader.fields(tensor):
        if field.number == TENSOR_EXTERNAL_DATA or (
            field.number == TENSOR_DATA_LOCATION and field.integer
        ):
            raise ValueError("it has weights in other files")


class _Reader:
    """Reads protobuf messages, and counts their fields up to MAX_FIELDS."""

    def __init__(self) -> None:
        self.count = 0

    def fields(self, message: memoryview) -> Iterator[Field]:
        """Yield the fields of a message, in their order."""
        position = 0
        while position < len(message):
            self.count += 1
            if self.count > MAX_FIELDS:
                raise ValueError("it has too many fields")
            key, position = _varint(message, position)
            kind, size, integer = key & 7, 0, 0
            if kind == VARINT:
                integer, position = _varint(message, position)
            elif kind == LENGTH:
                size, position = _varint(message, position)
            elif kind in FIXED_SIZES:
                size = FIXED_SIZES[kind]
            else:
                raise ValueError("it is no protobuf message")
            if size > len(message) - position:
                raise ValueError("it is cut off")
            yield Field(key >> 3, message[position : position + size], integer)
            position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the integer of variable length at a position, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("it is cut off")
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("it is no protobuf message")
