"""model: the backbone, the head, pretrained weights, files."""

import math
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import LONG, ROOT, backbone_of, not_root, same_bits, small_backbone
from torchvision import models

import model
from model import (
    PARTS,
    Backbone,
    Classifier,
    Head,
    UserError,
    category_metrics,
    heat_map,
    pool_parts,
)

# ---------------------------------------------------------------- the network


# Rows and columns of each of PARTS in the maps of an image of 64 x 96 pixels.
MAP_PARTS = {
    (8, 12): [
        np.s_[0:8, 0:12],
        np.s_[0:6, 0:8],
        np.s_[0:6, 4:12],
        np.s_[2:8, 0:8],
        np.s_[2:8, 4:12],
    ],
    (4, 6): [np.s_[0:4, 0:6], np.s_[0:3, 0:4], np.s_[0:3, 2:6], np.s_[1:4, 0:4], np.s_[1:4, 2:6]],
}
MAP_PARTS[8, 12].append(np.s_[2:7, 2:9])
MAP_PARTS[4, 6].append(np.s_[1:3, 1:5])


@pytest.mark.parametrize("arch", ["vgg16", "vgg13"])
def test_the_backbone_is_torchvisions_with_two_stages_pooled(arch):
    vgg = getattr(models, arch)(weights=None)
    backbone = Backbone(arch)
    places = [int(name.split(".")[1]) for name in backbone.state_dict()]
    backbone.load_state_dict(
        {name: vgg.state_dict()[name] for name in backbone.state_dict()}, assign=True
    )
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = backbone(images)
        pools = [i for i, layer in enumerate(vgg.features) if isinstance(layer, torch.nn.MaxPool2d)]
        wanted = []
        for end in pools[3:]:  # what the fourth and the fifth max-pooling would get
            out = vgg.features[:end](images)
            parts = [out[:, :, y, x] for y, x in MAP_PARTS[out.shape[2:]]]
            parts = [torch.cat([part.mean((2, 3)), part.amax((2, 3))], 1) for part in parts]
            wanted.append(torch.stack(parts, 1))
    assert max(places) < pools[4]
    assert features.shape == (2, len(PARTS), backbone.num_features) == (2, 6, 2048)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.square(), torch.cat(wanted, 2))


def test_the_backbone_is_frozen():
    backbone = backbone_of()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not backbone.training


def test_a_bfloat16_backbone_gives_nearly_the_same_in_float32():
    backbone = backbone_of("vgg13")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact, rough = backbone(images), backbone.to(torch.bfloat16)(images)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert torch.nn.functional.cosine_similarity(rough, exact, dim=2).min() > 0.999


def test_the_digest_tells_weights_apart():
    backbone, same, other = backbone_of(seed=0), backbone_of(seed=0), backbone_of(seed=1)
    digest = backbone.digest()
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert same.digest() == digest != other.digest()
    same.features[28].weight.data[511, 0, 2, 2] += 1e-3  # one of 15 million
    assert same.digest() != digest


def test_the_head_standardises_and_cuts_spare_outputs():
    head = Head(3, hidden_units=5, num_outputs=7, num_classes=4, dropout=0.5).eval()
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 0.5, 0.0])
    head.standardize_by(mean, std)
    features = torch.tensor([[3.0, 2.5, 3.0]])
    logits = head(features)
    assert logits.shape == (1, 4)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits, head.layers(torch.tensor([[1.0, 1.0, 0.0]]))[:, :4])


def test_the_head_drops_units_in_training_only():
    head = Head(3, hidden_units=100, num_outputs=2, num_classes=2, dropout=0.5)
    features = torch.ones(1, 3)
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))


# ---------------------------------------------------------------- metrics


def test_metrics_are_what_they_say():
    probs = torch.tensor(
        [
            [0.90, 0.04, 0.03, 0.01, 0.01, 0.01],  # right, and sure
            [0.86, 0.10, 0.01, 0.01, 0.01, 0.01],  # wrong, about as sure
            [0.30, 0.50, 0.10, 0.05, 0.03, 0.02],  # right
            [0.20, 0.10, 0.45, 0.10, 0.10, 0.05],  # the least likely one
        ]
    )
    labels = torch.tensor([0, 1, 1, 5])
    found = model.metrics(probs.log() + 3, labels)
    losses = [-math.log(p) for p in (0.9, 0.1, 0.5, 0.05)]
    assert found.pop("loss") == pytest.approx(sum(losses) / 4, rel=1e-5)
    # Bins of 1/15: 0.90 and 0.86 in 13 and 12, 0.50 in 7, 0.45 in 6.
    gaps = [0.1, 0.86, 0.5, 0.45]
    assert found == pytest.approx(
        {
            "accuracy": 2 / 4,
            "top5_accuracy": 3 / 4,
            "class_accuracy": (1 + 1 / 2 + 0) / 3,
            "ece": sum(gaps) / 4,
        },
        rel=1e-5,
    )


def test_category_metrics_are_what_they_say():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    answers = torch.tensor([0, 0, 1, 1, 0, 0])
    rows = category_metrics(labels, answers, 4)
    assert [row["images"] for row in rows] == [3, 2, 1, 0]
    for row, precision, recall, f1 in zip(
        rows,
        [1 / 2, 1 / 2, math.nan, math.nan],
        [2 / 3, 1 / 2, 0, math.nan],
        [4 / 7, 1 / 2, 0, math.nan],
        strict=True,
    ):
        assert row["precision"] == pytest.approx(precision, nan_ok=True)
        assert row["recall"] == pytest.approx(recall, nan_ok=True)
        assert row["f1"] == pytest.approx(f1, nan_ok=True)


def test_the_heat_is_what_hiding_a_place_costs():
    """With a head that is linear in averages, the heat is each place's part of the logit."""
    torch.manual_seed(0)
    backbone = small_backbone()
    head = Head(384, 8, 3, 3, 0.5).eval()
    image = torch.randn(3, 32, 32)
    arguments = {"arch": "vgg13", "class_to_idx": {"a": 0, "b": 1, "c": 2}, "image_size": 32}
    model = Classifier(backbone, head, **arguments, means=[0] * 3, stds=[1] * 3).eval()
    with torch.inference_mode():  # as in a prediction
        heat = heat_map(model, image, 1)
        features, maps = backbone.features_and_maps(image[None])
        maps = backbone.last_block(maps).float()
    assert heat.shape == maps.shape[2:] and heat.dtype == torch.float32
    assert heat.min() == 0 and heat.max() == 1
    assert not torch.equal(heat, heat_map(model, image, 2))

    def logit(maps):
        second = pool_parts(maps)
        whole = torch.cat([features[..., : -second.shape[2]], second], 2)
        return head(whole).mean(1)[0, 1].item()

    # A little less of a place costs the logit in proportion to its heat.
    costs = torch.zeros_like(heat)
    for y in range(heat.shape[0]):
        for x in range(heat.shape[1]):
            less = maps.clone()
            less[..., y, x] *= 0.999
            costs[y, x] = logit(maps) - logit(less)
    costs = costs.relu() / costs.max()
    assert (costs - heat).abs().max() < 0.05


def test_where_nothing_speaks_for_a_category_there_is_no_heat():
    head = Head(384, 8, 2, 2, 0.5).eval()
    torch.nn.init.zeros_(head.layers[-1].weight)
    arguments = {"arch": "vgg13", "class_to_idx": {"a": 0, "b": 1}, "image_size": 32}
    model = Classifier(small_backbone(), head, **arguments, means=[0] * 3, stds=[1] * 3).eval()
    assert torch.equal(heat_map(model, torch.randn(3, 32, 32), 0), torch.zeros(8, 8))


def test_gaps_within_a_bin_cancel_out():
    probs = torch.tensor([[0.75, 0.25], [0.77, 0.23], [0.76, 0.24], [0.74, 0.26]])
    found = model.metrics(probs.log(), torch.tensor([0, 0, 0, 1]))
    assert found["ece"] == pytest.approx(abs(0.75 + 0.77 + 0.76 + 0.74 - 3) / 4, rel=1e-4)
    assert found["top5_accuracy"] == 1


# ---------------------------------------------------------------- weights


def test_random_weights_follow_from_the_seed():
    torch.manual_seed(1)
    one = backbone_of(seed=3).state_dict()
    torch.manual_seed(2)
    assert same_bits(one, backbone_of(seed=3).state_dict())
    assert not same_bits(one, backbone_of(seed=4).state_dict())
    assert all(tensor.isfinite().all() for tensor in one.values())


@pytest.mark.parametrize("extra", [{}, {"classifier.6.bias": torch.zeros(1000)}])
@pytest.mark.parametrize("old_format", [False, True])
def test_a_state_dict_file_is_loaded(tmp_path, extra, old_format):
    source, backbone = backbone_of("vgg13", seed=9), Backbone("vgg13")
    torch.save(
        {**source.state_dict(), **extra},
        tmp_path / "weights.pth",
        _use_new_zipfile_serialization=not old_format,  # torchvision's own files are old
    )
    model.load_weights(backbone, "vgg13", str(tmp_path / "weights.pth"))
    assert same_bits(backbone.state_dict(), source.state_dict())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def without_a_key():
    state = backbone_of("vgg13").state_dict()
    del state["features.5.bias"]
    return state


def with_a_wrong_shape():
    state = backbone_of("vgg13").state_dict()
    state["features.5.bias"] = torch.zeros(3)
    return state


def changed(name, change):
    """The state_dict of a backbone with one tensor changed."""
    state = dict(backbone_of("vgg13").state_dict())
    state[name] = change(state[name])
    return state


def one_of(value):
    """Changes one of many values in a tensor."""

    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


# What is wrong with one tensor, that a state_dict and a checkpoint may hold.
WRONG_TENSORS = {
    "NaN": one_of(math.nan),
    "infinite": one_of(-math.inf),
    "too large": lambda t: torch.full_like(t, 3e38),
    "stride 0": lambda t: torch.zeros(1).expand(t.shape),
    "overlapping": lambda t: torch.zeros(t.numel() // 2 + 100).as_strided(t.shape, [1] * t.dim()),
    "huge": lambda t: torch.zeros(1).expand(10**12),
    "whole numbers": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "flat": lambda t: t.flatten()[:, None],
    "None": lambda t: None,
    "a list": lambda t: [1.0],
}
LAYER = "features.10.weight"


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_weights_with_a_wrong_tensor_are_refused(tmp_path, case):
    path = tmp_path / "weights.pth"
    torch.save(changed(LAYER, WRONG_TENSORS[case]), path)
    with pytest.raises(UserError, match=re.escape(str(path))):
        model.load_weights(Backbone("vgg13"), "vgg13", str(path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_and_order_are_taken(tmp_path, dtype):
    source, backbone = backbone_of("vgg13"), Backbone("vgg13")
    source.to(dtype, memory_format=torch.channels_last)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model.load_weights(backbone, "vgg13", str(tmp_path / "weights.pth"))
    wanted = {name: tensor.float() for name, tensor in source.state_dict().items()}
    assert same_bits(backbone.state_dict(), wanted)


WRONG_WEIGHTS = {
    "wrong arch": lambda: backbone_of("vgg16").state_dict(),
    "missing key": without_a_key,
    "wrong shape": with_a_wrong_shape,
    "list": lambda: [1, 2],
    "tensor": lambda: torch.zeros(3),
    "strings": lambda: dict.fromkeys(Backbone("vgg13").state_dict(), "text"),
}


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_a_file_of_other_weights_is_named(tmp_path, case):
    path = tmp_path / "weights.pth"
    torch.save(WRONG_WEIGHTS[case](), path)
    with pytest.raises(UserError, match=re.escape(str(path))):
        model.load_weights(Backbone("vgg13"), "vgg13", str(path))


def cut_off(path):
    torch.save({"a": torch.zeros(10_000)}, path)
    os.truncate(path, path.stat().st_size - 5000)


class Hostile:
    """Runs a command as soon as it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch '{self.trace}'",)


def with_pickle(pickled, compression=zipfile.ZIP_STORED):
    """Writes an archive as torch does, with this pickle in it."""

    def write(path):
        torch.save({"a": torch.zeros(10)}, path)
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in parts.items():
                archive.writestr(name, pickled if name.endswith("data.pkl") else content)
        assert path.stat().st_size < 200_000

    return write


# A text of 100 MB; one that is doubled 20 times; a key of 2 ** 20 tuples. (With 60 it is the end.)
LONG_TEXT = b"\x80\x02X" + struct.pack("<I", 10**8) + bytes(10**8) + b"."
DOUBLED = b"\x80\x02c_codecs\nencode\nq\x00" + b"h\x00" * 20 + b"X\1\0\0\0aX\5\0\0\0ascii\x86R"
DOUBLED += b"X\x09\0\0\0hex_codec\x86R" * 19 + b"."
TUPLES = b"\x80\x02}q\x00)q\x01" + b"h\x01h\x01\x86q\x01" * 20 + b"h\x00h\x01K\x01s."
OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."  # begins old files


NO_TORCH_FILES = {
    "bomb": with_pickle(LONG_TEXT, zipfile.ZIP_DEFLATED),
    "doubled": with_pickle(DOUBLED),
    "tuples": with_pickle(TUPLES),
    "doubled, old": lambda path: path.write_bytes(OLD + DOUBLED + b"\x80\x02]."),
    "tuples, old": lambda path: path.write_bytes(OLD + TUPLES + b"\x80\x02]."),
    "bytes": lambda path: path.write_bytes(np.random.default_rng(0).bytes(10_000)),
    "half archive": lambda path: path.write_bytes(b"PK\3\4" + bytes(10_000)),
    "TorchScript": lambda path: torch.jit.save(torch.jit.script(torch.nn.ReLU()), path),
    "whole model": lambda path: torch.save(torch.nn.ReLU(), path),
    "arrays": lambda path: np.savez(path.open("wb"), a=np.zeros(3)),
    "pipe": lambda path: os.mkfifo(path),
    "missing": lambda path: None,
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("no weights\n" * 100),
    "folder": lambda path: path.mkdir(),
    "cut off": cut_off,
    "hostile": lambda path: torch.save(Hostile(path.parent / "trace"), path),
    "hostile, old": lambda path: torch.save(
        Hostile(path.parent / "trace"), path, _use_new_zipfile_serialization=False
    ),
    "hostile pickle": lambda path: path.write_bytes(pickle.dumps(Hostile(path.parent / "trace"))),
}


FOUND_BY = {
    "bomb": "compressed",
    "doubled": "calls _codecs encode",
    "tuples": "tuples within tuples",
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("case", NO_TORCH_FILES)
def test_a_file_that_torch_did_not_write_is_named(tmp_path, case):
    path = tmp_path / "file.pth"
    NO_TORCH_FILES[case](path)
    for load in (
        lambda: model.load_weights(Backbone("vgg13"), "vgg13", str(path)),
        lambda: model.load_checkpoint(path),
    ):
        with pytest.raises(UserError, match=re.escape(str(path))) as error:
            load()
        assert FOUND_BY.get(case.split(",")[0], "") in str(error.value.__cause__)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["locked", "too long"])
def test_a_path_that_cannot_be_looked_at_is_a_users_error(locked_folder, name):
    path = str(locked_folder / "file.pth") if name == "locked" else "x" * 5000
    with pytest.raises(UserError, match="locked|xxx"), not_root():
        model.load_checkpoint(path)


def test_jax_weights_are_transposed(tmp_path):
    source = backbone_of("vgg16", seed=2).state_dict()
    layers = {}
    for number, name in enumerate(name for name in source if name.endswith("weight")):
        kernel = source[name].permute(2, 3, 1, 0).numpy()  # (H, W, in, out)
        bias = np.full(kernel.shape[3], number, np.float32)
        layers[f"Conv_{number}"] = {"kernel": kernel, "bias": bias}
        source[name.replace("weight", "bias")] = torch.from_numpy(bias)
    state = model.convert_jax_weights(pickle.dumps({"VGG16_0": layers}, protocol=4))
    assert same_bits(dict(sorted(state.items())), dict(sorted(source.items())))
    model.save_file(state, tmp_path / "converted.pth")
    backbone = Backbone("vgg16")
    model.load_weights(backbone, "vgg16", str(tmp_path / "converted.pth"))
    assert same_bits(backbone.state_dict(), dict(source))


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    content = pickle.dumps({"VGG16_0": Hostile(trace)})
    with pytest.raises(pickle.UnpicklingError, match="system"):
        model.convert_jax_weights(content)
    assert not trace.exists()
    pickle.loads(content)  # it does what it is meant to where nothing stops it
    assert trace.exists()


# ---------------------------------------------------------------- checkpoints


def classifier() -> Classifier:
    torch.manual_seed(0)
    head = Head(2048, hidden_units=6, num_outputs=4, num_classes=3, dropout=0.25)
    head.standardize_by(torch.rand(2048), torch.rand(2048))
    return Classifier(
        backbone_of("vgg13"),
        head,
        arch="vgg13",
        class_to_idx={"1": 0, "10": 1, "2": 2},
        means=[0.1, 0.2, 0.3],
        stds=[0.4, 0.5, 0.6],
        image_size=224,
        temperature=0.75,
        history={"epoch": 2, "metrics": {"valid_accuracy": 0.5}, "arguments": {"seed": 1}},
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A classifier and the checkpoint it was saved in."""
    path = tmp_path_factory.mktemp("saved") / "new folder" / "checkpoint.pth"
    made = classifier().eval()
    model.save_checkpoint(path, made)
    yield made, path
    path.unlink()


def test_a_loaded_checkpoint_gives_the_same_logits(saved):
    made, path = saved
    loaded = model.load_checkpoint(path)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded(images), made(images))
    assert loaded(images).shape == (2, 3)
    for name in ("arch", "class_to_idx", "means", "stds", "image_size", "temperature", "history"):
        assert getattr(loaded, name) == getattr(made, name)
    assert not loaded.training


def test_a_checkpoint_holds_plain_types_under_the_promised_names(saved):
    content = torch.load(saved[1], weights_only=True)
    assert content["format_version"] == model.FORMAT_VERSION
    assert content["arch"] == "vgg13"
    assert (content["hidden_units"], content["num_outputs"], content["dropout"]) == (6, 4, 0.25)
    assert content["class_to_idx"] == {"1": 0, "10": 1, "2": 2}
    assert (content["means"], content["stds"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert (content["image_size"], content["temperature"]) == (224, 0.75)
    assert (content["epoch"], content["metrics"]) == (2, {"valid_accuracy": 0.5})
    assert content["arguments"] == {"seed": 1}
    assert same_bits(dict(content["state_dict"]), dict(saved[0].state_dict()))


def spoilt(content, **changes):
    return {**content, **changes}


WRONG_CHECKPOINTS = {
    "newer": (lambda c: spoilt(c, format_version=model.FORMAT_VERSION + 1), "newer"),
    "older": (lambda c: spoilt(c, format_version=1), "older"),
    "no version": (lambda c: {k: v for k, v in c.items() if k != "format_version"}, "not a"),
    "only weights": (lambda c: c["state_dict"], "not a"),
    "list": (lambda c: [c], "not a"),
    "no weights": (lambda c: {k: v for k, v in c.items() if k != "state_dict"}, "damaged"),
    "other head": (lambda c: spoilt(c, hidden_units=7), "damaged"),
    "unknown arch": (lambda c: spoilt(c, arch="vgg99"), "damaged"),
    "no categories": (lambda c: spoilt(c, class_to_idx=None), "damaged"),
}
WRONG_FIELDS = {
    "arch": ["vgg99", None, ("vgg13",), ["vgg13"]],
    "class_to_idx": [
        {},
        ["1", "10", "2"],
        {"1": 0, "10": 1, "2": 3},
        {"1": 0, "10": 1, "2": 1},
        {"1": 1, "10": 2, "2": 3},
        {"1": -1, "10": 0, "2": 1},
        {"1": 0, "10": 1, 2: 2},
        {"1": 0, "10": 1, "2": 2.0},
        {"1": False, "10": True, "2": 2},
        {"1": 0, "10": 1, "2": "2"},
        {str(number): number for number in range(5)},  # there are 4 outputs
    ],
    "hidden_units": [7, 0, -6, 6.0, 10**30, "6", None],
    "num_outputs": [5, 0, 2, "4", None],
    "dropout": [5, -0.1, math.nan, "0.5", None, [0.5]],
    "temperature": [0, 0.0, -1.0, math.nan, math.inf, 1e-300, 10**400, "1", None],
    "means": [
        [0.1, 0.2],
        [0.1, 0.2, math.nan],
        [0.1, 0.2, 1e300],
        "123",
        None,
        0.5,
        [[0, 0, 0]] * 3,
    ],
    "stds": [[0.1, 0.2], [0.1, 0.2, 0], [0.1, 0.2, -0.1], [1e-300] * 3, {}, None],
    "image_size": [0, 448, "224", None],
    "state_dict": [None, [], {}, "text", {1: 2}],
    "format_version": [None, "3", 3.0, math.nan, [3]],
}
for field, values in WRONG_FIELDS.items():
    for value in values:
        WRONG_CHECKPOINTS[f"{field} {value!r:.40}"] = (
            lambda c, field=field, value=value: spoilt(c, **{field: value}),
            "not a" if field == "format_version" else "damaged",
        )
for tensor in ("backbone." + LAYER, "head.layers.0.weight"):
    for case, change in WRONG_TENSORS.items():
        WRONG_CHECKPOINTS[f"{tensor} {case}"] = (
            lambda c, name=tensor, change=change: spoilt(
                c, state_dict=spoilt(c["state_dict"], **{name: change(c["state_dict"][name])})
            ),
            "not a" if case in ("sparse", "meta", "quantized") else "damaged",
        )


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("case", WRONG_CHECKPOINTS)
def test_a_checkpoint_that_does_not_fit_is_named(saved, tmp_path, case):
    spoil, word = WRONG_CHECKPOINTS[case]
    path = tmp_path / "spoilt.pth"
    torch.save(spoil(torch.load(saved[1], weights_only=True, mmap=True)), path)
    with pytest.raises(UserError, match=re.escape(str(path))) as error:
        model.load_checkpoint(path)
    path.unlink()  # 38 MB
    assert word in str(error.value) and len(str(error.value)) < 1000


def test_a_cut_off_checkpoint_is_named(saved, tmp_path):
    path = tmp_path / "cut off.pth"
    path.write_bytes(saved[1].read_bytes()[:-1_000_000])
    with pytest.raises(UserError, match=re.escape(str(path))):
        model.load_checkpoint(path)


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file.pth"
    for value in (1, 2):
        model.save_file({"value": value}, path)
        assert torch.load(path, weights_only=True) == {"value": value}
        assert os.listdir(tmp_path) == ["file.pth"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.pth"
    model.save_file({"value": torch.arange(3)}, path)
    before = path.read_bytes()
    program = """
import resource, sys, torch, model
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
try:
    model.save_file({"value": torch.zeros(1_000_000)}, sys.argv[1])
except model.UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert done.returncode == 0, done.stderr
    assert str(path) in done.stdout and "cannot write" in done.stdout
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["file.pth"]
