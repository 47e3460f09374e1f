"""inference.onnx_model: ONNX files as predictors, and predict.py where torch is not installed.

In the environment variable LIGHT_PYTHON, .ci/run gives the python of an environment that has
requirements-predict.txt alone. Without it, these tests hide all other packages from predict.py.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    TIMEOUT,
    assert_error,
    draw,
    free_port,
    parse_results,
    run,
    run_and_list_imports,
    table_rows,
)
from PIL import Image
from test_onnx_export import (
    MEANS,
    SIZE,
    STDS,
    difference,
    packages,
    small_classifier,
    views,
)

import predict
import utils
from inference.onnx_export import export
from inference.onnx_model import OnnxModel, is_onnx
from system.messages import UserError

onnx = pytest.importorskip("onnx", reason="these tests write ONNX files: pip install onnx")
HIDDEN = "torch torchvision onnx onnxscript scipy pandas seaborn matplotlib platformdirs".split()
__all__ = ["packages"]  # a fixture


@pytest.fixture(scope="module")
def small(packages, tmp_path_factory):
    """A small classifier, and its file."""
    classifier = small_classifier(names={"a": "rose", "b": "rose"})
    path = tmp_path_factory.mktemp("small") / "model.onnx"
    [_] = export(classifier, path, [])
    return classifier, path


def hide(folder: Path, modules) -> dict[str, str]:
    """Return variables with which Python cannot import modules, as if they were not installed."""
    folder.mkdir(exist_ok=True)
    program = f"import sys\nfor name in {list(modules)}:\n    sys.modules[name] = None\n"
    (folder / "sitecustomize.py").write_text(program)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="session")
def light(tmp_path_factory):
    """Start predict.py where only requirements-predict.txt is installed, as `run` does."""
    python, variables = os.environ.get("LIGHT_PYTHON"), {}
    if not python:
        python, variables = sys.executable, hide(tmp_path_factory.mktemp("hidden"), HIDDEN)

    def start(*args, **options) -> subprocess.Popen:
        return subprocess.Popen(
            [python, str(ROOT / "predict.py"), *map(str, args)],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return start


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    out, err = process.communicate(timeout=TIMEOUT)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


# ---------------------------------------------------------------- the predictor


@pytest.mark.parametrize(
    ("name", "expected"), [("a.onnx", True), ("A.ONNX", True), ("onnx", False), ("a.pth", False)]
)
def test_the_name_says_what_a_file_is(name, expected):
    assert is_onnx(name) == is_onnx(Path("folder.onnx") / name) == expected


def test_a_file_says_what_its_checkpoint_says(small):
    classifier, path = small
    loaded = OnnxModel(path)
    for name in (
        "categories",
        "class_to_idx",
        "image_size",
        "means",
        "stds",
        "has_novelty",
        "novelty_limit",
    ):
        assert getattr(loaded, name) == getattr(classifier, name)
    assert loaded.names == {"a": "rose", "b": "rose", "x y": "x y"}
    assert loaded.settings() == classifier.settings()
    assert loaded.preprocessing == utils.preprocessing(SIZE)
    assert loaded.precision == "float32" and loaded.device_type == "cpu"


def test_means_and_stds_may_be_replaced_also_by_several_threads(small):
    classifier, path = small
    loaded, images, results = OnnxModel(path), views(), {}
    settings = [(MEANS, STDS), ([0.1, 0.2, 0.6], STDS), (MEANS, [0.5, 0.1, 0.3]), (None, None)]

    def predict(number):
        for _ in range(5):
            results[number] = loaded.predict_views(images, *settings[number % 4])

    threads = [threading.Thread(target=predict, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        expected = classifier.predict_views(images, *settings[number % 4])
        assert difference(results[number], expected) < 1e-5
    assert difference(results[0], results[1]) > 1e-3 < difference(results[0], results[2])


def test_a_file_without_novelty_has_none(packages, tmp_path):
    classifier = small_classifier(detector=None)
    [_] = export(classifier, tmp_path / "model.onnx", [])
    loaded = OnnxModel(tmp_path / "model.onnx")
    probs, novelty = loaded.predict_views(views())
    assert probs.shape == (3, 3) and novelty.shape == (3,) and np.isnan(novelty).all()
    with pytest.raises(UserError, match="no novelty"):
        loaded.check_novelty(0.1)


def test_the_precision_is_that_of_the_file(small):
    loaded = OnnxModel(small[1])
    loaded.prepare("cpu", "auto")
    loaded.prepare("cpu", "float32")
    with pytest.raises(UserError, match="^--precision bfloat16: .* computes in float32"):
        loaded.prepare("cpu", "bfloat16")


def test_a_gpu_that_onnxruntime_does_not_have_is_a_users_error(small):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has onnxruntime-gpu")
    with pytest.raises(UserError, match="^--device gpu: .* onnxruntime-gpu .*use --device cpu"):
        OnnxModel(small[1]).prepare("gpu", "auto")


def test_a_missing_onnxruntime_is_named(monkeypatch, small):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="package onnxruntime: pip install onnxruntime$"):
        OnnxModel(small[1])


# ---------------------------------------------------------------- hostile and foreign files


def edited(change):
    """Return a function that writes the small classifier's file, changed."""

    def write(path, source):
        proto = onnx.load(source)
        change(proto)
        path.write_bytes(proto.SerializeToString())

    return write


def metadata(**values):
    """Return a function that changes metadata of the file."""

    def change(proto):
        for entry in proto.metadata_props:
            if entry.key in values:
                entry.value = values[entry.key]

    return edited(change)


def renamed(proto):
    """Rename the input, everywhere."""
    proto.graph.input[0].name = "x"
    for node in proto.graph.node:
        node.input[:] = ["x" if name == "images" else name for name in node.input]


def more_categories(proto):
    for entry in proto.metadata_props:
        if entry.key in ("categories", "names"):
            entry.value = json.dumps(["a", "b", "c", "d"])


def content(cut):
    return lambda path, source: path.write_bytes(cut(source.read_bytes()))


def huge_dimension(proto):
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 10**6
    proto.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 10**6


def elsewhere(tensor, **values):
    """Let a tensor say that its values are in another file."""
    values = {"location": "secret", "offset": "0", "length": "8192"} | values
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for name, value in values.items():
        tensor.external_data.add(key=name, value=value)


def first_weights_in(location):
    return lambda proto: elsewhere(proto.graph.initializer[0], location=location)


def constant_elsewhere(proto):
    node = proto.graph.node.add(op_type="Constant", output=["constant"])
    tensor = onnx.helper.make_tensor("constant", onnx.TensorProto.FLOAT, [1], [0.0])
    elsewhere(tensor)
    node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)


def branch_elsewhere(proto):
    """Weights in the graph of a branch."""
    branch = onnx.helper.make_graph([], "branch", [], [])
    branch.initializer.append(proto.graph.initializer[0])
    elsewhere(branch.initializer[0])
    node = proto.graph.node.add(op_type="If", input=["condition"], output=["result"])
    node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(branch)


OTHER_FILES = {
    "weights": first_weights_in("secret"),
    "weights above": first_weights_in("../../secret"),
    "weights anywhere": first_weights_in("/etc/passwd"),
    "weights in memory": first_weights_in("*/_ORT_MEM_ADDR_/*"),  # version 1.18 crashes
    "constant": constant_elsewhere,
    "branch": branch_elsewhere,
}
ELSEWHERE = "not a model .* it has weights in other files"
INVALID = {
    "missing": (lambda path, source: None, "cannot read it"),
    "folder": (lambda path, source: path.mkdir(), "not a file"),
    "empty": (lambda path, source: path.touch(), "empty"),
    "text": (content(lambda _: b"no model\n" * 100), "not a model"),
    "random": (content(lambda _: np.random.default_rng(0).bytes(100_000)), "not a model"),
    "half": (content(lambda data: data[: len(data) // 2]), "not a model"),
    "its end is cut off": (content(lambda data: data[:-100]), "not a model"),
    "without metadata": (edited(lambda p: p.ClearField("metadata_props")), "not an ONNX file of"),
    "no list": (metadata(categories="{}"), "not an ONNX file of this program"),
    "nested": (metadata(names="[" * 100_000), "not an ONNX file of this program"),
    "numbers": (metadata(categories="[1, 2, 3]"), "not an ONNX file of this program"),
    "one name": (metadata(names='["a"]'), "not an ONNX file of this program"),
    "twice": (metadata(categories='["a", "a", "b"]'), "not an ONNX file of this program"),
    "a mean": (metadata(means="[0.5]"), "not an ONNX file of this program"),
    "infinite": (metadata(stds="[1, 1, Infinity]"), "not an ONNX file of this program"),
    "other crop": (metadata(resize="255"), "are prepared in another way"),
    "other version": (metadata(preprocessing_version="2"), "are prepared in another way"),
    "no version": (metadata(preprocessing_version='"1"'), "not an ONNX file of this program"),
    "other limit": (metadata(novelty_limit="2"), "not an ONNX file of this program"),
    "other size": (metadata(image_size="96"), "not an ONNX file of this program"),
    "unknown precision": (metadata(precision="int1"), "not an ONNX file of this program"),
    "another input": (edited(renamed), "not an ONNX file of this program"),
    "huge images": (edited(huge_dimension), "not "),
    "more categories": (edited(more_categories), "do not have the shapes"),
    **{f"{case} elsewhere": (edited(change), ELSEWHERE) for case, change in OTHER_FILES.items()},
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_file_is_named_in_one_line(small, call, tmp_path, case):
    write, reason = INVALID[case]
    path, image = tmp_path / "model.onnx", tmp_path / "image.png"
    write(path, small[1])
    draw(0, 0).save(image)
    (tmp_path / "etc").mkdir()
    done = call("predict.py", "--input", image, "--checkpoint", path)
    assert_error(done, path)
    assert re.search(reason, done.stderr), done.stderr
    assert len(done.stderr) < 1500 and done.stdout == ""


def test_a_key_whose_length_takes_more_bytes_than_it_needs_is_found(small, tmp_path):
    """As protobuf reads it: 88 00 is 8."""
    proto = onnx.load(small[1])
    elsewhere(proto.graph.initializer[0])
    shortest = b"\x0a\x08location\x12\x06secret"
    content = proto.SerializeToString()
    assert content.count(shortest) == 1
    longer = content.replace(shortest, b"\x0a\x88\x80\x00location\x12\x04secr")
    [key, *_] = onnx.load_from_string(longer).graph.initializer[0].external_data
    assert (key.key, key.value) == ("location", "secr")
    (tmp_path / "longer.onnx").write_bytes(longer)
    with pytest.raises(UserError, match="it has weights in other files"):
        OnnxModel(tmp_path / "longer.onnx")


def test_a_category_may_be_called_location(packages, tmp_path):
    categories = {"location": 0, "b": 1, "a": 2}
    classifier = small_classifier(class_to_idx=categories, names={"a": "location"})
    [_] = export(classifier, tmp_path / "model.onnx", [])
    assert OnnxModel(tmp_path / "model.onnx").class_to_idx == categories


def test_a_model_in_the_own_format_of_onnxruntime_is_refused(small, tmp_path):
    """It is no protobuf message, in which another file would be found."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(small[1]), options, providers=["CPUExecutionProvider"])
    path = (tmp_path / "model.ort").rename(tmp_path / "model.onnx")
    with pytest.raises(UserError, match="not a model that onnxruntime can run"):
        OnnxModel(path)


def test_a_checkpoint_called_onnx_and_an_onnx_file_called_checkpoint_are_errors(
    small, call, tmp_path
):
    image = tmp_path / "image.png"
    draw(0, 0).save(image)
    torch.save({"format_version": 7}, tmp_path / "a.onnx")
    shutil.copy(small[1], tmp_path / "b.pth")
    for name in ("a.onnx", "b.pth"):
        done = call("predict.py", "--input", image, "--checkpoint", tmp_path / name)
        assert_error(done, tmp_path / name)


def test_a_file_cannot_take_all_memory(small, tmp_path):
    """Each of its operators doubles what the one before has; 2^31 times the image in all."""
    proto = onnx.load(small[1])
    [convolution] = [i for i, node in enumerate(proto.graph.node) if node.op_type == "Conv"][:1]
    source = proto.graph.node[convolution].input[0]
    doubled = [source] + [f"doubled {number}" for number in range(31)]
    for last, name in zip(doubled, doubled[1:], strict=False):
        node = onnx.helper.make_node("Concat", [last, last], [name], axis=0)
        proto.graph.node.insert(convolution, node)
        convolution += 1
    largest = onnx.helper.make_node("ReduceMax", [doubled[-1]], ["largest"], keepdims=0)
    proto.graph.node.insert(convolution, largest)
    proto.graph.node.insert(
        convolution + 1, onnx.helper.make_node("Mul", [source, "largest"], ["images again"])
    )
    proto.graph.node[convolution + 2].input[0] = "images again"
    onnx.save(proto, tmp_path / "bomb.onnx")
    program = (
        "import resource, sys, numpy as np\n"
        "from inference import onnx_model\n"
        "onnx_model.MEMORY_LIMIT = 2**28\n"
        "images = np.zeros((1, 3, 64, 64), np.uint8)\n"
        "try:\n    onnx_model.OnnxModel(sys.argv[1]).predict_views(images)\n"
        "except onnx_model.UserError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    command = [sys.executable, "-c", program, tmp_path / "bomb.onnx"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    error, memory = done.stdout.splitlines()
    assert re.search("onnxruntime failed: .* a smaller --batch_size", error)
    assert int(memory) < 3 * 2**30  # with the imports


# ---------------------------------------------------------------- predict.py without torch


@pytest.fixture(scope="module")
def exported(packages, trained, tmp_path_factory):
    """The file of a checkpoint that train.py wrote."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    done = run("predict.py", "--checkpoint", trained.checkpoint, "--to_onnx", path)
    assert done.returncode == 0, done.stderr
    yield path
    path.unlink()  # 59 MB


def test_the_table_of_an_image_is_that_of_the_checkpoint(exported, trained, images, light):
    flags = ("--input", images / "test" / "2" / "test_0.jpg", "--top_k", 3)
    expected = run(
        "predict.py", *flags, "--checkpoint", trained.checkpoint, "--precision", "float32"
    )
    done = finish(light(*flags, "--checkpoint", exported, "--precision", "float32", "--verbose"))
    assert (done.returncode, done.stdout) == (0, expected.stdout)
    assert len(table_rows(done.stdout)) == 3
    assert re.fullmatch(f"{re.escape(str(exported))}: sha256 [0-9a-f]{{64}}\n", done.stderr)


@pytest.fixture
def mixed(images, tmp_path):
    """A folder with images of several kinds, and some that cannot be read."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, path in enumerate(sorted(images.glob("test/*/*"))[:9]):
        shutil.copy(path, folder / f"{number}.jpg")
    draw(1, 1).convert("CMYK").save(folder / "cmyk.jpg")
    (folder / "broken.jpg").write_bytes((folder / "0.jpg").read_bytes()[:300])
    (folder / "text.jpg").write_text("no image")
    return folder


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_many_predictions_are_those_of_the_checkpoint(
    exported, trained, mixed, light, tmp_path, kind
):
    flags = ("--input", mixed, "--top_k", 9, "--format", kind, "--batch_size", 5)
    expected = run(
        "predict.py", *flags, "--checkpoint", trained.checkpoint, "--precision", "float32"
    )
    done = finish(light(*flags, "--checkpoint", exported))
    assert done.returncode == expected.returncode == 1
    assert done.stderr == expected.stderr
    pairs = zip(parse_results(done.stdout, kind), parse_results(expected.stdout, kind), strict=True)
    for actual, other in pairs:
        assert actual["path"] == other["path"] and actual.get("error") == other.get("error")
        if "error" not in actual:
            # For many images, torch uses Winograd's method, whose rounding differs.
            assert actual["novelty"] == pytest.approx(other["novelty"], abs=1e-3)
            for one, two in zip(actual["predictions"], other["predictions"], strict=True):
                assert one["probability"] == pytest.approx(two["probability"], abs=1e-4)


def test_the_evaluation_is_that_of_the_checkpoint(exported, trained, images, mixed, light):
    flags = ("--evaluate", images, "--unknown", mixed)
    flags += ("--category_names", ROOT / "cat_to_name.json")
    expected = run(
        "predict.py", *flags, "--checkpoint", trained.checkpoint, "--precision", "float32"
    )
    done = finish(light(*flags, "--checkpoint", exported))
    assert (done.returncode, done.stdout) == (expected.returncode, expected.stdout)
    assert "accuracy" in done.stdout and "calibration" in done.stdout


def test_a_thousand_images_are_continued_after_a_kill(small, light, tmp_path):
    """Some cannot be read; the result is that of one run."""
    folder, path = tmp_path / "photos", tmp_path / "names.csv"
    folder.mkdir()
    for number in range(1000):
        Image.new("RGB", (40, 40), (number % 256, number // 4, 7)).save(folder / f"{number}.png")
        if number % 100 == 50:
            (folder / f"{number}.png").write_bytes(b"broken")
    flags = ("--input", folder, "--checkpoint", small[1], "--top_k", 2)
    whole = finish(light(*flags, "--output", tmp_path / "whole.csv"))
    assert whole.returncode == 1 and whole.stderr.count("50.png") == 10
    process = light(*flags, "--output", path)
    partial, deadline = tmp_path / "names.csv.partial", time.monotonic() + TIMEOUT
    while not (partial.exists() and partial.stat().st_size > 500):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert partial.exists() and not path.exists()
    done = finish(light(*flags, "--output", path, "--resume"))
    assert " were in " in done.stderr and done.returncode == 1
    assert len(path.read_text().splitlines()) == 1 + 2 * 990 + 10
    tables = [parse_results(file.read_text(), "csv") for file in (path, tmp_path / "whole.csv")]
    for one, other in zip(*tables, strict=True):  # batches of other images round differently
        assert (one["path"], one.get("error")) == (other["path"], other.get("error"))
        values = [row.get("predictions", [{}])[0].get("probability", 0) for row in (one, other)]
        assert values[0] == pytest.approx(values[1], abs=1e-5)
    other = finish(light(*flags, "--output", path, "--resume", "--means", 0.1, 0.2, 0.3))
    assert_error(other, "--means")


def test_torch_is_not_imported_where_it_is_installed(small, images):
    names = ("torch", "onnx", "matplotlib", "seaborn", "pandas", "platformdirs", "flask")
    image = images / "test" / "2" / "test_0.jpg"
    flags = ("--checkpoint", small[1], "--input", image)
    output, imported = run_and_list_imports("predict", names, *flags)
    assert imported == [] and len(table_rows(output)) == 1


@pytest.mark.parametrize("flag", ["--heatmap", "--to_onnx"])
def test_what_needs_torch_says_so(small, light, images, tmp_path, flag):
    flags = ("--input", images / "test" / "2" / "test_0.jpg", "--checkpoint", small[1])
    done = finish(light(*flags, flag, tmp_path / "new.png"))
    assert_error(done, flag, "needs a checkpoint and torch")
    assert os.listdir(tmp_path) == []


def test_torchrun_needs_torch(small, monkeypatch, light, images):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = finish(light("--input", images, "--checkpoint", small[1]))
    assert_error(done, "torchrun", "needs a checkpoint and torch")
    for alone in ("", "1"):  # as a variable that is left empty, and with one process
        monkeypatch.setenv("WORLD_SIZE", alone)
        done = finish(light("--input", images / "test" / "2", "--checkpoint", small[1]))
        assert done.returncode == 0, done.stderr


def test_a_checkpoint_needs_torch_and_says_so(light, trained, images):
    image = images / "test" / "2" / "test_0.jpg"
    done = finish(light("--input", image, "--checkpoint", trained.checkpoint))
    assert_error(done, trained.checkpoint, "a checkpoint needs the package torch: pip install")


def test_a_figure_needs_matplotlib_alone(small, images, tmp_path):
    flags = ("--input", images / "test" / "2" / "test_0.jpg", "--checkpoint", small[1])
    flags += ("--plot", tmp_path / "plot.png")
    nothing = hide(tmp_path / "nothing", HIDDEN)
    assert_error(run("predict.py", *flags, env=nothing), "matplotlib: pip install matplotlib")
    with_it = hide(tmp_path / "with", set(HIDDEN) - {"matplotlib"})
    assert run("predict.py", *flags, env=with_it).returncode == 0
    assert Image.open(tmp_path / "plot.png").format == "PNG"
    for category in small[0].categories:
        (tmp_path / "data" / category).mkdir(parents=True)
        draw(0, 0).save(tmp_path / "data" / category / "a.png")
    evaluated = ("--evaluate", tmp_path / "data", "--checkpoint", small[1])
    evaluated += ("--plot", tmp_path / "matrix.png")
    done = run("predict.py", *evaluated, env=with_it)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "matrix.png").format == "PNG"


# ---------------------------------------------------------------- the server of the README


def upload(url: str, name: str, content: bytes) -> tuple[int, dict]:
    """Send a file as a form, as curl -F does; returns the status and the JSON."""
    start = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a.jpg"\r\n\r\n'
    body = start.encode() + content + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        is_json = error.headers["Content-Type"] == "application/json"
        return error.code, json.load(error) if is_json else {}


def test_the_server_predicts_what_is_uploaded(small, tmp_path):
    pytest.importorskip("flask", reason="the server needs flask: pip install flask")
    port = free_port()
    command = [sys.executable, "assets/serve_example.py", str(small[1]), port]
    env = os.environ | hide(tmp_path / "hidden", HIDDEN)
    server = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}/predict"
    try:
        while "Running on" not in server.stderr.readline():
            assert server.poll() is None
        contents = []
        for kind in range(4):
            Image.fromarray(views(4)[kind].transpose(1, 2, 0)).save(tmp_path / "image.png")
            contents.append((tmp_path / "image.png").read_bytes())
        replies: dict = {}

        def ask(number):
            replies[number] = upload(url, "image", contents[number % 4])

        threads = [threading.Thread(target=ask, args=[number]) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, (status, reply) in replies.items():
            assert status == 200 and reply == replies[number % 4][1]
            (tmp_path / "image.png").write_bytes(contents[number % 4])
            [expected] = predict.predict(small[0], [tmp_path / "image.png"], top_k=3)
            assert reply["novelty"] == pytest.approx(expected[0].novelty, abs=1e-4)
            for one, two in zip(reply["predictions"], expected, strict=True):
                assert (one["category"], one["name"]) == (two.category, two.name)
                assert one["probability"] == pytest.approx(two.probability, abs=1e-4)
        assert replies[0][1] != replies[1][1]
        assert upload(url, "image", b"no image") == (
            400,
            {"path": "a.jpg", "error": "not an image, but a text file"},
        )
        assert upload(url, "picture", contents[0])[0] == 400
        assert upload(url, "image", bytes(51_000_000))[0] == 413
        assert upload(url, "image", contents[0]) == replies[0]  # it still works
    finally:
        server.terminate()
        server.communicate(timeout=TIMEOUT)
