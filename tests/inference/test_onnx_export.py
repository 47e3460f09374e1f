"""inference.onnx_export: the ONNX file, its outputs, and predict.py's --to_onnx and --int8."""

import contextlib
import io
import json
import logging
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT, detector_of, draw, same_bits, small_backbone
from torch import nn

import predict
import utils
from inference import onnx_export
from inference.onnx_export import (
    ImagesToProbabilities,
    export,
    export_onnx,
    largest_difference,
    predict_all,
)
from inference.onnx_model import OnnxModel
from model import FORMAT_VERSION, Backbone, Classifier, Head, load_checkpoint, load_weights
from networks.novelty import NOVELTY_LIMIT
from system.messages import UserError

MEANS, STDS = [0.4, 0.45, 0.5], [0.25, 0.3, 0.2]  # neither the default nor the checkpoint's
SIZE = 64  # of images, in pixels
UNUSUAL = os.fsdecode(b"\xff")  # a folder's name that is not text
CLASSES = {"b": 1, "location": 0, UNUSUAL: 2}  # see OTHER_FILE of onnx_model.py
NAMES = {"b": "rose", "location": "rose", UNUSUAL: "ü"}


def small_classifier(backbone=None, **changes) -> Classifier:
    """Make a classifier without any default value; its predictions differ from image to image."""
    torch.manual_seed(0)
    backbone = backbone or small_backbone()
    head = Head(backbone.num_features, 16, num_outputs=5, num_classes=3, dropout=0.5)
    head.standardize_by(
        torch.full([backbone.num_features], 0.5), torch.full([backbone.num_features], 0.3)
    )
    attributes = {"arch": "vgg13", "class_to_idx": CLASSES, "names": NAMES, "image_size": SIZE}
    attributes |= {"means": MEANS, "stds": STDS, "temperature": 0.25, "detector": detector_of(16)}
    return Classifier(backbone, head, **attributes | changes).eval()


def module_of(classifier: nn.Module) -> ImagesToProbabilities:
    """Return the module that is exported of a classifier."""
    has_novelty = classifier.detector is not None
    return ImagesToProbabilities(classifier, classifier.means, classifier.stds, has_novelty)


def tiny_module(classifier: nn.Module) -> ImagesToProbabilities:
    """Return a module for images of 4 x 4 pixels, which is exported faster than a network."""
    return ImagesToProbabilities(classifier, [0.5] * 3, [0.25] * 3, False)


def views(count: int = 3) -> np.ndarray:
    """Make images of different kinds: (count, 3, SIZE, SIZE) uint8."""
    images = [np.asarray(draw(kind % 4, kind, SIZE, SIZE)) for kind in range(count)]
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


@pytest.fixture(scope="session")
def small(make_once):
    """A small classifier, and the file that it was exported to."""
    classifier = small_classifier()

    def make(folder: Path) -> None:
        with torch.inference_mode():  # as in a prediction
            [_] = export(classifier, folder / "new folder" / "model.onnx", [])

    return classifier, make_once("small ONNX", make) / "new folder" / "model.onnx"


def metadata_of(path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def difference(outputs, others) -> float:
    """Return the largest difference between two lists of arrays, or tensors."""
    pairs = zip(map(np.asarray, outputs), map(np.asarray, others), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def outputs_of(path, images):
    """Return what onnxruntime computes of images, four at a time."""
    model = OnnxModel(path)
    outputs = [model.predict_views(images[i : i + 4]) for i in range(0, len(images), 4)]
    return [np.concatenate(arrays) for arrays in zip(*outputs, strict=True)]


def differences_in(line: str) -> list[float]:
    """Parse the largest differences in probability and novelty."""
    number = "([0-9.e+-]+)"
    pattern = f"largest difference in probability: {number}, in novelty: {number}"
    return [float(text) for text in re.fullmatch(pattern, line).groups()]


# ---------------------------------------------------------------- the module


def test_the_module_is_a_copy_in_float32_and_the_classifier_stays_as_it_is():
    classifier = small_classifier().train()
    classifier.backbone.to(torch.bfloat16, memory_format=torch.channels_last)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    module = module_of(classifier)
    with torch.inference_mode():
        outputs = module(torch.from_numpy(views()))
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}
    assert all(tensor.is_contiguous() for tensor in module.state_dict().values())
    assert same_bits(classifier.state_dict(), before)
    assert classifier.training and classifier.backbone.features[0].weight.dtype == torch.bfloat16
    classifier.eval().backbone.float()  # weights that were rounded stay rounded
    assert difference(outputs, classifier.predict_views(views())) < 1e-3


# ---------------------------------------------------------------- predictions of the file


def test_a_file_predicts_as_its_model_does(small):
    """Four images, and then one."""
    classifier, path = small
    num_weights = sum(tensor.numel() for tensor in classifier.state_dict().values())
    assert path.stat().st_size < 1.3 * 4 * num_weights  # none is stored twice
    probs, novelty = outputs_of(path, views(5))
    assert probs.shape == (5, 3) and novelty.shape == (5,)
    assert probs.dtype == novelty.dtype == np.float32
    assert difference((probs, novelty), classifier.predict_views(views(5))) < 1e-3


def test_a_file_for_large_images_predicts_as_its_model_does(tmp_path, capfd, recwarn):
    """They pass through the network at two scales. Nothing is printed, logged, or warned of."""
    classifier = small_classifier(image_size=256)
    [_] = export(classifier, tmp_path / "large.onnx", [])
    images = np.stack([np.asarray(draw(k, k, 256, 256)) for k in range(3)])
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    outputs = outputs_of(tmp_path / "large.onnx", images)
    assert capfd.readouterr() == ("", "") and not recwarn.list
    assert logging.root.manager.disable == logging.NOTSET
    assert difference(outputs, classifier.predict_views(images)) < 1e-3


def test_the_largest_difference_counts_a_missing_value():
    assert largest_difference(np.array([0.5, 0.25]), np.array([0.5, 0.5])) == 0.25
    missing = np.array([np.nan, 0.25])
    assert largest_difference(missing, missing) == 0  # without a detector
    assert math.isnan(largest_difference(missing, np.array([0.5, 0.25])))


@pytest.mark.parametrize(("output", "change"), [(0, 2 * onnx_export.MAX_DIFFERENCE), (1, np.nan)])
def test_outputs_that_differ_are_an_error(small, monkeypatch, output, change):
    def changed(predictor, views):
        outputs = predict_all(predictor, views)
        if isinstance(predictor, OnnxModel):
            outputs[output][-1] += change
        return outputs

    monkeypatch.setattr(onnx_export, "predict_all", changed)
    monkeypatch.setattr(onnx_export, "export_onnx", lambda *args: None)  # the file is there
    with pytest.raises(UserError, match=f"^{re.escape(str(small[1]))}: its outputs differ"):
        list(export(*small, list(views())))


def photographed(flowers_dir, vgg16_weights):
    """Return a classifier with the weights of ImageNet, and a photograph of each category."""
    backbone = Backbone("vgg16")
    load_weights(backbone, "vgg16", str(vgg16_weights))
    paths = sorted((flowers_dir / "test").glob("*/*"))
    photographs = [utils.load_plain_view(path) for path in paths[:: len(paths) // 17][:17]]
    attributes = {"means": utils.MEANS, "stds": utils.STDS, "image_size": utils.CROP}
    classifier = small_classifier(backbone, arch="vgg16", detector=None, **attributes)
    with torch.inference_mode():
        features = torch.cat([backbone(utils.normalize(view[None])) for view in photographs])
        flat = features.flatten(0, 1)
        classifier.head.standardize_by(flat.mean(0), flat.std(0))
    assert len(photographs) == 17
    return classifier, photographs


def test_integers_keep_the_predictions_for_photographs(flowers_dir, vgg16_weights, tmp_path):
    """Calibrated on 8 photographs, and compared on 9 others."""
    classifier, photographs = photographed(flowers_dir, vgg16_weights)
    path = tmp_path / "int8.onnx"
    _, kept, largest = export(classifier, path, photographs[:8], is_int8=True)
    assert kept == "int8: 8 of 8 images keep their most likely category"
    assert differences_in(largest)[0] < 0.1
    model = OnnxModel(path)
    assert model.precision == "int8" and metadata_of(path)["precision"] == "int8"
    probs, _ = predict_all(model, photographs[8:])
    expected, _ = predict_all(classifier, photographs[8:])
    assert expected.std(0).min() > 0.05  # the predictions differ
    assert 1e-5 < np.abs(probs - expected).mean() < 0.02
    assert path.stat().st_size < 22e6  # in 32 bits it has 61 MB
    assert_nothing_of_this_machine(path)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    weights = {name: tensor for name, tensor in tensors.items() if tensor.dtype == np.int8}
    weights = {name: tensor for name, tensor in weights.items() if tensor.ndim == 4}
    assert len(weights) == 13 and max(np.abs(w).max() for w in weights.values()) <= 64  # 7 bits
    scales = [tensors[name.replace("_quantized", "_scale")].shape for name in weights]
    assert scales == [(len(weight),) for weight in weights.values()]  # one for each channel
    path.unlink()


def assert_nothing_of_this_machine(path) -> None:
    """Assert that a file names no folder of the program, its packages, its user or the file."""
    content = path.read_bytes()
    for word in (ROOT, Path(torch.__file__).parent, Path.home(), path.parent, Path(sys.prefix)):
        assert os.fsencode(word) not in content
    for word in (b"site-packages", b"model.py", b"stack_trace", b"doc_string", b"File "):
        assert word not in content


# ---------------------------------------------------------------- content of the file


def test_a_file_declares_its_input_and_output_in_float32_and_stores_16_bits(small):
    graph = onnx.load(small[1]).graph
    declared = []
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        shape = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
        declared.append((value.name, kind.elem_type, shape))
    assert declared == [
        ("images", onnx.TensorProto.UINT8, ["N", 3, SIZE, SIZE]),
        ("probabilities", onnx.TensorProto.FLOAT, ["N", 3]),
        ("novelty", onnx.TensorProto.FLOAT, ["N"]),
    ]
    kinds = {"FLOAT": 0, "FLOAT16": 0, "INT64": 0}  # INT64 for axes
    for tensor in graph.initializer:
        kinds[onnx.TensorProto.DataType.Name(tensor.data_type)] += np.prod(tensor.dims)
    assert kinds["FLOAT16"] > 5 * kinds["FLOAT"] > 0  # the large ones have 16 bits


def test_a_file_is_complete_and_holds_nothing_of_this_machine(small):
    path = small[1]
    assert os.listdir(path.parent) == ["model.onnx"]
    onnx.checker.check_model(str(path), full_check=True)
    assert_nothing_of_this_machine(path)
    graph = onnx.load(path).graph
    assert "Conv" in {node.op_type for node in graph.node}
    for item in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        assert not item.doc_string and not item.metadata_props


def test_a_second_export_gives_the_same_bytes(tmp_path):
    torch.manual_seed(0)
    module = tiny_module(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten()))
    for name in ("first.onnx", "second.onnx"):
        export_onnx(module, 4, tmp_path / name, {"text": "b", "number": 1})
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


# ---------------------------------------------------------------- errors


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("old")
    path = tmp_path / "file" / "model.onnx"
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: cannot write it: [A-Z]"):
        export_onnx(tiny_module(nn.Flatten()), 4, path, {})
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


class Eigenvalues(nn.Module):
    """A network with an operator that ONNX lacks."""

    def forward(self, images):
        return torch.linalg.eig(images.float())[0].real


def test_a_network_that_cannot_be_exported_is_named_in_a_line(tmp_path):
    path = tmp_path / "model.onnx"
    start = f"^{re.escape(str(path))}: the ONNX exporter of torch failed: [A-Za-z]+: "
    with pytest.raises(UserError, match=start) as error:
        export_onnx(tiny_module(Eigenvalues()), 4, path, {})
    assert len(str(error.value)) < 500 + len(str(path))
    assert os.listdir(tmp_path) == []


def test_a_missing_package_of_the_export_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="onnx and onnxscript: pip install onnx onnxscript$"):
        export_onnx(tiny_module(nn.Flatten()), 4, tmp_path / "model.onnx", {})
    assert os.listdir(tmp_path) == []


def test_few_images_to_calibrate_on_give_a_warning(small, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "export_onnx", lambda *args: None)  # the file is there
    for count, is_warned in ((8, False), (7, True)):
        list(export(*small, list(views(count)), is_int8=True))
        assert ("calibrated on 7 images" in capsys.readouterr().err) == is_warned


# ---------------------------------------------------------------- the command line


@pytest.fixture(scope="session")
def by_command(checkpoint, images, make_once) -> Path:
    """A folder with the file of a checkpoint, its names, and what the command printed."""

    def make(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        names = folder / "names.json"
        names.write_text(json.dumps({"2": "gänseblümchen", "z": "not a category"}))
        flags = ["--checkpoint", checkpoint, "--to_onnx", folder / "model.onnx"]
        flags += ["--category_names", names, "--means", *MEANS, "--stds", *STDS]
        flags += ["--precision", "bfloat16"]  # not of the file
        flags += ["--input", images / "test" / "2" / "test_0.jpg"]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            predict.main([*map(str, flags)])
        (folder / "printed.txt").write_text(printed.getvalue())

    return make_once("checkpoint ONNX", make)


def test_the_flag_writes_a_file_and_compares_an_image(by_command):
    saved, same, largest = (by_command / "printed.txt").read_text().splitlines()
    assert saved == f"saved {by_command / 'model.onnx'}"
    assert same == "float32: 1 of 1 images keep their most likely category"
    assert max(differences_in(largest)) < 1e-3  # from 16 bits


def test_the_file_of_a_checkpoint_describes_its_input_and_categories(by_command, checkpoint):
    metadata = metadata_of(by_command / "model.onnx")
    assert json.loads(metadata["categories"]) == ["1", "10", "2", "x y"]
    assert json.loads(metadata["names"]) == ["1", "10", "gänseblümchen", "x y"]
    assert metadata["resize"] == "256" and metadata["image_size"] == "224"
    for key, number in utils.preprocessing(224).items():
        assert json.loads(metadata[key]) == number
    assert json.loads(metadata["novelty_limit"]) == NOVELTY_LIMIT
    assert metadata["arch"] == "tiny"
    assert metadata["format_version"] == str(FORMAT_VERSION)
    assert json.loads(metadata["means"]) == MEANS
    assert json.loads(metadata["stds"]) == STDS
    temperature = load_checkpoint(checkpoint).temperature
    assert json.loads(metadata["temperature"]) == temperature
    assert metadata["precision"] == "float32"
