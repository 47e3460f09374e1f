"""model: the ONNX file, and what onnxruntime makes of it."""

import json
import logging
import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import ROOT, assert_error, draw, not_root, same_bits, small_backbone

import model
import predict
import utils
from model import Classifier, Head, UserError

CLASS_TO_IDX = {"b": 1, "x y": 0, "a": 2}
NAMES = {"a": "Ackerveilchen", "x y": "gänseblümchen", "z": "not one of them"}


def classifier(backbone=None, **changes) -> Classifier:
    """A small one, in nothing as the defaults are; its answers differ from picture to picture."""
    torch.manual_seed(0)
    backbone = backbone or small_backbone()
    head = Head(backbone.num_features, 16, num_outputs=5, num_classes=3, dropout=0.5)
    head.standardize_by(
        torch.full([backbone.num_features], 0.5), torch.full([backbone.num_features], 0.3)
    )
    settings = {"arch": "vgg13", "class_to_idx": CLASS_TO_IDX, "image_size": 224}
    settings |= {"means": [0.2, 0.3, 0.4], "stds": [0.3, 0.25, 0.2], "temperature": 0.25}
    return Classifier(backbone, head, **settings | changes).eval()


def views(count: int = 3) -> torch.Tensor:
    """Pictures of different kinds: (count, 3, 224, 224) uint8."""
    return torch.stack([utils.plain_view(draw(kind % 4, kind)) for kind in range(count)])


@pytest.fixture(scope="session")
def packages():
    """The packages that an export needs, without which these tests are skipped."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"the ONNX export needs {package}: pip install it")


@pytest.fixture(scope="module")
def exported(packages, tmp_path_factory):
    """A small classifier and the file it was exported to."""
    made = classifier()
    path = tmp_path_factory.mktemp("onnx") / "new folder" / "model.onnx"
    model.save_onnx(made, path, NAMES)
    return made, path


def contents(path):
    """A file as onnx reads it."""
    import onnx

    return onnx.load(path)


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("count", [1, 3, model.ONNX_BATCH + 1])
def test_a_file_answers_as_its_model_does(exported, count):
    made, path = exported
    wanted = predict.probabilities(made, views(count))
    found = model.onnx_probabilities(path, views(count))
    assert found.shape == (count, 3) and found.dtype == torch.float32
    assert (found - wanted).abs().max() < 1e-5
    for field, plain in (("temperature", 1.0), ("means", utils.MEANS), ("stds", utils.STDS)):
        other = predict.probabilities(classifier(**{field: plain}), views(count))
        assert (other - wanted).abs().max() > 1e-3  # so that each of them would be missed


def test_means_and_stds_are_overridden(packages, tmp_path):
    made, how = classifier(), {"means": [0.6, 0.5, 0.4], "stds": [0.5, 0.6, 0.7]}
    model.save_onnx(made, tmp_path / "model.onnx", {}, **how)
    found = model.onnx_probabilities(tmp_path / "model.onnx", views())
    assert (found - predict.probabilities(made, views(), **how)).abs().max() < 1e-5
    assert (found - predict.probabilities(made, views())).abs().max() > 1e-3
    told = {entry.key: entry.value for entry in contents(tmp_path / "model.onnx").metadata_props}
    assert {field: json.loads(told[field]) for field in how} == how


def test_the_model_stays_as_it_is_and_the_file_is_in_float32(packages, tmp_path):
    made = classifier().train()
    made.backbone.to(torch.bfloat16, memory_format=torch.channels_last)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    layouts = {name: (t.dtype, t.stride()) for name, t in made.state_dict().items()}
    with torch.inference_mode():  # as in a prediction
        model.save_onnx(made, tmp_path / "model.onnx", {})
    assert same_bits(made.state_dict(), before)
    assert {name: (t.dtype, t.stride()) for name, t in made.state_dict().items()} == layouts
    assert made.training
    made.eval().backbone.float()  # what is rounded stays rounded
    wanted = predict.probabilities(made, views())
    found = model.onnx_probabilities(tmp_path / "model.onnx", views())
    assert (found - wanted).abs().max() < 1e-5
    kinds = {tensor.data_type for tensor in contents(tmp_path / "model.onnx").graph.initializer}
    assert kinds <= {1, 7}  # float32, and int64 for axes


def test_a_trained_checkpoint_answers_as_predict_does(packages, trained, pictures, tmp_path):
    loaded, path = model.load_checkpoint(trained.checkpoint), tmp_path / "model.onnx"
    model.save_onnx(loaded, path, {})
    photographs = sorted((pictures / "test").rglob("*.jpg"))[::2]
    seen = torch.stack([utils.plain_view(utils.load_image(p)) for p in photographs])
    probs = model.onnx_probabilities(path, seen)
    for row, ranked in zip(probs, predict.predict(loaded, photographs, top_k=9), strict=True):
        for one in ranked:
            found = row[loaded.class_to_idx[one.category]].item()
            assert found == pytest.approx(one.probability, abs=1e-5)
    size = trained.checkpoint.stat().st_size
    assert path.stat().st_size == pytest.approx(size, rel=0.01)  # nothing twice
    path.unlink()  # 59 MB


def test_imagenets_weights_answer_the_same_on_50_photographs(
    packages, flowers_dir, vgg16_weights, tmp_path
):
    backbone = model.Backbone("vgg16")
    model.load_weights(backbone, "vgg16", str(vgg16_weights))
    photographs = sorted((flowers_dir / "test").glob("*/*"))
    photographs = photographs[:: len(photographs) // 50][:50]
    seen = torch.stack([utils.plain_view(utils.load_image(path)) for path in photographs])
    made = classifier(backbone, arch="vgg16", means=utils.MEANS, stds=utils.STDS)
    with torch.inference_mode():
        features = torch.cat([backbone(utils.normalize(batch)) for batch in seen.split(5)])
        flat = features.flatten(0, 1)
        made.head.standardize_by(flat.mean(0), flat.std(0))
        wanted = (made.head(features).mean(1) / made.temperature).softmax(1)
    model.save_onnx(made, tmp_path / "model.onnx", {})
    found = model.onnx_probabilities(tmp_path / "model.onnx", seen)
    assert len(found) == 50
    assert wanted.std(0).min() > 0.05  # the answers differ
    assert (found - wanted).abs().max() < 1e-4
    (tmp_path / "model.onnx").unlink()  # 61 MB


# ---------------------------------------------------------------- the file


def test_a_file_tells_what_it_takes_and_gives(exported):
    proto = contents(exported[1])
    told = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(told["categories"]) == ["x y", "b", "a"]
    assert json.loads(told["names"]) == ["gänseblümchen", "b", "Ackerveilchen"]
    for word in ("upright", "RGB", "256", "bilinear", "antialias", "224", "uint8"):
        assert word in told["preprocessing"]
    assert told["arch"] == "vgg13"
    assert told["format_version"] == str(model.FORMAT_VERSION)
    assert json.loads(told["means"]) == [0.2, 0.3, 0.4]
    assert json.loads(told["stds"]) == [0.3, 0.25, 0.2]
    assert json.loads(told["temperature"]) == 0.25
    assert "z" not in told["names"]
    assert declared(proto.graph.input) == [("images", 2, ["N", 3, 224, 224])]  # 2: uint8
    assert declared(proto.graph.output) == [("probabilities", 1, ["N", 3])]  # 1: float32


def declared(values):
    """The name, type and shape of each input or output."""
    kinds = [(value.name, value.type.tensor_type) for value in values]
    return [
        (name, kind.elem_type, [dim.dim_param or dim.dim_value for dim in kind.shape.dim])
        for name, kind in kinds
    ]


def test_names_of_folders_that_are_no_text_are_told(packages, tmp_path):
    odd = os.fsdecode(b"\xff")
    made = classifier(class_to_idx={"ü": 0, odd: 1, "a": 2})
    model.save_onnx(made, tmp_path / "model.onnx", {})
    told = {entry.key: entry.value for entry in contents(tmp_path / "model.onnx").metadata_props}
    assert json.loads(told["categories"]) == ["ü", odd, "a"]


def test_a_file_is_whole_and_says_nothing_of_this_machine(exported):
    import onnx

    path = exported[1]
    assert os.listdir(path.parent) == ["model.onnx"]
    onnx.checker.check_model(str(path), full_check=True)
    content = path.read_bytes()
    assert b"Conv" in content
    graph = contents(path).graph
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        assert not part.doc_string and not part.metadata_props
    for word in (ROOT, Path(torch.__file__).parent, Path.home(), path.parent, Path(sys.prefix)):
        assert os.fsencode(word) not in content
    for word in (b"site-packages", b"model.py", b"stack_trace", b"doc_string", b"File "):
        assert word not in content


def test_the_same_model_gives_the_same_bytes(exported, tmp_path):
    made, path = exported
    model.save_onnx(made, tmp_path / "again.onnx", NAMES)
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_nothing_is_printed_logged_or_warned_of(exported, tmp_path, capfd, recwarn):
    model.save_onnx(exported[0], tmp_path / "model.onnx", NAMES)
    model.onnx_probabilities(tmp_path / "model.onnx", views(1))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert logging.root.manager.disable == logging.NOTSET


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("case", ["folder", "below a file", "disk full", "locked", "the root"])
def test_a_failed_write_is_named_and_leaves_nothing(
    exported, tmp_path, locked_folder, monkeypatch, case
):
    path = {
        "folder": tmp_path,
        "below a file": tmp_path / "file" / "model.onnx",
        "disk full": tmp_path / "model.onnx",
        "locked": locked_folder / "model.onnx",
        "the root": Path("/"),
    }[case]
    (tmp_path / "file").write_text("old")
    proto = contents(exported[1])
    monkeypatch.setattr(model, "_export", lambda _: proto)  # saves seconds
    if case == "disk full":
        path.write_text("old")

        def no_space(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", no_space)
    before = sorted(os.listdir(tmp_path)), sorted(os.listdir(tmp_path.parent))
    wanted = f"^{re.escape(str(path))}: cannot write it: [A-Z]"
    with pytest.raises(UserError, match=wanted), not_root() if case == "locked" else nullcontext():
        model.save_onnx(exported[0], path, NAMES)
    assert before == (sorted(os.listdir(tmp_path)), sorted(os.listdir(tmp_path.parent)))
    assert (tmp_path / "file").read_text() == "old"
    if case == "disk full":
        assert path.read_text() == "old"


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_of_the_export_is_named(monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match="onnx and onnxscript: pip install onnx onnxscript$"):
        model.save_onnx(classifier(), tmp_path / "model.onnx", {})
    assert os.listdir(tmp_path) == []


def test_a_missing_onnxruntime_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="package onnxruntime: pip install onnxruntime$"):
        model.onnx_probabilities(tmp_path / "model.onnx", views(1))


def test_an_exporter_that_fails_is_told_in_a_line(packages, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise AttributeError("onnxscript has no\nsuch thing" + 1000 * "!")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UserError, match="model.onnx: .*exporter.*AttributeError") as error:
        model.save_onnx(classifier(), tmp_path / "model.onnx", {})
    assert len(str(error.value)) < 500
    assert os.listdir(tmp_path) == []


def from_another_program(path):
    """A sound ONNX file whose input is called otherwise."""
    import onnx

    one, other = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "graph", [one], [other]
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    made.ir_version = 8
    onnx.save(made, path)


NO_MODELS = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("no model\n" * 100),
    "from another program": from_another_program,
}


@pytest.mark.parametrize("case", NO_MODELS)
def test_a_file_that_is_no_model_is_named(packages, tmp_path, capfd, case):
    path = tmp_path / "model.onnx"
    NO_MODELS[case](path)
    why = "cannot read it: [A-Z]" if case in ("missing", "folder") else "not a model"
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {why}"):
        model.onnx_probabilities(path, views(1))
    assert capfd.readouterr() == ("", "")


def test_the_flag_writes_the_file_and_compares_a_picture(
    packages, trained, pictures, call, tmp_path
):
    path, picture = tmp_path / "model.onnx", pictures / "test" / "2" / "test_0.jpg"
    flags = ("--checkpoint", trained.checkpoint, "--to_onnx", path)
    done = call("predict.py", *flags, "--input", picture, "--means", 0.4, 0.4, 0.4)
    assert done.returncode == 0 and done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first == f"saved {path}"
    assert float(re.fullmatch("largest difference in probability: ([0-9.e-]+)", second)[1]) < 1e-4
    for wrong in (["--input", picture, picture], ["--evaluate", pictures], ["--input", pictures]):
        assert_error(call("predict.py", *flags, *wrong), "--to_onnx")


def test_a_file_that_answers_otherwise_is_an_error(
    packages, trained, pictures, call, tmp_path, monkeypatch
):
    monkeypatch.setattr(predict, "DIFFERENCE", -1.0)  # none is small enough
    flags = ("--checkpoint", trained.checkpoint, "--to_onnx", tmp_path / "model.onnx")
    done = call("predict.py", *flags, "--input", pictures / "test" / "2" / "test_0.jpg")
    assert_error(done, "model.onnx", "differ")
