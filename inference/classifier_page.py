"""A classifier as one HTML page, which predicts images in the browser that shows it."""

import base64
import gzip
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from inference.predictor import Predictor
from system.arguments import VERSION
from system.files import check_regular_file, escape
from system.messages import UserError
from system.pages import write_page

TEMPLATE = Path(__file__).with_name("classifier.html")
# The runtime: one version, whose files the page compares with these digests.
RUNTIME = "onnxruntime-web@1.30.0"
CDN = "https://cdn.jsdelivr.net"
CODE, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
SHA384 = {
    CODE: "PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    WASM: "vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}


def read_runtime(folder: str | os.PathLike) -> dict[str, bytes]:
    """Return the files of the runtime from a folder: the npm package RUNTIME, unpacked.

    Raises:
        UserError: a file is missing, or of another version.
    """
    files = {}
    for name in (CODE, WASM):
        candidates = [Path(folder, below, name) for below in ("", "dist", "package/dist")]
        path = next((path for path in candidates if path.exists()), candidates[0])
        check_regular_file(path)
        content = path.read_bytes()
        if base64.b64encode(hashlib.sha384(content).digest()).decode() != SHA384[name]:
            raise UserError(f"{path}: not of {RUNTIME}; `npm pack {RUNTIME}` downloads it")
        files[name] = content
    return files


def write_classifier_page(
    path: str | os.PathLike,
    model: Predictor,
    onnx: bytes,
    preprocessing: Mapping[str, int],
    runtime: Mapping[str, bytes],
) -> None:
    """Write the page.

    Args:
        model: whose names of categories and novelty limit are used.
        onnx: content of its ONNX file.
        preprocessing: see `utils.preprocessing`.
        runtime: from `read_runtime`; without, the page loads it from CDN.

    Raises:
        UserError: the page cannot be written.
    """
    names = [escape(name) for name in model.all_names()]
    digest = hashlib.sha256(onnx).hexdigest()
    addresses = {
        name: {"url": f"{CDN}/npm/{RUNTIME}/dist/{name}", "integrity": f"sha384-{SHA384[name]}"}
        for name in (CODE, WASM)
    }
    page = {
        "about": f"It knows {len(names)} categories, and tells which of them an image shows.",
        "version": f"Image Classifier {VERSION}, model {digest[:12]}, {RUNTIME}",
        "names": names,
        "novelty_limit": model.novelty_limit,
        "runtime": {"code": addresses[CODE], "wasm": addresses[WASM]},
        **preprocessing,
    }
    write_page(
        path,
        TEMPLATE,
        page,
        sources="'none'" if runtime else CDN,
        model=_pack(onnx),
        code=_pack(runtime[CODE]) if runtime else "",
        wasm=_pack(runtime[WASM]) if runtime else "",
    )


def _pack(content: bytes) -> str:
    """Return bytes as text that a page may contain: compressed, in base64."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()
