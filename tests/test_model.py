"""model: the backbone, the head, the classifier, heat maps, weights and checkpoints."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from conftest import backbone_of, detector_of, same_bits, small_backbone
from torch import nn
from torchvision import models

import model
import utils
from model import REGIONS, Backbone, Classifier, Head, fast_copy, heat_map, num_regions
from networks.heat_maps import hires_cam
from networks.vgg import pool_regions
from system.messages import UserError

CPU = torch.device("cpu")


def random_images(*shape) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def random_views(*shape) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).byte()


# ---------------------------------------------------------------- the backbone


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
        expected = [pool_regions(first, REGIONS), pool_regions(second, REGIONS)]
    assert len(backbone.features) == fifth
    assert features.shape == (2, len(REGIONS), backbone.num_features) == (2, 6, 2048)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.square(), torch.cat(expected, 2).square())
    torch.testing.assert_close(maps, expected_maps)


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


def test_the_fast_copy_of_a_backbone_agrees_with_it():
    backbone = backbone_of("vgg13")
    before = backbone.digest()
    images = random_images(2, 3, 32, 48)
    with torch.inference_mode():
        expected = backbone(images)
        fast = fast_copy(backbone, CPU, torch.float32)
        torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-4)
        rounded = fast_copy(backbone, CPU, torch.bfloat16)
        features = rounded(images)
    assert rounded.features[0].weight.dtype == torch.bfloat16
    assert features.dtype == torch.float32 and not torch.equal(features, expected)
    assert nn.functional.cosine_similarity(features, expected, dim=2).min() > 0.999
    assert backbone.digest() == before


# ---------------------------------------------------------------- the head


def test_the_head_standardizes_and_cuts_off_spare_outputs():
    head = Head(3, hidden_units=5, num_outputs=7, num_classes=4, dropout=0.5).eval()
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 0.5, 0.0])
    head.standardize_by(mean, std)
    features = torch.tensor([[3.0, 2.5, 3.0]])
    logits = head(features)
    assert logits.shape == (1, 4)
    assert torch.isfinite(logits).all()
    standardized = torch.tensor([[1.0, 1.0, 0.0]])
    torch.testing.assert_close(logits, head.layers(standardized)[:, :4])
    nn.init.normal_(head.linear.weight)
    _, both = head.image_outputs(features[None])
    torch.testing.assert_close(both, logits + head.linear(standardized)[:, :4])


def test_the_head_drops_units_in_training_only():
    head = Head(3, hidden_units=100, num_outputs=2, num_classes=2, dropout=0.5)
    features = torch.ones(1, 3)
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))


# ---------------------------------------------------------------- the classifier


def small_classifier(**changes) -> Classifier:
    """Make a classifier of 3 categories with a small backbone."""
    torch.manual_seed(0)
    head = Head(384, hidden_units=8, num_outputs=3, num_classes=3, dropout=0.5)
    nn.init.normal_(head.linear.weight, std=0.01)
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
        features = classifier.backbone(images)
        linear = classifier.head.linear(classifier.head.standardize(features))
        logits = (classifier.head(features) + linear).mean(1)
        expected = (logits * 4).softmax(1)
    probs, novelty = classifier.predict_views(views)
    np.testing.assert_allclose(probs, expected, rtol=1e-5)
    assert probs.dtype == np.float32
    assert np.isnan(novelty).all()  # without a detector


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
        logits = classifier.head(features) + classifier.head.linear(standardized)
        expected = classifier.detector(hidden, logits.mean(1))
    np.testing.assert_allclose(novelty, expected, rtol=1e-5)
    assert np.array_equal(
        novelty, small_classifier(detector=detector_of(8), temperature=9.0).predict_views(views)[1]
    )


def test_probabilities_that_are_not_finite_are_an_error():
    classifier = small_classifier(temperature=1e-45)
    with pytest.raises(UserError, match="^no finite probabilities: .*--means"):
        classifier.predict_views(random_views(1, 3, 32, 32))


# ---------------------------------------------------------------- heat maps


@pytest.mark.parametrize(("size", "sides"), [(32, [8]), (256, [64, 32])])
def test_the_heat_is_that_of_a_categorys_logit_at_all_scales(monkeypatch, size, sides):
    classifier, view, calls = small_classifier(), random_views(3, size, size), []
    monkeypatch.setattr(model, "hires_cam", lambda *both: calls.append(both) or hires_cam(*both))
    with torch.inference_mode():  # as in a prediction
        heat = heat_map(classifier, view, "b")
        [(maps, logit_of)] = calls
        image = utils.normalize(view[None], classifier.means, classifier.stds)
        logit = classifier.head.image_outputs(classifier.backbone(image))[1][0, 1]
        assert logit_of(maps).item() == pytest.approx(logit.item(), rel=1e-5)
        assert not torch.equal(heat, heat_map(classifier, view, "a"))
    assert [scale.shape[2:] for scale in maps] == [(side, side) for side in sides]
    assert heat.shape == maps[0].shape[2:] and (heat.min(), heat.max()) == (0, 1)


# ---------------------------------------------------------------- weights


def test_weights_are_random_or_of_imagenet_or_of_a_file(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = "https://example.invalid/tiny-0123abcd.pth"
    with_url = dataclasses.replace(model.ARCHITECTURES[tiny], url=url)
    monkeypatch.setitem(model.ARCHITECTURES, tiny, with_url)
    source = backbone_of(tiny, seed=1)
    assert not same_bits(dict(backbone_of(tiny, seed=2).state_dict()), dict(source.state_dict()))
    file = tmp_path / "weights.pth"
    cached = tmp_path / "hub" / "checkpoints" / "tiny-0123abcd.pth"
    cached.parent.mkdir(parents=True)
    for weights, path in ((str(file), file), ("imagenet", cached)):
        torch.save(source.state_dict(), path)
        backbone = Backbone(tiny)
        model.load_weights(backbone, tiny, weights)
        assert same_bits(dict(backbone.state_dict()), dict(source.state_dict()))
        path.unlink()


# ---------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A classifier, and the checkpoint that it was saved in."""
    torch.manual_seed(0)
    head = Head(48, hidden_units=6, num_outputs=4, num_classes=3, dropout=0.25)
    head.standardize_by(torch.rand(48), torch.rand(48))
    classifier = Classifier(
        backbone_of(tiny),
        head,
        arch=tiny,
        class_to_idx={"1": 0, "10": 1, "2": 2},
        means=[0.1, 0.2, 0.3],
        stds=[0.4, 0.5, 0.6],
        image_size=224,
        temperature=0.75,
        detector=detector_of(6),
        names={"1": "rose", "10": "ひ \udcff"},
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
    names = ("arch", "class_to_idx", "means", "stds", "image_size", "temperature", "names")
    for name in (*names, "history"):
        assert getattr(loaded, name) == getattr(classifier, name)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_a_checkpoint_holds_plain_types_under_the_documented_names(saved):
    content = torch.load(saved[1], weights_only=True)
    state = content.pop("state_dict")
    assert same_bits(dict(state), dict(saved[0].state_dict()))
    detector = {"detector.whitening", "detector.means", "detector.calibration"}
    assert {name for name in state if name.startswith("detector.")} == detector
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
        "feature_layers": [5, 8],
        "temperature": 0.75,
        "names": {"1": "rose", "10": "ひ \udcff"},
        "epoch": 2,
        "metrics": {"valid_accuracy": 0.5},
        "arguments": {"seed": 1},
    }


# What a program with another setting may have written.
OTHER_SETTINGS = [
    ("preprocessing_version", utils.PREPROCESSING_VERSION + 1),
    ("resize", 224),
    ("max_aspect", 2),
    ("num_scales", 2),
    ("feature_layers", [1, 3]),
    ("regions", [list(region) for region in REGIONS[:-1]]),
]


@pytest.mark.parametrize(("name", "value"), OTHER_SETTINGS)
def test_a_checkpoint_of_other_settings_has_to_be_trained_again(saved, tmp_path, name, value):
    path = tmp_path / "other.pth"
    torch.save(torch.load(saved[1], weights_only=True) | {name: value}, path)
    with pytest.raises(UserError) as error:
        model.load_checkpoint(path)
    assert str(error.value) == f"{path}: trained by a program with other {name}; train again"


def test_an_appended_region_gives_a_training_and_a_refusal_of_old_checkpoints(train_tiny):
    REGIONS.append((0.1, 0.4, 0.5))
    try:
        done, path = train_tiny("--epochs", 1)
        assert done.returncode == 0, done.stderr
        classifier = model.load_checkpoint(path)
        assert heat_map(classifier, random_views(3, 224, 224), "1").shape == (28, 28)
    finally:
        REGIONS.pop()
    with pytest.raises(UserError, match="tiny.pth: trained by .* other regions; train again$"):
        model.load_checkpoint(path)


INVALID_VALUES = {
    "arch": ["vgg99", None, ["vgg13"]],
    "class_to_idx": [
        {},
        ["1", "10", "2"],
        {"1": 0, "10": 1, "2": 3},
        {"1": 0, "10": 1, "2": 1},
        {"1": 1, "10": 2, "2": 3},
        {"1": 0, "10": 1, 2: 2},
        {"1": 0, "10": 1, "2": 2.0},
        {"1": False, "10": True, "2": 2},
        {str(number): number for number in range(5)},  # there are 4 outputs
        {"1": 0, "10": 1, "\ud800": 2},
    ],
    "names": [[], {"3": "rose"}, {"1": None}, {"1": "\ud800"}],
    "hidden_units": [7, 0, 6.0, 10**30, "6"],
    "num_outputs": [5, 2, "4"],
    "dropout": [1.01, -0.01, math.nan, None],
    "temperature": [0, 9e-7, 1.1e6, math.nan, "1"],
    "means": [[0.1, 0.2], [0.1, 0.2, math.nan], [0.1, 0.2, 1.1e6], "123", None],
    "stds": [[0.1, 0.2], [0.1, 0.2, 0], [0.1, 0.2, 9e-7], None],
    "image_size": [32, 225, 224.0, None],
    "state_dict": [None, {}],
    "arguments": [None],
}
INVALID_VALUES = [(name, value) for name, values in INVALID_VALUES.items() for value in values]


@pytest.mark.parametrize(("name", "value"), INVALID_VALUES)
def test_a_checkpoint_with_an_invalid_value_is_named(saved, tmp_path, name, value):
    path = tmp_path / "invalid.pth"
    torch.save(torch.load(saved[1], weights_only=True) | {name: value}, path)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: damaged checkpoint: ") as error:
        model.load_checkpoint(path)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("head.layers.0.bias", [0.0] * 5 + [math.nan]),
        ("detector.calibration", [[0.0, 0.0], [1.0, 0.0]]),
        ("detector.calibration", [[0.0, 0.0], [-1.0, 1.0]]),
    ],
)
def test_a_checkpoint_with_invalid_tensors_is_named(saved, tmp_path, name, values):
    path = tmp_path / "invalid.pth"
    content = torch.load(saved[1], weights_only=True)
    content["state_dict"][name] = torch.tensor(values)
    torch.save(content, path)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: damaged checkpoint: "):
        model.load_checkpoint(path)


def test_a_checkpoint_that_lacks_a_value_is_named(saved, tmp_path):
    content = torch.load(saved[1], weights_only=True)
    for name in content:
        path = tmp_path / f"{name}.pth"
        torch.save({key: content[key] for key in content if key != name}, path)
        reason = "not a checkpoint" if name == "format_version" else "damaged checkpoint"
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {reason}"):
            model.load_checkpoint(path)


def test_a_checkpoint_of_another_or_a_newer_program_is_refused(saved, tmp_path):
    path = tmp_path / "other.pth"
    content = torch.load(saved[1], weights_only=True)
    others = [content | {"format_version": version} for version in ("1", 1.0, True, 0)]
    for other in (*others, [content], content["state_dict"]):
        torch.save(other, path)
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: not a checkpoint of this"):
            model.load_checkpoint(path)
    torch.save(content | {"format_version": model.FORMAT_VERSION + 1}, path)
    with pytest.raises(UserError, match="other.pth: its format, 3, is newer than this program's"):
        model.load_checkpoint(path)
