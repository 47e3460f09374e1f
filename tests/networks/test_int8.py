"""networks.int8: layers in 8-bit integers compute what the same layers in float32 do."""

import copy
import sys

import numpy as np
import pytest
import torch
from conftest import assert_error, small_backbone
from torch import nn

import utils
from model import Backbone, fast_copy, has_int8, load_weights
from networks import weights
from networks.int8 import IntegerLayers, replace_layers
from system.messages import UserError

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package, reason=f"integers need {package}: pip install it")
CPU = torch.device("cpu")


def layers_of() -> nn.Sequential:
    """Make convolutions with random weights, and two max-poolings."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(24, 40, 3, padding=1), nn.ReLU()),
    ).requires_grad_(False)


def inputs(count: int = 5) -> torch.Tensor:
    return torch.rand(count, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 3 - 1


def ranges_of(layers: nn.Sequential, x: torch.Tensor) -> list[float]:
    """Return the lowest and the highest input, and the highest output of each ReLU."""
    ranges = [x.min().item(), x.max().item()]
    for layer in layers:
        x = layer(x)
        ranges += [x.max().item()] if isinstance(layer, nn.ReLU) else []
    return ranges


def relative(difference: torch.Tensor, values: torch.Tensor) -> float:
    return (difference.norm() / values.norm()).item()


def test_outputs_agree_up_to_rounding():
    layers, x = layers_of(), inputs()
    lowest, *highest = ranges_of(layers, x)
    expected, actual = layers(x), IntegerLayers(list(layers), lowest, highest)(x)
    assert actual.shape == expected.shape and actual.dtype == torch.float32
    assert 0.001 < relative(actual - expected, expected) < 0.03
    assert len(actual.unique()) <= 256  # 8 bits


def test_a_channel_with_small_weights_has_a_scale_of_its_own():
    layers, x = layers_of(), inputs()
    layers[0].weight[5] *= 1e-3
    layers[0].bias[5] = 0.5
    layers[0].weight[6] = 0  # and one of zeros
    layers[0].bias[6] = 0.25
    lowest, *highest = ranges_of(layers[:2], x)
    expected, actual = layers[:2](x), IntegerLayers(list(layers[:2]), lowest, highest)(x)
    step = highest[-1] / 255
    assert (actual - expected).abs().max() < 2.5 * step


def test_the_same_bits_follow_in_every_batch_and_with_every_number_of_threads():
    layers, x, threads = layers_of(), inputs(), torch.get_num_threads()
    lowest, *highest = ranges_of(layers, x)
    expected = IntegerLayers(list(layers), lowest, highest)(x)
    try:
        torch.set_num_threads(1)
        alone = IntegerLayers(list(layers), lowest, highest)
        assert torch.equal(torch.cat([alone(image[None]) for image in x]), expected)
    finally:
        torch.set_num_threads(threads)


def test_values_above_the_highest_become_the_highest():
    layers, x = layers_of(), inputs()
    lowest, *highest = ranges_of(layers, x)
    highest[-1] /= 2
    actual = IntegerLayers(list(layers), lowest, highest)(x)
    assert actual.max().item() == pytest.approx(highest[-1], rel=1e-5)
    assert actual.min().item() == 0


def test_blocks_are_replaced_and_other_layers_stay():
    layers, x = layers_of(), inputs()
    replaced = copy.deepcopy(layers)
    replace_layers(replaced, [(0, 5), (6, 8)], ranges_of(layers, x))
    kinds = [type(layer).__name__ for layer in replaced]
    integers, nothing = "IntegerLayers", "Identity"
    assert kinds == [integers, *[nothing] * 4, "MaxPool2d", integers, nothing]
    ranges = ranges_of(layers, x)
    alone = IntegerLayers(list(layers[6:]), 0, ranges[-2:])
    maps = layers[:6](x)
    assert torch.equal(replaced[6](maps), alone(maps))
    for end in (5, 8):  # as the stages of a backbone
        expected = layers[:end](x)
        assert relative(replaced[:end](x) - expected, expected) < 0.03


def test_features_of_photographs_agree(flowers_dir, vgg16_weights):
    backbone = Backbone("vgg16")
    load_weights(backbone, "vgg16", str(vgg16_weights))
    assert has_int8(backbone, utils.MEANS, utils.STDS)
    assert not has_int8(backbone, utils.MEANS, [0.2, 0.2, 0.2])
    assert not has_int8(small_backbone(), utils.MEANS, utils.STDS)
    paths = sorted((flowers_dir / "valid").glob("*/*"))[::34]
    views = utils.normalize(np.stack([utils.load_plain_view(path, 160) for path in paths]))
    with torch.inference_mode():
        actual = fast_copy(backbone, CPU, torch.int8)(views)
        highest = [views.max().item()]
        for layer in backbone.features:
            if isinstance(layer, nn.ReLU):
                layer.register_forward_hook(lambda _, __, y: highest.append(y.max().item()))
        expected = backbone(views)
    assert len(paths) == 5 and actual.shape == expected.shape
    assert relative(actual - expected, expected) < 0.06
    lowest, *stored = weights.VGG16_RANGES
    assert views.min() > lowest - 0.01
    for one, other in zip(highest, stored, strict=True):  # of other photographs
        assert 0.4 < one / other < 1.5


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="^--precision int8 needs the packages onnx and onnx"):
        IntegerLayers(list(layers_of()), 0, [1, 1, 1, 1])


def test_what_does_not_go_with_integers_is_said(call, images, trained):
    flags = ("--data_dir", images, "--output_cat", 4, "--precision", "int8")
    done = call("train.py", *flags, "--device", "gpu")
    assert_error(done, "--precision int8 goes without --device gpu")
    for other in (["--weights", "none"], ["--weights", "none", "--check"], ["--arch", "vgg13"]):
        done = call("train.py", *flags, *other, "--weights", "none")
        assert_error(done, "--precision int8 goes with --arch vgg16, --weights imagenet, and")
    path = trained.checkpoint
    one = next(images.rglob("*.jpg"))
    flags = ("--input", one, "--checkpoint", path, "--precision", "int8")
    for more in ([], ["--format", "csv"]):
        done = call("predict.py", *flags, *more)
        assert_error(done, "--precision int8 goes with --arch vgg16, --weights imagenet, and")
    assert_error(call("predict.py", *flags, "--heatmap", "h.png"), "--heatmap goes without")
