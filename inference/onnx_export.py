"""A module and its metadata as one ONNX file; `onnx_model` runs it."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from inference.onnx_model import OnnxModel
from inference.predictor import Predictor
from system.files import write_atomically
from system.messages import UserError, shorten, warn
from system.scripts import import_optional, silenced

if TYPE_CHECKING:
    import onnx

OPSET = 18  # of ONNX's operators; fixed, so that the file does not depend on torch's version
MIN_CALIBRATION = 8  # images that calibrate well enough; docs/performance.md
MIN_HALVED = 2**14  # elements of a tensor that is stored in 16 bits
MAX_DIFFERENCE = 2e-3  # in probability and novelty, from 16 bits (docs/performance.md)


class ImagesToProbabilities(nn.Module):
    """A float32 copy of a classifier on the CPU, from uint8 images to probabilities and novelty.

    Args:
        classifier: normalized images (N, 3, H, W) -> probabilities (N, num_classes), novelty (N,).
        means, stds: of the images, three each, range 0-1.
        has_novelty: without, the only output is probabilities.
    """

    means: torch.Tensor
    stds: torch.Tensor

    def __init__(
        self,
        classifier: nn.Module,
        means: Sequence[float],
        stds: Sequence[float],
        has_novelty: bool,
    ):
        super().__init__()
        classifier = copy.deepcopy(classifier).to("cpu", torch.float32)
        self.classifier = classifier.to(memory_format=torch.contiguous_format)
        self.output_names = ["probabilities", "novelty"] if has_novelty else ["probabilities"]
        self.register_buffer("means", torch.tensor(means, dtype=torch.float32)[:, None, None])
        self.register_buffer("stds", torch.tensor(stds, dtype=torch.float32)[:, None, None])
        self.eval()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Images (N, 3, H, W) uint8 -> `output_names`, float32."""
        normalized = (images.float() / 255 - self.means) / self.stds
        return self.classifier(normalized)[: len(self.output_names)]


def export(
    classifier: Any, path: str | os.PathLike, views: Sequence[np.ndarray], is_int8: bool = False
) -> Iterator[str]:
    """Write a classifier as an ONNX file and compare the two; yields lines about that.

    Args:
        classifier: a `Predictor` that is a module as well, and has `metadata`.
        views: (3, image_size, image_size) uint8 each, to compare the outputs on; may be none.
        is_int8: calibrate 8-bit integers on the views, instead of computing in 32-bit floats, of
            which the file has 16 bits.

    Raises:
        UserError: a package is missing, the exporter fails, the file cannot be written, or,
            without `is_int8`, an output differs by more than MAX_DIFFERENCE.
    """
    if views:  # first, because an export takes its time
        import_optional("--to_onnx with --input or --int8", "onnxruntime")
        expected = predict_all(classifier, views)
    if is_int8 and len(views) < MIN_CALIBRATION:
        count = f"{len(views)} images; {MIN_CALIBRATION} are needed"
        warn(f"{path}: calibrated on {count}, of many kinds")
    module = ImagesToProbabilities(
        classifier, classifier.means, classifier.stds, classifier.has_novelty
    )
    calibration = views if is_int8 else ()
    export_onnx(module, classifier.image_size, path, classifier.metadata(), calibration)
    yield f"saved {path}"
    if not views:
        return
    outputs = predict_all(OnnxModel(path), views)
    same = (outputs[0].argmax(1) == expected[0].argmax(1)).sum()
    precision = "int8" if is_int8 else "float32"
    yield f"{precision}: {same} of {len(views)} images keep their most likely category"
    of_probs = largest_difference(outputs[0], expected[0])
    of_novelty = largest_difference(outputs[1], expected[1])
    yield f"largest difference in probability: {of_probs:.1e}, in novelty: {of_novelty:.1e}"
    is_equal = of_probs <= MAX_DIFFERENCE and of_novelty <= MAX_DIFFERENCE  # NaN is not
    if not is_int8 and not is_equal:
        raise UserError(f"{path}: its outputs differ from the checkpoint's: do not use it")


def predict_all(predictor: Predictor, views: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N, num_classes) and novelty (N,) of N views, one by one."""
    outputs = [predictor.predict_views(view[None]) for view in views]
    probs = np.concatenate([probs for probs, _ in outputs])
    novelty = np.concatenate([novelty for _, novelty in outputs])
    return probs, novelty


def export_onnx(
    module: ImagesToProbabilities,
    image_size: int,
    path: str | os.PathLike,
    metadata: dict[str, Any],
    calibration: Sequence[np.ndarray] = (),
) -> None:
    """Write a module as one ONNX file, atomically.

    Its input "images" is (N, 3, image_size, image_size) uint8 for any N, its outputs are
    "probabilities" (N, num_classes) and "novelty" (N,) float32.

    Args:
        metadata: is stored in the file, with its precision; values that are not text as JSON.
        calibration: images, (3, image_size, image_size) uint8 each, from which the convolutions get
            8-bit integers. Without, they stay in 32-bit floats.

    Raises:
        UserError: a package is missing, the exporter fails, or the file cannot be written.
    """
    import_optional("--to_onnx", "onnx", "onnxscript")
    if calibration:
        import_optional("--int8", "onnxruntime")
    # Two images: some exporters take the number of one image for a constant.
    images = torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8)
    try:
        with silenced():
            program = torch.onnx.export(
                module,
                (images,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("N")},),
                input_names=["images"],
                output_names=module.output_names,
                opset_version=OPSET,
            )
            assert program is not None  # it is, with dynamo
            proto = program.model_proto
            _remove_exporter_notes(proto)
            if calibration:
                proto = quantize(proto, calibration)
            halve_weights(proto)
            precision = "int8" if calibration else "float32"
            for key, value in (metadata | {"precision": precision}).items():
                text = value if isinstance(value, str) else json.dumps(value)
                proto.metadata_props.add(key=key, value=text)
            content = proto.SerializeToString(deterministic=True)
    except Exception as error:  # versions that do not fit together, or protobuf's limit of 2 GB
        cause: BaseException = error  # of torch's own errors, which tell how to debug an export
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {shorten([str(cause)])}"
        raise UserError(f"{path}: the ONNX exporter of torch failed: {reason}") from error
    write_atomically(path, lambda file: file.write(content))


def _remove_exporter_notes(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes for its developers, such as paths on this machine."""
    graph = proto.graph
    nodes = [node for holder in (graph, *proto.functions) for node in holder.node]
    values = [*graph.initializer, *graph.input, *graph.output, *graph.value_info]
    for item in (proto, graph, *proto.functions, *nodes, *values):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")


def halve_weights(model: onnx.ModelProto) -> None:
    """Store the large tensors of a model in 16-bit floats; it still computes in 32 bits."""
    import onnx

    casts = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= MIN_HALVED:
            name = tensor.name
            stored = f"{name}, 16 bits"
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), stored))
            casts.append(onnx.helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def largest_difference(output: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference between two arrays; NaN if only one of them has a NaN."""
    both_missing = np.isnan(output) & np.isnan(expected)  # as the novelty without a detector
    return float(np.abs(output - expected)[~both_missing].max(initial=0))


# The head and the novelty stay in 32 bits: they take no time, and quantized, the novelty is wrong
# by 0.2 (docs/performance.md).
OPERATORS = ["Conv", "Relu", "MaxPool"]


def quantize(model: onnx.ModelProto, images: Sequence[np.ndarray]) -> onnx.ModelProto:
    """Return a model whose convolutions compute in 8-bit integers, by onnxruntime's own tools.

    Weights get a scale for each output channel, activations one for each layer: from 0 to the
    highest value that the images have there. Weights use 7 of their 8 bits: with 8, sums overflow
    on processors without VNNI, silently.

    Args:
        images: (3, image_size, image_size) uint8 each, such as those of the training.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        """Gives onnxruntime one image after the other."""

        def __init__(self):
            self.images = iter(images)

        def get_next(self):
            image = next(self.images, None)
            return None if image is None else {"images": image[None]}

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "int8.onnx")
        quantization.quantize_static(
            model,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        quantized = onnx.load(target)
    del quantized.metadata_props[:]
    return quantized
