"""A module and its metadata as one ONNX file, and running that file with onnxruntime."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from support.arguments import UserError, shorten
from support.files import write_atomically

EXPORT_PACKAGES = ("onnx", "onnxscript")
OPSET = 18  # of ONNX's operators; fixed, so that the file does not depend on torch's version
RUN_BATCH_SIZE = 4
MAX_DIFFERENCE = 1e-4  # in probability and novelty
PREPROCESSING = (
    "Turn the image upright (EXIF). Convert it to 8-bit sRGB by its color profile, transparency "
    "on white. If a side is more than {longest} times the other, cut out the middle of it, "
    "{longest} times the other long. Resize, bilinear with antialiasing: the short side to "
    "{short} pixels, the long side to {short} * long / short, rounded down. Cut out {size} x "
    "{size} pixels in the center. What is cut out begins at half the difference of the lengths, "
    "rounded to the nearest integer, halves to the even one. Pass the pixels as uint8 (0-255), "
    "channels first: (N, 3, {size}, {size}). Do not normalize: the model does."
)


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


def describe_preprocessing(size: int, short: int, longest: int) -> str:
    """Say how an image becomes the input of a model, to a program that has the file alone.

    Args:
        size: of the input, in pixels.
        short: what the short side is resized to.
        longest: the largest ratio of the sides.
    """
    return PREPROCESSING.format(size=size, short=short, longest=longest)


def export_onnx(
    module: ImagesToProbabilities,
    image_size: int,
    path: str | os.PathLike,
    metadata: Mapping[str, Any],
) -> None:
    """Write a module as one ONNX file, atomically.

    Its input "images" is (N, 3, image_size, image_size) uint8 for any N, its outputs are
    "probabilities" (N, num_classes) and "novelty" (N,) float32.

    Args:
        metadata: is stored in the file; values that are not text as JSON.

    Raises:
        UserError: onnx or onnxscript is missing, the exporter fails, or the file cannot be written.
    """
    import_optional("--to_onnx", *EXPORT_PACKAGES)
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
            for key, value in metadata.items():
                text = value if isinstance(value, str) else json.dumps(value)
                proto.metadata_props.add(key=key, value=text)
            content = proto.SerializeToString(deterministic=True)
    except Exception as error:  # versions that do not fit together, or protobuf's limit of 2 GB
        reason = f"{type(error).__name__}: {shorten([str(error)])}"
        raise UserError(f"{path}: the ONNX exporter of torch failed: {reason}") from error
    write_atomically(path, lambda file: file.write(content))


def _remove_exporter_notes(proto) -> None:
    """Remove what the exporter notes for its developers, such as paths on this machine."""
    graph = proto.graph
    nodes = [node for holder in (graph, *proto.functions) for node in holder.node]
    values = [*graph.initializer, *graph.input, *graph.output, *graph.value_info]
    for item in (proto, graph, *proto.functions, *nodes, *values):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")


def onnx_outputs(path: str | os.PathLike, images: torch.Tensor) -> list[torch.Tensor]:
    """Run a file of `export_onnx` with onnxruntime, on the CPU.

    Args:
        images: (N, 3, image_size, image_size) uint8.

    Returns:
        Probabilities (N, num_classes) float32, and novelty (N,) if the file has this output.

    Raises:
        UserError: onnxruntime or the file is missing, or onnxruntime cannot run it.
    """
    [runtime] = import_optional("--to_onnx with --input", "onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # an error is raised, and need not be printed as well
    options.intra_op_num_threads = torch.get_num_threads()  # not as many as the machine has
    try:
        content = Path(path).read_bytes()
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        batches = [{"images": batch.numpy()} for batch in images.cpu().split(RUN_BATCH_SIZE)]
        outputs = [session.run(None, batch) for batch in batches]
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from error
    except Exception as error:
        reason = shorten([str(error)])
        raise UserError(f"{path}: not a model that onnxruntime can run: {reason}") from error
    return [torch.from_numpy(np.concatenate(parts)) for parts in zip(*outputs, strict=True)]


def check_onnx(
    path: str | os.PathLike, images: torch.Tensor, expected: Sequence[torch.Tensor]
) -> float:
    """Return the largest difference between a file's outputs and the expected ones.

    Raises:
        UserError: it is above MAX_DIFFERENCE; or see `onnx_outputs`.
    """
    outputs = onnx_outputs(path, images)
    pairs = zip(outputs, expected, strict=False)  # a file may lack the novelty
    differences = [(output - values).abs().max().item() for output, values in pairs]
    for difference in differences:
        if not difference <= MAX_DIFFERENCE:  # NaN is not
            raise UserError(f"{path}: its outputs differ by {difference:.1e}: do not use it")
    return max(differences)


def import_optional(purpose: str, *packages: str) -> list[ModuleType]:
    """Import packages that only `purpose` needs.

    Raises:
        UserError: one of them is missing, or does not work on this machine.
    """
    try:
        with silenced():
            return [importlib.import_module(package) for package in packages]
    except ImportError as error:
        noun = "package" if len(packages) == 1 else "packages"
        needed = f"{noun} {' and '.join(packages)}: pip install {' '.join(packages)}"
        raise UserError(f"{purpose} needs the {needed}") from error


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Silence a library's output, logging and warnings."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as devnull,
            contextlib.redirect_stdout(devnull),
            contextlib.redirect_stderr(devnull),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
