"""Running an ONNX file of `onnx_export` with onnxruntime: a predictor that needs no torch."""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inference.onnx_check import check_model
from inference.predictor import Predictor
from system.devices import available_cores
from system.files import check_regular_file, is_text, is_within
from system.messages import UserError, shorten
from system.scripts import import_optional

MEMORY_LIMIT = 4 * 2**30  # bytes for a pass on a CPU; 128 images of 224 pixels need 3.7 GB
PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}
REMEDY = "python predict.py --checkpoint CHECKPOINT --to_onnx FILE writes one"


def is_onnx(path: str | os.PathLike) -> bool:
    """Return whether a file's name says that it is an ONNX file."""
    return Path(path).suffix.lower() == ".onnx"


class OnnxModel(Predictor):
    """A classifier in an ONNX file.

    Attributes:
        precision: "float32" or "int8", of the convolutions.

    `means` and `stds` other than the file's take 0.2 seconds whenever they change.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        image_sizes: Collection[int],
        describe_view: Callable[[int], str],
    ):
        """Load a file.

        Args:
            image_sizes: that views may have.
            describe_view: size -> how the caller makes a view of an image; in the same words as the
                file says it.

        Raises:
            UserError: the file is missing, or none of `onnx_export`; or its views differ.
        """
        self.path = path
        self._lock, self._provider = threading.Lock(), PROVIDERS["cpu"]
        [self._runtime] = import_optional("an ONNX file", "onnxruntime")
        check_regular_file(path)
        self._open([], [])
        try:
            preprocessing = self._read_metadata(image_sizes)
        except Exception as error:
            raise UserError(f"{path}: not an ONNX file of this program; {REMEDY}") from error
        if preprocessing != describe_view(self.image_size):
            raise UserError(
                f"{path}: its images are prepared in another way than this program's; {REMEDY}"
            )

    def _open(self, means: Sequence[float], stds: Sequence[float]) -> None:
        """Load the file into onnxruntime, with other `means` and `stds` if they are not empty.

        Sets the session, with values that have to stay as long as it is in use.
        """
        options = self._runtime.SessionOptions()
        options.log_severity_level = 4  # an error is raised, and need not be printed as well
        options.intra_op_num_threads = available_cores()  # not as many as the machine has
        if self._provider == PROVIDERS["cpu"]:
            _limit_memory(self._runtime)
            options.add_session_config_entry("session.use_env_allocators", "1")
        replaced = []
        for name, three in (("means", means), ("stds", stds)):
            if three:
                value = np.array(three, np.float32)[:, None, None]
                replaced.append(self._runtime.OrtValue.ortvalue_from_numpy(value))
                options.add_initializer(name, replaced[-1])
        try:
            content = Path(self.path).read_bytes()
            check_model(content)
            session = self._runtime.InferenceSession(
                content,
                options,
                providers=[self._provider],
                disabled_optimizers=["ConstantFolding"],  # whose memory has no limit
            )
            self._opened, self._opened_with = (session, replaced), (list(means), list(stds))
        except OSError as error:
            raise UserError(f"{self.path}: cannot read it: {error.strerror}") from error
        except Exception as error:
            reason = shorten([str(error)])
            raise UserError(
                f"{self.path}: not a model that onnxruntime can run: {reason}"
            ) from error

    def _read_metadata(self, image_sizes: Collection[int]) -> str:
        """Set what the file says of itself; returns how images become views.

        Raises:
            Exception: something is missing, or has a value that `onnx_export` never writes.
        """
        session, _ = self._opened
        stored = session.get_modelmeta().custom_metadata_map
        keys = ("categories", "names", "means", "stds")
        categories, names, means, stds = (json.loads(stored[key]) for key in keys)
        [images], outputs = session.get_inputs(), session.get_outputs()
        _, channels, size, width = images.shape
        self.has_novelty = len(outputs) > 1
        expected = ["probabilities", "novelty"][: len(outputs)]
        self.precision = stored.get("precision", "float32")
        for is_valid in (
            all(type(group) is list and all(map(is_text, group)) for group in (categories, names)),
            0 < len(categories) == len(names) == len(set(categories)),
            type(means) is type(stds) is list and len(means) == len(stds) == 3,
            is_within(-1e6, 1e6, *means) and is_within(1e-6, 1e6, *stds),
            self.precision in ("float32", "int8"),
            (images.name, images.type) == ("images", "tensor(uint8)"),
            channels == 3 and type(size) is int and size == width and size in image_sizes,
            [output.name for output in outputs] == expected,
        ):
            if not is_valid:
                raise ValueError("not written by this program")
        self.categories, self.image_size, self.means, self.stds = categories, size, means, stds
        self.names = dict(zip(categories, names, strict=True))
        self.class_to_idx = {category: index for index, category in enumerate(categories)}
        self._opened_with = (list(means), list(stds))
        return stored["preprocessing"]

    def prepare(self, device: str, precision: str) -> None:
        """See `Predictor.prepare`; the precision is that of the file."""
        if precision not in ("auto", self.precision):
            raise UserError(
                f"--precision {precision}: {self.path} computes in {self.precision}; "
                "with a checkpoint, there is a choice"
            )
        if device == "cpu":
            return
        if PROVIDERS[device] in self._runtime.get_available_providers():
            self._provider, self.device_type = PROVIDERS[device], "cuda"
            self._open(self.means, self.stds)
        if self._opened[0].get_providers()[0] != PROVIDERS[device]:  # it continues on the CPU
            raise UserError(
                f"--device {device}: an ONNX file needs the package onnxruntime-gpu and its CUDA; "
                "use --device cpu, or a checkpoint"
            )

    def compute(
        self, views: np.ndarray, means: Sequence[float], stds: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Predictor.predict_views`."""
        with self._lock:
            if (list(means), list(stds)) != self._opened_with:
                self._open(means, stds)
            session, replaced = self._opened  # both stay until this pass is over
        try:
            probs, *others = session.run(None, {"images": views})
        except Exception as error:
            reason = shorten([str(error)])
            raise UserError(
                f"{self.path}: onnxruntime failed: {reason}; less memory is needed with a smaller "
                "--batch_size"
            ) from error
        count = len(views)
        [novelty] = others or [np.full(count, np.nan, np.float32)]
        if probs.shape != (count, len(self.categories)) or novelty.shape != (count,):
            raise UserError(f"{self.path}: its outputs do not have the shapes that it declares")
        return probs, novelty


@functools.cache
def _limit_memory(runtime: Any) -> None:
    """Let onnxruntime use at most MEMORY_LIMIT: a file decides how much memory a pass needs."""
    kind, purpose = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, runtime.OrtMemType.DEFAULT
    limit = runtime.OrtArenaCfg({"max_mem": MEMORY_LIMIT, "arena_extend_strategy": 1})
    runtime.create_and_register_allocator(runtime.OrtMemoryInfo("Cpu", kind, 0, purpose), limit)
