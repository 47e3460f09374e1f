"""Running an ONNX file of `onnx_export` with onnxruntime: a predictor that needs no torch."""

import functools
import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from inference.predictor import Predictor
from system.devices import available_cores
from system.files import check_regular_file, is_text, is_within
from system.messages import UserError, end_of
from system.scripts import import_optional

MEMORY_LIMIT = 4 * 2**30  # bytes for a pass on a CPU; 128 images of 224 pixels need 3.7 GB
PREPROCESSING = ("preprocessing_version", "resize", "image_size", "max_aspect")  # metadata
PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}
# The key, a text of 8 bytes, with which a tensor says which other file its values are in.
# onnxruntime reads such files: version 1.32 below the working folder, 1.18 to 1.24 anywhere.
OTHER_FILE = re.compile(rb"[\0\x08]location")
REMEDY = "python predict.py --checkpoint CHECKPOINT --to_onnx FILE writes one"


def is_onnx(path: str | os.PathLike) -> bool:
    """Return whether a file's name says that it is an ONNX file."""
    return Path(path).suffix.lower() == ".onnx"


class _Opened(NamedTuple):
    """A file in onnxruntime, and what it was opened with."""

    session: Any  # onnxruntime.InferenceSession
    replaced: list[Any]  # values instead of the file's, which have to stay as long as the session
    means: list[float]
    stds: list[float]


class OnnxModel(Predictor):
    """A classifier in an ONNX file.

    `means` and `stds` other than the file's take 0.2 seconds whenever they change.

    Attributes:
        precision: "float32" or "int8", of the convolutions.
        preprocessing: numbers that say how an image becomes a view, as `utils.preprocessing` does.
    """

    def __init__(self, path: str | os.PathLike):
        """Load a file.

        Raises:
            UserError: the file is missing, or none of `onnx_export`.
        """
        self.path = path
        self._lock = threading.Lock()
        self._provider = PROVIDERS["cpu"]
        [self._runtime] = import_optional("an ONNX file", "onnxruntime")
        check_regular_file(path)
        self._opened = self._open([], [])
        try:
            self._read_metadata()
        except Exception as error:
            raise UserError(f"{path}: not an ONNX file of this program; {REMEDY}") from error
        self._opened = self._opened._replace(means=list(self.means), stds=list(self.stds))

    def _open(self, means: Sequence[float], stds: Sequence[float]) -> _Opened:
        """Load the file into onnxruntime, with other `means` and `stds` if they are not empty."""
        options = self._runtime.SessionOptions()
        options.log_severity_level = 4  # an error is raised, and need not be printed as well
        options.intra_op_num_threads = available_cores()  # not as many as the machine has
        options.add_session_config_entry("session.load_model_format", "ONNX")  # not its own ORT
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
            if OTHER_FILE.search(content):
                raise ValueError("it has weights in other files")
            session = self._runtime.InferenceSession(
                content,
                options,
                providers=[self._provider],
                disabled_optimizers=["ConstantFolding"],  # whose memory has no limit
            )
        except OSError as error:
            raise UserError(f"{self.path}: cannot read it: {error.strerror}") from error
        except Exception as error:
            reason = end_of(str(error))
            if "IR version" in reason or "opset" in reason:
                reason += "; upgrade onnxruntime"
            raise UserError(
                f"{self.path}: not a model that onnxruntime can run: {reason}"
            ) from error
        return _Opened(session, replaced, list(means), list(stds))

    def _read_metadata(self) -> None:
        """Set what the file says of itself.

        Raises:
            Exception: something is missing, or has a value that `onnx_export` never writes.
        """
        session = self._opened.session
        stored = session.get_modelmeta().custom_metadata_map
        self.categories = _read_texts(stored["categories"])
        names = _read_texts(stored["names"])
        self.means = json.loads(stored["means"])
        self.stds = json.loads(stored["stds"])
        self.novelty_limit = json.loads(stored["novelty_limit"])
        self.preprocessing = {key: json.loads(stored[key]) for key in PREPROCESSING}
        self.image_size = self.preprocessing["image_size"]
        self.precision = stored["precision"]
        [images] = session.get_inputs()
        outputs = [output.name for output in session.get_outputs()]
        self.has_novelty = outputs == ["probabilities", "novelty"]
        is_valid = (
            0 < len(self.categories) == len(names) == len(set(self.categories))
            and len(self.means) == len(self.stds) == 3
            and is_within(-1e6, 1e6, *self.means)
            and is_within(1e-6, 1e6, *self.stds)
            and is_within(0, 1, self.novelty_limit)
            and self.precision in ("float32", "int8")
            and (images.name, images.type) == ("images", "tensor(uint8)")
            and all(type(number) is int for number in self.preprocessing.values())
            and images.shape[1:] == [3, self.image_size, self.image_size]
            and (self.has_novelty or outputs == ["probabilities"])
        )
        if not is_valid:
            raise ValueError("not written by this program")
        self.names = dict(zip(self.categories, names, strict=True))
        self.class_to_idx = {category: index for index, category in enumerate(self.categories)}

    def prepare(self, device: str, precision: str, is_one: bool = False) -> None:
        """Move to a device; the precision is that of the file."""
        if precision not in ("auto", self.precision):
            raise UserError(
                f"--precision {precision}: {self.path} computes in {self.precision}; "
                "with a checkpoint, there is a choice"
            )
        if device == "cpu":
            return
        if PROVIDERS[device] in self._runtime.get_available_providers():
            self._provider = PROVIDERS[device]
            self.device_type = "cuda"
            self._opened = self._open(self.means, self.stds)
        if self._opened.session.get_providers()[0] != PROVIDERS[device]:  # it continues on the CPU
            raise UserError(
                f"--device {device}: an ONNX file needs the package onnxruntime-gpu and its CUDA; "
                "use --device cpu, or a checkpoint"
            )

    def compute(
        self, views: np.ndarray, means: Sequence[float], stds: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (N, num_classes) and novelty (N,) of views."""
        with self._lock:
            if list(means) != self._opened.means or list(stds) != self._opened.stds:
                self._opened = self._open(means, stds)
            opened = self._opened  # stays until this pass is over
        try:
            probs, *others = opened.session.run(None, {"images": views})
        except Exception as error:
            reason = end_of(str(error))
            raise UserError(
                f"{self.path}: onnxruntime failed: {reason}; less memory is needed with a smaller "
                "--batch_size"
            ) from error
        count = len(views)
        novelty = others[0] if others else np.full(count, np.nan, np.float32)
        if probs.shape != (count, len(self.categories)) or novelty.shape != (count,):
            raise UserError(f"{self.path}: its outputs do not have the shapes that it declares")
        return probs, novelty


def _read_texts(content: str) -> list[str]:
    """Parse a JSON array of texts; raises ValueError if it is something else."""
    texts = json.loads(content)
    if type(texts) is not list or not all(map(is_text, texts)):
        raise ValueError("not an array of texts")
    return texts


@functools.cache
def _limit_memory(runtime: Any) -> None:
    """Let onnxruntime use at most MEMORY_LIMIT: a file decides how much memory a pass needs."""
    kind = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = runtime.OrtMemoryInfo("Cpu", kind, 0, runtime.OrtMemType.DEFAULT)
    limit = runtime.OrtArenaCfg({"max_mem": MEMORY_LIMIT, "arena_extend_strategy": 1})
    runtime.create_and_register_allocator(memory, limit)
