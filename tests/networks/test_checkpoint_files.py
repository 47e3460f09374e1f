"""networks.checkpoint_files: safe reads of files of torch.save, and digests of tensors."""

import math
import os
import re
import zipfile

import numpy as np
import pytest
import torch
from conftest import not_root
from torch import nn

import model
from networks import checkpoint_files
from system.messages import UserError


class Hostile:
    """Runs a command as soon as it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch '{self.trace}'",)


def truncated(path):
    torch.save({"a": torch.zeros(10_000)}, path)
    os.truncate(path, path.stat().st_size - 5000)


# Files that torch did not write, or that hold more than plain types and tensors.
UNSAFE_FILES = {
    "half archive": lambda path: path.write_bytes(b"PK\3\4" + bytes(10_000)),
    "TorchScript": lambda path: torch.jit.save(torch.jit.script(nn.ReLU()), path),
    "pickled module": lambda path: torch.save(nn.ReLU(), path),
    "pipe": os.mkfifo,
    "missing": lambda path: None,
    "text": lambda path: path.write_text("no weights\n" * 100),
    "folder": lambda path: path.mkdir(),
    "truncated": truncated,
    "hostile": lambda path: torch.save(Hostile(path.parent / "trace"), path),
    "hostile, old": lambda path: torch.save(
        Hostile(path.parent / "trace"), path, _use_new_zipfile_serialization=False
    ),
}


def load_weights(path):
    model.load_weights(model.Backbone("vgg13"), "vgg13", str(path))


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("case", UNSAFE_FILES)
def test_an_unsafe_file_is_named_and_not_executed(tmp_path, case):
    path = tmp_path / "file.pth"
    UNSAFE_FILES[case](path)
    for kind, load in (("checkpoint", model.load_checkpoint), ("weights file", load_weights)):
        reasons = {"folder": f"is a folder, not a {kind}"}
        reasons |= dict.fromkeys(("pipe", "missing"), f"no such {kind}")
        reason = reasons.get(case, f"not a {kind} that this program can read")
        with pytest.raises(UserError) as error:
            load(path)
        assert str(error.value) == f"{path}: {reason}"
    assert not (tmp_path / "trace").exists()


def test_the_hostile_file_does_what_it_is_meant_to(tmp_path):
    UNSAFE_FILES["hostile"](tmp_path / "file.pth")
    torch.load(tmp_path / "file.pth", weights_only=False)
    assert (tmp_path / "trace").exists()


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "file.pth"
    content = {"a": torch.randn(3000), "b": {"c": ["text", 0.5]}}
    torch.save(content, path)
    original = path.read_bytes()
    refused = 0
    for position in np.random.default_rng(0).integers(0, 8 * len(original), 60):
        flipped = bytearray(original)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            loaded = checkpoint_files.load_torch(path, "checkpoint")
        except UserError:
            refused += 1
            continue
        assert torch.equal(loaded["a"], content["a"]) and loaded["b"] == content["b"]
    assert refused > 40  # most bits are those of the tensor


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"a": torch.zeros(10)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UserError) as error:
        checkpoint_files.load_torch(path, "checkpoint")
    assert "is compressed" in str(error.value.__cause__)


def test_a_torch_file_that_may_not_be_read_is_a_users_error(locked_folder):
    locked_folder.chmod(0o755)
    path = locked_folder / "file.pth"
    torch.save({}, path)
    path.chmod(0)
    try:
        with pytest.raises(UserError, match="file.pth: cannot read it: Permission"), not_root():
            checkpoint_files.load_torch(path, "checkpoint")
    finally:
        path.unlink()


# ---------------------------------------------------------------- tensors


def last_value_as(value):
    """Return a function that replaces the last value of a tensor."""

    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


# What may be wrong with a tensor in a file, and the error of reading it.
INVALID_TENSORS = {
    "NaN": (last_value_as(math.nan), "not finite"),
    "infinite": (last_value_as(-math.inf), "not finite"),
    "stride 0": (lambda t: torch.zeros(1).expand(t.shape), "more values than it has"),
    "overlapping": (
        lambda t: torch.zeros(t.numel() // 2 + 100).as_strided(t.shape, [1] * t.dim()),
        "more values than it has",
    ),
    "integers": (lambda t: t.long(), "another shape or type"),
    "flat": (lambda t: t.flatten()[:, None], "another shape or type"),
    "sparse": (lambda t: t.to_sparse(), "another shape or type"),
    "meta": (lambda t: t.to("meta"), "another shape or type"),
    "a list": (lambda t: [1.0], "list"),
}


@pytest.mark.parametrize("case", INVALID_TENSORS)
def test_an_invalid_tensor_is_refused(tmp_path, case):
    change, reason = INVALID_TENSORS[case]
    module = nn.Conv2d(20, 30, 3)
    state = module.state_dict()
    torch.save({**state, "weight": change(state["weight"])}, tmp_path / "file.pth")
    before = {key: tensor.clone() for key, tensor in state.items()}
    with pytest.raises((ValueError, AttributeError, UserError), match=reason):
        checkpoint_files.load_tensors(
            module, checkpoint_files.load_torch(tmp_path / "file.pth", "weights file")
        )
    assert all(torch.equal(before[key], tensor) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_precision_and_order_become_float32(tmp_path, dtype):
    source, module = nn.Conv2d(20, 30, 3), nn.Conv2d(20, 30, 3, device="meta")
    source.to(dtype, memory_format=torch.channels_last)
    torch.save({**source.state_dict(), "another": torch.zeros(5)}, tmp_path / "file.pth")
    checkpoint_files.load_tensors(
        module, checkpoint_files.load_torch(tmp_path / "file.pth", "weights file")
    )
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, source.state_dict()[name].float())


def test_a_missing_tensor_is_named():
    with pytest.raises(ValueError, match="no tensor bias"):
        checkpoint_files.load_tensors(nn.Linear(2, 3), {"weight": torch.zeros(3, 2)})


def test_the_digest_of_tensors_depends_on_every_bit_and_name():
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    tensors = {"weight": weight, "bias": torch.zeros(4)}
    digest = checkpoint_files.digest_of_tensors(tensors)
    assert re.fullmatch("[0-9a-f]{64}", digest)
    changed = weight.clone()
    changed.view(torch.int32)[3, 2, 2, 2] ^= 1
    for other in (
        {**tensors, "weight": changed},
        {**tensors, "bias": torch.tensor([0.0, 0, 0, -0.0])},
        {"weight": weight, "offset": torch.zeros(4)},
        {"weight": weight},
    ):
        assert checkpoint_files.digest_of_tensors(other) != digest
    same = weight.to(memory_format=torch.channels_last)  # the same values in another order
    assert checkpoint_files.digest_of_tensors({**tensors, "weight": same}) == digest
