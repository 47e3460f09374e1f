"""inference.onnx_export: the ONNX file, its outputs, and predict.py's --to_onnx and --int8."""

import json
import logging
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    CATEGORIES,
    ROOT,
    assert_error,
    detector_of,
    draw,
    run,
    same_bits,
    small_backbone,
)
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
METADATA = {"text": "plain ü", "categories": ["ü", UNUSUAL, "a"], "number": 0.25}
METADATA |= {"names": ["ü", "unusual", "a"], "means": MEANS, "stds": STDS}
METADATA |= {"novelty_limit": 0.003, **utils.preprocessing(SIZE)}


def small_classifier(backbone=None, **changes) -> Classifier:
    """Make a classifier without any default value; its predictions differ from image to image."""
    torch.manual_seed(0)
    backbone = backbone or small_backbone()
    head = Head(backbone.num_features, 16, num_outputs=5, num_classes=3, dropout=0.5)
    head.standardize_by(
        torch.full([backbone.num_features], 0.5), torch.full([backbone.num_features], 0.3)
    )
    attributes = {"arch": "vgg13", "class_to_idx": {"b": 1, "x y": 0, "a": 2}, "image_size": SIZE}
    attributes |= {"means": MEANS, "stds": STDS, "temperature": 0.25, "detector": detector_of(16)}
    return Classifier(backbone, head, **attributes | changes).eval()


def module_of(classifier: nn.Module) -> ImagesToProbabilities:
    """Return the module that is exported of a classifier."""
    has_novelty = classifier.detector is not None
    return ImagesToProbabilities(classifier, classifier.means, classifier.stds, has_novelty)


def tiny_module(classifier=None) -> ImagesToProbabilities:
    """Return a module for images of 4 x 4 pixels, which is exported faster than a network."""
    classifier = classifier or nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2))
    return ImagesToProbabilities(classifier, [0.5] * 3, [0.25] * 3, False)


def views(count: int = 3) -> np.ndarray:
    """Make images of different kinds: (count, 3, SIZE, SIZE) uint8."""
    images = [np.asarray(draw(kind % 4, kind, SIZE, SIZE)) for kind in range(count)]
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


@pytest.fixture(scope="session")
def packages():
    """The packages that an export needs, without which these tests are skipped."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"the ONNX export needs {package}: pip install it")


@pytest.fixture(scope="module")
def exported(packages, tmp_path_factory):
    """A small classifier, and the file that it was exported to."""
    classifier = small_classifier()
    path = tmp_path_factory.mktemp("onnx") / "new folder" / "model.onnx"
    with torch.inference_mode():  # as in a prediction
        export_onnx(module_of(classifier), SIZE, path, METADATA)
    return classifier, path


def read(path):
    """Read a file with onnx."""
    import onnx

    return onnx.load(path)


def metadata_of(path) -> dict[str, str]:
    return {entry.key: entry.value for entry in read(path).metadata_props}


# ---------------------------------------------------------------- the module


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


def test_the_module_gives_the_classifiers_probabilities_and_novelty():
    classifier = small_classifier()
    expected = classifier.predict_views(views())
    with torch.inference_mode():
        assert difference(module_of(classifier)(torch.from_numpy(views())), expected) < 1e-5
    for name, plain in (("temperature", 1.0), ("means", utils.MEANS), ("stds", utils.STDS)):
        other = small_classifier(**{name: plain}).predict_views(views())
        assert difference(other, expected) > 1e-3  # so that a mistake in it would be noticed


def test_the_module_of_a_classifier_without_detector_gives_probabilities_only():
    classifier = small_classifier(detector=None)
    with torch.inference_mode():
        [probs] = module_of(classifier)(torch.from_numpy(views()))
    assert difference([probs], [classifier.predict_views(views())[0]]) < 1e-5


def test_the_module_is_a_copy_in_float32_and_the_classifier_stays_as_it_is():
    classifier = small_classifier().train()
    classifier.backbone.to(torch.bfloat16, memory_format=torch.channels_last)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    layouts = {name: (t.dtype, t.stride()) for name, t in classifier.state_dict().items()}
    module = module_of(classifier)
    with torch.inference_mode():
        outputs = module(torch.from_numpy(views()))
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}
    assert all(tensor.is_contiguous() for tensor in module.state_dict().values())
    assert same_bits(classifier.state_dict(), before)
    assert {name: (t.dtype, t.stride()) for name, t in classifier.state_dict().items()} == layouts
    assert classifier.training
    classifier.eval().backbone.float()  # weights that were rounded stay rounded
    assert difference(outputs, classifier.predict_views(views())) < 1e-5


# ---------------------------------------------------------------- predictions of the file


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_file_predicts_as_its_model_does(exported, count):
    classifier, path = exported
    probs, novelty = outputs_of(path, views(count))
    assert probs.shape == (count, 3) and novelty.shape == (count,)
    assert probs.dtype == novelty.dtype == np.float32
    assert difference((probs, novelty), classifier.predict_views(views(count))) < 1e-5


def test_a_file_for_large_images_predicts_as_its_model_does(packages, tmp_path):
    """They pass through the network at two scales."""
    classifier = small_classifier(image_size=256)
    metadata = METADATA | utils.preprocessing(256)
    export_onnx(module_of(classifier), 256, tmp_path / "large.onnx", metadata)
    images = np.stack([np.asarray(draw(k, k, 256, 256)) for k in range(3)])
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    outputs = outputs_of(tmp_path / "large.onnx", images)
    assert difference(outputs, classifier.predict_views(images)) < 1e-5


def test_the_largest_difference_counts_a_missing_value():
    assert largest_difference(np.array([0.5, 0.25]), np.array([0.5, 0.5])) == 0.25
    missing = np.array([np.nan, 0.25])
    assert largest_difference(missing, missing) == 0  # without a detector
    assert math.isnan(largest_difference(missing, np.array([0.5, 0.25])))


@pytest.mark.parametrize("change", [2 * onnx_export.MAX_DIFFERENCE, -0.25, np.nan])
@pytest.mark.parametrize("output", ["probability", "novelty"])
def test_outputs_that_differ_are_an_error(packages, tmp_path, monkeypatch, change, output):
    def changed(predictor, views):
        probs, novelty = predict_all(predictor, views)
        if isinstance(predictor, OnnxModel):
            (probs if output == "probability" else novelty)[-1] += change
        return probs, novelty

    monkeypatch.setattr(onnx_export, "predict_all", changed)
    path = tmp_path / "model.onnx"
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: its outputs differ"):
        list(export(small_classifier(), path, list(views())))


def test_imagenet_weights_predict_the_same_on_photographs(
    packages, flowers_dir, vgg16_weights, tmp_path
):
    backbone = Backbone("vgg16")
    load_weights(backbone, "vgg16", str(vgg16_weights))
    paths = sorted((flowers_dir / "test").glob("*/*"))
    paths = paths[:: len(paths) // 17][:17]  # of all categories
    photographs = [utils.load_plain_view(path) for path in paths]
    attributes = {"arch": "vgg16", "means": utils.MEANS, "stds": utils.STDS, "detector": None}
    classifier = small_classifier(backbone, image_size=utils.CROP, **attributes)
    with torch.inference_mode():
        batches = [np.stack(photographs[i : i + 4]) for i in range(0, len(photographs), 4)]
        features = torch.cat([backbone(utils.normalize(batch)) for batch in batches])
        flat = features.flatten(0, 1)
        classifier.head.standardize_by(flat.mean(0), flat.std(0))
        logits = classifier.head.image_logits(features)
        expected = (logits / classifier.temperature).softmax(1)
    assert len(photographs) == 17
    assert expected.std(0).min() > 0.05  # the predictions differ
    path = tmp_path / "model.onnx"
    saved, same, largest = export(classifier, path, photographs)
    assert saved == f"saved {path}"
    assert same == "float32: 17 of 17 images keep their most likely category"
    assert max(differences_in(largest)) < 1e-4
    outputs = predict_all(OnnxModel(path), photographs)
    assert difference(outputs[:1], [expected]) < 1e-4
    path.unlink()  # 61 MB


def test_integers_keep_the_predictions_for_photographs(
    packages, flowers_dir, vgg16_weights, tmp_path
):
    """Calibrated on 8 photographs, and compared on 9 others."""
    backbone = Backbone("vgg16")
    load_weights(backbone, "vgg16", str(vgg16_weights))
    paths = sorted((flowers_dir / "test").glob("*/*"))
    photographs = [utils.load_plain_view(path) for path in paths[:: len(paths) // 17][:17]]
    attributes = {"means": utils.MEANS, "stds": utils.STDS, "image_size": utils.CROP}
    classifier = small_classifier(backbone, arch="vgg16", **attributes)
    with torch.inference_mode():
        features = torch.cat([backbone(utils.normalize(view[None])) for view in photographs])
        flat = features.flatten(0, 1)
        classifier.head.standardize_by(flat.mean(0), flat.std(0))
    path = tmp_path / "int8.onnx"
    saved, kept, largest = export(classifier, path, photographs[:8], is_int8=True)
    assert kept == "int8: 8 of 8 images keep their most likely category"
    assert differences_in(largest)[0] < 0.1
    model = OnnxModel(path)
    assert model.precision == "int8" and metadata_of(path)["precision"] == "int8"
    probs, _ = predict_all(model, photographs[8:])
    expected, _ = predict_all(classifier, photographs[8:])
    assert expected.std(0).min() > 0.05  # the predictions differ
    assert 1e-5 < np.abs(probs - expected).mean() < 0.02
    assert path.stat().st_size < 22e6  # in 32 bits it has 61 MB
    from onnx import numpy_helper

    tensors = {t.name: numpy_helper.to_array(t) for t in read(path).graph.initializer}
    weights = {name: tensor for name, tensor in tensors.items() if tensor.dtype == np.int8}
    weights = {name: tensor for name, tensor in weights.items() if tensor.ndim == 4}
    for word in (ROOT, Path(torch.__file__).parent, Path.home(), path.parent):
        assert os.fsencode(word) not in path.read_bytes()
    assert len(weights) == 13 and max(np.abs(w).max() for w in weights.values()) <= 64  # 7 bits
    scales = [tensors[name.replace("_quantized", "_scale")].shape for name in weights]
    assert scales == [(len(weight),) for weight in weights.values()]  # one for each channel
    path.unlink()


# ---------------------------------------------------------------- content of the file


def declared(values):
    """Return the name, type and shape of each input or output."""
    types = [(value.name, value.type.tensor_type) for value in values]
    return [
        (name, kind.elem_type, [dim.dim_param or dim.dim_value for dim in kind.shape.dim])
        for name, kind in types
    ]


def test_a_file_declares_its_input_and_output_in_float32(exported):
    graph = read(exported[1]).graph
    assert declared(graph.input) == [("images", 2, ["N", 3, SIZE, SIZE])]  # 2: uint8
    outputs = [("probabilities", 1, ["N", 3]), ("novelty", 1, ["N"])]  # 1: float32
    assert declared(graph.output) == outputs
    types = {tensor.data_type for tensor in graph.initializer}
    assert types <= {1, 7}  # float32, and int64 for axes


def test_metadata_is_stored_as_text_or_json(exported):
    metadata = metadata_of(exported[1])
    assert metadata["text"] == "plain ü"
    assert json.loads(metadata["categories"]) == ["ü", UNUSUAL, "a"]
    assert json.loads(metadata["number"]) == 0.25
    assert metadata.keys() == METADATA.keys() | {"precision"}
    assert metadata["precision"] == "float32"


def test_a_file_is_complete_and_holds_nothing_of_this_machine(exported):
    import onnx

    path = exported[1]
    assert os.listdir(path.parent) == ["model.onnx"]
    onnx.checker.check_model(str(path), full_check=True)
    content = path.read_bytes()
    assert b"Conv" in content
    graph = read(path).graph
    for item in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        assert not item.doc_string and not item.metadata_props
    for word in (ROOT, Path(torch.__file__).parent, Path.home(), path.parent, Path(sys.prefix)):
        assert os.fsencode(word) not in content
    for word in (b"site-packages", b"model.py", b"stack_trace", b"doc_string", b"File "):
        assert word not in content


def test_a_second_export_gives_the_same_bytes_and_prints_logs_and_warns_nothing(
    exported, tmp_path, capfd, recwarn
):
    classifier, path = exported
    export_onnx(module_of(classifier), SIZE, tmp_path / "again.onnx", METADATA)
    outputs_of(tmp_path / "again.onnx", views(1))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert logging.root.manager.disable == logging.NOTSET
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


# ---------------------------------------------------------------- errors


def test_a_file_that_cannot_be_written_is_named(packages, tmp_path):
    (tmp_path / "file").write_text("old")
    path = tmp_path / "file" / "model.onnx"
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: cannot write it: [A-Z]"):
        export_onnx(tiny_module(), 4, path, {})
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


class Branching(nn.Module):
    """A network whose layers depend on its input's values: exporters cannot follow it."""

    def forward(self, images):
        return images.sum((2, 3)) if images.sum() > 0 else images.amax((2, 3))


def test_a_network_that_cannot_be_exported_is_named_in_a_line(packages, tmp_path):
    path = tmp_path / "model.onnx"
    start = f"^{re.escape(str(path))}: the ONNX exporter of torch failed: [A-Za-z]+Error: "
    with pytest.raises(UserError, match=start) as error:
        export_onnx(tiny_module(Branching()), 4, path, {})
    assert len(str(error.value)) < 500 + len(str(path))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_of_the_export_is_named(monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match="onnx and onnxscript: pip install onnx onnxscript$"):
        export_onnx(tiny_module(), 4, tmp_path / "model.onnx", {})
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def by_command(packages, trained, images, tmp_path_factory):
    """The finished command that exports a trained checkpoint, and its file."""
    folder = tmp_path_factory.mktemp("command")
    path, names = folder / "model.onnx", folder / "names.json"
    names.write_text(json.dumps({"2": "gänseblümchen", "z": "not a category"}), encoding="utf-8")
    flags = ("--checkpoint", trained.checkpoint, "--to_onnx", path, "--category_names", names)
    flags += ("--means", *MEANS, "--stds", *STDS, "--precision", "bfloat16")  # not of the file
    done = run("predict.py", *flags, "--input", images / "test" / "2" / "test_0.jpg")
    yield done, path
    path.unlink(missing_ok=True)  # 59 MB


def test_the_flag_writes_a_file_and_compares_an_image(by_command, trained):
    done, path = by_command
    assert done.returncode == 0 and done.stderr == ""
    saved, same, largest = done.stdout.splitlines()
    assert saved == f"saved {path}"
    assert same == "float32: 1 of 1 images keep their most likely category"
    assert max(differences_in(largest)) < 1e-4
    size = trained.checkpoint.stat().st_size
    assert path.stat().st_size == pytest.approx(size, rel=0.01)  # no weights are stored twice


def test_the_file_of_a_checkpoint_predicts_as_the_library_does(by_command, trained, images):
    paths = sorted((images / "test").rglob("*.jpg"))[::2]
    photographs = [utils.load_plain_view(path) for path in paths]
    probs, novelty = predict_all(OnnxModel(by_command[1]), photographs)
    classifier = load_checkpoint(trained.checkpoint)
    ranked = predict.predict(classifier, paths, top_k=9, means=MEANS, stds=STDS)
    assert len(np.unique(novelty)) > 1
    for row, value, predictions in zip(probs, novelty.tolist(), ranked, strict=True):
        assert len(predictions) == len(CATEGORIES)
        assert value == pytest.approx(predictions[0].novelty, abs=1e-5)
        for prediction in predictions:
            prob = row[classifier.class_to_idx[prediction.category]].item()
            assert prob == pytest.approx(prediction.probability, abs=1e-5)


def test_the_file_of_a_checkpoint_describes_its_input_and_categories(by_command, trained):
    metadata = metadata_of(by_command[1])
    assert json.loads(metadata["categories"]) == list(CATEGORIES)
    assert json.loads(metadata["names"]) == ["1", "10", "gänseblümchen", "x y"]
    assert metadata["resize"] == "256" and metadata["image_size"] == "224"
    for key, number in utils.preprocessing(224).items():
        assert json.loads(metadata[key]) == number
    assert json.loads(metadata["novelty_limit"]) == NOVELTY_LIMIT
    assert metadata["arch"] == "vgg16"
    assert metadata["format_version"] == str(FORMAT_VERSION)
    assert json.loads(metadata["means"]) == MEANS
    assert json.loads(metadata["stds"]) == STDS
    temperature = load_checkpoint(trained.checkpoint).temperature
    assert json.loads(metadata["temperature"]) == temperature


def test_few_images_to_calibrate_on_give_a_warning(packages, capsys, tmp_path):
    for count, is_warned in ((8, False), (7, True)):
        list(export(small_classifier(), tmp_path / "model.onnx", list(views(count)), is_int8=True))
        assert ("calibrated on 7 images" in capsys.readouterr().err) == is_warned


@pytest.mark.parametrize("others", [["--int8"], ["--int8", "--to_onnx", "new.onnx"]])
def test_integers_need_an_output_and_images(trained, images, call, others):
    done = call("predict.py", "--checkpoint", trained.checkpoint, "--evaluate", images, *others)
    assert_error(done, "--int8 goes with --to_onnx FILE, and --input")


def test_the_name_of_the_file_has_to_say_what_it_is(trained, call, tmp_path):
    """As `--checkpoint` needs it."""
    done = call("predict.py", "--checkpoint", trained.checkpoint, "--to_onnx", tmp_path / "a.pth")
    assert_error(done, "--to_onnx", "has to end in .onnx")


def test_the_flag_goes_with_one_image_or_none(trained, images, call, tmp_path):
    flags = ("--checkpoint", trained.checkpoint, "--to_onnx", tmp_path / "model.onnx")
    image = images / "test" / "2" / "test_0.jpg"
    for others in (["--input", image, image], ["--evaluate", images], ["--input", images]):
        assert_error(call("predict.py", *flags, *others), "--to_onnx")
    assert os.listdir(tmp_path) == []
