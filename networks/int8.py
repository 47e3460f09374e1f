"""Convolutions in 8-bit integers by onnxruntime, which are faster on processors without AMX."""

import importlib.util
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from system.scripts import import_optional

OPSET = 18  # the version of ONNX's operators
IR_VERSION = 10  # of the files
LEVELS = 255  # of 8 bits without sign, for inputs
WEIGHT_LEVELS = 63  # of 7 bits with a sign


def is_installed() -> bool:
    """Return whether the packages are installed that IntegerLayers needs."""
    return all(importlib.util.find_spec(package) for package in ("onnx", "onnxruntime"))


class IntegerLayers(nn.Module):
    """A copy of convolutions, ReLUs and max-poolings that computes in 8-bit integers.

    Each output channel's weights have a scale; so have the input and what follows each ReLU, from
    its lowest to its highest value: what is above becomes the highest. Weights use 7 of their 8
    bits: with 8, sums overflow on processors without VNNI, silently. The same bits follow from an
    image in every batch, and with every number of threads.

    Args:
        layers: in their order; convolutions of 3 x 3 with padding 1, each followed by a ReLU.
        lowest: value of the input.
        highest: value of the input, and of each ReLU's output.

    Raises:
        UserError: onnx or onnxruntime is missing.
    """

    def __init__(self, layers: Sequence[nn.Module], lowest: float, highest: Sequence[float]):
        super().__init__()
        onnx, runtime = import_optional("--precision int8", "onnx", "onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # an error is raised, and need not be printed as well
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait actively would take the cores from torch, which computes in between.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = _Model(onnx).write(layers, lowest, highest)
        providers = ["CPUExecutionProvider"]
        self.session = runtime.InferenceSession(content, options, providers=providers)
        self.weight = torch.empty(0)  # of the type that the input has to have

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images or maps (N, in, H, W) -> maps (N, out, H', W'), both float32."""
        [y] = self.session.run(None, {"x": x.contiguous().numpy()})
        return torch.from_numpy(y)


def replace_layers(
    layers: nn.Sequential, blocks: Sequence[tuple[int, int]], ranges: Sequence[float]
) -> None:
    """Replace blocks of layers by IntegerLayers; other layers stay as they are.

    Args:
        blocks: first layer, and the one behind the last.
        ranges: the lowest and the highest value of the first block's input, and of each ReLU's
            output the highest. Every other block's input is the output of a ReLU, max-pooled.
    """
    lowest = ranges[0]
    highest = list(ranges[1:])
    for start, end in blocks:
        block = list(layers[start:end])
        count = sum(isinstance(layer, nn.ReLU) for layer in block)
        integers = IntegerLayers(block, lowest, highest[: count + 1])
        for index in range(start, end):
            layers[index] = nn.Identity()
        layers[start] = integers
        lowest = 0
        highest = highest[count:]


class _Model:
    """An ONNX model while it is written: a chain of nodes from "x" to "y"."""

    def __init__(self, onnx: ModuleType) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def write(self, layers: Sequence[nn.Module], lowest: float, highest: Sequence[float]) -> bytes:
        """Return the file of a model of these layers, with the ranges of `IntegerLayers`."""
        helper = self.onnx.helper
        maxima = iter(highest)
        x, scale = self.rounded("x", lowest, next(maxima))
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                weights, biases = self.weights_and_biases(layer, scale)
                x = self.add("Conv", [x, weights, biases], pads=[1, 1, 1, 1])
            elif isinstance(layer, nn.ReLU):
                x, scale = self.rounded(x, 0, next(maxima))  # below 0 becomes 0
            else:
                x = self.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
                x, _ = self.rounded(x, 0, LEVELS * scale)
        self.nodes[-1].output[0] = "y"
        float32 = self.onnx.TensorProto.FLOAT
        inputs = [helper.make_tensor_value_info("x", float32, None)]
        outputs = [helper.make_tensor_value_info("y", float32, None)]
        graph = helper.make_graph(self.nodes, "layers", inputs, outputs, self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        return model.SerializeToString()

    def add(self, operator: str, inputs: Sequence[str], **attributes) -> str:
        """Add a node; returns the name of its output."""
        name = f"output {len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        """Add a constant; returns its name."""
        name = f"constant {len(self.tensors)}"
        self.tensors.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def rounded(self, x: str, lowest: float, highest: float) -> tuple[str, float]:
        """Round values to one of 256 levels; returns the name of the result, and the scale."""
        scale = (highest - lowest) / LEVELS
        zero = np.uint8(round(-lowest / scale))
        parameters = [self.constant(np.float32(scale)), self.constant(zero)]
        rounded = self.add("QuantizeLinear", [x, *parameters])
        return self.add("DequantizeLinear", [rounded, *parameters]), scale

    def weights_and_biases(self, layer: nn.Conv2d, scale: float) -> tuple[str, str]:
        """Add a convolution's rounded weights and biases; returns their names.

        Args:
            scale: of its input. Biases get that of a sum: input times weight.
        """
        assert layer.bias is not None
        weights = layer.weight.detach().double().numpy()
        biases = layer.bias.detach().double().numpy()
        scales = np.abs(weights).max((1, 2, 3)) / WEIGHT_LEVELS
        scales = np.maximum(scales, np.abs(biases) / scale / 2**30).clip(1e-12)  # within 32 bits
        weights = (weights / scales[:, None, None, None]).round().astype(np.int8)
        biases = (biases / (scales * scale)).round().astype(np.int32)
        return self.scaled(weights, scales), self.scaled(biases, scales * scale)

    def scaled(self, integers: np.ndarray, scales: np.ndarray) -> str:
        """Add integers (out, ...) times the scales (out,) of channels; returns their name."""
        zeros = np.zeros(len(scales), integers.dtype)
        parts = [integers, scales.astype(np.float32), zeros]
        return self.add("DequantizeLinear", [self.constant(x) for x in parts], axis=0)
