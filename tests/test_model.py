"""model: the backbone, the head, the classifier, heat maps, weights and checkpoints."""

import math
import os
import re

import numpy as np
import pytest
import torch
from conftest import backbone_of, detector_of, same_bits, small_backbone
from test_checkpoint_files import INVALID_TENSORS, UNSAFE_FILES
from torch import nn
from torchvision import models

import model
import utils
from model import (
    REGIONS,
    Architecture,
    Backbone,
    Classifier,
    Head,
    fast_copy,
    heat_map,
    num_regions,
)
from networks.heat_maps import hires_cam
from networks.vgg import pool_regions, replace_second_stage
from networks.winograd import WinogradConv2d
from system.messages import UserError

CPU = torch.device("cpu")


def random_images(*shape) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def random_views(*shape) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).byte()


# ---------------------------------------------------------------- the backbone


# Rows and columns of each of REGIONS in the maps of an image of 64 x 96 pixels.
MAP_REGIONS = {
    (8, 12): [
        np.s_[0:8, 0:12],
        np.s_[0:6, 0:8],
        np.s_[0:6, 4:12],
        np.s_[2:8, 0:8],
        np.s_[2:8, 4:12],
        np.s_[2:7, 2:9],
    ],
    (4, 6): [
        np.s_[0:4, 0:6],
        np.s_[0:3, 0:4],
        np.s_[0:3, 2:6],
        np.s_[1:4, 0:4],
        np.s_[1:4, 2:6],
        np.s_[1:3, 1:5],
    ],
}


@pytest.mark.parametrize("arch", ["vgg16", "vgg13"])
def test_the_backbone_is_torchvisions_with_two_stages_pooled(arch):
    backbone = backbone_of(arch)
    with torch.device("meta"):
        vgg = getattr(models, arch)()
    missing, _ = vgg.load_state_dict(backbone.state_dict(), strict=False, assign=True)
    assert all(name.startswith("classifier.") for name in missing)
    layers = list(vgg.features)
    assert repr(model.ARCHITECTURES[arch].build()) == repr(vgg.features)
    assert model.ARCHITECTURES[arch].url == models.get_model_weights(arch)["IMAGENET1K_V1"].url
    *_, fourth, fifth = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    images = random_images(2, 3, 64, 96)
    with torch.inference_mode():
        features, maps = backbone.features_and_maps(images)
        first = vgg.features[:fourth](images)
        expected_maps = vgg.features[fourth](first)
        second = vgg.features[fourth + 1 : fifth](expected_maps)
        expected = []
        for out in (first, second):
            regions = [out[:, :, y, x] for y, x in MAP_REGIONS[out.shape[2:]]]
            pooled = [torch.cat([part.mean((2, 3)), part.amax((2, 3))], 1) for part in regions]
            expected.append(torch.stack(pooled, 1))
    assert len(backbone.features) == fifth
    assert features.shape == (2, len(REGIONS), backbone.num_features) == (2, 6, 2048)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.square(), torch.cat(expected, 2))
    torch.testing.assert_close(maps, expected_maps)


def test_the_second_half_of_features_follows_from_the_maps_and_can_be_replaced():
    backbone, images = small_backbone(), random_images(2, 3, 32, 48)
    with torch.inference_mode():
        features, maps = backbone.features_and_maps(images)
        assert torch.equal(backbone(images), features)
        second = pool_regions(backbone.last_block(maps), REGIONS)
    assert maps.shape[1:] == (64, 16, 24)
    assert torch.equal(second, features[..., 128:])
    assert torch.equal(replace_second_stage(features, second), features)
    replaced = replace_second_stage(features, torch.zeros_like(second))
    assert torch.equal(replaced[..., :128], features[..., :128])
    assert not replaced[..., 128:].any()


def test_a_large_image_has_the_regions_of_two_scales():
    backbone, images = small_backbone(), random_images(2, 3, 256, 256)
    assert [num_regions(size) for size in (64, 224, 256, 448)] == [6, 6, 12, 12]
    quarters = [images[:, :, y::2, x::2] for y in range(2) for x in range(2)]
    with torch.inference_mode():
        features = backbone(images)
        assert torch.equal(features[:, :6], backbone.features_and_maps(images)[0])
        half = backbone.features_and_maps((sum(quarters) / 4).flip(3))[0]  # mirrored
        assert backbone(images[..., :224, :224]).shape == (2, 6, 384)
    assert features.shape == (2, 12, 384)
    torch.testing.assert_close(features[:, 6:], half)


def test_the_backbone_is_frozen():
    backbone = small_backbone()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not backbone.training


def test_a_bfloat16_backbone_gives_nearly_the_same_features_in_float32():
    backbone = backbone_of("vgg13")
    images = random_images(1, 3, 64, 64)
    with torch.inference_mode():
        exact, rounded = backbone(images), backbone.to(torch.bfloat16)(images)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert nn.functional.cosine_similarity(rounded, exact, dim=2).min() > 0.999


def test_the_fast_copy_of_a_backbone_agrees_with_it():
    backbone = backbone_of("vgg13")
    before = backbone.digest()
    images = random_images(2, 3, 32, 48)
    with torch.inference_mode():
        fast = fast_copy(backbone, CPU, torch.float32)
        assert any(isinstance(layer, WinogradConv2d) for layer in fast.features)
        features = fast(images)
        torch.testing.assert_close(features, backbone(images), rtol=1e-4, atol=1e-4)
        assert torch.equal(fast(images[1:2]), features[1:2])  # the same bits in any batch
        rounded = fast_copy(backbone, CPU, torch.bfloat16).features
    assert not any(isinstance(layer, WinogradConv2d) for layer in rounded)
    assert rounded[0].weight.dtype == torch.bfloat16
    assert backbone.digest() == before


def test_the_digest_depends_on_every_weight():
    backbone, same, other = small_backbone(), small_backbone(), small_backbone(seed=1)
    digest = backbone.digest()
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert same.digest() == digest != other.digest()
    same.features[4].weight.data[127, 0, 2, 2] += 1e-6
    assert same.digest() != digest


# ---------------------------------------------------------------- the head


def test_the_head_standardizes_and_cuts_off_spare_outputs():
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


def test_an_images_logits_are_the_mean_over_its_regions():
    head = Head(3, hidden_units=5, num_outputs=4, num_classes=4, dropout=0.5).eval()
    features = random_images(2, 6, 3)
    expected = sum(head(features[:, region]) for region in range(6)) / 6
    torch.testing.assert_close(head.image_logits(features), expected)


# ---------------------------------------------------------------- the classifier


def small_classifier(**changes) -> Classifier:
    """Make a classifier of 3 categories with a small backbone."""
    torch.manual_seed(0)
    head = Head(384, hidden_units=8, num_outputs=3, num_classes=3, dropout=0.5)
    attributes = {
        "arch": "vgg13",
        "class_to_idx": {"b": 1, "x y": 0, "a": 2},
        "image_size": 32,
        "means": [0.5, 0.4, 0.3],
        "stds": [0.25, 0.3, 0.2],
        **changes,
    }
    return Classifier(small_backbone(), head, **attributes).eval()


def test_categories_are_in_the_order_of_their_logits():
    assert small_classifier().categories == ["x y", "b", "a"]


def test_probabilities_are_those_of_normalized_views_and_the_temperature():
    classifier, views = small_classifier(temperature=0.25), random_views(3, 3, 32, 32)
    with torch.inference_mode():
        images = utils.normalize(views, classifier.means, classifier.stds)
        logits = classifier.head(classifier.backbone(images)).mean(1)
        expected = (logits * 4).softmax(1)
    probs, _ = classifier.predict_views(views)
    np.testing.assert_allclose(probs, expected, rtol=1e-5)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(1), np.ones(3), rtol=1e-5)


@pytest.mark.parametrize("changes", [{"means": [0.1, 0.2, 0.6]}, {"stds": [0.5, 0.2, 0.1]}])
def test_means_and_stds_may_be_replaced(changes):
    classifier, views = small_classifier(), random_views(2, 3, 32, 32)
    probs, _ = classifier.predict_views(views, **changes)
    assert np.array_equal(probs, small_classifier(**changes).predict_views(views)[0])
    assert not np.allclose(probs, classifier.predict_views(views)[0], atol=1e-4)


def test_novelty_is_that_of_the_mean_hidden_layer_and_of_logits_before_the_temperature():
    classifier, views = small_classifier(detector=detector_of(8)), random_views(3, 3, 32, 32)
    _, novelty = classifier.predict_views(views)
    with torch.inference_mode():
        features = classifier.backbone(utils.normalize(views, classifier.means, classifier.stds))
        standardized = (features - classifier.head.mean) / classifier.head.std
        hidden = classifier.head.layers[:2](standardized).mean(1)
        expected = classifier.detector(hidden, classifier.head(features).mean(1))
    np.testing.assert_allclose(novelty, expected, rtol=1e-5)
    assert np.array_equal(
        novelty, small_classifier(detector=detector_of(8), temperature=9.0).predict_views(views)[1]
    )


def test_without_a_detector_novelty_is_nan():
    _, novelty = small_classifier().predict_views(random_views(3, 3, 32, 32))
    assert novelty.shape == (3,) and np.isnan(novelty).all()


def test_the_metadata_say_in_numbers_how_images_are_prepared():
    metadata = small_classifier(image_size=64).metadata()
    assert metadata["preprocessing_version"] == utils.PREPROCESSING_VERSION
    assert metadata["image_size"] == 64 and metadata["resize"] == 73  # 64 * 256 / 224
    assert metadata["max_aspect"] == utils.MAX_ASPECT and metadata["novelty_limit"] == 0.003
    assert metadata["format_version"] == 1


def test_probabilities_that_are_not_finite_are_an_error():
    classifier = small_classifier(temperature=1e-45)
    with pytest.raises(UserError, match="^no finite probabilities: .*--means"):
        classifier.predict_views(random_views(1, 3, 32, 32))


# ---------------------------------------------------------------- heat maps


def test_the_heat_is_what_hiding_a_location_costs():
    classifier, view = small_classifier(), random_views(3, 32, 32)
    backbone, head = classifier.backbone, classifier.head
    with torch.inference_mode():  # as in a prediction
        heat = heat_map(classifier, view, "b")
        image = utils.normalize(view[None], classifier.means, classifier.stds)
        features, maps = backbone.features_and_maps(image)
        maps = backbone.last_block(maps).float()
    assert heat.shape == maps.shape[2:] and heat.dtype == torch.float32
    assert heat.min() == 0 and heat.max() == 1
    for category in ("x y", "a"):
        assert not torch.equal(heat, heat_map(classifier, view, category))

    def logit(maps):
        second = pool_regions(maps, REGIONS)
        return head(torch.cat([features[..., : -second.shape[2]], second], 2)).mean(1)[0, 1].item()

    # A little less of a location costs the logit in proportion to its heat.
    costs = torch.zeros_like(heat)
    for y in range(heat.shape[0]):
        for x in range(heat.shape[1]):
            less = maps.clone()
            less[..., y, x] *= 0.999
            costs[y, x] = logit(maps) - logit(less)
    costs = costs.relu() / costs.max()
    assert (costs - heat).abs().max() < 0.05


def test_the_heat_of_a_large_image_is_that_of_both_scales(monkeypatch):
    classifier, view, calls = small_classifier(), random_views(3, 256, 256), []
    monkeypatch.setattr(model, "hires_cam", lambda *both: calls.append(both) or hires_cam(*both))
    heat = heat_map(classifier, view, "b")
    [(maps, logit_of)] = calls
    assert [scale.shape[2:] for scale in maps] == [(64, 64), (32, 32)] and heat.shape == (64, 64)
    image = utils.normalize(view[None], classifier.means, classifier.stds)
    with torch.inference_mode():
        logit = classifier.head.image_logits(classifier.backbone(image))[0, 1]
        assert logit_of(maps).item() == pytest.approx(logit.item(), rel=1e-5)


def test_a_heat_map_leaves_the_model_as_it_is():
    classifier = small_classifier().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    heat = heat_map(classifier, random_views(3, 32, 32), "a")
    assert not heat.requires_grad
    assert same_bits(dict(classifier.state_dict()), before)
    assert not any(p.requires_grad or p.grad is not None for p in classifier.parameters())


def test_where_no_location_supports_a_category_there_is_no_heat():
    classifier = small_classifier()
    nn.init.zeros_(classifier.head.layers[-1].weight)
    assert torch.equal(heat_map(classifier, random_views(3, 32, 32), "b"), torch.zeros(8, 8))


# ---------------------------------------------------------------- weights


@pytest.fixture(scope="module", autouse=True)
def tiny_architecture(tmp_path_factory):
    """Add "tiny", a VGG of two convolutions, to ARCHITECTURES: its files are small."""
    path = tmp_path_factory.mktemp("server") / "tiny-0123abcd.pth"

    def build():
        return models.vgg.make_layers([8, "M", 16, "M"])

    tiny = Architecture(build, path.as_uri(), (1, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(model.ARCHITECTURES, "tiny", tiny)
        yield


def test_weights_are_random_or_of_imagenet_or_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source, backbone = backbone_of("tiny", seed=1), backbone_of("tiny", seed=2)
    assert not same_bits(dict(backbone.state_dict()), dict(source.state_dict()))
    file = tmp_path / "weights.pth"
    cached = tmp_path / "hub" / "checkpoints" / "tiny-0123abcd.pth"
    cached.parent.mkdir(parents=True)
    for weights, path in ((str(file), file), ("imagenet", cached)):
        torch.save(source.state_dict(), path)
        backbone = Backbone("tiny")
        model.load_weights(backbone, "tiny", weights)
        assert same_bits(dict(backbone.state_dict()), dict(source.state_dict()))
        assert not any(parameter.requires_grad for parameter in backbone.parameters())
        path.unlink()


def test_weights_of_another_architecture_are_named(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(small_backbone().state_dict(), path)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: not the weights of this --arch"):
        model.load_weights(Backbone("tiny"), "tiny", str(path))


@pytest.mark.parametrize("case", ["missing", "hostile", "text"])
def test_a_file_that_is_unsafe_to_load_is_named(tmp_path, case):
    path = tmp_path / "file.pth"
    UNSAFE_FILES[case](path)
    for load in (
        lambda: model.load_weights(Backbone("tiny"), "tiny", str(path)),
        lambda: model.load_checkpoint(path),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: n"):
            load()
    assert not (tmp_path / "trace").exists()


# ---------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A classifier, and the checkpoint that it was saved in."""
    torch.manual_seed(0)
    head = Head(48, hidden_units=6, num_outputs=4, num_classes=3, dropout=0.25)
    head.standardize_by(torch.rand(48), torch.rand(48))
    classifier = Classifier(
        backbone_of("tiny"),
        head,
        arch="tiny",
        class_to_idx={"1": 0, "10": 1, "2": 2},
        means=[0.1, 0.2, 0.3],
        stds=[0.4, 0.5, 0.6],
        image_size=224,
        temperature=0.75,
        detector=detector_of(6),
        names={"1": "rose", "10": "10", "2": "ひ \udcff"},
        history={"epoch": 2, "metrics": {"valid_accuracy": 0.5}, "arguments": {"seed": 1}},
    )
    path = tmp_path_factory.mktemp("saved") / "new folder" / "checkpoint.pth"
    model.save_checkpoint(path, classifier.eval())
    return classifier, path


def test_a_loaded_checkpoint_gives_the_same_logits(saved):
    classifier, path = saved
    loaded = model.load_checkpoint(path)
    images = random_images(2, 3, 64, 64)
    with torch.inference_mode():
        for output, expected in zip(loaded(images), classifier(images), strict=True):
            assert torch.equal(output, expected) and len(output) == 2
    for name in (
        "arch",
        "class_to_idx",
        "means",
        "stds",
        "image_size",
        "temperature",
        "names",
        "history",
    ):
        assert getattr(loaded, name) == getattr(classifier, name)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_a_checkpoint_holds_plain_types_under_the_documented_names(saved):
    content = torch.load(saved[1], weights_only=True)
    state = content.pop("state_dict")
    assert same_bits(dict(state), dict(saved[0].state_dict()))
    assert {name for name in state if name.startswith("detector.")} == {
        "detector.whitening",
        "detector.means",
        "detector.calibration",
    }
    assert content == {
        "format_version": model.FORMAT_VERSION,
        "arch": "tiny",
        "hidden_units": 6,
        "num_outputs": 4,
        "dropout": 0.25,
        "class_to_idx": {"1": 0, "10": 1, "2": 2},
        "means": [0.1, 0.2, 0.3],
        "stds": [0.4, 0.5, 0.6],
        "image_size": 224,
        "preprocessing_version": utils.PREPROCESSING_VERSION,
        "resize": 256,
        "max_aspect": utils.MAX_ASPECT,
        "regions": [list(region) for region in REGIONS],
        "num_scales": 1,
        "feature_layers": [1, 4],
        "temperature": 0.75,
        "names": {"1": "rose", "10": "10", "2": "ひ \udcff"},
        "epoch": 2,
        "metrics": {"valid_accuracy": 0.5},
        "arguments": {"seed": 1},
    }


# What a program with another setting may have written.
OTHER_SETTINGS = {
    "preprocessing_version": [utils.PREPROCESSING_VERSION + 1, None, []],
    "resize": [224],
    "max_aspect": [2],
    "num_scales": [2],
    "feature_layers": [[1, 3], [], None],
    "regions": [
        [list(region) for region in REGIONS[:-1]],
        [*map(list, REGIONS), [0.1, 0.4, 0.5]],
        [[0, 0, 1]] * 6,
        "text",
        None,
    ],
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_a_checkpoint_of_other_settings_has_to_be_trained_again(saved, tmp_path, name):
    content, path = torch.load(saved[1], weights_only=True), tmp_path / "other.pth"
    for value in OTHER_SETTINGS[name]:
        torch.save(changed(content, **{name: value}), path)
        with pytest.raises(UserError) as error:
            model.load_checkpoint(path)
        expected = f"{path}: trained by a program with other {name}; train again"
        assert str(error.value) == expected


@pytest.mark.parametrize("region", [(0.1, 0.4, 0.5), (0.25, 0.25, 0.5)], ids=["side", "middle"])
def test_an_appended_region_gives_a_training_and_a_refusal_of_old_checkpoints(
    call, images, tmp_path, region
):
    flags = ("--data_dir", images, "--output_cat", 4, "--arch", "tiny", "--weights", "none")
    flags += ("--epochs", 1, "--no_report", "--cache_dir", tmp_path / "cache", "--save_dir")
    old, new = tmp_path / "old.pth", tmp_path / "new.pth"
    assert call("train.py", *flags, old).returncode == 0
    view = random_views(1, 3, 224, 224).numpy()
    probs, _ = model.load_checkpoint(old).predict_views(view)
    REGIONS.append(region)
    try:
        with pytest.raises(UserError, match="old.pth: trained by .* other regions; train again$"):
            model.load_checkpoint(old)
        assert call("train.py", *flags, new).returncode == 0
        classifier = model.load_checkpoint(new)
        others, _ = classifier.predict_views(view)
        assert heat_map(classifier, view[0], "1").shape == (112, 112)
    finally:
        REGIONS.pop()
    assert not np.allclose(probs, others, atol=1e-6)
    with pytest.raises(UserError, match="new.pth: trained by .* other regions; train again$"):
        model.load_checkpoint(new)


def changed(content, **changes):
    return {**content, **changes}


INVALID_CHECKPOINTS = {
    "newer": (lambda c: changed(c, format_version=model.FORMAT_VERSION + 1), "newer"),
    "only weights": (lambda c: c["state_dict"], "not a"),
    "list": (lambda c: [c], "not a"),
}
INVALID_VALUES = {
    "arch": ["vgg99", None, ("vgg13",), ["vgg13"]],
    "class_to_idx": [
        {},
        None,
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
        {"1": 0, "10": 1, "\ud800": 2},
    ],
    "names": [None, [], {"3": "rose"}, {"1": 5}, {"1": None}, {1: "rose"}, {"1": "\ud800"}],
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
    "image_size": [0, 32, 225, 2**20, 224.0, "224", None],
    "state_dict": [None, [], {}, "text", {1: 2}],
    "format_version": [None, "3", 3.0, math.nan, [3], True, 0, -1],
    "epoch": [],
    "metrics": [],
    "arguments": [None, [], "seed"],
}
for name, values in INVALID_VALUES.items():
    word = "not a" if name == "format_version" else "damaged"
    INVALID_CHECKPOINTS[f"no {name}"] = (
        lambda c, name=name: {key: c[key] for key in c if key != name},
        word,
    )
    for value in values:
        INVALID_CHECKPOINTS[f"{name} {value!r:.40}"] = (
            lambda c, name=name, value=value: changed(c, **{name: value}),
            word,
        )
for name in ("backbone.features.3.weight", "head.layers.0.weight"):
    for case, (change, _) in INVALID_TENSORS.items():
        INVALID_CHECKPOINTS[f"{name} {case}"] = (
            lambda c, name=name, change=change: changed(
                c, state_dict=changed(c["state_dict"], **{name: change(c["state_dict"][name])})
            ),
            "damaged",
        )


for values in ([[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [-1.0, 1.0]]):
    INVALID_CHECKPOINTS[f"calibration {values}"] = (
        lambda c, values=values: changed(
            c, state_dict=changed(c["state_dict"], **{"detector.calibration": torch.tensor(values)})
        ),
        "damaged",
    )


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("case", INVALID_CHECKPOINTS)
def test_an_invalid_checkpoint_is_named(saved, tmp_path, case):
    change, word = INVALID_CHECKPOINTS[case]
    path = tmp_path / "invalid.pth"
    torch.save(change(torch.load(saved[1], weights_only=True)), path)
    with pytest.raises(UserError, match=re.escape(str(path))) as error:
        model.load_checkpoint(path)
    assert word in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(saved, tmp_path, share):
    path = tmp_path / "truncated.pth"
    path.write_bytes(saved[1].read_bytes())
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(UserError, match=re.escape(str(path))):
        model.load_checkpoint(path)
