"""inference.onnx_check: files that refer to others, loop or are no models are refused unread."""

import random

import pytest

from inference import onnx_check
from inference.onnx_check import check_model

onnx = pytest.importorskip("onnx", reason="these tests write ONNX files: pip install onnx")
node, FLOAT = onnx.helper.make_node, onnx.TensorProto.FLOAT


def tensor(name="w", **location):
    """Make weights of 4 values, or such that are in another file."""
    made = onnx.helper.make_tensor(name, FLOAT, [4], [1.0, 2, 3, 4])
    for key, value in location.items():
        made.data_location = onnx.TensorProto.EXTERNAL
        made.external_data.add(key=key, value=value)
    return made


def unmarked(made):
    """Remove the mark that a tensor's values are in another file, but not the file's name."""
    made.ClearField("data_location")
    return made


def model(*nodes, tensors=(), **parts):
    """Make a model of nodes, by default one that adds weights to its input."""
    nodes = nodes or (node("Add", ["x", "w"], ["y"]),)
    values = [onnx.helper.make_tensor_value_info(name, FLOAT, ["N", 4]) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], tensors or [tensor()])
    return onnx.helper.make_model(graph, **parts)


def with_graph(operator):
    """Make a node that has a graph, as loops and branches have."""
    return node(operator, ["x"], ["y"], body=model().graph)


def function():
    opset = [onnx.helper.make_opsetid("", 18)]
    body = [node("Relu", ["x"], ["y"])]
    return onnx.helper.make_function("own", "f", ["x"], ["y"], body, opset)


HOSTILE = {
    "weights elsewhere": model(tensors=[tensor(location="../../../etc/passwd")]),
    "weights elsewhere, without a name": model(tensors=[tensor(offset="0")]),
    "weights elsewhere, which it does not say": model(tensors=[unmarked(tensor(location="x"))]),
    "constant elsewhere": model(
        node("Add", ["x", "w"], ["y"]), node("Clip", ["x"], ["z"], value=tensor(location="/etc/x"))
    ),
    "constants elsewhere": model(node("Add", ["x"], ["y"], values=[tensor(location="secret")])),
    "loop": model(with_graph("Loop")),
    "graph in a known operator": model(with_graph("Add")),
    "branch": model(node("If", ["x"], ["y"])),
    "huge constant": model(node("ConstantOfShape", ["x"], ["y"])),
    "operator of a library": model(node("Add", ["x", "w"], ["y"], domain="com.evil")),
    "function": model(functions=[function()]),
    "no graph": onnx.ModelProto(ir_version=8),
}


def test_a_model_of_known_operators_is_accepted():
    check_model(model().SerializeToString())


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_model_is_refused(case):
    with pytest.raises(ValueError, match="^it has "):
        check_model(HOSTILE[case].SerializeToString())


def field(number: int, kind: int, content: bytes) -> bytes:
    """Write a field as protobuf does; numbers and lengths here are below 128 and 16."""
    size = bytes([len(content)]) if kind == onnx_check.LENGTH else b""
    return bytes([number << 3 | kind]) + size + content


def test_of_a_field_that_comes_twice_the_last_counts():
    """As protobuf does: the name that onnxruntime reads is the one that is checked."""
    names = [field(onnx_check.NODE_OPERATOR, 2, name) for name in (b"Loop", b"Add")]
    for order, is_accepted in ((names, True), (names[::-1], False)):
        graph = field(onnx_check.GRAPH_NODE, 2, b"".join(order))
        content = field(onnx_check.MODEL_GRAPH, 2, graph)
        if is_accepted:
            check_model(content)
        else:
            with pytest.raises(ValueError, match="the operator 'Loop'"):
                check_model(content)


@pytest.mark.parametrize(
    "content",
    [
        field(7, 2, b"") * 2,  # two graphs, which protobuf would merge
        b"\x3a\x7f",  # a length beyond the end
        b"\x3a" + b"\xff" * 9 + b"\x01",  # a length of 2^64
        b"\xff" * 20,  # a number that does not end
        b"\x3b",  # a group, which protobuf has given up
        b"\x39\x00",  # eight bytes of which there is one
        b"\x3a\x05" + field(1, 2, field(4, 0, b"\x09")),  # an integer instead of a name
    ],
)
def test_what_is_no_such_message_is_refused(content):
    with pytest.raises(ValueError):
        check_model(content)


def test_random_bytes_and_models_that_are_cut_off_end_with_an_error_or_nothing():
    content, generator = model().SerializeToString(), random.Random(0)
    refused = 0
    for _ in range(500):
        changed = bytearray(content[: generator.randrange(1, len(content))])
        changed[generator.randrange(len(changed))] = generator.randrange(256)
        try:
            check_model(bytes(changed))
        except ValueError:
            refused += 1
    assert refused > 300


def test_a_model_of_very_many_parts_is_refused(monkeypatch):
    monkeypatch.setattr(onnx_check, "MAX_FIELDS", 50)
    check_model(model().SerializeToString())
    with pytest.raises(ValueError, match="too many fields"):
        check_model(model(*[node("Add", ["x", "w"], ["y"])] * 20).SerializeToString())
